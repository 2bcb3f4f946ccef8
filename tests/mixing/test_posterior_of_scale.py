"""Integrals over the scale against brute force, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from torch_propkernel import ConvergenceError, Spectrum
from torch_propkernel.mixing import (
    GammaMixing,
    GeneralizedInverseGaussianMixing,
    InverseGammaMixing,
    LogNormalMixing,
    PointMass,
    ProductGammaMixing,
    posterior_of_scale,
)
from torch_propkernel.mixing.scale_integral import integrate_scale, scale_evidence
from torch_propkernel.numerics.bessel import log_bessel_k

F = torch.float64


def likelihood(u, k, z, temperature):
    """log N(y; 0, T + e^u K) for arrays of u, in numpy."""
    spread = temperature + np.exp(np.asarray(u))[..., None] * k
    return -0.5 * (np.log(2 * np.pi * spread) + z**2 / spread).sum(-1)


def log_gamma_density(u, width):
    half = 0.5 * width
    return half * np.log(half) - special.gammaln(half) + half * (u - np.exp(u))


def trapezoid(function, low, high, size):
    """Dense trapezoidal rule of exp(function) in logs."""
    u = np.linspace(low, high, size)
    return special.logsumexp(function(u)) + math.log(u[1] - u[0])


def product_evidence(k, z, temperature, widths, size):
    """Evidence over q_1, ..., q_L on a dense grid in their logs, without ever forming the law of the product."""
    # down to where (N/2) u is 60 nats, up to ten deviations
    axes = [np.linspace(-120.0 / n - 1.0, 14.0 / math.sqrt(n), size) for n in widths]
    grids = np.meshgrid(*axes, indexing="ij")
    value = sum(log_gamma_density(u, n) for u, n in zip(grids, widths, strict=True))
    total = sum(grids)
    levels = np.linspace(total.min(), total.max(), 20001)
    # the likelihood is a smooth function of the sum alone: a cubic spline of 20,000 points is exact to 1e-12
    from scipy.interpolate import CubicSpline

    value = value + CubicSpline(levels, likelihood(levels, k, z, temperature))(total)
    return special.logsumexp(value) + sum(math.log(a[1] - a[0]) for a in axes)


def random_problem(rng, size):
    k = 10.0 ** rng.uniform(-4, 2, size)
    temperature = 10.0 ** rng.uniform(-6, 1)
    z = rng.normal(size=size) * np.sqrt(temperature + k * 10.0 ** rng.uniform(-1, 1))
    return k, z, temperature


def spectrum(k, z):
    return Spectrum.from_eigenvalues(torch.as_tensor(k), torch.as_tensor(z))


def test_one_layer_evidence_against_adaptive_quadrature():
    rng = np.random.default_rng(0)
    for index in range(60):
        k, z, temperature = random_problem(rng, int(rng.integers(1, 200)))
        width = 10.0 ** rng.uniform(0, 4)
        found = posterior_of_scale(spectrum(k, z), GammaMixing(torch.tensor(width, dtype=F)), temperature)
        function = lambda u: log_gamma_density(u, width) + likelihood(u, k, z, temperature)  # noqa: B023, E731
        mode = float(found.log_scale[found.log_weights.argmax()])
        spread = float((found.weights * (found.log_scale - mode) ** 2).sum().sqrt())
        ends = [float(f(found.log_scale[found.log_weights > -45])) for f in (torch.min, torch.max)]
        inner = [p for c in (-8, -3, -1, 0, 1, 3, 8) if ends[0] < (p := mode + c * spread) < ends[1]]
        points, top = [ends[0], *inner, ends[1]], float(function(mode))
        total = sum(
            integrate.quad(lambda u: math.exp(function(u) - top), a, b, epsabs=0, epsrel=1e-11, limit=200)[0]  # noqa: B023
            for a, b in zip(points, points[1:], strict=False)
        )
        assert abs(float(found.log_evidence) - top - math.log(total)) < 1e-8, index


@pytest.mark.parametrize(("widths", "size"), [((30.0, 80.0), 1201), ((20.0, 20.0), 1201), ((40.0, 60.0, 90.0), 201)])
def test_deep_evidence_against_a_grid_over_all_order_parameters(widths, size):
    rng = np.random.default_rng(1)
    for _ in range(3):
        k, z, temperature = random_problem(rng, 25)
        found = posterior_of_scale(spectrum(k, z), ProductGammaMixing(torch.tensor(widths, dtype=F)), temperature)
        expected = product_evidence(k, z, temperature, widths, size)
        assert abs(float(found.log_evidence) - expected) < 1e-8


def test_other_laws():
    rng = np.random.default_rng(2)
    k, z, temperature = random_problem(rng, 20)
    found = posterior_of_scale(spectrum(k, z), LogNormalMixing(torch.tensor(0.3, dtype=F)), temperature)
    log_normal = lambda u: -0.5 * (u + 0.3) ** 2 / 0.6 - 0.5 * math.log(2 * math.pi * 0.6)  # noqa: E731
    expected = trapezoid(lambda u: log_normal(u) + likelihood(u, k, z, temperature), -12.0, 12.0, 100001)
    assert abs(float(found.log_evidence) - expected) < 1e-10
    found = posterior_of_scale(spectrum(k, z), PointMass(2.0), temperature)
    assert abs(float(found.log_evidence) - float(likelihood(math.log(2.0), k, z, temperature))) < 1e-10
    assert found.mean.item() == pytest.approx(2.0) and found.variance.item() == pytest.approx(0.0, abs=1e-15)
    # the Student's t process of section 2 at T = 0: closed form
    found = posterior_of_scale(spectrum(k, z), InverseGammaMixing(5.0), 0.0)
    b, size, nu = float((z**2 / k).sum()), len(k), 5.0
    expected = (
        special.gammaln((nu + size) / 2) - special.gammaln(nu / 2) - 0.5 * size * math.log((nu - 2) * math.pi)
        - 0.5 * np.log(k).sum() - 0.5 * (nu + size) * math.log1p(b / (nu - 2))
    )  # fmt: skip
    assert abs(float(found.log_evidence) - expected) < 1e-10


def test_moments_of_the_posterior():
    rng = np.random.default_rng(3)
    k, z, temperature = random_problem(rng, 30)
    found = posterior_of_scale(spectrum(k, z), GammaMixing(15.0), temperature).without_empty_nodes()
    u = np.linspace(-6, 3, 200001)
    value = log_gamma_density(u, 15.0) + likelihood(u, k, z, temperature)
    weights = np.exp(value - special.logsumexp(value))
    mean = (weights * np.exp(u)).sum()
    assert found.mean.item() == pytest.approx(mean, rel=1e-10)
    assert found.variance.item() == pytest.approx((weights * (np.exp(u) - mean) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("size", [3, 60, 3000])
@pytest.mark.parametrize("width", [1.0, 40.0, 5000.0])
def test_zero_temperature_closed_form(size, width):
    rng = np.random.default_rng(4)
    k, z = 10.0 ** rng.uniform(-2, 2, size), rng.normal(size=size)
    z *= np.sqrt(k * rng.uniform(0.3, 3))
    law, evidence = GeneralizedInverseGaussianMixing.at_zero_temperature(spectrum(k, z), width)
    found = posterior_of_scale(spectrum(k, z), GammaMixing(torch.tensor(width, dtype=F)), 0.0)
    # sums of thousands of logarithms of size 1e3 to 1e4
    assert evidence.item() == pytest.approx(found.log_evidence.item(), rel=1e-11, abs=1e-9)
    assert law.mean.item() == pytest.approx(found.mean.item(), rel=1e-9)
    # differences of moments that agree to 1 / (N + P)
    assert law.variance.item() == pytest.approx(found.variance.item(), rel=1e-5)


def test_bessel_functions():
    x = torch.logspace(-3, 2.5, 30, dtype=F)
    for order in (0.0, 0.5, 1.0, 7.3, 40.0):
        expected = np.log(special.kve(order, x.numpy())) - x.numpy()
        np.testing.assert_allclose(
            log_bessel_k(torch.tensor(order, dtype=F), x).numpy(), expected, rtol=1e-12, atol=1e-12
        )
    # recurrence K_{p+1} = K_{p-1} + (2 p / x) K_p where the functions themselves overflow
    for order in (3e3, 2e5):
        p, x = torch.tensor(order, dtype=F), torch.tensor([10.0, 1e3, 1e6], dtype=F)
        low, middle, high = (log_bessel_k(p + s, x) for s in (-1.0, 0.0, 1.0))
        again = torch.logaddexp(low, middle + (2.0 * p / x).log())
        assert torch.allclose(high, again, rtol=1e-12, atol=1e-9)
    with pytest.raises(ValueError, match="x: expected positive numbers"):
        log_bessel_k(p, -x)


def test_generalized_hyperbolic_density_is_a_mixture_of_normals():
    law = GeneralizedInverseGaussianMixing(-2.5, 3.0, 4.0)
    u = torch.linspace(-8, 8, 40001, dtype=F)
    step = math.log(float(u[1] - u[0]))
    assert (torch.logsumexp(law.log_density(u), 0) + step).item() == pytest.approx(0.0, abs=1e-11)
    deviation, variance = torch.tensor([0.0, 1.5], dtype=F), torch.tensor([0.7, 2.0], dtype=F)
    normal = torch.distributions.Normal(torch.zeros(2, dtype=F), (torch.exp(u)[:, None] * variance).sqrt())
    expected = torch.logsumexp(law.log_density(u)[:, None] + normal.log_prob(deviation), 0) + step
    assert torch.allclose(law.marginal_log_prob(deviation, variance), expected, rtol=1e-10)
    draws = law.sample((20000,), generator=torch.Generator().manual_seed(0))
    assert abs(draws.mean() - law.mean) < 4 * (law.variance / 20000).sqrt()


@pytest.mark.parametrize("rows", ["full rank", "duplicate rows", "rank deficient"])
@pytest.mark.parametrize("with_base", [False, True])
def test_gradients(rows, with_base):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2 if rows == "rank deficient" else 6, generator=generator, dtype=F)
    x = torch.cat([x[:4], x[:2]]) if rows == "duplicate rows" else x
    y = 2 * torch.randn(6, generator=generator, dtype=F)
    other = torch.randn(6, 6, generator=generator, dtype=F)
    law = GammaMixing(5.0)

    def evidence(x, y, temperature, other):
        base = other @ other.T + 0.1 * torch.eye(6, dtype=F) if with_base else None
        function = lambda s: posterior_of_scale(s, law, temperature.detach())  # noqa: E731
        return scale_evidence(x @ x.T, y, temperature, function, base=base)[0]

    inputs = [v.requires_grad_(True) for v in (x, y, torch.tensor(0.3, dtype=F), other)]
    if not with_base:
        inputs[3].requires_grad_(False)
    assert torch.autograd.gradcheck(evidence, inputs, atol=1e-7)


def test_gradient_of_the_laws_own_parameter():
    rng = np.random.default_rng(5)
    k, z, _ = random_problem(rng, 12)
    matrix, y = torch.diag(torch.as_tensor(k)), torch.as_tensor(z)

    def evidence(df):
        law = InverseGammaMixing(df)
        function = lambda s: posterior_of_scale(s, law, torch.tensor(0.1, dtype=F))  # noqa: E731
        return scale_evidence(matrix, y, torch.tensor(0.1, dtype=F), function, law.log_density)[0]

    assert torch.autograd.gradcheck(evidence, torch.tensor(4.5, dtype=F, requires_grad=True))


def test_a_law_that_cannot_be_integrated_is_reported():
    jump = lambda u: torch.where(u.abs() < 1 / 3, 0.0, -5.0)  # noqa: E731 (kinks at places that no grid meets)
    ends = (torch.tensor(-1.0, dtype=F), torch.tensor(1.0, dtype=F))
    with pytest.raises(ConvergenceError, match="integral over the scale: expected a change below"):
        integrate_scale(spectrum(np.ones(3), np.ones(3)), jump, ends, 1.0)
