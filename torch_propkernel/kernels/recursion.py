"""The layer recursion of the NNGP kernel on the triple (c_xx, c_xy, c_yy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import Activation
from ..numerics.differentiation import is_recorded, transforms_are_active
from ..numerics.shapes import common_shape


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


class Inputs(NamedTuple):
    """What the recursion begins with: C = factor X1 X2^T + bias_variance.

    Shapes: ``x1`` is ``... x n x d``, ``x2`` is ``... x m x d``, with ARD weights multiplied in; the same tensor where
    the points are. The scale w_0 / N_0 stands outside of the products, which therefore serve every value of it.
    """

    x1: Tensor
    x2: Tensor
    factor: Tensor
    bias_variance: Tensor | None = None

    @property
    def symmetric(self) -> bool:
        """Whether both are the same points."""
        return self.x1 is self.x2

    def squared_norms(self, elementwise: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``|x|^2`` of both, ``... x n x 1`` and ``... x 1 x m``; elementwise ``... x n``."""
        xx = self.x1.square().sum(-1)
        yy = xx if self.symmetric else self.x2.square().sum(-1)
        return (xx, yy) if elementwise else (xx.unsqueeze(-1), yy.unsqueeze(-2))


class Layer(NamedTuple):
    """One layer of the recursion: K = weight_variance * kappa(previous) + bias_variance."""

    activation: Activation
    weight_variance: Tensor
    bias_variance: Tensor | None = None

    def times(self, order_parameter: Tensor) -> Layer:
        """Return the layer with its weights' part multiplied by an order parameter."""
        return self._replace(weight_variance=self.weight_variance * order_parameter)


def with_diagonal(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Return ``matrix`` with its diagonal set to ``diagonal`` (``... x n x 1``), in place where allowed."""
    values = diagonal.squeeze(-1).expand(matrix.shape[:-1])
    if not is_recorded(matrix, values):
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


def input_covariance(inputs: Inputs, elementwise: bool = False) -> Covariance:
    """Return C = factor X1 X2^T + b_0, with ``elementwise=True`` of pairs of rows. Cost: one GEMM."""
    x1, x2 = inputs.x1, inputs.x2
    xx, yy = inputs.squared_norms(elementwise)
    if elementwise:
        xy = xx if inputs.symmetric else (x1 * x2).sum(-1)
    else:
        xy = gram(x1) if inputs.symmetric and not is_recorded(x1) else x1 @ x2.mT
    state = Covariance(xx, xy, yy, inputs.symmetric, elementwise)
    return first_covariance(state, inputs.factor, inputs.bias_variance, overwrite=True)


def first_covariance(
    products: Covariance, factor: Tensor, bias_variance: Tensor | None, overwrite: bool = False
) -> Covariance:
    """Return C = factor X1 X2^T + b_0 from the products of the inputs, with ``overwrite=True`` in their memory."""
    state = affine(affine(products, factor, None, overwrite), None, bias_variance, overwrite=True)
    if state.symmetric and not state.elementwise:
        return state._replace(xy=with_diagonal(state.xy, state.xx))
    return state


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
    whole = state.xy.shape == common_shape(state.xx, state.xy, state.yy)
    out = state.xy if overwrite and whole and not is_recorded(*state[:3]) else None
    xy = activation.dual(state.xx, state.xy, state.yy, out=out)
    if state.symmetric:
        xy = with_diagonal(xy, xx)
    return state._replace(xx=xx, xy=xy, yy=yy)


def propagate(state: Covariance, layer: Layer, scale: Tensor | None = None, overwrite: bool = False) -> Covariance:
    """Return K^l = scale * weight_variance * kappa(K^{l-1}) + bias_variance (THEORY.md, section 0).

    ``scale`` is the order parameter q_l of this layer, which multiplies the weights' part only.
    """
    layer = layer if scale is None else layer.times(scale)
    kappa = dual_covariance(state, layer.activation, overwrite)
    return affine(kappa, layer.weight_variance, layer.bias_variance, overwrite=True)


def propagate_all(state: Covariance, layers: Sequence[Layer]) -> Tensor:
    """Return K^L, the covariance behind all layers; the memory of the state may be reused."""
    for layer in layers:
        state = propagate(state, layer, overwrite=True)
    return state.xy


def affine(state: Covariance, factor: Tensor | None, term: Tensor | None, overwrite: bool = False) -> Covariance:
    """Return factor * state + term.

    ``overwrite=True`` allows the matrix to be changed in place, where it takes part in no differentiation: it must be
    the caller's own and in no graph.
    """
    xx = scaled(state.xx, factor, term)
    if state.symmetric and state.elementwise:
        return state._replace(xx=xx, xy=xx, yy=xx)
    yy = xx.transpose(-1, -2) if state.symmetric else scaled(state.yy, factor, term)
    return state._replace(xx=xx, xy=scaled(state.xy, factor, term, overwrite), yy=yy)


def scaled(value: Tensor, factor: Tensor | None, term: Tensor | None, in_place: bool = False) -> Tensor:
    """Return factor * value + term, where allowed in the memory of ``value``."""
    for other, operation in ((factor, "mul"), (term, "add")):
        if other is None:
            continue
        fits = in_place and value.shape == common_shape(value, other)
        if fits and not is_recorded(value, other):
            getattr(value, operation + "_")(other)
        else:
            value = getattr(torch, operation)(value, other)
    return value
