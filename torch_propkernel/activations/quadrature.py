"""One-dimensional Gaussian integrals and Hermite coefficients of arbitrary functions, with error estimates."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..exceptions import PropKernelWarning
from ..numerics.safe_math import safe_divide

REACH = 12.0
"""The grid covers |z| <= REACH standard deviations; what is left out weighs exp(-36) = 2e-16."""

MIN_POINTS, MAX_POINTS = 2**9 + 1, 2**14 + 1
MIN_ORDERS = 16


class QuadratureWarning(PropKernelWarning):
    """A numerical Gaussian integral did not reach the accuracy that was asked for; the message says what it reached.

    Example:
        >>> issubclass(QuadratureWarning, UserWarning)
        True
    """


@lru_cache(maxsize=8)
def _hermite_table(points: int, orders: int) -> tuple[Tensor, Tensor]:
    z = np.linspace(-REACH, REACH, points)
    envelope = np.exp(-(z**2) / 4)
    functions = np.empty((orders + 1, points))
    functions[0] = envelope
    for n in range(orders):
        below = functions[n - 1] if n else 0.0
        functions[n + 1] = (z * functions[n] - np.sqrt(n) * below) / np.sqrt(n + 1)
    functions *= envelope * ((z[1] - z[0]) / np.sqrt(2 * np.pi))
    return torch.from_numpy(z), torch.from_numpy(functions)


def hermite_grid(points: int, orders: int) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of the Hermite coefficients of a function by the trapezoidal rule, in float64.

    .. math:: E[f(z) h_n(z)] \approx \sum_k w_{nk} f(z_k), \quad z \sim N(0, 1), \quad n = 0, \dots, \text{orders}

    with h_n the orthonormal Hermite polynomials. Shapes: (points,) and (orders + 1, points). The error decays
    exponentially in ``points`` for analytic f (as exp(-2 pi a / step) with a the distance of the nearest singularity
    from the real axis), as step^2 for kinks and as step for jumps. Weights come from the stable recurrence of the
    Hermite functions h_n(z) exp(-z^2/4). Results are cached: do not write into them.

    Args:
        points: number of equally spaced nodes on [-12, 12], odd, so that every second one is a grid again.
        orders: highest n.

    Example:
        >>> z, w = hermite_grid(513, 4)
        >>> [round(abs(float(m)), 12) for m in w @ z**2]  # z^2 = h_0 + sqrt(2) h_2
        [1.0, 0.0, 1.414213562373, 0.0, 0.0]
    """
    z, weights = _hermite_table(points, 1 << orders.bit_length())
    return z, weights[: orders + 1]


class HermiteExpansion(NamedTuple):
    """Hermite coefficients of a function at every variance, and its second moment in even and odd parts."""

    coefficients: Tensor
    even: Tensor
    odd: Tensor

    @property
    def remainder(self) -> tuple[Tensor, Tensor]:
        """Even and odd parts of E[f^2] - sum_n A_n^2, the weight of the orders that are left out."""
        squares = self.coefficients.square()
        return (self.even - squares[0::2].sum(0)).clamp_min(0), (self.odd - squares[1::2].sum(0)).clamp_min(0)


def hermite_expansion(f: Callable[[Tensor], Tensor], variance: Tensor, points: int, orders: int) -> HermiteExpansion:
    r"""Hermite coefficients of an elementwise function at many variances.

    .. math:: A_n(c) = E[f(\sqrt{c} z) h_n(z)], \quad E[f_{even}(\sqrt{c} z)^2], \quad E[f_{odd}(\sqrt{c} z)^2]

    A variance of zero is an ordinary value: A_0 = f(0). Shapes: (orders + 1, *variance.shape) and variance.shape twice.
    Accuracy: see :func:`hermite_grid`. Cost: points x orders per variance, in chunks of bounded memory.

    Args:
        f: elementwise function of float64 tensors.
        variance: c >= 0, float64, any shape.
        points: number of nodes.
        orders: highest n.

    Example:
        >>> import torch
        >>> e = hermite_expansion(torch.exp, torch.ones(1, dtype=torch.float64), 513, 2)
        >>> [round(float(a), 10) for a in e.coefficients / e.coefficients[0]]  # exp(1/2) (1, 1, 1/sqrt(2))
        [1.0, 1.0, 0.7071067812]
    """
    z, weights = (t.to(variance.device) for t in hermite_grid(points, orders))
    parts = []
    for sigma in variance.reshape(-1, 1).sqrt().split(max(1, 2**20 // points)):
        values = f(sigma * z)
        even, odd = values + values.flip(-1), values - values.flip(-1)
        moments = [(0.25 * part.square()) @ weights[:1].T for part in (even, odd)]
        parts.append(torch.cat([values @ weights.T, *moments], -1))
    table = torch.cat(parts).T.reshape(orders + 3, *variance.shape)
    return HermiteExpansion(table[:-2], table[-2], table[-1])


def expansion_error(
    f: Callable[[Tensor], Tensor], variance: Tensor, points: int, orders: int, analytic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Errors of a truncated Hermite expansion on a grid: truncation, quadrature, and the second moment they refer to.

    .. math::
        2 R, \qquad 2 \sqrt{E[f^2]}\, |A - A'| + |E[f^2] - E'[f^2]|, \qquad E[f^2], \qquad R = E[f^2] - \sum_n A_n^2

    The prime marks the grid of half as many points. The truncation is a rigorous bound, the quadrature error an
    estimate (far too high where convergence is exponential). For functions that are not analytic a third grid
    guards against an accidental agreement of two. Shapes: three tensors of the shape of ``variance``.

    Args:
        f: elementwise function of float64 tensors.
        variance: c >= 0, float64, any shape.
        points: number of nodes.
        orders: highest n.
        analytic: whether exponential convergence is expected.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> truncation, quadrature, power = expansion_error(torch.sin, one, 513, 16, True)
        >>> bool(truncation < 1e-12) and bool(quadrature < 1e-12)
        True
    """
    strides = (1, 2) if analytic else (1, 2, 4)
    grids = [hermite_expansion(f, variance, (points - 1) // stride + 1, orders) for stride in strides]
    power = grids[0].even + grids[0].odd
    quadrature = torch.zeros_like(power)
    for fine, coarse in zip(grids, grids[1:], strict=False):
        change = (fine.coefficients - coarse.coefficients).square().sum(0).sqrt()
        difference = 2 * power.sqrt() * change + (fine.even + fine.odd - coarse.even - coarse.odd).abs()
        quadrature = torch.maximum(quadrature, difference)
    even, odd = grids[0].remainder
    return 2 * (even + odd), quadrature, power


class Resolution(NamedTuple):
    """Grid and highest order that resolve a function, and the relative error that is left."""

    points: int
    orders: int
    relative_error: float


def resolve(
    f: Callable[[Tensor], Tensor], variance: Tensor, rtol: float, max_orders: int, analytic: bool
) -> Resolution:
    r"""Refine the grid and raise the highest order until the Hermite expansion of a function reaches a tolerance.

    .. math:: (\text{truncation} + \text{quadrature}) / E[f^2] \le \text{rtol}

    with the errors of :func:`expansion_error`; a function that vanishes is resolved. It ends at 2^14 + 1 points and
    ``max_orders`` whatever the error: look at it.

    Args:
        f: elementwise function of float64 tensors.
        variance: the few variances that must be resolved, one-dimensional.
        rtol: tolerance.
        max_orders: highest order that may be used.
        analytic: whether exponential convergence is expected.

    Example:
        >>> import torch
        >>> done = resolve(torch.sin, torch.ones(1, dtype=torch.float64), 1e-10, 512, True)
        >>> done.orders, done.relative_error < 1e-10
        (16, True)
    """
    points, orders = MIN_POINTS, min(MIN_ORDERS, max_orders)
    while True:
        truncation, quadrature, power = expansion_error(f, variance, points, orders, analytic)
        worst = torch.stack([safe_divide(e, power).amax() for e in (truncation, quadrature)])
        worst_truncation, worst_quadrature = worst.tolist()  # both are read from the device at once
        if worst_quadrature > rtol / 4 and points < MAX_POINTS:
            points = 2 * points - 1
        elif worst_truncation > rtol / 2 and orders < max_orders:
            orders = min(orders + orders // 2, max_orders)
        else:
            return Resolution(points, orders, worst_truncation + worst_quadrature)
