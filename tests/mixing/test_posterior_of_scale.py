"""Integrals over the scale against brute force, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from torch_propkernel import ConvergenceError, Spectrum
from torch_propkernel.mixing import (
    GammaMixing,
    InverseGammaMixing,
    LogNormalMixing,
    PointMass,
    ProductGammaMixing,
    posterior_of_scale,
)
from torch_propkernel.mixing.scale_evidence import scale_evidence
from torch_propkernel.mixing.scale_integral import integrate_scale

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
    found = posterior_of_scale(spectrum(k, z), GammaMixing(15.0), temperature).for_predictions()
    u = np.linspace(-6, 3, 200001)
    value = log_gamma_density(u, 15.0) + likelihood(u, k, z, temperature)
    weights = np.exp(value - special.logsumexp(value))
    mean = (weights * np.exp(u)).sum()
    assert found.mean.item() == pytest.approx(mean, rel=1e-10)
    assert found.variance.item() == pytest.approx((weights * (np.exp(u) - mean) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("width", "size"), [(1.0, 3), (40.0, 3), (40.0, 60), (100.0, 3), (300.0, 60)])
def test_zero_temperature_is_generalized_inverse_gaussian(width, size):
    """At T = 0, q given y is GIG((N - P)/2, N, y^T K^{-1} y), THEORY.md section 1; scipy has the law."""
    rng = np.random.default_rng(4)
    k, z = 10.0 ** rng.uniform(-2, 2, size), rng.normal(size=size)
    z *= np.sqrt(k * rng.uniform(0.3, 3))
    found = posterior_of_scale(spectrum(k, z), GammaMixing(torch.tensor(width, dtype=F)), 0.0)
    p, label = 0.5 * (width - size), (z**2 / k).sum()
    law = stats.geninvgauss(p, math.sqrt(width * label), scale=math.sqrt(label / width))
    assert found.mean.item() == pytest.approx(law.mean(), rel=1e-9)
    # a difference of two moments that agree to 1 / (N + P), in scipy too
    assert found.variance.item() == pytest.approx(law.var(), rel=1e-7)
    # log p(y): the integral of q^{p-1} exp(-(N q + b / q) / 2) is 2 (b/N)^{p/2} K_p(sqrt(N b))
    argument, half = math.sqrt(width * label), 0.5 * width
    integral = math.log(2 * special.kve(p, argument)) - argument + 0.5 * p * math.log(label / width)
    evidence = half * math.log(half) - special.gammaln(half) - 0.5 * np.log(2 * np.pi * k).sum() + integral
    assert found.log_evidence.item() == pytest.approx(evidence, rel=1e-11, abs=1e-9)
    # and the density itself at the nodes that count
    inner = found.log_weights > -20
    u = found.log_scale[inner].numpy()
    spacing = float(found.log_scale[1] - found.log_scale[0])
    density = law.logpdf(np.exp(u)) + u + math.log(spacing)
    np.testing.assert_allclose(found.log_weights[inner].numpy(), density, atol=1e-8)


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
