"""The fair baselines of a network: free scale and Matern, tuned by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from linear_operator import to_dense
from torch import Tensor

from ..activations import Activation
from ..inference.left_out import leave_one_out_mixture
from ..kernels import NNGPKernel
from ..likelihoods import FiniteWidthLikelihood
from ..mixing.scale_integral import ScalePosterior
from ..models.network_gp import NetworkGP
from ..spectra.spectrum import Spectrum
from .fit_hyperparameters import fit_hyperparameters
from .hyperparameter_fit import HyperparameterFit


@dataclass(frozen=True, eq=False)
class Baseline:
    """A GP tuned by evidence, and its leave-one-out predictions.

    Attributes:
        name: What it is.
        fit: Its hyperparameters, with the maximum of log p(y): not comparable with evidences of a grid, in which
            nothing was maximized.
        pointwise_log_density: ``log p(y_i | y_-i)`` at these hyperparameters, ``P``.
        leave_one_out_error: Mean over points of (y_i - f(x_i))^2 under the posterior of the others, in
            the user's units squared.

    Example:
        >>> import torch
        >>> Baseline("GP", None, torch.tensor([-1.0, -2.0]), torch.tensor(0.5)).leave_one_out_log_density.item()
        -1.5
    """

    name: str
    fit: HyperparameterFit
    pointwise_log_density: Tensor
    leave_one_out_error: Tensor

    @property
    def leave_one_out_log_density(self) -> Tensor:
        """Mean over points of the log density."""
        return self.pointwise_log_density.mean()


def tuned_baselines(
    x: Tensor, y: Tensor, activations: Sequence[Activation], depths: Sequence[int], unit: float
) -> tuple[Baseline, ...]:
    """Fit ScaleKernel(NNGPKernel), the best activation and depth by evidence, and Matern-5/2 with ARD.

    Args:
        x: Standardized inputs.
        y: Standardized targets.
        activations: Of the free scale.
        depths: Of the free scale.
        unit: The user's unit of the targets in these.
    """
    networks = []
    for activation in activations:
        for depth in depths:
            inner = NNGPKernel(activation, depth, bias_variance=1.0)
            inner.raw_readout_variance.requires_grad_(False)
            name = f"ScaleKernel(NNGP {activation!r} depth {depth}), tuned"
            train = ["temperature", "bias_ratio", "scale"]
            if activation.homogeneous_degree is None:
                train.append("weight_variance")
            networks.append(_tune(name, x, y, ScaleKernel(inner), train, unit))
    best = max(networks, key=lambda baseline: baseline.fit.log_posterior)
    matern = ScaleKernel(MaternKernel(ard_num_dims=x.shape[-1]))
    tuned = _tune("Matern-5/2 ARD, tuned", x, y, matern, ["temperature", "scale", "lengthscale"], unit)
    return best, tuned


def _tune(name: str, x: Tensor, y: Tensor, kernel: Any, train: Sequence[str], unit: float) -> Baseline:
    model = NetworkGP(x, y, FiniteWidthLikelihood(), kernel).double()
    model.likelihood.noise = 0.1
    fit = fit_hyperparameters(model, train=train, throw=False, warn=False, starts=2)
    with torch.no_grad():
        spectrum = Spectrum.from_kernel(to_dense(kernel(x)), y, eigenvectors=True)
        zero = spectrum.eigenvalues.new_zeros(1)
        once = ScalePosterior(zero, zero, zero.squeeze(), zero.squeeze())  # all weight on r = 1
        temperature = model.likelihood.noise.squeeze()
        density, error = leave_one_out_mixture(spectrum, once, temperature, temperature)
    return Baseline(name, fit, density, error.mean() * unit**2)
