"""Gaussian weights over one component of a uniformly distributed direction."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..exceptions import ConvergenceError

_TAIL = 45.0
"""Nats below the maximum at which the integrand is cut."""

_FIRST_NODES, _MAX_NODES = 65, 4097


def direction_moments(
    linear: Tensor, square: Tensor, dimension: Tensor, tolerance: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Average exp(a x - b x^2 / 2) over a component x of a uniform unit vector in N dimensions.

    .. math:: Z = \frac{\Gamma(N/2)}{\sqrt\pi\, \Gamma((N-1)/2)} \int_{-1}^{1} (1 - x^2)^{(N-3)/2} e^{a x - b x^2/2} dx

    and the mean and variance of x under the integrand. In x = tanh(eta) the integrand is analytic and has one maximum;
    the trapezoidal rule between the points 45 nats below it converges exponentially, also where N < 3 and the density
    of x diverges at the ends.

    Shapes: all broadcast to ``*p``. Accuracy: ``tolerance``, and rounding of log Gamma at large N (a constant in a and
    b). Cost: one or two hundred nodes for each element.

    Args:
        linear: a.
        square: b >= 0.
        dimension: N > 1, not necessarily an integer.
        tolerance: On the change of log Z at the last doubling of the nodes, relative to 1 + |log Z|.

    Returns:
        log Z, mean, variance.

    Raises:
        ConvergenceError: The tolerance was not reached with 4097 nodes.

    Reference: THEORY.md, section 3.

    Example:
        >>> zero, three = torch.zeros((), dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
        >>> log_z, mean, variance = direction_moments(zero + 1.0, zero, three)   # N = 3: x is uniform, Z = sinh(a) / a
        >>> abs(log_z.item() - math.log(math.sinh(1.0))) < 1e-13
        True
    """
    linear, square, dimension = torch.broadcast_tensors(linear, square, dimension)

    def exponent(eta: Tensor) -> Tensor:
        """Log integrand in eta, dx included, at ``*p`` or ``*p x nodes``."""
        a, b, n = (v if v.dim() == eta.dim() else v.unsqueeze(-1) for v in (linear, square, dimension))
        log_cosh = eta.abs() + torch.log1p((-2.0 * eta.abs()).exp()) - math.log(2.0)  # log(1 - x^2) = -2 log cosh(eta)
        x = torch.tanh(eta)
        return (1.0 - n) * log_cosh + a * x - 0.5 * b * x.square()

    top = _mode(linear, square, dimension - 1.0)
    floor = exponent(top) - _TAIL
    low, high = (top + sign * _reach(exponent, top, floor, sign) for sign in (-1.0, 1.0))
    nodes, previous = _FIRST_NODES, None
    while True:
        grid = torch.linspace(0.0, 1.0, nodes, dtype=top.dtype, device=top.device)
        eta = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * grid
        value = exponent(eta)
        total = torch.logsumexp(value, -1) + ((high - low) / (nodes - 1)).log()
        if previous is not None:
            change = ((total - previous).abs() / (1.0 + total.abs())).max()
            if bool(change <= tolerance):
                break
            if nodes >= _MAX_NODES:
                raise ConvergenceError(
                    f"integral over a direction: expected a change below {tolerance:.1e} at the last doubling, got "
                    f"{float(change):.1e} with {nodes} nodes"
                )
        previous, nodes = total, 2 * nodes - 1
    weights, x = torch.softmax(value, -1), torch.tanh(eta)
    mean = (weights * x).sum(-1)
    variance = (weights * (x - mean.unsqueeze(-1)).square()).sum(-1)
    constant = torch.lgamma(0.5 * dimension) - torch.lgamma(0.5 * (dimension - 1.0)) - 0.5 * math.log(math.pi)
    return total + constant, mean, variance


def _mode(linear: Tensor, square: Tensor, stiffness: Tensor) -> Tensor:
    """Return eta = atanh(x) where a - b x - (N - 1) x / (1 - x^2) = 0; the left side falls in x."""
    force = linear.abs()
    low, high = torch.zeros_like(force), torch.full_like(force, 18.0)  # 1 - tanh(18) is the last bit of one
    for _ in range(60):
        eta = 0.5 * (low + high)
        x = torch.tanh(eta)
        rising = force - square * x > stiffness * x * torch.cosh(eta).square()
        low, high = torch.where(rising, eta, low), torch.where(rising, high, eta)
    return torch.where(linear < 0, -0.5, 0.5) * (low + high)


def _reach(exponent: Callable[[Tensor], Tensor], top: Tensor, floor: Tensor, sign: float) -> Tensor:
    """Return how far from the top the unimodal log integrand falls to the floor: doubling, then halving."""
    inner, outer = torch.zeros_like(top), torch.full_like(top, 1e-6)
    for _ in range(60):
        inside = exponent(top + sign * outer) > floor
        if not bool(inside.any()):
            break
        inner, outer = torch.where(inside, outer, inner), torch.where(inside, 2.0 * outer, outer)
    for _ in range(8):
        middle = 0.5 * (inner + outer)
        inside = exponent(top + sign * middle) > floor
        inner, outer = torch.where(inside, middle, inner), torch.where(inside, outer, middle)
    return outer
