"""Sampled networks with several outputs, as a predictor."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..inference import OutputsProblem
from ..inference.conditioned import left_out_densities
from ..numerics.pareto import smooth_log_weights
from .outputs import DRAWS, FittedOutputs, chunk_of_classes, standard_normals
from .sampled_conditioned import SampledConditioned


class SampledOutputsConditioned(SampledConditioned):
    """Networks with D outputs drawn from a posterior; outputs stand in the batch, ``D x m``.

    Given its hidden weights a network's outputs are independent and have one covariance; they are correlated since all
    of them read the same units. A point that is left out is left out of all outputs.

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import OutputsProblem
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> from torch_propkernel.theories.sampled_conditioned import network_of
        >>> x, kernel = torch.ones(1, 1), MultitaskRenormalizedKernel("identity", width=1, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(x, torch.tensor([[1.0, 2.0]]), kernel, temperature=1.0)
        >>> problem = OutputsProblem.of_outputs(model.double())
        >>> one = SampledOutputsConditioned(problem, network_of(problem), torch.ones(1, 1).double())   # w = 1: k = T
        >>> [round(v, 6) for v in one.predict(x.double())[0].flatten().tolist()]
        [0.5, 1.0]
    """

    problem: OutputsProblem

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``D x S x m`` and variances of the draws alike (joint: covariances ``D x S x m x m``)."""
        if x.dim() != 2:
            raise ValueError(f"x: expected shape (m, d) for several outputs, got {tuple(x.shape)}")
        mean, spread = self.latent_moments(x, joint)
        mean, spread = mean.movedim(-1, 0).to(x.dtype), spread.to(x.dtype)
        return self.problem.mean(x).unsqueeze(-2) + mean, spread.expand(len(mean), *spread.shape)

    def covariances(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of the outputs at each point, ``m x D x D``."""
        means, variances = self.moments(x)
        weights = self._weights(means)
        away = means - (weights @ means).unsqueeze(-2)
        own = torch.diag_embed((weights @ variances).mT)
        return own + torch.einsum("s,asm,bsm->mab", weights, away, away)

    def joint_covariance(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of all outputs at all points, interleaved, ``m D x m D``."""
        means, spreads = self.moments(x, joint=True)
        weights, number = self._weights(means), len(means)
        away = means - (weights @ means).unsqueeze(-2)
        mixed = torch.einsum("s,asi,bsj->iajb", weights, away, away)
        own = torch.einsum("s,sij,ab->iajb", weights, spreads[0], torch.eye(number).to(means))
        return (mixed + own).reshape(number * len(x), -1)

    def _weights(self, like: Tensor) -> Tensor:
        return self.log_weights.exp().to(like)

    @cached_property
    def _left_out_terms(self) -> tuple[Tensor, Tensor]:
        weights, precision = self.readout_terms()
        return weights.movedim(-1, 0), precision

    def _smooth(self, lifted: Tensor) -> Tensor:
        """Return log weights of the draws given the other points, ``S x P``, from those of each output, ``D x S x P``.

        A point is left out of all outputs: the densities of its targets are multiplied.
        """
        own = self.log_weights.unsqueeze(-1)
        return super()._smooth(own + (lifted - own).sum(0))

    def left_out_shape(self) -> Tensor:
        """Return the shape k of the weights' tail for each point that is left out, ``P``."""
        return smooth_log_weights(-left_out_densities(*self.left_out_terms()).sum(0).mT)[1]


class FittedSampledOutputs(FittedOutputs):
    """Sampled networks with several outputs at a model's training data.

    ``order_parameters["q"]`` and ``readout_norm`` are the posterior mean of ``lambda_L v^T v / N_L``, ``D x D``. A
    ``distribution`` is the normal law with the mixture's moments; ``class_probabilities`` and ``accuracy`` draw from
    the mixture itself.
    """

    conditioned: Any

    def _shares(self, x: Tensor, chunk_size: int = 1000) -> Tensor:
        x, number = self.problem.points(x), self.problem.num_outputs
        normal = standard_normals(number, x).mT.unsqueeze(-1)
        # Networks in random order: the quasi-random numbers have periods of powers of two.
        order = torch.randperm(DRAWS, generator=torch.Generator().manual_seed(0))
        index = order.to(x.device) % len(self.conditioned.states)
        shares = []
        for rows in x.split(chunk_of_classes(chunk_size, number)):
            means, variances = (v[:, index] for v in self.conditioned.moments(rows))
            largest = (means + variances.sqrt() * normal).argmax(0)
            shares.append(one_hot(largest, number).to(x.dtype).mean(0))
        return torch.cat(shares)
