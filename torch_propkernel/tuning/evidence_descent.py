"""The log posterior of hyperparameters as a function of a flat vector, and its descent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gpytorch.settings import cholesky_max_tries
from linear_operator.utils.errors import NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from ..exceptions import ConvergenceError, NotPositiveDefiniteError
from .evidence import ScalePrior, finite_kernel, log_evidence, log_prior
from .trained_parameters import TrainedParameter

_TOLERANCE = 1e-8  # relative change of the log posterior at which L-BFGS-B stops
_MEMORY = 40  # steps that L-BFGS-B keeps: with fewer than 30 numbers all of a matrix that BFGS would have
_SLOPE = 1e-2  # nats per unit of a raw (log-like) parameter: what an abnormal end of a line search may leave
_NEAR, _LEVEL = 0.05, 1e-3  # raw parameters and nats within which a descent ends where an earlier one did
_FAILURES = (NotPSDError, NotPositiveDefiniteError, ConvergenceError, torch.linalg.LinAlgError)


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


class Evaluation(NamedTuple):
    """Raw parameters, minus log posterior there, and its gradient."""

    vector: np.ndarray
    value: float
    gradient: np.ndarray


class _Met(Exception):
    """A descent came to where an earlier one ended."""

    def __init__(self, run: Any) -> None:
        self.run = run


def met_end(vector: np.ndarray, value: float, earlier: Sequence[Any]) -> Any:
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
    known: Sequence[Evaluation] = (),
) -> Any:
    """Minimize within the boxes by L-BFGS-B; the result also has ``slope`` (projected) and ``converged``.

    It also has ``spread``, what the quasi-Newton matrix says of the posterior's standard deviations, ``path``, all
    evaluations, and ``left``, False until a caller gives the descent up. A descent that comes within a twentieth of
    the end of an earlier one, at its value, ends there. One that was stopped goes on, its quasi-Newton matrix with
    it, where its path is known: what it has evaluated is read and counted again, not computed.

    Args:
        objective: Value and gradient.
        start: First raw parameters.
        parameters: Whose boxes hold.
        max_iterations: Of L-BFGS-B.
        unit: Sizes of a good step, raw; one if None.
        earlier: Results of descents of the same objective.
        known: The path of this descent as far as it went before.
    """
    from scipy.optimize import OptimizeResult, minimize  # a tenth of a second of import time, for this alone

    unit = np.ones(len(start)) if unit is None else unit
    low, high = (torch.cat([getattr(p, end) for p in parameters]).cpu().numpy() / unit for end in ("low", "high"))
    path: list[Evaluation] = []
    objective.highest = max([objective.highest, *(evaluation.value for evaluation in known)])

    def watched(steps: np.ndarray) -> tuple[float, np.ndarray]:
        vector = steps * unit
        before = known[len(path)] if len(path) < len(known) else None
        if before is not None and np.array_equal(before.vector, vector):
            path.append(before)
        else:
            path.append(Evaluation(vector, *objective(vector)))
        value, gradient = path[-1].value, path[-1].gradient
        if (run := met_end(vector, value, earlier)) is not None:
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
                options={
                    "maxiter": max_iterations,
                    "maxfun": 4 * max_iterations,
                    "maxcor": _MEMORY,
                    "ftol": _TOLERANCE,
                    "gtol": 1e-4,
                },
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
    found.left = False
    found.spread = np.sqrt(np.diagonal(found.pop("hess_inv").todense())) * unit
    found.x, found.nit, found.nfev, found.path = found.x * unit, iterations, len(path), path
    return found
