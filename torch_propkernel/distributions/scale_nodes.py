"""Nodes and weights that stand for a law of the scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..mixing import MixingLaw
from ..numerics.log_quadrature import integrate_log

_FEWEST, _MOST, _TOLERANCE = 33, 8193, 1e-10


def scale_nodes(law: MixingLaw, size: int, num_nodes: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes u = log r ``*batch_shape x n``, log weights, and the error of the density in ``size`` dimensions.

    The trapezoidal rule in u, which converges exponentially. The error compares it with the rule of every second node,
    for the density at the distances where r at its median and in its tails puts a point; that is the error of the
    coarser rule and a safe bound for the finer one. Elements of a batch that are point masses get equal nodes.
    """
    lower, upper = (v.to(torch.float64) for v in law.log_interval())
    if law.is_point_mass:
        return lower.unsqueeze(-1), torch.zeros_like(lower).unsqueeze(-1), torch.zeros_like(lower)
    if num_nodes is not None and num_nodes < 3:
        raise ValueError(f"num_nodes: expected at least 3, or None, got {num_nodes}")
    ends = [v.to(torch.float64) for v in law.log_interval(tail=1e-3)]
    places = torch.stack([ends[0], 0.5 * (ends[0] + ends[1]), ends[1]]).unsqueeze(-1)

    def error(u: Tensor, log_weights: Tensor) -> Tensor:
        """Relative difference to the rule of every second node at |x|^2 = size * r for three values of r."""
        shift = u - places
        terms = log_weights.detach() - 0.5 * size * (shift + torch.exp(-shift))
        coarse = torch.logsumexp(terms[..., ::2], -1) + math.log(2.0)
        return torch.expm1(coarse - torch.logsumexp(terms, -1)).abs().amax(0)

    found = integrate_log(
        law.log_density_at_nodes,
        lower,
        upper,
        tolerance=_TOLERANCE,
        fewest=_FEWEST if num_nodes is None else num_nodes,
        most=_MOST if num_nodes is None else num_nodes,
        error=error,
    )
    return found.nodes, found.log_values, found.error
