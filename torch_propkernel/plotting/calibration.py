"""Whether predicted intervals contain what they should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .style import GRAY, LAYER_COLORS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_calibration(probabilities: Mapping[str, Tensor], ax: Axes | None = None, *, num_levels: int = 50) -> Axes:
    r"""Plot the measured coverage of central intervals against their nominal level.

    With :math:`u_i = F_i(y_i)` the predicted cumulative probability of each target, the central interval of level p
    holds it where :math:`|u_i - 1/2| \le p / 2`. Above the diagonal the intervals are too wide, below too narrow. The
    gray band is where a calibrated predictor with independent targets would be found in 95 % of cases (normal
    approximation, for the smallest of the sets).

    Args:
        probabilities: For each name the values u_i in [0, 1], ``m``.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        num_levels: Number of levels.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No sets, empty sets, or values outside of [0, 1].

    Example:
        >>> import torch
        >>> ax = plot_calibration({"calibrated": torch.linspace(0, 1, 1001), "too wide": torch.full((9,), 0.5)})
        >>> [round(float(line.get_ydata()[25]), 2) for line in ax.lines[1:]], float(ax.lines[1].get_xdata()[25])
        ([0.5, 1.0], 0.5)
    """
    sizes = [values.numel() for values in probabilities.values()]
    if not sizes or min(sizes) == 0:
        raise ValueError(f"probabilities: expected at least one set with values, got sizes {sizes}")
    for name, values in probabilities.items():
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"probabilities[{name!r}]: expected values in [0, 1], got {values.min()} to {values.max()}"
            )
    ax = new_axes(1, (5.0, 4.8))[0] if ax is None else ax
    level = torch.linspace(0.0, 1.0, num_levels + 1, dtype=torch.float64)
    spread = 1.96 * (level * (1.0 - level) / min(sizes)).sqrt()
    low, high = ((level + sign * spread).clamp(0.0, 1.0).tolist() for sign in (-1.0, 1.0))
    ax.fill_between(level.tolist(), low, high, color=GRAY, alpha=0.15, linewidth=0)
    ax.plot([0.0, 1.0], [0.0, 1.0], color=GRAY, linewidth=1.0, label="calibrated")
    for number, (name, values) in enumerate(probabilities.items()):
        distance = 2.0 * (values.detach().flatten().to(torch.float64).cpu() - 0.5).abs()
        coverage = (distance.unsqueeze(-1) <= level + 1e-12).double().mean(0)
        color = LAYER_COLORS[number % len(LAYER_COLORS)]
        dashes = ("-", "--", "-.", ":")[number % 4]
        ax.plot(level.tolist(), coverage.tolist(), color=color, linestyle=dashes, linewidth=1.8, label=name)
    ax.set_aspect("equal")
    ax.set_xlabel("nominal level of the central interval")
    ax.set_ylabel("fraction of targets inside")
    ax.legend(fontsize="small", frameon=False)
    return ax
