"""Nodes and weights that stand for a law of the scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..mixing import MixingLaw

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
    count = _FEWEST if num_nodes is None else num_nodes
    while True:
        grid = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=lower.device)
        u = lower.unsqueeze(-1) + (upper - lower).unsqueeze(-1) * grid
        log_weights = law.log_density(u.movedim(-1, 0)).movedim(0, -1)
        error = _error(law, u, log_weights.detach(), size)
        if num_nodes is not None or count >= _MOST or bool((error < _TOLERANCE).all()):
            return u, log_weights, error
        count = 2 * count - 1


def _error(law: MixingLaw, u: Tensor, log_weights: Tensor, size: int) -> Tensor:
    """Relative difference to the rule of every second node at |x|^2 = size * r for three values of r."""
    ends = [v.to(u.dtype) for v in law.log_interval(tail=1e-3)]
    at = torch.stack([ends[0], 0.5 * (ends[0] + ends[1]), ends[1]])
    shift = u - at.unsqueeze(-1)
    terms = log_weights - 0.5 * size * (shift + torch.exp(-shift))
    fine = torch.logsumexp(terms, -1)
    coarse = torch.logsumexp(terms[..., ::2], -1) + math.log(2.0)
    return torch.expm1(coarse - fine).abs().amax(0)
