"""Preconditioned conjugate gradients for many right-hand sides, which share the products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .kernel_operator import alone


class CGState(NamedTuple):
    r"""Where the iteration for each column stands; what a stopping rule may look at.

    Attributes:
        residual: :math:`|b - A x| / |b|`, ``c``.
        energy: :math:`b^T x + \rho^T x = 2 b^T x - x^T A x` with the residual :math:`\rho`, which is below
            :math:`b^T A^{-1} b` by :math:`|x - A^{-1} b|_A^2` from any start: of second order in the error, also where
            rounding has spoiled the steps. (:math:`b^T x` alone is of first order then.)
        energy_error: :math:`\rho^T \hat A^{-1} \rho` for the residual and the preconditioner, a bound of
            :math:`b^T A^{-1} b` minus the energy if the preconditioner is below A.
    """

    residual: Tensor
    energy: Tensor
    energy_error: Tensor


class CGSolution(NamedTuple):
    """Solutions, where they stand, and the products that they took.

    Attributes:
        x: ``P x c``.
        state: Of the last step, ``c`` each.
        converged: Whether the stopping rule was met, ``c``.
        num_steps: Products with A, each with those columns that were not done.
    """

    x: Tensor
    state: CGState
    converged: Tensor
    num_steps: int

    def of(self, columns: slice) -> CGSolution:
        """Return some of the columns."""
        state = CGState(*(value[columns] for value in self.state))
        return CGSolution(self.x[:, columns], state, self.converged[columns], self.num_steps)


@torch.no_grad()
def conjugate_gradients(
    matmul: Callable[[Tensor, Tensor], Tensor],
    b: Tensor,
    *,
    precondition: Callable[[Tensor, Tensor], Tensor],
    is_accurate: Callable[[CGState, Tensor], Tensor],
    max_steps: int,
    start: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = alone,
) -> CGSolution:
    r"""Solve A_c x_c = b_c for columns b, ``P x c``; a column that is done leaves the products.

    The matrices may differ from column to column, as :math:`A_c = T + r_c K` does, whose columns share the products
    with K: the functions are told which columns they are given.

    Args:
        matmul: Gets directions V, ``P x n``, and the indices of their columns, ``n``; returns A_c V_c.
        b: Right-hand sides, ``P x c``.
        precondition: Gets residuals and the indices of their columns; returns :math:`\hat A_c^{-1} V_c`, positive
            definite.
        is_accurate: The stopping rule: gets a state and the indices of its columns, returns a mask.
        max_steps: Limit of the steps.
        start: First x, ``P x c``; zero if None.
        total: Sums over processes, each of which has its own rows of all that is ``P x c``.

    Cost: one product and one preconditioner application a step; memory for five blocks of P x c.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
        >>> solution = conjugate_gradients(
        ...     lambda v, columns: matrix @ v, torch.ones(2, 1, dtype=torch.float64), precondition=lambda v, columns: v,
        ...     is_accurate=lambda state, columns: state.residual < 1e-12, max_steps=5)
        >>> solution.x.flatten().tolist(), solution.num_steps, bool(solution.converged.all())
        ([1.0, 0.25], 2, True)
    """
    x = torch.zeros_like(b) if start is None else start.clone()
    columns = torch.arange(b.shape[1], device=b.device)
    residual = b.clone() if start is None else b - matmul(start, columns)
    size = total(b.square().sum(0)).sqrt()
    size = torch.where(size > 0, size, 1.0)
    current = x.clone()
    better = precondition(residual, columns)
    direction = better.clone()

    def measured() -> Tensor:
        square, energy = residual.square().sum(0), ((b[:, columns] + residual) * current).sum(0)
        return total(torch.stack([square, energy, (residual * better).sum(0)]))

    squares, energy, slope = measured()
    last = [torch.zeros_like(size) for _ in CGState._fields]
    converged = torch.zeros_like(columns, dtype=torch.bool)
    for step in range(max_steps + 1):
        state = CGState(squares.sqrt() / size[columns], energy, slope)
        accurate = is_accurate(state, columns) | (state.residual == 0)
        done = accurate | (slope <= 0)  # a matrix that is not positive definite, or rounding: no way on
        for known, value in zip(last, state, strict=True):
            known[columns] = value
        converged[columns] = accurate
        if bool(done.any()) or step == max_steps:
            x[:, columns] = current
            left = torch.nonzero(~done).squeeze(-1)
            columns, slope = columns[left], slope[left]
            current, residual, direction = (v[:, left] for v in (current, residual, direction))
        if len(columns) == 0 or step == max_steps:
            break
        product = matmul(direction, columns)
        length = slope / total((direction * product).sum(0))
        current = current.add_(length * direction)
        residual = residual.sub_(length * product)
        better = precondition(residual, columns)
        before = slope
        squares, energy, slope = measured()
        direction = better + direction.mul_(slope / before)
    return CGSolution(x, CGState(*last), converged, step)
