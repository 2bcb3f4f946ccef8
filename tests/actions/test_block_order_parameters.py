"""The matrix order parameter of a network over blocks: action, gradient and minimum, against dense brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from torch_propkernel import ConvergenceError, solve_order_parameters
from torch_propkernel.actions import BlockAction, DenseBlocks, solve_block_order_parameters
from torch_propkernel.actions.local_minimum import lowest_minimum, minimize, quasi_newton, value_and_gradient
from torch_propkernel.numerics.symmetric import from_coordinates, to_coordinates

DOUBLE = torch.float64


def data(num_blocks=3, num_data=20, seed=0):
    """Linear blocks K_ab = X_a X_b^T, jointly positive semidefinite, and targets that two blocks explain together."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_blocks, num_data, 7, generator=generator, dtype=DOUBLE)
    y = (x[0] + x[-1]) @ torch.randn(7, generator=generator, dtype=DOUBLE) / 2.0
    noise = 0.1 * torch.randn(num_data, generator=generator, dtype=DOUBLE)
    return torch.einsum("aik,bjk->abij", x, x) / 7.0, y + noise


def definition(matrix, blocks, y, width, temperature):
    """N S from its definition, in numpy."""
    total = temperature * np.eye(len(y)) + np.einsum("ab,abij->ij", matrix, blocks)
    layer = width * (np.trace(matrix) - np.linalg.slogdet(matrix)[1])
    return layer + np.linalg.slogdet(total)[1] + y @ np.linalg.solve(total, y)


def brute_force(blocks, y, width, temperature, seed):
    """Minimize over the Cholesky factor of E without any gradient of the package, from a random start."""
    size, rows = len(blocks), np.tril_indices(len(blocks))
    blocks, y = blocks.numpy(), y.numpy()

    def matrix(flat):
        factor = np.zeros((size, size))
        factor[rows] = flat
        return factor @ factor.T

    start = np.eye(size)[rows] + 0.3 * np.random.default_rng(seed).standard_normal(len(rows[0]))
    found = scipy.optimize.minimize(
        lambda flat: definition(matrix(flat), blocks, y, width, temperature), start, method="BFGS", tol=1e-9
    )
    return matrix(found.x), found.fun


@pytest.mark.parametrize("width", [2.0, 12.0, 200.0])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_minimum_is_that_of_the_dense_action(width, temperature):
    blocks, y = data()
    solution = solve_block_order_parameters(blocks, y, width=width, temperature=temperature)
    lowest = min((brute_force(blocks, y, width, temperature, seed) for seed in range(3)), key=lambda found: found[1])
    own = solution.order_parameter[0]
    assert width * solution.action.item() == pytest.approx(lowest[1], rel=1e-9)
    # Differences without a gradient place a minimum to the root of their rounding.
    np.testing.assert_allclose(own.numpy(), lowest[0], atol=3e-4)
    direct = definition(own.numpy(), blocks.numpy(), y.numpy(), width, temperature)
    assert width * solution.action.item() == pytest.approx(direct, rel=1e-12)
    assert solution.result.name == "local_minimum" and solution.stats["narrow"] is (width < 3)


def test_the_minimum_is_stationary_in_the_order_parameter_itself():
    """1 - E^{-1} + [tr(A^{-1} K_ab) - a^T K_ab a] / N = 0, with inverses and loops."""
    blocks, y = data()
    matrix = solve_block_order_parameters(blocks, y, width=8.0, temperature=0.2).order_parameter[0]
    inverse = torch.linalg.inv(0.2 * torch.eye(20, dtype=DOUBLE) + torch.einsum("ab,abij->ij", matrix, blocks))
    weights = inverse @ y
    pulled = torch.tensor(
        [
            [float((inverse * blocks[a, b].T).sum() - weights @ blocks[a, b] @ weights) for b in range(3)]
            for a in range(3)
        ],
        dtype=DOUBLE,
    )
    residual = torch.eye(3, dtype=DOUBLE) - torch.linalg.inv(matrix) + pulled / 8.0
    assert float(residual.abs().max()) < 1e-8


def test_the_gradient_is_the_difference_quotient_also_where_eigenvalues_coincide():
    blocks, y = data()
    action = BlockAction(DenseBlocks.of(blocks), 0.2 * torch.eye(20, dtype=DOUBLE), y, 8.0)
    rough = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    alike = to_coordinates(0.3 * torch.eye(3, dtype=DOUBLE))
    for point in (rough, alike, torch.zeros(6, dtype=DOUBLE)):
        torch.autograd.gradcheck(action, point.requires_grad_(), atol=1e-5)
        matrix = scipy.linalg.expm(from_coordinates(point.detach(), 3).numpy())
        expected = definition(matrix, blocks.numpy(), y.numpy(), 8.0, 0.2)
        assert action(point).item() + 24.0 == pytest.approx(expected, rel=1e-12)


def test_blocks_in_memory_and_blocks_with_a_graph_have_one_value_and_gradient():
    """Those in memory take value, gradient and factor in one matrix; others the graph, from which this is apart."""
    blocks, y = data()
    held, base = DenseBlocks.of(blocks), 0.2 * torch.eye(20, dtype=DOUBLE)
    live = DenseBlocks(held.matrices.clone().requires_grad_())
    point = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).requires_grad_()
    (value, gradient), (expected, slope) = (
        value_and_gradient(BlockAction(b, base, y, 8.0), point) for b in (held, live)
    )
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-11)
    outside = BlockAction(DenseBlocks(-held.matrices), base, y, 8.0)
    value, gradient = value_and_gradient(outside, torch.zeros(6, dtype=DOUBLE))
    assert value == torch.inf and bool(torch.isfinite(gradient).all())


def test_one_block_is_the_scalar_theory():
    blocks, y = data(num_blocks=1)
    matrix = solve_block_order_parameters(blocks, y, width=7.0, temperature=0.1)
    scalar = solve_order_parameters(blocks[0, 0], y, width=7.0, temperature=0.1)
    torch.testing.assert_close(matrix.order_parameter.flatten(), scalar.order_parameter, rtol=1e-14, atol=0)
    assert matrix.action.item() == pytest.approx(scalar.action.item(), rel=1e-14) and matrix.result is scalar.result
    # The descent, which more blocks need, finds it too.
    action = BlockAction(DenseBlocks.of(blocks), 0.1 * torch.eye(20, dtype=DOUBLE), y, 7.0)
    run = quasi_newton(action, torch.zeros(1, dtype=DOUBLE), action.scale, 7.0)
    torch.testing.assert_close(run.logs.exp(), scalar.order_parameter, rtol=1e-9, atol=0)


def test_the_last_step_of_a_descent_is_taken_and_not_evaluated():
    """A sum of cosh has its minimum at the center; its second derivatives are guessed a thirtieth too high."""
    center, rate = torch.tensor([0.3, -0.7], dtype=DOUBLE), torch.tensor([1.0, 2.0], dtype=DOUBLE)

    def valley(x):
        return ((rate * (x - center)).cosh() / rate.square()).sum()

    start, points = center + torch.tensor([0.05, -0.025], dtype=DOUBLE), []
    run = quasi_newton(lambda x: (points.append(x.detach()), valley(x))[1], start, torch.ones(()), 31.0 / 30.0)
    assert run.converged and float((run.logs - center).abs().max()) < 1e-9
    closest = min(float((x - center).abs().max()) for x in points)  # of the points where it was evaluated
    assert 1e-8 < closest < 1e-6 and float(run.gradient.abs().max()) > 1e-8


def test_a_descent_ends_at_a_minimum_that_is_known_and_only_there():
    """(x^2 - 1)^2 has its minima at 1 and -1."""
    calls = []

    def double_well(point):
        calls.append(point)
        return (point.square() - 1.0).square().sum()

    def descend(start, earlier=()):
        calls.clear()
        run = quasi_newton(double_well, torch.full((1,), start, dtype=DOUBLE), torch.ones(()), 8.0, earlier)
        return run, len(calls)

    first, alone = descend(1.7)
    again, known = descend(1.7, [first])
    assert torch.equal(again.logs, first.logs) and known < alone
    other, _ = descend(-1.7, [first])
    assert bool(other.converged) and other.logs.item() == pytest.approx(-1.0, abs=1e-9)


def test_newtons_descents_do_so_for_each_problem_of_a_batch():
    def double_wells(points):
        return (points.square() - 1.0).square().sum(-1)

    def descend(*starts, earlier=()):
        start, scale = torch.tensor(starts, dtype=DOUBLE).unsqueeze(-1), torch.ones(len(starts), dtype=DOUBLE)
        return minimize(double_wells, start, torch.ones_like(start, dtype=torch.bool), scale, earlier=earlier)

    first = descend(1.7, 1.7)
    second = descend(1.6, -1.6, earlier=[first])
    assert bool(second.converged.all()) and second.logs[0] == first.logs[0]
    assert second.logs[1].item() == pytest.approx(-1.0, abs=1e-9)
    _, agreeing, minima = lowest_minimum([first, second])
    assert agreeing.tolist() == [2, 1] and minima.tolist() == [1, 2]


def test_permuted_and_rotated_blocks_have_permuted_and_rotated_order_parameters():
    blocks, y = data()
    first = solve_block_order_parameters(blocks, y, width=9.0, temperature=0.1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE))[0]
    for turn in (torch.eye(3, dtype=DOUBLE)[[2, 0, 1]], rotation):
        turned = torch.einsum("ac,bd,cdij->abij", turn, turn, blocks)
        second = solve_block_order_parameters(turned, y, width=9.0, temperature=0.1)
        expected = turn @ first.order_parameter @ turn.T
        torch.testing.assert_close(second.order_parameter, expected, rtol=0, atol=1e-8)
        assert second.action.item() == pytest.approx(first.action.item(), rel=1e-12)


def test_separate_blocks_have_separate_order_parameters():
    """Without covariance between blocks E is diagonal, and its entries minimize the action of independent numbers."""
    blocks, y = data()
    separate = torch.zeros_like(blocks)
    for a in range(3):
        separate[a, a] = blocks[a, a]
    solution = solve_block_order_parameters(separate, y, width=6.0, temperature=0.1)
    matrix = solution.order_parameter[0]
    assert float((matrix - torch.diag(matrix.diagonal())).abs().max()) < 1e-8
    found = scipy.optimize.minimize(
        lambda logs: definition(np.diag(np.exp(logs)), separate.numpy(), y.numpy(), 6.0, 0.1),
        np.zeros(3),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 5000},
    )
    np.testing.assert_allclose(matrix.diagonal().numpy(), np.exp(found.x), atol=1e-6)  # the simplex's rounding


def test_a_symmetry_that_the_data_break_is_broken():
    """y lies along x_0 - x_1: the exchange of both blocks is a symmetry of the starts, E_01 < 0 the lower minimum."""
    blocks, _ = data(num_blocks=2)
    both = 0.5 * (blocks + blocks.flip(0, 1))
    y = 3.0 * torch.linalg.eigh(both[0, 0] - both[0, 1]).eigenvectors[:, -1]
    solution = solve_block_order_parameters(blocks, y, width=5.0, temperature=0.1)
    lowest = min((brute_force(blocks, y, 5.0, 0.1, seed) for seed in range(3)), key=lambda found: found[1])
    assert 5.0 * solution.action.item() == pytest.approx(lowest[1], rel=1e-9)


def test_many_widths_and_temperatures_and_a_base():
    blocks, y = data()
    width = torch.tensor([[5.0], [math.inf]], dtype=DOUBLE)
    temperature = torch.tensor([0.1, 0.5], dtype=DOUBLE)
    together = solve_block_order_parameters(blocks, y, width=width, temperature=temperature)
    assert together.order_parameter.shape == (2, 1, 3, 3) and together.action.shape == (2,)
    torch.testing.assert_close(together.order_parameter[1, 0], torch.eye(3, dtype=DOUBLE), rtol=0, atol=0)
    alone = solve_block_order_parameters(blocks, y, width=5.0, temperature=0.1)
    torch.testing.assert_close(together.order_parameter[0], alone.order_parameter, rtol=0, atol=1e-9)
    base = torch.linspace(0.05, 0.2, 20, dtype=DOUBLE)
    diagonal = solve_block_order_parameters(blocks, y, width=5.0, temperature=2.0, base=base)
    dense = solve_block_order_parameters(blocks, y, width=5.0, temperature=1.0, base=torch.diag(2.0 * base))
    torch.testing.assert_close(diagonal.order_parameter, dense.order_parameter, rtol=0, atol=1e-9)
    infinite = solve_block_order_parameters(blocks, y, width=math.inf, temperature=0.5)
    assert infinite.result.name == "infinite_width"
    assert infinite.action.item() == pytest.approx(definition(np.eye(3), blocks.numpy(), y.numpy(), 0.0, 0.5))


def test_coordinates_keep_the_inner_product():
    first, second = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    first, second = first + first.T, second + second.T
    product = to_coordinates(first) @ to_coordinates(second)
    assert product.item() == pytest.approx((first * second).sum().item(), rel=1e-14)
    torch.testing.assert_close(from_coordinates(to_coordinates(first), 4), first, rtol=1e-15, atol=0)


def test_bad_input_is_refused():
    blocks, y = data()
    with pytest.raises(ValueError, match=r"blocks: expected shape \(B, B, P, P\), got \(3, 20, 20\)"):
        solve_block_order_parameters(blocks[0], y, width=5.0, temperature=0.1)
    crooked = blocks.clone()
    crooked[0, 1] *= 2.0
    with pytest.raises(ValueError, match="K_ba to be the transpose of K_ab"):
        solve_block_order_parameters(crooked, y, width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match="targets"):
        solve_block_order_parameters(blocks, y[:5], width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match=r"width: expected shape \(..., 1\), a number for each layer, got \(2,\)"):
        solve_block_order_parameters(blocks, y, width=torch.tensor([5.0, 6.0]), temperature=0.1)
    with pytest.raises(ValueError, match="temperature: expected > 0"):
        solve_block_order_parameters(blocks, y, width=5.0, temperature=0.0)
    with pytest.raises(ValueError, match=r"blocks: expected shape \(B, B, P, P\), got \(0, 0, 20, 20\)"):
        solve_block_order_parameters(blocks[:0, :0], y, width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match="blocks: expected finite values, got 1 NaN"):
        crooked[1, 1, 2, 2] = math.nan
        solve_block_order_parameters(crooked, y, width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match="targets: expected finite values"):
        solve_block_order_parameters(blocks, torch.where(y == y[0], math.nan, y), width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match=r"start: expected shape \(3, 3\), got \(2, 2\)"):
        solve_block_order_parameters(blocks, y, width=5.0, temperature=0.1, start=torch.eye(2))
    for bad in (-torch.eye(3), torch.full((3, 3), math.nan), torch.eye(3) + torch.eye(3).roll(1, 0)):
        with pytest.raises(ValueError, match="start: expected a symmetric positive definite matrix, got"):
            solve_block_order_parameters(blocks, y, width=5.0, temperature=0.1, start=bad)


def test_a_further_start_is_one_more_descent():
    blocks, y = data()
    first = solve_block_order_parameters(blocks, y, width=9.0, temperature=0.1)
    again = solve_block_order_parameters(blocks, y, width=9.0, temperature=0.1, start=first.order_parameter[0])
    assert (first.stats["starts"], again.stats["starts"]) == (4, 5)
    assert again.stats["agreeing_starts"] == first.stats["agreeing_starts"] + 1
    assert again.stats["num_minima"] == first.stats["num_minima"]


def test_a_descent_that_does_not_arrive_says_so(monkeypatch):
    blocks, y = data()
    monkeypatch.setattr("torch_propkernel.actions.local_minimum._MAX_QUASI_NEWTON", 2)
    with pytest.raises(ConvergenceError, match="residual"):
        solve_block_order_parameters(blocks, y, width=5.0, temperature=0.1)
    loose = solve_block_order_parameters(blocks, y, width=5.0, temperature=0.1, throw=False)
    assert loose.result.name == "not_converged"
