"""All stationary points of many one-dimensional actions: scan, refine, find the roots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics.root_finder import find_roots
from ..order_parameters import ScalarChain
from .outer_action import OuterAction
from .tabulated_action import CELLS, STEP, SumsTable, TabulatedAction

_REFINEMENT = 8
_MAX_LEVELS = 4


class StationaryPoints(NamedTuple):
    """Stationary points of n problems, padded with NaN to the largest number M.

    Attributes:
        u: log r, ``n x M``, ascending.
        action: N_L S - sum_l N_l at the points, ``n x M``.
        curvature: N_L d^2 S/du^2, ``n x M``; positive at minima.
        residual: |N_L dS/du| over the size of its terms, ``n x M``.
        touching: ``n``; whether the slope came within rounding of another root without a resolved sign change.
        iterations: Evaluations of the slope that the hardest point took.
    """

    u: Tensor
    action: Tensor
    curvature: Tensor
    residual: Tensor
    touching: Tensor
    iterations: int


def global_minimum(points: StationaryPoints) -> tuple[Tensor, Tensor]:
    """Return u and column of the lowest minimum among the stationary points, ``n`` each."""
    value = torch.where(torch.isnan(points.action) | (points.curvature < 0), torch.inf, points.action)
    column = value.argmin(dim=-1, keepdim=True)
    return points.u.gather(-1, column).squeeze(-1), column.squeeze(-1)


def find_stationary_points(action: OuterAction) -> StationaryPoints:
    """Return every stationary point inside the bracket of ``action``.

    The slope is tabulated on a grid in log r that is much finer than the scale on which it can vary (its terms are
    logistic functions of log r, of width one). Cells in which the cubic through both ends' values and derivatives
    crosses or nearly touches zero other than once are subdivided with exact evaluations; each sign change is then
    found by a safeguarded Newton iteration on the exact sums. Before that, blocks of cells are left out in which bounds
    of the slope's terms exclude a zero.

    Cost: one pass over the spectrum for each grid point, shared by all problems on one spectrum, and about three passes
    for each root. Where problems on one spectrum outnumber the grid's points (some hundreds), they need no pass of
    their own: the sums are interpolated to rounding (``TabulatedAction``).

    Example:
        >>> from torch_propkernel.spectra import Spectrum
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> spectrum = Spectrum.from_eigenvalues(1e-4 * one, 2e4**0.5 * one)
        >>> action, _ = OuterAction.of(spectrum, width=[60.0, 60.0], temperature=1.0)
        >>> [round(q, 3) for q in torch.exp(find_stationary_points(action).u / 2).flatten().tolist()]   # q_1 = q_2
        [1.036, 38.56, 80.544]
    """
    low, high = action.bracket()
    touching = torch.zeros_like(low, dtype=torch.bool)
    if action.zero_temperature:  # the slope is monotone: one root
        everyone = torch.arange(action.num_problems, device=low.device)
        (f_low, d_low), (f_high, d_high) = action.slope(low), action.slope(high)
        cells = _Cells(everyone, low, high, f_low, f_high, d_low, d_high)
    else:
        table = SumsTable(action, low, high)
        action = action if table.windows is None else TabulatedAction(action, table)
        cells, doubted = _isolate(action, table, low, high)
        touching[doubted] = True
    selected = action.select(cells.owner)
    # A sign change each, to be found to the rounding of the exact sums.
    roots = find_roots(
        lambda u, index: action.select(cells.owner[index]).slope_and_scale(u),
        cells.left,
        cells.right,
        _start(cells),
        rising=cells.f_right >= cells.f_left,
        tolerance=4.0 * torch.finfo(cells.left.dtype).eps,
    )
    u = roots.x
    value = selected.layer_action(u) + selected.data_action(u)
    counts = torch.bincount(cells.owner, minlength=action.num_problems)
    order = torch.argsort(u, stable=True)
    order = order[torch.argsort(cells.owner[order], stable=True)]
    owner = cells.owner[order]
    column = torch.arange(len(owner), device=u.device) - (counts.cumsum(0) - counts)[owner]
    most = max(1, int(counts.max()))

    def padded(values: Tensor) -> Tensor:
        table = u.new_full((action.num_problems, most), torch.nan)
        table[owner, column] = values[order]
        return table

    residual = roots.value.abs() / selected.slope_scale(u)
    return StationaryPoints(padded(u), padded(value), padded(roots.slope), padded(residual), touching, roots.iterations)


class _Cells(NamedTuple):
    """Intervals of log r with the slope and its derivative at both ends, and the problem that each belongs to."""

    owner: Tensor
    left: Tensor
    right: Tensor
    f_left: Tensor
    f_right: Tensor
    d_left: Tensor
    d_right: Tensor

    def select(self, index: Tensor) -> _Cells:
        return _Cells(*(column[index] for column in self))


def _isolate(action: OuterAction, table: SumsTable, low: Tensor, high: Tensor) -> tuple[_Cells, Tensor]:
    """Return cells with one sign change of the slope each, and the problems that have points that touch zero."""
    owner, block = _blocks_near_zero(action, table, low, high)
    column = CELLS * block.unsqueeze(-1) + torch.arange(CELLS + 1, device=low.device)
    log_temperature, cold = (v[owner].unsqueeze(-1) for v in (action.temperature.log(), 1.0 / action.temperature))
    u = table.first + STEP * column.to(low) + log_temperature
    h1, h2, d1, d2 = (table.rates[table.row(owner).unsqueeze(-1), kind, column] for kind in range(4))
    layers = ScalarChain(action.width[owner]).at_log_scale(u)
    f, d = h1 - h2 * cold + layers.pull, d1 - d2 * cold + layers.stiffness
    # Most cells are far from zero for their slope: the careful look is for the others only.
    size, steep = f.abs(), d.abs() * STEP
    reach = 2.0 * (steep[:, :-1] + steep[:, 1:] + (f[:, 1:] - f[:, :-1]).abs())
    row, left = torch.nonzero(torch.minimum(size[:, :-1], size[:, 1:]) <= reach).unbind(-1)
    cells = _Cells(owner[row], *(values[row, end] for values in (u, f, d) for end in (left, left + 1)))
    parts = torch.linspace(0.0, 1.0, _REFINEMENT + 1, dtype=low.dtype, device=low.device)
    kept = []
    for level in range(_MAX_LEVELS + 1):
        clean, doubtful = _classify(cells)
        kept.append(cells.select(torch.nonzero(clean).squeeze(-1)))
        cells = cells.select(torch.nonzero(doubtful).squeeze(-1))
        if len(cells.owner) == 0 or level == _MAX_LEVELS:
            break
        fine = cells.left.unsqueeze(-1) + (cells.right - cells.left).unsqueeze(-1) * parts
        slope = action.select(cells.owner.repeat_interleave(len(parts))).slope(fine.reshape(-1))
        f, d = (value.reshape(fine.shape) for value in slope)
        ends = [table[:, part].flatten() for table in (fine, f, d) for part in (slice(-1), slice(1, None))]
        cells = _Cells(cells.owner.repeat_interleave(len(parts) - 1), *ends)
    # What the last level still doubts lies within rounding of a double root; a sign change is a root all the same.
    doubted = cells.owner
    kept.append(cells.select(torch.nonzero((cells.f_left < 0) != (cells.f_right < 0)).squeeze(-1)))
    return _Cells(*(torch.cat(columns) for columns in zip(*kept, strict=True))), doubted


def _blocks_near_zero(action: OuterAction, table: SumsTable, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return pairs of a problem and a block of the table's cells inside of which its slope may vanish, ``m`` each.

    The layers' pull rises with u, and the table bounds h_1 and h_2 of mu + h_1 - h_2 / T.
    """
    log_temperature = action.temperature.log()
    start, stop = ((end - log_temperature - table.first) / (CELLS * STEP) for end in (low, high))
    start = start.floor().clamp(0, table.num_blocks - 1).long()
    length = (stop.ceil().clamp_max(table.num_blocks).long() - start).clamp_min(1)
    owner = torch.arange(action.num_problems, device=low.device).repeat_interleave(length)
    block = torch.arange(len(owner), device=low.device) - (length.cumsum(0) - length - start)[owner]
    ends = (
        torch.stack([block, block + 1], -1).to(low) * (CELLS * STEP)
        + table.first
        + log_temperature[owner].unsqueeze(-1)
    )
    pull = ScalarChain(action.width[owner]).at_log_scale(ends).pull
    lower, upper = (bound[table.row(owner), :, block] for bound in table.block_bounds())
    cold = 1.0 / action.temperature[owner]
    smallest = pull[:, 0] + lower[:, 0] - upper[:, 1] * cold
    largest = pull[:, 1] + upper[:, 0] - lower[:, 1] * cold
    near = torch.nonzero((smallest <= 0) & (largest >= 0)).squeeze(-1)
    return owner[near], block[near]


def _classify(cells: _Cells) -> tuple[Tensor, Tensor]:
    """Return which cells hold exactly one sign change and which have to be looked into; the others hold none.

    The cubic Hermite interpolant stands for the slope inside a cell, with a margin for its error.
    """
    h = cells.right - cells.left
    f0, f1, s0, s1 = cells.f_left, cells.f_right, cells.d_left * h, cells.d_right * h
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
    reach = torch.maximum(slowest.abs(), fastest.abs())
    empty = ~crossing & (monotone | (torch.minimum(f0.abs(), f1.abs()) > 1.1 * reach))
    return crossing & monotone, ~(crossing & monotone) & ~empty


def _start(cells: _Cells) -> Tensor:
    """Root of the inverse cubic Hermite interpolant u(f) inside the cell; the secant's where it is not defined."""
    rise = cells.f_right - cells.f_left
    steep = (cells.d_left != 0) & (cells.d_right != 0) & (rise != 0)
    t = (-cells.f_left / torch.where(rise == 0, torch.ones_like(rise), rise)).clamp(0.0, 1.0)
    gap = cells.right - cells.left
    m0, m1 = (rise / torch.where(steep, d, torch.ones_like(d)) for d in (cells.d_left, cells.d_right))
    cubic = t * (1 - t) ** 2 * m0 + t**2 * (3 - 2 * t) * gap + t**2 * (t - 1) * m1
    return cells.left + torch.where(steep & (cubic > 0) & (cubic < gap), cubic, t * gap)
