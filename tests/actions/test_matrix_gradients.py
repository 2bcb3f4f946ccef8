"""Derivatives of matrix order parameters and of their action: against finite differences of the solve itself."""

from __future__ import annotations

import math

import pytest
import torch
from matrix_truth import check, normal

from torch_propkernel import solve_order_parameters
from torch_propkernel.actions import solve_block_order_parameters, solve_matrix_order_parameters

DOUBLE = torch.float64


MATRICES = ("order_parameter", "output_covariance", "action")


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("widths", [[6.0], [4.0, math.inf, 7.0]], ids=["one layer", "one of them infinite"])
def test_outputs(widths, missing):
    x, y, finite = normal(9, 6), normal(9, 3, seed=1), torch.tensor(widths, dtype=DOUBLE)
    free = torch.isfinite(finite)
    gaps = torch.zeros(9, 3, dtype=DOUBLE)
    if missing:
        gaps[0, 1] = gaps[3, 0] = math.nan

    def solve(x, y, temperature, root, width):
        return solve_matrix_order_parameters(
            x @ x.T / 6.0,
            y + gaps,
            width=torch.where(free, width, finite),
            temperature=temperature,
            output_noise=0.5 * torch.eye(3, dtype=DOUBLE) + root @ root.T,
        )

    width = torch.where(free, finite, 1.0)
    temperature = torch.tensor(0.3, dtype=DOUBLE)
    check(solve, MATRICES, x=x, y=2.0 * y, temperature=temperature, root=0.3 * normal(3, 3, seed=2), width=width)


def test_outputs_whose_eigenvalues_meet():
    """Two outputs with orthogonal targets of one norm: E is a multiple of the identity."""
    frame = torch.linalg.qr(normal(6, 6))[0]
    kernel, y = frame @ torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0, 0.5, 0.2], dtype=DOUBLE)) @ frame.T, frame[:, :2]

    def solve(kernel, y):
        return solve_matrix_order_parameters(kernel + kernel.T, 3.0 * y, width=[4.0, 9.0], temperature=0.2)

    found = solve(kernel, y)
    values = torch.linalg.eigvalsh(found.output_covariance)
    assert values[1] - values[0] < 1e-9 and values[0] < 0.8
    check(solve, MATRICES, kernel=kernel, y=y)


@pytest.mark.parametrize("size", [1, 3])
def test_blocks(size):
    x, y = normal(size, 9, 5), normal(9, seed=1)

    def solve(x, y, temperature, base, width):
        blocks = torch.einsum("aik,bjk->abij", x, x) / 5.0
        return solve_block_order_parameters(blocks, y, width=width, temperature=temperature, base=base.exp())

    temperature, width = torch.tensor(0.3, dtype=DOUBLE), torch.tensor(4.0, dtype=DOUBLE)
    results = ("order_parameter", "action")
    check(solve, results, x=x, y=2.0 * y, temperature=temperature, base=0.3 * normal(9, seed=3), width=width)


def test_many_problems_of_blocks_and_outputs_have_their_own_gradients():
    x, y, width = normal(2, 7, 4), 2.0 * normal(7, 2, seed=1), torch.tensor([[3.0], [math.inf], [9.0]], dtype=DOUBLE)
    temperature = torch.tensor([0.2, 0.3, 0.4], dtype=DOUBLE)

    def blocks(x, temperature):
        matrices = torch.einsum("aik,bjk->abij", x, x)
        return solve_block_order_parameters(matrices, y[:, 0], width=width, temperature=temperature)

    def outputs(x, temperature):
        return solve_matrix_order_parameters(x[0] @ x[0].T, y, width=width, temperature=temperature)

    check(blocks, ("order_parameter", "action"), x=x, temperature=temperature)
    check(outputs, MATRICES, x=x, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_widths_of_the_scalar_theory(temperature):
    kernel, y = normal(8, 8), 2.0 * normal(8, seed=1)
    kernel = kernel @ kernel.T + torch.eye(8, dtype=DOUBLE)

    def solve(width):
        widths = torch.cat([width, torch.full((1,), math.inf, dtype=DOUBLE)])
        return solve_order_parameters(kernel, y, width=widths, temperature=temperature)

    check(solve, ("order_parameter", "action"), width=torch.tensor([4.0, 9.0], dtype=DOUBLE))


def test_there_is_no_graph_unless_an_input_has_one_and_no_second_derivative():
    x, y = normal(6, 4).requires_grad_(), normal(6, 2, seed=1)
    with torch.no_grad():
        assert not solve_matrix_order_parameters(x @ x.T, y, width=5.0, temperature=0.1).action.requires_grad
    kernel = x.detach() @ x.detach().T
    assert not solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.1).order_parameter.requires_grad
    found = solve_matrix_order_parameters(x @ x.T, y, width=5.0, temperature=0.1)
    with pytest.raises(RuntimeError, match="order_parameter: expected first derivatives only"):
        torch.autograd.grad(found.order_parameter.sum(), x, create_graph=True)
