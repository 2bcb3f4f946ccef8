"""The Gaussian process of a network, in double precision, and its baseline with a free scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from .._validation import as_values, as_width, positive_number
from ..functions import Activation, Spectrum
from ..generalization import ErrorEstimate, generalization_error, leave_one_out_error
from ..kernels import RenormalizedNNGPKernel


class NetworkGP(gpytorch.models.ExactGP):
    """A GP with zero mean and a renormalized kernel.

    Args:
        x: Training inputs.
        y: Training targets.
        likelihood: Its noise is the temperature.
        kernel: The renormalized kernel.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        likelihood: gpytorch.likelihoods.GaussianLikelihood,
        kernel: RenormalizedNNGPKernel,
    ) -> None:
        """Store the kernel."""
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Return the prior at x."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


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


@dataclass(frozen=True)
class FreeScale:
    """The infinitely wide network with a free overall scale r of its kernel: ScaleKernel(NNGPKernel).

    Attributes:
        scale: r.
        log_evidence: log p(y | r K, T).
        at_edge: Whether r is at an end of the interval that was searched, so that there may be no maximum.
        leave_one_out: Errors from the training data alone.
        test: Errors at test points, or None.
    """

    scale: float
    log_evidence: float
    at_edge: bool
    leave_one_out: ErrorEstimate
    test: ErrorEstimate | None


def best_scale(spectrum: Spectrum, temperature: float) -> tuple[float, float, bool]:
    r"""Maximize the evidence over a scale r of the kernel; return r, log p(y | r K, T) and whether r is at an edge.

    .. math:: \log p(y | r K, T) = -\tfrac12 \sum_i [\log(T + r k_i) + z_i^2 / (T + r k_i) + \log 2 \pi]

    A scan of log r in steps of 0.05, from where r K is a thousandth of the noise in every direction to where each
    z_i^2 that stands above the noise would be matched by r k_i (at most 1e9 times the balance of traces), then Brent's
    bounded search between the neighbors of the best step.

    Args:
        spectrum: Of one kernel matrix.
        temperature: T > 0.
    """
    k, z2 = spectrum.eigenvalues, spectrum.projections.square()

    def log_evidence(log_scale: Tensor) -> Tensor:
        spread = temperature + torch.exp(log_scale).unsqueeze(-1) * k
        return -0.5 * (spread.log() + z2 / spread + math.log(2.0 * math.pi)).sum(-1)

    low = math.log(1e-3 * temperature / float(k.max()))
    needed = z2[(z2 > temperature) & (k > 0)] / k[(z2 > temperature) & (k > 0)]
    ceiling = 1e9 * max(float(z2.sum() / k.sum()), temperature / float(k.max()))
    high = math.log(min(max(float(needed.max()) if len(needed) else 0.0, 1e3 * math.exp(low)), ceiling))
    grid = torch.linspace(low, high, max(3, int((high - low) / 0.05) + 1), dtype=torch.float64)
    best = int(torch.cat([log_evidence(part) for part in grid.split(64)]).argmax())
    found = minimize_scalar(
        lambda u: -float(log_evidence(torch.tensor(u, dtype=torch.float64))),
        bounds=(float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return math.exp(found.x), -float(found.fun), best in (0, len(grid) - 1)


@torch.no_grad()
def fit_free_scale(model: NetworkGP, x: Tensor | None = None, y: Tensor | None = None) -> FreeScale:
    """Return the baseline of a model: the same kernel at infinite width, times the scale of highest evidence.

    Args:
        model: The network's GP; it is not changed.
        x: Test inputs.
        y: Test targets.
    """
    kernel = model.covar_module
    with kernel.assigned_order_parameter(1.0):
        covariance = kernel(model.train_inputs[0]).to_dense()
    temperature = float(model.likelihood.noise)
    scale, evidence, at_edge = best_scale(Spectrum.from_kernel(covariance, model.train_targets), temperature)
    order_parameter = torch.ones(kernel.depth, dtype=torch.float64)
    order_parameter[-1] = scale  # every composition is proportional to the last layer's
    test = None
    if x is not None and y is not None:
        test = generalization_error(model, x, y, order_parameter=order_parameter)
    loo = leave_one_out_error(model, order_parameter=order_parameter)
    return FreeScale(scale, evidence, at_edge, loo, test)
