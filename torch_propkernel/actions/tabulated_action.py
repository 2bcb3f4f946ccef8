"""The sums of actions on a lattice of log(r / T): for a scan of many problems, and interpolated between its points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .outer_action import OuterAction

STEP = 0.1  # of the lattice in log(r / T): the sums vary over lengths of one and more
CELLS = 8  # of a block
_HALF = 10  # points of an interpolation on each side
_WEIGHTS = torch.tensor(
    [(-1.0) ** (j + 1) / (math.factorial(j) * math.factorial(2 * _HALF - 1 - j)) for j in range(2 * _HALF)],
    dtype=torch.float64,
)  # one over the products of a point's distances from all others


class SumsTable:
    r"""What actions need of a spectrum, at points t of log(r / T) a tenth apart.

    .. math:: h_1 = \sum_i n_i \frac{x_i}{1 + x_i}, \quad h_2 = \sum_i z_i^2 \frac{x_i}{(1 + x_i)^2}, \quad
              \sum_i n_i \log(1 + x_i), \quad \sum_i \frac{z_i^2}{1 + x_i}, \qquad x_i = e^t k_i

    The action's slope in log r is :math:`g = h_1 - h_2 / T`, so that one table serves all temperatures and widths. It
    covers the problems' brackets by whole blocks of cells.

    Args:
        action: Of the problems.
        low: Lower ends of the problems' brackets of u = log r, ``n``.
        high: Upper ends, ``n``.

    Attributes:
        first: t at the first block's left end.
        num_blocks: Number of blocks of eight cells.
        rates: h_1, h_2 and their derivatives, ``S x 4 x G``; S = 1 for a common spectrum, else one for each problem.
        windows: All six at 20 neighbouring points each, from ten steps before the first on, ``6 x G' x 20``; None
            unless the problems share a spectrum and outnumber the points.
    """

    def __init__(self, action: OuterAction, low: Tensor, high: Tensor) -> None:
        """Tabulate the sums."""
        log_temperature = action.temperature.log()
        ends = torch.stack([(low - log_temperature).min(), (high - log_temperature).max()])
        self.first, last = ends.tolist()  # one reading of the device
        self.num_blocks = max(1, math.ceil((last - self.first) / (CELLS * STEP)))
        number = CELLS * self.num_blocks + 1
        self.windows: Tensor | None = None
        points = torch.arange(-_HALF, number + _HALF, dtype=low.dtype, device=low.device) * STEP + self.first
        inner = slice(_HALF, _HALF + number)
        if action.num_spectra == 1 and action.num_problems > len(points):
            whole = torch.cat([action.tabulated_sums(points), action.tabulated_logs(points)], 1)
            self.rates, self.windows = whole[:, :4, inner], whole.squeeze(0).unfold(-1, 2 * _HALF, 1)
        else:
            self.rates = action.tabulated_sums(points[inner])

    def row(self, owner: Tensor) -> Tensor:
        """Return the row of the table that belongs to each of the problems ``owner``."""
        return owner if len(self.rates) > 1 else torch.zeros_like(owner)

    def block_bounds(self) -> tuple[Tensor, Tensor]:
        """Return bounds of h_1 and h_2 inside of each block, from below and from above, ``S x 2 x blocks`` each.

        A cubic with slopes d and d' at the ends of a cell goes beyond its end values by at most (|d| + |d'|) / 4 of
        the cell's length; the bounds leave twice as much.
        """
        value, slope = self.rates[:, :2], self.rates[:, 2:]
        room = 0.5 * STEP * (slope[..., :-1].abs() + slope[..., 1:].abs())
        lower = torch.minimum(value[..., :-1], value[..., 1:]) - room
        upper = torch.maximum(value[..., :-1], value[..., 1:]) + room
        return lower.unflatten(-1, (-1, CELLS)).amin(-1), upper.unflatten(-1, (-1, CELLS)).amax(-1)


class TabulatedAction(OuterAction):
    """Actions of many problems on one spectrum, whose sums are interpolated from a table.

    The sums are analytic up to a distance of pi from the real line: with 20 points a tenth apart the error is 1e-17 of
    them, below rounding. An evaluation is 20 multiplications for each sum, whatever the number of data.

    Args:
        action: The problems, at temperatures above zero.
        table: Which covers their brackets, beyond which u must not go.
    """

    def __init__(self, action: OuterAction, table: SumsTable) -> None:
        """Share what the action holds."""
        self.__dict__.update(action.__dict__)
        if table.windows is None:
            raise ValueError("table: expected one that interpolates, got one of fewer problems than points")
        self.table, self.windows = table, table.windows

    def select(self, index: Tensor) -> TabulatedAction:
        """Return the problems at ``index``."""
        return TabulatedAction(super().select(index), self.table)

    def data_terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and dg/du at u of shape ``n``."""
        h1, h2, d1, d2 = self._between(u, slice(0, 4))
        cold = 1.0 / self.temperature
        return h1 - h2 * cold, d1 - d2 * cold

    def data_action(self, u: Tensor) -> Tensor:
        """Return sum_i n_i log(T + r k_i) + z_i^2 / (T + r k_i) at u of shape ``n``."""
        logs, labels = self._between(u, slice(4, 6))
        return self.num_data * self.temperature.log() + logs + labels / self.temperature

    def _between(self, u: Tensor, kinds: slice) -> Tensor:
        """Return some of the sums at u by Lagrange's polynomials through the 20 nearest points, ``sums x n``."""
        windows = self.windows[kinds]
        place = (u - self.temperature.log() - self.table.first) / STEP
        cell = place.floor().clamp(0, windows.shape[1] - 2)
        away = (place - cell).unsqueeze(-1) - torch.arange(1 - _HALF, _HALF + 1, dtype=u.dtype, device=u.device)
        others = torch.ones_like(away)  # products of the distances from all points but one
        others[:, 1:] = away[:, :-1].cumprod(-1)
        others[:, :-1] *= away[:, 1:].flip(-1).cumprod(-1).flip(-1)
        return (windows[:, cell.long() + 1] * (others * _WEIGHTS.to(u))).sum(-1)
