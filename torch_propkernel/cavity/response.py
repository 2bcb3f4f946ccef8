"""The vector a of the field at fixed units and fixed B: a strictly concave maximization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .closure import Closure
from .one_unit import OneUnit, Tilt
from .population import Pool

_MAX_ITERATIONS = 60
_MAX_PRODUCTS = 200  # in one Newton step
_FORCING = 0.1  # the part of Newton's equation that is left unsolved
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
    strength: Tensor,
    start: Tensor,
    correction: Tensor | None = None,
    tolerance: float = 1e-3,
) -> Response:
    r"""Solve T a + (N - T B) m(a) = y by Newton's method with an Armijo line search.

    a maximizes

    .. math:: a^T M y - \tfrac T2 a^T M a - \log Z_1(a), \qquad M = (N - T B)^{-1}

    Its gradient is M (y - T a) - m(a), its Hessian -(E2 - m m^T + T M), negative definite. Newton's equation is solved
    by conjugate gradients, preconditioned with V + T M, to a tenth. Cost: n P + P^2 operations for each of their
    products with the Hessian, for n units.

    Args:
        unit: The unit.
        pool: Weighted units.
        closure: B.
        targets: y, ``P``.
        strength: g of the units in B, ``n``.
        start: First a.
        correction: A covariance that is added to that of the units, ``P x P``; see :meth:`Pool.correction`.
        tolerance: Of the residual relative to |y|.

    Reference: THEORY.md, eq. (14).
    """
    temperature, width = closure.temperature, closure.width
    features, narrow = pool.features, pool.features.dtype
    response = closure.response_values
    ridge = temperature * response
    size = float(torch.linalg.norm(targets)) or 1.0
    rotated_targets = closure.vectors.mT @ targets

    pressure = 0.0
    if correction is not None:
        pressure = 0.5 * float((closure.precision() * correction).sum())

    def evaluate(field: Tensor) -> tuple[float, Tilt, Tensor, float]:
        tilt = unit.tilt(strength, unit.pull(features, field))
        weights, log_normalizer = pool.normalized(tilt)
        rotated = closure.vectors.mT @ field
        if correction is not None:  # a Gaussian part of f, in the field to first order
            log_normalizer += 0.5 * float(field @ (correction @ field)) - pressure
        value = float((response * rotated * (rotated_targets - 0.5 * temperature * rotated)).sum()) - log_normalizer
        return value, tilt, weights, log_normalizer

    field = start
    value, tilt, weights, log_normalizer = evaluate(field)
    for iteration in range(_MAX_ITERATIONS + 1):
        own = ((weights * tilt.mean).to(narrow) @ features).double() / math.sqrt(width)
        mean = own if correction is None else own + correction @ field
        unmet = rotated_targets - temperature * (closure.vectors.mT @ field)
        gradient = response * unmet - closure.vectors.mT @ mean
        residual = float(torch.linalg.norm(gradient / response)) / size
        if residual <= tolerance or iteration == _MAX_ITERATIONS or not math.isfinite(residual):
            break
        moment = weights * tilt.second_moment / width

        def curvature(rotated: Tensor, moment: Tensor = moment, own: Tensor = own) -> Tensor:
            vector = closure.vectors @ rotated
            pulled = (features @ vector.to(narrow)).double()
            product = ((moment * pulled).to(narrow) @ features).double() - own * (own @ vector)
            if correction is not None:
                product = product + correction @ vector
            return closure.vectors.mT @ product + ridge * rotated

        rotated = conjugate_gradients(curvature, closure.values + ridge, gradient)
        direction = closure.vectors @ rotated
        gain, length = float(gradient @ rotated), 1.0
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


def conjugate_gradients(multiply: Callable[[Tensor], Tensor], diagonal: Tensor, side: Tensor) -> Tensor:
    """Solve H z = side approximately, preconditioned with a diagonal.

    Where H has a negative curvature, by the rounding of single precision or by a correction too many, what was found so
    far is returned: an ascent direction in any case.

    Args:
        multiply: Product with H.
        diagonal: An estimate of H, positive.
        side: The right-hand side.
    """
    found, left = torch.zeros_like(side), side
    search = side / diagonal
    size = goal = float(left @ search)
    for _ in range(_MAX_PRODUCTS):
        product = multiply(search)
        curvature = float(search @ product)
        if not curvature > 0.0:
            return found if bool(found.any()) else search
        found = found + (size / curvature) * search
        left = left - (size / curvature) * product
        steepest = left / diagonal
        before, size = size, float(left @ steepest)
        if size <= _FORCING**2 * goal:
            break
        search = steepest + (size / before) * search
    return found
