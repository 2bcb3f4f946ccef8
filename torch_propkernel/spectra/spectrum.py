"""One reduction of a kernel matrix and targets that answers every width and temperature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .._validation import check_finite, check_floating, check_same_kind
from .preparation import BaseFactor, as_columns, check_symmetric, without_rounding
from .tridiagonal import Tridiagonal


@dataclass(frozen=True)
class Spectrum:
    r"""Nodes k with counts n, and the targets' projections z: all that widths and temperatures act on.

    For :math:`A(r) = T B + r K` (B = 1 unless a fixed term is given), :math:`K = L U\,\mathrm{diag}(k)\,U^T L^T` with
    :math:`B = L L^T` and :math:`z = U^T L^{-1} Y`, for D outputs that share A:

    .. math:: \log\det A = \log\det B + \sum_i n_i \log(T + r k_i), \qquad
              Y^T A^{-1} Y = \sum_i z_i z_i^T / (T + r k_i).

    In a dense reduction the nodes are the eigenvalues and every count is one. A reduction by Lanczos gives fewer nodes
    with counts of their own; whoever reads a spectrum need not know which it was. Build it with :meth:`from_kernel`.
    Every quantity of a (width, temperature) then costs O(P): :func:`solve_order_parameters`, :func:`effective_action`,
    :func:`laplace_evidence`. Nothing here is differentiable: see :func:`solve_order_parameters` for gradients, which
    never pass through an eigendecomposition.

    Shapes: a kernel ``*b x P x P`` and targets ``*b x P`` give M = P nodes and D = 1.
    Accuracy: backward stable, eigenvalues to a few rounding errors of the largest. All arithmetic is in float64.
    Cost: on the CPU a tridiagonal reduction, about 4 to 5 Cholesky factorizations (:class:`TridiagonalSpectrum`: it
    predicts too), and the projections 2 to 3 more when they are first read; with eigenvectors one ``eigh``.

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
            eigenvectors: Keep the eigenvectors, by which predictions and leave-one-out errors of many widths, or of
                a mixture, are cheapest.
            num_outputs: Number D of outputs that share A; None for one, without a dimension of its own.
        """
        columns = as_columns(kernel_matrix, targets, num_outputs)
        with torch.no_grad():
            batch = torch.broadcast_shapes(kernel_matrix.shape[:-2], columns.shape[:-2])
            size, source = kernel_matrix.shape[-1], kernel_matrix.dtype
            kernel_matrix = kernel_matrix.detach().to(torch.float64)
            columns = columns.detach().to(torch.float64)
            check_symmetric(kernel_matrix, source)
            factor, log_det_base = None, columns.new_zeros(())
            if base is not None:
                check_same_kind(kernel_matrix=kernel_matrix, base=check_floating("base", base).to(torch.float64))
                factor = BaseFactor(base.detach().to(torch.float64), size)
                log_det_base = factor.log_det()
                kernel_matrix = factor.whiten(factor.whiten(kernel_matrix).transpose(-1, -2))
                columns = factor.whiten(columns)
            kernel_matrix = kernel_matrix.expand(*batch, size, size)
            columns = columns.expand(*batch, *columns.shape[-2:])
            log_det_base = log_det_base.expand(batch)
            if not eigenvectors and kernel_matrix.device.type == "cpu":
                if not batch:
                    return TridiagonalSpectrum(kernel_matrix, columns, log_det_base, factor, source)
                values, projections = _reduce_each(kernel_matrix, columns)
                return cls(without_rounding(values, kernel_matrix, source), projections, None, log_det_base)
            values, vectors = torch.linalg.eigh(kernel_matrix)
            projections = vectors.transpose(-1, -2) @ columns
            if factor is not None and eigenvectors:
                vectors = factor.whiten_transposed(vectors)
            values = without_rounding(values, kernel_matrix, source)
            return cls(values, projections, vectors if eigenvectors else None, log_det_base)

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


def _reduce_each(kernel_matrix: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``*b x P`` and projections ``*b x P x D`` of a batch, one matrix after the other."""
    values, projections = [], []
    for matrix, targets in zip(kernel_matrix.flatten(0, -3), columns.flatten(0, -3), strict=True):
        reduced = Tridiagonal(matrix)
        values.append(reduced.eigenvalues)
        projections.append(reduced.rotate_to_eigenvectors(reduced.rotate(targets)))
    return torch.stack(values).reshape(columns.shape[:-1]), torch.stack(projections).reshape(columns.shape)


class TridiagonalSpectrum(Spectrum):
    r"""A spectrum whose reduction K = L Q M Q^T L^T to tridiagonal form is kept, so that it predicts too.

    A(r) = T B + r K = L Q (T + r M) Q^T L^T is solved in O(P) for every temperature and scale. Projections on the
    eigenvectors are computed when they are first read, O(P^2): one solve needs none (:meth:`label_sums`).

    It is what :meth:`Spectrum.from_kernel` returns for one matrix on the CPU, without eigenvectors.

    Args:
        kernel_matrix: K, whitened, ``P x P``, float64.
        columns: Y, whitened, ``P x D``.
        log_det_base: logdet B.
        factor: L; None for the identity.
        source: The dtype whose rounding K has.

    Attributes:
        reduction: Q and M.
        rotated: Q^T L^{-1} Y, ``P x D``.

    Example:
        >>> import torch
        >>> spectrum = Spectrum.from_kernel(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        >>> h, _ = spectrum.label_sums(torch.ones(1, dtype=torch.float64))   # z^2 = 1 and x = 1, twice
        >>> isinstance(spectrum, TridiagonalSpectrum), round(h.item(), 12)
        (True, 0.5)
    """

    reduction: Tridiagonal
    rotated: Tensor
    factor: BaseFactor | None

    def __init__(
        self,
        kernel_matrix: Tensor,
        columns: Tensor,
        log_det_base: Tensor,
        factor: BaseFactor | None,
        source: torch.dtype,
    ) -> None:
        """Reduce the matrix."""
        reduction = Tridiagonal(kernel_matrix)
        self.__dict__.update(  # what is frozen is set once
            reduction=reduction,
            rotated=reduction.rotate(columns),
            factor=factor,
            eigenvalues=without_rounding(reduction.eigenvalues, kernel_matrix, source),
            eigenvectors=None,
            log_det_base=log_det_base,
            counts=None,
        )

    @cached_property
    def projections(self) -> Tensor:
        """Projections of the targets on the eigenvectors, ``P x D``; computed once."""
        return self.reduction.rotate_to_eigenvectors(self.rotated)

    @property
    def num_outputs(self) -> int:
        """Number D of outputs."""
        return self.rotated.shape[-1]

    @property
    def is_projected(self) -> bool:
        """Whether the projections are known already."""
        return "projections" in self.__dict__

    @property
    def is_resolved(self) -> bool:
        """Whether every eigenvalue stands above the rounding of K."""
        return bool(self.eigenvalues[0] > 0)

    def rotate(self, columns: Tensor) -> Tensor:
        """Return Q^T L^{-1} C of columns ``*t x P x m``; differentiable in C."""
        return self.reduction.rotate(columns if self.factor is None else self.factor.whiten(columns))

    @cached_property
    def basis(self) -> Tensor:
        """L^{-T} Q, ``P x P``: the time of about three Cholesky factorizations, once."""
        orthogonal = self.reduction.orthogonal()
        return orthogonal if self.factor is None else self.factor.whiten_transposed(orthogonal)

    def label_sums(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return two sums over z^2 at ratios rho = r/T, ``n``, by tridiagonal solves instead of projections.

        .. math:: \sum_i z_i^2 \frac{x_i}{(1 + x_i)^2}, \quad \sum_i z_i^2 \frac{x_i^2}{(1 + x_i)^3}, \qquad
                  x_i = \rho k_i
        """
        return self.reduction.label_sums(self.rotated, ratio)

    def label_terms(self, temperature: Tensor, scale: Tensor) -> Tensor:
        """Return sum_i z_i^2 / (T + r k_i) at temperatures and scales, ``n`` each."""
        return self.reduction.label_terms(self.rotated, temperature, scale)
