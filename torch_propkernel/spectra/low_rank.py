"""A kernel matrix's part of low rank, and the preconditioner that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import whole_number
from .kernel_operator import KernelOperator, alone

_BLOCK = 128  # columns that are chosen at a time


@dataclass(frozen=True)
class LowRank:
    r"""Orthonormal U and eigenvalues k of a low-rank part of a kernel matrix, :math:`\hat K = U k U^T \preceq K`.

    With it :math:`\hat A = T + r \hat K` preconditions A = T + r K for every scale and temperature. Since
    :math:`\hat A \preceq A`, the number :math:`\rho^T \hat A^{-1} \rho` of a residual :math:`\rho = b - A x` is a bound
    of the squared error :math:`(x - A^{-1} b)^T A (x - A^{-1} b)`.

    Build it with :meth:`randomly_pivoted`.

    Attributes:
        vectors: U, ``P x R``; on one of several processes its own rows of them.
        eigenvalues: k, ascending, ``R``.
        remainder: Trace of K - K_hat, which the part leaves out.

    Example:
        >>> x = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64).unsqueeze(-1)
        >>> part = LowRank.randomly_pivoted(KernelOperator(lambda a, b: a @ b.T, x), 5)   # a matrix of rank one
        >>> part.eigenvalues.shape, part.remainder < 1e-8
        (torch.Size([1]), True)
    """

    vectors: Tensor
    eigenvalues: Tensor
    remainder: float

    @classmethod
    @torch.no_grad()
    def randomly_pivoted(cls, operator: KernelOperator, rank: int, seed: int = 0) -> LowRank:
        """Choose columns at random, each in proportion to what is left of its diagonal entry.

        Memory: two matrices of P x R. Cost: R columns of the kernel, 2 P R^2 flops. Fewer columns than ``rank`` are
        chosen where the rest of the matrix is rounding. Processes that share the operator share both.

        Args:
            operator: K.
            rank: Columns R, at most P of them.
            seed: Of the choice.

        Reference: Chen, Epperly, Tropp & Webber (2023), arXiv:2207.06503, algorithm 2.2 (blocks).
        """
        rank = min(whole_number("rank", rank), operator.num_data)
        left = operator.diagonal()
        floor = 1e-12 * float(left.max())
        generator = torch.Generator().manual_seed(seed)
        rows = operator.own_rows
        factor = left.new_zeros(rows.stop - rows.start, rank)
        known = 0
        while known < rank:
            positive = int((left > floor).sum())
            if positive == 0:
                break
            count = min(_BLOCK, rank - known, positive)
            chance = torch.where(left > floor, left, 0.0).cpu()
            pivots = torch.multinomial(chance, count, generator=generator).to(left.device)
            fresh = operator.own_columns(operator.inputs[pivots])
            fresh -= factor[:, :known] @ operator.rows_at(factor[:, :known], pivots).T
            corner = operator.rows_at(fresh, pivots)
            # Pivots of one block may be nearly alike: a little jitter keeps the corner positive definite, and K_hat
            # below K.
            jitter = 1e-10 * corner.diagonal().sum() + floor
            triangle = torch.linalg.cholesky(corner + jitter * torch.eye(count).to(corner))
            columns = torch.linalg.solve_triangular(triangle, fresh.T, upper=False).T
            factor[:, known : known + count] = columns
            taken = operator.gathered(columns.square().sum(-1, keepdim=True)).squeeze(-1)
            left = (left - taken).clamp_min(0.0)
            left[pivots] = 0.0
            known += count
        factor = factor[:, :known]
        values, vectors = map(operator.of_first_process, torch.linalg.eigh(operator.total(factor.T @ factor)))
        kept = values > 1e-14 * values[-1:]
        values = values[kept]
        return cls(factor @ (vectors[:, kept] / values.sqrt()), values, float(left.sum()))

    def solve(
        self,
        vectors: Tensor,
        scale: float | Tensor,
        temperature: float,
        total: Callable[[Tensor], Tensor] = alone,
    ) -> Tensor:
        """Return (T + r K_hat)^{-1} V, ``P x c``, for one scale r or one for each column, ``c``.

        Args:
            vectors: V; on one of several processes its own rows, and so is what is returned.
            scale: r.
            temperature: T.
            total: Sums over processes.
        """
        moved = self.eigenvalues.unsqueeze(-1) * scale
        change = -moved / (temperature + moved)
        return (vectors + self.vectors @ (change * total(self.vectors.T @ vectors))) / temperature
