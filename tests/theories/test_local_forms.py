"""Compositions of several order parameters: kept layers, minima against brute force, and the work that they take."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from reference import DUALS, action_dense, input_covariance, renormalized_kernel

from torch_propkernel import Erf, ReLU
from torch_propkernel.actions import local_minimum
from torch_propkernel.actions.local_minimum import LocalMinimum, quasi_newton
from torch_propkernel.inference import Problem
from torch_propkernel.theories import solve_local
from torch_propkernel.theories.solve import solve_problem

BOTH = pytest.mark.parametrize("composition", ["nested", "linear_part"])


def data(rows: int, size: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 5)), size * rng.normal(size=rows)


@BOTH
@pytest.mark.parametrize("activation", [Erf(), ReLU()])
def test_what_is_kept_changes_no_covariance(make_model, composition, activation):
    x, y = data(9, 1.0)
    precisions, biases = [1.5, 0.7, 2.0, 1.2], [0.3, 0.1, 0.0]
    model = make_model(x, y, activation, [20, 30, 40], 0.1, precisions, biases, composition)
    kept = Problem.of(model).remembering()
    C = input_covariance(x, x, precisions, biases)
    expected = renormalized_kernel(C, DUALS[type(activation).__name__.lower()], precisions, biases, composition)
    for q in ([1.0, 1.0, 1.0], [0.2, 3.0, 1.5], [2.0, 0.5, 0.1]):
        found = kept.covariance(torch.tensor(q, dtype=torch.float64)).detach().numpy()
        np.testing.assert_allclose(found, expected(q), rtol=1e-12, atol=1e-14)
    assert len(kept.network._prepared) == 1 and Problem.of(model).network._prepared is None


def test_other_points_are_not_taken_for_kept_ones(make_model):
    x, y = data(9, 1.0)
    problem = Problem.of(make_model(x, y, Erf(), [20, 30], 0.1, composition="nested"))
    kept, q = problem.remembering(), torch.tensor([0.5, 2.0], dtype=torch.float64)
    for rows in (None, 4, 7, None):
        assert torch.allclose(kept.covariance(q, rows), problem.covariance(q, rows), rtol=1e-13)


@BOTH
@pytest.mark.parametrize("size, widths", [(0.3, [30, 20]), (3.0, [30, 20]), (8.0, [6, 60]), (2.0, [60, 6])])
def test_the_lowest_minimum_of_a_grid(make_model, composition, size, widths):
    """A scan of the dense action over log q, refined from its lowest point."""
    x, y = data(14, size)
    model = make_model(x, y, Erf(), widths, 0.05, [1.0, 1.0, 1.0], [0.2, 0.2], composition)
    solution = solve_problem(Problem.of(model))
    C = input_covariance(x, x, [1.0] * 3, [0.2, 0.2])
    kernel = renormalized_kernel(C, DUALS["erf"], [1.0] * 3, [0.2, 0.2], composition)

    def action(logs):
        return action_dense(np.exp(logs), kernel(np.exp(logs)), y, widths, 0.05)

    grid = list(itertools.product(np.arange(-3.0, 4.0, 0.35), repeat=2))
    start = grid[int(np.argmin([action(logs) for logs in grid]))]
    truth = scipy.optimize.minimize(action, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-13})
    assert float(solution.action.detach()) == pytest.approx(truth.fun, rel=1e-11)
    # a search by values that are known to 1e-15 places its argument to about 1e-7
    np.testing.assert_allclose(solution.order_parameter.detach().log().numpy(), truth.x, atol=1e-6)


@BOTH
def test_layers_of_infinite_width_stay_at_one(make_model, composition):
    x, y = data(14, 3.0)
    model = make_model(x, y, Erf(), [math.inf, 20], 0.05, [1.0] * 3, [0.2, 0.2], composition)
    solution = solve_problem(Problem.of(model))
    assert solution.order_parameter[0] == 1.0
    C = input_covariance(x, x, [1.0] * 3, [0.2, 0.2])
    kernel = renormalized_kernel(C, DUALS["erf"], [1.0] * 3, [0.2, 0.2], composition)
    values = [
        q - math.log(q) + action_dense([1.0], kernel([1.0, q]), y, [20], 0.05) - 1.0
        for q in np.geomspace(0.1, 20, 4001)
    ]
    assert float(solution.action.detach()) <= min(values) + 1e-9
    assert float(solution.action.detach()) == pytest.approx(min(values), abs=1e-4)  # the grid's step


@BOTH
def test_a_batch_has_what_its_elements_have(make_model, composition):
    """Newton's method with differences of gradients for a batch, BFGS for one problem: two ways to one minimum."""
    ys = [data(14, size, seed=1)[1] for size in (0.5, 4.0)]
    x = data(14, 1.0)[0]
    options = Erf(), [30, 20], 0.05, [1.0] * 3, [0.2, 0.2], composition
    single = [solve_problem(Problem.of(make_model(x, y, *options))).order_parameter for y in ys]
    batch = make_model(np.stack([x, x]), np.stack(ys), *options)
    found = solve_problem(Problem.of(batch)).order_parameter
    assert torch.allclose(found, torch.stack(single), rtol=1e-8)


@BOTH
@pytest.mark.parametrize("activation", [Erf(), ReLU()])
def test_work(make_model, monkeypatch, composition, activation):
    """Four starts take about one gradient for each of 20 steps, and the first layers' kernels are computed once."""
    calls = itertools.count()
    original = solve_local.log_det_and_square
    monkeypatch.setattr(solve_local, "log_det_and_square", lambda *args: (next(calls), original(*args))[1])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 20))
    y = 1.5 * np.tanh(x[:, 0] * x[:, 1]) + 0.1 * rng.normal(size=80)
    model = make_model(x, y, activation, [100, 100], 0.05, [1.0] * 3, [0.5, 0.5], composition)
    solution = solve_problem(Problem.of(model))
    assert solution.stats["starts"] == 4 and solution.result.name == "local_minimum"
    assert next(calls) <= 28


def test_a_descent_ends_early_only_where_the_quadratic_form_holds():
    """Two wells a distance of 0.4 apart: the gradient in the second is not that of the first one's form."""

    def wells(logs):
        return (logs.square().sum(-1) - 0.04) ** 2 * 1e3 + 0.5 * logs[..., 0]

    starts = torch.tensor([[-0.25], [0.25]], dtype=torch.float64)
    scale = torch.ones((), dtype=torch.float64)
    first = quasi_newton(wells, starts[0], scale, 100.0)
    second = quasi_newton(wells, starts[1], scale, 100.0, [first])
    assert first.logs < -0.15 and second.logs > 0.15 and bool(first.converged & second.converged)
    near = LocalMinimum(*(getattr(first, name) for name in ("logs", "value", "gradient", "hessian", "converged")), 0)
    again = quasi_newton(wells, first.logs + 1e-2, scale, 100.0, [near])
    assert torch.equal(again.logs, first.logs) and again.iterations == 0
    assert local_minimum._REACH > 0.4


@pytest.mark.parametrize("phase", range(20))
@pytest.mark.parametrize("error", [1e-12, 2e-6], ids=["rounding", "cold"])
def test_a_descent_ends_where_values_are_coarse(error, phase):
    """Exact gradients and values with an error of ten last digits, or as a cold, ill-conditioned covariance has it."""
    gradients = itertools.count()

    def action(logs):
        next(gradients)
        value = 433.0 + 50.0 * (torch.cosh(logs - 0.3).sum(-1) + 0.2 * logs[..., 0] * logs[..., 1])
        return value + error * torch.sin(1e9 * logs.detach().sum(-1) + phase)

    scale = torch.tensor(10.0, dtype=torch.float64)
    run = quasi_newton(action, torch.tensor([1.5, -1.0], dtype=torch.float64), scale, 50.0)
    assert bool(run.converged) and next(gradients) <= 25


def sizes_of_covariances(monkeypatch):
    sizes: list[int] = []
    original = solve_local.log_det_and_square
    monkeypatch.setattr(solve_local, "log_det_and_square", lambda A, y: (sizes.append(A.shape[-1]), original(A, y))[1])
    return sizes


@BOTH
def test_many_points(make_model, monkeypatch, composition):
    """The starts descend on a quarter of the points; the minimum is that of the dense action of all."""
    sizes = sizes_of_covariances(monkeypatch)
    x, noise = data(260, 0.1)
    y, widths = 1.5 * np.tanh(x[:, 0] * x[:, 1]) + noise, [40, 60]
    solution = solve_problem(Problem.of(make_model(x, y, Erf(), widths, 0.05, [1.0] * 3, [0.2, 0.2], composition)))
    assert set(sizes) == {65, 260} and sizes.count(260) <= 8
    assert solution.stats["rows"] == 65 and solution.stats["starts"] == solution.stats["agreeing_starts"] == 4
    kernel = renormalized_kernel(
        input_covariance(x, x, [1.0] * 3, [0.2, 0.2]), DUALS["erf"], [1.0] * 3, [0.2, 0.2], composition
    )
    found = solution.order_parameter.detach().numpy()
    truth = scipy.optimize.minimize(
        lambda logs: action_dense(np.exp(logs), kernel(np.exp(logs)), y, widths, 0.05),
        np.log(found) + 0.1,
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-13},
    )
    # a search by values that are known to 1e-15 places its argument to about 1e-7
    np.testing.assert_allclose(np.log(found), truth.x, atol=1e-6)


def test_a_quarter_that_misleads(make_model, monkeypatch):
    """Labels along one weak eigenvector, which no quarter of the rows has: its minimum leads to the higher of two."""
    x = torch.randn(256, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).numpy()
    given = input_covariance(x, x, [1.0] * 3, [0.1, 0.1]), DUALS["erf"], [1.0] * 3, [0.1, 0.1]
    y = 18.0 * np.linalg.eigh(renormalized_kernel(*given, "outer")([1.0, 1.0]))[1][:, 100]
    problem = Problem.of(make_model(x, y, Erf(), [5, 5], 0.3, [1.0] * 3, [0.1, 0.1], "linear_part"))
    solution = solve_problem(problem)
    kernel = renormalized_kernel(*given, "linear_part")
    grid = itertools.product(np.arange(-1.5, 3.5, 0.25), np.arange(-3.0, 3.5, 0.5))
    lowest = min(action_dense(np.exp(logs), kernel(np.exp(logs)), y, [5, 5], 0.3) for logs in grid)
    assert float(solution.action.detach()) < lowest + 1e-9
    assert solution.stats["num_minima"] == 2 and solution.stats["starts"] > 4
    monkeypatch.setattr(solve_local, "_agree", lambda few, whole: True)
    assert float(solve_problem(problem).action.detach()) > lowest + 1.0  # what the quarter alone leads to


@BOTH
def test_nothing_moves_where_all_widths_are_infinite(make_model, composition):
    x, y = data(14, 3.0)
    model = make_model(x, y, Erf(), [math.inf, math.inf], 0.05, [1.0] * 3, [0.2, 0.2], composition)
    solution = solve_problem(Problem.of(model))
    assert solution.result.name == "infinite_width" and solution.order_parameter.tolist() == [1.0, 1.0]


def test_a_thinned_problem_keeps_alpha(make_model):
    x, y = data(40, 1.0)
    problem = Problem.of(make_model(x, y, Erf(), [30, math.inf], 0.05, composition="nested"))
    few = problem.thinned(10)
    assert few.layers.width.tolist() == [7.5, math.inf] and few.num_data == 10
    rows = [int(np.flatnonzero((x == row).all(-1))[0]) for row in few.inputs.numpy()]
    assert len(set(rows)) == 10 and few.targets.tolist() == y[rows].tolist()
    whole = problem.unit_covariance.detach()
    torch.testing.assert_close(few.unit_covariance.detach(), whole[rows][:, rows], rtol=1e-13, atol=1e-15)
    assert problem.layers.width.tolist() == [30.0, math.inf]
