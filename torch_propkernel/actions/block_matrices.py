"""The map from a matrix order parameter to a covariance: matrices that are held in memory, or computed at each call."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..numerics.symmetric import symmetric_basis, to_coordinates


class BlockMatrices(Protocol):
    """The map from a symmetric matrix E, ``r x r``, to sum_ab E_ab K_ab, ``P x P``: linear, and differentiable in E.

    :class:`DenseBlocks` holds the matrices; a kernel that computes them again at each call is one too.

    Example:
        >>> import torch
        >>> from torch_propkernel.actions import BlockMatrices, DenseBlocks
        >>> blocks: BlockMatrices = DenseBlocks.of(torch.ones(2, 2, 3, 3))
        >>> blocks(torch.eye(2))[0, 0].item()
        2.0
    """

    num_blocks: int

    def __call__(self, order_parameter: Tensor) -> Tensor:
        """Return sum_ab E_ab K_ab."""


class DenseBlocks:
    r"""Blocks that are held in memory: r (r + 1) / 2 symmetric matrices of P x P.

    .. math:: \sum_{ab} E_{ab} K_{ab} = \sum_p e_p H_p, \qquad
              H_{aa} = K_{aa}, \quad H_{ab} = (K_{ab} + K_{ba}) / \sqrt 2 \ (a > b)

    with e the coordinates of E in an orthonormal basis of the symmetric matrices
    (``numerics.symmetric.to_coordinates``). Cost: ``P^2 r^2 / 2`` operations for each call.

    Args:
        matrices: H, ``r (r + 1) / 2 x P x P``.

    Example:
        >>> import torch
        >>> from torch_propkernel.actions import DenseBlocks
        >>> K = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> K = K + K.permute(1, 0, 3, 2)   # K_ba is the transpose of K_ab
        >>> E = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
        >>> torch.allclose(DenseBlocks.of(K)(E), torch.einsum("ab,abij->ij", E, K), atol=1e-6)
        True
    """

    def __init__(self, matrices: Tensor) -> None:
        """Store the matrices."""
        self.matrices = matrices
        self.num_blocks = (math.isqrt(8 * len(matrices) + 1) - 1) // 2

    @classmethod
    def of(cls, blocks: Tensor) -> DenseBlocks:
        """Take the blocks K_ab, ``r x r x P x P``, with K_ba the transpose of K_ab.

        Raises:
            ValueError: Another shape, or blocks that are not symmetric in this sense.
        """
        shape = tuple(blocks.shape)
        if len(shape) != 4 or shape[0] != shape[1] or shape[2] != shape[3] or 0 in shape:
            raise ValueError(f"blocks: expected shape (B, B, P, P), got {shape}")
        away = float((blocks - blocks.permute(1, 0, 3, 2)).detach().abs().max())
        if away > 1e-5 * float(blocks.detach().abs().max()):
            raise ValueError(f"blocks: expected K_ba to be the transpose of K_ab, got differences up to {away:.3g}")
        both = 0.5 * (blocks + blocks.mT)
        return cls(to_coordinates(both.permute(2, 3, 0, 1)).movedim(-1, 0))

    def __call__(self, order_parameter: Tensor) -> Tensor:
        """Return sum_ab E_ab K_ab."""
        size = self.matrices.shape[-1]
        return (to_coordinates(order_parameter) @ self.matrices.flatten(1)).unflatten(-1, (size, size))


def on_rows(blocks: BlockMatrices, rows: Tensor) -> DenseBlocks:
    """Return the blocks of some of the data, held in memory; others than :class:`DenseBlocks` are computed once."""
    if isinstance(blocks, DenseBlocks):
        return DenseBlocks(blocks.matrices[:, rows.unsqueeze(-1), rows])
    basis = symmetric_basis(blocks.num_blocks, torch.empty(0, dtype=torch.float64, device=rows.device))
    return DenseBlocks(torch.stack([blocks(matrix)[rows.unsqueeze(-1), rows].double() for matrix in basis]))


def times(blocks: BlockMatrices, vectors: Tensor) -> Tensor:
    """Return H_p times vectors ``P x m`` for the coordinates p of E, ``r (r + 1) / 2 x P x m``."""
    if isinstance(blocks, DenseBlocks):  # from the left, which is faster, as the matrices are symmetric
        return (vectors.mT @ blocks.matrices).mT
    return torch.stack([blocks(matrix).to(vectors) @ vectors for matrix in symmetric_basis(blocks.num_blocks, vectors)])


def base_matrix(base: Tensor | None, targets: Tensor) -> Tensor:
    """Return B as a matrix in float64 from a matrix or a diagonal; the identity if None."""
    if base is None:
        return torch.eye(len(targets), dtype=torch.float64, device=targets.device)
    return (base if base.dim() == 2 else torch.diag_embed(base)).double()
