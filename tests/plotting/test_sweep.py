"""Plots: what they draw, and that they leave pyplot alone."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from given_network import given_network

from torch_propkernel import Erf, width_sweep
from torch_propkernel.plotting import plot_errors, plot_order_parameters, plot_sweep
from torch_propkernel.theories import WidthSweep

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def sweep_of(widths, depth=1, test=True) -> WidthSweep:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    y = x[:, 0] + x[:, 1]
    model = given_network(Erf(), (20.0,) * depth, 0.1).model(x[:25], y[:25])
    return width_sweep(model, widths, x[25:], y[25:]) if test else width_sweep(model, widths)


@pytest.fixture
def sweep() -> WidthSweep:
    return sweep_of([100.0, 10.0, 30.0])  # not sorted


def line(ax, label):
    return next(item for item in ax.lines if item.get_label() == label)


def test_errors(sweep):
    ax = plot_errors(sweep, free_scale={"leave_one_out": 0.5, "test": 0.6}, chosen=[30.0], target="kg")
    assert ax.get_xscale() == "log" and "kg" in ax.get_ylabel() and "width" in ax.get_xlabel()
    for name, error, free in (
        ("leave-one-out", sweep.leave_one_out, 0.5),
        ("held-out, formula (4)", sweep.test, 0.6),
    ):
        total = line(ax, f"{name}: total")
        assert list(total.get_xdata()) == [10.0, 30.0, 100.0]
        assert list(total.get_ydata()) == error.mean_total[[1, 2, 0]].tolist()
        assert list(line(ax, f"{name}: bias").get_ydata()) == error.mean_bias[[1, 2, 0]].tolist()
        assert list(line(ax, f"{name}: variance").get_ydata()) == error.mean_variance[[1, 2, 0]].tolist()
        assert line(ax, f"{name}: infinite width").get_ydata()[0] == error.infinite_width.mean_total.item()
        assert line(ax, f"{name}: free scale").get_ydata()[0] == free
    assert line(ax, "chosen width, N = 30").get_xdata()[0] == 30.0
    assert len(ax.get_legend().get_texts()) == len(ax.lines) == 11


def test_errors_without_test_points():
    ax = plot_errors(sweep_of([10.0, 100.0], test=False))
    assert len(ax.lines) == 4
    assert not [item for item in ax.lines if "held-out" in item.get_label()]


def test_order_parameters(sweep):
    ax = plot_order_parameters(sweep, chosen=[50.0])
    q = line(ax, "q")
    assert list(q.get_xdata()) == pytest.approx([25 / 100, 25 / 30, 25 / 10])
    assert list(q.get_ydata()) == sweep.order_parameter[[0, 2, 1], 0].tolist()
    assert line(ax, "q = 1, infinite width").get_ydata()[0] == 1.0
    assert line(ax, "chosen width, N = 50").get_xdata()[0] == pytest.approx(0.5)


def test_several_layers_and_infinite_ones():
    ax = plot_order_parameters(sweep_of(torch.tensor([[10.0, 20.0], [50.0, 100.0]]), depth=2))
    assert {"$q_1$", "$q_2$"} <= {item.get_label() for item in ax.lines}
    mixed = sweep_of(torch.tensor([[math.inf, 20.0], [math.inf, 100.0]]), depth=2)
    axes = plot_sweep(mixed, chosen=[math.inf, 20.0])
    assert "hidden layer 2" in axes[0].get_xlabel()
    assert "$q_1$" not in {item.get_label() for item in axes[1].lines}


@pytest.mark.parametrize("plot", [plot_errors, plot_order_parameters, plot_sweep])
def test_infinite_widths_are_refused(plot):
    with pytest.raises(ValueError, match="leave infinite widths out"):
        plot(sweep_of([10.0, math.inf]))


def test_given_axes_are_used_and_no_figure_of_pyplot_is_made(sweep, tmp_path):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    ax = Figure().subplots()
    assert plot_errors(sweep, ax) is ax
    assert plot_order_parameters(sweep, ax) is ax
    left, right = plot_sweep(sweep)
    assert left.figure is right.figure
    left.figure.savefig(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    assert pyplot.get_fignums() == before


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, torch_propkernel.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
