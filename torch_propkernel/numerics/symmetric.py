"""Symmetric matrices as flat coordinates, logarithms, generalized eigenvectors, differences of the exponential."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROOT_TWO = math.sqrt(2.0)


def num_coordinates(size: int) -> int:
    """Return how many numbers a symmetric matrix of this size has."""
    return size * (size + 1) // 2


def to_coordinates(matrix: Tensor) -> Tensor:
    """Return the coordinates of symmetric matrices ``*b x D x D`` in an orthonormal basis, ``*b x D (D + 1) / 2``.

    Entries off the diagonal count twice in the Frobenius norm, so they are multiplied by the square root of two: the
    norm of the coordinates is that of the matrix.
    """
    row, column = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return matrix[..., row, column] * _lengths(row, column, matrix)


def from_coordinates(coordinates: Tensor, size: int) -> Tensor:
    """Return the symmetric matrices ``*b x D x D`` of coordinates; differentiable."""
    row, column = torch.tril_indices(size, size, device=coordinates.device)
    entries = coordinates / _lengths(row, column, coordinates)
    index = torch.zeros(size, size, dtype=torch.long, device=coordinates.device)
    number = torch.arange(len(row), device=coordinates.device)
    index[row, column] = number
    index[column, row] = number
    return entries[..., index]


def symmetric_basis(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal basis of the symmetric matrices, ``D (D + 1) / 2 x D x D``."""
    unit = torch.eye(num_coordinates(size), dtype=like.dtype, device=like.device)
    return from_coordinates(unit, size)


def _lengths(row: Tensor, column: Tensor, like: Tensor) -> Tensor:
    """Return the Frobenius norms of the basis of symmetric matrices, exact in the dtype of a tensor."""
    return torch.where(row == column, like.new_ones(()), like.new_tensor(_ROOT_TWO))


def symmetric_log(matrix: Tensor) -> Tensor:
    """Return the logarithm of symmetric positive definite matrices, ``*b x D x D``."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.log().unsqueeze(-2)) @ vectors.mT


def relative_eigh(scale: Tensor, vectors: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Return m, ``*b x D``, and B, ``*b x D x D``, with Q B = R B diag(m) and B^T R B = 1.

    The singular values are taken of a factor, so that small ones keep their digits.

    Args:
        scale: Eigenvalues of Q, positive, ``*b x D``.
        vectors: Its eigenvectors, ``*b x D x D``.
        root: C, lower triangular, with R = C C^T, ``D x D``.
    """
    half = torch.linalg.solve_triangular(root, vectors * scale.sqrt().unsqueeze(-2), upper=False)
    turned, values, _ = torch.linalg.svd(half)
    return values.square(), torch.linalg.solve_triangular(root.mT, turned, upper=True)


def exponential_differences(values: Tensor) -> Tensor:
    r"""Return the divided differences of the exponential, ``*b x D x D``, of values ``*b x D``.

    .. math:: \Phi_{ab} = \frac{e^{u_a} - e^{u_b}}{u_a - u_b} = e^{(u_a + u_b)/2}\, \frac{\sinh \delta}{\delta}, \qquad
              \delta = \frac{u_a - u_b}{2}

    With X = V diag(u) V^T the derivative of a function of exp(X) follows from its gradient G in exp(X) (Daleckii and
    Krein): V [Phi * (V^T G V)] V^T, also where eigenvalues coincide.
    """
    half = 0.5 * (values.unsqueeze(-1) - values.unsqueeze(-2))
    small = half.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(half), half)
    ratio = torch.where(small, 1.0 + half.square() / 6.0, torch.sinh(safe) / safe)
    return torch.exp(0.5 * (values.unsqueeze(-1) + values.unsqueeze(-2))) * ratio


def second_exponential_differences(values: Tensor) -> Tensor:
    r"""Return the second divided differences of the exponential, ``*b x D x D x D``, of values ``*b x D``.

    .. math:: \Phi_{abc} = \frac{\Phi_{ab} - \Phi_{bc}}{u_a - u_c}

    in the order of the arguments whose outer two are furthest apart: they do not depend on it. The second derivative of
    exp(X) along S is :math:`2 \sum_c \Phi_{acb} S_{ac} S_{cb}` in the frame of X. Accuracy: 1e-9, relative.
    """
    first = exponential_differences(values)
    a, b, c = values[..., :, None, None], values[..., None, :, None], values[..., None, None, :]
    ab, bc, ac = first.unsqueeze(-1), first.unsqueeze(-3), first.unsqueeze(-2)
    best, gap = torch.exp((a + b + c) / 3.0) / 2.0, torch.full_like(a + b + c, 1e-4)
    for rise, run in ((ab - bc, a - c), (ab - ac, b - c), (ac - bc, a - b)):
        wider = run.abs() > gap
        best = torch.where(wider, rise / torch.where(wider, run, 1.0), best)
        gap = torch.where(wider, run.abs(), gap)
    return best


def quadratic_form(directions: Tensor, blocks: Tensor) -> Tensor:
    """Return sum_abc M_cab S_ca S'_cb for pairs of directions ``*b x C x D x D`` with M ``*b x D x D x D``."""
    bent = torch.einsum("...cab,...jcb->...jca", blocks, directions)
    return directions.flatten(-2) @ bent.flatten(-2).mT


def exponential_jacobian(values: Tensor, vectors: Tensor) -> Tensor:
    """Return the derivatives of the coordinates of exp(X) in those of X, ``C x C``, symmetric.

    Args:
        values: Eigenvalues of X, ``D``.
        vectors: Its eigenvectors, ``D x D``.
    """
    turned = vectors.mT @ symmetric_basis(len(values), values) @ vectors
    return to_coordinates(vectors @ (exponential_differences(values) * turned) @ vectors.mT)


def exponential_curvature(values: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    r"""Return second derivatives of tr(M exp(X)) in the coordinates of X, ``C x C``.

    .. math:: 2 \sum_{abc} (V^T M V)_{ab}\, \Phi_{acb}\, S_{ca} S'_{cb}, \qquad S = V^T dX\, V

    Args:
        values: Eigenvalues of X, ``D``.
        vectors: V, its eigenvectors, ``D x D``.
        weights: M, symmetric, ``D x D``.
    """
    turned = vectors.mT @ symmetric_basis(len(values), values) @ vectors
    inner = vectors.mT @ weights @ vectors
    return quadratic_form(turned, 2.0 * inner.unsqueeze(-3) * second_exponential_differences(values))
