"""Integrals of positive functions that are known by their logarithm: find where they matter, refine until settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_ZOOMS = 12
_FINE_COUNT = 129


class LogIntegral(NamedTuple):
    """The integral of exp(g), with the nodes that it took.

    Attributes:
        nodes: Equally spaced u, ``*p x n``.
        log_values: g at the nodes, ``*p x n``.
        log_integral: Log of the integral, ``*p``.
        error: Its estimated error, ``*p``: the change at the last halving of the step, unless another was asked for.
        converged: ``*p``; whether that is within the tolerance.
    """

    nodes: Tensor
    log_values: Tensor
    log_integral: Tensor
    error: Tensor
    converged: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log of the nodes' weights in averages under exp(g), normalized, ``*p x n``."""
        return self.log_values - torch.logsumexp(self.log_values, -1, keepdim=True)


def integrate_log(
    log_integrand: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    *,
    tolerance: float = 1e-11,
    fewest: int = 129,
    most: int = 2**15 + 1,
    error: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> LogIntegral:
    r"""Integrate exp(g) between two ends by the trapezoidal rule, halving its step until the result is settled.

    .. math:: \log \int_{\text{low}}^{\text{high}} e^{g(u)}\, du

    The rule converges exponentially for analytic functions that have died off at both ends (:func:`find_support`).
    The error is the difference to the rule of every second node: that of the coarser rule, far above that of the
    result. Halving the step keeps the nodes and evaluates those between. Where the integral is not finite it is not
    refined.

    Shapes: a batch of integrals ``*p`` with a common number of nodes. Differentiable where g is.

    Args:
        log_integrand: g at ``*p x n``; NaN counts as minus infinity.
        low: Lower ends, ``*p``.
        high: Upper ends, ``*p``.
        tolerance: On the error, times 1 + |log integral| / 100.
        fewest: Number of nodes to begin with, odd.
        most: Number of nodes at which to give up.
        error: Another error estimate, from the nodes and g there: nodes that have to serve several integrands.

    Returns:
        Integral, error and nodes; look at ``converged``.

    Example:
        >>> import math
        >>> ends = torch.tensor([-10.0, 10.0], dtype=torch.float64)
        >>> found = integrate_log(lambda u: -0.5 * u**2, *ends)
        >>> abs(found.log_integral.item() - 0.5 * math.log(2 * math.pi)) < 1e-13, bool(found.converged)
        (True, True)
    """
    count = fewest
    nodes = _grid(low, high, count)
    values = _tabulate(log_integrand, nodes)
    while True:
        total = torch.logsumexp(values, -1) + ((high - low) / (count - 1)).log()
        if error is None:
            coarse = torch.logsumexp(values[..., ::2], -1) + (2.0 * (high - low) / (count - 1)).log()
            change = (total - coarse).abs()
        else:
            change = error(nodes, values)
        converged = change <= tolerance * (1.0 + 1e-2 * total.abs())
        if count >= most or bool((converged | ~torch.isfinite(total)).all()):
            return LogIntegral(nodes, values, total, change, converged)
        count = 2 * count - 1
        nodes = _grid(low, high, count)
        between = _tabulate(log_integrand, nodes[..., 1::2])
        pairs = torch.stack([values[..., :-1], between], -1).flatten(-2)
        values = torch.cat([pairs, values[..., -1:]], -1)


@torch.no_grad()
def find_support(
    log_integrand: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    *,
    depth: float = 60.0,
    step: float = 0.1,
) -> tuple[Tensor, Tensor]:
    r"""Find the interval in which exp(g) is above :math:`e^{-\text{depth}}` of its maximum.

    A grid over a first guess, then closer ones over what is left, and wider ones where an end is still inside. Between
    neighboring points a peak may hide: a concave g is bounded there by the chords of both neighbor cells, extended.

    Shapes: a batch ``*p``.

    Args:
        log_integrand: g at ``*p x n``; NaN counts as minus infinity.
        low: Lower end of the first guess, ``*p``; it should hold the maximum of g.
        high: Upper end.
        depth: Nats below the maximum; e^-60 is far below rounding.
        step: Largest step of the first grid, unless that had more than 4097 points.

    Returns:
        Lower and upper ends, ``*p`` each.

    Example:
        >>> import math
        >>> zero = torch.zeros((), dtype=torch.float64)
        >>> low, high = find_support(lambda u: -0.5 * (u / 1e-3) ** 2, zero - 40.0, zero + 50.0)
        >>> 1.0 < high.item() / math.sqrt(120) / 1e-3 < 1.4   # where u^2 / (2 * 1e-6) is 60
        True
    """
    count = int(((high - low).max() / step).clamp(64, 4096)) + 1
    for _ in range(_ZOOMS):
        cell = (high - low) / (count - 1)
        u = low.unsqueeze(-1) + cell.unsqueeze(-1) * torch.arange(count, dtype=low.dtype, device=low.device)
        value = _tabulate(log_integrand, u)
        rise = value.diff(dim=-1)
        left = torch.nn.functional.pad(value[..., 1:-1] + rise[..., :-1], (1, 0), value=torch.inf)
        right = torch.nn.functional.pad(value[..., 1:-1] - rise[..., 1:], (0, 1), value=torch.inf)
        hidden = torch.minimum(left, right).nan_to_num(-torch.inf, posinf=-torch.inf)
        highest = torch.maximum(torch.maximum(value[..., 1:], value[..., :-1]), hidden)
        floor = value.amax(-1, keepdim=True) - depth
        cells, inside = highest >= floor, value >= floor
        first = cells.to(torch.int8).argmax(-1)
        last = count - 1 - cells.flip(-1).to(torch.int8).argmax(-1)  # grid point at the right end of the last cell
        new_low = torch.where(first > 0, low + first * cell, low)
        new_high = torch.where(last < count - 1, low + last * cell, high)
        # An end that is still inside the region has to move out.
        new_low = torch.where(inside[..., 0], low - (high - low) * 0.5, new_low)
        new_high = torch.where(inside[..., -1], high + (high - low) * 0.5, new_high)
        closer = ((new_high - new_low) <= 0.6 * (high - low)).any()
        settled = not bool(closer | (inside[..., 0] | inside[..., -1]).any())
        low, high = new_low, new_high
        if settled:
            break
        count = _FINE_COUNT
    return low, high


def _grid(low: Tensor, high: Tensor, count: int) -> Tensor:
    parts = torch.linspace(0.0, 1.0, count, dtype=low.dtype, device=low.device)
    return low.unsqueeze(-1) + (high - low).unsqueeze(-1) * parts


def _tabulate(log_integrand: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    return torch.nan_to_num(log_integrand(u), nan=-torch.inf, posinf=torch.inf)
