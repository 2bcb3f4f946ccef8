"""The layer recursion of the NNGP kernel on the triple (c_xx, c_xy, c_yy)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import Activation


class Covariance(NamedTuple):
    """Covariances of the pre-activations of one layer at two sets of points.

    Matrix form: ``xx`` is ``... x n x 1``, ``xy`` is ``... x n x m``, ``yy`` is ``... x 1 x m``. Elementwise form (the
    diagonal of a kernel, ``elementwise=True``): all three are ``... x n``. ``symmetric`` says that both sets are the
    same tensor: the diagonal of ``xy`` is then ``xx`` and, in elementwise form, the three are one tensor.
    """

    xx: Tensor
    xy: Tensor
    yy: Tensor
    symmetric: bool = False
    elementwise: bool = False


class Layer(NamedTuple):
    """One layer of the recursion: K = weight_variance * kappa(previous) + bias_variance."""

    activation: Activation
    weight_variance: Tensor
    bias_variance: Tensor | None = None


def transforms_are_active() -> bool:
    """Whether this runs inside of torch.func.grad, vmap, jvp or the like, where tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()


def may_overwrite(tensor: Tensor) -> bool:
    """Whether ``tensor`` takes part in no kind of differentiation, so that its memory may be reused."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        return False
    if transforms_are_active():
        return False
    return torch.autograd.forward_ad._current_level < 0


def with_diagonal(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Return ``matrix`` with its diagonal set to ``diagonal`` (``... x n x 1``), in place where allowed."""
    values = diagonal.squeeze(-1).expand(matrix.shape[:-1])
    if may_overwrite(matrix) and may_overwrite(values):
        matrix.diagonal(dim1=-2, dim2=-1).copy_(values)
        return matrix
    return torch.diagonal_scatter(matrix, values, dim1=-2, dim2=-1)


def same_points(x1: Tensor, x2: Tensor) -> bool:
    """Whether two tensors are one and the same memory, found without reading (or synchronizing) a device."""
    if x1 is x2:
        return True
    if x1.shape != x2.shape or x1.dtype != x2.dtype or transforms_are_active():
        return False
    return x1.device == x2.device and x1.stride() == x2.stride() and x1.data_ptr() == x2.data_ptr()


def input_covariance(x1: Tensor, x2: Tensor, bias_variance: Tensor | None, elementwise: bool) -> Covariance:
    """Return C = X1 X2^T + b_0 of inputs that already carry sqrt(weight variance / N_0).

    Shapes: ``x1`` is ``... x n x d``, ``x2`` is ``... x m x d``; with ``elementwise=True``, n = m. Cost: one GEMM.
    """
    symmetric = same_points(x1, x2)
    xx = x1.square().sum(-1)
    if elementwise:
        yy = xx if symmetric else x2.square().sum(-1)
        xy = xx if symmetric else (x1 * x2).sum(-1)
    else:
        xx = xx.unsqueeze(-1)
        yy = xx.transpose(-1, -2) if symmetric else x2.square().sum(-1).unsqueeze(-2)
        xy = gram(x1) if symmetric and may_overwrite(x1) else x1 @ x2.transpose(-1, -2)
        xy = with_diagonal(xy, xx) if symmetric else xy
    return affine(Covariance(xx, xy, yy, symmetric, elementwise), None, bias_variance, overwrite=True)


def gram(x: Tensor, block: int = 256) -> Tensor:
    """X X^T; on the CPU from the blocks at and below the diagonal, which saves almost half of a GEMM."""
    size = x.shape[-2]
    if x.device.type != "cpu" or size < 2 * block:
        return x @ x.transpose(-1, -2)
    out = x.new_empty(*x.shape[:-1], size)
    for start in range(0, size, block):
        stop = min(start + block, size)
        rows = x[..., start:stop, :] @ x[..., :stop, :].transpose(-1, -2)
        out[..., start:stop, :stop] = rows
        out[..., :start, start:stop] = rows[..., :start].transpose(-1, -2)
    return out


def dual_covariance(state: Covariance, activation: Activation, overwrite: bool = False) -> Covariance:
    """Return the covariance kappa of the activations, without weight or bias variance.

    The diagonal comes from the closed form, so that dense and elementwise evaluations agree to rounding.
    ``overwrite=True`` allows the memory of ``state.xy`` to be reused (outside of differentiation).
    """
    xx = activation.dual_diag(state.xx)
    if state.symmetric and state.elementwise:
        return state._replace(xx=xx, xy=xx, yy=xx)
    yy = xx.transpose(-1, -2) if state.symmetric else activation.dual_diag(state.yy)
    whole = state.xy.shape == torch.broadcast_shapes(state.xx.shape, state.xy.shape, state.yy.shape)
    out = state.xy if overwrite and whole and all(may_overwrite(c) for c in state[:3]) else None
    xy = activation.dual(state.xx, state.xy, state.yy, out=out)
    if state.symmetric:
        xy = with_diagonal(xy, xx)
    return state._replace(xx=xx, xy=xy, yy=yy)


def propagate(state: Covariance, layer: Layer, scale: Tensor | None = None, overwrite: bool = False) -> Covariance:
    """Return K^l = scale * weight_variance * kappa(K^{l-1}) + bias_variance (THEORY.md, section 0).

    ``scale`` is the order parameter q_l of this layer, which multiplies the weights' part only.
    """
    factor = layer.weight_variance if scale is None else layer.weight_variance * scale
    return affine(dual_covariance(state, layer.activation, overwrite), factor, layer.bias_variance, overwrite=True)


def affine(state: Covariance, factor: Tensor | None, term: Tensor | None, overwrite: bool = False) -> Covariance:
    """Return factor * state + term.

    ``overwrite=True`` allows the matrix to be changed in place, where it takes part in no differentiation: it must be
    the caller's own and in no graph.
    """

    def apply(value: Tensor, in_place: bool) -> Tensor:
        for other, operation in ((factor, "mul"), (term, "add")):
            if other is None:
                continue
            fits = value.shape == torch.broadcast_shapes(value.shape, other.shape)
            if in_place and fits and may_overwrite(value) and may_overwrite(other):
                getattr(value, operation + "_")(other)
            else:
                value = getattr(torch, operation)(value, other)
        return value

    xx = apply(state.xx, False)
    if state.symmetric and state.elementwise:
        return state._replace(xx=xx, xy=xx, yy=xx)
    yy = xx.transpose(-1, -2) if state.symmetric else apply(state.yy, False)
    return state._replace(xx=xx, xy=apply(state.xy, overwrite), yy=yy)
