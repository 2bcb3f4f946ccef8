"""Predictive intervals over one input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from .style import BLUE, GRAY, GREEN, LAYER_COLORS, VERMILLION, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_intervals(
    x: Tensor,
    predictions: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    data: tuple[Tensor, Tensor] | None = None,
    ax: Axes | None = None,
    *,
    level: str = "95 %",
    target: str = "target",
) -> Axes:
    """Plot means and intervals of several predictors over one input: the first filled, the others as outlines.

    Args:
        x: Inputs, ``m`` or ``m x 1``.
        predictions: For each name mean, lower and upper end, ``m`` each.
        data: Training inputs and targets.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        level: Level of the intervals, for the legend.
        target: Name and unit of the target.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Shapes that do not fit.

    Example:
        >>> import torch
        >>> x = torch.linspace(0, 1, 5)
        >>> ax = plot_intervals(x, {"GP": (x, x - 1, x + 1), "Student's t": (x, x - 2, x + 2)})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['GP, 95 %', "Student's t, 95 %"]
    """
    ax = new_axes(1, (6.4, 4.6))[0] if ax is None else ax
    flat = x.detach().flatten().cpu()
    order = flat.argsort()
    colors = (GRAY, BLUE, VERMILLION, GREEN, *LAYER_COLORS)
    for number, (name, curves) in enumerate(predictions.items()):
        if any(curve.numel() != flat.numel() for curve in curves):
            sizes = [tuple(curve.shape) for curve in curves]
            raise ValueError(f"predictions[{name!r}]: expected {flat.numel()} values each, got shapes {sizes}")
        at, (mean, low, high) = flat[order].tolist(), (c.detach().flatten().cpu()[order].tolist() for c in curves)
        color = colors[number % len(colors)]
        if number == 0:
            ax.fill_between(at, low, high, color=color, alpha=0.2, linewidth=0, label=f"{name}, {level}")
            ax.plot(at, mean, color=color, linewidth=1.2)
        else:
            dashes = ("-", "--", ":", "-.")[(number - 1) % 4]
            ax.plot(at, low, color=color, linestyle=dashes, linewidth=1.5, label=f"{name}, {level}")
            ax.plot(at, high, color=color, linestyle=dashes, linewidth=1.5)
            ax.plot(at, mean, color=color, linestyle=dashes, linewidth=0.8)
    if data is not None:
        points, targets = (value.detach().flatten().tolist() for value in data)
        ax.plot(points, targets, color="black", marker="o", markersize=4, linestyle="none", label="training points")
    ax.set_xlabel("input")
    ax.set_ylabel(target)
    ax.legend(fontsize="small", frameon=False)
    return ax
