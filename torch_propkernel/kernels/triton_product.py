"""The device code of :class:`FusedProduct` in Triton; imported where a product is computed and nowhere else."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Points along the rows and the columns of a tile, inputs in one step of its product, and columns of V at most. A dot of
# Triton wants at least 16 along every side. With more of any of them the compiler runs out of registers (sm_80, sm_90).
_ROWS, _COLUMNS, _INPUTS, _VECTORS = 64, 32, 16, 128
_PROGRAMS = 1024  # at which an accelerator is busy: fewer rows share out the columns
_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}


@triton.jit
def _angle(y, x):
    """Angle of the point (x, y), x >= 0, and zero at the origin.

    atan(z) / z is a polynomial in z^2 with a relative error of 2e-8 for z up to tan(pi/8), fitted at Chebyshev points.
    """
    size = tl.abs(y)
    small, large = tl.minimum(size, x), tl.maximum(size, x)
    steep = small > 0.41421356 * large
    top, bottom = tl.where(steep, small - large, small), tl.where(steep, small + large, large)
    z = top / tl.where(bottom > 0.0, bottom, 1.0)
    s = z * z
    polynomial = -0.1385147843 + 0.07984962912 * s
    angle = z * (0.9999999819 + s * (-0.3333279694 + s * (0.1997440479 + s * polynomial)))
    angle = tl.where(steep, 0.78539816 + angle, angle)
    angle = tl.where(size > x, 1.57079633 - angle, angle)
    return tl.where(y < 0.0, -angle, angle)


@triton.jit
def _dual(c, row, column, slope, ERF: tl.constexpr):
    """The dual of erf, or of the rectifier with a negative slope (THEORY.md, section 0)."""
    determinant = tl.maximum(row * column - c * c, 0.0)
    if ERF:
        return 0.63661977 * _angle(c, tl.sqrt(0.25 + 0.5 * (row + column) + determinant))
    r = tl.sqrt(determinant)
    part = (1.0 - slope) * (1.0 - slope) * 0.15915494
    return slope * c + part * (r + (1.57079633 + _angle(c, r)) * c)


@triton.jit
def _dots(
    a,
    b,
    own,
    other,
    n,
    m,
    dimension,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Dot products of some rows of a, ``n x dimension``, with some of b, ``m x dimension``; zero past their ends."""
    c = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for first in range(0, dimension, INPUTS):
        feature = first + tl.arange(0, INPUTS)
        mask1 = (own[:, None] < n) & (feature[None, :] < dimension)
        mask2 = (other[None, :] < m) & (feature[:, None] < dimension)
        left = tl.load(a + own[:, None] * dimension + feature[None, :], mask=mask1, other=0.0)
        right = tl.load(b + other[None, :] * dimension + feature[:, None], mask=mask2, other=0.0)
        c = tl.dot(left, right, c, input_precision=PRECISION)
    return c


@triton.jit
def _add(total, lost, part):
    """The sum of two numbers, and what rounding has taken off all sums so far, exactly (Knuth)."""
    new = total + part
    back = new - total
    return new, lost + ((total - (new - back)) + (part - back))


@triton.jit
def _product_kernel(
    x1,
    x2,
    rows,
    columns,
    parameters,
    vectors,
    out,
    n,
    m,
    dimension,
    count,
    share,
    slope,
    DEPTH: tl.constexpr,
    ERF: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """One block of rows, one of vectors, and one share of the columns."""
    own = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    which = tl.program_id(1) * VECTORS + tl.arange(0, VECTORS)
    begin = tl.program_id(2) * share
    factor, bias = tl.load(parameters), tl.load(parameters + 1)
    total = tl.full((ROWS, VECTORS), 0.0, tl.float32)
    lost = tl.full((ROWS, VECTORS), 0.0, tl.float32)
    for start in range(begin, tl.minimum(begin + share, m), COLUMNS):
        other = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        c = _dots(x1, x2, own, other, n, m, dimension, PRECISION, ROWS, COLUMNS, INPUTS)
        c = c * factor + bias
        for l in tl.static_range(DEPTH):
            row = tl.load(rows + l * n + own, mask=own < n, other=0.0)
            column = tl.load(columns + l * m + other, mask=other < m, other=0.0)
            kappa = _dual(c, row[:, None], column[None, :], slope, ERF)
            c = tl.load(parameters + 2 * l + 2) * kappa + tl.load(parameters + 2 * l + 3)
        mask = (other[:, None] < m) & (which[None, :] < count)
        v = tl.load(vectors + other[:, None] * count + which[None, :], mask=mask, other=0.0)
        total, lost = _add(total, lost, tl.dot(c, v, input_precision=PRECISION))
    place = (tl.program_id(2).to(tl.int64) * n + own[:, None]) * count + which[None, :]
    inside = (own[:, None] < n) & (which[None, :] < count)
    tl.store(out + place, total.to(tl.float64) + lost.to(tl.float64), mask=inside)


def precision() -> str:
    """Return how dots are computed."""
    return _PRECISIONS[torch.get_float32_matmul_precision()]


def share_out(number: int, tile: int, programs: int) -> tuple[int, int]:
    """Return in how many shares of how many columns, whole tiles, so many programs keep an accelerator busy."""
    tiles = triton.cdiv(number, tile)
    share = triton.cdiv(tiles, min(tiles, max(1, _PROGRAMS // programs))) * tile
    return triton.cdiv(number, share), share


def network_product(
    x1: Tensor, x2: Tensor, rows: Tensor, columns: Tensor, parameters: Tensor, vectors: Tensor, slope: float | None
) -> Tensor:
    """Return K(X1, X2) V in float64, ``n x c``, all that is given being contiguous float32 on one device.

    Args:
        x1: ``n x d``.
        x2: ``m x d``.
        rows: Variances of the points X1 in front of each layer, ``L x n``.
        columns: Those of X2, ``L x m``.
        parameters: w_0 / N_0, b_0, w_1, b_1, ..., w_L, b_L.
        vectors: V, ``m x c``.
        slope: Negative slope of the rectifier; None for erf.
    """
    (depth, n), (m, count) = rows.shape, vectors.shape
    wide = min(_VECTORS, max(16, triton.next_power_of_2(count)))
    blocks, width = triton.cdiv(n, _ROWS), triton.cdiv(count, wide)
    shares, share = share_out(m, _COLUMNS, blocks * width)
    out = vectors.new_empty(shares, n, count, dtype=torch.float64)
    _product_kernel[(blocks, width, shares)](
        x1,
        x2,
        rows,
        columns,
        parameters,
        vectors,
        out,
        n,
        m,
        x1.shape[-1],
        count,
        share,
        0.0 if slope is None else slope,
        DEPTH=depth,
        ERF=slope is None,
        PRECISION=precision(),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        INPUTS=_INPUTS,
        VECTORS=wide,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return out.sum(0)
