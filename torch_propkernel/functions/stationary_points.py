"""All stationary points of many one-dimensional actions: scan, refine, polish."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .outer_action import OuterAction

_GRID_STEP = 0.05
_REFINEMENT = 8
_MAX_LEVELS = 4
_MAX_NEWTON = 100


class StationaryPoints(NamedTuple):
    """Stationary points of n problems, padded with NaN to the largest number M.

    Attributes:
        u: log r, ``n x M``, ascending.
        action: N_L S - sum_l N_l at the points, ``n x M``.
        curvature: N_L d^2 S/du^2, ``n x M``; positive at minima.
        residual: |N_L dS/du| over the size of its terms, ``n x M``.
        touching: ``n``; whether the slope came within rounding of another root without a resolved sign change.
        iterations: Newton steps used.
    """

    u: Tensor
    action: Tensor
    curvature: Tensor
    residual: Tensor
    touching: Tensor
    iterations: int


def find_stationary_points(action: OuterAction) -> StationaryPoints:
    """Return every stationary point inside the bracket of :meth:`OuterAction.bracket`.

    The slope is tabulated on a grid in log r that is much finer than the scale on which it can vary (its terms are
    logistic functions of log r, of width one). Cells in which the cubic through both ends' values and derivatives crosses
    or nearly touches zero other than once are subdivided with exact evaluations; each sign change is then polished by a
    safeguarded Newton iteration on the exact sums.

    Cost: one pass over the spectrum for each grid point, shared by all problems on one spectrum, and about three passes
    for each root.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> action = OuterAction(1e-4 * one, 2e4 * one, torch.full((1, 2), 60.0, dtype=torch.float64), one[0])
        >>> [round(q, 3) for q in torch.exp(find_stationary_points(action).u / 2).flatten().tolist()]   # q_1 = q_2
        [1.036, 38.56, 80.544]
    """
    owner, left, right, touching = _isolate(action)
    selected = action.select(owner)
    u, iterations = _polish(selected, left, right)
    slope, curvature = selected.slope(u)
    value = selected.layer_action(u) + selected.data_action(u)
    counts = torch.bincount(owner, minlength=action.num_problems)
    order = torch.argsort(u, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    column = torch.arange(len(owner), device=u.device) - (counts.cumsum(0) - counts)[owner[order]]

    def padded(values: Tensor) -> Tensor:
        table = u.new_full((action.num_problems, max(1, int(counts.max()))), torch.nan)
        table[owner[order], column] = values[order]
        return table

    return StationaryPoints(
        padded(u), padded(value), padded(curvature), padded(slope.abs() / selected.slope_scale(u)), touching, iterations
    )


def _isolate(action: OuterAction) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the owner and ends of intervals with one sign change each, and which problems have touching points."""
    low, high = action.bracket()
    if action.zero_temperature:  # the slope is monotone: one root
        return torch.arange(action.num_problems, device=low.device), low, high, torch.zeros_like(low, dtype=torch.bool)
    log_temperature = action.temperature.log()
    first, last = float((low - log_temperature).min()), float((high - log_temperature).max())
    count = max(3, int((last - first) / _GRID_STEP) + 2)
    grid = torch.linspace(first, last, count, dtype=low.dtype, device=low.device)
    g, d_g = action.tabulated_data_terms(grid)
    u = grid + log_temperature.unsqueeze(-1)
    _, mu, d_mu = action._layers(u)
    owner, left, right, cells = _classify(u, mu + g, d_mu + d_g)
    kept = [(owner, left, right)]
    parts = torch.linspace(0.0, 1.0, _REFINEMENT + 1, dtype=low.dtype, device=low.device)
    for _ in range(_MAX_LEVELS):
        cell_owner, start, stop = cells
        if len(cell_owner) == 0:
            break
        fine = start.unsqueeze(-1) + (stop - start).unsqueeze(-1) * parts
        repeated = action.select(cell_owner.repeat_interleave(len(parts)))
        slope, curvature = (v.reshape(fine.shape) for v in repeated.slope(fine.reshape(-1)))
        index, left, right, (sub, start, stop) = _classify(fine, slope, curvature)
        kept.append((cell_owner[index], left, right))
        cells = (cell_owner[sub], start, stop)
    touching = torch.zeros_like(low, dtype=torch.bool)
    touching[cells[0]] = True
    if len(cells[0]):  # whatever sign change the last level still holds is a root, resolved or not
        ends = torch.stack(cells[1:], -1)
        signs = torch.sign(action.select(cells[0].repeat_interleave(2)).slope(ends.reshape(-1))[0]).reshape(ends.shape)
        crossing = signs[:, 0] * signs[:, 1] <= 0
        kept.append((cells[0][crossing], cells[1][crossing], cells[2][crossing]))
    owner, left, right = (torch.cat(columns) for columns in zip(*kept, strict=True))
    return owner, left, right, touching


def _classify(u: Tensor, f: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Sort the cells between neighbors of ``u`` into clean sign changes, empty ones, and ones to look into.

    The cubic Hermite interpolant stands for the slope inside a cell, with a margin for its error.
    """
    f0, f1, h = f[:, :-1], f[:, 1:], u[:, 1:] - u[:, :-1]
    s0, s1 = d[:, :-1] * h, d[:, 1:] * h
    crossing = (f0 < 0) != (f1 < 0)
    # Derivative of the cubic in t in [0, 1]: s0 + 2 a t + 3 b t^2; it is one-signed unless it vanishes inside.
    rise = f1 - f0
    a, b = 3.0 * rise - 2.0 * s0 - s1, s0 + s1 - 2.0 * rise
    margin = 0.05 * (s0.abs() + s1.abs() + rise.abs()) * h
    middle = torch.where(b == 0, 0.5, -a / torch.where(b == 0, 1.0, 3.0 * b)).clamp(0.0, 1.0)
    at_middle = s0 + 2.0 * a * middle + 3.0 * b * middle**2
    slowest = torch.minimum(torch.minimum(s0, s1), at_middle)
    fastest = torch.maximum(torch.maximum(s0, s1), at_middle)
    monotone = (slowest > margin) | (fastest < -margin)
    # A cell without a crossing is empty if its ends are further from zero than the cubic can travel inside.
    reach = torch.maximum(s0.abs(), torch.maximum(s1.abs(), at_middle.abs()))
    empty = ~crossing & (monotone | (torch.minimum(f0.abs(), f1.abs()) > 1.1 * reach))
    clean = crossing & monotone
    rows, columns = torch.nonzero(clean, as_tuple=True)
    doubt_rows, doubt_columns = torch.nonzero(~clean & ~empty, as_tuple=True)
    doubt = (doubt_rows, u[doubt_rows, doubt_columns], u[doubt_rows, doubt_columns + 1])
    return rows, u[rows, columns], u[rows, columns + 1], doubt


def _polish(action: OuterAction, left: Tensor, right: Tensor) -> tuple[Tensor, int]:
    """Newton steps kept inside brackets with one sign change each, until the slope is at rounding level."""
    if len(left) == 0:
        return left, 0
    epsilon = torch.finfo(left.dtype).eps
    f_left, f_right = action.slope(left)[0], action.slope(right)[0]
    rising = f_right >= f_left
    share = f_left / torch.where(f_left == f_right, torch.ones_like(f_left), f_left - f_right)
    u = left + (right - left) * share.clamp(0.0, 1.0)
    active = torch.arange(len(u), device=u.device)
    iterations = 0
    while len(active) and iterations < _MAX_NEWTON:
        iterations += 1
        now, part = u[active], action.select(active)
        f, d = part.slope(now)
        beyond = (f > 0) == rising[active]
        right[active] = torch.where(beyond, now, right[active])
        left[active] = torch.where(beyond, left[active], now)
        proposal = now - f / torch.where(d == 0, torch.ones_like(d), d)
        inside = (proposal >= left[active]) & (proposal <= right[active]) & (d != 0)
        new = torch.where(inside, proposal, 0.5 * (left[active] + right[active]))
        at_rounding = f.abs() <= epsilon * part.slope_scale(now)
        u[active] = torch.where(f == 0, now, new)
        moved = (new - now).abs() > 2.0 * epsilon * (1.0 + now.abs())
        active = active[~at_rounding & moved]
    return u, iterations
