"""Predicted errors and order parameters against the width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from .._validation import present
from ..inference import ErrorEstimate
from ..theories import WidthSweep
from .style import BLUE, GRAY, LAYER_COLORS, VERMILLION, new_axes, plain_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _reference_layer(sweep: WidthSweep) -> int:
    """First layer whose width is finite throughout."""
    finite = torch.isfinite(sweep.width).all(0)
    if not bool(finite.any()):
        raise ValueError("sweep: expected a layer whose widths are all finite, got none; leave infinite widths out")
    return int(finite.long().argmax())


def plot_errors(
    sweep: WidthSweep,
    ax: Axes | None = None,
    *,
    free_scale: Mapping[str, float] | None = None,
    chosen: Sequence[float] | None = None,
    target: str | None = None,
) -> Axes:
    """Plot predicted errors against the width, with their bias and variance, and the baselines as horizontal lines.

    Blue is the leave-one-out error, from the training rows alone; vermillion is formula (4) of THEORY.md at given test
    targets, whose bias is the measured squared error of the mean. Infinite layers must be infinite in all rows.

    Args:
        sweep: From :func:`torch_propkernel.width_sweep`.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        free_scale: Total errors of the infinite width with a free kernel scale, keys "leave_one_out" and "test".
        chosen: Widths N_1, ..., N_L to mark.
        target: Unit or short name of the target, for the label.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No layer is finite throughout.

    Reference: THEORY.md, section 1 and eq. (4).

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import ErrorEstimate
        >>> from torch_propkernel.theories import WidthSweep
        >>> N, row = torch.tensor([[10.0], [100.0]]), torch.ones(2, 3)
        >>> errors = ErrorEstimate(row, row, row, ErrorEstimate(row[0], row[0], row[0]))
        >>> ax = plot_errors(WidthSweep(N, 50 / N, 1 + 1 / N, torch.ones(2), torch.zeros(2), errors, None))
        >>> ax.get_xscale(), len(ax.lines)   # total, bias, variance, infinite width
        ('log', 4)
    """
    ax = new_axes(1, (6.4, 6.0))[0] if ax is None else ax
    layer = _reference_layer(sweep)
    order = sweep.width[:, layer].argsort()
    width = sweep.width[order, layer].tolist()
    kinds = [("leave_one_out", sweep.leave_one_out, BLUE, "o", "leave-one-out")]
    if sweep.test is not None:
        kinds.append(("test", sweep.test, VERMILLION, "s", "held-out, formula (4)"))
    for number, (key, error, color, marker, name) in enumerate(kinds):
        _draw_error(ax, width, error, order, color, marker, name)
        if free_scale is not None and key in free_scale:
            dashes = (0, (1, 1, 5, 1))
            ax.axhline(free_scale[key], color=color, linewidth=1.4, linestyle=dashes, label=f"{name}: free scale")
        if chosen is not None and number == 0:  # here, so that a legend of two columns has one kind in each
            _mark(ax, chosen[layer], chosen[layer])
    plain_log_axis(ax)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(_width_label(sweep, layer))
    ax.set_ylabel("squared error, (units of the target)$^2$" if target is None else f"squared error, ({target})$^2$")
    ax.legend(fontsize="small", frameon=False)
    return ax


def _mark(ax: Axes, position: float, width: float) -> None:
    ax.axvline(position, color=GRAY, linewidth=7, alpha=0.2, zorder=0, label=f"chosen width, N = {width:g}")


def _width_label(sweep: WidthSweep, layer: int) -> str:
    if sweep.width.shape[-1] == 1:
        return "width N (units)"
    return f"width $N_{layer + 1}$ of hidden layer {layer + 1} (units)"


def _draw_error(
    ax: Axes, width: list[float], error: ErrorEstimate, order: torch.Tensor, color: str, marker: str, name: str
) -> None:
    def values(tensor: torch.Tensor) -> list[float]:
        return tensor[order].tolist()

    (line,) = ax.plot(width, values(error.mean_total), color=color, linewidth=2, label=f"{name}: total")
    line.set(marker=marker, markersize=4)
    ax.plot(width, values(error.mean_bias), color=color, linestyle="--", linewidth=1.2, label=f"{name}: bias")
    ax.plot(width, values(error.mean_variance), color=color, linestyle=":", linewidth=1.8, label=f"{name}: variance")
    if error.infinite_width is not None:
        total = float(error.infinite_width.mean_total)
        ax.axhline(total, color=color, linewidth=1.0, alpha=0.8, label=f"{name}: infinite width")


def plot_order_parameters(sweep: WidthSweep, ax: Axes | None = None, *, chosen: Sequence[float] | None = None) -> Axes:
    """Plot the order parameter of each layer against its alpha = P / N, with a line at one, the infinite width.

    Args:
        sweep: From :func:`torch_propkernel.width_sweep`.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        chosen: Widths N_1, ..., N_L to mark.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No layer is finite throughout.

    Reference: THEORY.md, eqs. (2) and (7).

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import ErrorEstimate
        >>> from torch_propkernel.theories import WidthSweep
        >>> N, row = torch.tensor([[10.0], [100.0]]), torch.ones(2, 3)
        >>> errors = ErrorEstimate(row, row, row)
        >>> ax = plot_order_parameters(WidthSweep(N, 50 / N, 1 + 1 / N, torch.ones(2), torch.zeros(2), errors, None))
        >>> [round(float(alpha), 6) for alpha in ax.lines[0].get_xdata()]
        [0.5, 5.0]
    """
    ax = new_axes(1, (5.0, 4.6))[0] if ax is None else ax
    _reference_layer(sweep)
    order_parameter = present(sweep.order_parameter, "order_parameter")
    layers = [int(index) for index in torch.nonzero(torch.isfinite(sweep.width).all(0)).flatten()]
    for number, layer in enumerate(layers):
        order = sweep.alpha[:, layer].argsort()
        alpha, q = sweep.alpha[order, layer].tolist(), order_parameter[order, layer].tolist()
        label = "q" if sweep.width.shape[-1] == 1 else f"$q_{layer + 1}$"
        color = LAYER_COLORS[number % len(LAYER_COLORS)]
        ax.plot(alpha, q, color=color, marker="o", markersize=max(7 - 2 * number, 3), linewidth=2, label=label)
    if chosen is not None:
        layer = layers[0]
        _mark(ax, float(sweep.alpha[0, layer] * sweep.width[0, layer]) / chosen[layer], chosen[layer])
    ax.axhline(1.0, color=GRAY, linewidth=1.0, label="q = 1, infinite width")
    plain_log_axis(ax)
    ax.set_xlabel(r"$\alpha = P / N$ (training rows per unit)")
    ax.set_ylabel("order parameter q (dimensionless)")
    ax.legend(fontsize="small", frameon=False)
    return ax


def plot_sweep(
    sweep: WidthSweep,
    *,
    free_scale: Mapping[str, float] | None = None,
    chosen: Sequence[float] | None = None,
    target: str | None = None,
) -> list[Axes]:
    """Plot errors against width and order parameters against alpha side by side, on a new figure.

    Args:
        sweep: From :func:`torch_propkernel.width_sweep`.
        free_scale: Passed on to :func:`plot_errors`.
        chosen: Widths N_1, ..., N_L to mark.
        target: Unit or short name of the target, for the label.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No layer is finite throughout.

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import ErrorEstimate
        >>> from torch_propkernel.theories import WidthSweep
        >>> N, row = torch.tensor([[10.0], [100.0]]), torch.ones(2, 3)
        >>> errors = ErrorEstimate(row, row, row)
        >>> axes = plot_sweep(WidthSweep(N, 50 / N, 1 + 1 / N, torch.ones(2), torch.zeros(2), errors, None))
        >>> len(axes), axes[0].figure is axes[1].figure
        (2, True)
    """
    left, right = new_axes(2, (11.5, 6.0))
    plot_errors(sweep, left, free_scale=free_scale, chosen=chosen, target=target)
    plot_order_parameters(sweep, right, chosen=chosen)
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, fontsize="small", frameon=False)
    return [left, right]
