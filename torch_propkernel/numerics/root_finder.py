"""Roots of many functions of one variable at once, each inside its own bracket."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Roots(NamedTuple):
    """One root of each of n functions.

    Attributes:
        x: The last point at which each function was evaluated, ``n``.
        value: f(x), ``n``.
        slope: f'(x), ``n``.
        converged: ``n``; False where the steps ran out or f was not finite.
        iterations: Evaluations of the function that took most of them.
    """

    x: Tensor
    value: Tensor
    slope: Tensor
    converged: Tensor
    iterations: int


@torch.no_grad()
def find_roots(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | float]],
    low: Tensor,
    high: Tensor,
    start: Tensor,
    *,
    rising: Tensor | bool = True,
    tolerance: Tensor | float = 0.0,
    max_iterations: int = 200,
) -> Roots:
    r"""Find the root of each of n functions, one sign change inside of each bracket, by safeguarded Newton steps.

    .. math:: x \leftarrow x - f(x)/f'(x), \quad \text{or } x \leftarrow (\text{low} + \text{high})/2

    The bracket shrinks to the side of the sign change at every evaluation. A Newton step is taken if it stays inside of
    the bracket and is at most half as long as the one before the last; else the bracket is halved. The convergence is
    quadratic near a simple root and never far behind bisection. Finished functions are not evaluated again.

    A search ends where f is at the rounding error of its terms, :math:`|f| \le \epsilon\, \text{size}`; where the next
    step is at most ``tolerance`` plus four units in the last place of x; or where Newton steps that are already short
    stop shrinking, which is rounding too.

    Shapes: all tensors are ``n``. Accuracy: rounding, or ``tolerance``. Not differentiable.

    Args:
        function: Takes x and the numbers of the functions to evaluate there, both ``m``; returns f, f' and the size of
            the terms of f, ``m`` each (a size of zero if the rounding of f is not to be judged).
        low: Lower ends of the brackets.
        high: Upper ends.
        start: First points, inside of the brackets.
        rising: Whether f goes from negative to positive; it may differ between the functions.
        tolerance: On the length of the next step, absolute, ``n`` or a number.
        max_iterations: Most evaluations of one function.

    Returns:
        The roots; look at ``converged``.

    Example:
        >>> squares = torch.tensor([2.0, 9.0], dtype=torch.float64)
        >>> zero = torch.zeros(2, dtype=torch.float64)
        >>> roots = find_roots(lambda x, i: (x**2 - squares[i], 2 * x, squares[i]), zero, squares, squares / 2)
        >>> torch.allclose(roots.x, squares.sqrt(), rtol=1e-15), bool(roots.converged.all())
        (True, True)
    """
    epsilon = torch.finfo(start.dtype).eps
    x, value, slope = start.clone(), torch.full_like(start, torch.nan), torch.full_like(start, torch.nan)
    converged = torch.zeros_like(start, dtype=torch.bool)
    active = torch.arange(len(start), device=start.device)
    falling = ~torch.as_tensor(rising, device=start.device).expand(len(start))
    room = torch.as_tensor(tolerance, dtype=start.dtype, device=start.device).expand(len(start))
    now, width = start, high - low
    before, step, short = 2.0 * width, width, math.sqrt(epsilon) * width
    iterations = 0
    while len(active):
        iterations += 1
        f, d, size = function(now, active)
        beyond = (f > 0) ^ falling
        low, high = torch.where(beyond, low, now), torch.where(beyond, now, high)
        newton = now - f / d
        length = (newton - now).abs()
        inside, shrinks = (newton >= low) & (newton <= high), 2.0 * length <= before
        new = torch.where(inside & shrinks, newton, 0.5 * (low + high))
        before, step = step, (new - now).abs()
        finite = torch.isfinite(f)
        small = (f.abs() <= epsilon * size) | (step <= room + 4.0 * epsilon * now.abs())
        settled = finite & (small | (inside & ~shrinks & (length <= short)))
        going = torch.nonzero(finite & ~settled).squeeze(-1) if iterations < max_iterations else active[:0]
        if len(going) < len(active):
            # Those that go on overwrite this when they end.
            x[active], value[active], slope[active], converged[active] = now, f, d, settled
            if len(going) == 0:
                break
            columns = (active, new, low, high, before, step, short, room, falling)
            active, new, low, high, before, step, short, room, falling = (column[going] for column in columns)
        now = new
    return Roots(x, value, slope, converged, iterations)
