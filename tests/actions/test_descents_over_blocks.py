"""Descents over blocks on part of the data and from an estimated Hessian, against exact derivatives and all data."""

from __future__ import annotations

import pytest
import torch

from torch_propkernel.actions import (
    BlockAction,
    DenseBlocks,
    solve_block_order_parameters,
    solve_chain_order_parameters,
)
from torch_propkernel.actions.block_descents import lowest_over_blocks
from torch_propkernel.actions.block_matrices import on_rows, times
from torch_propkernel.actions.block_minimum import BlockMinimum
from torch_propkernel.actions.local_minimum import quasi_newton
from torch_propkernel.numerics.symmetric import from_coordinates, symmetric_log, to_coordinates
from torch_propkernel.order_parameters import LinearChain

DOUBLE = torch.float64


def data(num_data, num_blocks=3, seed=0):
    """Blocks of quadratic features, and targets that two blocks explain together."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_blocks, num_data, 6, generator=generator, dtype=DOUBLE)
    features = torch.cat([x, x.square() - 1.0, (x * x.roll(1, -1))], -1) / 4.0
    y = (x[0] + x[-1]) @ torch.randn(6, generator=generator, dtype=DOUBLE) / 2.0
    noise = 0.3 * torch.randn(num_data, generator=generator, dtype=DOUBLE)
    return torch.einsum("aik,bjk->abij", features, features), y + noise


class Computed:
    """Blocks that are summed anew at each call."""

    def __init__(self, blocks):
        self.blocks, self.num_blocks = blocks, len(blocks)

    def __call__(self, order_parameter):
        return torch.einsum("ab,abij->ij", order_parameter, self.blocks)


def residual(matrix, blocks, y, width, temperature):
    """1 - E^{-1} + [tr(A^{-1} K_ab) - a^T K_ab a] / N with inverses."""
    total = temperature * torch.eye(len(y), dtype=DOUBLE) + torch.einsum("ab,abij->ij", matrix, blocks)
    inverse = torch.linalg.inv(total)
    weights = inverse @ y
    pulled = torch.einsum("ij,abij->ab", inverse - torch.outer(weights, weights), blocks)
    return torch.eye(len(matrix), dtype=DOUBLE) - torch.linalg.inv(matrix) + pulled / width


@pytest.mark.parametrize(("width", "temperature"), [(20.0, 0.1), (200.0, 0.5)])
def test_a_minimum_found_from_part_of_the_data_is_one_of_all_data(width, temperature):
    blocks, y = data(260)
    solution = solve_block_order_parameters(blocks, y, width=width, temperature=temperature)
    assert solution.stats["rows"] == 65 and solution.stats["starts"] == 4
    assert solution.stats["agreeing_starts"] == 4 and solution.stats["num_minima"] == 1
    assert float(residual(solution.order_parameter[0], blocks, y, width, temperature).abs().max()) < 1e-8
    # The descent on all data from the identity alone ends there too.
    action = BlockAction(DenseBlocks.of(blocks), temperature * torch.eye(260, dtype=DOUBLE), y, width)
    alone = quasi_newton(action, torch.zeros(6, dtype=DOUBLE), action.scale, width)
    found = to_coordinates(symmetric_log(solution.order_parameter[0]))
    torch.testing.assert_close(alone.logs, found, rtol=0, atol=1e-8)


def test_few_data_are_taken_as_they_are():
    blocks, y = data(255)
    assert solve_block_order_parameters(blocks, y, width=30.0, temperature=0.2).stats["rows"] == 255


def test_blocks_that_are_not_held_give_the_same_from_part_of_the_data():
    blocks, y = data(260)
    known = {"width": torch.tensor([[20.0], [50.0]], dtype=DOUBLE), "temperature": 0.2}
    held, computed = (solve_block_order_parameters(b, y, **known) for b in (blocks, Computed(blocks)))
    torch.testing.assert_close(computed.order_parameter, held.order_parameter, rtol=0, atol=1e-9)
    rows = torch.tensor([3, 5, 200])
    matrix = torch.tensor([[1.0, 0.3, 0.0], [0.3, 2.0, -0.4], [0.0, -0.4, 0.7]], dtype=DOUBLE)
    expected = Computed(blocks)(matrix)
    for some in (DenseBlocks.of(blocks), Computed(blocks)):
        torch.testing.assert_close(on_rows(some, rows)(matrix), expected[rows][:, rows], rtol=1e-12, atol=1e-12)
        moved = torch.tensordot(to_coordinates(matrix), times(some, y.unsqueeze(-1)), 1)
        torch.testing.assert_close(moved, expected @ y.unsqueeze(-1), rtol=1e-12, atol=1e-12)


class Wells(BlockAction):
    """(x_1^2 - 1)^2 + tilt x_1 / 10 + x_2^2 + x_3^2 in the coordinates of X: minima near x_1 = 1 and -1."""

    scale = torch.ones((), dtype=DOUBLE)

    def __init__(self, tilt):
        unit = torch.eye(1, dtype=DOUBLE)
        super().__init__(DenseBlocks.of(unit.expand(2, 2, 1, 1)), unit, unit[0], width=8.0)
        self.tilt = tilt

    def __call__(self, x):
        return (x[0].square() - 1.0).square() + 0.1 * self.tilt * x[0] + x[1:].square().sum()

    def data(self, matrix):
        return 0.0 * matrix.sum()

    def sampled_curvature(self, x):
        return 8.0 * torch.eye(3, dtype=DOUBLE)


def test_every_end_on_part_of_the_data_is_followed_on_all():
    """From 1 the part's descent ends in its lower well, x_1 < 0, from the multiple of 1 in the other one."""
    multiple = torch.tensor([0.5], dtype=DOUBLE).exp()
    best, agreeing, minima = lowest_over_blocks(Wells(-1.0), Wells(1.0), multiple, [])
    assert best.logs[0].item() == pytest.approx(1.0, abs=0.02)  # the lower one of all data
    assert (agreeing.item(), minima.item()) == (2, 2)
    deeper = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)  # a further start, on all data
    best, agreeing, minima = lowest_over_blocks(Wells(-1.0), Wells(1.0), multiple, [deeper])
    assert (best.logs[0] > 0, agreeing.item(), minima.item()) == (True, 3, 2)


@pytest.mark.parametrize("width", [20.0, 200.0])
def test_the_estimated_curvature_is_near_the_exact_one_at_a_minimum(width):
    blocks, y = data(120)
    action = BlockAction(DenseBlocks.of(blocks), 0.2 * torch.eye(120, dtype=DOUBLE), y, width)
    run = quasi_newton(action, torch.zeros(6, dtype=DOUBLE), action.scale, width)
    assert float(torch.linalg.eigvalsh(from_coordinates(run.logs, 3)).diff().max()) > 0.1  # E is no multiple of 1
    exact = torch.autograd.functional.hessian(action, run.logs)
    # 120 columns in six parts; of the largest derivative rounding leaves 1e-12.
    torch.testing.assert_close(BlockMinimum(action, run.logs).hessian, exact, rtol=1e-9, atol=1e-9 * width)
    estimate = action.sampled_curvature(run.logs)
    assert float(torch.linalg.eigvalsh(estimate).min()) > 0
    # 11 probes: the standard error of a trace is (2 / 11)^(1/2) of the root of tr F^4, some per cent here.
    assert float(torch.linalg.matrix_norm(estimate - exact, 2)) < 0.1 * float(torch.linalg.matrix_norm(exact, 2))
    wrong = width * torch.eye(6, dtype=DOUBLE)  # what no estimate would be
    assert float(torch.linalg.matrix_norm(estimate - exact)) < 0.3 * float(torch.linalg.matrix_norm(wrong - exact))


def test_outside_the_domain_the_curvature_is_that_of_the_layer():
    blocks = DenseBlocks.of(-torch.eye(4, dtype=DOUBLE).expand(2, 2, 4, 4))
    action = BlockAction(blocks, 0.1 * torch.eye(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE), 5.0)
    curvature = action.sampled_curvature(torch.zeros(3, dtype=DOUBLE))
    torch.testing.assert_close(curvature, 5.0 * torch.eye(3, dtype=DOUBLE))


def test_a_chain_found_from_part_of_the_data_is_one_of_all_data():
    blocks, y = data(260)
    chain = LinearChain([torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)], 2)
    width = torch.tensor([[20.0, 9.0], [20.0, torch.inf]], dtype=DOUBLE)
    solution = solve_chain_order_parameters(blocks, y, chain, width=width, temperature=torch.tensor([0.1, 0.3]))
    assert solution.stats["rows"] == 65 and solution.order_parameter.shape == (2, 2, 3, 3)
    for index, temperature in enumerate((0.1, 0.3)):  # descents on all data from the identities alone
        base = temperature * torch.eye(260, dtype=DOUBLE)
        action = BlockAction(DenseBlocks.of(blocks), base, y, width[index], chain)
        alone = quasi_newton(action, torch.zeros(9, dtype=DOUBLE), action.scale, 20.0)
        found = chain.tensor(action.order_parameters(alone.logs))
        torch.testing.assert_close(solution.order_parameter[index], found, rtol=1e-7, atol=1e-8)
    start = solution.order_parameter[0]
    again = solve_chain_order_parameters(blocks, y, chain, width=width[0], temperature=0.1, start=start)
    assert again.stats["starts"] == 5
    torch.testing.assert_close(again.order_parameter, start, rtol=1e-7, atol=1e-8)
    with pytest.raises(ValueError, match=r"start: expected shape \(2, 3, 3\), got \(3, 3\)"):
        solve_chain_order_parameters(blocks, y, chain, width=width[0], temperature=0.1, start=start[0])
