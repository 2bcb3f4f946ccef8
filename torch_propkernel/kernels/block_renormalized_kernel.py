"""The covariance of a finite-width network over blocks, at a fixed matrix order parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from .._validation import as_width, check_finite, check_floating
from ..order_parameters import LinearChain
from .block_kernel import BlockKernel, KernelBlocks
from .matrix_order_parameter_kernel import MatrixOrderParameterKernel
from .nngp_kernel import _refuse_last_dim_is_batch


class BlockRenormalizedKernel(MatrixOrderParameterKernel):
    r"""Covariance of a network of finite width over B blocks, renormalized by one B x B matrix.

    .. math:: K_R(x, x') = \sum_{ab} Q_{ab} K_{ab}(x, x'), \qquad Q = R\, E\, R^T, \quad
              E \sim \mathrm{Wishart}_r(N + r + 1,\ I / N)

    K_ab is the covariance of blocks a and b of the network's last hidden layer (patches of an image, groups of inputs),
    with the prior variance of the readout; N is the number of units, or channels, that each block has; S = R R^T is the
    prior mean of Q, the readout's own matrix: the identity if every block is read by weights of its own. E, ``r x r``,
    is the order parameter, the identity at infinite width. The prior is dictated by the width: a GP with this kernel
    and noise T, trained by maximum a posteriori, minimizes the effective action; ``theories.SaddlePoint`` does it at
    once. For S of rank one E is a number and the theory is that of :class:`RenormalizedNNGPKernel`.

    The width is data, never trained. Overall scales of the blocks enter with Q as a product only: fix them to read Q as
    a prediction. Exact in the proportional limit for identity activations; for activations with a mean (relu) a part of
    the covariance that moves by itself is not separated, as for one block. B = 1 is :class:`RenormalizedNNGPKernel`
    with one layer.

    Shapes: inputs ``... x n x d`` and ``... x m x d`` give ``... x n x m``. Cost: see :class:`BlockKernel`.

    Args:
        blocks: K_ab: a :class:`BlockKernel`, or a B x B table of kernels (:class:`KernelBlocks`).
        width: N, a number or a tensor ``*batch_shape x 1``; real or ``math.inf``.
        prior_mean: S, ``B x B``, symmetric positive semidefinite; that of the blocks if None.
        chain: Several linear layers, whose lowest matrix G_1 stands in the place of E (:class:`LinearChain`, THEORY.md,
            eq. (26)); one layer if None. The width is then N_1, ..., N_L.
        batch_shape: Batch shape; taken from ``width`` and the blocks if those are larger.
        active_dims: Columns that are read.

    Attributes:
        blocks: The block kernel.
        order_parameter: E, ``*batch_shape x 1 x r x r``; set it with ``initialize(order_parameter=...)``. Of a chain
            E_1, ..., E_L, ``*batch_shape x L x r x r``.
        chain: The map from order parameters to the matrix between the columns of R.
        block_covariance: Q, ``*batch_shape x B x B``.
        factor: R, ``B x r``; None for the identity.
        width: ``*batch_shape x 1 x 1``, the buffer of the prior.

    Raises:
        TypeError: Blocks that are neither a block kernel nor a table of kernels.
        ValueError: More than one width, a width that is NaN or not positive, S that is not symmetric positive
            semidefinite or zero, order parameters that are not symmetric positive definite.

    Reference: Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 12, eqs. (22) and (23).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import BlockRenormalizedKernel, NNGPKernel
        >>> table = [[NNGPKernel("identity"), NNGPKernel("identity")], [None, NNGPKernel("identity")]]
        >>> kernel = BlockRenormalizedKernel(table, width=50)
        >>> kernel.order_parameter = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
        >>> round(kernel(torch.ones(1, 3)).to_dense().item(), 4)   # K_ab = |x|^2 / N_0 = 1: the sum of all Q_ab
        4.0
    """

    def __init__(
        self,
        blocks: BlockKernel | Sequence[Sequence[Kernel | None]],
        width: float | Tensor,
        *,
        prior_mean: Tensor | None = None,
        chain: LinearChain | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: Any = None,
    ) -> None:
        """Register the order parameter with the prior that the width dictates."""
        if not isinstance(blocks, (BlockKernel, list, tuple)):
            raise TypeError(f"blocks: expected a BlockKernel or a table of kernels, got {type(blocks).__name__}")
        table: BlockKernel = blocks if isinstance(blocks, BlockKernel) else KernelBlocks(blocks)
        shape = torch.broadcast_shapes(torch.Size(batch_shape or []), table.batch_shape)
        factor = table.factor if prior_mean is None else _factor(prior_mean, table.num_blocks)
        chain = chain or LinearChain([], table.num_blocks if factor is None else factor.shape[-1])
        widths = as_width(width)
        if widths.shape[-1] != chain.depth:
            layers = "one layer" if chain.depth == 1 else f"{chain.depth} layers"
            raise ValueError(f"width: expected {layers}, got {widths.shape[-1]} numbers")
        super().__init__(widths, chain.size, shape, active_dims)
        self.chain = chain
        own = table.batch_shape in (torch.Size(), self._batch_shape)
        self.blocks = table if own else table.expand_batch(self._batch_shape)
        self._prior_mean = None if prior_mean is None else _Factor(factor)

    @property
    def factor(self) -> Tensor | None:
        """R, ``B x r``; None for the identity."""
        return self.blocks.factor if self._prior_mean is None else self._prior_mean.value

    @property
    def block_covariance(self) -> Tensor:
        """Q, ``*batch_shape x B x B``."""
        return self.covariance_of_blocks(self.order_parameter)

    def covariance_of_blocks(self, order_parameter: Tensor) -> Tensor:
        """Return Q = R E R^T of E, ``*b x 1 x r x r``, of a chain R G_1 R^T of ``*b x L x r x r``."""
        return self._spread(self.chain(self.chain.matrices(order_parameter)))

    def _spread(self, matrix: Tensor) -> Tensor:
        """Return R G R^T."""
        factor = self.factor
        if factor is None:
            return matrix
        factor = factor.to(matrix)
        return factor @ matrix @ factor.mT

    def at(self, order_parameter: Tensor) -> Kernel:
        """Return the kernel at another order parameter, ``L x r x r``, also with a graph; it shares the blocks.

        It has no order parameter of its own. Of one layer any symmetric matrix is taken: the covariance is linear in E.
        """
        return WeightedBlocks(self.blocks, self.covariance_of_blocks(order_parameter), self.active_dims)

    def at_matrix(self, matrix: Tensor) -> Kernel:
        """Return the kernel at any symmetric matrix in the place of E or G_1, ``r_1 x r_1``: it is linear in it."""
        return WeightedBlocks(self.blocks, self._spread(matrix), self.active_dims)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return K_R(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        return self.blocks.weighted(x1, x2, self.block_covariance, diag)


class WeightedBlocks(Kernel):
    """sum_ab W_ab K_ab with weights W, ``B x B``, that are given and no parameter."""

    def __init__(self, blocks: BlockKernel, weights: Tensor, active_dims: Any = None) -> None:
        """Store the weights."""
        super().__init__(active_dims=active_dims)
        self.blocks, self.weights = blocks, weights

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the sum."""
        return self.blocks.weighted(x1, x2, self.weights.to(x1), diag)


class _Factor(torch.nn.Module):
    """Holds R apart from the kernel, whose own buffers GPyTorch indexes as a batch."""

    value: Tensor | None

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("value", value)


def _factor(prior_mean: Tensor, size: int) -> Tensor | None:
    """Return R with R R^T = S, of full column rank; None for the identity."""
    matrix = check_finite("prior_mean", check_floating("prior_mean", prior_mean)).detach()
    if tuple(matrix.shape) != (size, size):
        raise ValueError(f"prior_mean: expected shape {(size, size)}, got {tuple(matrix.shape)}")
    if torch.equal(matrix, torch.eye(size, dtype=matrix.dtype, device=matrix.device)):
        return None
    values, vectors = torch.linalg.eigh(matrix.double())
    rounding = size * torch.finfo(matrix.dtype).eps * values.abs().max()
    symmetric = torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-8)
    if not symmetric or bool((values < -rounding).any()) or not bool((values > rounding).any()):
        raise ValueError(
            "prior_mean: expected a symmetric positive semidefinite matrix that is not zero, got eigenvalues "
            f"{values.tolist()}" + ("" if symmetric else " of a matrix that is not symmetric")
        )
    kept = values > rounding
    return (vectors[:, kept] * values[kept].sqrt()).to(torch.get_default_dtype())
