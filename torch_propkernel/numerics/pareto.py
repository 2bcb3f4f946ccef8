"""Pareto smoothing of importance weights, with the shape that says whether they can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRUSTED = 0.7
"""Shape k of the tail above which an average with these weights is not to be trusted (Vehtari et al.)."""

_FEWEST = 5  # weights in a tail, without which there is no fit


def smooth_log_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Replace the largest importance weights by quantiles of a generalized Pareto distribution fitted to them.

    .. math:: p(w) = \frac1\sigma \Big(1 + k \frac{w - u}{\sigma}\Big)^{-1/k - 1}

    fitted to the M = min(S/5, 3 sqrt(S)) largest of S weights, u the largest below them. An average with these weights
    has a finite variance where k < 1/2, and is of use up to k = 0.7.

    Shapes: ``*b x S``; smoothed and normalized log weights ``*b x S``, k ``*b``. k is infinite where the tail has fewer
    than five weights, and minus infinity where all weights of the tail are equal. Cost: a sort, and S^(1/2) passes over
    the tail.

    Reference: Vehtari, Simpson, Gelman, Yao and Gabry, J. Mach. Learn. Res. 25, 72 (2024), arXiv:1507.02646; Zhang and
    Stephens, Technometrics 51, 316 (2009).

    Example:
        >>> import torch
        >>> draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> shape = smooth_log_weights(-0.4 * draws.log())[1]   # w = u^{-k} has a Pareto law of shape k
        >>> abs(shape.item() - 0.4) < 0.1
        True
    """
    count = log_weights.shape[-1]
    tail = min(count // 5, math.ceil(3.0 * math.sqrt(count)))
    normalized = log_weights - torch.logsumexp(log_weights, -1, keepdim=True)
    if tail < _FEWEST:
        return normalized, torch.full_like(log_weights[..., 0], torch.inf)
    largest = log_weights.amax(-1, keepdim=True)
    ordered, order = torch.sort(log_weights - largest, -1)
    cut = ordered[..., -tail - 1 : -tail].exp()
    excess = ordered[..., -tail:].exp() - cut
    flat = excess[..., -1:] <= torch.finfo(excess.dtype).tiny
    excess = torch.where(flat, torch.linspace(1.0, 2.0, tail).to(excess), excess)
    shape, scale = _fit(excess)
    quantiles = (torch.arange(tail).to(excess) + 0.5) / tail
    steep = torch.where(shape.abs() < 1e-8, torch.full_like(shape, 1e-8), shape)
    smooth = cut + scale * torch.expm1(-steep * torch.log1p(-quantiles)) / steep
    smooth = torch.where(flat, ordered[..., -tail:].exp(), smooth.clamp_max(1.0))
    ordered = torch.cat([ordered[..., :-tail], smooth.log()], -1)
    smoothed = torch.empty_like(ordered).scatter_(-1, order, ordered)
    shape = torch.where(flat, torch.full_like(shape, -torch.inf), shape).squeeze(-1)
    return smoothed - torch.logsumexp(smoothed, -1, keepdim=True), shape


def _fit(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Return shape and scale, ``*b x 1``, of ascending excesses ``*b x M``: the posterior mean over a grid of k/sigma.

    The shape is shrunk towards 1/2 with the weight of ten observations, as Vehtari et al. do.
    """
    count = excess.shape[-1]
    grid = 30 + math.isqrt(count)
    points = 1.0 - torch.sqrt(grid / (torch.arange(grid).to(excess) + 0.5))
    quarter = excess[..., (count + 2) // 4 - 1].clamp_min(torch.finfo(excess.dtype).tiny)
    ratio = 1.0 / excess[..., -1:] + points / (3.0 * quarter.unsqueeze(-1))  # candidates of -k/sigma
    shapes = torch.log1p(-ratio.unsqueeze(-1) * excess.unsqueeze(-2)).mean(-1)  # *b x grid
    profile = count * ((-ratio / shapes).log() - shapes - 1.0)
    mean = (torch.softmax(profile, -1) * ratio).sum(-1, keepdim=True)
    shape = torch.log1p(-mean * excess).mean(-1, keepdim=True)
    scale = -shape / mean
    return (count * shape + 5.0) / (count + 10.0), scale
