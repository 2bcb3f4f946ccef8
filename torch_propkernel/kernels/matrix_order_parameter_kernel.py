"""A kernel that owns a positive definite matrix for each hidden layer, with the prior that the width dictates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from .._validation import as_width
from ..numerics.symmetric import symmetric_log
from ..order_parameters import WishartOrderParameterPrior


class MatrixOrderParameterKernel(Kernel):
    """Holds the matrices E_1, ..., E_L of a renormalized kernel; defines no covariance.

    They are kept as symmetric logarithms and are the identity where the width is infinite. Subclasses document them;
    their own submodules are kernels only as direct children.
    """

    def __init__(
        self,
        width: float | Sequence[float] | Tensor,
        size: int,
        batch_shape: torch.Size | None = None,
        active_dims: Any = None,
    ) -> None:
        """Register the order parameters, ``size x size``, with the prior that the widths dictate."""
        widths = as_width(width)
        batch_shape = torch.broadcast_shapes(torch.Size(batch_shape or []), widths.shape[:-1])
        widths = widths.expand(*batch_shape, widths.shape[-1])
        super().__init__(active_dims=active_dims, batch_shape=batch_shape)
        raw = torch.zeros(*widths.shape, size, size)
        self.register_parameter("raw_order_parameter", torch.nn.Parameter(raw))
        self.register_prior(
            "order_parameter_prior",
            WishartOrderParameterPrior(widths, size),
            self._get_order_parameter,
            self._set_order_parameter,
        )

    @property
    def width(self) -> Tensor:
        """Widths N_1, ..., N_L, ``*batch_shape x 1 x L``: the prior's buffer."""
        return self.order_parameter_prior.width

    @property
    def _logs(self) -> Tensor:
        """Symmetric logarithms of the order parameters; zero where the width is infinite."""
        raw = 0.5 * (self.raw_order_parameter + self.raw_order_parameter.mT)
        finite = torch.isfinite(self.width.squeeze(-2))[..., None, None]
        return torch.where(finite, raw, torch.zeros_like(raw))

    @property
    def order_parameter(self) -> Tensor:
        """Order parameters E_1, ..., E_L; the identity where the width is infinite."""
        return torch.matrix_exp(self._logs)

    @order_parameter.setter
    def order_parameter(self, value: Any) -> None:
        raw = self.raw_order_parameter
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        if value.shape[-2:] != raw.shape[-2:]:
            size = raw.shape[-1]
            raise ValueError(f"order_parameter: expected shape (..., {size}, {size}), got {tuple(value.shape)}")
        symmetric = torch.allclose(value, value.mT, rtol=1e-5, atol=1e-8)
        if not symmetric or not bool((torch.linalg.eigvalsh(value) > 0).all()):
            raise ValueError(f"order_parameter: expected symmetric positive definite matrices, got {value.tolist()}")
        self.initialize(raw_order_parameter=symmetric_log(value).expand_as(raw))

    def named_sub_kernels(self) -> Iterable[tuple[str, Kernel]]:
        """Return the kernels that are direct children: indexing a batch reaches the others through them."""
        return [(name, module) for name, module in self._modules.items() if isinstance(module, Kernel)]

    def __getitem__(self, index: Any) -> Kernel:
        """Index the batch dimensions of every parameter and of the width together."""
        kernel = super().__getitem__(index)
        if kernel is not self:
            index = index if isinstance(index, tuple) else (index,)
            kernel.order_parameter_prior.width = self.width[index]
        return kernel

    def expand_batch(self, *sizes: torch.Size | tuple[int, ...]) -> Kernel:
        """Expand the batch dimensions of every parameter and of the width together."""
        kernel = super().expand_batch(*sizes)
        if kernel is not self:
            batch = kernel.raw_order_parameter.shape[:-3]
            kernel.order_parameter_prior.width = self.width.expand(*batch, *self.width.shape[-2:])
        return kernel

    def _get_order_parameter(self, module: MatrixOrderParameterKernel) -> Tensor:
        return module.order_parameter

    def _set_order_parameter(self, module: MatrixOrderParameterKernel, value: Tensor) -> None:
        module.order_parameter = value
