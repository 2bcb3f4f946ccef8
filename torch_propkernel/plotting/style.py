"""Colors and axes that all plots share; matplotlib is imported only when a plot is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Okabe and Ito's palette, which readers with any common color vision can tell apart."""
LAYER_COLORS = (GREEN, PURPLE, ORANGE, SKY, BLUE, VERMILLION)
"""Colors of the hidden layers, from the first; repeated beyond six."""
GRAY = "#555555"
"""Color of references and of what lies in the background."""


def new_axes(columns: int, size: tuple[float, float]) -> list[Axes]:
    """Return axes of a new figure that belongs to no global list of figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "torch_propkernel[examples]"') from error
    return list(Figure(figsize=size, layout="constrained").subplots(1, columns, squeeze=False)[0])


def figure_of(ax: Axes) -> Any:
    """Return the whole figure that axes are drawn in."""
    return ax.get_figure(root=True)


def plain_log_axis(ax: Axes) -> None:
    """Logarithmic x axis with labels 10, 20, 50, 100 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    subdivisions = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(base=10.0, subs=subdivisions))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
