"""Networks drawn from a posterior as a mixture of Gaussian processes, each conditioned on the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from .._validation import positive_number
from ..inference import Conditioned, OutputsProblem, Problem
from ..inference.conditioned import left_out_densities
from ..networks import ReadoutLaw
from ..networks.feature_network import FeatureNetwork
from ..numerics.pareto import smooth_log_weights
from .from_model import network_from_model

_LARGEST = 2**22  # numbers of one batch of features


class SampledConditioned(Conditioned):
    """Networks drawn from a posterior: each a Gaussian process in its readout, conditioned on the data.

    Args:
        problem: What is conditioned; independent noise.
        network: Architecture and prior.
        states: Whitened hidden weights of the draws, ``S x num_hidden``.
        log_weights: Normalized log weights ``S``; all alike if None.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, likelihood = torch.ones(1, 1, dtype=torch.float64), gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> kernel = RenormalizedNNGPKernel("identity", width=1).double()
        >>> problem = Problem.frozen(NetworkGP(x, x[:, 0], likelihood, kernel).double())
        >>> two = SampledConditioned(problem, network_of(problem), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
        >>> [round(v.item(), 6) for v in two.predict(x)]   # w = +-1: k = T = 1
        [0.5, 0.5]
    """

    log_weights: Tensor

    def __init__(
        self, problem: Problem, network: FeatureNetwork, states: Tensor, log_weights: Tensor | None = None
    ) -> None:
        """Store the draws."""
        if log_weights is None:
            log_weights = torch.full_like(states[:, 0], -math.log(len(states)))
        super().__init__(problem, log_weights)
        self.network, self.states = network, states

    def _laws(self, points: int) -> Iterator[tuple[Tensor, ReadoutLaw]]:
        """Yield the draws in batches, with the readout's law of each; ``points`` are those of the call."""
        x, y = self.problem.inputs.double(), columns_of(self.problem)
        temperature, variances = temperature_of(self.problem), self.network.readout_prior
        size = max(1, _LARGEST // (max(points, len(x)) * self.network.num_features))
        for states in self.states.split(size):
            yield states, ReadoutLaw(self.network.features(x, states), y, temperature, *variances)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means and (co)variances of the draws."""
        mean, spread = self.latent_moments(x, joint)
        return self.problem.prior(x).loc.unsqueeze(-2) + mean.squeeze(-1).to(x.dtype), spread.to(x.dtype)

    def latent_moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``... x S x m x D`` without the model's, and (co)variances (of each output), in float64."""
        means, spreads = [], []
        rows = x.double().unsqueeze(-3)  # every draw at every batch of points
        for states, law in self._laws(x.shape[:-1].numel()):
            features = self.network.features(rows, states)
            mean, variance = law.predict(features)
            means.append(mean)
            spreads.append(law.covariance(features) if joint else variance)
        return torch.cat(means, -3), torch.cat(spreads, -3 if joint else -2)

    def readout_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) of each draw, ``S x P x D``, and the diagonal of A^{-1}, ``S x P``."""
        pairs = [law.left_out_terms() for _, law in self._laws(0)]
        weights, precision = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return weights, precision

    @cached_property
    def _left_out_terms(self) -> tuple[Tensor, Tensor]:
        weights, precision = self.readout_terms()
        return weights.squeeze(-1), precision

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) and the diagonal of A^{-1} of each draw."""
        return self._left_out_terms

    def log_likelihoods(self) -> Tensor:
        """Return log p(y | w) of each draw."""
        return torch.cat([law.log_likelihood for _, law in self._laws(0)])

    def readout_gram(self) -> Tensor:
        """Return the mean over draws of the posterior mean of lambda_L v^T v / N_L, ``D x D``."""
        return torch.cat([law.order_parameter() for _, law in self._laws(0)]).mean(0)

    def _smooth(self, lifted: Tensor) -> Tensor:
        return smooth_log_weights(lifted.mT)[0].mT

    def left_out_shape(self) -> Tensor:
        """Return the shape k of the weights' tail for each point that is left out, ``P``."""
        return smooth_log_weights(-left_out_densities(*self.left_out_terms()).mT)[1]


def network_of(problem: Problem) -> FeatureNetwork:
    """Return the network whose prior is a problem's covariance, in float64.

    Raises:
        TypeError, ValueError: Another covariance, an infinite width, a batch of models.
    """
    if isinstance(problem, OutputsProblem):
        return network_from_model(problem.outputs, input_dim=problem.inputs.shape[-1]).double()
    if problem.targets.dim() != 1 or problem.inputs.dim() != 2:
        raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(problem.targets.shape)}")
    covariance = getattr(problem.whole_model, "covar_module", None)
    return network_from_model(covariance, input_dim=problem.inputs.shape[-1]).double()


def temperature_of(problem: Problem) -> float:
    """Return the noise variance of a problem.

    Raises:
        ValueError: Noise that differs between points, or zero.
    """
    if problem.temperature is None or problem.temperature.numel() != 1:
        raise ValueError("likelihood: expected a GaussianLikelihood, whose noise is one number, got another noise")
    return positive_number("likelihood.noise", float(problem.temperature.detach()))


def columns_of(problem: Problem) -> Tensor:
    """Return the targets minus the mean as columns, ``P x D``, in float64.

    Raises:
        ValueError: Targets are missing.
    """
    if isinstance(problem, OutputsProblem):
        if not problem.is_complete:
            raise ValueError(f"train_targets: expected none missing, got {int(problem.targets.isnan().sum())} NaN")
        return problem.residuals().double().mT
    return problem.residuals().double().unsqueeze(-1)
