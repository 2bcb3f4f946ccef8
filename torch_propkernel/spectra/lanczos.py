"""Lanczos tridiagonalizations of one operator from many start vectors at once, and their Gauss quadratures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernel_operator import alone


class LanczosRun:
    r"""Tridiagonal matrices T_m of one operator K, each from a start vector of its own.

    .. math:: K V_m = V_m T_m + \beta_m v_{m+1} e_m^T, \qquad V_m^T V_m = 1, \quad v_1 = b / |b|

    All start vectors go through the operator in one product for each step. Every new vector is orthogonalized twice
    against all those before it (full reorthogonalization), so that the recurrence is the exact one to rounding. Where a
    Krylov space is exhausted its later coefficients are zero, which no quadrature sees.

    A run is extended in blocks of steps; :meth:`state` between two blocks is all that is needed to go on.

    Of several processes each has its own rows of the start vectors and of the basis, and only sums over rows are
    exchanged, four for each step.

    Shapes: start vectors ``P x c``, coefficients ``c x m``, the basis in blocks ``c x steps x P``. Memory: 8 c m P
    bytes. Cost of a step: one product with c columns and 8 c m P flops.

    Args:
        vectors: Start vectors b, ``P x c``, or the own rows of them.
        total: Sums over processes.

    Attributes:
        norms: ``|b|``, ``c``.
        alphas: Diagonals of T_m, ``c x m``.
        betas: Off-diagonals, the last one of which leads out of the space, ``c x m``.
        basis: Blocks of V, each ``c x steps x P``.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> run = LanczosRun(torch.ones(3, 1, dtype=torch.float64))
        >>> run.extend(matrix.matmul, 3)
        >>> nodes, weights = gauss_quadrature(run.alphas, run.betas)
        >>> [round(v, 12) for v in (*nodes[0].tolist(), *weights[0].tolist())]   # three eigenvalues, a third each
        [1.0, 2.0, 4.0, 0.333333333333, 0.333333333333, 0.333333333333]
    """

    def __init__(self, vectors: Tensor, total: Callable[[Tensor], Tensor] = alone) -> None:
        """Normalize the start vectors ``P x c``."""
        start = vectors.T.double()
        self.norms = _norms(start, total)
        self.alphas = start.new_zeros(len(start), 0)
        self.betas = start.new_zeros(len(start), 0)
        self.basis: list[Tensor] = []
        self._next = start / torch.where(self.norms > 0, self.norms, 1.0).unsqueeze(-1)

    @property
    def num_steps(self) -> int:
        """Number m of steps so far."""
        return self.alphas.shape[-1]

    @torch.no_grad()
    def extend(
        self, matmul: Callable[[Tensor], Tensor], num_steps: int, total: Callable[[Tensor], Tensor] = alone
    ) -> None:
        """Add a block of steps; if it is interrupted, the run is as it was before.

        Args:
            matmul: V -> K V for columns ``P x c``, or the own rows of both.
            num_steps: Steps, each one product.
            total: Sums over processes.

        Raises:
            ValueError: The basis was released.
        """
        if self.num_steps > 0 and (not self.basis or len(self.basis[0]) < len(self.norms)):
            raise ValueError("run: expected one with its whole basis, got one whose basis was released")
        vector = self._next
        block = vector.new_zeros(len(vector), num_steps, vector.shape[-1])
        alphas, betas = (vector.new_zeros(len(vector), num_steps) for _ in range(2))
        for step in range(num_steps):
            block[:, step] = vector
            product = matmul(vector.T).T
            alphas[:, step], squares = total(torch.stack([(product * vector).sum(-1), product.square().sum(-1)]))
            size = squares.sqrt()
            product = _orthogonal(product, [*self.basis, block[:, : step + 1]], total)
            norm = _norms(product, total)
            # What is left of a product that lies in the space is rounding.
            norm = torch.where(norm > 10.0 * torch.finfo(norm.dtype).eps * size, norm, 0.0)
            betas[:, step] = norm
            vector = torch.where(
                (norm > 0).unsqueeze(-1), product / torch.where(norm > 0, norm, 1.0).unsqueeze(-1), 0.0
            )
        self.basis.append(block)
        self.alphas, self.betas = torch.cat([self.alphas, alphas], -1), torch.cat([self.betas, betas], -1)
        self._next = vector

    def state(self) -> dict[str, Any]:
        """Return the run as tensors."""
        names = "norms", "alphas", "betas", "basis"
        return {"next": self._next, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device | str = "cpu") -> LanczosRun:
        """Return the run that a state describes."""
        run = cls.__new__(cls)
        run._next, run.basis = state["next"].to(device), [block.to(device) for block in state["basis"]]
        run.norms, run.alphas, run.betas = (state[name].to(device) for name in ("norms", "alphas", "betas"))
        return run

    def release(self, kept: int = 1) -> None:
        """Give the memory of the basis back, but for that of the first ``kept`` start vectors; there is no way on."""
        self.basis = [block[:kept].clone() for block in self.basis]


def _norms(vectors: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the norms of ``c x P`` vectors."""
    return total(vectors.square().sum(-1)).sqrt()


def _orthogonal(vectors: Tensor, basis: Sequence[Tensor], total: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``c x P`` vectors without their parts in the bases, twice: the second pass takes away its own rounding."""
    vectors = vectors.unsqueeze(-1)
    steps = [block.shape[1] for block in basis]
    for _ in range(2):
        parts = total(torch.cat([block @ vectors for block in basis], 1)).split(steps, 1)
        for block, part in zip(basis, parts, strict=True):
            vectors = vectors - block.mT @ part
    return vectors.squeeze(-1)


def gauss_quadrature(alphas: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return nodes and weights of the Gauss rule of each tridiagonal matrix, ``c x m``; the weights sum to one.

    :math:`b^T f(K) b \approx |b|^2 \sum_j w_j f(k_j)`, exact for polynomials of degree 2 m - 1. For functions whose
    even derivatives have one sign the error has one too: the rule is above log(T + k) and below 1 / (T + k).

    Args:
        alphas: Diagonals, ``c x m``.
        betas: Off-diagonals, ``c x m``; the last one is not used.

    Reference: Golub & Meurant (2010), Matrices, Moments and Quadrature, chapter 6.

    Example:
        >>> nodes, weights = gauss_quadrature(torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        >>> [round(v, 4) for v in (*nodes[0].tolist(), *weights[0].tolist())]   # of [[2, 1], [1, 2]]
        [1.0, 3.0, 0.5, 0.5]
    """
    nodes, vectors = torch.linalg.eigh(tridiagonal(alphas, betas))
    return nodes, vectors[..., 0, :].square()


def radau_quadrature(alphas: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rule of :func:`gauss_quadrature` with one node more, which is put at zero, ``c x (m + 1)``.

    For a positive semi-definite matrix its error has the opposite sign of that of the Gauss rule for log(T + k) and
    1 / (T + k): the truth lies between both.

    Reference: Golub & Meurant (2010), section 6.2.

    Example:
        >>> alphas, betas = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
        >>> nodes, weights = radau_quadrature(alphas, betas)   # E k = 2 and E k^2 = 5, with a node at zero
        >>> [round(v, 4) for v in (*nodes[0].abs().tolist(), *weights[0].tolist())]
        [0.0, 2.5, 0.2, 0.8]
    """
    # A little below zero, so that a singular matrix has no pivot of rounding.
    floor = 100.0 * torch.finfo(alphas.dtype).eps * alphas.abs().amax(-1, keepdim=True)
    unit = torch.zeros_like(alphas).unsqueeze(-1)
    unit[..., -1, 0] = 1.0
    shifted = tridiagonal(alphas + floor, betas)
    last = betas[..., -1:].square() * torch.linalg.solve(shifted, unit)[..., -1, :] - floor
    return gauss_quadrature(torch.cat([alphas, last], -1), torch.cat([betas, betas[..., -1:]], -1))


def tridiagonal(alphas: Tensor, betas: Tensor) -> Tensor:
    """Return symmetric matrices ``c x m x m`` from diagonals ``c x m`` and off-diagonals, the last one left out."""
    if alphas.shape[-1] == 1:
        return alphas.unsqueeze(-1)
    beside = torch.diag_embed(betas[..., :-1], offset=1)
    return torch.diag_embed(alphas) + beside + beside.mT
