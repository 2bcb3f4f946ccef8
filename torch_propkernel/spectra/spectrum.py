"""One reduction of a kernel matrix and targets that answers every width and temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import check_finite, check_floating, check_kernel_and_targets, check_same_kind
from ..exceptions import NotPositiveDefiniteError
from .lapack import eigenvalues_and_projections

_ROWS = 256  # rows that are compared at a time


@dataclass(frozen=True)
class Spectrum:
    r"""Nodes k with counts n, and the targets' projections z: all that widths and temperatures act on.

    For :math:`A(r) = T B + r K` (B = 1 unless a fixed term is given), :math:`K = L U\,\mathrm{diag}(k)\,U^T L^T` with
    :math:`B = L L^T` and :math:`z = U^T L^{-1} Y`, for D outputs that share A:

    .. math:: \log\det A = \log\det B + \sum_i n_i \log(T + r k_i), \qquad
              Y^T A^{-1} Y = \sum_i z_i z_i^T / (T + r k_i).

    In a dense reduction the nodes are the eigenvalues and every count is one. A reduction by Lanczos gives fewer nodes
    with counts of their own, which may be negative and add up to P (:class:`LanczosReduction`); whoever reads a
    spectrum need not know which it was. Build it with :meth:`from_kernel`.
    Every quantity of a (width, temperature) then costs O(P): :func:`solve_order_parameters`, :func:`effective_action`,
    :func:`laplace_evidence`. Nothing here is differentiable: see :func:`solve_order_parameters` for gradients, which
    never pass through an eigendecomposition.

    Shapes: a kernel ``*b x P x P`` and targets ``*b x P`` give M = P nodes and D = 1.
    Accuracy: backward stable, eigenvalues to a few rounding errors of the largest. All arithmetic is in float64.
    Cost: without eigenvectors about 6 to 7 Cholesky factorizations (CPU; tridiagonal reduction), with them one
    ``eigh``.

    Attributes:
        eigenvalues: k, ascending, ``*b x M``; zero where they are not resolved above the rounding of K.
        projections: z, ``*b x M x D``; signs are arbitrary.
        eigenvectors: L^{-T} U, ``*b x P x P``, or None; A^{-1} = V diag(1 / (T + r k)) V^T.
        log_det_base: logdet B, ``*b``.
        counts: n, ``*b x M``; None stands for one each.

    Raises:
        TypeError, ValueError: Not square, not symmetric, not finite, mixed dtypes or devices (from
            :meth:`from_kernel`).
        NotPositiveDefiniteError: K has an eigenvalue below zero beyond rounding, or B is not positive definite.

    Reference: THEORY.md, section 1 ("spectral form") and eq. (2).

    Example:
        >>> kernel_matrix = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> spectrum = Spectrum.from_kernel(kernel_matrix, torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> [round(v, 12) for v in (*spectrum.eigenvalues.tolist(), *spectrum.squares.tolist())]
        [1.0, 3.0, 1.0, 4.0]
    """

    eigenvalues: Tensor
    projections: Tensor
    eigenvectors: Tensor | None
    log_det_base: Tensor
    counts: Tensor | None = None

    @classmethod
    def from_kernel(
        cls,
        kernel_matrix: Tensor,
        targets: Tensor,
        *,
        base: Tensor | None = None,
        eigenvectors: bool = False,
        num_outputs: int | None = None,
    ) -> Spectrum:
        """Reduce K and y once.

        Args:
            kernel_matrix: K, ``*b x P x P``, symmetric positive semi-definite.
            targets: y, ``*b x P``, with the mean subtracted; ``*b x P x D`` with ``num_outputs=D``.
            base: B of A = T B + r K: a matrix ``*b x P x P`` or a diagonal ``*b x P``; the identity if None.
            eigenvectors: Keep the eigenvectors (needed for predictions of many widths and for leave-one-out).
            num_outputs: Number D of outputs that share A; None for one, without a dimension of its own.
        """
        columns = _columns(kernel_matrix, targets, num_outputs)
        with torch.no_grad():
            batch = torch.broadcast_shapes(kernel_matrix.shape[:-2], columns.shape[:-2])
            size, source = kernel_matrix.shape[-1], kernel_matrix.dtype
            kernel_matrix = kernel_matrix.detach().to(torch.float64)
            columns = columns.detach().to(torch.float64)
            _check_symmetric(kernel_matrix, source)
            factor, log_det_base = None, columns.new_zeros(())
            if base is not None:
                check_same_kind(kernel_matrix=kernel_matrix, base=check_floating("base", base).to(torch.float64))
                factor = _BaseFactor(base.detach().to(torch.float64), size)
                log_det_base = factor.log_det()
                kernel_matrix = factor.whiten(factor.whiten(kernel_matrix).transpose(-1, -2))
                columns = factor.whiten(columns)
            kernel_matrix = kernel_matrix.expand(*batch, size, size)
            columns = columns.expand(*batch, *columns.shape[-2:])
            vectors = None
            if eigenvectors or kernel_matrix.device.type != "cpu" or columns.shape[-1] > 1:
                values, vectors = torch.linalg.eigh(kernel_matrix)
                projections = vectors.transpose(-1, -2) @ columns
                if factor is not None and eigenvectors:
                    vectors = factor.whiten_transposed(vectors)
            else:
                values, projections = _reduce_each(kernel_matrix, columns.squeeze(-1))
                projections = projections.unsqueeze(-1)
            values = _without_rounding(values, kernel_matrix, source)
            return cls(values, projections, vectors if eigenvectors else None, log_det_base.expand(batch))

    @classmethod
    def from_eigenvalues(cls, eigenvalues: Tensor, projections: Tensor, counts: Tensor | None = None) -> Spectrum:
        """Wrap given nodes k >= 0, projections z and counts n >= 0 of one output, ``*b x M`` each."""
        check_same_kind(
            eigenvalues=check_floating("eigenvalues", eigenvalues),
            projections=check_floating("projections", projections),
        )
        batch = torch.broadcast_shapes(eigenvalues.shape, projections.shape)
        if not bool((torch.isfinite(eigenvalues) & (eigenvalues >= 0)).all()):
            raise ValueError(
                f"eigenvalues: expected finite numbers >= 0, got a smallest one of {float(eigenvalues.min()):.3g}"
            )
        check_finite("projections", projections)
        if counts is not None and not bool((torch.isfinite(counts) & (counts >= 0)).all()):
            raise ValueError(f"counts: expected finite numbers >= 0, got a smallest one of {float(counts.min()):.3g}")
        values, order = eigenvalues.detach().to(torch.float64).expand(batch).sort(dim=-1)
        z, n = (
            None if v is None else v.detach().to(torch.float64).expand(batch).gather(-1, order)
            for v in (projections, counts)
        )
        return cls(values, z.unsqueeze(-1), None, values.new_zeros(batch[:-1]), n)  # type: ignore[union-attr]

    @property
    def num_data(self) -> int:
        """Number P of training points."""
        return self.eigenvalues.shape[-1] if self.counts is None else round(float(self.counts.sum(-1).max()))

    @property
    def num_outputs(self) -> int:
        """Number D of outputs."""
        return self.projections.shape[-1]

    @property
    def squares(self) -> Tensor:
        """z^2, summed over outputs, ``*b x M``."""
        return self.projections.square().sum(-1)

    @property
    def multiplicities(self) -> Tensor | None:
        """How often each node enters logdet A of all outputs, ``*b x M``; None for once."""
        if self.num_outputs == 1:
            return self.counts
        counts = torch.ones_like(self.eigenvalues) if self.counts is None else self.counts
        return self.num_outputs * counts

    @property
    def vectors(self) -> Tensor:
        """The eigenvectors.

        Raises:
            ValueError: They were not kept.
        """
        if self.eigenvectors is None:
            raise ValueError("spectrum: expected one with eigenvectors, got one without; reduce with eigenvectors=True")
        return self.eigenvectors

    @property
    def single(self) -> Tensor:
        """The projections of the one output, ``*b x M``.

        Raises:
            ValueError: There are several outputs.
        """
        if self.num_outputs != 1:
            raise ValueError(f"targets: expected one output, got {self.num_outputs}")
        return self.projections.squeeze(-1)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape ``*b``."""
        return self.eigenvalues.shape[:-1]

    @property
    def condition(self) -> Tensor:
        """Largest eigenvalue of K over the smallest, ``*b``; infinite (NaN for K = 0) if K is singular to rounding."""
        return self.eigenvalues[..., -1] / self.eigenvalues[..., 0]


def _columns(kernel_matrix: Tensor, targets: Tensor, num_outputs: int | None) -> Tensor:
    """Return checked targets as columns, ``*b x P x D``."""
    if num_outputs is None:
        check_kernel_and_targets(kernel_matrix, targets)
        return targets.unsqueeze(-1)
    if not isinstance(targets, Tensor) or targets.dim() < 2 or targets.shape[-1] != num_outputs:
        got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"targets: expected shape (..., P, {num_outputs}) with num_outputs={num_outputs}, got {got}")
    check_kernel_and_targets(kernel_matrix, targets.movedim(-1, 0)[0])
    return check_finite("targets", targets)


def _check_symmetric(kernel_matrix: Tensor, source: torch.dtype) -> None:
    """Refuse a matrix that is not symmetric beyond rounding: only one of its triangles would be read."""
    largest = kernel_matrix.diagonal(dim1=-2, dim2=-1).abs().amax() if kernel_matrix.numel() else 0.0
    # Matrices in double precision are often made from those in single precision.
    limit = max(1e-6, 1e4 * torch.finfo(source).eps) * float(largest)
    worst = 0.0
    for rows in range(0, kernel_matrix.shape[-1], _ROWS):
        part = slice(rows, rows + _ROWS)
        difference = kernel_matrix[..., part, :] - kernel_matrix[..., :, part].transpose(-1, -2)
        worst = max(worst, float(difference.abs().amax()))
    if worst > limit:
        raise ValueError(
            f"kernel matrix: expected a symmetric one, got entries K_ij and K_ji that differ by {worst:.3g} beside a "
            f"largest diagonal entry of {float(largest):.3g}; use (K + K^T) / 2 if that is rounding"
        )


def _reduce_each(kernel_matrix: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    size = kernel_matrix.shape[-1]
    pairs = [
        eigenvalues_and_projections(matrix.clone(memory_format=torch.contiguous_format).numpy(), vector.numpy())
        for matrix, vector in zip(kernel_matrix.reshape(-1, size, size), targets.reshape(-1, size), strict=True)
    ]
    values, projections = (torch.stack([torch.from_numpy(p[i]) for p in pairs]) for i in (0, 1))
    return values.reshape(targets.shape), projections.reshape(targets.shape)


class _BaseFactor:
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
        return 2.0 * (self.factor.diagonal(dim1=-2, dim2=-1) if self.dense else self.factor).log().sum(-1)

    def whiten(self, value: Tensor) -> Tensor:
        if self.dense:
            return torch.linalg.solve_triangular(self.factor, value, upper=False)
        return value / self.factor.unsqueeze(-1)

    def whiten_transposed(self, value: Tensor) -> Tensor:
        if self.dense:
            return torch.linalg.solve_triangular(self.factor.transpose(-1, -2), value, upper=True)
        return value / self.factor.unsqueeze(-1)


def _without_rounding(values: Tensor, kernel_matrix: Tensor, source: torch.dtype) -> Tensor:
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
