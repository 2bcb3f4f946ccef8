"""Theories against a sampled network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..practice import NetworkComparison
from .style import BLUE, GRAY, VERMILLION, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "test_error": "test error",
    "bias": "bias",
    "variance": "variance",
    "training_error": "training error",
    "order_parameter": r"$\lambda |v|^2 / N$",
}


def plot_comparison(
    comparison: NetworkComparison, axes: Sequence[Axes] | None = None, *, target: str | None = None
) -> list[Axes]:
    """Plot what theories predict beside the measured values of the sampled network, one panel for each quantity.

    The vertical line is the measured mean, the band two of its standard errors. Infinite width and free scale, which
    know nothing of the width, are drawn hollow.

    Args:
        comparison: From :func:`torch_propkernel.practice.compare_with_network`.
        axes: Where to draw, one for each quantity; axes of a new figure (not one of pyplot's) if None.
        target: Unit or short name of the target, for the labels.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Another number of axes than of quantities.

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import MonteCarloEstimate
        >>> value = MonteCarloEstimate(torch.tensor(2.0), torch.tensor(0.1), torch.tensor(900.0), torch.tensor(1.0))
        >>> axes = plot_comparison(NetworkComparison({"bias": value}, {"saddle point": {"bias": 2.2}}))
        >>> round(float(axes[0].lines[-1].get_xdata()[0]), 6)
        2.2
    """
    quantities, theories = list(comparison.measured), list(comparison.predicted)
    if axes is None:
        axes = new_axes(len(quantities), (1.2 + 2.6 * len(quantities), 1.2 + 0.36 * max(len(theories), 4)))
    unit = "units of the target" if target is None else target
    for number, (ax, quantity) in enumerate(zip(axes, quantities, strict=True)):
        measured = comparison.measured[quantity]
        mean, spread = float(measured.mean), 2.0 * float(measured.standard_error)
        ax.axvspan(mean - spread, mean + spread, color=BLUE, alpha=0.25, linewidth=0)
        ax.axvline(mean, color=BLUE, linewidth=1.4)
        for row, theory in enumerate(theories):
            hollow = theory in ("infinite_width", "free_scale")
            ax.plot(
                [comparison.predicted[theory][quantity]],
                [row],
                marker="o",
                markersize=7,
                color=GRAY if hollow else VERMILLION,
                markerfacecolor="none" if hollow else VERMILLION,
                linestyle="none",
            )
        ax.set_ylim(len(theories) - 0.5, -0.5)
        ax.set_yticks(range(len(theories)), theories if number == 0 else [""] * len(theories))
        ax.margins(x=0.15)
        label = _LABELS.get(quantity, quantity)
        ax.set_xlabel(label if quantity == "order_parameter" else f"{label}\n({unit})$^2$", fontsize="small")
        ax.tick_params(axis="x", labelsize="small")
        ax.locator_params(axis="x", nbins=4)
    axes[0].set_title("line and band: sampled network, 2 standard errors", fontsize="small", loc="left")
    return list(axes)
