"""Marginals of a finite mixture of normals, over blocks of nodes so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exceptions import ConvergenceError

_BLOCK = 2**22  # numbers in one temporary


@dataclass(frozen=True)
class MixtureMarginals:
    """Mixture of normals at each point: log weights ``*b x n``, means and standard deviations ``*b x n x m``."""

    log_weights: Tensor
    means: Tensor
    stddevs: Tensor

    def log_density(self, value: Tensor) -> Tensor:
        """Return the log density of each point on its own, ``*s x *b x m``."""
        parts = []
        for log_weight, mean, stddev in self._blocks(value):
            z = (value.unsqueeze(-2) - mean) / stddev
            parts.append(torch.logsumexp(log_weight - 0.5 * z.square() - stddev.log(), dim=-2))
        return torch.logsumexp(torch.stack(parts), dim=0) - 0.5 * math.log(2.0 * math.pi)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the cumulative distribution."""
        return self._cdf_and_density(value)[0]

    def icdf(self, level: Tensor, tolerance: float) -> Tensor:
        """Return quantiles for levels in (0, 1), ``*s x *b x m``: Newton's method inside a bracket that shrinks.

        The error is below ``tolerance``, by default rounding, in standard deviations of the widest node. First
        derivatives with respect to the mixture are right.
        """
        with torch.no_grad():
            x = self._solve(level, tolerance)
        if not any(v.requires_grad for v in (self.log_weights, self.means, self.stddevs, level)):
            return x
        value, density = self._cdf_and_density(x)  # the implicit function theorem
        return x - (value - value.detach() - level + level.detach()) / density.detach()

    def _solve(self, level: Tensor, tolerance: float) -> Tensor:
        z = torch.special.ndtri(level).unsqueeze(-2)
        ends = [mean + z * stddev for _, mean, stddev in self._blocks(level)]
        lower = torch.stack([end.amin(-2) for end in ends]).amin(0)
        upper = torch.stack([end.amax(-2) for end in ends]).amax(0)
        x = 0.5 * (lower + upper)
        step = before = upper - lower
        scale = (self.stddevs * self.log_weights.exp().unsqueeze(-1)).sum(-2)
        for _ in range(300):
            value, density = self._cdf_and_density(x)
            error = value - level
            upper, lower = torch.where(error >= 0, x, upper), torch.where(error <= 0, x, lower)
            newton = x - error / density
            # A step is taken if it stays inside and halves the one before the last; else the bracket is halved.
            good = (newton >= lower) & (newton <= upper) & (2.0 * (newton - x).abs() <= before)
            moved = torch.where(good, newton, 0.5 * (lower + upper))
            before, step, x = step, (moved - x).abs(), moved
            rounding = 4.0 * torch.finfo(x.dtype).eps * x.abs()
            if bool(((step <= tolerance * scale + rounding) | (error == 0)).all()):
                return x
        raise ConvergenceError("quantiles: expected 300 steps to suffice; are all means and variances finite?")

    def _cdf_and_density(self, value: Tensor) -> tuple[Tensor, Tensor]:
        total: list[Tensor] = []
        slope: list[Tensor] = []
        for log_weight, mean, stddev in self._blocks(value):
            z, weight = (value.unsqueeze(-2) - mean) / stddev, log_weight.exp()
            # torch.special.ndtr has an absolute error of 1e-17 only: useless in the lower tail
            total.append((weight * (0.5 * torch.erfc(-math.sqrt(0.5) * z))).sum(-2))
            slope.append((weight * torch.exp(-0.5 * z.square()) / stddev).sum(-2))
        return torch.stack(total).sum(0), torch.stack(slope).sum(0) / math.sqrt(2.0 * math.pi)

    def _blocks(self, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Log weights ``*b x k x 1``, means and standard deviations ``*b x k x m`` of k nodes at a time."""
        size = max(1, _BLOCK // max(1, value.numel(), self.means[..., 0, :].numel()))
        for start in range(0, self.means.shape[-2], size):
            nodes = slice(start, start + size)
            yield (
                self.log_weights[..., nodes].unsqueeze(-1),
                self.means[..., nodes, :],
                self.stddevs[..., nodes, :],
            )
