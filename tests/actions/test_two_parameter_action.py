"""The action of an activation with a mean: against dense matrices and nested searches."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from torch_propkernel.actions import effective_action
from torch_propkernel.actions.outer_action import OuterAction
from torch_propkernel.actions.stationary_points import find_stationary_points, global_minimum
from torch_propkernel.actions.two_parameter_action import TwoParameterAction
from torch_propkernel.spectra.spectrum import Spectrum


def problem(rng, size=12, width=7.0, temperature=0.1, label=2.0, mean=1.0):
    factor = rng.normal(size=(size, size + 3)) / np.sqrt(size)
    y = label * rng.normal(size=size)
    return factor @ factor.T, mean * (1 + 0.3 * rng.normal(size=size)), y, width, temperature


def action_of(D, w, y, width, T, base=None):
    base = None if base is None else torch.as_tensor(base)
    spectrum = Spectrum.from_kernel(torch.as_tensor(D), torch.as_tensor(y), base=base, eigenvectors=True)
    return TwoParameterAction.from_spectrum(spectrum, torch.as_tensor(w), torch.as_tensor(width), T), spectrum


CASES = [
    {},
    {"size": 30, "width": 5.0},
    {"size": 3, "width": 100.0},
    {"temperature": 1e-4, "label": 5.0},
    {"temperature": 3.0, "label": 0.1},
    {"mean": 5.0},
    {"width": 1.5, "mean": 3.0},
]


@pytest.mark.parametrize("options", CASES)
def test_values_and_slopes_are_those_of_dense_matrices(rng, options):
    D, w, y, width, T = problem(rng, **options)
    action, _ = action_of(D, w, y, width, T)
    q = np.exp(rng.uniform(-2, 2, size=5))
    value, slope, t = (v.numpy() for v in action.evaluate(torch.as_tensor(q)))
    for i in range(5):
        s = 1 / t[i] - 1
        dense = reference.two_parameter_action(q[i], s, D, w, y, width, T)
        assert value[i] == pytest.approx(dense, rel=1e-9, abs=1e-9)
        # the maximum over s: no higher value beside it, to the width of the parabola
        for factor in (0.999, 1.001):
            assert reference.two_parameter_action(q[i], factor * (1 + s) - 1, D, w, y, width, T) < dense + 1e-12

        def at(u, s=s):
            return reference.two_parameter_action(np.exp(u), s, D, w, y, width, T)

        u, h = np.log(q[i]), 1e-5
        assert slope[i] == pytest.approx((at(u + h) - at(u - h)) / (2 * h), rel=1e-5, abs=1e-6)  # differences


@pytest.mark.parametrize("options", CASES)
def test_saddle_is_that_of_nested_searches(rng, options):
    D, w, y, width, T = problem(rng, **options)
    saddle = action_of(D, w, y, width, T)[0].solve()
    q, s, S = reference.two_parameter_saddle(D, w, y, width, T)
    assert saddle.action.item() == pytest.approx(S, rel=1e-9, abs=1e-9)
    assert saddle.order_parameter.item() == pytest.approx(q, rel=1e-5)  # a flat minimum of values good to 1e-12
    assert 1 / saddle.mean_scale.item() - 1 == pytest.approx(s, rel=1e-5, abs=1e-5)
    assert abs(saddle.slope.item()) < 1e-10
    assert saddle.curvature.item() > 0


@pytest.mark.parametrize("options", CASES)
def test_derivative_of_the_slope(rng, options):
    D, w, y, width, T = problem(rng, **options)
    action, _ = action_of(D, w, y, width, T)
    u, h = torch.as_tensor(rng.uniform(-2, 2, size=5)), 1e-3
    slope, steepness, size = action.slope_terms(u.exp())
    torch.testing.assert_close(slope, action.evaluate(u.exp())[1], rtol=0, atol=0)
    assert bool((size >= slope.abs()).all())
    at = [action.slope_terms((u + shift * h).exp())[0] for shift in (-2, -1, 1, 2)]
    difference = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
    # fourth-order differences: truncation h^4 = 1e-12, rounding of the slope's terms over h
    assert bool(((steepness - difference).abs() <= 1e-9 * (steepness.abs() + size)).all())


@pytest.mark.parametrize("seed", range(20))
def test_exactly_one_positive_root_in_the_mean_scale(seed):
    rng = np.random.default_rng(seed)
    D, w, y, width, T = problem(rng, int(rng.integers(1, 20)), *np.exp(rng.uniform([0.1, -6, -3, -3], [5, 1, 3, 3])))
    action, _ = action_of(D, w, y, width, T)
    q = torch.as_tensor(np.exp(rng.uniform(-4, 4, size=50)))
    _, g, h = (v.numpy() for v in action._terms(q))
    t = action.mean_scale(q).numpy()
    for i, q_i in enumerate(q.numpy()):
        cubic = [
            g[i] ** 2 * (1 - 1 / width),
            2 * g[i] - q_i * g[i] ** 2 + (h[i] ** 2 - g[i]) / width,
            1 - 2 * q_i * g[i],
            -q_i,
        ]
        roots = np.roots(cubic)
        real = roots[(np.abs(roots.imag) < 1e-6 * np.abs(roots)) & (roots.real > 0)].real
        assert len(real) == 1
        assert t[i] == pytest.approx(real[0], rel=1e-6)  # np.roots of a badly scaled cubic


def test_all_stationary_points_lie_in_the_bracket(rng):
    for options in CASES:
        action, _ = action_of(*problem(rng, **options))
        low, high = (float(v) for v in action.bracket())
        below = action.evaluate(torch.logspace(np.log10(low) - 6, np.log10(low), 100, dtype=torch.float64))[1]
        above = action.evaluate(torch.logspace(np.log10(high), np.log10(high) + 6, 100, dtype=torch.float64))[1]
        assert bool((below < 1e-12).all()) and bool((above > -1e-12).all())


def test_several_minima_are_counted_and_the_lowest_one_is_returned():
    """The first-order transition of section 1 (no mean): minima at 0.0104 and 72.0, the latter global."""
    p = reference.FIRST_ORDER_TRANSITION
    action, _ = action_of(np.diag(p.k), np.zeros(len(p.k)), p.z, p.widths[0], p.temperature)
    saddle = action.solve()
    assert int(saddle.num_minima) == 2
    assert saddle.order_parameter.item() == pytest.approx(72.0, abs=0.05)
    assert 0 < saddle.gap.item() < np.inf


def test_without_a_mean_it_is_the_one_parameter_action_minus_one(rng):
    D, w, y, width, T = problem(rng)
    action, spectrum = action_of(D, 0 * w, y, width, T)
    saddle = action.solve()
    one, shape = OuterAction.of(spectrum, width, T)
    points = find_stationary_points(one)
    u, column = global_minimum(points)
    assert saddle.order_parameter.item() == pytest.approx(float(u.exp()), rel=1e-11)
    assert saddle.mean_scale.item() == pytest.approx(saddle.order_parameter.item(), rel=1e-12)
    q = saddle.order_parameter
    S = float(effective_action(spectrum, q.reshape(1), width, T))
    assert saddle.action.item() == pytest.approx(S - 1, rel=1e-12)


def test_noise_that_differs_between_points(rng):
    D, w, y, width, _ = problem(rng)
    noise = rng.uniform(0.05, 0.5, size=len(y))
    saddle = action_of(D, w, y, width, 1.0, base=noise)[0].solve()
    q, t = saddle.order_parameter.item(), saddle.mean_scale.item()
    A = np.diag(noise) + q * D + t * np.outer(w, w)
    S = -q * (1 / t - 1) - np.log(t) + (np.linalg.slogdet(A)[1] + y @ np.linalg.solve(A, y)) / width
    assert saddle.action.item() == pytest.approx(S, rel=1e-10)
    root = np.sqrt(noise)
    whitened = reference.two_parameter_saddle(D / np.outer(root, root), w / root, y / root, width, 1.0)
    assert q == pytest.approx(whitened[0], rel=1e-5)


def test_batches_are_solved_one_by_one(rng):
    problems = [problem(rng, width=4.0 + i) for i in range(3)]
    D, w, y, width, T = (np.stack([np.asarray(p[i]) for p in problems]) for i in range(5))
    spectrum = Spectrum.from_kernel(torch.as_tensor(D), torch.as_tensor(y), eigenvectors=True)
    action = TwoParameterAction.from_spectrum(spectrum, torch.as_tensor(w), torch.as_tensor(width), torch.as_tensor(T))
    together = action.solve()
    for i, p in enumerate(problems):
        alone, _ = action_of(*p)
        assert together.order_parameter[i].item() == pytest.approx(alone.solve().order_parameter.item(), rel=1e-11)


@pytest.mark.parametrize(
    ("width", "temperature", "match"),
    [(1.0, 0.1, "width: expected finite"), (np.inf, 0.1, "width: expected finite"), (5.0, 0.0, "temperature")],
)
def test_bad_problems_are_refused(rng, width, temperature, match):
    D, w, y, _, _ = problem(rng)
    with pytest.raises(ValueError, match=match):
        action_of(D, w, y, width, temperature)
