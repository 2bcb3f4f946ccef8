"""The effective action as a landscape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..actions.outer_action import OuterAction
from ..actions.stationary_points import find_stationary_points, global_minimum
from ..spectra.spectrum import Spectrum
from .style import BLUE, GRAY, ORANGE, VERMILLION, new_axes, plain_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = math.log(4.0)


def plot_action(
    spectrum: Spectrum,
    width: float | Sequence[float],
    temperature: float,
    ax: Axes | None = None,
    *,
    num_points: int = 400,
) -> Axes:
    r"""Plot the effective action against r = prod_l q_l, minus its global minimum, with all stationary points.

    For one hidden layer r is the order parameter q. For several the other directions are minimized out: the layers'
    part is stationary at fixed r where N_l (q_l - 1) is the same for all l.

    Args:
        spectrum: Spectrum of K and y, without batch dimensions.
        width: N_1, ..., N_L, finite.
        temperature: T > 0, or 0 for a non-singular K.
        ax: Where to draw; axes of a new figure (not one of pyplot's) if None.
        num_points: Points of the curve.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Infinite widths, a batch of spectra, and as :func:`solve_order_parameters`.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, eqs. (2) and (7).

    Example:
        >>> import torch
        >>> from torch_propkernel import Spectrum
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> two_minima = Spectrum.from_eigenvalues(1e-4 * one, 2e4**0.5 * one)
        >>> ax = plot_action(two_minima, [60, 60], 1.0)
        >>> [line.get_label() for line in ax.lines][1:]
        ['infinite width, q = 1', 'global minimum', 'other minimum', 'maximum']
    """
    action, shape = OuterAction.of(spectrum, width, temperature)
    if shape.numel() != 1:
        raise ValueError(f"spectrum, width, temperature: expected one problem, got a batch of shape {tuple(shape)}")
    if not bool(torch.isfinite(action.width).all()):
        raise ValueError(f"width: expected finite widths, at which S varies, got {action.width.flatten().tolist()}")
    points = find_stationary_points(action)
    lowest, column = global_minimum(points)
    u_all = points.u[0]
    low, high = min(float(u_all.nan_to_num(0.0).min()), 0.0), max(float(u_all.nan_to_num(0.0).max()), 0.0)
    u = torch.linspace(low - _ROOM, high + _ROOM, num_points, dtype=torch.float64, device=u_all.device)
    many = action.select(torch.zeros(num_points, dtype=torch.long, device=u.device))
    last = float(action.width[0, -1])
    floor = float(points.action[0, column])
    values = (many.layer_action(u) + many.data_action(u) - floor) / last

    ax = new_axes(1, (6.4, 4.6))[0] if ax is None else ax
    ax.plot(torch.exp(u).tolist(), values.tolist(), color=BLUE, linewidth=2, label="_action")
    ax.axvline(1.0, color=GRAY, linewidth=1.0, label="infinite width, q = 1")
    _mark(ax, float(lowest), 0.0, VERMILLION, "o", "global minimum")
    rest = [i for i in range(len(u_all)) if i != int(column) and not bool(torch.isnan(u_all[i]))]
    kinds = (("other minimum", ORANGE, "s", 1.0), ("maximum", GRAY, "^", -1.0))
    for label, color, marker, sign in kinds:
        for index in (i for i in rest if float(points.curvature[0, i]) * sign > 0):
            _mark(ax, float(u_all[index]), (float(points.action[0, index]) - floor) / last, color, marker, label)
    plain_log_axis(ax)
    # Far from the minimum the action grows without bound: show what the barriers and wells need.
    highest = (points.action[0].nan_to_num(floor).max() - floor) / last
    ax.set_ylim(-0.05 * _top(float(highest), values), _top(float(highest), values))
    layers = action.width.shape[-1]
    product = " ".join(f"q_{layer}" for layer in range(1, layers + 1))
    ax.set_xlabel("order parameter q" if layers == 1 else f"product of the order parameters, $r = {product}$")
    ax.set_ylabel("effective action above its minimum, $S - S^*$")
    ax.legend(fontsize="small", frameon=False)
    return ax


def _top(highest: float, values: torch.Tensor) -> float:
    return max(3.0 * highest, float(values.quantile(0.8)))


def _mark(ax: Axes, u: float, height: float, color: str, marker: str, label: str) -> None:
    ax.plot([math.exp(u)], [height], color=color, marker=marker, markersize=8, linestyle="none", label=label)
