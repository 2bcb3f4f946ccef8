"""The Gaussian process of a network, in double precision."""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from .._validation import as_values, as_width, positive_number
from ..functions import Activation
from ..kernels import RenormalizedNNGPKernel
from ..models.network_gp import NetworkGP


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
