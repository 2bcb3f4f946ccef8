"""The effective action of a network over blocks, whose order parameter is one matrix, in its logarithm."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..numerics.gaussian_terms import log_det_and_square
from ..numerics.symmetric import from_coordinates, num_coordinates, to_coordinates


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
        if blocks.dim() != 4 or blocks.shape[0] != blocks.shape[1] or blocks.shape[2] != blocks.shape[3]:
            raise ValueError(f"blocks: expected shape (B, B, P, P), got {tuple(blocks.shape)}")
        turned = blocks.permute(1, 0, 3, 2)
        if not torch.allclose(blocks, turned, rtol=1e-5, atol=1e-8 * float(blocks.abs().max())):
            away = float((blocks - turned).abs().max())
            raise ValueError(f"blocks: expected K_ba to be the transpose of K_ab, got differences up to {away:.3g}")
        both = 0.5 * (blocks + blocks.mT)
        return cls(to_coordinates(both.permute(2, 3, 0, 1)).movedim(-1, 0))

    def __call__(self, order_parameter: Tensor) -> Tensor:
        """Return sum_ab E_ab K_ab."""
        size = self.matrices.shape[-1]
        return (to_coordinates(order_parameter) @ self.matrices.flatten(1)).unflatten(-1, (size, size))


class BlockAction:
    r"""The saddle-point problem of one matrix order parameter over r blocks, in X = log E.

    .. math:: N S(X) - N r = N\, [\mathrm{tr}\, e^X - \mathrm{tr}\, X - r] + \log\det A + y^T A^{-1} y, \qquad
              A = \mathrm{base} + \sum_{ab} (e^X)_{ab} K_{ab}

    Calling the object gives the value at coordinates ``r (r + 1) / 2`` of X, differentiable; infinite where A is not
    positive definite. The gradient is exact, also where eigenvalues of X meet: that of the data's part in E_ab is
    :math:`\mathrm{tr}(A^{-1} K_{ab}) - \alpha^T K_{ab}\, \alpha`, :math:`\alpha = A^{-1} y`. Cost: a few Cholesky
    factorizations, and one sum over the blocks forward and backward.

    Args:
        blocks: The map from E to its covariance.
        base: Noise, and what else does not move, ``P x P``.
        targets: y with the mean subtracted, ``P``.
        width: N; without effect where infinite.

    Reference: THEORY.md, section 12, eq. (23).

    Example:
        >>> import torch
        >>> from torch_propkernel.actions import BlockAction, DenseBlocks
        >>> unit = torch.ones(1, 1, dtype=torch.float64)
        >>> action = BlockAction(DenseBlocks.of(unit.reshape(1, 1, 1, 1)), unit, 0.0 * unit[0], width=3.0)
        >>> round(action(torch.zeros(1, dtype=torch.float64)).item(), 5)   # log(1 + 1)
        0.69315
    """

    def __init__(self, blocks: BlockMatrices, base: Tensor, targets: Tensor, width: float) -> None:
        """Store the problem."""
        self.blocks, self.base, self.targets = blocks, base, targets
        self.width = width if math.isfinite(width) else 0.0
        self.num_coordinates = num_coordinates(blocks.num_blocks)

    def __call__(self, coordinates: Tensor) -> Tensor:
        """Return N S - N r, a number."""
        logs = from_coordinates(coordinates, self.blocks.num_blocks)
        order_parameter = torch.matrix_exp(logs)
        excess = (order_parameter - logs).diagonal().sum() - self.blocks.num_blocks
        return self.width * excess + self.data(order_parameter)

    def data(self, order_parameter: Tensor) -> Tensor:
        """Return log det A + y^T A^{-1} y at E, ``r x r``; infinite where A is not positive definite."""
        return log_det_and_square(self.base + self.blocks(order_parameter).to(self.base), self.targets)

    @property
    def scale(self) -> Tensor:
        """The size of the terms of the gradient, against which a residual is judged."""
        return torch.as_tensor(len(self.targets) + self.width, dtype=self.base.dtype, device=self.base.device)
