"""Kernels between the blocks of a function, such as the patches of an image, and their weighted sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from linear_operator import to_dense
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..numerics.autocast import outside_autocast
from ..numerics.differentiation import transforms_are_active
from .nngp_kernel import _refuse_last_dim_is_batch
from .recursion import same_points

Pairs = list[tuple[int, int]]

_TILE = 2**20
"""Entries of the matrices that are held at the same time, at least one matrix: 8 MB in double precision."""


class BlockKernel(Kernel, ABC):
    r"""Covariances of B blocks of a function, :math:`\mathrm{Cov}[g_a(x), g_b(x')] = K_{ab}(x, x')`.

    .. math:: K_{ba}(x, x') = K_{ab}(x', x), \qquad k(x, x') = \sum_{ab} S_{ab} K_{ab}(x, x'), \quad S = R R^T

    As a kernel it is k, the covariance of an infinitely wide network whose readout meets the blocks with the prior
    covariance S: the identity for a readout of its own for each block, rank one for a pool. At finite width S becomes
    the order parameter Q (:class:`BlockRenormalizedKernel`).

    A subclass gives ``num_blocks``, :meth:`covariances`, and :attr:`factor` where S is not the identity; kernels among
    its submodules are direct children. :class:`KernelBlocks` takes any kernels, :class:`ConvolutionalNNGPKernel` has
    the patches of images as its blocks.

    Cost: one matrix for each pair of blocks whose weight is not zero (for symmetric ones half of them), a few at a
    time; in the backward pass too, where they are computed again. The memory does not grow with B.

    Attributes:
        num_blocks: B.
        factor: R, ``B x r``; None for the identity.

    Reference: THEORY.md, section 12, eq. (22).

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> from torch_propkernel.kernels import BlockKernel, KernelBlocks
        >>> x, blocks = torch.eye(3), KernelBlocks([[RBFKernel(), None], [None, RBFKernel()]])
        >>> isinstance(blocks, BlockKernel), blocks.weighted(x, x, torch.tensor([[2.0, 9.0], [9.0, 1.0]]))[0, 0].item()
        (True, 3.0)
    """

    num_blocks: int

    @property
    def factor(self) -> Tensor | None:
        """R, ``B x r``; None for the identity."""
        return None

    def prepared(self, x: Tensor) -> Tensor:
        """Return what :meth:`covariances` reads of the inputs ``... x n x d``, computed once for all pairs."""
        return x

    @abstractmethod
    def covariances(self, pairs: Pairs, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        """Return K_ab of p pairs (a, b), ``... x p x n x m``, or their elementwise diagonals ``... x p x n``.

        Args:
            pairs: (a, b).
            z1: First points, as :meth:`prepared` returns them.
            z2: Second points.
            diag: Only the pairs of points (i, i).
            symmetric: Whether all pairs are (a, a) and both sets of points are the same.
        """

    def is_zero(self, a: int, b: int) -> bool:
        """Whether K_ab vanishes for all points."""
        return False

    @outside_autocast
    def weighted(self, x1: Tensor, x2: Tensor, weights: Tensor, diag: bool = False) -> Tensor:
        """Return sum_ab W_ab K_ab(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``.

        Args:
            x1: First points, ``... x n x d``.
            x2: Second points.
            weights: W, ``*batch_shape x B x B``, symmetric.
            diag: Only the pairs of points (i, i).
        """
        symmetric = same_points(x1, x2)
        z1 = self.prepared(x1)
        z2 = z1 if symmetric else self.prepared(x2)
        size = self.num_blocks
        own: Pairs = [(a, a) for a in range(size)]
        others: Pairs = [(a, b) for a in range(size) for b in range(a + 1 if symmetric else 0, size) if a != b]
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2], weights.shape[:-2])
        shape = torch.Size([*batch, x1.shape[-2], *([] if diag else [x2.shape[-2]])])
        number = max(1, _TILE // max(1, shape.numel()))
        total = self._total(own, weights, z1, z2, diag, symmetric, number)
        mixed = self._total(others, weights, z1, z2, diag, False, number)
        if mixed is not None and symmetric:
            mixed = 2.0 * mixed if diag else mixed + mixed.mT
        parts = [part for part in (total, mixed) if part is not None]
        return sum(parts[1:], parts[0]) if parts else x1.new_zeros(shape)

    def _total(
        self, pairs: Pairs, weights: Tensor, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool, number: int
    ) -> Tensor | None:
        """Return the weighted sum over some pairs, ``number`` at a time; None where all weights are zero."""
        graph = torch.is_grad_enabled() and weights.requires_grad
        seen = None if graph or transforms_are_active() else (weights != 0).reshape(-1, *weights.shape[-2:]).any(0)
        used = None if seen is None else seen.tolist()
        pairs = [(a, b) for a, b in pairs if (used is None or used[a][b]) and not self.is_zero(a, b)]

        def tile(some: Pairs, weights: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
            first, second = zip(*some, strict=True)
            factors = weights[..., list(first), list(second)]
            covariances = self.covariances(some, z1, z2, diag, symmetric)
            pair = -2 if diag else -3
            if factors.dim() == 1:
                return torch.tensordot(factors.to(covariances), covariances, ([0], [pair]))
            shape = (*factors.shape, *[1] * (-1 - pair))
            return (factors.reshape(shape) * covariances).sum(pair)

        total = None
        for start in range(0, len(pairs), number):
            some = pairs[start : start + number]
            if torch.is_grad_enabled() and len(pairs) > number and not transforms_are_active():
                part = checkpoint(tile, some, weights, z1, z2, use_reentrant=False, preserve_rng_state=False)
            else:
                part = tile(some, weights, z1, z2)
            total = part if total is None else total + part
        return total

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return sum_ab S_ab K_ab(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        return self.weighted(x1, x2, self.prior_weights(x1), diag)

    def prior_weights(self, like: Tensor) -> Tensor:
        """Return S, ``B x B``, in the dtype and on the device of a tensor."""
        factor = self.factor
        if factor is None:
            return torch.eye(self.num_blocks, dtype=like.dtype, device=like.device)
        factor = factor.to(like)
        return factor @ factor.mT

    def named_sub_kernels(self) -> Iterable[tuple[str, Kernel]]:
        """Return the kernels that are direct children: indexing a batch reaches the others through them."""
        return [(name, module) for name, module in self._modules.items() if isinstance(module, Kernel)]

    def __getitem__(self, index: Any) -> Kernel:
        """Index the batch dimensions; without parameters of its own the kernel has those of its children alone."""
        kernel = super().__getitem__(index)
        if kernel is not self and not self._parameters:
            kernel._batch_shape = torch.Size()
        return kernel


class KernelBlocks(BlockKernel):
    r"""Blocks whose covariances are given as kernels, in a B x B table.

    .. math:: k(x, x') = \sum_a K_{aa}(x, x')

    as a kernel; with weights :math:`\sum_{ab} W_{ab} K_{ab}`. The table is read at and above its diagonal, since
    K_ba(x, x') = K_ab(x', x); an entry below is None or the same kernel as its mirror image. None above the diagonal
    is a covariance of zero: a table with kernels on the diagonal alone is a sum of independent functions, such as one
    for each group of inputs (``active_dims``). **It is not checked** that the blocks are jointly positive semidefinite,
    which is what makes every weighted sum with positive semidefinite weights a covariance.

    Args:
        kernels: K_ab, B lists of B kernels each, None for zero.
        kwargs: ``active_dims`` of :class:`gpytorch.kernels.Kernel`, before those of the kernels.

    Raises:
        TypeError: An entry that is neither a kernel nor None.
        ValueError: No square table, None on the diagonal, different kernels at (a, b) and (b, a).

    Reference: THEORY.md, section 12, eq. (22).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import KernelBlocks, NNGPKernel
        >>> first, second = NNGPKernel("erf", active_dims=[0, 1]), NNGPKernel("erf", active_dims=[2])
        >>> blocks, x = KernelBlocks([[first, None], [None, second]]), torch.eye(3)
        >>> torch.allclose(blocks(x).to_dense(), (first + second)(x).to_dense())
        True
    """

    def __init__(self, kernels: Sequence[Sequence[Kernel | None]], **kwargs: Any) -> None:
        """Check the table."""
        table = [list(row) for row in kernels]
        size = len(table)
        if size == 0 or any(len(row) != size for row in table):
            raise ValueError(f"kernels: expected a square table, got rows of {[len(row) for row in table]} kernels")
        super().__init__(**kwargs)
        self.num_blocks = size
        for a, row in enumerate(table):
            for b, kernel in enumerate(row):
                if not isinstance(kernel, Kernel) and kernel is not None:
                    raise TypeError(f"kernels: expected kernels or None, got {type(kernel).__name__} at ({a}, {b})")
                if a == b and kernel is None:
                    raise ValueError(f"kernels: expected a kernel on the diagonal, got None at ({a}, {a})")
                if b < a and kernel is not None and kernel is not table[b][a]:
                    raise ValueError(
                        f"kernels: expected at ({a}, {b}) None or the kernel at ({b}, {a}), got another one; "
                        "K_ba(x, x') = K_ab(x', x)"
                    )
                if b >= a:
                    self.add_module(f"kernel_{a}_{b}", kernel)

    def is_zero(self, a: int, b: int) -> bool:
        """Whether there is no kernel for the pair."""
        return self._modules[f"kernel_{min(a, b)}_{max(a, b)}"] is None

    def covariances(self, pairs: Pairs, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        """Return K_ab of the pairs (a, b)."""
        found = []
        for a, b in pairs:
            kernel = self._modules[f"kernel_{min(a, b)}_{max(a, b)}"]
            first, second = (z1, z2) if a <= b else (z2, z1)
            value = to_dense(kernel(first, second, diag=diag))
            found.append(value if diag or a <= b else value.mT)
        return torch.stack(torch.broadcast_tensors(*found), -2 if diag else -3)
