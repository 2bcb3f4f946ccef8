"""Cumulative distribution and quantiles of the standard Student's t, elementwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor


def student_t_cdf(x: Tensor, df: Tensor) -> Tensor:
    """Return P(t <= x), evaluated by scipy in float64 on the CPU; not differentiable."""
    return _by_scipy(special.stdtr, special.ndtr, df, x)


def student_t_icdf(p: Tensor, df: Tensor) -> Tensor:
    """Return the quantile at level p, evaluated by scipy in float64 on the CPU; not differentiable."""
    return _by_scipy(_quantile, special.ndtri, df, p)


def inverse_gamma_icdf_of_normal(z: Tensor, df: Tensor) -> Tensor:
    """Return the quantile of df / chi-squared(df) at the level Phi(z): a standard normal mapped to a random scale."""
    ratio = _by_scipy(lambda nu, y: nu / (2.0 * special.gammainccinv(nu / 2.0, special.ndtr(y))), _one, df, z)
    return ratio.clamp(max=torch.finfo(ratio.dtype).max)


def _one(z: Any) -> Any:
    return np.ones_like(z)


def _quantile(df: Any, p: Any) -> Any:
    # By symmetry the smaller tail is inverted: levels above one half are exact differences from one.
    lower = np.minimum(p, 1.0 - p)
    # P(t^2 > x^2) is an incomplete beta function. (scipy's stdtrit loses half of the digits near the median.)
    ratio = special.betaincinv(df / 2.0, 0.5, 2.0 * lower)  # nu / (nu + x^2)
    rest = special.betainccinv(0.5, df / 2.0, 2.0 * lower)  # x^2 / (nu + x^2)
    return np.sign(p - 0.5) * np.sqrt(df * np.where(rest < 0.5, rest / (1.0 - rest), (1.0 - ratio) / ratio))


def _by_scipy(function: Any, limit: Any, df: Tensor, x: Tensor) -> Tensor:
    nu, value = (v.detach().to("cpu", torch.float64).numpy() for v in torch.broadcast_tensors(df, x))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result = np.where(np.isinf(nu), limit(value), function(np.where(np.isinf(nu), 1.0, nu), value))
    return torch.as_tensor(result, dtype=x.dtype, device=x.device)
