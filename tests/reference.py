"""Slow, obvious truth for the tests: numpy and scipy only.

Nothing here imports torch or torch_propkernel. Every function names the equation of THEORY.md that it evaluates, and
does so in the most direct way: dense matrices, `solve`, `slogdet`, grids, quadrature.

Conventions (THEORY.md section 0): `precisions` = (lambda_0, ..., lambda_L), weights of layer l have variance
1/lambda_l; `biases` = (b_0, ..., b_{L-1}) are the variances of the hidden biases; T is the variance of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, special

Array = NDArray[np.float64]
COMPOSITIONS = ("nested", "outer", "linear_part")


# ---------------------------------------------------------------------------------------------------------------------
# Dual activations (THEORY.md section 0)
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dual:
    """An activation phi with kappa(c_xx, c_xy, c_yy) = E[phi(u) phi(w)] and slope(c) = E phi'(h), h ~ N(0, c).

    `kappa` accepts complex arguments (for the complex step) wherever it is a closed form. `kinks` lists the points
    where phi is not smooth, for the quadrature.
    """

    name: str
    phi: Callable
    kappa: Callable
    slope: Callable
    mean: Callable
    kinks: tuple[float, ...] = ()
    odd: bool = False


def _kappa_erf(cxx, cxy, cyy):
    """THEORY.md section 0, row erf."""
    return (2 / np.pi) * np.arcsin(2 * cxy / np.sqrt((1 + 2 * cxx) * (1 + 2 * cyy)))


def _kappa_relu(cxx, cxy, cyy):
    """THEORY.md section 0, row relu, complex-step safe also at |cos t| = 1 (there t is held at 0 or pi).

    With g(c) = sin t + (pi - t) c, dg/dc = pi - t: holding t at its limit leaves value and first derivative right.
    """
    cxx, cxy, cyy = np.broadcast_arrays(cxx, cxy, cyy)
    norm = np.sqrt(cxx * cyy)
    safe = np.where(norm == 0, 1, norm)
    cosine = cxy / safe
    parallel = np.real(cosine) >= 1 - 1e-14
    opposite = np.real(cosine) <= -1 + 1e-14
    inner = np.where(parallel | opposite, 0, cosine)
    angle = np.arccos(inner)
    shape = np.sqrt(1 - inner * inner) + (np.pi - angle) * inner
    shape = np.where(parallel, np.pi * cosine, np.where(opposite, 0 * cosine, shape))
    return np.where(norm == 0, 0 * norm, norm * shape / (2 * np.pi))


def _kappa_gelu(cxx, cxy, cyy):
    """THEORY.md section 0, row gelu."""
    prod = (1 + cxx) * (1 + cyy)
    numerator = cxx * cyy + cxy**2 * (1 / (1 + cxx) + 1 / (1 + cyy) - 1)
    return (
        cxy / 4 + cxy / (2 * np.pi) * np.arcsin(cxy / np.sqrt(prod)) + numerator / (2 * np.pi * np.sqrt(prod - cxy**2))
    )


def _panels(low: float, high: float, count: int, order: int = 20) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(low, high, count + 1)
    half = np.diff(edges) / 2
    mid = (edges[:-1] + edges[1:]) / 2
    return (mid[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def _normal_panels(split: float, radius: float = 10.0) -> tuple[Array, Array]:
    """Nodes and weights of E[g(a)], a ~ N(0, 1), g smooth on both sides of `split` (truncation error 1e-23)."""
    split = min(max(split, -radius), radius)
    left, right = _panels(-radius, split, 12), _panels(split, radius, 12)
    a = np.concatenate([left[0], right[0]])
    w = np.concatenate([left[1], right[1]])
    return a, w * np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)


def expectation(g: Callable, variance: float, kink: float = 0.0) -> float:
    """E g(h), h ~ N(0, variance), by brute composite Gauss-Legendre quadrature."""
    if variance == 0:
        return float(g(np.zeros(1))[0])
    scale = math.sqrt(variance)
    a, w = _normal_panels(kink / scale)
    return float(np.sum(w * g(scale * a)))


def dual_by_quadrature(phi: Callable, cxx: float, cxy: float, cyy: float, kink: float = 0.0) -> float:
    """kappa = E[phi(u) phi(w)] by nested quadrature: u = sqrt(c_xx) a, w = c_xy/sqrt(c_xx) a + s b."""
    if cxx == 0 or cyy == 0:
        return expectation(phi, cxx, kink) * expectation(phi, cyy, kink)
    root = math.sqrt(cxx)
    residual = cyy - cxy**2 / cxx
    a, wa = _normal_panels(kink / root)
    slope = cxy / root
    if residual <= 1e-14 * cyy:
        return float(np.sum(wa * phi(root * a) * phi(slope * a)))
    s = math.sqrt(residual)
    inner = np.empty_like(a)
    for i, center in enumerate(slope * a):
        b, wb = _normal_panels((kink - center) / s)
        inner[i] = np.sum(wb * phi(center + s * b))
    return float(np.sum(wa * phi(root * a) * inner))


def quadrature_dual(name: str, phi: Callable, odd: bool) -> Dual:
    """A Dual whose every entry is a brute quadrature (slow: about 10 ms per entry, real arguments only)."""

    def slope(c):
        return np.vectorize(lambda v: expectation(lambda h: phi(h) * h, v) / v)(c)  # Stein: E phi' = E[phi h]/c

    kappa = np.vectorize(lambda x, xy, y: dual_by_quadrature(phi, float(x), float(xy), float(y)))
    return Dual(name, phi, kappa, slope, np.vectorize(lambda c: expectation(phi, float(c))), odd=odd)


def leaky_relu(a: float) -> Dual:
    """Leaky relu of slope a for negative arguments: kappa = a c_xy + (1 - a)^2 kappa_relu."""
    return Dual(
        "leaky_relu",
        lambda u: np.where(u > 0, u, a * u),
        lambda x, xy, y: a * xy + (1 - a) ** 2 * _kappa_relu(x, xy, y),
        lambda c: (1 + a) / 2 + 0 * c,
        lambda c: (1 - a) * np.sqrt(c / (2 * np.pi)),
        kinks=(0.0,),
    )


DUALS: dict[str, Dual] = {
    "identity": Dual(
        "identity", lambda u: u, lambda x, xy, y: xy + 0 * x + 0 * y, lambda c: 1 + 0 * c, lambda c: 0 * c, odd=True
    ),
    "erf": Dual("erf", special.erf, _kappa_erf, lambda c: 2 / np.sqrt(np.pi * (1 + 2 * c)), lambda c: 0 * c, odd=True),
    "relu": Dual(
        "relu",
        lambda u: np.maximum(u, 0),
        _kappa_relu,
        lambda c: 0.5 + 0 * c,
        lambda c: np.sqrt(c / (2 * np.pi)),
        kinks=(0.0,),
    ),
    "leaky_relu": leaky_relu(0.1),
    "sin": Dual(
        "sin",
        np.sin,
        lambda x, xy, y: np.exp(-(x + y) / 2) * np.sinh(xy),
        lambda c: np.exp(-c / 2),
        lambda c: 0 * c,
        odd=True,
    ),
    "cos": Dual(
        "cos", np.cos, lambda x, xy, y: np.exp(-(x + y) / 2) * np.cosh(xy), lambda c: 0 * c, lambda c: np.exp(-c / 2)
    ),
    "exp": Dual(
        "exp", np.exp, lambda x, xy, y: np.exp((x + y) / 2 + xy), lambda c: np.exp(c / 2), lambda c: np.exp(c / 2)
    ),
    "square": Dual("square", np.square, lambda x, xy, y: x * y + 2 * xy**2, lambda c: 0 * c, lambda c: c),
    "gelu": Dual(
        "gelu",
        lambda u: u * special.ndtr(u),
        _kappa_gelu,
        lambda c: 0.5 + 0 * c,
        lambda c: c / np.sqrt(2 * np.pi * (1 + c)),
    ),
    "tanh": quadrature_dual("tanh", np.tanh, odd=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Kernels (THEORY.md sections 0 and 4)
# ---------------------------------------------------------------------------------------------------------------------


def input_covariance(X1: Array, X2: Array, precisions: Sequence[float], biases: Sequence[float] | None = None) -> Array:
    """C = X1 X2^T / (lambda_0 N_0) + b_0."""
    b0 = 0.0 if biases is None else biases[0]
    return X1 @ X2.T / (precisions[0] * X1.shape[1]) + b0


def nngp(X1: Array, X2: Array, dual: Dual, precisions: Sequence[float], biases: Sequence[float] | None = None) -> Array:
    """K^L(X1, X2) by double loops over rows: K^0 = C, K^l = kappa(K^{l-1})/lambda_l (+ b_l for l < L)."""
    depth = len(precisions) - 1
    biases = [0.0] * depth if biases is None else list(biases)
    K = np.empty((len(X1), len(X2)))
    for i, x in enumerate(X1):
        for j, y in enumerate(X2):
            scale = precisions[0] * len(x)
            cxx, cxy, cyy = x @ x / scale + biases[0], x @ y / scale + biases[0], y @ y / scale + biases[0]
            for layer in range(1, depth + 1):
                bias = biases[layer] if layer < depth else 0.0
                cxx, cxy, cyy = (
                    float(dual.kappa(cxx, cxx, cxx)) / precisions[layer] + bias,
                    float(dual.kappa(cxx, cxy, cyy)) / precisions[layer] + bias,
                    float(dual.kappa(cyy, cyy, cyy)) / precisions[layer] + bias,
                )
            K[i, j] = cxy
    return K


def _apply(dual: Dual, K: Array) -> Array:
    d = np.diagonal(K)
    out = np.array(dual.kappa(d[:, None], K, d[None, :]))
    out[np.diag_indices_from(out)] = dual.kappa(d, d, d)
    return out


def hidden_kernels(C: Array, dual: Dual, precisions: Sequence[float], biases: Sequence[float] | None = None) -> list:
    """[K^0, ..., K^L] on one symmetric set of rows (section 0)."""
    depth = len(precisions) - 1
    biases = [0.0] * depth if biases is None else list(biases)
    kernels = [C]
    for layer in range(1, depth + 1):
        kernels.append(_apply(dual, kernels[-1]) / precisions[layer] + (biases[layer] if layer < depth else 0.0))
    return kernels


def nested_kernel(C: Array, dual: Dual, precisions: Sequence[float], biases: Sequence[float] | None, q: Array) -> Array:
    """Equation (6): K_R^l = (q_l/lambda_l) kappa(K_R^{l-1}) + b_l (l < L), hidden biases never multiplied."""
    depth = len(precisions) - 1
    biases = [0.0] * depth if biases is None else list(biases)
    K = C
    for layer in range(1, depth + 1):
        K = (q[layer - 1] / precisions[layer]) * _apply(dual, K) + (biases[layer] if layer < depth else 0.0)
    return K


def renormalized_kernel(
    C: Array,
    dual: Dual,
    precisions: Sequence[float],
    biases: Sequence[float] | None = None,
    composition: str = "outer",
) -> Callable[[ArrayLike], Array]:
    """A function q -> K_R on the symmetric set of rows with input covariance C (which includes b_0).

    nested (6), outer (7),
    linear_part (8b): K_R^l = (q_l/lambda_l)[kappa(K^{l-1}) + D (K_R^{l-1} - K^{l-1}) D] + b_l (l < L), K_R^0 = K^0.
    """
    depth = len(precisions) - 1
    if composition == "nested":
        return lambda q: nested_kernel(C, dual, precisions, biases, np.asarray(q))
    kernels = hidden_kernels(C, dual, precisions, biases)
    if composition == "outer":
        return lambda q: np.prod(q) * kernels[-1]
    if composition == "linear_part":
        b = [0.0] * depth if biases is None else list(biases)
        images = [_apply(dual, K) for K in kernels[:-1]]
        D = [np.asarray(dual.slope(np.diagonal(K))) for K in kernels[:-1]]

        def linear_part(q):
            K_R = kernels[0]
            for layer in range(1, depth + 1):
                deviation = D[layer - 1][:, None] * (K_R - kernels[layer - 1]) * D[layer - 1][None, :]
                K_R = (q[layer - 1] / precisions[layer]) * (images[layer - 1] + deviation)
                K_R = K_R + (b[layer] if layer < depth else 0.0)
            return K_R

        return linear_part
    raise ValueError(composition)


# ---------------------------------------------------------------------------------------------------------------------
# The effective action (sections 1 and 4) and its minimum
# ---------------------------------------------------------------------------------------------------------------------


def action_dense(q: ArrayLike, K_R: Array, y: Array, widths: Sequence[float], T: float) -> float:
    """S = sum_l (N_l/N_L)(q_l - log q_l) + (1/N_L)[logdet A + y^T A^{-1} y], A = T I + K_R (section 4)."""
    q, N = np.asarray(q, dtype=float), np.asarray(widths, dtype=float)
    A = T * np.eye(len(y)) + K_R
    sign, logdet = np.linalg.slogdet(A)
    if not sign > 0:
        return math.inf
    return float(np.sum(N / N[-1] * (q - np.log(q))) + (logdet + y @ np.linalg.solve(A, y)) / N[-1])


def action_spectrum(q: ArrayLike, k: Array, z: Array, widths: Sequence[float], T: float) -> float:
    """S of the outer composition (7) from the spectrum (section 1, spectral form), summed without rounding."""
    q = np.atleast_1d(np.asarray(q, dtype=float))
    N = np.atleast_1d(np.asarray(widths, dtype=float))
    a = T + float(np.prod(q)) * np.asarray(k, dtype=float)
    prior = list(N / N[-1] * q) + list(-N / N[-1] * np.log(q))
    return math.fsum(prior + list(np.log(a) / N[-1]) + list(np.asarray(z) ** 2 / a / N[-1]))


def action_scale(q: ArrayLike, k: Array, z: Array, widths: Sequence[float], T: float) -> float:
    """Sum of the absolute values of the terms of S: what rounding errors of S are measured against."""
    q = np.atleast_1d(np.asarray(q, dtype=float))
    N = np.atleast_1d(np.asarray(widths, dtype=float))
    a = T + float(np.prod(q)) * np.asarray(k, dtype=float)
    return float(np.sum(N / N[-1] * (q + abs(np.log(q)))) + np.sum(abs(np.log(a)) + np.asarray(z) ** 2 / a) / N[-1])


def stationary_path(t: ArrayLike, widths: Sequence[float]) -> Array:
    """q_l(t) = 1 + c/N_l with q_m = e^t in the narrowest layer: every stationary point of (7) has one common
    c = N_l (q_l - 1) (section 4). Written without cancellation. Shape (*t, L)."""
    N = np.asarray(widths, dtype=float)
    narrow = N.min()
    return (N - narrow) / N + (narrow / N) * np.exp(np.asarray(t, dtype=float))[..., None]


def inner_minimum(log_r: float, widths: Sequence[float]) -> Array:
    """argmin over q of sum_l N_l (q_l - log q_l) at fixed product r, by bisection along the path above."""
    low, high = -1.0, 1.0
    while np.sum(np.log(stationary_path(low, widths))) > log_r:
        low *= 2
    while np.sum(np.log(stationary_path(high, widths))) < log_r:
        high *= 2
    for _ in range(200):
        mid = (low + high) / 2
        if np.sum(np.log(stationary_path(mid, widths))) < log_r:
            low = mid
        else:
            high = mid
    return stationary_path((low + high) / 2, widths)


@dataclass
class Minimum:
    """Result of a search: the global minimum, and what else was found on the way."""

    order_parameter: Array
    action: float
    minima: list[tuple[Array, float]] = field(default_factory=list)
    stationary_products: Array = field(default_factory=lambda: np.empty(0))


def brute_force_minimum(k: ArrayLike, z: ArrayLike, widths: Sequence[float], T: float, points: int = 3000) -> Minimum:
    """Global minimum of S over q_1..q_L for the outer composition (7), any L, by scanning.

    The data term depends on r = prod q only. At fixed r the prior term has one minimum (convex in log q), which lies on
    `stationary_path`; so the scan runs over a dense log grid of the narrowest layer's q, i.e. over r with the inner
    problem solved. dS/dlog r = c + sum x/(1+x) - sum (z^2/T) x/(1+x)^2, x = r k/T, c = N_l (q_l - 1). Each sign change
    is polished by Brent's bracketing, each near-tangency of the slope is searched for a pair of roots between
    grid points. The grid spans the bracket 1/(1 + tr K/(N T)) <= q <= 1 + y^T y/(4 T N) of section 1.
    """
    k, z = np.asarray(k, dtype=float), np.asarray(z, dtype=float)
    N = np.atleast_1d(np.asarray(widths, dtype=float))
    narrow = N.min()
    kT, zT = k / T, z**2 / T

    def slope(t):
        t = np.asarray(t, dtype=float)
        r = np.prod(stationary_path(t, N), axis=-1)
        x = r[..., None] * kT
        return narrow * np.expm1(t) + np.sum(x / (1 + x) - zT * x / (1 + x) ** 2, axis=-1)

    low = -math.log1p(kT.sum() / narrow) - 0.5
    high = math.log1p(zT.sum() / (4 * narrow)) + 0.5
    grid = np.linspace(low, high, points)
    g = np.concatenate([slope(part) for part in np.array_split(grid, max(1, len(k) * points // 300_000))])
    brackets = [(grid[i], grid[i + 1]) for i in np.flatnonzero(np.sign(g[:-1]) * np.sign(g[1:]) < 0)]
    roots = [grid[i] for i in np.flatnonzero(g == 0)]
    mid, left, right = g[1:-1], g[:-2], g[2:]
    curved = np.abs(left + right - 2 * mid)
    tangent = (mid > 0) & (mid <= left) & (mid <= right) | (mid < 0) & (mid >= left) & (mid >= right)
    for i in np.flatnonzero(tangent & (np.abs(mid) < curved)) + 1:
        best = optimize.minimize_scalar(
            lambda t, sign: float(sign * slope(t)),
            args=(math.copysign(1.0, g[i]),),
            bounds=(grid[i - 1], grid[i + 1]),
            method="bounded",
            options={"xatol": 1e-12},
        )
        if best.fun < 0:
            brackets += [(grid[i - 1], best.x), (best.x, grid[i + 1])]
    for a, b in brackets:
        roots.append(optimize.brentq(lambda t: float(slope(t)), a, b, xtol=1e-15, rtol=1e-15, maxiter=500))
    roots = sorted(roots)
    candidates = [(q, action_spectrum(q, k, z, N, T)) for q in stationary_path(np.array(roots), N)]
    spacing = (high - low) / (points - 1)
    minima = []
    for t, (q, S) in zip(roots, candidates, strict=True):
        near = [u for u in roots if u != t]
        h = min([spacing / 100] + [abs(u - t) / 4 for u in near])
        if slope(t - h) < 0 < slope(t + h):
            minima.append((q, S))
    best_q, best_S = min(candidates, key=lambda pair: pair[1])
    return Minimum(best_q, best_S, minima, np.array([np.prod(q) for q, _ in candidates]))


def minimize_dense(
    kernel: Callable, y: Array, widths: Sequence[float], T: float, starts: Sequence[ArrayLike] | None = None
) -> Minimum:
    """Minimum of S over q with dense matrices from many starts (any composition; section 4).

    `kernel(q)` must accept complex q: dK_R/dq_l is taken by the complex step, so
    dS/dlog q_l = (N_l/N_L)(q_l - 1) + (q_l/N_L) tr[(A^{-1} - A^{-1} y y^T A^{-1}) dK_R/dq_l] is exact to rounding.
    L-BFGS from every start, then a root search on the gradient.
    """
    N = np.asarray(widths, dtype=float)
    depth, step = len(N), 1e-30

    def gradient(u):
        q = np.exp(u)
        A = T * np.eye(len(y)) + np.real(kernel(q))
        inverse = np.linalg.inv(A)
        v = inverse @ y
        out = np.empty(depth)
        for i in range(depth):
            shifted = q.astype(complex)
            shifted[i] += 1j * step
            dK = kernel(shifted).imag / step
            out[i] = N[i] / N[-1] * (q[i] - 1) + q[i] / N[-1] * (np.sum(inverse * dK) - v @ dK @ v)
        return out

    def value_and_gradient(u):
        S = action_dense(np.exp(u), np.real(kernel(np.exp(u))), y, N, T)
        return (S, gradient(u)) if math.isfinite(S) else (1e12, np.zeros(depth))

    if starts is None:
        starts = [np.full(depth, level) for level in (0.0, 1.5, 4.0, -1.0, -4.0)]
        starts += [2 * row - 0.5 for row in np.eye(depth)] if depth > 1 else []
    minima: list[tuple[Array, float]] = []
    for start in starts:
        found = optimize.minimize(
            value_and_gradient,
            np.asarray(start, dtype=float),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-12.0, 12.0)] * depth,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        u = found.x
        if found.fun >= 1e11:
            continue
        polished = optimize.root(gradient, u, tol=1e-14)
        if np.max(abs(polished.x - u)) < 1e-2:
            u = polished.x
        q = np.exp(u)
        if all(np.max(abs(np.log(q / other))) > 1e-6 for other, _ in minima):
            minima.append((q, action_dense(q, np.real(kernel(q)), y, N, T)))
    minima.sort(key=lambda pair: pair[1])
    return Minimum(minima[0][0], minima[0][1], minima)


def zero_temperature_order_parameter(K: Array, y: Array, width: float) -> float:
    """Equation (3), L = 1, K non-singular, T = 0."""
    alpha = len(y) / width
    return ((1 - alpha) + math.sqrt((1 - alpha) ** 2 + 4 * alpha * (y @ np.linalg.solve(K, y)) / len(y))) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Predictions (section 1, equation (4)) and evidence
# ---------------------------------------------------------------------------------------------------------------------


def predict(K_R: Array, y: Array, T: float) -> tuple[Array, Array]:
    """Equation (4): Gamma and sigma^2 at the rows after the first P = len(y) rows of the symmetric matrix K_R."""
    P = len(y)
    A = T * np.eye(P) + K_R[:P, :P]
    cross = K_R[:P, P:]
    mean = cross.T @ np.linalg.solve(A, y)
    variance = np.diagonal(K_R)[P:] - np.sum(cross * np.linalg.solve(A, cross), axis=0)
    return mean, variance


def training_error(K_R: Array, y: Array, T: float) -> float:
    """(1/P) <sum_mu (y_mu - f(x_mu))^2>: equation (4) at the training points themselves."""
    P = len(y)
    mean, variance = predict(np.block([[K_R, K_R], [K_R, K_R]]), y, T)
    return float(np.sum((y - mean) ** 2 + variance) / P)


def expected_accuracy(mean: Array, variance: Array, labels: Array) -> float:
    """Mean of Phi(y* Gamma / sigma) for labels +-1."""
    return float(np.mean(special.ndtr(labels * mean / np.sqrt(variance))))


def leave_one_out(K_R: Array, y: Array, T: float) -> tuple[Array, Array]:
    """mu_{-i} and latent sigma^2_{-i} by really leaving every row out, at fixed order parameters."""
    means, variances = np.empty(len(y)), np.empty(len(y))
    for i in range(len(y)):
        order = [j for j in range(len(y)) if j != i] + [i]
        mean, variance = predict(K_R[np.ix_(order, order)], y[order[:-1]], T)
        means[i], variances[i] = mean[0], variance[0]
    return means, variances


def laplace_log_evidence(k: Array, z: Array, width: float, T: float) -> float:
    """-(N/2)(S(q*) - 1) - (P/2) log 2 pi - (1/2) log S_uu(q*), u = log q (section 1, L = 1).

    S_uu at the stationary point by the sum 1 - (1/N) sum x^2/(1+x)^2 + (2/N) sum (z^2/T) x^2/(1+x)^3 of section 1.
    """
    best = brute_force_minimum(k, z, [width], T)
    x = best.order_parameter[0] * np.asarray(k) / T
    S_uu = 1 - np.sum((x / (1 + x)) ** 2) / width + 2 / width * np.sum(np.asarray(z) ** 2 / T * x**2 / (1 + x) ** 3)
    return -width / 2 * (best.action - 1) - len(x) / 2 * math.log(2 * math.pi) - math.log(S_uu) / 2


def exact_log_evidence(k: Array, z: Array, width: float, T: float) -> float:
    """Log of the integral of N(y; 0, T I + q K) over q ~ Gamma(N/2, rate N/2), equation (1): quadrature in log q."""
    half = width / 2
    constant = half * math.log(half) - special.gammaln(half) - len(k) / 2 * math.log(2 * math.pi)
    best = brute_force_minimum(k, z, [width], T)

    def log_integrand(u: float) -> float:
        return -half * action_spectrum([math.exp(u)], k, z, [width], T)

    peak = -half * best.action
    centers = [math.log(q[0]) for q, _ in best.minima]
    edges = sorted({c + d for c in centers for d in (-40, -10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 2, 4)})
    total = 0.0
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        total += integrate.quad(
            lambda u: math.exp(log_integrand(u) - peak), a, b, epsabs=1e-14, epsrel=1e-12, limit=400
        )[0]
    return constant + peak + math.log(total)


# ---------------------------------------------------------------------------------------------------------------------
# Activations with a mean (section 3) and gated layers (section 4, equation (8c))
# ---------------------------------------------------------------------------------------------------------------------


def two_parameter_action(q: float, s: float, D: Array, w: Array, y: Array, width: float, T: float) -> float:
    """Equation (5), D = K - M, M = w w^T, densely."""
    A = T * np.eye(len(y)) + q * D + np.outer(w, w) / (1 + s)
    return -q * s + math.log1p(s) + (np.linalg.slogdet(A)[1] + y @ np.linalg.solve(A, y)) / width


def two_parameter_saddle(D: Array, w: Array, y: Array, width: float, T: float) -> tuple[float, float, float]:
    """(q, s, S) of the minimum over q of the maximum over s: nested scalar searches, each from a grid."""

    def search(function: Callable, grid: Array) -> tuple[float, float]:
        values = np.array([function(u) for u in grid])
        best = int(values.argmin())
        ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        found = optimize.minimize_scalar(function, bounds=ends, method="bounded", options={"xatol": 1e-10})
        return float(found.x), float(found.fun)

    def over_s(u: float) -> tuple[float, float]:  # t = 1/(1 + s) in logarithm
        return search(
            lambda r: -two_parameter_action(math.exp(u), math.exp(-r) - 1, D, w, y, width, T), np.linspace(-12, 8, 41)
        )

    u, S = search(lambda u: -over_s(u)[1], np.linspace(-7, 5, 61))
    return math.exp(u), math.exp(-over_s(u)[0]) - 1, S


_GATE = 1 / math.sqrt(math.pi - 1)


def gate(g: float) -> tuple[float, float]:
    """(Phi^2, R) of a unit sigma(g a + z): slope and residual variance by brute quadrature over z (equation (8c))."""
    b = g * _GATE
    z, weight = _normal_panels(-b)
    unit = np.maximum(b + z, 0)
    mean, slope = weight @ unit, weight @ (unit * z)
    return slope**2, weight @ unit**2 - mean**2 - slope**2


def gate_nodes(points: int = 401, reach: float = 10.0) -> tuple[Array, Array, Array]:
    """Weights, Phi^2 and R at equally spaced g: averages over g ~ N(0, 1)."""
    g = np.linspace(-reach, reach, points)
    slopes, residuals = np.array([gate(value) for value in g]).T
    return np.exp(-(g**2) / 2) / math.sqrt(2 * math.pi) * (g[1] - g[0]), slopes, residuals


def gated_rate(A: float, B: float, precision: float, nodes: tuple[Array, Array, Array]) -> tuple[float, float, float]:
    """I(A, B) of equation (8c), and a', b', by the simplex method on the concave function."""
    weights, slopes, residuals = nodes

    def negative(fields: Array) -> float:
        bracket = 1 + (fields[0] * slopes + fields[1] * residuals) / precision
        if np.any(bracket <= 0):
            return math.inf
        return (fields[0] * A + fields[1] * B) / 2 + math.log(weights @ bracket**-0.5)

    options = {"xatol": 1e-11, "fatol": 1e-15, "maxiter": 4000, "maxfev": 8000}
    found = optimize.minimize(negative, np.zeros(2), method="Nelder-Mead", options=options)
    found = optimize.minimize(negative, found.x, method="Nelder-Mead", options=options)
    return -found.fun, found.x[0], found.x[1]


def gated_kernel(C: Array, precisions: Sequence[float], q_1: float, A: float, B: float) -> Array:
    """K_R of equation (8c); E[Phi^2] in closed form, E[R] by quadrature."""
    relu = DUALS["relu"]
    first, second = hidden_kernels(C, relu, precisions)[1:]
    m = relu.mean(np.diagonal(C))
    Kt = first - np.outer(m, m) / precisions[1]
    prior_slope = 0.25 + math.asin(1 / math.pi) / (2 * math.pi)
    weights, _, residuals = gate_nodes()
    B_0 = weights @ residuals / precisions[2]
    return q_1 * A * Kt + B / B_0 * (second - prior_slope / precisions[2] * Kt)


# ---------------------------------------------------------------------------------------------------------------------
# Problems on which solvers fail
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One problem of equation (7): spectrum k, projections z, widths N_1..N_L, temperature T."""

    k: Array
    z: Array
    widths: tuple[float, ...]
    temperature: float
    kind: str


FIRST_ORDER_TRANSITION = Problem(  # section 1: q = 0.0104, 0.487 (maximum), 72.0 (global)
    np.array([1e-4] + [1.0] * 100), np.array([math.sqrt(300 * 50 * 0.01)] + [0.0] * 100), (50,), 0.01, "transition"
)
TWO_LAYER_TRANSITION = Problem(  # section 1: q_1 = q_2 = 1.0357 (global), 38.56 (maximum), 80.54
    np.array([1e-4]), np.array([math.sqrt(2e4)]), (60, 60), 1.0, "deep transition"
)


def _log_uniform(rng: np.random.Generator, low: float, high: float, size=None):
    return np.exp(rng.uniform(math.log(low), math.log(high), size))


def hard_spectra(rng: np.random.Generator, n: int) -> Iterator[Problem]:
    """n random problems: log-uniform spectra, L = 1..5, unequal widths, P = 1, P >> N, N = 1, zero eigenvalues, y = 0,
    and first-order transitions made on purpose after the two examples of section 1."""
    yield FIRST_ORDER_TRANSITION
    yield TWO_LAYER_TRANSITION
    for index in range(n - 2):
        unit = _log_uniform(rng, 1e-3, 1e3)  # of K and T; leaves x = q k/T alone
        kind = ("random", "transition", "deep transition", "random", "edge")[index % 5]
        depth = int(rng.integers(1, 6))
        if kind == "transition":  # many silent modes pull q down to T N/(n - N), one loud weak mode pushes it up
            N = float(rng.integers(2, 120))
            silent = int(N * rng.uniform(1.3, 4)) + 1
            weak = _log_uniform(rng, 1e-6, 1e-3)
            T = _log_uniform(rng, 1e-3, 1e-1)
            k = np.concatenate([[weak], np.exp(rng.normal(0, rng.choice([0.0, 0.3, 1.0]), silent))])
            z = np.concatenate([[math.sqrt(_log_uniform(rng, 50, 5e3) * N * T)], rng.normal(size=silent)])
            z[1:] *= math.sqrt(T) * rng.choice([0.0, 0.1, 0.5])
            widths = (N,) + tuple(N * _log_uniform(rng, 1, 30) for _ in range(int(rng.choice([0, 0, 1, 2]))))
        elif kind == "deep transition":  # N (q - 1) = a N q^L x-small: two roots below a = (L-1)^(L-1)/L^L, one above
            depth = max(depth, 2)
            N = _log_uniform(rng, 2, 500)
            weak = _log_uniform(rng, 1e-8, 1e-3)
            a = rng.uniform(0.02, 0.9) if rng.random() < 0.7 else 1 - 10 ** rng.uniform(-4, -0.5)  # or near the fold
            a *= (depth - 1) ** (depth - 1) / depth**depth
            T = 1.0
            extra = int(rng.choice([0, 0, 5, 40]))
            k = np.concatenate([[weak], _log_uniform(rng, 1e-6, 1e-2, extra)])
            z = np.concatenate([[math.sqrt(a * N / weak)], rng.normal(size=extra)])
            spread = rng.choice([1.0, 1.0, 1.2, 3.0])
            widths = tuple(N * _log_uniform(rng, 1, spread) if spread > 1 else N for _ in range(depth))
        else:
            P = int(_log_uniform(rng, 1, 200.9))
            T = _log_uniform(rng, 1e-5, 1.0)
            k = _log_uniform(rng, 10 ** rng.uniform(-8, 0), 3.0, P)
            size = _log_uniform(rng, 1e-2, 1e2)
            z = rng.normal(size=P) * np.sqrt(size * (k if rng.random() < 0.5 else 1.0))
            widths = tuple(_log_uniform(rng, 1, 3000, depth))
            if rng.random() < 0.4:
                widths = (widths[0],) * depth
            if kind == "edge":
                which = int(rng.integers(5))
                if which == 0:
                    k[rng.random(P) < 0.5] = 0.0
                elif which == 1:
                    k, z = k[:1], z[:1]
                elif which == 2:
                    widths = (1.0,) * depth
                elif which == 3:
                    z = np.zeros_like(z)
                else:
                    k, z = np.repeat(k, 3), np.repeat(z, 3)
                    widths = tuple(_log_uniform(rng, 1, 10, depth))
        order = np.argsort(k, kind="stable")
        sizes = tuple(float(w) for w in widths)
        yield Problem(unit * k[order], math.sqrt(unit) * z[order], sizes, float(unit * T), kind)
