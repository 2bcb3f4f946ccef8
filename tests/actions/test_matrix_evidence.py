"""The Laplace evidence of matrix order parameters, against integrals over the prior and sampled networks."""

from __future__ import annotations

import math

import pytest
import torch
from matrix_truth import averaged, log_density, normal, wishart

from torch_propkernel import Spectrum
from torch_propkernel.actions import (
    laplace_evidence,
    solve_block_order_parameters,
    solve_matrix_order_parameters,
)

DOUBLE = torch.float64


def stacked(noise, matrices, kernel):
    """Covariance of outputs one after the other: noise (x) 1 + Q (x) K."""
    size = matrices.shape[-1] * len(kernel)
    product = torch.einsum("nab,ij->naibj", matrices, kernel).reshape(len(matrices), size, size)
    return product + torch.kron(noise, torch.eye(len(kernel), dtype=DOUBLE))


@pytest.mark.parametrize("width", [[7.0], [7.0, 20.0], [5.0, math.inf, 9.0], [math.inf]])
def test_one_output_and_one_block_have_the_evidence_of_the_scalar_theory(width):
    x, y = normal(12, 6), 2.0 * normal(12, seed=1)
    kernel = x @ x.T / 6.0
    scalar = laplace_evidence(Spectrum.from_kernel(kernel, y), width, 0.2).item()
    found = solve_matrix_order_parameters(kernel, y.unsqueeze(-1), width=width, temperature=0.2, evidence=True)
    assert found.log_evidence.item() == pytest.approx(scalar, rel=1e-12)
    if len(width) == 1:
        blocks = kernel.expand(1, 1, -1, -1)
        found = solve_block_order_parameters(blocks, y, width=width[0], temperature=0.2, evidence=True)
        assert found.log_evidence.item() == pytest.approx(scalar, rel=1e-12)


NOISE = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=DOUBLE)


@pytest.mark.parametrize("depth", [1, 2])
def test_outputs_against_the_integral_over_their_prior(depth):
    """Laplace's method is off by 0.007 and 0.0003 (depth 1), 0.019 and 0.003 (depth 2), from 200,000 draws."""
    x, y = normal(4, 3), 1.5 * normal(4, 2, seed=1)
    kernel, generator = x @ x.T / 3.0, torch.Generator().manual_seed(2)
    errors = []
    for width in (8, 30):
        matrices = wishart(width, 2, 40_000, generator)
        if depth == 2:  # Q_1 = R_2 E_1 R_2^T of independent E: outputs below outputs, which do not commute
            root = torch.linalg.cholesky(matrices)
            matrices = root @ wishart(width, 2, 40_000, generator) @ root.mT
        exact, error = averaged(log_density(stacked(NOISE, matrices, kernel), y.T.flatten()))
        found = solve_matrix_order_parameters(
            kernel, y, width=[float(width)] * depth, temperature=1.0, output_noise=NOISE, evidence=True
        )
        assert error < 0.002
        errors.append(found.log_evidence.item() - exact)
    # Without the fluctuations it would be -0.055 and -0.018, -0.094 and -0.032.
    assert abs(errors[0]) < 0.03 and abs(errors[1]) < 0.008, errors


def test_fluctuations_are_those_of_all_layers_together():
    """The determinant of all second derivatives in all E_l, which do not commute around the minimum, by autograd."""
    x, y, width = normal(5, 3), 3.0 * normal(5, 2, seed=1), torch.tensor([3.0, 5.0, 4.0], dtype=DOUBLE)
    kernel, unit = x @ x.T / 3.0, torch.eye(2, dtype=DOUBLE)
    found = solve_matrix_order_parameters(kernel, y, width=width, temperature=1.0, output_noise=NOISE, evidence=True)
    values, vectors = torch.linalg.eigh(found.order_parameter)
    roots = (vectors * values.sqrt().unsqueeze(-2)) @ vectors.mT
    basis = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.5**0.5], [0.5**0.5, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])

    def action(flat):
        steps = torch.tensordot(flat.reshape(3, 3), basis.to(DOUBLE), 1)
        matrices = roots @ torch.matrix_exp(steps) @ roots
        factor = unit
        for matrix in matrices.flip(0):  # Q_l = R_{l+1} E_l R_{l+1}^T, from the readout down
            own, frame = torch.linalg.eigh(matrix)
            factor = factor @ (frame * own.sqrt()) @ frame.T
        layers = (width * (matrices.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.logdet(matrices))).sum()
        data = log_density(stacked(NOISE, (factor @ factor.T).unsqueeze(0), kernel), y.T.flatten()).squeeze()
        return layers - 2.0 * data

    zero = torch.zeros(9, dtype=DOUBLE)
    (gradient,) = torch.autograd.grad(action(zero.requires_grad_()), zero)
    assert gradient.abs().max() < 1e-8
    full = torch.autograd.functional.hessian(action, zero)
    assert values.amax() / values.amin() > 1.5  # the layers' eigenvalues differ
    value = action(zero).detach() - 2.0 * width.sum()
    expected = -0.5 * (value + torch.logdet(full) - 3.0 * width.log().sum())  # N tr Y^2 / 2 at E = 1
    # The gradient of 1e-9 that the solver leaves moves the layers' eigenvectors, which are close to each other.
    assert found.log_evidence.item() == pytest.approx(expected.item(), rel=1e-8)


def test_missing_targets_are_integrated_over():
    """A point that is missing in all outputs has no say, and one target less is one row less."""
    x, y = normal(5, 3), 1.5 * normal(5, 2, seed=1)
    kernel = x @ x.T / 3.0
    known = {"width": [8.0, 12.0], "temperature": 0.4, "evidence": True}
    few = solve_matrix_order_parameters(kernel[:4, :4], y[:4], **known)
    y[4] = math.nan
    many = solve_matrix_order_parameters(kernel, y, **known)
    assert many.log_evidence.item() == pytest.approx(few.log_evidence.item(), rel=1e-9)
    y[0, 0] = math.nan
    less = solve_matrix_order_parameters(kernel, y, width=30.0, temperature=0.4, evidence=True)
    matrices = wishart(30, 2, 40_000, torch.Generator().manual_seed(3))
    covariance = stacked(0.4 * torch.eye(2, dtype=DOUBLE), matrices, kernel)
    seen = ~y.T.flatten().isnan()
    exact, error = averaged(log_density(covariance[:, seen][:, :, seen], y.T.flatten()[seen]))
    assert less.log_evidence.item() == pytest.approx(exact, abs=0.03 + 4 * error)


def test_blocks_against_the_integral_over_their_prior():
    x, y = normal(2, 5, 3), 1.5 * normal(5, seed=1)
    blocks, generator = torch.einsum("aik,bjk->abij", x, x) / 3.0, torch.Generator().manual_seed(2)
    # Off by 0.008 and 0.0002 from 200,000 draws; without the fluctuations by -0.025 and -0.010.
    for width, tolerance in ((8, 0.014), (30, 0.006)):
        matrices = wishart(width, 2, 40_000, generator)
        covariance = torch.einsum("nab,abij->nij", matrices, blocks) + 0.4 * torch.eye(5, dtype=DOUBLE)
        exact, error = averaged(log_density(covariance, y))
        found = solve_block_order_parameters(blocks, y, width=float(width), temperature=0.4, evidence=True)
        assert error < 0.003 and found.log_evidence.item() == pytest.approx(exact, abs=tolerance)


def test_linear_networks_with_several_outputs_have_this_evidence():
    """f = v sigma(W x) with identity sigma: p(y) is the mean over W of the density with the readout integrated."""
    width, x, y = 40, normal(5, 3), 1.5 * normal(5, 3, seed=1)
    weights = torch.randn(40_000, 3, width, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    hidden = x @ weights / math.sqrt(3.0 * width)
    covariance = hidden @ hidden.mT + 0.5 * torch.eye(5, dtype=DOUBLE)
    exact, error = averaged(sum(log_density(covariance, column) for column in y.T))
    found = solve_matrix_order_parameters(x @ x.T / 3.0, y, width=float(width), temperature=0.5, evidence=True)
    assert error < 0.02 and found.log_evidence.item() == pytest.approx(exact, abs=0.05)  # 1/N, as above


def test_a_width_below_the_number_of_outputs_has_no_density_and_no_evidence():
    x, y = normal(6, 4), normal(6, 3, seed=1)
    width = torch.tensor([[2.0], [3.0]], dtype=DOUBLE)
    found = solve_matrix_order_parameters(x @ x.T, y, width=width, temperature=0.2, evidence=True)
    assert found.log_evidence.isnan().tolist() == [True, False] and found.stats["narrow"]
    blocks = torch.einsum("aik,bjk->abij", normal(2, 6, 4), normal(2, 6, 4))
    found = solve_block_order_parameters(blocks, y[:, 0], width=1.0, temperature=0.2, evidence=True)
    assert found.log_evidence.isnan().all() and found.stats["narrow"]
    assert solve_block_order_parameters(blocks, y[:, 0], width=1.0, temperature=0.2).log_evidence is None
