"""Marginals of a finite mixture of normals, over blocks of nodes so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from ..numerics.root_finder import find_roots

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
        """Return quantiles for levels in (0, 1), ``*s x *b x m``, by :func:`find_roots` between those of the nodes.

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
        nodes = self.means.shape[-2]
        # One row of nodes for each point, so that points that are done drop out.
        weights = self.log_weights.exp().unsqueeze(-2).expand(*self.means.movedim(-2, -1).shape).reshape(-1, nodes)
        means, stddevs = (v.movedim(-2, -1).reshape(-1, nodes) for v in (self.means, self.stddevs))
        levels, owner = level.reshape(-1), torch.arange(level.numel(), device=level.device) % len(means)

        def excess(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, float]:
            parts = []
            for some, row in zip(x.split(block), owner[index].split(block), strict=True):
                parts.append(_cdf_and_density(some.unsqueeze(-1), weights[row], means[row], stddevs[row], -1))
            value, density = (torch.cat(columns) for columns in zip(*parts, strict=True))
            return value - levels[index], density, 0.0

        block = max(1, _BLOCK // nodes)
        scale = (stddevs * weights).sum(-1)[owner]
        lower, upper = lower.reshape(-1), upper.reshape(-1)
        roots = find_roots(excess, lower, upper, 0.5 * (lower + upper), tolerance=tolerance * scale)
        if not bool(roots.converged.all()):
            raise ConvergenceError("quantiles: expected 200 steps to suffice; are all means and variances finite?")
        return roots.x.reshape(level.shape)

    def _cdf_and_density(self, value: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            _cdf_and_density(value.unsqueeze(-2), log_weight.exp(), mean, stddev, -2)
            for log_weight, mean, stddev in self._blocks(value)
        ]
        total, slope = (torch.stack(columns).sum(0) for columns in zip(*parts, strict=True))
        return total, slope

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


def _cdf_and_density(x: Tensor, weight: Tensor, mean: Tensor, stddev: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return the cumulative distribution and the density at x, summed over the dimension ``nodes``."""
    z = (x - mean) / stddev
    # torch.special.ndtr has an absolute error of 1e-17 only: useless in the lower tail
    total = (weight * (0.5 * torch.erfc(-math.sqrt(0.5) * z))).sum(nodes)
    return total, (weight * torch.exp(-0.5 * z.square()) / stddev).sum(nodes) / math.sqrt(2.0 * math.pi)
