"""The log posterior of hyperparameters as a function of a flat vector, its starting points and its descent."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gpytorch.settings import cholesky_max_tries
from linear_operator.utils.errors import NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from .._tasks import map_tasks
from ..exceptions import ConvergenceError, NotPositiveDefiniteError
from .evidence import ScalePrior, finite_kernel, log_evidence, log_prior
from .trained_parameters import TrainedParameter

# Starts after the model's own values: T relative to the targets' mean square, b_0 / w_0, b_l / w_l above, and scales
# relative to the model's own. A large first bias begins with smooth functions; the evidence can have one maximum where
# noise explains the targets and another, at small T and a larger scale, where the function does.
_STARTS = ((math.exp(-4.0), 30.0, 0.3, 30.0), (math.exp(-8.0), 30.0, 0.3, 30.0), (math.exp(-1.0), 0.3, 0.3, 1.0))
MAX_STARTS = len(_STARTS) + 1
_TOLERANCE = 1e-10  # relative change of the log posterior at which L-BFGS-B stops
_SLOPE = 1e-2  # nats per unit of a raw (log-like) parameter: what an abnormal end of a line search may leave
_FEWEST_ROWS = 150  # of a screening
_MOST_NUMBERS = 6  # that train: a part of the rows cannot tell which of many inputs matter, and misses maxima
_NEAR, _LEVEL = 0.05, 1e-3  # raw parameters and nats within which a descent ends where an earlier one did
_APART = 0.5  # raw parameters between ends on some rows that lead to descents of their own
_STEPS = (1e-2, 1.0)  # raw parameters: smallest and largest unit of a descent's steps
_FAILURES = (NotPSDError, NotPositiveDefiniteError, ConvergenceError, torch.linalg.LinAlgError)


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


@torch.no_grad()
def assign(parameters: list[TrainedParameter], vector: np.ndarray) -> None:
    """Write flat raw parameters into their modules."""
    pieces = torch.as_tensor(vector).split([p.raw.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.raw.copy_(piece.reshape(parameter.raw.shape))


def scale_prior(model: Any, theory: str) -> ScalePrior | None:
    """Return the law of the scale that all evaluations share; None where nothing is integrated over a scale."""
    return ScalePrior.of(model) if theory == "mixture" and finite_kernel(model) is not None else None


@contextmanager
def one_attempt() -> Iterator[None]:
    """Take the smallest jitter or none, without a warning, while the block runs.

    These settings are global: a caller whose threads enter the block too holds it around all of them, so that what one
    thread restores is what the others need.
    """
    with cholesky_max_tries(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # a jitter of 1e-8, below every T that is allowed
        yield


class LogPosterior:
    """Minus log posterior and its gradient as functions of the flat raw parameters."""

    def __init__(
        self, model: Any, parameters: list[TrainedParameter], theory: str, prior: ScalePrior | None = None
    ) -> None:
        """Hold what an evaluation needs."""
        self.model, self.parameters, self.theory, self.prior = model, parameters, theory, prior
        self.evaluations, self.highest = 0, 0.0

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Return value and gradient."""
        assign(self.parameters, vector)
        self.evaluations += 1
        raws = [parameter.raw.requires_grad_(True) for parameter in self.parameters]
        try:
            with torch.enable_grad(), one_attempt():
                value = -(log_evidence(self.model, self.theory, self.prior) + log_prior(self.model))
                pieces = torch.autograd.grad(value, raws, allow_unused=True)
        except _FAILURES:
            value, pieces = torch.tensor(math.nan), ()
        unused = [p.path for p, piece in zip(self.parameters, pieces, strict=False) if piece is None]
        if unused:
            raise ValueError(f"train: expected parameters that the model's forward and likelihood use, got {unused}")
        gradient = torch.cat([piece.flatten() for piece in pieces]).cpu().numpy() if pieces else np.zeros(len(vector))
        number = float(value.detach())
        if not math.isfinite(number) or not np.isfinite(gradient).all():
            # A point outside of the domain: higher than all before, so that the line search comes back.
            return self.highest + 1e4 * (1.0 + abs(self.highest)), np.zeros(len(vector))
        self.highest = max(self.highest, number)
        return number, gradient


class _Met(Exception):
    """A descent came to where an earlier one ended."""

    def __init__(self, run: Any) -> None:
        self.run = run


def _met(vector: np.ndarray, value: float, earlier: Sequence[Any]) -> Any:
    """Return the first of the earlier descents whose end is here, else None."""
    for run in earlier:
        if run.converged and abs(value - run.fun) <= _LEVEL and np.abs(vector - run.x).max() <= _NEAR:
            return run
    return None


def descend(
    objective: LogPosterior,
    start: Tensor,
    parameters: list[TrainedParameter],
    max_iterations: int,
    unit: np.ndarray | None = None,
    earlier: Sequence[Any] = (),
) -> Any:
    """Minimize within the boxes by L-BFGS-B; the result also has ``slope`` (projected) and ``converged``.

    It also has ``spread``, what the quasi-Newton matrix says of the posterior's standard deviations, and ``path``, the
    raw parameters and values of all evaluations. A descent that comes within a twentieth of the end of an earlier one,
    at its value, ends there.

    Args:
        objective: Value and gradient.
        start: First raw parameters.
        parameters: Whose boxes hold.
        max_iterations: Of L-BFGS-B.
        unit: Sizes of a good step, raw; one if None.
        earlier: Results of descents of the same objective.
    """
    from scipy.optimize import OptimizeResult, minimize  # a tenth of a second of import time, for this alone

    unit = np.ones(len(start)) if unit is None else unit
    low, high = (torch.cat([getattr(p, end) for p in parameters]).cpu().numpy() / unit for end in ("low", "high"))
    path: list[tuple[np.ndarray, float]] = []

    def watched(steps: np.ndarray) -> tuple[float, np.ndarray]:
        vector = steps * unit
        value, gradient = objective(vector)
        path.append((vector, value))
        if (run := _met(vector, value, earlier)) is not None:
            raise _Met(run)
        return value, gradient * unit

    steps, iterations = start.cpu().numpy() / unit, 0
    while True:
        try:
            found = minimize(
                watched,
                steps,
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(low, high, strict=True)),
                options={"maxiter": max_iterations, "maxfun": 4 * max_iterations, "ftol": _TOLERANCE, "gtol": 1e-4},
            )
        except _Met as met:
            return OptimizeResult({**met.run, "nfev": len(path)})
        slope = np.where(
            (found.x <= low) & (found.jac > 0) | (found.x >= high) & (found.jac < 0), 0.0, found.jac / unit
        )
        found.slope = float(np.abs(slope).max())
        iterations += found.nit
        # A line search that failed on a stale matrix looks like a small change: begin anew while that helps.
        if found.status != 0 or found.slope <= _SLOPE or iterations >= max_iterations or found.nit == 0:
            break
        steps = found.x
    found.converged = (found.status == 0 or found.slope <= _SLOPE) and found.fun < 1e300
    found.spread = np.sqrt(np.diagonal(found.pop("hess_inv").todense())) * unit
    found.x, found.nit, found.nfev, found.path = found.x * unit, iterations, len(path), path
    return found


class _Descent(NamedTuple):
    """One descent by itself, with a model of its own."""

    model: Any
    parameters: list[TrainedParameter]
    theory: str
    prior: ScalePrior | None
    start: Tensor
    max_iterations: int
    unit: np.ndarray | None

    def run(self) -> Any:
        objective = LogPosterior(self.model, self.parameters, self.theory, self.prior)
        return descend(objective, self.start, self.parameters, self.max_iterations, self.unit)


def _ended_where_met(run: Any, earlier: Sequence[Any]) -> Any:
    """Return what a descent that went to its own end would have found had it known the earlier ones."""
    from scipy.optimize import OptimizeResult

    for number, (vector, value) in enumerate(run.path, 1):
        if (met := _met(vector, value, earlier)) is not None:
            return OptimizeResult({**met, "nfev": number})
    return run


def descend_from_all(
    model: Any,
    parameters: list[TrainedParameter],
    theory: str,
    points: list[Tensor],
    max_iterations: int,
    executor: Executor | None = None,
) -> list[Any]:
    """Return where the descent from each point ends.

    Where at most six numbers train and there are 300 rows or more, several starts descend on a quarter of the rows
    first (at least 150, drawn with a seed of their own), and each place where they end is the start of one descent on
    all rows. All share the law of the scale, and a descent ends where it meets the end of an earlier one. By an
    executor every descent goes to its own end, since the others' are not known yet, and is cut afterwards where it
    would have met one: the results are the same.
    """
    prior = scale_prior(model, theory)

    def runs_from(starts: Sequence[Tensor], units: Sequence[np.ndarray | None]) -> list[Any]:
        runs: list[Any] = []
        if executor is None or len(starts) == 1:
            for start, unit in zip(starts, units, strict=True):
                objective = LogPosterior(model, parameters, theory, prior)
                runs.append(descend(objective, start, parameters, max_iterations, unit, runs))
            return runs
        tasks = []
        for start, unit in zip(starts, units, strict=True):
            own, its_parameters = copy.deepcopy((model, parameters))
            tasks.append(_Descent(own, its_parameters, theory, prior, start, max_iterations, unit))
        with one_attempt():
            for run in map_tasks(_Descent.run, tasks, executor):
                runs.append(_ended_where_met(run, runs))
        return runs

    rows = model.train_targets.shape[-1]
    fewer = max(_FEWEST_ROWS, rows // 4)
    worthwhile = len(points) > 1 and rows >= 2 * fewer and len(points[0]) <= _MOST_NUMBERS
    if not worthwhile or not _can_take_rows(model):
        return runs_from(points, [None] * len(points))
    some = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:fewer]
    with _on_rows(model, some.to(model.train_targets.device)):
        coarse = runs_from(points, [None] * len(points))
    ends: list[Any] = []
    for run in sorted(coarse, key=lambda run: run.fun):
        if all(np.abs(run.x - end.x).max() > _APART for end in ends):
            ends.append(run)
    # The posterior narrows with the root of the rows.
    units = [np.clip(end.spread * math.sqrt(len(some) / rows), *_STEPS) for end in ends]
    fine = runs_from([torch.as_tensor(end.x) for end in ends], units)
    return [fine[int(np.argmin([np.abs(run.x - end.x).max() for end in ends]))] for run in coarse]


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
