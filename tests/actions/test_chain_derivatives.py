"""Chains of matrices: evidence against the integral over the prior; derivatives of the action and of the solve."""

from __future__ import annotations

import math

import pytest
import torch
from matrix_truth import averaged, check, log_density, normal, wishart

from torch_propkernel.actions import BlockAction, DenseBlocks, solve_chain_order_parameters
from torch_propkernel.actions.block_minimum import BlockMinimum
from torch_propkernel.actions.local_minimum import quasi_newton
from torch_propkernel.order_parameters import LinearChain

DOUBLE = torch.float64
CHAIN = LinearChain([torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])], 2)


def data(blocks=3):
    x, y = normal(blocks, 5, 3), 1.5 * normal(5, seed=1)
    return torch.einsum("aik,bjk->abij", x, x) / 6.0, y


@pytest.mark.parametrize("width", [[5.0, 7.0], [5.0, math.inf], [math.inf, 7.0]])
def test_the_second_derivatives_at_a_minimum_are_those_of_the_action(width):
    blocks, y = data()
    width, base = torch.tensor(width, dtype=DOUBLE), 0.3 * torch.eye(5, dtype=DOUBLE)
    action = BlockAction(DenseBlocks.of(blocks), base, y, width, CHAIN)
    start = torch.zeros(9, dtype=DOUBLE)
    run = quasi_newton(action, start, action.scale, 6.0)
    assert run.converged and float(run.logs.abs().max()) > 0.1
    expected = torch.autograd.functional.hessian(action, run.logs)  # of layers that do not move it is zero
    expected = expected + torch.diag((~action.free).double())
    torch.testing.assert_close(BlockMinimum(action, run.logs).hessian, expected, rtol=1e-9, atol=1e-9)


def test_an_infinite_layer_has_no_fluctuations():
    blocks, y = data()
    dense, chain = DenseBlocks.of(blocks), LinearChain([torch.eye(3).unsqueeze(0)], 3)
    known = {"temperature": 0.2, "evidence": True}
    two = solve_chain_order_parameters(dense, y, chain, width=[7.0, math.inf], **known)
    one = solve_chain_order_parameters(dense, y, LinearChain([], 3), width=[7.0], **known)
    assert two.log_evidence.item() == pytest.approx(one.log_evidence.item(), rel=1e-9)
    none = solve_chain_order_parameters(dense, y, chain, width=[math.inf, math.inf], **known)
    covariance = torch.einsum("aaij->ij", blocks) + 0.2 * torch.eye(5, dtype=DOUBLE)
    assert none.log_evidence.item() == pytest.approx(log_density(covariance, y).item(), rel=1e-12)


def test_the_evidence_is_the_integral_over_the_prior():
    """Two layers of different sizes, G_1 drawn from its chain of Wishart laws."""
    blocks, y = data()
    generator = torch.Generator().manual_seed(2)
    # Off by 0.020 and 0.001, without the fluctuations by -0.158 and -0.052.
    for width, tolerance in ((8, 0.04), (30, 0.01)):
        lower, upper = wishart(width, 3, 40_000, generator), wishart(width, 2, 40_000, generator)
        matrices = CHAIN([lower, upper])
        covariance = torch.einsum("nab,abij->nij", matrices, blocks) + 0.4 * torch.eye(5, dtype=DOUBLE)
        exact, error = averaged(log_density(covariance, y))
        found = solve_chain_order_parameters(
            DenseBlocks.of(blocks), y, CHAIN, width=[float(width)] * 2, temperature=0.4, evidence=True
        )
        assert error < 0.005 and found.log_evidence.item() == pytest.approx(exact, abs=tolerance)
    narrow = solve_chain_order_parameters(
        DenseBlocks.of(blocks), y, CHAIN, width=[2.0, 9.0], temperature=0.4, evidence=True
    )
    assert narrow.log_evidence.isnan() and narrow.stats["narrow"]


def test_derivatives_of_a_chain():
    x, y = normal(3, 8, 4), 1.5 * normal(8, seed=1)

    def solve(x, y, base, width):
        blocks = DenseBlocks.of(torch.einsum("aik,bjk->abij", x, x) / 4.0)
        return solve_chain_order_parameters(blocks, y, CHAIN, width=width, temperature=0.3, base=base.exp())

    width = torch.tensor([5.0, 7.0], dtype=DOUBLE)
    check(solve, ("order_parameter", "action"), x=x, y=y, base=0.3 * normal(8, seed=3), width=width)
    found = solve(x, y, torch.zeros(8, dtype=DOUBLE), width)
    assert not found.order_parameter.requires_grad and found.log_evidence is None
