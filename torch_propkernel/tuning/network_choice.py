"""What a data set says about width, depth, temperature and prior variances of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..theories.sweeps import preferred
from .baselines import TunedBaseline

AXES = ("activation", "depth", "bias_ratio", "weight_variance", "readout_variance", "temperature", "width")

NATS = 3.0  # log evidence that a preference needs


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
    """

    grid: dict[str, tuple[Any, ...]]
    log_evidence: Tensor
    leave_one_out_log_density: Tensor
    leave_one_out_error: Tensor
    pointwise_log_density: Tensor
    baselines: tuple[TunedBaseline, ...]

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

    def difference(
        self, first: tuple[int, ...] | TunedBaseline, second: tuple[int, ...] | TunedBaseline
    ) -> tuple[float, float]:
        """Return mean and standard error over points of the difference of leave-one-out log densities.

        Paired by point. The standard error takes points as independent, and hyperparameters were not fitted anew for
        each point left out: it is rather too small.

        Args:
            first: An index of the grid, as :meth:`index` returns it, or one of the baselines.
            second: What is subtracted.
        """
        one, two = (
            each.pointwise_log_density if isinstance(each, TunedBaseline) else self.pointwise_log_density[each]
            for each in (first, second)
        )
        gap = one - two
        return float(gap.mean()), float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else math.nan

    @staticmethod
    def _index(values: Tensor) -> tuple[int, ...]:
        return tuple(int(i) for i in torch.unravel_index(values.argmax(), values.shape))

    def __str__(self) -> str:
        """Return a table: what the data prefer on each axis, and predictions beside the baselines."""
        return _report(self)


def _report(choice: NetworkChoice) -> str:
    """Return the whole table."""
    points = choice.pointwise_log_density.shape[-1]
    cells = choice.log_evidence.numel()
    lines = [
        f"{cells} networks, {points} points. Probabilities are posterior ones over the grid, every network of the grid",
        "equally likely a priori; evidence is integrated over the finite width's scale.",
        "",
        f"{'':18s}{'recommended':>14s}{'probability':>13s}{'spread, nats':>14s}   within {NATS:g} nats of the best",
    ]
    for axis, values in choice.grid.items():
        if len(values) > 1:
            lines.append(_axis(choice, axis))
    fixed = [f"{axis} {_show(values[0])}" for axis, values in choice.grid.items() if len(values) == 1]
    lines += [f"fixed: {', '.join(fixed)}"] if fixed else []
    lines += ["", *_predictions(choice), ""]
    if math.inf in choice.grid["width"] and len(choice.grid["width"]) > 1:
        lines += _width_against_infinite(choice)
    lines += [
        "With a free readout variance infinite width always reaches the higher evidence (an average over the scale is",
        "at most its maximum): a preference for a finite width at fixed variances may only say that another variance",
        "is right. Compare with the free scale above before reading anything into a width.",
    ]
    return "\n".join(lines)


def _axis(choice: NetworkChoice, axis: str) -> str:
    values, marginal = choice.grid[axis], choice.marginal(axis)
    value = choice.recommended[axis]
    place = values.index(value)
    spread = float(marginal.max() - marginal.min())
    near = ", ".join(_show(each) for each in choice.plausible(axis, NATS))
    note = "no preference" if choice.preference(axis, NATS) is None else near
    numeric = axis not in ("activation", "width", "depth")
    if numeric and place in (0, len(values) - 1) and note != "no preference":
        note += "  (at the edge of the grid)"
    probability = float(choice.probability(axis)[place])
    return f"{axis:18s}{_show(value):>14s}{probability:13.2f}{spread:14.1f}   {note}"


def _predictions(choice: NetworkChoice) -> list[str]:
    best = choice.index()
    rows: list[tuple[str, Any]] = [("recommended network", best)]
    if math.inf in choice.grid["width"]:
        rows.append(("the same, infinite width", choice.index(width=math.inf)))
    rows.append(("best by leave-one-out", choice.index(**choice.best_left_out)))
    rows += [(baseline.name, baseline) for baseline in choice.baselines]
    lines = [
        f"{'leave-one-out':44s}{'log density':>12s}{'minus recommended':>22s}{'sq. error':>12s}",
    ]
    for name, each in rows:
        if isinstance(each, tuple):
            density, error = choice.leave_one_out_log_density[each], choice.leave_one_out_error[each]
        else:
            density, error = each.leave_one_out_log_density, each.leave_one_out_error
        gap = "" if each == best else "{:+.4f} +- {:.4f}".format(*choice.difference(each, best))
        lines.append(f"{name:44s}{float(density):12.4f}{gap:>22s}{float(error):12.5g}")
    lines.append("(mean over points, higher density is better; differences paired by point, standard errors too small")
    lines.append("rather than too large; hyperparameters were chosen on all points)")
    found = choice.best_left_out
    differing = [f"{axis} {_show(value)}" for axis, value in found.items() if value != choice.recommended[axis]]
    if differing:
        lines.append(f"best by leave-one-out differs from the recommended one in: {', '.join(differing)}")
    return lines


def _width_against_infinite(choice: NetworkChoice) -> list[str]:
    if choice.preference("width", NATS) is None:
        return [f"Width: no preference, the marginal evidences of all widths lie within {NATS:g} nats."]
    width = choice.recommended["width"]
    if math.isinf(width):
        return ["Width: infinite width has the highest evidence."]
    mean, error = choice.difference(choice.index(), choice.index(width=math.inf))
    place = choice.grid["width"].index(math.inf)
    behind = float(choice.log_evidence.max() - choice.log_evidence[..., place].max())
    ahead = "ahead of" if mean > 2.0 * error else "behind" if mean < -2.0 * error else "tied with"
    return [
        f"Width: {_show(width)} has the highest evidence, {behind:.1f} nats above the best infinite width of the grid;",
        f"its leave-one-out log density is {ahead} infinite width's at the same variances "
        f"({mean:+.4f} +- {error:.4f}).",
    ]


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
