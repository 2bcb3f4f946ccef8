"""Any finite problem gives a finite, right answer or a clear refusal: widths 1 to 1e9, T from 1e-12 to 1e6, any scale.

The accuracy of the solver is judged in 50 digits by mpmath, and its minimum against a dense scan in extended precision;
that of evidences and predictions by quadrature with mpmath. Examples are the same in every run (derandomize).
"""

from __future__ import annotations

import math
from functools import partial

import gpytorch
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import double_precision
from torch_propkernel import (
    ConvergenceError,
    Erf,
    FiniteWidthProcess,
    NetworkGP,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    Spectrum,
    StudentTProcess,
    StudentTProcessLikelihood,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
    training_error,
)
from torch_propkernel.activations import GELU, Identity, LeakyReLU, Sign, Sin, Step
from torch_propkernel.mixing import ProductGammaMixing, posterior_of_scale
from torch_propkernel.theories import width_sweep

F = torch.float64
REFUSALS = (ConvergenceError, ValueError)  # NotPositiveDefiniteError is a ValueError
deterministic = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch_propkernel.exceptions.ReliabilityWarning", "ignore::torch_propkernel.exceptions.InputScaleWarning"
)


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda e: 10.0**e)


widths = st.lists(powers_of_ten(0, 9), min_size=1, max_size=3)
temperatures = powers_of_ten(-12, 6)
scales = powers_of_ten(-8, 8)
batches = st.sampled_from([(), (2,), (2, 1)])
dtypes = st.sampled_from([torch.float32, F])
biases = st.sampled_from([0.0, 0.3])
seeds = st.integers(0, 99)


@st.composite
def spectra(draw, max_size=7):
    """k >= 0 over twelve orders below a scale of 1e-8 to 1e8, and z over sixteen."""
    size = draw(st.integers(1, max_size))
    top = draw(scales)
    k = [top * v for v in draw(st.lists(powers_of_ten(-12, 0) | st.just(0.0), min_size=size, max_size=size))]
    unit = draw(scales)
    z = [unit * v for v in draw(st.lists(st.floats(-3, 3), min_size=size, max_size=size))]
    return np.sort(k), np.array(z)


# Scalar action in other arithmetic ------------------------------------------------------------------------------------


@mpmath.workdps(50)
def newton_step(q, k, z, layers, temperature):
    """Distance in log q of the narrowest layer to the root of the slope, in 50 digits, and the slope's curvature."""
    N, T = [mpmath.mpf(v) for v in layers], mpmath.mpf(temperature)
    narrow = min(range(len(N)), key=lambda i: N[i])
    c = N[narrow] * (mpmath.mpf(q[narrow]) - 1)
    path = [1 + c / n for n in N]
    r = mpmath.fprod(path)
    x = [r * mpmath.mpf(v) / T for v in k]
    label = [mpmath.mpf(v) ** 2 / T for v in z]
    slope = c + mpmath.fsum(v / (1 + v) - w * v / (1 + v) ** 2 for v, w in zip(x, label, strict=True))
    # per unit of log r; dlog q_narrow / dlog r = 1 / sum_l (q_narrow N_narrow) / (q_l N_l)
    bend = mpmath.fsum(v / (1 + v) ** 2 - w * v * (1 - v) / (1 + v) ** 3 for v, w in zip(x, label, strict=True))
    rate = mpmath.fsum(path[narrow] * N[narrow] / (p * n) for p, n in zip(path, N, strict=True))
    curvature = path[narrow] * N[narrow] + bend * rate
    size = abs(c) + mpmath.fsum(v / (1 + v) + w * v / (1 + v) ** 2 for v, w in zip(x, label, strict=True)) + N[narrow]
    return float(slope / curvature), float(curvature / size), np.array([float(p) for p in path])


def scanned_action(k, z, layers, temperature, points=3000):
    """Lowest N_L S on a dense grid along the path of stationary q, and a function for it, in extended precision."""
    wide = np.longdouble
    k, z2, N, T = wide(1) * k, (wide(1) * z) ** 2, wide(1) * np.array(layers), wide(temperature)
    narrow = N.min()

    def action(q):
        a = T + np.prod(q, axis=-1)[..., None] * k
        return np.sum(N * (q - np.log(q)), -1) + np.sum(np.log(a) + z2 / a, -1)

    low = -np.log1p(k.sum() / T / narrow) - wide(0.5)
    high = np.log1p(z2.sum() / T / (4 * narrow)) + wide(0.5)
    t = np.linspace(low, high, points)[:, None]
    path = 1 + narrow * np.expm1(t) / N
    return action(path).min(), action


@given(spectra(), widths, temperatures)
@settings(deterministic, max_examples=120)
def test_solver_finds_the_global_minimum_of_any_spectrum(spectrum, layers, temperature):
    k, z = spectrum
    solution = solve_order_parameters(
        Spectrum.from_eigenvalues(torch.tensor(k), torch.tensor(z)), width=layers, temperature=temperature
    )
    q = solution.order_parameter.numpy()
    assert np.isfinite(q).all() and (q > 0).all()
    step, curvature, path = newton_step(q, k, z, layers, temperature)
    np.testing.assert_allclose(q, path, rtol=1e-12)  # one common N_l (q_l - 1)
    assert curvature > -1e-12  # a minimum
    if solution.result.name == "global_minimum":
        # 1e-10, and what rounding of the slope's terms leaves where the minimum is flat
        assert abs(step) < 1e-10 + 1e-15 / curvature
    lowest, action = scanned_action(k, z, layers, temperature)
    value = action(np.longdouble(1) * q)
    # An error of 1e-10 in q changes S by 1e-20 of its terms; what is left is rounding of the terms in the scan.
    terms = np.sum(layers * (q + abs(np.log(q)))) + np.sum(abs(np.log(temperature + q.prod() * k)))
    terms += np.sum(z**2 / (temperature + q.prod() * k))
    assert value <= lowest + 1e-15 * terms


@given(st.integers(1, 5), batches, dtypes, scales, scales, widths, temperatures, seeds)
@settings(deterministic, max_examples=60)
def test_solver_on_matrices_of_any_shape(size, batch, dtype, unit, target, layers, temperature, seed):
    """Shapes, dtypes and batches; each problem of a batch has the solution that it has alone."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*batch, size, size + 1, generator=generator, dtype=F) * unit**0.5
    matrix = (root @ root.transpose(-1, -2)).to(dtype)
    y = (target * torch.randn(*batch, size, generator=generator, dtype=F)).to(dtype)
    solution = solve_order_parameters(matrix, y, width=layers, temperature=temperature)
    q = solution.order_parameter
    assert q.shape == (*batch, len(layers)) and q.dtype == F
    assert bool((torch.isfinite(q) & (q > 0)).all()) and bool(torch.isfinite(solution.action).all())
    if batch:
        last = (-1,) * len(batch)
        alone = solve_order_parameters(matrix[last], y[last], width=layers, temperature=temperature).order_parameter
        torch.testing.assert_close(q[last], alone, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("temperature", [1e-12, 1e-3, 1e6])
@pytest.mark.parametrize("width", [1.0, 30.0, 1e9])
@pytest.mark.parametrize("target", [1e-8, 1.0, 1e8])
@mpmath.workdps(30)
def test_evidence_against_quadrature(width, temperature, target):
    """log p(y) and E[r | y] by mpmath's quadrature over u = log r, on the range that holds all but e^-60."""
    k, z = np.array([1e-3, 0.2, 4.0]), target * np.array([0.3, -1.0, 0.5])
    spectrum = Spectrum.from_eigenvalues(torch.tensor(k), torch.tensor(z))
    found = posterior_of_scale(spectrum, ProductGammaMixing(width), torch.tensor(temperature, dtype=F))

    def log_integrand(u, exp, log, loggamma):
        data = sum(log(2 * math.pi * (temperature + exp(u) * v)) + w**2 / (temperature + exp(u) * v)
                   for v, w in zip(k, z, strict=True))  # fmt: skip
        return width / 2 * (log(width / 2) + u - exp(u)) - loggamma(width / 2) - data / 2

    low, high, before = -140.0, 45.0, math.inf
    while high - low < 0.7 * before:
        before, grid = high - low, np.linspace(low, high, 20001)
        values = log_integrand(grid, np.exp, np.log, math.lgamma)
        inside = np.flatnonzero(values > values.max() - 60)
        low, high = grid[max(inside[0] - 1, 0)], grid[min(inside[-1] + 1, 20000)]
    knots = [mpmath.mpf(v) for v in np.linspace(low, high, 13)]
    top = mpmath.mpf(values.max())

    def density(u):
        return mpmath.exp(log_integrand(u, mpmath.exp, mpmath.log, mpmath.loggamma) - top)

    mass = mpmath.quad(density, knots)
    exact = float(top + mpmath.log(mass))
    # The terms of log p(y) round: N/2 log N is 1e10 for the widest, the label term 1e9 for the largest targets.
    rounding = 1e-15 * (width * (1 + math.log(width)) + abs(exact))
    assert float(found.log_evidence) == pytest.approx(exact, rel=1e-12, abs=10 * rounding + 1e-10)
    mean = mpmath.quad(lambda u: density(u) * mpmath.exp(u), knots) / mass
    assert bool(torch.isfinite(found.mean)) and bool(torch.isfinite(found.variance))
    if abs(exact) < 1e10:  # beyond, not even the place of the maximum survives the rounding of its value
        assert found.mean.item() == pytest.approx(float(mean), rel=1e-9 + rounding)


def test_evidence_of_width_one_needs_no_long_range():
    """A cliff of the prior beside its maximum made the range of log r grow to thousands, its variance to NaN."""
    generator = torch.Generator().manual_seed(0)
    k = torch.cat([torch.full((10,), 1e-6, dtype=F), torch.tensor([5.5], dtype=F)])
    z = 1e-3 * torch.randn(11, generator=generator, dtype=F)
    found = posterior_of_scale(Spectrum.from_eigenvalues(k, z), ProductGammaMixing(1.0), 3e-4)
    assert bool(torch.isfinite(found.variance))
    assert -300 < float(found.log_scale.min()) and float(found.log_scale.max()) < 30
    assert found.log_scale.shape[-1] < 2000


# Kernels --------------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5), st.integers(1, 4), batches, dtypes, scales, st.integers(1, 3), biases,
    st.sampled_from([ReLU(), Erf(), GELU(), Identity(), LeakyReLU(0.2), Sin(), Step(), Sign()]), seeds,
)  # fmt: skip
@settings(deterministic, max_examples=150)
def test_kernels_at_any_scale(size, columns, batch, dtype, scale, depth, bias, activation, seed):
    """Finite, symmetric, positive semi-definite to rounding, and equal to their own diagonal; zero and equal rows."""
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(*batch, size, columns, generator=generator, dtype=F)
    x = torch.cat([x, x[..., :1, :], torch.zeros_like(x[..., :1, :])], dim=-2).to(dtype)
    kernel = NNGPKernel(activation, depth, bias_variance=bias).to(dtype)
    with torch.no_grad():
        matrix, diagonal = kernel(x).to_dense(), kernel(x, diag=True)
    assert matrix.dtype == dtype and matrix.shape == (*batch, size + 2, size + 2)
    assert bool(torch.isfinite(matrix).all())
    eps = torch.finfo(dtype).eps
    own = matrix.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(own, diagonal, rtol=100 * eps, atol=0.0)
    norm = (own.unsqueeze(-1) * own.unsqueeze(-2)).sqrt()
    # Entries round by eps; the angle of nearly parallel rows by the root of it, where a dual has a kink in it. That of
    # two rows need not round alike in both orders: a matrix product is symmetric to rounding only.
    kink = 1.0 if isinstance(activation, Step | Sign) else 0.0
    rounding = 100 * eps + 4 * kink * eps**0.5
    assert bool(((matrix - matrix.mT).abs() <= rounding * norm).all())
    assert bool((matrix.abs() <= norm * (1 + 100 * eps)).all())
    lowest = torch.linalg.eigvalsh(matrix.double())[..., 0]
    assert bool((lowest >= -(size + 2) * rounding * own.double().amax(-1)).all())


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("name", ["relu", "erf"])
@mpmath.workdps(50)
def test_kernels_against_fifty_digits(scale, name):
    """Two rows at angles from 1e-7 to pi, closed forms of THEORY.md, section 0, in 50 digits."""
    angles = [1e-7, 1e-3, 0.3, 1.5, 3.0, math.pi - 1e-7]
    x = scale * torch.tensor([[1.0, 0.0], *([math.cos(a), math.sin(a)] for a in angles)], dtype=F)
    with torch.no_grad():
        found = NNGPKernel(ReLU() if name == "relu" else Erf()).double()(x).to_dense()[0, 1:]
    for angle, row, value in zip(angles, x[1:].tolist(), found.tolist(), strict=True):
        u, w = [mpmath.mpf(v) for v in x[0].tolist()], [mpmath.mpf(v) for v in row]
        xx, yy, xy = ((a[0] * b[0] + a[1] * b[1]) / 2 for a, b in ((u, u), (w, w), (u, w)))
        if name == "relu":
            t = mpmath.acos(xy / mpmath.sqrt(xx * yy))
            exact = mpmath.sqrt(xx * yy) / (2 * mpmath.pi) * (mpmath.sin(t) + (mpmath.pi - t) * mpmath.cos(t))
            error = 1e-12 * mpmath.sqrt(xx * yy)
        else:
            exact = 2 / mpmath.pi * mpmath.asin(2 * xy / mpmath.sqrt((1 + 2 * xx) * (1 + 2 * yy)))
            # asin near one turns a relative rounding error of its argument into that over the distance's root
            gap = min(math.sin(angle), 1.0) + 1 / (1 + scale)
            error = 1e-12 * min(xx, 1) + 1e-15 / gap
        assert abs(value - exact) < error


# Models ---------------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Inputs with equal and zero rows, targets, a network, at any scale."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(seeds))
    x = torch.randn(rows, columns, generator=generator, dtype=F)
    extra = draw(st.sampled_from([[], [x[:1]], [torch.zeros_like(x[:1])], [x[:1], torch.zeros_like(x[:1])]]))
    x = draw(scales) * torch.cat([x, *extra])
    y = draw(scales) * torch.randn(len(x), generator=generator, dtype=F)
    activation = draw(st.sampled_from([ReLU(), Erf(), GELU(), Identity()]))
    layers = draw(st.lists(powers_of_ten(0, 9), min_size=1, max_size=2))
    return x, y, activation, layers, draw(temperatures), draw(biases), 1.5 * x[:2]


def positive():
    return gpytorch.constraints.Positive(transform=torch.exp, inv_transform=torch.log)


def network_of(problem, process=NetworkGP):
    x, y, activation, layers, temperature, bias, _ = problem
    with double_precision():
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=positive())
        likelihood.noise = torch.tensor(temperature)
        kernel = RenormalizedNNGPKernel(activation, layers, bias_variance=bias)
        return process(x, y, likelihood, kernel)


class NetworkProcess(NetworkGP, FiniteWidthProcess):
    pass


class NetworkT(NetworkGP, StudentTProcess):
    pass


def finite_or_refused(function):
    """Return what a function gives if all is finite; None if it is refused in the words of this package."""
    try:
        found = function()
    except REFUSALS as error:
        assert "expected" in str(error), f"not a message of this package: {error!r}"
        return None
    assert all(bool(torch.isfinite(value).all()) for value in found), found
    return found


@given(problems())
@settings(deterministic, max_examples=60)
def test_errors_of_models_at_any_scale(problem):
    model, x_test = network_of(problem), problem[-1]
    if finite_or_refused(lambda: [fit_order_parameters(model).order_parameter]) is None:
        return
    y_test, parts = torch.ones(len(x_test), dtype=F), ("bias", "variance")
    error = finite_or_refused(lambda: [getattr(generalization_error(model, x_test, y_test), p) for p in parts])
    assert error is None or all(bool((part >= 0).all()) for part in error)
    finite_or_refused(lambda: [leave_one_out_error(model).total])
    finite_or_refused(lambda: [training_error(model)])


@given(problems())
@settings(deterministic, max_examples=15)
def test_processes_at_any_scale(problem):
    x, y, activation, layers, temperature, bias, x_test = problem
    process = network_of(problem, NetworkProcess).eval()
    for form in (process.predict, partial(process.predict, theory="saddle"), process.student_t):
        moments = finite_or_refused(lambda form=form: [(f := form(x_test)).mean, f.variance])
        assert moments is None or bool((moments[1] >= -1e-9 * moments[1].abs().max()).all())
    model = network_of(problem)

    def of_mixtures():
        sweep = width_sweep(model, [1.0, layers[0], math.inf], theory="mixture")
        left_out = sweep.leave_one_out
        return [sweep.log_evidence, left_out.log_density, left_out.total, sweep.scale, sweep.scale_deviation]

    finite_or_refused(of_mixtures)
    with double_precision():
        likelihood = StudentTProcessLikelihood(noise_constraint=positive())
        likelihood.noise = torch.tensor(temperature)
        student = NetworkT(x, y, likelihood, NNGPKernel(activation, len(layers), bias_variance=bias)).eval()
    finite_or_refused(lambda: [(f := student(x_test)).mean, f.variance])
