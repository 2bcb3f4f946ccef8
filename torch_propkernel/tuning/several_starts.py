"""Where fits of hyperparameters start, and which of several starts are followed to their ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._tasks import map_tasks
from .evidence import ScalePrior
from .evidence_descent import Evaluation, LogPosterior, descend, met_end, one_attempt, scale_prior
from .trained_parameters import TrainedParameter

# Starts after the model's own values: T relative to the targets' mean square, b_0 / w_0, b_l / w_l above, and scales
# relative to the model's own. A large first bias begins with smooth functions; the evidence can have one maximum where
# noise explains the targets and another, at small T and a larger scale, where the function does.
_STARTS = ((math.exp(-4.0), 30.0, 0.3, 30.0), (math.exp(-8.0), 30.0, 0.3, 30.0), (math.exp(-1.0), 0.3, 0.3, 1.0))
MAX_STARTS = len(_STARTS) + 1
_FEWEST_ROWS = 150  # of a screening
_MOST_NUMBERS = 6  # that train: a part of the rows cannot tell which of many inputs matter, and misses maxima
_RACE, _BEHIND = 8, 10.0  # iterations after which starts with more numbers are compared, and nats that may be made up
_APART = 0.5  # raw parameters between ends on some rows that lead to descents of their own
_STEPS = (1e-2, 1.0)  # raw parameters: smallest and largest unit of a descent's steps


def starting_points(parameters: list[TrainedParameter], size: float, count: int) -> list[Tensor]:
    """Raw parameters of each start, clipped to their boxes."""

    def clipped(parameter: TrainedParameter, raw: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(raw, parameter.low), parameter.high)

    own = [clipped(p, p.raw.detach().flatten()) for p in parameters]
    points = [own]
    for temperature, first, above, scale in _STARTS[: count - 1]:
        moved = []
        for parameter, raw in zip(parameters, own, strict=True):
            if parameter.name == "temperature":
                raw = parameter.raw_of(raw.new_tensor(temperature * size))
            elif parameter.name == "bias_ratio":
                raw = parameter.raw_of(torch.where(torch.arange(len(raw)) == 0, first, above).to(raw))
            elif parameter.name == "scale":
                raw = parameter.raw_of(scale * parameter.values)
            moved.append(raw)
        points.append(moved)
    return [torch.cat(point) for point in points]


class _Descent(NamedTuple):
    """One descent by itself, with a model of its own."""

    model: Any
    parameters: list[TrainedParameter]
    theory: str
    prior: ScalePrior | None
    start: Tensor
    max_iterations: int
    unit: np.ndarray | None
    known: Sequence[Evaluation]

    def run(self) -> Any:
        objective = LogPosterior(self.model, self.parameters, self.theory, self.prior)
        return descend(objective, self.start, self.parameters, self.max_iterations, self.unit, known=self.known)


def _ended_where_met(run: Any, earlier: Sequence[Any]) -> Any:
    """Return what a descent that went to its own end would have found had it known the earlier ones."""
    from scipy.optimize import OptimizeResult

    for number, evaluation in enumerate(run.path, 1):
        if (met := met_end(evaluation.vector, evaluation.value, earlier)) is not None:
            return OptimizeResult({**met, "nfev": number})
    return run


class _Descents(NamedTuple):
    """What the descents of a fit share: one after the other, or by an executor with the same results."""

    model: Any
    parameters: list[TrainedParameter]
    theory: str
    prior: ScalePrior | None
    max_iterations: int
    executor: Executor | None

    def run(
        self,
        starts: Sequence[Tensor],
        *,
        units: Sequence[np.ndarray] | None = None,
        paths: Sequence[Sequence[Evaluation]] | None = None,
        max_iterations: int | None = None,
    ) -> list[Any]:
        """Return where the descent from each start ends, in units of its own, on from its path where that is known.

        A descent ends where it meets the end of an earlier one. By an executor each goes to its own end, since the
        others' are not known yet, and is cut afterwards where it would have met one.
        """
        iterations = self.max_iterations if max_iterations is None else max_iterations
        none: list[None] = [None] * len(starts)
        each = list(zip(starts, units or none, paths or [()] * len(starts), strict=True))
        runs: list[Any] = []
        if self.executor is None or len(starts) == 1:
            for start, unit, known in each:
                objective = LogPosterior(self.model, self.parameters, self.theory, self.prior)
                runs.append(descend(objective, start, self.parameters, iterations, unit, runs, known))
            return runs
        tasks = []
        for start, unit, known in each:
            model, parameters = copy.deepcopy((self.model, self.parameters))
            tasks.append(_Descent(model, parameters, self.theory, self.prior, start, iterations, unit, known))
        with one_attempt():
            for run in map_tasks(_Descent.run, tasks, self.executor):
                runs.append(_ended_where_met(run, runs))
        return runs


def descend_from_all(
    model: Any,
    parameters: list[TrainedParameter],
    theory: str,
    points: list[Tensor],
    max_iterations: int,
    executor: Executor | None = None,
) -> list[Any]:
    """Return where the descent from each point ends, or where it was left (``left`` is then True).

    Several starts of up to six numbers are screened on a part of the rows where there are 300 or more. With more
    numbers they race on all rows, unless lengthscales are among them: without a prior these run away along many
    valleys, and the best start shows at the end only.
    """
    descents = _Descents(model, parameters, theory, scale_prior(model, theory), max_iterations, executor)
    if len(points) > 1:
        few = len(points[0]) <= _MOST_NUMBERS
        if few and model.train_targets.shape[-1] >= 2 * _FEWEST_ROWS and _can_take_rows(model):
            return _screened(descents, points)
        if not few and max_iterations > _RACE and all(p.name != "lengthscale" for p in parameters):
            return _raced(descents, points)
    return descents.run(points)


def _screened(descents: _Descents, points: list[Tensor]) -> list[Any]:
    """Descend on a quarter of the rows, drawn with a seed of their own, and from each end on all rows."""
    model = descents.model
    rows = model.train_targets.shape[-1]
    some = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: max(_FEWEST_ROWS, rows // 4)]
    with _on_rows(model, some.to(model.train_targets.device)):
        coarse = descents.run(points)
    ends = [coarse[index] for index in _different(coarse)]
    # The posterior narrows with the root of the rows.
    units = [np.clip(end.spread * math.sqrt(len(some) / rows), *_STEPS) for end in ends]
    fine = descents.run([torch.as_tensor(end.x) for end in ends], units=units)
    return [fine[int(np.argmin([np.abs(run.x - end.x).max() for end in ends]))] for run in coarse]


def _raced(descents: _Descents, points: list[Tensor]) -> list[Any]:
    """Take some steps from each point, and go on from where the best are, as if they had not paused."""
    runs = descents.run(points, max_iterations=_RACE)
    reach = min(run.fun for run in runs) + _BEHIND
    going = [index for index in _different(runs) if not runs[index].converged and runs[index].fun <= reach]
    ends = descents.run([points[index] for index in going], paths=[runs[index].path for index in going])
    for index, run in enumerate(runs):
        run.left = not run.converged and index not in going
    for index, end in zip(going, ends, strict=True):
        runs[index] = end
    return runs


def _different(runs: Sequence[Any]) -> list[int]:
    """Return which descents are at places of their own, the best first."""
    found: list[int] = []
    for index in sorted(range(len(runs)), key=lambda index: runs[index].fun):
        if all(np.abs(runs[index].x - runs[other].x).max() > _APART for other in found):
            found.append(index)
    return found


def _can_take_rows(model: Any) -> bool:
    """Whether a part of the rows is a model of its own: noise variances of single rows would have to be cut too."""
    return hasattr(model, "set_train_data") and getattr(model.likelihood, "noise", torch.empty(0)).numel() == 1


@contextmanager
def _on_rows(model: Any, rows: Tensor) -> Iterator[None]:
    """Give a model some of its rows while the block runs."""
    inputs, targets = model.train_inputs, model.train_targets
    model.set_train_data(tuple(x[..., rows, :] for x in inputs), targets[..., rows], strict=False)
    try:
        yield
    finally:
        model.set_train_data(inputs, targets, strict=False)
