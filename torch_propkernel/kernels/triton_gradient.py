"""The device code of a :class:`FusedProduct`'s backward pass in Triton; imported where one runs and nowhere else."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_product import _add, _angle, _dots, _dual, precision, share_out

# Points along the rows and the columns of a tile, inputs or columns of V in one step of a product, and inputs with a
# gradient at most in one program.
_ROWS, _COLUMNS, _STEP, _INPUTS = 64, 16, 16, 64


@triton.jit
def _dual_and_derivatives(c, row, column, slope, ERF: tl.constexpr):
    """The dual, its derivative in c, and h: that in a variance v is h / v, for erf h / (v + 1/2) (THEORY.md, 0)."""
    determinant = tl.maximum(row * column - c * c, 0.0)
    if ERF:
        root = tl.sqrt(0.25 + 0.5 * (row + column) + determinant)
        slope_c = 0.63661977 / root
        return 0.63661977 * _angle(c, root), slope_c, -0.5 * slope_c * c
    r = tl.sqrt(determinant)
    part = (1.0 - slope) * (1.0 - slope) * 0.15915494
    coangle = 1.57079633 + _angle(c, r)
    return slope * c + part * (r + coangle * c), slope + part * coangle, 0.5 * part * r


@triton.jit
def _with_column(table, kinds, index, values):
    """The table with one of its columns set."""
    return tl.where(kinds[None, :] == index, values[:, None], table)


@triton.jit
def _gradient_kernel(
    x1,
    x2,
    rows,
    columns,
    parameters,
    outer,
    vectors,
    points,
    sums,
    n,
    m,
    dimension,
    count,
    share,
    slope,
    DEPTH: tl.constexpr,
    ERF: tl.constexpr,
    SAME: tl.constexpr,
    POINTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    INPUTS: tl.constexpr,
    KINDS: tl.constexpr,
):
    """One block of rows, one of their inputs, and one share of the columns.

    Sums over columns are a table with one column for each parameter, in the order of ``parameters``, and then one for
    the variances in front of each layer.
    """
    own = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    feature = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    begin = tl.program_id(2) * share
    factor, bias = tl.load(parameters), tl.load(parameters + 1)
    kinds = tl.arange(0, KINDS)
    table = tl.full((ROWS, KINDS), 0.0, tl.float32)
    table_lost = tl.full((ROWS, KINDS), 0.0, tl.float32)
    if POINTS:
        total = tl.full((ROWS, INPUTS), 0.0, tl.float32)
        lost = tl.full((ROWS, INPUTS), 0.0, tl.float32)
    for start in range(begin, tl.minimum(begin + share, m), COLUMNS):
        other = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        products = _dots(x1, x2, own, other, n, m, dimension, PRECISION, ROWS, COLUMNS, STEP)
        c = products * factor + bias
        covariances = ()  # in front of each layer
        for l in tl.static_range(DEPTH):
            row = tl.load(rows + l * n + own, mask=own < n, other=0.0)[:, None]
            if SAME:  # rounding of c_ii would be its square root in r
                c = tl.where(own[:, None] == other[None, :], row, c)
            covariances = covariances + (c,)  # type: ignore[assignment]
            if l + 1 < DEPTH:
                column = tl.load(columns + l * m + other, mask=other < m, other=0.0)[None, :]
                kappa = _dual(c, row, column, slope, ERF)
                c = tl.load(parameters + 2 * l + 2) * kappa + tl.load(parameters + 2 * l + 3)
        # From here backwards: g is the derivative of the sum over c of G_ic K_ij V_jc in what a layer has returned.
        g = _dots(outer, vectors, own, other, n, m, count, PRECISION, ROWS, COLUMNS, STEP)
        part = tl.full((ROWS, KINDS), 0.0, tl.float32)
        for l in tl.static_range(DEPTH - 1, -1, -1):
            row = tl.load(rows + l * n + own, mask=own < n, other=0.0)[:, None]
            column = tl.load(columns + l * m + other, mask=other < m, other=0.0)[None, :]
            kappa, slope_c, h = _dual_and_derivatives(covariances[l], row, column, slope, ERF)
            part = _with_column(part, kinds, 2 * l + 2, tl.sum(g * kappa, 1))
            part = _with_column(part, kinds, 2 * l + 3, tl.sum(g, 1))
            g = g * tl.load(parameters + 2 * l + 2)
            part = _with_column(part, kinds, 2 * DEPTH + 2 + l, tl.sum(g * h, 1))
            g = g * slope_c
        part = _with_column(part, kinds, 0, tl.sum(g * products, 1))
        part = _with_column(part, kinds, 1, tl.sum(g, 1))
        table, table_lost = _add(table, table_lost, part)
        if POINTS:
            mask = (other[:, None] < m) & (feature[None, :] < dimension)
            x = tl.load(x2 + other[:, None] * dimension + feature[None, :], mask=mask, other=0.0)
            total, lost = _add(total, lost, tl.dot(g * factor, x, input_precision=PRECISION))
    row = tl.program_id(2).to(tl.int64) * n + own[:, None]
    if tl.program_id(1) == 0:
        value = table.to(tl.float64) + table_lost.to(tl.float64)
        tl.store(sums + row * KINDS + kinds[None, :], value, mask=own[:, None] < n)
    if POINTS:
        inside = (own[:, None] < n) & (feature[None, :] < dimension)
        tl.store(points + row * dimension + feature[None, :], total.to(tl.float64) + lost.to(tl.float64), mask=inside)


def network_gradient(
    x1: Tensor,
    x2: Tensor,
    rows: Tensor,
    columns: Tensor,
    parameters: Tensor,
    outer: Tensor,
    vectors: Tensor,
    slope: float | None,
    with_points: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the derivatives of the sum of G * (K(X1, X2) V) in X1 (if asked for), ``rows`` and ``parameters``.

    All in float64. The arguments are those of :func:`network_product`, and ``outer`` is G, ``n x c``. Where X1 and X2
    are one tensor, X1 is still the left one alone, and the derivatives of diagonal entries are those at coincident
    points.
    """
    (depth, n), (m, count), dimension = rows.shape, vectors.shape, x1.shape[-1]
    wide = min(_INPUTS, max(16, triton.next_power_of_2(dimension)))
    blocks, width = triton.cdiv(n, _ROWS), triton.cdiv(dimension, wide) if with_points else 1
    shares, share = share_out(m, _COLUMNS, blocks * width)
    kinds = triton.next_power_of_2(3 * depth + 2)
    sums = rows.new_empty(shares, n, kinds, dtype=torch.float64)
    points = rows.new_empty((shares, n, dimension) if with_points else (0,), dtype=torch.float64)
    _gradient_kernel[(blocks, width, shares)](
        x1,
        x2,
        rows,
        columns,
        parameters,
        outer,
        vectors,
        points,
        sums,
        n,
        m,
        dimension,
        count,
        share,
        0.0 if slope is None else slope,
        DEPTH=depth,
        ERF=slope is None,
        SAME=x1 is x2,
        POINTS=with_points,
        PRECISION=precision(),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        STEP=_STEP,
        INPUTS=wide,
        KINDS=kinds,
        num_warps=8,
        enable_fp_fusion=True,
    )
    of_parameters, of_rows, _ = sums.sum(0).tensor_split((2 * depth + 2, 3 * depth + 2), -1)
    variances = rows.double() + 0.5 if slope is None else rows.double()
    of_rows = torch.where(variances > 0, of_rows.T / variances, 0.0)
    return points.sum(0) if with_points else None, of_rows, of_parameters.sum(0)
