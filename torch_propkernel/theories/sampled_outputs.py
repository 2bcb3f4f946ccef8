"""Sampled networks with several outputs, as a predictor."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..inference import ErrorEstimate, OutputsProblem
from ..numerics.pareto import smooth_log_weights
from .outputs import DRAWS, FittedOutputs, chunk_of_classes, standard_normals
from .sampled_conditioned import SampledConditioned

_LOG_TWO_PI = 1.8378770664093453


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
        return self.normalized_log_weights.exp().to(like)

    @cached_property
    def _left_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """A^{-1} y of each draw ``S x P x D``, the diagonal of A^{-1}, and log p(y_i | y_-i) of all outputs."""
        weights, precision = self.readout_terms()
        each = 0.5 * (precision.log().unsqueeze(-1) - weights.square() / precision.unsqueeze(-1) - _LOG_TWO_PI)
        return weights, precision, each.sum(-1)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Refuse: :meth:`leave_one_out` leaves out all outputs of a point."""
        raise ValueError("left_out_terms: expected one output; use leave_one_out, which leaves out a whole point")

    def left_out_shape(self) -> Tensor:
        """Return the shape k of the weights' tail for each point that is left out, ``P``."""
        return smooth_log_weights(-self._left_out[2].mT)[1]

    def leave_one_out(self) -> ErrorEstimate:
        """Return errors at each training point given the others, all its outputs left out, ``D x P``."""
        weights, precision, density = self._left_out
        lifted = self.normalized_log_weights.unsqueeze(-1) - density
        share = torch.log_softmax(self._smooth(lifted), 0).exp().unsqueeze(-1)
        noise = self.problem.noise_scale.to(precision)
        deviation, total = weights / precision.unsqueeze(-1), 1.0 / precision.unsqueeze(-1)
        away = (share * deviation).sum(0)
        variance = (share * ((total - noise).clamp_min(0.0) + (deviation - away).square())).sum(0)
        each = share.log() - 0.5 * (deviation.square() / total + total.log() + _LOG_TWO_PI)
        units, targets = self.problem.units, self.problem.targets.to(away)
        return ErrorEstimate(
            units.value(targets - away.mT),
            units.deviation(away.mT).square(),
            units.variance(variance.mT),
            log_density=units.log_density(torch.logsumexp(each, 0).mT),
        )

    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, ``D``."""
        weights, precision, _ = self._left_out
        noise = self.problem.noise_scale.to(precision)
        each = (noise.square() * (weights.square() - precision.unsqueeze(-1)) + noise).mean(-2)
        return self.problem.units.mean_variance(self._weights(each) @ each).to(self.problem.targets.dtype)


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
