"""The fair baselines of a network: free scale and Matern, tuned by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from .._tasks import map_tasks
from ..activations import Activation
from ..inference import ErrorEstimate
from ..kernels import NNGPKernel
from ..likelihoods import FiniteWidthLikelihood
from ..models import NetworkGP
from ..theories import InfiniteWidth
from .evidence_descent import one_attempt
from .fit_hyperparameters import fit_hyperparameters
from .hyperparameter_fit import HyperparameterFit


@dataclass(frozen=True, eq=False)
class TunedBaseline:
    """A GP tuned by evidence, and its leave-one-out predictions.

    Attributes:
        name: What it is.
        fit: Its hyperparameters, with the maximum of log p(y): not comparable with evidences of a grid, in which
            nothing was maximized.
        leave_one_out: Of the GP at these hyperparameters, in standardized units.
        unit: The user's unit of the targets in these.
    """

    name: str
    fit: HyperparameterFit
    leave_one_out: ErrorEstimate
    unit: float

    @property
    def pointwise_log_density(self) -> Tensor:
        """``log p(y_i | y_-i)`` of the standardized targets, ``P``."""
        density = self.leave_one_out.log_density
        if density is None:
            raise ValueError("leave_one_out: expected log densities, got none")
        return density

    @property
    def leave_one_out_log_density(self) -> Tensor:
        """Mean over points of the log density."""
        return self.pointwise_log_density.mean()

    @property
    def leave_one_out_error(self) -> Tensor:
        """Mean over points of (y_i - f(x_i))^2 under the posterior of the others, in the user's units squared."""
        return self.leave_one_out.mean_total * self.unit**2


def tuned_baselines(
    x: Tensor,
    y: Tensor,
    activations: Sequence[Activation],
    depths: Sequence[int],
    unit: float,
    executor: Executor | None = None,
) -> tuple[TunedBaseline, ...]:
    """Fit ScaleKernel(NNGPKernel), the best activation and depth by evidence, and Matern-5/2 with ARD.

    Args:
        x: Standardized inputs.
        y: Standardized targets.
        activations: Of the free scale.
        depths: Of the free scale.
        unit: The user's unit of the targets in these.
        executor: Takes the fits.
    """
    tasks = []
    for activation in activations:
        for depth in depths:
            inner = NNGPKernel(activation, depth, bias_variance=1.0)
            inner.raw_readout_variance.requires_grad_(False)
            name = f"ScaleKernel(NNGP {activation!r} depth {depth}), tuned"
            train = ["temperature", "bias_ratio", "scale"]
            if activation.homogeneous_degree is None:
                train.append("weight_variance")
            tasks.append((name, _model(x, y, ScaleKernel(inner)), train))
    matern = _model(x, y, ScaleKernel(MaternKernel(ard_num_dims=x.shape[-1])))
    tasks.append(("Matern-5/2 ARD, tuned", matern, ["temperature", "scale", "lengthscale"]))
    with one_attempt():
        *networks, tuned = map_tasks(_tune, tasks, executor)
    best = max(networks, key=lambda found: found[1].log_posterior)
    return tuple(
        TunedBaseline(name, fit, InfiniteWidth().fit(fit.model).leave_one_out(), unit) for name, fit in (best, tuned)
    )


def _model(x: Tensor, y: Tensor, kernel: Any) -> NetworkGP:
    model = NetworkGP(x, y, FiniteWidthLikelihood(), kernel).double()
    model.likelihood.noise = 0.1
    return model


def _tune(task: tuple[str, NetworkGP, list[str]]) -> tuple[str, HyperparameterFit]:
    name, model, train = task
    return name, fit_hyperparameters(model, train=train, throw=False, warn=False, starts=2)
