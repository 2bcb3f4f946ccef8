"""What a data set says about width, depth, temperature and prior variances of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inference.left_out import preferred
from .baselines import Baseline

AXES = ("activation", "depth", "bias_ratio", "weight_variance", "readout_variance", "temperature", "width")


@dataclass(frozen=True, eq=False)
class NetworkChoice:
    """Evidence and leave-one-out over a grid of networks, with what fair baselines reach.

    Inputs and targets are standardized by :func:`choose_network` unless it was told not to: T and the variances are in
    these units, ``leave_one_out_error`` is in the user's units squared.

    Attributes:
        grid: Values of each axis: activation, depth, bias_ratio (b_l / w_l), weight_variance (hidden layers),
            readout_variance, temperature, width.
        log_evidence: log p(y) integrated over the scale, in the shape of the grid.
        leave_one_out_log_density: Mean over points of ``log p(y_i | y_-i)``, noise included, same shape.
        leave_one_out_error: Mean over points of the expected squared error of a network drawn from the posterior of the
            other points, without noise, same shape.
        pointwise_log_density: ``log p(y_i | y_-i)`` of every point, grid's shape ``x P``.
        baselines: The infinite width with a free scale, and Matern-5/2 with ARD, both tuned by evidence; may be empty.

    Example:
        >>> import math, torch
        >>> grid = {name: (1.0,) for name in AXES} | {"width": (10.0, math.inf)}
        >>> evidence = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 1, 1, 1, 2)
        >>> choice = NetworkChoice(grid, evidence, evidence, evidence, evidence.unsqueeze(-1), ())
        >>> choice.recommended["width"], round(choice.probability("width")[1].item(), 3), choice.preference("width")
        (inf, 0.731, None)
    """

    grid: dict[str, tuple[Any, ...]]
    log_evidence: Tensor
    leave_one_out_log_density: Tensor
    leave_one_out_error: Tensor
    pointwise_log_density: Tensor
    baselines: tuple[Baseline, ...]

    def marginal(self, *axes: str) -> Tensor:
        """Return log p(y) averaged over all other axes of the grid, equal weights, in the order of ``AXES``."""
        unknown = [axis for axis in axes if axis not in AXES]
        if unknown:
            raise ValueError(f"axes: expected names among {AXES}, got {unknown}")
        others = [index for index, axis in enumerate(AXES) if axis not in axes]
        count = math.prod(self.log_evidence.shape[index] for index in others)
        return torch.logsumexp(self.log_evidence, others) - math.log(count) if others else self.log_evidence

    def probability(self, *axes: str) -> Tensor:
        """Return the posterior probability of the values of some axes under the uniform prior on the grid."""
        marginal = self.marginal(*axes)
        return torch.softmax(marginal.flatten(), 0).reshape(marginal.shape)

    def preference(self, axis: str, nats: float = 3.0) -> Any:
        """Return the value of highest marginal evidence if it is ahead of the worst by ``nats``, else None."""
        index = preferred(self.marginal(axis), nats)
        return None if index is None else self.grid[axis][index]

    def plausible(self, axis: str, nats: float = 3.0) -> tuple[Any, ...]:
        """Return the values of an axis whose marginal evidence is within ``nats`` of the best."""
        marginal = self.marginal(axis)
        near = marginal >= marginal.max() - nats
        return tuple(value for value, kept in zip(self.grid[axis], near.tolist(), strict=True) if kept)

    @property
    def recommended(self) -> dict[str, Any]:
        """The network of highest evidence, a value for each axis."""
        return self.network(self._index(self.log_evidence))

    @property
    def best_left_out(self) -> dict[str, Any]:
        """The network of highest leave-one-out log density."""
        return self.network(self._index(self.leave_one_out_log_density))

    def network(self, index: tuple[int, ...]) -> dict[str, Any]:
        """Return the values at an index of the grid."""
        return {axis: self.grid[axis][i] for axis, i in zip(AXES, index, strict=True)}

    def index(self, **values: Any) -> tuple[int, ...]:
        """Return the index of a network, by default the recommended one, with some values replaced.

        Raises:
            ValueError: An unknown axis, or a value that is not on the grid.
        """
        index = list(self._index(self.log_evidence))
        for axis, value in values.items():
            if axis not in AXES or value not in self.grid[axis]:
                raise ValueError(f"{axis}: expected one of {self.grid.get(axis, AXES)}, got {value!r}")
            index[AXES.index(axis)] = self.grid[axis].index(value)
        return tuple(index)

    def difference(self, first: tuple[int, ...] | Baseline, second: tuple[int, ...] | Baseline) -> tuple[float, float]:
        """Return mean and standard error over points of the difference of leave-one-out log densities.

        Paired by point. The standard error takes points as independent, and hyperparameters were not fitted anew for
        each point left out: it is rather too small.

        Args:
            first: An index of the grid, as :meth:`index` returns it, or one of the baselines.
            second: What is subtracted.
        """
        one, two = (
            each.pointwise_log_density if isinstance(each, Baseline) else self.pointwise_log_density[each]
            for each in (first, second)
        )
        gap = one - two
        return float(gap.mean()), float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else math.nan

    @staticmethod
    def _index(values: Tensor) -> tuple[int, ...]:
        return tuple(int(i) for i in torch.unravel_index(values.argmax(), values.shape))

    def __str__(self) -> str:
        """Return a table: what the data prefer on each axis, and predictions beside the baselines."""
        from .choice_report import report

        return report(self)
