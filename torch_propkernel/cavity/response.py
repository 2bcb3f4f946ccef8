"""The vector a of the field at fixed units and fixed B: a strictly concave maximization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .closure import Closure
from .one_unit import OneUnit, Tilt, weighted_gram
from .population import Pool

_MAX_ITERATIONS = 60
_SHORTEST = 1e-6


class Response(NamedTuple):
    """The solution of T a + (N - T B) m(a) = y over a weighted pool.

    Attributes:
        field: a, ``P``.
        tilt: Of the pool's units.
        weights: Normalized weights of the units under the tilt.
        log_normalizer: log Z_1, relative to the prior.
        mean: m(a), ``P``.
        residual: ``|T a + (N - T B) m - y| / |y|``.
        iterations: Newton steps.
    """

    field: Tensor
    tilt: Tilt
    weights: Tensor
    log_normalizer: float
    mean: Tensor
    residual: float
    iterations: int


def solve_response(
    unit: OneUnit,
    pool: Pool,
    closure: Closure,
    targets: Tensor,
    start: Tensor,
    correction: Tensor | None = None,
    tolerance: float = 1e-3,
) -> Response:
    r"""Solve T a + (N - T B) m(a) = y by Newton's method with an Armijo line search.

    a maximizes

    .. math:: a^T M y - \tfrac T2 a^T M a - \log Z_1(a), \qquad M = (N - T B)^{-1}

    Its gradient is M (y - T a) - m(a), its Hessian -(E2 - m m^T + T M), negative definite.

    Args:
        unit: The unit.
        pool: Weighted units.
        closure: B.
        targets: y, ``P``.
        start: First a.
        correction: A covariance that is added to that of the units, ``P x P``; see :meth:`Pool.correction`.
        tolerance: Of the residual relative to |y|.

    Reference: THEORY.md, eq. (14).
    """
    temperature, width = closure.temperature, closure.width
    features, narrow = pool.features, pool.features.dtype
    strength = unit.strength(features, closure.precision().to(narrow)).double()
    response = closure.response_values
    size = float(torch.linalg.norm(targets)) or 1.0
    rotated_targets = closure.vectors.mT @ targets

    pressure = 0.0
    if correction is not None:
        pressure = 0.5 * float((closure.precision() * correction).sum())

    def evaluate(field: Tensor) -> tuple[float, Tilt, Tensor, float]:
        tilt = unit.tilt(strength, unit.pull(features, field.to(narrow)).double())
        weights, log_normalizer = pool.normalized(tilt)
        rotated = closure.vectors.mT @ field
        if correction is not None:  # a Gaussian part of f, in the field to first order
            log_normalizer += 0.5 * float(field @ (correction @ field)) - pressure
        value = float((response * rotated * (rotated_targets - 0.5 * temperature * rotated)).sum()) - log_normalizer
        return value, tilt, weights, log_normalizer

    field, ridge = start, None
    value, tilt, weights, log_normalizer = evaluate(field)
    for iteration in range(_MAX_ITERATIONS + 1):
        mean = ((weights * tilt.mean).to(narrow) @ features).double() / math.sqrt(width)
        if correction is not None:
            mean = mean + correction @ field
        rotated_mean = closure.vectors.mT @ mean
        unmet = rotated_targets - temperature * (closure.vectors.mT @ field)
        gradient = response * unmet - rotated_mean
        residual = float(torch.linalg.norm(gradient / response)) / size
        if residual <= tolerance or iteration == _MAX_ITERATIONS or not math.isfinite(residual):
            break
        curvature = weighted_gram(features, weights * tilt.second_moment / width)
        own = mean if correction is None else mean - correction @ field
        curvature -= torch.outer(own, own)
        if ridge is None:
            ridge = closure.matrix(temperature * response)
            if correction is not None:
                ridge = ridge + correction
        curvature += ridge
        slope = closure.vectors @ gradient
        factor, info = torch.linalg.cholesky_ex(curvature)
        jitter = 1e-7 * float(curvature.diagonal().mean())
        while int(info) and math.isfinite(jitter):  # rounding of single precision, or a correction too many
            curvature.diagonal().add_(jitter)
            factor, info = torch.linalg.cholesky_ex(curvature)
            jitter *= 10.0
        direction = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
        gain, length = float(slope @ direction), 1.0
        while length > _SHORTEST:
            trial = evaluate(field + length * direction)
            if trial[0] >= value + 1e-4 * length * gain:
                break
            length *= 0.5
        else:
            break
        field = field + length * direction
        value, tilt, weights, log_normalizer = trial
    return Response(field, tilt, weights, log_normalizer, mean, residual, iteration)
