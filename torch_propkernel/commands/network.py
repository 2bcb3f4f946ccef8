"""The Gaussian process of a network, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gpytorch
import torch
from torch import Tensor

from .._validation import as_values, as_width, positive_number
from ..activations import Activation
from ..kernels import RenormalizedNNGPKernel
from ..models import NetworkGP
from ..tuning import HyperparameterFit, fit_hyperparameters
from .data import Rows


@dataclass(frozen=True)
class Network:
    """All that the prior and the noise of a network need.

    Attributes:
        activation: The activation.
        width: N_1, ..., N_L.
        temperature: T.
        weight_variance: One number or L + 1.
        bias_variance: One number or L.
        composition: Name of the composition.
    """

    activation: Activation
    width: tuple[float, ...]
    temperature: float
    weight_variance: tuple[float, ...] = (1.0,)
    bias_variance: tuple[float, ...] = (1.0,)
    composition: str = "outer"

    def model(self, x: Tensor, y: Tensor, width: Tensor | None = None) -> NetworkGP:
        """Return the GP on training data in float64, with other widths if they are given.

        Raises:
            ValueError: A width, variance or temperature that is not positive, or a wrong number of variances.
        """
        temperature = positive_number("temperature", self.temperature)
        widths = as_width(self.width if width is None else width, torch.float64)
        weights = as_values("weight_variance", torch.tensor(self.weight_variance, dtype=torch.float64), len(widths) + 1)
        biases = as_values(
            "bias_variance", torch.tensor(self.bias_variance, dtype=torch.float64), len(widths), allow_zero=True
        )
        kernel = RenormalizedNNGPKernel(
            self.activation, widths, self.composition, weight_variance=weights, bias_variance=biases
        ).double()
        # Parameters are built in torch's default dtype: set them again after the conversion, without its rounding.
        kernel.weight_variance = weights
        kernel.bias_variance = biases
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
        likelihood.noise = torch.tensor(temperature, dtype=torch.float64)
        return NetworkGP(x, y, likelihood, kernel)

    def with_temperature(self, rows: Rows) -> tuple[Network, HyperparameterFit]:
        """Return the network with T and the bias variances of the highest evidence of the training rows.

        Raises:
            ConvergenceError: The search did not converge.
        """
        model = self.model(rows.x, rows.y)
        evidence = "mixture" if model.covar_module.is_scalar else "saddle"
        fit = fit_hyperparameters(model, train=("temperature", "bias_ratio"), evidence=evidence, warn=False)
        biases = tuple(model.covar_module.bias_variance.detach().flatten().tolist())
        return replace(self, temperature=fit.temperature, bias_variance=biases), fit

    def record(self, num_data: int) -> dict[str, Any]:
        """Return the numbers about the network."""
        return {
            "activation": repr(self.activation),
            "width": list(self.width),
            "composition": self.composition,
            "temperature": self.temperature,
            "weight_variance": list(self.weight_variance),
            "bias_variance": list(self.bias_variance),
            "alpha": [num_data / width for width in self.width],
        }

    def describe(self, rows: Rows, fit: HyperparameterFit | None) -> list[str]:
        """Return lines about the network for the reader."""
        layers = len(self.width)
        alpha = [len(rows.y) / width for width in self.width]
        name = f"{self.activation!r}, {layers} hidden layer{'s' * (layers > 1)} of width {listed(self.width)}"
        composition = f", composition {self.composition}" if layers > 1 else ""
        lines = [
            f"network: {name}, T = {self.temperature:.4g}, alpha = P/N = {listed(alpha)}{composition}",
            f"  weight variance {listed(self.weight_variance)}, bias variance {listed(self.bias_variance)}",
        ]
        if fit is not None:
            lines.append(
                f"  T and bias variances chosen by evidence (log evidence {fit.log_evidence:.2f}, standardized "
                f"targets): {fit.message}"
            )
        return lines


def listed(values: Sequence[float], digits: int = 4) -> str:
    """Return numbers separated by commas.

    Example:
        >>> listed((0.5, 100.0))
        '0.5, 100'
    """
    return ", ".join(f"{value:.{digits}g}" for value in values)


def hyperparameters_record(fit: HyperparameterFit | None) -> dict[str, Any] | None:
    """Return the numbers about a search by evidence."""
    if fit is None:
        return None
    values = {name: list(numbers) for name, numbers in fit.values.items()}
    return {"values": values, "log_evidence": fit.log_evidence, "message": fit.message, "at_bound": list(fit.at_bound)}
