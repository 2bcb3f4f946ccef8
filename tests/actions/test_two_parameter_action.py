"""The action of an activation with a mean: against dense matrices, nested searches and integrals over v itself."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from scipy import special

from torch_propkernel.actions import effective_action
from torch_propkernel.actions.outer_action import OuterAction
from torch_propkernel.actions.stationary_points import find_stationary_points, global_minimum
from torch_propkernel.actions.two_parameter_action import TwoParameterAction
from torch_propkernel.mixing import GammaMixing
from torch_propkernel.mixing.scale_integral import integrate_scale
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
    together, moments = action.solve(), action.mean_moments(torch.ones(3, 2, dtype=torch.float64))
    for i, p in enumerate(problems):
        alone, _ = action_of(*p)
        assert together.order_parameter[i].item() == pytest.approx(alone.solve().order_parameter.item(), rel=1e-11)
        for all_of, own in zip(moments, alone.mean_moments(torch.ones(2, dtype=torch.float64)), strict=True):
            np.testing.assert_allclose(all_of[i], own, rtol=1e-9)  # the grid of the worst member serves all


@pytest.mark.parametrize("options", [{}, {"width": 2.0}, {"width": 2.5, "mean": 4.0}, {"width": 300.0}])
def test_integral_over_the_coefficient(rng, options):
    """E_x exp(h sqrt(Nq) x - g N q x^2/2), x = one component of a uniform direction: Gauss-Jacobi quadrature."""
    D, w, y, width, T = problem(rng, **options)
    action, _ = action_of(D, w, y, width, T)
    for q in (0.3, 1.0, 4.0):
        A = T * np.eye(len(y)) + q * D
        g, h = w @ np.linalg.solve(A, w), w @ np.linalg.solve(A, y)
        power = (width - 3) / 2
        x, weight = special.roots_jacobi(400, power, power)
        exponent = h * np.sqrt(width * q) * x - 0.5 * g * width * q * x**2
        peak = exponent.max()
        tilted = weight / weight.sum() * np.exp(exponent - peak)
        gamma = np.sqrt(width * q) * x
        mean = tilted @ gamma / tilted.sum()
        variance = tilted @ (gamma - mean) ** 2 / tilted.sum()
        log, got_mean, got_variance = (v.item() for v in action.mean_moments(torch.tensor([q], dtype=torch.float64)))
        assert log == pytest.approx(np.log(tilted.sum()) + peak, rel=1e-10, abs=1e-10)
        assert got_mean == pytest.approx(mean, rel=1e-9)
        assert got_variance == pytest.approx(variance, rel=1e-9)


def test_law_of_q_and_the_coefficient_by_drawing_readouts(rng):
    """sqrt(lambda) c and lambda |v|^2/N of drawn readouts v: the evidence of one datum is an average over them."""
    N, draws = 5, 400_000
    v = rng.normal(size=(draws, N))
    gamma, q = v.sum(1) / np.sqrt(N), (v**2).mean(1)
    D, w, y, T = 0.7, 1.3, 2.0, 0.2
    variance = T + q * D
    density = np.exp(-((y - gamma * w) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    action, spectrum = action_of(np.array([[D]]), np.array([w]), np.array([y]), float(N), T)
    law = GammaMixing(torch.tensor(float(N), dtype=torch.float64))
    posterior = integrate_scale(
        spectrum,
        lambda u: law.log_density(u) + action.mean_moments(u.exp())[0],
        law.log_interval(),
        action.temperature,
    )
    error = density.std() / np.sqrt(draws)
    assert abs(posterior.log_evidence.exp().item() - density.mean()) < 4 * error
    spread = np.std(density * (q - (density * q).mean() / density.mean())) / np.sqrt(draws) / density.mean()
    assert abs(posterior.mean.item() - (density * q).mean() / density.mean()) < 4 * spread


@pytest.mark.parametrize(
    ("width", "temperature", "match"),
    [(1.0, 0.1, "width: expected finite"), (np.inf, 0.1, "width: expected finite"), (5.0, 0.0, "temperature")],
)
def test_bad_problems_are_refused(rng, width, temperature, match):
    D, w, y, _, _ = problem(rng)
    with pytest.raises(ValueError, match=match):
        action_of(D, w, y, width, temperature)
