"""The effective action of a network over blocks, whose order parameter is one matrix, in its logarithm."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..numerics.gaussian_terms import log_det_and_square
from ..numerics.symmetric import (
    exponential_differences,
    from_coordinates,
    num_coordinates,
    symmetric_basis,
    to_coordinates,
)
from .matrix_minimum import covariance_curvature

_PROBES = 8
_LEAST = 0.05  # of N: what an estimated second derivative is at least


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
    if isinstance(blocks, DenseBlocks):
        return (blocks.matrices.flatten(0, 1) @ vectors).unflatten(0, (-1, len(vectors)))
    return torch.stack([blocks(matrix).to(vectors) @ vectors for matrix in symmetric_basis(blocks.num_blocks, vectors)])


def base_matrix(base: Tensor | None, targets: Tensor) -> Tensor:
    """Return B as a matrix in float64 from a matrix or a diagonal; the identity if None."""
    if base is None:
        return torch.eye(len(targets), dtype=torch.float64, device=targets.device)
    return (base if base.dim() == 2 else torch.diag_embed(base)).double()


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

    def data_curvature(self, order_parameter: Tensor, along: Tensor) -> Tensor:
        """Return second derivatives of :meth:`data` at E along symmetric matrices ``C x r x r``, ``C x C``."""
        return covariance_curvature(self.blocks, self.base, self.targets, order_parameter, along)

    def sampled_curvature(self, coordinates: Tensor) -> Tensor:
        r"""Return an estimate of the second derivatives in X at a minimum, ``C x C``, positive definite anywhere.

        .. math:: N\, \langle S_p, S_q \rangle - \overline{(F_p z)^T F_q z} + 2\, (F_p \beta)^T F_q \beta, \qquad
                  F_p = L^{-1} \frac{\partial A}{\partial X_p} L^{-T}, \quad A = L L^T, \quad \beta = L^{-1} y

        with S_p the directions in the matrices Y of eq. (21d). The mean is over 8 random vectors z, always the same,
        in the place of the trace of F_p F_q: the error was 1 to 4 % of the largest second derivative. Cost: one
        factorization, one product of each block with 9 vectors, and 9 C solves with the triangular L.

        Args:
            coordinates: X.
        """
        size = self.blocks.num_blocks
        u, vectors = torch.linalg.eigh(from_coordinates(coordinates, size))
        turned = vectors.mT @ symmetric_basis(size, u) @ vectors
        first, middle = exponential_differences(u), 0.5 * (u.unsqueeze(-1) + u.unsqueeze(-2))
        along = to_coordinates(vectors @ (first * turned) @ vectors.mT)
        own = (first * (-middle).exp() * turned).flatten(-2)
        order_parameter = (vectors * u.exp()) @ vectors.mT
        factor, info = torch.linalg.cholesky_ex(self.base + self.blocks(order_parameter).to(self.base))
        if bool(info > 0):  # outside the domain, where no descent starts
            return self.width * torch.eye(len(along), dtype=u.dtype, device=u.device)
        generator = torch.Generator(device=u.device).manual_seed(0)
        probes = torch.randn(len(factor), _PROBES, generator=generator, dtype=u.dtype, device=u.device)
        half = torch.linalg.solve_triangular(factor, self.targets.unsqueeze(-1), upper=False)
        back = torch.linalg.solve_triangular(factor.mT, torch.cat([probes, half], -1), upper=True)
        moved = torch.tensordot(along, times(self.blocks, back), 1).movedim(0, 1)  # P x C x 9
        pulled = torch.linalg.solve_triangular(factor, moved.flatten(1), upper=False).unflatten(1, moved.shape[1:])
        heard, data = pulled[..., :-1].movedim(1, 0).flatten(1), pulled[..., -1].mT
        curved = self.width * own @ own.mT - heard @ heard.mT / _PROBES + 2.0 * data @ data.mT
        values, axes = torch.linalg.eigh(curved)
        return (axes * values.clamp_min(_LEAST * self.width)) @ axes.mT

    @property
    def scale(self) -> Tensor:
        """The size of the terms of the gradient, against which a residual is judged."""
        return torch.as_tensor(len(self.targets) + self.width, dtype=self.base.dtype, device=self.base.device)
