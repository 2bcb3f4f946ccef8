"""Integrals of exp(g) against closed forms and scipy's adaptive quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special

from torch_propkernel.numerics.log_quadrature import find_support, integrate_log

F = torch.float64


def ends(low, high):
    return torch.as_tensor(low, dtype=F), torch.as_tensor(high, dtype=F)


def supported(g, low, high, **options):
    return integrate_log(g, *find_support(g, *ends(low, high)), **options)


@pytest.mark.parametrize("center", [-7.3, 0.0, 4.1])
@pytest.mark.parametrize("width", [1e-7, 1e-3, 0.3, 20.0])
def test_normal_density(center, width):
    """Far narrower than the first grid's step, and far wider than the first guess."""
    g = lambda u: -0.5 * ((u - center) / width) ** 2  # noqa: E731
    found = supported(g, -10.0, 10.0)
    assert bool(found.converged)
    # nodes are spaced to the rounding of their own size, 1e-15 of the center: relative 1e-8 of the narrowest width
    tolerance = 1e-12 + 2e-15 * abs(center) / width
    assert abs(found.log_integral.item() - math.log(width) - 0.5 * math.log(2 * math.pi)) < tolerance
    weights = found.log_weights.exp()
    assert abs(weights.sum().item() - 1) < 1e-13
    mean = (weights * found.nodes).sum()
    assert abs(mean.item() - center) < 1e-12 * (1 + abs(center))
    assert (weights * (found.nodes - mean) ** 2).sum().item() == pytest.approx(width**2, rel=1e-10 + tolerance)


def test_a_batch_of_gamma_densities():
    """The integral of exp(a u - b e^u) is Gamma(a) / b^a, over eight decades of a, all on grids of their own."""
    a = torch.logspace(-1, 7, 60, dtype=F).reshape(6, 10)
    b = torch.logspace(2, -3, 10, dtype=F)
    g = lambda u: a.unsqueeze(-1) * u - b.unsqueeze(-1) * torch.exp(u)  # noqa: E731
    center = (a / b).log()
    found = integrate_log(g, *find_support(g, center - 200.0, center + 30.0))
    assert found.nodes.shape[:-1] == (6, 10) and bool(found.converged.all())
    expected = special.gammaln(a.numpy()) - a.numpy() * np.log(b.numpy())
    # gamma functions of numbers up to 1e7: logarithms up to 1e8, sums of terms of that size
    np.testing.assert_allclose(found.log_integral, expected, rtol=4e-15, atol=1e-11)
    values = g(torch.stack(find_support(g, center - 200.0, center + 30.0), -1))
    assert bool((values < found.log_values.amax(-1, keepdim=True) - 59.0).all())


def test_two_peaks_of_different_width():
    def g(u, m=torch):
        return m.logaddexp(-0.5 * ((u + 6.0) / 0.01) ** 2 - 4.0, -0.5 * ((u - 3.0) / 0.5) ** 2)

    found = supported(g, -12.0, 12.0)
    top = float(found.log_values.max())
    parts = [
        integrate.quad(lambda u: math.exp(g(u, np) - top), a, b, epsabs=0, epsrel=1e-12, points=p, limit=500)[0]
        for a, b, p in ((-12, -4, (-6.05, -6, -5.95)), (-4, 12, (3,)))
    ]
    assert abs(found.log_integral.item() - top - math.log(sum(parts))) < 1e-11


def test_a_peak_between_the_points_of_the_first_grid():
    """Both neighbors of the peak are more than 60 nats below it."""
    g = lambda u: -(((u - 0.05) / 1e-3).abs() ** 1.5)  # noqa: E731 (concave)
    low, high = find_support(g, *ends(-5.0, 5.0))
    assert low < 0.05 < high and high - low < 0.1
    half = 60.0 ** (2 / 3) * 1e-3
    assert low <= 0.05 - half and 0.05 + half <= high


def test_a_first_guess_that_misses_the_tails_grows():
    g = lambda u: -0.5 * (u - 40.0) ** 2  # noqa: E731
    low, high = find_support(g, *ends(39.0, 41.0))
    assert low < 40.0 - math.sqrt(120) and 40.0 + math.sqrt(120) < high


def test_every_node_is_evaluated_once():
    seen = []

    def g(u):
        seen.append(u)
        return -(u**2) - 0.1 * torch.cos(40.0 * u)

    found = integrate_log(g, *ends(-8.0, 8.0), fewest=9)
    assert len(seen) > 3
    torch.testing.assert_close(torch.cat(seen).sort().values, found.nodes, rtol=0, atol=0)
    torch.testing.assert_close(found.log_values, g(found.nodes), rtol=0, atol=0)


def test_the_error_is_that_of_the_coarser_rule_and_reported():
    g = lambda u: torch.where(u.abs() < 1 / 3, 0.0, -5.0)  # noqa: E731 (jumps at places that no grid meets)
    exact = math.log(2 / 3 + 4 / 3 * math.exp(-5))
    found = integrate_log(g, *ends(-1.0, 1.0), most=1025)
    assert found.nodes.shape == (1025,) and not bool(found.converged)
    assert 1e-4 < found.error.item() < 1e-2
    assert abs(found.log_integral.item() - exact) < 2 * found.error.item()
    loose = integrate_log(g, *ends(-1.0, 1.0), tolerance=0.1)
    assert loose.nodes.shape == (129,) and bool(loose.converged)


def test_integrals_that_are_not_finite_hold_nobody_up():
    shift = torch.tensor([0.0, math.nan, -math.inf], dtype=F)
    calls = []

    def g(u):
        calls.append(u.shape[-1])
        return shift.unsqueeze(-1) - u**2

    low, high = torch.full((3,), -8.0, dtype=F), torch.full((3,), 8.0, dtype=F)
    found = integrate_log(g, low, high)
    assert found.converged.tolist()[0] and calls == [129]
    assert found.log_integral[0].item() == pytest.approx(0.5 * math.log(math.pi), abs=1e-13)
    assert bool((found.log_integral[1:] < -1e300).all())
    assert [bool(torch.isfinite(end[0])) for end in find_support(g, low, high)] == [True, True]


def test_another_error_estimate():
    """Nodes that must serve a second, narrower integrand."""

    def error(u, values):
        terms = values - 0.5 * (u / 0.02) ** 2
        return (torch.logsumexp(terms, -1) - torch.logsumexp(terms[..., ::2], -1) - math.log(2.0)).abs()

    g = lambda u: -0.5 * u**2  # noqa: E731
    own, shared = integrate_log(g, *ends(-9.0, 9.0)), integrate_log(g, *ends(-9.0, 9.0), error=error)
    assert own.nodes.shape[-1] < shared.nodes.shape[-1] and bool(shared.converged)
    product = torch.logsumexp(shared.log_values - 0.5 * (shared.nodes / 0.02) ** 2, -1).exp()
    step = (shared.nodes[1] - shared.nodes[0]).item()
    expected = math.sqrt(2 * math.pi / (1 + 0.02**-2))
    assert product.item() * step == pytest.approx(expected, rel=1e-10)


def test_gradients_pass_through():
    a = torch.tensor([0.7, 3.0, 40.0], dtype=F, requires_grad=True)
    found = integrate_log(
        lambda u: a.unsqueeze(-1) * u - torch.exp(u), *(torch.full((3,), v, dtype=F) for v in (-90.0, 8.0)), fewest=17
    )
    (slope,) = torch.autograd.grad(found.log_integral.sum(), a)
    torch.testing.assert_close(slope, torch.digamma(a.detach()), rtol=1e-11, atol=0)
