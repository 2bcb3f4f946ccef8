"""Learning curve, map, calibration and intervals: what they draw and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from torch_propkernel.plotting import plot_calibration, plot_intervals, plot_learning_curve, plot_map
from torch_propkernel.theories import LearningCurve

matplotlib = pytest.importorskip("matplotlib")


def line(ax, label):
    return next(item for item in ax.lines if item.get_label() == label)


def test_learning_curve_is_sorted_and_averaged_over_the_subsets():
    values = torch.tensor([[1.0, 3.0], [0.2, 0.4]])  # two subsets for P = 40, two for P = 10
    curve = LearningCurve(torch.tensor([40, 10]), values[..., None], values, 2 * values, values, 4 * values)
    ax = plot_learning_curve(curve, target="kg")
    assert list(line(ax, "finite width: total").get_xdata()) == [10, 40]
    assert list(line(ax, "finite width: total").get_ydata()) == pytest.approx([0.9, 6.0])
    assert list(line(ax, "finite width: bias").get_ydata()) == pytest.approx([0.3, 2.0])
    assert list(line(ax, "infinite width: total").get_ydata()) == pytest.approx([1.5, 10.0])
    assert len(ax.collections) == 4  # a band of standard errors for each line
    band = ax.collections[1].get_paths()[0].vertices[:, 1]  # of the bias: 2 +- 1 at P = 40
    assert (band.min(), band.max()) == pytest.approx((0.2, 3.0))


def test_one_subset_has_no_band():
    one = torch.ones(2, 1)
    ax = plot_learning_curve(LearningCurve(torch.tensor([1, 2]), one[..., None], one, one, one, one))
    assert not ax.collections


def test_map_frames_the_best_cell():
    values = torch.tensor([[3.0, 1.0], [2.0, math.nan], [5.0, 4.0]])
    for best, corner in (("min", (0, 1)), ("max", (2, 0))):
        ax = plot_map([10, 50, math.inf], [0.1, 1.0], values, label="error", best=best)
        (frame,) = ax.patches
        assert frame.get_xy() == corner
    assert [text.get_text() for text in ax.texts] == ["3", "2", "5", "1", "4"]  # row by row, NaN left empty
    assert not plot_map([10, 50, math.inf], [0.1, 1.0], values, best=None).patches
    with pytest.raises(ValueError, match=r"values: expected shape \(3, 2\), got \(2, 3\)"):
        plot_map([10, 50, math.inf], [0.1, 1.0], values.T)
    with pytest.raises(ValueError, match="best: expected 'min', 'max' or None, got 'low'"):
        plot_map([10, 50, math.inf], [0.1, 1.0], values, best="low")


def test_calibration_is_the_coverage_of_central_intervals():
    ax = plot_calibration({"ours": torch.tensor([0.5, 0.3, 0.9, 0.99])}, num_levels=10)
    # Distances from the median, doubled: 0, 0.4, 0.8, 0.98.
    expected = [0.25] * 4 + [0.5] * 4 + [0.75] * 2 + [1.0]
    assert list(line(ax, "ours").get_ydata()) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"probabilities\['bad'\]: expected values in \[0, 1\], got 0.5 to 1.5"):
        plot_calibration({"bad": torch.tensor([0.5, 1.5])})
    with pytest.raises(ValueError, match="expected at least one set"):
        plot_calibration({})


def test_intervals_are_drawn_in_the_order_of_the_inputs():
    x = torch.tensor([[2.0], [0.0], [1.0]])
    mean = x.squeeze(-1)
    ax = plot_intervals(x, {"a": (mean, mean - 1, mean + 1), "b": (mean, mean - 2, mean + 2)}, (x, mean))
    assert list(line(ax, "b, 95 %").get_xdata()) == [0.0, 1.0, 2.0]
    assert list(line(ax, "b, 95 %").get_ydata()) == [-2.0, -1.0, 0.0]
    assert list(line(ax, "training points").get_xdata()) == [2.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"predictions\['a'\]: expected 3 values each"):
        plot_intervals(x, {"a": (mean, mean, mean[:2])})


def test_no_figure_of_pyplot_is_made_and_given_axes_are_used():
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    ax = Figure().subplots()
    assert plot_map([1], [1], torch.ones(1, 1), ax) is ax
    assert plot_calibration({"a": torch.rand(5)}, ax) is ax
    assert plot_intervals(torch.rand(1), {"a": (torch.rand(1),) * 3}, ax=ax) is ax
    assert pyplot.get_fignums() == before
