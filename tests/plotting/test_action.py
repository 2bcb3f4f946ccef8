"""The landscape shows the action of the theory and all of its stationary points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import action_spectrum

from torch_propkernel import Spectrum, solve_order_parameters
from torch_propkernel.plotting import plot_action

pytest.importorskip("matplotlib")


def spectrum(k, z):
    return Spectrum.from_eigenvalues(torch.tensor(k, dtype=torch.float64), torch.tensor(z, dtype=torch.float64))


def test_curve_is_the_action_above_its_minimum():
    k, z = np.array([0.1, 0.5, 2.0, 7.0]), np.array([1.0, -2.0, 0.5, 3.0])
    width, temperature = 3.0, 0.2
    ax = plot_action(spectrum(k, z), width, temperature)
    r, s = (np.asarray(values) for values in ax.lines[0].get_data())
    truth = np.array([action_spectrum([q], k, z, [width], temperature) for q in r])
    # The grid's own minimum lies above the exact one by the square of its spacing, 7e-3 in log q.
    np.testing.assert_allclose(s - s.min(), truth - truth.min(), atol=1e-12)
    assert 0 <= s.min() < 1e-4
    solution = solve_order_parameters(spectrum(k, z), width=width, temperature=temperature)
    best = next(line for line in ax.lines if line.get_label() == "global minimum")
    assert best.get_xdata()[0] == pytest.approx(solution.order_parameter.item(), rel=1e-9)
    assert len(ax.lines) == 3


def test_every_stationary_point_is_marked():
    # THEORY.md, section 4: minima at q = 1.036 and 80.5, a maximum at 38.6, r = q^2.
    ax = plot_action(spectrum([1e-4], [math.sqrt(2e4)]), [60.0, 60.0], 1.0)
    at = {line.get_label(): float(line.get_xdata()[0]) ** 0.5 for line in ax.lines[2:]}
    assert at == {
        "global minimum": pytest.approx(1.0357, abs=1e-4),
        "other minimum": pytest.approx(80.54, abs=1e-2),
        "maximum": pytest.approx(38.56, abs=1e-2),
    }
    heights = {line.get_label(): float(line.get_ydata()[0]) for line in ax.lines[2:]}
    assert 0.0 == heights["global minimum"] < heights["other minimum"] < heights["maximum"] < ax.get_ylim()[1]


def test_infinite_width_and_batches_are_refused():
    with pytest.raises(ValueError, match="width: expected finite"):
        plot_action(spectrum([1.0], [1.0]), math.inf, 0.1)
    with pytest.raises(ValueError, match="expected one problem, got a batch of shape"):
        plot_action(spectrum([[1.0], [2.0]], [[1.0], [1.0]]), 10.0, 0.1)
