"""The large-deviation function of gated units, against brute quadrature, the simplex method and drawn readouts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from torch_propkernel.actions.gated_action import GATE, GatedPrior, gate_moments


@pytest.fixture(scope="module")
def prior():
    return GatedPrior(gate_moments(), torch.tensor(2.0, dtype=torch.float64))


@pytest.fixture(scope="module")
def nodes():
    return reference.gate_nodes()


def test_moments_of_the_gates(nodes):
    moments = gate_moments()
    assert moments.prior_slope.item() == pytest.approx(0.25 + math.asin(1 / math.pi) / (2 * math.pi), abs=1e-15)
    weights, slopes, residuals = nodes
    assert moments.prior_slope.item() == pytest.approx(weights @ slopes, abs=1e-13)
    assert moments.prior_residual.item() == pytest.approx(weights @ residuals, abs=1e-13)
    assert moments.prior_residual.item() == pytest.approx(0.069776, abs=5e-7)


def test_slope_and_residual_of_a_single_unit():
    moments = gate_moments(25)  # g = -12, -11, ..., 12
    for g, slope, residual in zip(range(-12, 13), moments.squared_slope, moments.residual, strict=True):
        expected_slope, expected_residual = reference.gate(float(g))
        assert slope.item() == pytest.approx(expected_slope, abs=1e-13)
        assert residual.item() == pytest.approx(expected_residual, abs=1e-12)  # the brute one cancels at large g
        assert residual.item() >= 0


@pytest.mark.parametrize(
    "factors", [(1.0, 1.0), (0.5, 0.5), (0.3, 0.2), (2.0, 2.0), (1.0, 2.0), (2.0, 1.0), (8.0, 8.0)]
)
def test_rate_is_the_maximum_over_the_fields(prior, nodes, factors):
    A_0, B_0 = (v.item() for v in prior.mean)
    A, B = factors[0] * A_0, factors[1] * B_0
    rate = prior.rate(*torch.tensor([A, B], dtype=torch.float64))
    value, a, b = reference.gated_rate(A, B, 2.0, nodes)
    assert rate.value.item() == pytest.approx(value, abs=1e-11)
    assert rate.slope_field.item() == pytest.approx(a, rel=1e-4, abs=1e-5)  # a simplex on a flat top
    assert rate.residual_field.item() == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert rate.gradient.item() < 1e-13
    assert rate.gap.item() > 0


def test_scaling_with_the_precision(prior):
    """I depends on lambda_2 A and lambda_2 B only."""
    A, B = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.06, dtype=torch.float64)
    other = GatedPrior(prior.moments, 3 * prior.precision)
    assert prior.rate(A, B).value.item() == pytest.approx(other.rate(A / 3, B / 3).value.item(), abs=1e-14)


def test_rate_is_a_chi_squared_one_along_the_prior(prior):
    """A = r A_0, B = r B_0 cannot cost more than scaling all of v: (r - 1 - log r)/2."""
    for r in (0.3, 0.8, 1.0, 1.5, 4.0):
        A_0, B_0 = prior.mean
        assert prior.rate(r * A_0, r * B_0).value.item() <= (r - 1 - math.log(r)) / 2 + 1e-14


def test_curvature_at_the_prior_is_the_inverse_covariance(prior, rng):
    """I is quadratic at its zero: N_2 Cov(A, B)^{-1}, with the covariance of drawn units."""
    A, B = (v.clone().requires_grad_(True) for v in prior.mean)
    gradient = torch.autograd.grad(prior.rate(A, B).value, (A, B), create_graph=True)
    hessian = torch.stack([torch.stack(torch.autograd.grad(row, (A, B), retain_graph=True)) for row in gradient])
    g, v = rng.normal(size=400_000) * GATE, rng.normal(size=400_000) / math.sqrt(2.0)
    grid = np.linspace(-4.0, 4.0, 801)
    slopes, residuals = np.array([reference.gate(b / GATE) for b in grid]).T
    units = np.stack([v**2 * np.interp(g, grid, slopes), v**2 * np.interp(g, grid, residuals)])
    covariance = np.cov(units)
    np.testing.assert_allclose(hessian.numpy() @ covariance, np.eye(2), atol=0.05)  # 400,000 heavy-tailed draws
    np.testing.assert_allclose([v.item() for v in gradient], 0.0, atol=1e-13)


def test_derivatives(prior):
    A, B = (f * v.clone() for f, v in zip((1.7, 1.2), prior.mean, strict=True))
    inputs = (A.requires_grad_(True), B.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda a, b: prior.rate(a, b).value, inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: prior.rate(a, b).value, inputs)
    rate = prior.rate(*inputs)
    gradient = torch.autograd.grad(rate.value, inputs)
    assert gradient[0].item() == pytest.approx(-rate.slope_field.item() / 2, rel=1e-12)
    assert gradient[1].item() == pytest.approx(-rate.residual_field.item() / 2, rel=1e-12)


def test_readout_norm(prior):
    """One at the prior; for all of v scaled, lambda |v|^2/N follows A and B up to the law of g that shifts as well."""
    zero = torch.zeros(2, dtype=torch.float64)
    assert prior.readout_norm(zero).item() == pytest.approx(1.0, abs=1e-14)
    A, B = prior.mean
    rate = prior.rate(2 * A, 2 * B)
    fields = torch.stack([rate.slope_field, rate.residual_field])
    tilted, inverse = prior.tilted_units(fields)
    assert tilted.sum().item() == pytest.approx(1.0, abs=1e-14)
    second = (tilted * inverse * prior.moments.squared_slope).sum() / prior.precision
    assert second.item() == pytest.approx(2 * A.item(), rel=1e-12)  # the tilted average of v^2 Phi^2 is A


def test_end_of_the_theory_is_seen(prior):
    """A far above its prior value at small B: the maximum sits at a' = -lambda_2, where the derivative is not zero."""
    A, B = prior.mean
    rate = prior.rate(4 * A, 0.1 * B)
    assert rate.gradient.item() > 1.0
    assert rate.slope_field.item() == pytest.approx(-2.0, abs=1e-6)
    assert rate.gap.item() < 1e-6


def test_batches(prior):
    A_0, B_0 = prior.mean
    A, B = A_0 * torch.tensor([[0.5, 1.0], [2.0, 3.0]]).double(), B_0 * torch.tensor([[0.7, 1.0], [1.5, 3.0]]).double()
    together = prior.rate(A, B)
    for i in range(2):
        for j in range(2):
            assert together.value[i, j].item() == pytest.approx(prior.rate(A[i, j], B[i, j]).value.item(), abs=1e-14)
