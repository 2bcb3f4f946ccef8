"""Differences of exponentials and log-gamma functions that do not cancel, differentiable in every argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Below this argument lgamma itself is accurate enough; from here on 5 terms of Stirling's series are exact to rounding.
_STIRLING_FROM = 16.0


def exponential_excess(u: Tensor) -> Tensor:
    """Return e^u - 1 - u to relative rounding accuracy, also where it is about u^2 / 2."""
    small = u.abs() < 0.5
    v = torch.where(small, u, 0.0)
    series = torch.full_like(v, 1.0 / math.factorial(16))
    for k in range(15, 1, -1):
        series = series * v + 1.0 / math.factorial(k)
    w = torch.where(small, 1.0, u)
    return torch.where(small, v.square() * series, torch.expm1(w) - w)


def log_gamma_normalizer(a: Tensor) -> Tensor:
    """Return (a + 1) log a - a - lgamma(a + 1) for a > 0: the log density at u = 0 of log r, r ~ Gamma(a, rate a)."""
    small, large = _split(a)
    direct = (small + 1.0) * small.log() - small - torch.lgamma(small + 1.0)
    return torch.where(a < _STIRLING_FROM, direct, 0.5 * (large / (2.0 * math.pi)).log() - _stirling(large))


def log_gamma_ratio(a: Tensor, s: float) -> Tensor:
    """Return lgamma(a + s) - lgamma(a) - s log a for a > 0 and s >= 0; it vanishes as a grows."""
    small, large = _split(a)
    direct = torch.lgamma(small + s) - torch.lgamma(small) - s * small.log()
    growth = torch.log1p(s / large)
    series = (large + s - 0.5) * growth - s + _stirling(large + s) - _stirling(large)
    return torch.where(a < _STIRLING_FROM, direct, series)


def digamma_difference(a: Tensor, s: float) -> Tensor:
    """Return digamma(a + s) - digamma(a) for a > 0 and s >= 0."""
    small, large = _split(a)
    direct = torch.digamma(small + s) - torch.digamma(small)
    shifted = large + s
    series = torch.log1p(s / large) + 0.5 * s / (large * shifted) + _stirling_slope(shifted) - _stirling_slope(large)
    return torch.where(a < _STIRLING_FROM, direct, series)


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    """Both branches of a ``torch.where`` with arguments that keep the gradient of the other one finite."""
    return torch.where(a < _STIRLING_FROM, a, 1.0), torch.where(a < _STIRLING_FROM, _STIRLING_FROM, a)


def _stirling(a: Tensor) -> Tensor:
    """lgamma(a) - (a - 1/2) log a + a - log(2 pi) / 2."""
    x = a.reciprocal().square()
    return (1 / 12 - x * (1 / 360 - x * (1 / 1260 - x * (1 / 1680 - x * (1 / 1188))))) / a


def _stirling_slope(a: Tensor) -> Tensor:
    """The derivative of the above."""
    x = a.reciprocal().square()
    return -x * (1 / 12 - x * (1 / 120 - x * (1 / 252 - x * (1 / 240 - x * (1 / 132)))))
