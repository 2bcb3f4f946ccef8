"""A symmetric matrix reduced to tridiagonal form, with the rotation that did it: solves for every shift and scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exceptions import NotPositiveDefiniteError
from .lapack import Array, rotated_by_eigenvectors

_BLOCK = 64  # LAPACK's largest block of reflectors
_ROOM = (_BLOCK + 1) * _BLOCK  # what it needs beside them


class Tridiagonal:
    r"""K = Q M Q^T with M tridiagonal and Q kept as Householder reflectors, in float64 on the CPU.

    .. math:: (T + r K)^{-1} = Q\, (T + r M)^{-1} Q^T

    so that after one reduction every temperature T and scale r costs O(P) for each right-hand side, without a second
    factorization. :meth:`rotate` and :meth:`solve` are differentiable in their columns.

    Shapes: columns ``*t x P x m``. Memory: one P x P matrix, that of the reflectors. Cost: 4/3 P^3 multiplications and
    additions, half of them in matrix-vector products: the time of 3 to 5 Cholesky factorizations; a rotation 2 P^2 for
    each column, Q itself (:meth:`orthogonal`) the time of about 3.

    Args:
        matrix: K, ``P x P``, symmetric; it is copied.

    Reference: Golub and Van Loan, Matrix Computations, section 8.3.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
        >>> reduced = Tridiagonal(matrix)
        >>> y = torch.ones(3, 1, dtype=torch.float64)
        >>> solved = reduced.solve(1.0, 0.5, reduced.rotate(y))   # (1 + K / 2)^{-1} y, rotated: K y = 4 y
        >>> round(solved.square().sum().item(), 12), [round(k, 12) for k in reduced.eigenvalues.tolist()]
        (0.333333333333, [1.0, 1.0, 4.0])
    """

    def __init__(self, matrix: Tensor) -> None:
        """Reduce the matrix."""
        from scipy.linalg import lapack  # a tenth of a second of import time, for this alone

        size = matrix.shape[-1]
        packed = matrix.detach().clone(memory_format=torch.contiguous_format).numpy().T  # symmetric: Fortran's order
        lwork = int(lapack.dsytrd_lwork(size, lower=1)[0])
        packed, self.diagonal, self.off_diagonal, self._tau, _ = lapack.dsytrd(
            packed, lower=1, lwork=lwork, overwrite_a=1
        )
        if size == 1:
            self.off_diagonal = np.zeros(1)  # as the wrappers of LAPACK want it
        # Reflector j is column j below the diagonal. Read from the second number on, in columns of length P, these are
        # the columns of a matrix whose last row, once the first row of the old one is zero, touches nothing.
        packed[0, 1:] = 0.0
        self._reflectors: Array = packed.reshape(-1, order="F")[1 : 1 + size * (size - 1)].reshape(size, -1, order="F")

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of K, ascending, ``P``."""
        from scipy.linalg import lapack

        return torch.from_numpy(lapack.dsterf(self.diagonal, self.off_diagonal)[0])

    def rotate(self, columns: Tensor) -> Tensor:
        """Return Q^T C."""
        return _LinearMap.of(columns, self._rotate, self._rotate_back)

    def rotate_back(self, columns: Tensor) -> Tensor:
        """Return Q C."""
        return _LinearMap.of(columns, self._rotate_back, self._rotate)

    def _rotate(self, columns: Array, transpose: str = "T") -> Array:
        from scipy.linalg import lapack

        if len(columns) == 1:
            return columns
        work = np.zeros(columns.shape, order="F")
        work[:-1] = columns[1:]
        # In blocks reflectors are only read; a few of them LAPACK writes and restores, which other threads would see.
        few = len(columns) - 1 <= _BLOCK
        reflectors = self._reflectors.copy(order="F") if few else self._reflectors
        lwork = _BLOCK * max(1, columns.shape[1]) + _ROOM
        work, _, _ = lapack.dormqr("L", transpose, reflectors, self._tau, work, lwork, overwrite_c=1)  # cannot fail
        work[1:] = work[:-1]
        work[0] = columns[0]
        return work

    def _rotate_back(self, columns: Array) -> Array:
        return self._rotate(columns, "N")

    def orthogonal(self) -> Tensor:
        """Return Q, ``P x P``."""
        from scipy.linalg import lapack

        size = len(self.diagonal)
        whole = np.zeros((size, size), order="F")
        whole[0, 0] = 1.0
        if size > 1:
            formed, _, _ = lapack.dorgqr(
                self._reflectors.copy(order="F"), self._tau, lwork=_BLOCK * size, overwrite_a=1
            )
            whole[1:, 1:] = formed[:-1]
        return torch.from_numpy(whole)

    def factor(self, temperature: float, scale: float) -> Callable[[Array], Array]:
        """Return what maps ``P x m`` columns to (T + r M)^{-1} columns.

        Raises:
            NotPositiveDefiniteError: T + r M is not positive definite to rounding.
        """
        from scipy.linalg import lapack

        pivots, ratios, info = lapack.dpttrf(temperature + scale * self.diagonal, scale * self.off_diagonal)
        if info:
            raise NotPositiveDefiniteError(
                f"covariance: expected a positive definite matrix, got one that is not to rounding, with T = "
                f"{temperature:.3g} beside eigenvalues up to {scale * float(self.eigenvalues[-1]):.3g}"
            )
        return lambda columns: lapack.dpttrs(pivots, ratios, columns)[0]

    def solve(self, temperature: float, scale: float, columns: Tensor) -> Tensor:
        """Return (T + r M)^{-1} C."""
        solve = self.factor(temperature, scale)
        return _LinearMap.of(columns, solve, solve)

    def rotate_to_eigenvectors(self, columns: Tensor) -> Tensor:
        """Return U^T C, ``P x m``, for columns that are rotated already, U the eigenvectors of M; O(P^2 m).

        Signs are arbitrary, as those of eigenvectors are.
        """
        return torch.from_numpy(rotated_by_eigenvectors(self.diagonal, self.off_diagonal, columns.numpy()))

    def label_sums(self, rotated: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums over columns w of w^T x M s^-2 w and w^T (x M)^2 s^-3 w, s = 1 + x M, at ratios x, ``n``."""
        columns, sums = rotated.numpy(), []
        for x in ratio.tolist():
            solve = self.factor(1.0, x)
            inner = solve(columns)
            outer = x * self._multiply(inner)
            sums.append(((inner * outer).sum(), (outer * solve(outer)).sum()))
        first, second = torch.tensor(sums, dtype=torch.float64).reshape(-1, 2).unbind(-1)
        return first, second

    def label_terms(self, rotated: Tensor, temperature: Tensor, scale: Tensor) -> Tensor:
        """Return w^T (T + r M)^-1 w at temperatures and scales of shape ``n``, summed over columns w."""
        columns, pairs = rotated.numpy(), zip(temperature.tolist(), scale.tolist(), strict=True)
        return torch.tensor([(columns * self.factor(t, r)(columns)).sum() for t, r in pairs], dtype=torch.float64)

    def _multiply(self, columns: Array) -> Array:
        """Return M C, ``P x m``."""
        product: Array = self.diagonal[:, None] * columns
        product[:-1] += self.off_diagonal[:, None] * columns[1:]
        product[1:] += self.off_diagonal[:, None] * columns[:-1]
        return product


class _LinearMap(torch.autograd.Function):
    """A linear map of columns that numpy computes, with its adjoint as the gradient."""

    @classmethod
    def of(cls, columns: Tensor, forward: Callable[[Array], Array], adjoint: Callable[[Array], Array]) -> Tensor:
        """Apply a map of ``P x m`` arrays to ``*t x P x m``."""
        flat = columns.movedim(-2, 0)
        mapped: Tensor = cls.apply(flat.reshape(flat.shape[0], -1), forward, adjoint)  # type: ignore[no-untyped-call]
        return mapped.reshape(flat.shape).movedim(0, -2)

    @staticmethod
    def forward(
        ctx: Any, columns: Tensor, forward: Callable[[Array], Array], adjoint: Callable[[Array], Array]
    ) -> Tensor:
        ctx.maps = forward, adjoint
        return torch.from_numpy(forward(columns.detach().numpy()))  # in LAPACK's order of memory

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        forward, adjoint = ctx.maps
        return _LinearMap.apply(grad, adjoint, forward), None, None  # type: ignore[no-untyped-call]
