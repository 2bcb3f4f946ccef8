"""The layers above the first, whose kernel is given: their matrix, and its derivatives in the same pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import Activation
from ..activations.dual import block_elements
from ..numerics.shapes import common_shape
from .recursion import Covariance, Layer, affine, propagate_all, scaled, with_diagonal


def matrix_of_upper_layers(kappa: Covariance, layers: Sequence[Layer]) -> Tensor:
    r"""Return K^L from kappa of the first layer's activations, for many weight variances of the same points.

    .. math:: K^1 = w_1 \kappa + b_1, \qquad K^l = w_l \kappa_l(K^{l-1}) + b_l

    Only the weight variances may have gradients, for first derivatives. These are carried upwards with the matrix, tile
    by tile and for one half of it, so that all of a backward pass is one sum over the entries for each layer. Cost: a
    pass over half of the entries, and with gradients about as much again. Memory: with gradients one more matrix for
    each layer.

    Args:
        kappa: Covariance of the first layer's activations, in matrix form.
        layers: All layers, the first included, with weight variances ``... x 1 x 1``.
    """
    first, *above = layers
    if not (kappa.symmetric and all(layer.activation._blockwise_partials for layer in above)):
        return propagate_all(affine(kappa, first.weight_variance, first.bias_variance), above)
    activations, weights, biases = zip(*layers, strict=True)
    matrix: Tensor = _UpperLayers.apply(kappa, activations[1:], biases, *weights)  # type: ignore[no-untyped-call]
    return matrix


class _Part(NamedTuple):
    """Some entries of K^l, and their derivatives in w_1, ..., w_l where these are wanted."""

    value: Tensor
    derivatives: list[Tensor]

    @classmethod
    def first(cls, kappa: Tensor, weight: Tensor, bias: Tensor | None, derived: bool) -> _Part:
        return cls(scaled(scaled(kappa, weight, None), None, bias, in_place=True), [kappa] if derived else [])

    def behind(self, kappa: Tensor, carried: list[Tensor], weight: Tensor, bias: Tensor | None) -> _Part:
        """Return the entries behind the next layer, ``carried`` being the derivatives of its kappa."""
        if not self.derivatives:
            return _Part(scaled(kappa, weight, bias, in_place=True), [])
        return _Part(scaled(kappa, weight, bias), [*(d * weight for d in carried), kappa])

    def at(self, rows: slice) -> _Part:
        return _Part(self.value[..., rows, :], [d[..., rows, :] for d in self.derivatives])

    def all(self) -> list[Tensor]:
        return [self.value, *self.derivatives]


class _UpperLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kappa: Covariance, activations: Sequence[Activation], biases: Sequence[Any], *weights: Tensor
    ) -> Tensor:
        derived = any(ctx.needs_input_grad)
        points = [_Part.first(kappa.xx, weights[0], biases[0], derived)]
        above = list(zip(activations, weights[1:], biases[1:], strict=True))
        for layer in above:
            points.append(_next_points(points[-1], *layer))
        *batch, size, _ = common_shape(kappa.xy, *weights)
        matrices = kappa.xy.new_empty(1 + derived * len(weights), *batch, size, size)
        for row, column in _tiles(size, block_elements(kappa.xy.device) // max(1, math.prod(batch))):
            tile = _Part.first(kappa.xy[..., row, column], weights[0], biases[0], derived)
            rows, columns = [p.at(row) for p in points], [p.at(column) for p in points]
            for l, layer in enumerate(above):
                tile = _next_tile(tile, rows[l], columns[l], *layer)
            for matrix, part, diagonal in zip(matrices, tile.all(), rows[-1].all(), strict=True):
                if row == column:
                    part = with_diagonal(part, diagonal)
                else:
                    matrix[..., column, row] = part.mT
                matrix[..., row, column] = part
        ctx.save_for_backward(matrices[1:])
        ctx.shapes = [weight.shape for weight in weights]
        return matrices[0]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "order_parameter: expected first derivatives only (create_graph=False) of a kernel that remembers its "
                "layers, got create_graph=True; use the kernel itself"
            )
        (derivatives,) = ctx.saved_tensors
        sums = derivatives.flatten(-2).unsqueeze(-2) @ outer.flatten(-2).unsqueeze(-1)
        return (None, None, None, *(s.sum_to_size(shape) for s, shape in zip(sums, ctx.shapes, strict=True)))


def _next_points(points: _Part, activation: Activation, weight: Tensor, bias: Tensor | None) -> _Part:
    """Return the variances of single points, ``... x P x 1``, behind a layer."""
    v, derivatives = points
    along = sum(activation.dual_partials(v, v, v)) if derivatives else v
    return points.behind(activation.dual_diag(v), [along * d for d in derivatives], weight, bias)


def _next_tile(
    tile: _Part, rows: _Part, columns: _Part, activation: Activation, weight: Tensor, bias: Tensor | None
) -> _Part:
    """Return the covariances of pairs of points behind a layer."""
    c, row, column, carried = tile.value, rows.value, columns.value.mT, []
    if tile.derivatives:
        d_row, d_xy, d_column = activation.dual_partials(row, c, column)
        for d, r, s in zip(tile.derivatives, rows.derivatives, columns.derivatives, strict=True):
            carried.append((d_xy * d).addcmul_(d_row, r).addcmul_(d_column, s.mT))
    return tile.behind(activation.dual(row, c, column, out=c), carried, weight, bias)


def _tiles(size: int, elements: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of equal square tiles, of so many elements at most, that cover a matrix's lower half."""
    number = math.ceil(size / max(1, math.isqrt(elements)))
    side = math.ceil(size / number)
    for start in range(0, size, side):
        for other in range(0, start + 1, side):
            yield slice(start, min(start + side, size)), slice(other, min(other + side, size))
