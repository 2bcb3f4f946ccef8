"""Evidence and predictive densities of finite-width processes against brute-force integration over the scale.

    python examples/benchmarks/evidence_vs_brute_force.py                  # both tables, one thread, float64
    python examples/benchmarks/evidence_vs_brute_force.py --only accuracy --problems 50

1. Random problems: P from 1 to 200 points, widths from 1 to 10^4 and temperatures from 1e-6 to 10 (log-uniform), one to
   three layers, eigenvalues of the kernel from 1e-4 to 100, targets whose scale is off by up to a factor of ten. The
   inputs of a linear network are chosen such that its kernel matrix is diagonal: the reference then needs no linear
   algebra and shares no code with the package. It integrates over u = log r with the density of r as it is defined: the
   Gamma density and adaptive quadrature for one layer, the Bessel-K density of a product of two Gamma variables (or
   the convolution, where scipy's Bessel function overflows) for two, one more convolution for three. Three values of a
   test target are compared, within four standard deviations.
2. Time of a mixture predictive of P = 2000 points at 200 test points (marginals) over the saddle's, both from the
   inputs on: kernel, reduction, prediction. Smallest of ``--rounds`` interleaved rounds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load

import gpytorch  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy import integrate, interpolate, special  # noqa: E402
from tqdm import tqdm  # noqa: E402

from torch_propkernel import (  # noqa: E402
    Erf,
    FiniteWidthLikelihood,
    FiniteWidthProcess,
    RenormalizedNNGPKernel,
    Spectrum,
)
from torch_propkernel.activations import Identity  # noqa: E402
from torch_propkernel.mixing import GammaMixing, ProductGammaMixing, posterior_of_scale  # noqa: E402

Array = NDArray[np.float64]
Density = Callable[[Array], Array]
DEPTH_OF_INTEGRALS = 50.0  # nats below the maximum


class Process(FiniteWidthProcess):
    def __init__(self, x, y, kernel, noise):
        super().__init__(x, y, FiniteWidthLikelihood())
        self.covar_module = kernel
        self.likelihood.noise = noise

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))


def log_gamma_density(u: Array, width: float) -> Array:
    """Log density of u = log q, q ~ Gamma(N/2, rate N/2)."""
    half = 0.5 * width
    with np.errstate(over="ignore"):
        return half * np.log(half) - special.gammaln(half) + half * (u - np.exp(u))


def support(function: Density, low: float, high: float) -> tuple[float, float]:
    """Ends of where ``function`` is less than 50 nats below its maximum, by zooming in from [low, high]."""
    for _ in range(60):
        grid = np.linspace(low, high, 401)
        value = function(grid)
        inside = np.flatnonzero(value > value.max() - DEPTH_OF_INTEGRALS)
        new_low, new_high = grid[max(inside[0] - 1, 0)], grid[min(inside[-1] + 1, 400)]
        if new_high - new_low > 0.9 * (high - low):
            return new_low, new_high
        low, high = new_low, new_high
    return low, high


def product_of_two(first: float, second: float) -> Density:
    """Log density of u = log(q_1 q_2), from the Bessel function or from the convolution where that overflows."""
    a, b = 0.5 * first, 0.5 * second

    def density(u: Array) -> Array:
        log_z = math.log(2.0) + 0.5 * (math.log(a) + math.log(b) + u)
        with np.errstate(all="ignore"):
            z = np.exp(log_z)
            bessel = np.log(special.kve(a - b, z)) - z
        value = math.log(2) + (a + b) * (log_z - math.log(2)) + bessel - special.gammaln(a) - special.gammaln(b)
        bad = ~np.isfinite(value)
        if bad.any():
            value[bad] = convolution(u[bad], first, second)
        return value

    return density


def convolution(u: Array, first: float, second: float, size: int = 400) -> Array:
    """Log of the integral of p_1(t) p_2(u - t) over t: concave in t, its mode and ends are found by bisection."""
    a, b = 0.5 * first, 0.5 * second

    def bisect(decreasing: Callable[[Array], Array], low: Array, high: Array) -> Array:
        for _ in range(100):
            middle = 0.5 * (low + high)
            above = decreasing(middle) > 0
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return 0.5 * (low + high)

    def value(t: Array, u: Array) -> Array:
        return log_gamma_density(t, first) + log_gamma_density(u - t, second)

    with np.errstate(over="ignore", invalid="ignore"):
        far = 400.0 + np.abs(u)
        mode = bisect(lambda t: a * -np.expm1(t) - b * -np.expm1(u - t), -far, far)
        floor = value(mode, u) - DEPTH_OF_INTEGRALS
        left = bisect(lambda t: floor - value(t, u), mode - 10 * far, mode)
        right = bisect(lambda t: value(t, u) - floor, mode, mode + 10 * far)
    t = left + (right - left) * np.linspace(0.0, 1.0, size)[:, None]
    with np.errstate(divide="ignore"):
        return special.logsumexp(value(t, u), axis=0) + np.log((right - left) / (size - 1))


def product_of_three(widths: tuple[float, ...], low: float, high: float, size: int = 2000) -> Density:
    """Log density of u = log(q_1 q_2 q_3): convolution of p_1 with a fine spline of the density of the other two."""
    first, *others = widths
    pair = product_of_two(*others)

    u = np.linspace(low, high, 1601)
    some = u[::50]
    ends = np.array([support(lambda t, v=v: log_gamma_density(t, first) + pair(v - t), *reach(widths)) for v in some])
    margin = 0.1 * (ends[:, 1] - ends[:, 0]) + np.abs(np.diff(ends, axis=0)).max()
    left, right = np.interp(u, some, ends[:, 0] - margin), np.interp(u, some, ends[:, 1] + margin)
    rest = np.linspace((u - right).min() - 1e-3, (u - left).max() + 1e-3, 12000)
    spline = interpolate.make_interp_spline(rest, pair(rest), k=5)
    t = left + (right - left) * np.linspace(0.0, 1.0, size)[:, None]
    value = special.logsumexp(log_gamma_density(t, first) + spline(u - t), axis=0)
    return interpolate.make_interp_spline(u, value + np.log((right - left) / (size - 1)), k=5)


def reach(widths: tuple[float, ...]) -> tuple[float, float]:
    """An interval of u beyond which no integrand matters."""
    return -150.0 / min(*widths, 2.0) - 30.0, 30.0


def integrals(prior: Density, factors: list[Density], low: float, high: float, adaptive: bool) -> list[float]:
    """Logs of the integrals of exp(prior + factor) over [low, high]."""
    out = []
    for factor in factors:
        grid = np.linspace(low, high, 4001)
        value = prior(grid) + factor(grid)
        top = value.max()
        if not adaptive:  # the trapezoidal rule converges exponentially for analytic integrands that vanish at the ends
            out.append(float(special.logsumexp(value) + math.log(grid[1] - grid[0])))
            continue
        weights = np.exp(value - top)
        mode = grid[value.argmax()]
        spread = math.sqrt(float((weights * (grid - mode) ** 2).sum() / weights.sum()))
        points = [low, *(p for c in (-8, -3, -1, 0, 1, 3, 8) if low < (p := mode + c * spread) < high), high]
        total = sum(
            integrate.quad(
                lambda u: math.exp(float((prior(np.array([u])) + factor(np.array([u])))[0]) - top),  # noqa: B023
                *ends,
                epsabs=0,
                epsrel=1e-11,
                limit=200,
            )[0]
            for ends in zip(points, points[1:], strict=False)
        )
        out.append(float(top) + math.log(total))
    return out


@torch.no_grad()
def compare(rng: np.random.Generator, layers: int) -> tuple[float, float]:
    """Differences of log evidence and (the largest of three) of log predictive density of one random problem."""
    size = int(round(math.exp(rng.uniform(0.0, math.log(200.0)))))
    widths = tuple(10.0 ** rng.uniform(0.0, 4.0, layers))
    k = 10.0 ** rng.uniform(-4.0, 2.0, size)
    z = rng.normal(size=size)
    # K = diag(k): a linear network and inputs along the axes; b are the coordinates of the test input
    b = rng.normal(size=size + 1)
    x = torch.zeros(size, size + 1, dtype=torch.float64)
    x[:, :size] = torch.diag(torch.from_numpy(np.sqrt(k * (size + 1))))
    kernel = RenormalizedNNGPKernel(Identity(), widths).double()
    process = Process(x, torch.zeros(size, dtype=torch.float64), kernel, 10.0 ** rng.uniform(-6.0, 1.0)).double()
    temperature = float(process.likelihood.noise.detach())
    z = z * np.sqrt(temperature + k * 10.0 ** rng.uniform(-1.0, 1.0))
    process.set_train_data(targets=torch.from_numpy(z), strict=False)
    process.eval()
    test = torch.from_numpy(b * math.sqrt(size + 1.0)).unsqueeze(0)
    predictive = process.likelihood(process.predict(test, "mixture", joint=False))
    center, deviation = float(predictive.mean), float(predictive.variance.sqrt())
    values = center + deviation * np.array([rng.normal(), rng.normal(), rng.choice([-4.0, 4.0])])
    found = [float(predictive.marginal_log_prob(torch.tensor([v]))) for v in values]
    law = GammaMixing(torch.tensor(widths[0])) if layers == 1 else ProductGammaMixing(torch.tensor(widths))
    evidence = posterior_of_scale(
        Spectrum.from_eigenvalues(torch.from_numpy(k), torch.from_numpy(z)), law, temperature
    ).log_evidence

    def likelihood(u: Array) -> Array:
        spread = temperature + np.exp(u)[:, None] * k
        return -0.5 * (np.log(2 * np.pi * spread) + z**2 / spread).sum(-1)

    def predictive_density(value: float) -> Density:
        def density(u: Array) -> Array:
            r = np.exp(u)[:, None]
            mean = (r * np.sqrt(k) * b[:-1] * z / (temperature + r * k)).sum(-1)
            variance = r[:, 0] * b[-1] ** 2 + (r * b[:-1] ** 2 * temperature / (temperature + r * k)).sum(-1)
            variance = variance + temperature
            return -0.5 * (np.log(2 * np.pi * variance) + (value - mean) ** 2 / variance)

        return lambda u: likelihood(u) + density(u)

    whole = reach(widths)
    if layers == 1:
        prior = lambda u: log_gamma_density(u, widths[0])  # noqa: E731
    elif layers == 2:
        prior = product_of_two(*widths)
    else:
        # any density of about the right tails finds the interval; a margin is added
        pair = product_of_two(*sorted(widths)[:2])
        low, high = support(lambda u: pair(u) + likelihood(u), *whole)
        margin = 0.2 * (high - low) + 12.0 / math.sqrt(max(widths))
        prior = product_of_three(widths, low - margin, high + margin)
        whole = low - margin, high + margin
    ends = support(lambda u: prior(u) + likelihood(u), *whole)
    factors = [likelihood, *(predictive_density(v) for v in values)]
    total, *others = integrals(prior, factors, *ends, adaptive=layers == 1)
    worst = max(abs(f - (other - total)) for f, other in zip(found, others, strict=True))
    return abs(float(evidence) - total), worst


def accuracy(problems: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences: dict[int, list[tuple[float, float]]] = {1: [], 2: [], 3: []}
    for index in tqdm(range(problems), desc="problems", disable=None, file=sys.stderr):
        differences[1 + index % 3].append(compare(rng, 1 + index % 3))
    print(
        "| layers | problems | worst difference of log p(y) | of log p(y*given y) | both below 1e-8 |".replace(
            "*g", "* g"
        )
    )
    print("|---|---|---|---|---|")
    for layers, rows in differences.items():
        if rows:
            table = np.array(rows)
            share = (table < 1e-8).all(-1).mean()
            print(
                f"| {layers} | {len(rows)} | {table[:, 0].max():.1e} | {table[:, 1].max():.1e} | {100 * share:.1f} % |"
            )


def times(size: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 20, generator=generator, dtype=torch.float64)
    y = x[:, 0].sin() + 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)
    test = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    process = Process(x, y, RenormalizedNNGPKernel(Erf(), 100).double(), 0.1).double()
    best = {"saddle": math.inf, "mixture": math.inf}
    after = dict(best)
    for _ in range(rounds):
        for form in best:
            process.train().eval()  # forgets the reduction
            start = time.perf_counter()
            process.predict(test, form, joint=False)
            middle = time.perf_counter()
            process.predict(test, form, joint=False)
            best[form] = min(best[form], middle - start)
            after[form] = min(after[form], time.perf_counter() - middle)
    print("| P | test points | nodes | saddle, s | mixture, s | ratio | after the reduction: saddle, s | mixture, s |")
    print("|---|---|---|---|---|---|---|---|")
    nodes = process.predict(test, "mixture", joint=False).num_nodes
    print(
        f"| {size} | 200 | {nodes} | {best['saddle']:.2f} | {best['mixture']:.2f} | "
        f"{best['mixture'] / best['saddle']:.2f} | {after['saddle']:.3f} | {after['mixture']:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["accuracy", "time"])
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print("# Evidence and predictive densities against brute force\n")
    if options.only != "time":
        accuracy(options.problems, options.seed)
    if options.only != "accuracy":
        print()
        times(options.size, options.rounds)


if __name__ == "__main__":
    main()
