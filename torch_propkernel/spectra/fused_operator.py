"""A kernel matrix whose products are computed in one pass of an accelerator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .kernel_operator import KernelOperator


class FusedKernelOperator(KernelOperator):
    r"""The matrix of a :class:`KernelOperator` with products by a function of their own, in place of tiles.

    Columns and the diagonal are still those of ``block``. The points, and the products' entries, are float32; sums are
    the function's. There is one tile, as far as progress is concerned.

    Args:
        block: As for :class:`KernelOperator`.
        inputs: The points X, ``P x d``.
        product: Returns K(X1, X2) V, ``n x c``, for points ``n x d`` and ``m x d`` and V, ``m x c``, such as
            :class:`torch_propkernel.kernels.FusedProduct`. For products with K it gets one tensor twice.
        tile_size: Points in one part of the columns.

    Raises:
        ValueError: As for :class:`KernelOperator`.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> operator = FusedKernelOperator(lambda a, b: a @ b.T, x, lambda a, b, v: a @ (b.T @ v))
        >>> operator.matmul(torch.ones(3, 1)).flatten().tolist()
        [6.0, 12.0, 18.0]
    """

    def __init__(
        self,
        block: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        product: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        tile_size: int = 1024,
    ) -> None:
        """Keep the function."""
        super().__init__(block, inputs, tile_size=tile_size, dtype=torch.float32)
        self.product = product

    def of_first(self, number: int) -> FusedKernelOperator:
        """Return the matrix of the first points."""
        return FusedKernelOperator(self.block, self.inputs[:number], self.product, tile_size=self.tile_size)

    @property
    def num_tiles(self) -> int:
        """One."""
        return 1

    @torch.no_grad()
    def matmul(self, vectors: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return K V in float64, ``P x c``; ``progress`` is called once, with (1, 1)."""
        self._check(vectors)
        out = self.product(self.inputs, self.inputs, vectors).double()
        if progress is not None:
            progress(1, 1)
        return out

    @torch.no_grad()
    def cross_matmul(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Return k(x, X) V in float64, ``m x c``, for points x of shape ``m x d``."""
        self._check(vectors)
        return self.product(x.detach().to(self.inputs), self.inputs, vectors).double()
