"""A quantity over widths and temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .style import VERMILLION, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WRITTEN_BELOW = 80


def plot_map(
    width: Sequence[float] | Tensor,
    temperature: Sequence[float] | Tensor,
    values: Tensor,
    ax: Axes | None = None,
    *,
    label: str = "",
    best: str | None = "min",
    log: bool = False,
) -> Axes:
    """Plot a map over widths and temperatures, one cell for each pair, with the best cell framed.

    Cells are equally large whatever the grid; the infinite width is a column like any other. Numbers are written into
    the cells of small maps.

    Args:
        width: ``W`` widths, ``math.inf`` allowed.
        temperature: ``K`` temperatures.
        values: ``W x K``; NaN stays empty.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        label: Name and unit of the values.
        best: Which cell to frame: "min", "max" or None.
        log: Color by the logarithm of the values, which must be positive then.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Shapes that do not fit, an unknown ``best``.

    Example:
        >>> import torch
        >>> ax = plot_map([10, 100, float("inf")], [0.01, 0.1], torch.arange(6.0).reshape(3, 2), label="error")
        >>> [text.get_text() for text in ax.get_xticklabels()]
        ['10', '100', '∞']
    """
    widths = torch.as_tensor(width, dtype=torch.float64).flatten().tolist()
    temperatures = torch.as_tensor(temperature, dtype=torch.float64).flatten().tolist()
    if tuple(values.shape) != (len(widths), len(temperatures)):
        raise ValueError(f"values: expected shape {(len(widths), len(temperatures))}, got {tuple(values.shape)}")
    if best not in ("min", "max", None):
        raise ValueError(f"best: expected 'min', 'max' or None, got {best!r}")
    if ax is None:
        ax = new_axes(1, (max(5.0, 0.75 * len(widths) + 2.0), max(3.6, 0.5 * len(temperatures) + 1.6)))[0]
    grid = values.detach().to(torch.float64).cpu().T
    mesh = ax.pcolormesh(grid.numpy(), cmap="cividis", edgecolors="white", linewidth=0.5, norm="log" if log else None)
    ax.set_xticks([i + 0.5 for i in range(len(widths))], [_number(value) for value in widths])
    ax.set_yticks([i + 0.5 for i in range(len(temperatures))], [_number(value) for value in temperatures])
    ax.figure.colorbar(mesh, ax=ax, label=label)
    if grid.numel() <= _WRITTEN_BELOW:
        _write(ax, grid, log)
    if best is not None and bool(torch.isfinite(grid).any()):
        filled = torch.where(torch.isfinite(grid), grid, torch.inf if best == "min" else -torch.inf)
        index = int(filled.argmin() if best == "min" else filled.argmax())
        row, column = divmod(index, grid.shape[1])
        from matplotlib.patches import Rectangle

        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=VERMILLION, linewidth=3))
    ax.set_xlabel("width N (units)")
    ax.set_ylabel("temperature T (noise variance)")
    return ax


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}"


def _write(ax: Axes, grid: Tensor, log: bool) -> None:
    """Write each value in black or white, whichever reads better on its color."""
    finite = grid[torch.isfinite(grid)]
    ends = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    middle = math.sqrt(ends[0] * ends[1]) if log else 0.5 * sum(ends)
    for row, line in enumerate(grid.tolist()):
        for column, value in enumerate(line):
            if math.isfinite(value):
                color = "black" if value > middle else "white"
                ax.text(column + 0.5, row + 0.5, f"{value:.3g}", ha="center", va="center", color=color, fontsize=8)
