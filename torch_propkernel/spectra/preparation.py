"""What a reduction needs before and after: checks, the factor of a fixed term, the rounding of eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

from .._validation import check_finite, check_kernel_and_targets
from ..exceptions import NotPositiveDefiniteError

_ROWS = 256  # rows that are compared at a time


def as_columns(kernel_matrix: Tensor, targets: Tensor, num_outputs: int | None) -> Tensor:
    """Return checked targets as columns, ``*b x P x D``."""
    if num_outputs is None:
        check_kernel_and_targets(kernel_matrix, targets)
        return targets.unsqueeze(-1)
    if not isinstance(targets, Tensor) or targets.dim() < 2 or targets.shape[-1] != num_outputs:
        got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"targets: expected shape (..., P, {num_outputs}) with num_outputs={num_outputs}, got {got}")
    check_kernel_and_targets(kernel_matrix, targets.movedim(-1, 0)[0])
    return check_finite("targets", targets)


def check_symmetric(kernel_matrix: Tensor, source: torch.dtype) -> None:
    """Refuse a matrix that is not symmetric beyond rounding: only one of its triangles would be read."""
    largest = kernel_matrix.diagonal(dim1=-2, dim2=-1).abs().amax() if kernel_matrix.numel() else 0.0
    # Matrices in double precision are often made from those in single precision.
    limit = max(1e-6, 1e4 * torch.finfo(source).eps) * float(largest)
    worst = 0.0
    for rows in range(0, kernel_matrix.shape[-1], _ROWS):
        part, before = slice(rows, rows + _ROWS), slice(None, rows + _ROWS)
        difference = kernel_matrix[..., part, before] - kernel_matrix[..., before, part].transpose(-1, -2)
        worst = max(worst, float(difference.abs().amax()))
    if worst > limit:
        raise ValueError(
            f"kernel matrix: expected a symmetric one, got entries K_ij and K_ji that differ by {worst:.3g} beside a "
            f"largest diagonal entry of {float(largest):.3g}; use (K + K^T) / 2 if that is rounding"
        )


class BaseFactor:
    """L with B = L L^T, for a dense B or one given by its diagonal (then L is a vector)."""

    def __init__(self, base: Tensor, size: int) -> None:
        self.dense = base.dim() >= 2 and base.shape[-2:] == (size, size)
        if self.dense:
            self.factor, info = torch.linalg.cholesky_ex(base)
            if bool((info > 0).any()):
                raise NotPositiveDefiniteError("base: expected a positive definite matrix, its factorization failed")
            return
        if base.shape[-1:] != (size,):
            raise ValueError(f"base: expected shape (..., {size}, {size}) or (..., {size}), got {tuple(base.shape)}")
        if not bool((base > 0).all()):
            raise NotPositiveDefiniteError(f"base: expected a positive diagonal, got an entry {float(base.min()):.3g}")
        self.factor = base.sqrt()

    def log_det(self) -> Tensor:
        """Return logdet B."""
        return 2.0 * (self.factor.diagonal(dim1=-2, dim2=-1) if self.dense else self.factor).log().sum(-1)

    def whiten(self, value: Tensor) -> Tensor:
        """Return L^{-1} V."""
        if self.dense:
            return torch.linalg.solve_triangular(self.factor, value, upper=False)
        return value / self.factor.unsqueeze(-1)

    def whiten_transposed(self, value: Tensor) -> Tensor:
        """Return L^{-T} V."""
        if self.dense:
            return torch.linalg.solve_triangular(self.factor.transpose(-1, -2), value, upper=True)
        return value / self.factor.unsqueeze(-1)


def without_rounding(values: Tensor, kernel_matrix: Tensor, source: torch.dtype) -> Tensor:
    """Set eigenvalues to zero that rounding of K or of its reduction cannot tell from zero; refuse truly negative ones.

    Left as they come out, at 1e-17 of either sign, they would look like directions of their own at low temperatures.
    """
    size = values.shape[-1]
    entries = kernel_matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    # Entries of relative rounding error eps form a random matrix of norm 2 sqrt(P) eps; the reduction's own error was
    # 100 eps |K| at P = 2000.
    source_noise = 2.0 * torch.finfo(source).eps * entries
    noise = size**0.5 * (source_noise + 8.0 * torch.finfo(values.dtype).eps * values[..., -1].abs())
    smallest = values[..., 0]
    if bool((smallest < -10.0 * noise).any()):
        raise NotPositiveDefiniteError(
            f"kernel matrix: expected positive semi-definite, got a smallest eigenvalue {float(smallest.min()):.3g} "
            f"beside a largest one of {float(values.max()):.3g}"
        )
    return torch.where(values > noise.unsqueeze(-1), values, 0.0)
