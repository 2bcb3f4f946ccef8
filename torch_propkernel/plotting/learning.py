"""The learning curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..theories import LearningCurve
from .style import BLUE, GRAY, new_axes, plain_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_learning_curve(curve: LearningCurve, ax: Axes | None = None, *, target: str | None = None) -> Axes:
    """Plot the predicted test error against the number of training points, beside that of the infinite width.

    Lines are means over the random subsets, bands their standard errors.

    Args:
        curve: From :func:`torch_propkernel.learning_curve`.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        target: Unit or short name of the target, for the label.

    Raises:
        ImportError: matplotlib is not installed.

    Reference: THEORY.md, eq. (4).

    Example:
        >>> import torch
        >>> from torch_propkernel.theories import LearningCurve
        >>> one = torch.ones(2, 3)
        >>> ax = plot_learning_curve(LearningCurve(torch.tensor([5, 10]), one[..., None], one, one, one, 2 * one))
        >>> ax.lines[-1].get_label(), ax.lines[-1].get_ydata().tolist()
        ('infinite width: total', [3.0, 3.0])
    """
    ax = new_axes(1, (6.4, 4.6))[0] if ax is None else ax
    order = curve.num_data.argsort()
    sizes = curve.num_data[order].tolist()

    def draw(values: Tensor, label: str, **style: object) -> None:
        values = values[order]
        mean = values.mean(-1)
        (line,) = ax.plot(sizes, mean.tolist(), label=label, **style)  # type: ignore[arg-type]
        if values.shape[-1] > 1:
            spread = values.std(-1) / values.shape[-1] ** 0.5
            low, high = (mean - spread).tolist(), (mean + spread).tolist()
            ax.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)

    draw(curve.bias + curve.variance, "finite width: total", color=BLUE, linewidth=2, marker="o", markersize=4)
    draw(curve.bias, "finite width: bias", color=BLUE, linewidth=1.2, linestyle="--")
    draw(curve.variance, "finite width: variance", color=BLUE, linewidth=1.8, linestyle=":")
    draw(
        curve.infinite_width_bias + curve.infinite_width_variance,
        "infinite width: total",
        color=GRAY,
        linewidth=1.4,
    )
    plain_log_axis(ax)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("training points P")
    ax.set_ylabel("squared error, (units of the target)$^2$" if target is None else f"squared error, ({target})$^2$")
    ax.legend(fontsize="small", frameon=False)
    return ax
