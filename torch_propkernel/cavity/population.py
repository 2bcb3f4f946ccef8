"""Units as weighted samples of the tilted law: moved by prior-exact Hamiltonian Monte Carlo, kept as generations."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .one_unit import OneUnit, Tilt, weighted_gram

_TARGET = 0.75  # acceptance
_LONGEST = math.pi / 8  # four steps of it turn a unit into an independent draw of the prior
_SHORTEST = 1e-5


class Generation(NamedTuple):
    """Units drawn from the tilted law of one field.

    Attributes:
        weights: w, ``M x k``.
        features: phi(w), ``M x P``.
        log_base: Log density under which they were drawn, relative to the prior and normalized, ``M``.
    """

    weights: Tensor
    features: Tensor
    log_base: Tensor


class Pool(NamedTuple):
    """Several generations as one weighted sample.

    Attributes:
        features: ``n x P``.
        log_base: ``n``.
    """

    features: Tensor
    log_base: Tensor

    @classmethod
    def of(cls, generations: list[Generation]) -> Pool:
        """Join generations."""
        if len(generations) == 1:
            return cls(generations[0].features, generations[0].log_base)
        features = torch.cat([g.features for g in generations])
        return cls(features, torch.cat([g.log_base for g in generations]))

    def normalized(self, tilt: Tilt) -> tuple[Tensor, float]:
        """Return the weights of the units under a tilt, and log Z_1 = log of the mean weight relative to the prior."""
        log_weights = tilt.log_weight - self.log_base
        total = torch.logsumexp(log_weights, 0)
        return (log_weights - total).exp(), float(total) - math.log(len(log_weights))

    def prior_weights(self) -> tuple[Tensor, float]:
        """Return the weights of the units under the prior, and how much of it they still cover."""
        weights = torch.softmax(-self.log_base, 0)
        return weights, effective_share(weights)

    def control(self, unit: OneUnit, strength: Tensor, moment: Tensor) -> float:
        r"""Return rho, how much of the noise of the units' covariance is that of the prior's, estimated from them too.

        .. math:: \Delta = \rho\, (K - \hat K) / N, \qquad
                  \rho = \frac{\sum_u \alpha_u \kappa_u g_u^2}{\sum_u \kappa_u^2 g_u^2}

        K is the exact prior covariance, K^ that of the same units weighted back to the prior with kappa_u = weight /
        lambda, and alpha_u = weight E[v^2 | w_u] in the field. Added to the units' covariance, Delta removes the noise
        that both have in common; rho is the least squares coefficient in the metric of B, between 0 and 1.

        Args:
            unit: The unit.
            strength: g of the units in the field, ``n``.
            moment: Their alpha, ``n``.
        """
        kappa = self.prior_weights()[0] / unit.precision
        square = strength.square()
        rho = float((moment * kappa * square).sum() / (kappa.square() * square).sum().clamp_min(1e-300))
        return min(1.0, max(0.0, rho))

    def correction(self, unit: OneUnit, prior: Tensor, rho: float) -> Tensor:
        """Return Delta, ``P x P``; ``prior`` is K / N."""
        weights = self.prior_weights()[0] / (unit.precision * unit.width)
        return rho * (prior - weighted_gram(self.features, weights))


def effective_share(weights: Tensor) -> float:
    """Return the effective sample size of normalized weights, as a share of their number."""
    return float(1.0 / (weights.square().sum() * len(weights)))


def resample(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return indices drawn with normalized weights, systematically."""
    size = len(weights)
    start = torch.rand((), generator=generator, dtype=weights.dtype, device=weights.device)
    points = (torch.arange(size, dtype=weights.dtype, device=weights.device) + start) / size
    return torch.searchsorted(weights.cumsum(0), points).clamp_max(size - 1)


class Placed(NamedTuple):
    """Units at their place in a field a, B.

    Attributes:
        weights: w, ``M x k``.
        features: phi(w), ``M x P``.
        strength: g, ``M``.
        log_weight: Of their tilt, ``M``.
        slope: Its gradient in w, ``M x k``.
    """

    weights: Tensor
    features: Tensor
    strength: Tensor
    log_weight: Tensor
    slope: Tensor

    def energy(self, momentum: Tensor) -> Tensor:
        """Return the energy of each unit."""
        return 0.5 * (self.weights.square() + momentum.square()).sum(-1) - self.log_weight

    def where(self, condition: Tensor, other: Placed) -> Placed:
        """Return these units where the condition holds, and others elsewhere."""
        rows = condition.unsqueeze(-1)
        pairs = zip(self, other, strict=True)
        return Placed(*(torch.where(rows if mine.dim() > 1 else condition, mine, theirs) for mine, theirs in pairs))


class Mover:
    r"""Moves units under a fixed field; the prior's part of the motion is exact, a rotation of (w, p).

    Steps are adapted to an acceptance of 0.75 and differ at random between units by a factor of up to two either way,
    so that units in narrow and wide places both move. The law is left invariant at any step.

    Args:
        unit: The unit.
        dtype: Of the motion.
        generator: For all random numbers.
        steps: Leapfrog steps in a trajectory.
    """

    def __init__(self, unit: OneUnit, dtype: torch.dtype, generator: torch.Generator, steps: int = 4) -> None:
        """Start with the longest step."""
        self.unit, self.generator, self.steps = unit, generator, steps
        self.inputs = unit.inputs.to(dtype)
        self.step = _LONGEST
        self.acceptance = 1.0

    def draw(self, size: int) -> Generation:
        """Draw units from the prior."""
        shape = (size, self.inputs.shape[-1])
        weights = torch.randn(shape, generator=self.generator, dtype=self.inputs.dtype, device=self.inputs.device)
        zero = torch.zeros(size, dtype=torch.float64, device=weights.device)
        return Generation(weights, self.unit.features(weights), zero)

    def at(self, weights: Tensor, field: Tensor, precision: Tensor) -> Placed:
        """Return units at their place in a field; one backward pass of the activation."""
        root = math.sqrt(self.unit.width)
        with torch.enable_grad():
            hidden = (weights @ self.inputs.mT).requires_grad_()
            tracked = self.unit.outputs(hidden)
        features = tracked.detach()
        pressed = features @ precision
        strength = (pressed * features).sum(-1) / self.unit.width
        tilt = self.unit.tilt(strength, features @ field / root)
        push = pressed.mul_((tilt.second_moment / -self.unit.width).unsqueeze(-1)).addr_(tilt.mean, field / root)
        (slope,) = torch.autograd.grad(tracked, hidden, push)
        return Placed(weights, features, strength, tilt.log_weight, slope @ self.inputs)

    def move(self, weights: Tensor, field: Tensor, precision: Tensor, trajectories: int) -> Placed:
        """Return units after some trajectories under a, B."""
        dtype = self.inputs.dtype
        field, precision = field.to(dtype), precision.to(dtype)
        here = self.at(weights, field, precision)
        for _ in range(trajectories):
            spread = torch.empty(len(weights), 1, dtype=dtype, device=weights.device)
            spread.uniform_(-math.log(2.0), math.log(2.0), generator=self.generator)
            step = (self.step * spread.exp()).clamp_max(2.0 * _LONGEST)
            cosine, sine = step.cos(), step.sin()
            momentum = torch.empty_like(weights).normal_(generator=self.generator)
            before = here.energy(momentum)
            there = here
            for _ in range(self.steps):
                momentum = momentum + 0.5 * step * there.slope
                place, momentum = (
                    cosine * there.weights + sine * momentum,
                    cosine * momentum - sine * there.weights,
                )
                there = self.at(place, field, precision)
                momentum = momentum + 0.5 * step * there.slope
            chance = (before - there.energy(momentum)).clamp_max(0.0).exp().nan_to_num(0.0)
            taken = torch.empty_like(chance).uniform_(generator=self.generator) < chance
            here = there.where(taken, here)
            self.acceptance = float(chance.mean())
            factor = math.exp(0.7 * (self.acceptance - _TARGET))
            self.step = min(_LONGEST, max(_SHORTEST, self.step * factor))
        return here
