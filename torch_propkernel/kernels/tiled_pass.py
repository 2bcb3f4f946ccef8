r"""The matrix of a network's kernel and its gradient, tile by tile: one matrix of memory at any depth.

Every kernel of the recursion is a function of single entries,

.. math:: K_{ij} = k(x_i \cdot x_j,\ v_i,\ v_j;\ \theta),

with v what belongs to one point, such as :math:`|x_i|^2`. So a tile of it is finished, all its layers, while it lies in
a core's cache, and the upper half of a symmetric matrix is a mirror image. Backward keeps nothing but the products: it
computes each tile again, differentiates it there, and adds up what belongs to points and parameters. The scale
w_0 / N_0 is one of the parameters, so backward forms products of the size of the inputs only where these or their ARD
weights have gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..activations.dual import block_elements
from .recursion import Inputs, gram


class Tile(NamedTuple):
    """Products of some points with others, ``... x n x m``, and what belongs to the points of rows and columns.

    Each of ``rows`` is ``... x n x 1``, each of ``columns`` ``... x 1 x m``. ``on_diagonal``: both are the same points.
    """

    products: Tensor
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    on_diagonal: bool


class Entries(Protocol):
    """A kernel as a function of single entries, and its gradient."""

    def value(self, tile: Tile, parameters: Sequence[Any]) -> Tensor:
        """Return the kernel of a tile, recorded by autograd where something requires a gradient."""

    def gradients(self, tile: Tile, parameters: Sequence[Any], outer: Tensor) -> list[Tensor | None]:
        """Return the gradients of sum(outer * value) in products, rows, columns and parameters that require one."""


def fits_one_tile(inputs: Inputs) -> bool:
    """Whether the matrix is so small that autograd may keep all that it computes, which is then faster."""
    return inputs.x1.shape[-2] * inputs.x2.shape[-2] <= block_elements(inputs.x1.device)


def by_tiles(
    entries: Entries, inputs: Inputs, rows: Sequence[Tensor], columns: Sequence[Tensor], parameters: Sequence[Any]
) -> Tensor:
    """Return the kernel matrix between the points of ``inputs``, with derivatives of any order.

    Second derivatives are recorded operation by operation, with several matrices for each layer. Not for transforms of
    ``torch.func`` and forward derivatives. ``columns`` of a symmetric matrix are those of ``rows``.

    Cost: one GEMM, half of one for a symmetric matrix, and one pass over the entries (backward: two), and with
    gradients of the inputs twice this GEMM again. Memory: the matrix and, where it has a gradient, the products.
    """
    layout = _Layout(entries, inputs.symmetric, len(rows))
    points = (inputs.x1, *rows) if inputs.symmetric else (inputs.x1, inputs.x2, *rows, *columns)
    tensors = (*points, *parameters)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _TiledPass.apply(layout, *tensors)  # type: ignore[no-untyped-call]
    return layout.matrix(tensors)


class _Operands(NamedTuple):
    """What a matrix is made of; totals of gradients have the same form."""

    x1: Any
    x2: Any
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    parameters: tuple[Any, ...]

    def tile(self, products: Tensor, row: slice, column: slice, on_diagonal: bool) -> Tile:
        rows = tuple(None if v is None else v[..., row, :] for v in self.rows)
        columns = tuple(None if v is None else v[..., column] for v in self.columns)
        return Tile(products, rows, columns, on_diagonal)


class _Layout(NamedTuple):
    """How a matrix is cut, and the tensors that autograd sees: for a symmetric one neither x2 nor columns."""

    entries: Entries
    symmetric: bool
    vectors: int

    def operands(self, tensors: Sequence[Any]) -> _Operands:
        if self.symmetric:
            x1, rows, parameters = tensors[0], tensors[1 : 1 + self.vectors], tensors[1 + self.vectors :]
            return _Operands(x1, x1, tuple(rows), tuple(None if v is None else v.mT for v in rows), tuple(parameters))
        x1, x2, *rest = tensors
        n = self.vectors
        return _Operands(x1, x2, tuple(rest[:n]), tuple(rest[n : 2 * n]), tuple(rest[2 * n :]))

    def tiles(self, matrix: Tensor) -> Iterator[tuple[slice, slice, bool]]:
        """Rows and columns of each tile, about square, and whether it has a mirror image above the diagonal."""
        *batch, rows, columns = matrix.shape
        side = max(1, math.isqrt(block_elements(matrix.device) // max(1, math.prod(batch))))
        for start in range(0, rows, side):
            row = slice(start, min(start + side, rows))
            for other in range(0, row.stop if self.symmetric else columns, side):
                yield row, slice(other, min(other + side, columns)), self.symmetric and other < start

    def matrix(self, tensors: Sequence[Any], products: Tensor | None = None) -> Tensor:
        """Return the matrix; the products that backward reads are written into the memory given for them."""
        of = self.operands(tensors)
        batch = torch.broadcast_shapes(*(t.shape[:-2] for t in tensors if t is not None))
        result = of.x1.new_empty(*batch, of.x1.shape[-2], of.x2.shape[-2])
        with torch.no_grad():
            for row, column, mirrored in self.tiles(result):
                x1 = of.x1[..., row, :]
                diagonal = self.symmetric and not mirrored
                xy = gram(x1, -(-x1.shape[-2] // 2)) if diagonal else x1 @ of.x2[..., column, :].mT
                if products is not None:
                    products[..., row, column] = xy
                value = self.entries.value(of.tile(xy, row, column, diagonal), of.parameters)
                result[..., row, column] = value
                if mirrored:
                    result[..., column, row] = value.mT
        return result


class _TiledPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Any) -> Tensor:
        of = layout.operands(tensors)
        batch = torch.broadcast_shapes(of.x1.shape[:-2], of.x2.shape[:-2])
        products = of.x1.new_empty(*batch, of.x1.shape[-2], of.x2.shape[-2])
        result = layout.matrix(tensors, products)
        ctx.layout = layout
        ctx.save_for_backward(products, *tensors)
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        products, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return (None, *_recorded_gradients(ctx.layout, outer[0], tensors))
        return (None, *_gradients(ctx.layout, outer[0], products, tensors))


def _recorded_gradients(layout: _Layout, outer: Tensor, tensors: Sequence[Any]) -> list[Tensor | None]:
    tensors = [None if t is None else t.view_as(t) for t in tensors]  # cut apart: norms do not lead back to the points
    of = layout.operands(tensors)
    value = layout.entries.value(Tile(of.x1 @ of.x2.mT, of.rows, of.columns, layout.symmetric), of.parameters)
    return gradients_by_autograd(value, tensors, outer, create_graph=True)


def _gradients(layout: _Layout, outer: Tensor, products: Tensor, tensors: Sequence[Any]) -> list[Tensor | None]:
    totals = [torch.zeros_like(t) if t is not None and t.requires_grad else None for t in tensors]
    total = layout.operands(totals)
    of = layout.operands([None if t is None else t.detach() for t in tensors])
    parameters = [_leaf(p, t) for p, t in zip(of.parameters, total.parameters, strict=True)]
    for row, column, mirrored in layout.tiles(outer):
        part = of.tile(products[..., row, column], row, column, layout.symmetric and not mirrored)
        sums = total.tile(part.products, row, column, part.on_diagonal)
        tile = Tile(
            _leaf(part.products, total.x2 if total.x1 is None else total.x1),
            tuple(map(_leaf, part.rows, sums.rows)),
            tuple(map(_leaf, part.columns, sums.columns)),
            part.on_diagonal,
        )
        g = outer[..., row, column]
        g = g + outer[..., column, row].mT if mirrored else g
        d_products, *others = layout.entries.gradients(tile, parameters, g)
        for goal, gradient in zip((*sums.rows, *sums.columns, *total.parameters), others, strict=True):
            _add(goal, gradient)
        if d_products is not None:
            for goal, gradient, points, where, there in (
                (total.x1, d_products, of.x2, row, column),
                (total.x2, d_products.mT, of.x1, column, row),
            ):
                if goal is not None:
                    _add(goal[..., where, :], gradient @ points[..., there, :])
    return totals


def _leaf(tensor: Tensor | None, total: Tensor | None) -> Any:
    """A leaf of a graph of its own, with a gradient where there is a total for it."""
    return None if tensor is None else tensor.detach().requires_grad_(total is not None)


def _add(total: Tensor | None, value: Tensor | None) -> None:
    """Add to a total what is left of a value after sums over its batch; either may be absent."""
    if total is not None and value is not None:
        total += value.sum_to_size(total.shape)


def gradients_by_autograd(
    value: Tensor, variables: Sequence[Any], outer: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """Return the gradients of sum(outer * value) in the variables that require one, None for all others."""
    wanted = [v is not None and v.requires_grad for v in variables]
    if not (value.requires_grad and any(wanted)):
        return [None] * len(variables)
    inputs = [v for v, want in zip(variables, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(value, inputs, outer, create_graph=create_graph, allow_unused=True))
    return [next(found) if want else None for want in wanted]
