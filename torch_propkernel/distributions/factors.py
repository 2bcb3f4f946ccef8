"""Factors of covariance matrices, and what is done with them, for batches that broadcast."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exceptions import NotPositiveDefiniteError
from ..numerics.autocast import outside_autocast


def cholesky_factor(matrix: Tensor, name: str) -> Tensor:
    """Return the lower Cholesky factor; no jitter is added."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info > 0).any()):
        raise NotPositiveDefiniteError(
            f"{name}: expected a positive definite matrix, got one whose Cholesky factorization fails; add the noise "
            "or a small multiple of the identity"
        )
    return factor


def sampling_root(matrix: Tensor, name: str) -> Tensor:
    """Return R with R R^T = matrix: the Cholesky factor, or from eigenvectors where rounding makes it fail."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool((info > 0).any()):
        return factor
    values, vectors = torch.linalg.eigh(matrix)
    rounding = 10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values[..., -1:].abs()
    if bool((values < -rounding).any()):
        raise NotPositiveDefiniteError(
            f"{name}: expected a positive semi-definite matrix, got an eigenvalue {float(values.min()):.3g} beside "
            f"{float(values.max()):.3g}"
        )
    return vectors * torch.where(values > 0, values, torch.zeros_like(values)).sqrt().unsqueeze(-2)


def log_determinant(factor: Tensor) -> Tensor:
    """Return the log determinant of the matrix L L^T."""
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def squared_norm(factor: Tensor, deviation: Tensor) -> Tensor:
    """Return |L^{-1} d|^2 for L ``*c x m x m`` and d ``*s x *b x m``, where ``*c`` broadcasts to ``*b``.

    Every factor is used once, for all the deviations that share it as columns.
    """
    batch = deviation.dim() - 1
    sizes = [1] * (batch - factor.dim() + 2) + list(factor.shape[:-2])
    own = [i for i in range(batch) if sizes[i] > 1]
    shared = [i for i in range(batch) if sizes[i] == 1]
    kept = [sizes[i] for i in own]
    deviation = deviation.expand(*(max(a, b) for a, b in zip(sizes, deviation.shape[:-1], strict=True)), -1)
    columns = deviation.permute(*own, batch, *shared)
    rest = columns.shape[len(own) + 1 :]
    white = torch.linalg.solve_triangular(
        factor.reshape(*kept, *factor.shape[-2:]), columns.reshape(*kept, factor.shape[-1], -1), upper=False
    )
    order = own + shared
    return white.square().sum(-2).reshape([*kept, *rest]).permute([order.index(i) for i in range(batch)])


@outside_autocast
def apply_root(root: Tensor, normal: Tensor) -> Tensor:
    """Return R z for R ``*b x m x m`` and z ``*s x *b x m``, one product for all the samples."""
    batch = root.dim() - 2
    flat = normal.reshape(-1, *normal.shape[normal.dim() - 1 - batch :]).movedim(0, -2)
    return (flat @ root.transpose(-1, -2)).movedim(-2, 0).reshape(normal.shape)
