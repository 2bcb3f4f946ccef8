r"""The matrix of a network's kernel and its gradient, tile by tile: one matrix of memory at any depth.

Every kernel of the recursion is a function of single entries,

.. math:: K_{ij} = k(x_i \cdot x_j,\ |x_i|^2,\ |x_j|^2;\ \theta).

So a tile of it is finished, all its layers, while it lies in a core's cache, and the upper half of a symmetric matrix
is a mirror image. Backward keeps nothing but the products: it computes each tile again, differentiates it there
(``Activation.dual_partials``), and adds up what belongs to parameters and norms. The scale w_0 / N_0 is one of the
parameters, so backward forms products of the size of the inputs only where these or their ARD weights have gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import Activation
from ..activations.dual import block_elements
from ..numerics.differentiation import is_recorded, is_transformed
from .recursion import Covariance, Inputs, Layer, first_covariance, input_covariance

Rule = Callable[[Covariance, Sequence[Layer], Sequence[Tensor]], Tensor]
"""The way from the first covariance, the layers and the order parameters to the kernel, entry by entry."""


def kernel_matrix(rule: Rule, inputs: Inputs, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> Tensor:
    """Return rule(C, layers, order_parameters) with C = factor X1 X2^T + b_0, ``... x n x m``.

    Derivatives of any order and the transforms of ``torch.func`` work; what is not a first derivative is recorded
    operation by operation, with a few matrices for each layer. So are matrices of one tile, where this is faster, and
    activations whose moments are computed once for each row (:class:`Quadrature`).

    Cost: one GEMM, half of one for a symmetric matrix, and one pass over the entries; backward two such passes, and
    twice the GEMM where the inputs have gradients. Memory: the matrix, and where it has a gradient the products.
    """
    entries = _Entries(rule, tuple(layer.activation for layer in layers), inputs.symmetric)
    weights, biases = [layer.weight_variance for layer in layers], [layer.bias_variance for layer in layers]
    parameters = inputs.factor, inputs.bias_variance, *weights, *biases, *order_parameters
    recorded = is_recorded(inputs.x1, inputs.x2, *parameters)
    one_tile = inputs.x1.shape[-2] * inputs.x2.shape[-2] <= block_elements(inputs.x1.device)
    if is_transformed() or recorded and one_tile or not all(a._blockwise_partials for a in entries.activations):
        return rule(input_covariance(inputs), layers, order_parameters)
    xx, yy = inputs.squared_norms()
    points = (inputs.x1, None, xx, None) if inputs.symmetric else (inputs.x1, inputs.x2, xx, yy)
    if recorded:
        return _TiledPass.apply(entries, *points, *parameters)  # type: ignore[no-untyped-call]
    return entries.by_tiles((*points, *parameters))


class _Entries(NamedTuple):
    """The kernel as a function of products and norms of the points and of parameters: as a whole or on a tile.

    Everywhere below, ``tensors`` are x1, x2, ``|x1|^2``, ``|x2|^2`` and the parameters; for a symmetric matrix x2 and
    its norms are None.
    """

    rule: Rule
    activations: tuple[Activation, ...]
    symmetric: bool

    def __call__(self, products: Covariance, parameters: Sequence[Tensor]) -> Tensor:
        depth = len(self.activations)
        factor, bias, *others = parameters
        layers = [Layer(*each) for each in zip(self.activations, others, others[depth:], strict=False)]
        return self.rule(first_covariance(products, factor, bias), layers, others[2 * depth :])

    def operands(self, tensors: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, Sequence[Tensor]]:
        """Return x1, x2, ``|x1|^2``, ``|x2|^2`` and the parameters, of a symmetric matrix too."""
        x1, x2, xx, yy, *parameters = tensors
        return (x1, x1, xx, xx.mT, parameters) if self.symmetric else (x1, x2, xx, yy, parameters)

    def tiles(self, matrix: Tensor) -> Iterator[tuple[slice, slice, bool]]:
        """Rows and columns of each tile, about square, and whether it has a mirror image above the diagonal."""
        *batch, rows, columns = matrix.shape
        side = max(1, math.isqrt(block_elements(matrix.device) // max(1, math.prod(batch))))
        for start in range(0, rows, side):
            row = slice(start, min(start + side, rows))
            for other in range(0, row.stop if self.symmetric else columns, side):
                yield row, slice(other, min(other + side, columns)), self.symmetric and other < start

    def by_tiles(self, tensors: Sequence[Any], products: Tensor | None = None) -> Tensor:
        """Return the matrix; the products that backward reads are written into the memory given for them."""
        x1, x2, xx, yy, parameters = self.operands(tensors)
        batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (x1, x2, *parameters) if t is not None))
        result = x1.new_empty(*batch, x1.shape[-2], x2.shape[-2])
        with torch.no_grad():
            for row, column, mirrored in self.tiles(result):
                xy = x1[..., row, :] @ x2[..., column, :].mT
                if products is not None:
                    products[..., row, column] = xy
                on_diagonal = self.symmetric and not mirrored
                value = self(Covariance(xx[..., row, :], xy, yy[..., column], on_diagonal), parameters)
                result[..., row, column] = value
                if mirrored:
                    result[..., column, row] = value.mT
        return result


class _TiledPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entries: _Entries, *tensors: Any) -> Tensor:
        x1, x2, *_ = entries.operands(tensors)
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        products = x1.new_empty(*batch, x1.shape[-2], x2.shape[-2])
        result = entries.by_tiles(tensors, products)
        ctx.entries = entries
        ctx.save_for_backward(products, *tensors)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        products, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return (None, *_recorded_gradients(ctx.entries, gradients[0], tensors))
        return (None, *_gradients_by_tiles(ctx.entries, gradients[0], products, tensors))


def _recorded_gradients(entries: _Entries, gradient: Tensor, tensors: Sequence[Any]) -> list[Tensor | None]:
    tensors = [None if t is None else t.view_as(t) for t in tensors]  # cut apart: norms do not lead back to the points
    x1, x2, xx, yy, parameters = entries.operands(tensors)
    value = entries(Covariance(xx, x1 @ x2.mT, yy, entries.symmetric), parameters)
    return _gradients(value, tensors, gradient, create_graph=True)


def _gradients_by_tiles(
    entries: _Entries, gradient: Tensor, products: Tensor, tensors: Sequence[Any]
) -> list[Tensor | None]:
    totals = [torch.zeros_like(t) if t is not None and t.requires_grad else None for t in tensors]
    x1, x2, xx, yy, parameters = entries.operands([None if t is None else t.detach() for t in tensors])
    of_x1, of_x2, of_xx, of_yy, *of_parameters = totals
    if entries.symmetric:
        of_x2, of_yy = of_x1, None if of_xx is None else of_xx.mT
    leaves = [_leaf(p, total) for p, total in zip(parameters, of_parameters, strict=True)]
    for row, column, mirrored in entries.tiles(gradient):
        xy = _leaf(products[..., row, column], of_x1 if of_x2 is None else of_x2)
        norm, other = _leaf(xx[..., row, :], of_xx), _leaf(yy[..., column], of_yy)
        outer = gradient[..., row, column]
        outer = outer + gradient[..., column, row].mT if mirrored else outer
        with torch.enable_grad():
            products_and_norms = Covariance(norm, xy, other, entries.symmetric and not mirrored)
            value = entries(products_and_norms, leaves).expand(outer.shape)
        d_xy, d_norm, d_other, *d_parameters = _gradients(value, (xy, norm, other, *leaves), outer)
        if d_xy is not None:
            _add(of_x1, row, d_xy @ x2[..., column, :])
            _add(of_x2, column, d_xy.mT @ x1[..., row, :])
        _add(of_xx, row, d_norm)
        _add(None if of_yy is None else of_yy.mT, column, None if d_other is None else d_other.mT)
        for total, d in zip(of_parameters, d_parameters, strict=True):
            _add(total, slice(None), d)
    return totals


def _leaf(tensor: Tensor | None, total: Tensor | None) -> Any:
    """A leaf of a graph of its own, with a gradient where there is a total for it."""
    return None if tensor is None else tensor.detach().requires_grad_(total is not None)


def _add(total: Tensor | None, rows: slice, value: Tensor | None) -> None:
    """Add to some rows of a total, both possibly absent, what is left of a value after sums over its batch."""
    if total is not None and value is not None:
        part = total[..., rows, :]
        part += value.sum_to_size(part.shape)


def _gradients(
    value: Tensor, variables: Sequence[Any], gradient: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """Gradients of the variables that have one, None for all others."""
    wanted = [v is not None and v.requires_grad for v in variables]
    if not (value.requires_grad and any(wanted)):
        return [None] * len(variables)
    inputs = [v for v, want in zip(variables, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(value, inputs, gradient, create_graph=create_graph, allow_unused=True))
    return [next(found) if want else None for want in wanted]
