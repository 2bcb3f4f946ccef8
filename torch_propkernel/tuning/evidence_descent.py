"""The log posterior of hyperparameters as a function of a flat vector, its starting points and its descent."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from gpytorch.settings import cholesky_max_tries
from linear_operator.utils.errors import NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from ..exceptions import ConvergenceError, NotPositiveDefiniteError
from .evidence import log_evidence, log_prior
from .trained_parameters import TrainedParameter

# Starts after the model's own values: T relative to the targets' mean square, b_0 / w_0, b_l / w_l above, and scales
# relative to the model's own. A large first bias begins with smooth functions; the evidence can have one maximum where
# noise explains the targets and another, at small T and a larger scale, where the function does.
_STARTS = ((math.exp(-4.0), 30.0, 0.3, 30.0), (math.exp(-8.0), 30.0, 0.3, 30.0), (math.exp(-1.0), 0.3, 0.3, 1.0))
MAX_STARTS = len(_STARTS) + 1
_TOLERANCE = 1e-10  # relative change of the log posterior at which L-BFGS-B stops
_SLOPE = 1e-2  # nats per unit of a raw (log-like) parameter: what an abnormal end of a line search may leave
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


class LogPosterior:
    """Minus log posterior and its gradient as functions of the flat raw parameters."""

    def __init__(self, model: Any, parameters: list[TrainedParameter], theory: str) -> None:
        """Hold what an evaluation needs."""
        self.model, self.parameters, self.theory = model, parameters, theory
        self.evaluations, self.highest = 0, 0.0

    @torch.no_grad()
    def assign(self, vector: np.ndarray) -> None:
        """Write flat raw parameters into the model."""
        pieces = torch.as_tensor(vector).split([p.raw.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.raw.copy_(piece.reshape(parameter.raw.shape))

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Return value and gradient."""
        self.assign(vector)
        self.evaluations += 1
        raws = [parameter.raw.requires_grad_(True) for parameter in self.parameters]
        try:
            with torch.enable_grad(), cholesky_max_tries(1), warnings.catch_warnings():
                warnings.simplefilter("ignore", NumericalWarning)  # a jitter of 1e-8, below every T that is allowed
                value = -(log_evidence(self.model, self.theory) + log_prior(self.model))
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


def descend(objective: LogPosterior, start: Tensor, parameters: list[TrainedParameter], max_iterations: int) -> Any:
    """Minimize within the boxes by L-BFGS-B; the result also has ``slope`` (projected) and ``converged``."""
    low, high = (torch.cat([getattr(p, end) for p in parameters]).cpu().numpy() for end in ("low", "high"))
    from scipy.optimize import minimize  # a tenth of a second of import time, for this alone

    found = minimize(
        objective,
        start.cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low, high, strict=True)),
        options={"maxiter": max_iterations, "maxfun": 4 * max_iterations, "ftol": _TOLERANCE, "gtol": 1e-4},
    )
    slope = np.where((found.x <= low) & (found.jac > 0) | (found.x >= high) & (found.jac < 0), 0.0, found.jac)
    found.slope = float(np.abs(slope).max())
    found.converged = (found.status == 0 or found.slope <= _SLOPE) and found.fun < 1e300 and objective.evaluations > 0
    return found
