"""The custom autograd function behind every dual activation: blocked, recomputing, infinitely differentiable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..numerics.shapes import common_shape

CPU_BLOCK = 2**17
"""Elements per thread of one block: a few float64 temporaries of this size stay in a core's cache."""

CUDA_BLOCK = 2**26
"""Elements of one block on an accelerator: large enough to fill it, small enough to bound the temporaries."""


def apply_dual(activation: Any, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor, out: Tensor | None = None) -> Tensor:
    r"""Evaluate kappa(c_xx, c_xy, c_yy) of an activation blockwise, with closed-form derivatives of any order.

    .. math:: \kappa(c_{xx}, c_{xy}, c_{yy}) = E[\phi(u) \phi(w)]

    The value is the raw formula ``activation._dual`` evaluated on blocks of rows (dimension -2), so that no
    temporary is as large as the result. Backward keeps the three inputs only and recomputes
    ``activation.dual_partials``: blockwise when no graph is asked for, with plain differentiable operations
    otherwise (double backward, ``torch.func``). Values at singular points are the activation's. The three inputs
    broadcast; gradients have the inputs' shapes.

    Args:
        activation: object with ``_prepare``, ``_dual``, ``dual_partials`` and ``_blockwise_partials``.
        c_xx: variances of u.
        c_xy: covariances.
        c_yy: variances of w.
        out: tensor for the result, which may be ``c_xy`` itself; only where no gradient is required.

    Raises:
        ValueError: ``out`` has another shape or dtype than the result, or a gradient is required.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import ReLU
        >>> c = torch.tensor([2.0], dtype=torch.float64)
        >>> float(apply_dual(ReLU(), c, c, c))
        1.0
    """
    if out is None:
        return _Dual.apply(activation, c_xx, c_xy, c_yy)
    if torch.is_grad_enabled() and any(c.requires_grad for c in (c_xx, c_xy, c_yy, out)):
        raise ValueError("out= keeps nothing for backward: expected inputs that require no gradient, got one that does")
    shape, dtype = common_shape(c_xx, c_xy, c_yy), _result_type(c_xx, c_xy, c_yy)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"expected out of shape {tuple(shape)} and {dtype}, got {tuple(out.shape)} and {out.dtype}")
    return _forward(activation, c_xx, c_xy, c_yy, out)


def _result_type(c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(c_xx.dtype, c_xy.dtype), c_yy.dtype)


def block_elements(device: torch.device) -> int:
    """Elements of one block: temporaries of this size stay in the caches of a processor, and fill an accelerator."""
    return CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else CUDA_BLOCK


def _blocks(shape: torch.Size, device: torch.device) -> Iterator[tuple[int, int]]:
    """Start and length of the blocks of rows (dimension -2) of a result of this shape."""
    rows = max(1, block_elements(device) * shape[-2] // max(1, shape.numel()))
    for start in range(0, shape[-2], rows):
        yield start, min(rows, shape[-2] - start)


def _rows(c: Tensor, start: int, length: int) -> Tensor:
    """View of the rows of one block; what broadcasts along the rows is returned whole."""
    return c if c.shape[-2] == 1 else c.narrow(-2, start, length)


def _pad(c: Tensor, ndim: int) -> Tensor:
    """View with leading dimensions of length one, up to ndim and at least two of them."""
    ndim = max(2, ndim)
    return c.reshape((1,) * (ndim - c.ndim) + c.shape)


def _forward(activation: Any, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor, out: Tensor) -> Tensor:
    with torch.no_grad():
        result, c_xx, c_xy, c_yy = (_pad(c.detach(), out.ndim) for c in (out, c_xx, c_xy, c_yy))
        c_xy = c_xy.expand(result.shape)
        row, column = activation._prepare(c_xx, c_yy)
        for block in _blocks(result.shape, out.device):
            value = activation._dual(_rows(row, *block), _rows(c_xy, *block), _rows(column, *block))
            _rows(result, *block).copy_(value)
    return out


def _backward_blockwise(
    activation: Any, grad: Tensor, inputs: tuple[Tensor, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of a graph-free backward pass: one block of partials at a time, reduced to the inputs' shapes."""
    grad, *padded = (_pad(c, grad.ndim) for c in (grad, *inputs))
    grads = [grad.new_zeros(c.shape) if need else None for c, need in zip(padded, needed, strict=True)]
    for block in _blocks(grad.shape, grad.device):
        partials = activation.dual_partials(*(_rows(c, *block) for c in padded))
        g = _rows(grad, *block)
        for total, partial in zip(grads, partials, strict=True):
            if total is None:
                continue
            target = _rows(total, *block)
            target += (g * partial).sum_to_size(target.shape)
    return tuple(None if t is None else t.reshape(c.shape).to(c.dtype) for t, c in zip(grads, inputs, strict=True))


class _Dual(torch.autograd.Function):
    @staticmethod
    def forward(activation: Any, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> Tensor:
        out = torch.empty(common_shape(c_xx, c_xy, c_yy), dtype=_result_type(c_xx, c_xy, c_yy), device=c_xy.device)
        return _forward(activation, c_xx, c_xy, c_yy, out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.activation, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if ctx.activation._blockwise_partials and not torch.is_grad_enabled():
            return (None, *_backward_blockwise(ctx.activation, grad, inputs, ctx.needs_input_grad[1:]))
        partials = ctx.activation.dual_partials(*inputs)
        return (None, *((grad * p).sum_to_size(c.shape).to(c.dtype) for p, c in zip(partials, inputs, strict=True)))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        inputs = ctx.saved_tensors
        partials = ctx.activation.dual_partials(*inputs)
        terms = [p * t for p, t in zip(partials, tangents, strict=True) if t is not None]
        return sum(terms[1:], terms[0]).expand(common_shape(*inputs))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], activation: Any, *tensors: Tensor) -> tuple[Tensor, int]:
        dims = in_dims[1:]
        ndim = max(c.ndim - (d is not None) for c, d in zip(tensors, dims, strict=True))
        moved = []
        for c, d in zip(tensors, dims, strict=True):
            if d is not None:
                c = c.movedim(d, 0)
                c = c.reshape(c.shape[:1] + (1,) * (ndim + 1 - c.ndim) + c.shape[1:])
            moved.append(c)
        return _Dual.apply(activation, *moved), 0
