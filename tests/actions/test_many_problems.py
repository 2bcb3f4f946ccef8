"""Hundreds of problems on one spectrum: their sums are interpolated, and the answers are those of each by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from reference import FIRST_ORDER_TRANSITION, TWO_LAYER_TRANSITION, action_scale, brute_force_minimum, hard_spectra

from torch_propkernel import Spectrum, solve_order_parameters
from torch_propkernel.actions.outer_action import OuterAction
from torch_propkernel.actions.tabulated_action import SumsTable, TabulatedAction

DOUBLE = torch.float64
HARD = [p for p in itertools.islice(hard_spectra(np.random.default_rng(5), 60), 2, None) if p.z.any()]


def around(p, widths=40, temperatures=25):
    """Widths and temperatures around those of a problem, ``40 x 1 x L`` and ``25``."""
    factor = torch.logspace(-0.3, 0.3, widths, dtype=DOUBLE)
    width = factor[:, None, None] * torch.tensor(p.widths, dtype=DOUBLE)
    return width, p.temperature * torch.logspace(-0.5, 0.5, temperatures, dtype=DOUBLE)


def spectrum_of(p):
    return Spectrum.from_eigenvalues(torch.as_tensor(p.k), torch.as_tensor(p.z))


@pytest.mark.parametrize("p", [FIRST_ORDER_TRANSITION, TWO_LAYER_TRANSITION, *HARD[::7]])
def test_against_brute_force(p):
    """All stationary points of problems drawn from a sweep across transitions, and the lowest minimum."""
    width, temperature = around(p)
    found = solve_order_parameters(spectrum_of(p), width=width, temperature=temperature)
    several = torch.isfinite(found.stationary_points).sum(-1)
    rng = np.random.default_rng(0)
    for i, j in zip(rng.integers(40, size=6), rng.integers(25, size=6), strict=True):
        own, T = width[i, 0].tolist(), float(temperature[j])
        truth = brute_force_minimum(p.k, p.z, own, T)
        q = found.order_parameter[i, j].numpy()
        # S is flat there: the difference is second order in that of q
        scale = action_scale(truth.order_parameter, p.k, p.z, own, T)
        assert abs(float(found.action[i, j]) - truth.action) < 1e-12 * scale
        if found.stats["gap"][i, j] > 1e-9 * scale:  # else another minimum is as good
            np.testing.assert_allclose(q, truth.order_parameter, rtol=1e-8)  # bracketing of a slope's rounding
        assert int(several[i, j]) == len(truth.stationary_products)
        points = found.stationary_points[i, j, : int(several[i, j])].numpy()
        np.testing.assert_allclose(points, truth.stationary_products, rtol=1e-7)  # maxima are shallower


def test_transitions_are_in_the_sweep():
    """The cases above hold problems of one minimum and of two."""
    for p in (FIRST_ORDER_TRANSITION, TWO_LAYER_TRANSITION):
        width, temperature = around(p)
        minima = solve_order_parameters(spectrum_of(p), width=width, temperature=temperature).stats["num_minima"]
        assert set(minima.flatten().tolist()) == {1, 2}


@pytest.mark.parametrize("p", HARD[::5])
def test_few_at_a_time_agree(p):
    """A part of the problems takes exact sums over the spectrum."""
    spectrum = spectrum_of(p)
    width, temperature = around(p)
    together = solve_order_parameters(spectrum, width=width, temperature=temperature)
    action, shape = OuterAction.of(spectrum, width[::8], temperature[::6])
    assert SumsTable(action, *action.bracket()).windows is None
    apart = solve_order_parameters(spectrum, width=width[::8], temperature=temperature[::6])
    torch.testing.assert_close(together.stats["num_minima"][::8, ::6], apart.stats["num_minima"])
    sharp = apart.stats["gap"] > 1e-9 * (1.0 + apart.action.abs())
    some = together.order_parameter[::8, ::6]
    # the rounding of the slope over its curvature, which is small near a transition
    torch.testing.assert_close(some[sharp], apart.order_parameter[sharp], rtol=1e-9, atol=0)
    torch.testing.assert_close(together.action[::8, ::6], apart.action, rtol=1e-12, atol=1e-12)


def test_the_slope_vanishes_in_dense_arithmetic():
    """N (q - 1) + tr A^{-1} q K - y^T A^{-1} q K A^{-1} y = 0, without projections on eigenvectors."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 30, dtype=DOUBLE, generator=generator), torch.randn(60, dtype=DOUBLE, generator=generator)
    matrix = x @ x.mT / 30 + 1e-3 * torch.eye(60, dtype=DOUBLE)  # eigenvalues from 1e-3 to 5
    spectrum = Spectrum.from_kernel(matrix, y)
    width = torch.logspace(0, 4, 50, dtype=DOUBLE).reshape(-1, 1, 1)
    temperature = torch.logspace(-2, 1, 30, dtype=DOUBLE)
    solution = solve_order_parameters(spectrum, width=width, temperature=temperature)
    assert not spectrum.is_projected
    q = solution.order_parameter.squeeze(-1)
    eye = torch.eye(60, dtype=DOUBLE)
    scaled = q[..., None, None] * matrix
    dense = temperature[:, None, None] * eye + scaled
    ratio, weights = torch.linalg.solve(dense, scaled), torch.linalg.solve(dense, y)
    trace, label = (
        ratio.diagonal(dim1=-2, dim2=-1).sum(-1),
        ((scaled @ weights.unsqueeze(-1)).squeeze(-1) * weights).sum(-1),
    )
    slope = width[..., 0] * (q - 1) + trace - label
    # solves with condition numbers up to 1e6, of eigenvalues to 1e-12
    assert (slope.abs() <= 1e-10 * (60 + width[..., 0] * (1 + q) + label)).all()


def test_interpolation_is_exact_to_rounding():
    """Sums over eigenvalues from 1e-12 to 1e3 and counts beside them, at points between those of the lattice."""
    generator = torch.Generator().manual_seed(1)
    k = torch.logspace(-12, 3, 80, dtype=DOUBLE)
    z = torch.randn(80, dtype=DOUBLE, generator=generator)
    counts = 1.0 + torch.rand(80, dtype=DOUBLE, generator=generator)
    spectrum = Spectrum.from_eigenvalues(k, z, counts)
    action, _ = OuterAction.of(spectrum, torch.full((600, 1), 20.0), 1e-2)
    low, high = action.bracket()
    tabulated = TabulatedAction(action, SumsTable(action, low, high))
    u = torch.linspace(float(low[0]), float(high[0]), 600, dtype=DOUBLE)
    x = u.exp().unsqueeze(-1) * k / 1e-2
    filled, label = counts * x / (1 + x), z**2 * x / (1 + x) ** 2 / 1e-2
    size = filled.sum(-1) + label.sum(-1)  # of the terms whose difference g is
    g, slope = tabulated.data_terms(u)
    assert ((g - filled.sum(-1) + label.sum(-1)).abs() < 1e-14 * size).all()
    bent = (filled / (1 + x)).sum(-1) - (label * (1 - x) / (1 + x)).sum(-1)
    assert ((slope - bent).abs() < 1e-14 * size).all()
    data = (counts * (1e-2 * (1 + x)).log()).sum(-1) + (z**2 / (1e-2 * (1 + x))).sum(-1)
    torch.testing.assert_close(tabulated.data_action(u), data, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="table: expected one that interpolates"):
        few = action.select(torch.arange(3))
        TabulatedAction(few, SumsTable(few, low[:3], high[:3]))
