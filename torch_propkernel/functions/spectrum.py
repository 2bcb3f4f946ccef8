"""One reduction of a kernel matrix and targets that answers every width and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import (
    as_temperature,
    as_width,
    check_finite,
    check_floating,
    check_kernel_and_targets,
    check_same_kind,
    positive_number,
)
from ..exceptions import NotPositiveDefiniteError
from ._lapack import eigenvalues_and_projections
from .outer_action import OuterAction


@dataclass(frozen=True)
class Spectrum:
    r"""Eigenvalues of a kernel matrix and the targets' projections: all that widths and temperatures act on.

    For :math:`A(r) = T B + r K` (B = 1 unless a fixed term is given), :math:`K = L U\,\mathrm{diag}(k)\,U^T L^T` with
    :math:`B = L L^T` and :math:`z = U^T L^{-1} y`:

    .. math:: \log\det A = \log\det B + \sum_i \log(T + r k_i), \qquad y^T A^{-1} y = \sum_i z_i^2 / (T + r k_i).

    Build it with :meth:`from_kernel`. Every quantity below then costs O(P) for each (width, temperature); batches of
    problems are evaluated together. Nothing here is differentiable: see :func:`solve_order_parameters` for gradients,
    which never pass through an eigendecomposition.

    Shapes: a kernel ``*b x P x P`` and targets ``*b x P`` give ``*b x P``. Problems broadcast: ``width`` is a number, L
    numbers or ``*p x L``, ``temperature`` a number or ``*p``; ``*p`` broadcasts with ``*b``.
    Accuracy: backward stable, eigenvalues to a few rounding errors of the largest. All arithmetic is in float64.
    Cost: without eigenvectors about 6 to 7 Cholesky factorizations (CPU; tridiagonal reduction), with them one
    ``eigh``.

    Attributes:
        eigenvalues: k, ascending, ``*b x P``; zero where they are not resolved above the rounding of K.
        projections: z, ``*b x P``; signs are arbitrary.
        eigenvectors: L^{-T} U, ``*b x P x P``, or None; A^{-1} = V diag(1 / (T + r k)) V^T.
        log_det_base: logdet B, ``*b``.

    Raises:
        TypeError, ValueError: Not square, not finite, mixed dtypes or devices (from :meth:`from_kernel`).
        NotPositiveDefiniteError: K has an eigenvalue below zero beyond rounding, or B is not positive definite.

    Reference: THEORY.md, section 1 ("spectral form") and eq. (2).

    Example:
        >>> import torch
        >>> kernel_matrix = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> y = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> spectrum = Spectrum.from_kernel(kernel_matrix, y)
        >>> S = spectrum.effective_action(torch.ones(1), width=4, temperature=1.0)
        >>> expected = 1 + (math.log(2) + math.log(4) + 1 / 2 + 4 / 4) / 4
        >>> abs(S.item() - expected) < 1e-12
        True
    """

    eigenvalues: Tensor
    projections: Tensor
    eigenvectors: Tensor | None
    log_det_base: Tensor

    @classmethod
    def from_kernel(
        cls, kernel_matrix: Tensor, targets: Tensor, *, base: Tensor | None = None, eigenvectors: bool = False
    ) -> Spectrum:
        """Reduce K and y once.

        Args:
            kernel_matrix: K, ``*b x P x P``, symmetric positive semi-definite.
            targets: y, ``*b x P``, with the mean subtracted.
            base: B of A = T B + r K: a matrix ``*b x P x P`` or a diagonal ``*b x P``; the identity if None.
            eigenvectors: Keep the eigenvectors (needed for predictions of many widths and for leave-one-out).
        """
        check_kernel_and_targets(kernel_matrix, targets)
        with torch.no_grad():
            batch = torch.broadcast_shapes(kernel_matrix.shape[:-2], targets.shape[:-1])
            size, source = kernel_matrix.shape[-1], kernel_matrix.dtype
            kernel_matrix = kernel_matrix.detach().to(torch.float64)
            targets = targets.detach().to(torch.float64)
            factor, log_det_base = None, targets.new_zeros(())
            if base is not None:
                check_same_kind(kernel_matrix=kernel_matrix, base=check_floating("base", base).to(torch.float64))
                factor = _BaseFactor(base.detach().to(torch.float64), size)
                log_det_base = factor.log_det()
                kernel_matrix = factor.whiten(factor.whiten(kernel_matrix).transpose(-1, -2))
                targets = factor.whiten(targets.unsqueeze(-1)).squeeze(-1)
            kernel_matrix = kernel_matrix.expand(*batch, size, size)
            targets = targets.expand(*batch, size)
            vectors = None
            if eigenvectors or kernel_matrix.device.type != "cpu":
                values, vectors = torch.linalg.eigh(kernel_matrix)
                projections = (vectors.transpose(-1, -2) @ targets.unsqueeze(-1)).squeeze(-1)
                if factor is not None and eigenvectors:
                    vectors = factor.whiten_transposed(vectors)
            else:
                values, projections = _reduce_each(kernel_matrix, targets)
            values = _without_rounding(values, kernel_matrix, source)
            return cls(values, projections, vectors if eigenvectors else None, log_det_base.expand(batch))

    @classmethod
    def from_eigenvalues(cls, eigenvalues: Tensor, projections: Tensor) -> Spectrum:
        """Wrap given eigenvalues k >= 0 and projections z, ``*b x P`` each."""
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
        values, order = eigenvalues.detach().to(torch.float64).expand(batch).sort(dim=-1)
        sorted_projections = projections.detach().to(torch.float64).expand(batch).gather(-1, order)
        return cls(values, sorted_projections, None, values.new_zeros(batch[:-1]))

    @property
    def num_data(self) -> int:
        """Number P of training points."""
        return self.eigenvalues.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape ``*b``."""
        return self.eigenvalues.shape[:-1]

    @property
    def condition(self) -> Tensor:
        """Largest eigenvalue of K over the smallest, ``*b``; infinite (NaN for K = 0) if K is singular to rounding."""
        return self.eigenvalues[..., -1] / self.eigenvalues[..., 0]

    def problems(
        self, width: float | Sequence[float] | Tensor, temperature: float | Tensor, readout_precision: float = 1.0
    ) -> tuple[OuterAction, torch.Size]:
        """Return all (width, temperature) problems flattened into one ``OuterAction``, and their shape ``*p``.

        Args:
            width: N_1, ..., N_L, ``*p x L``.
            temperature: T, ``*p``.
            readout_precision: lambda_L relative to the one inside K: K is divided by it.
        """
        precision = positive_number("readout_precision", readout_precision)
        width = as_width(width, torch.float64).to(self.eigenvalues.device)
        temperature = as_temperature(temperature, torch.float64, self.eigenvalues.device)
        shape = torch.broadcast_shapes(self.batch_shape, width.shape[:-1], temperature.shape)
        if bool((temperature == 0).any()) and not bool(torch.isfinite(self.condition).all()):
            raise NotPositiveDefiniteError(
                "temperature: expected > 0 for a kernel matrix that is singular to rounding, got 0 (are there "
                "duplicate or zero rows?); T = 0 needs a non-singular K"
            )
        count = math.prod(shape)
        k, z2 = self.eigenvalues / precision, self.projections.square()
        if self.batch_shape.numel() == 1:
            k, z2 = k.reshape(1, -1), z2.reshape(1, -1)
        else:
            k, z2 = (v.expand(*shape, -1).reshape(count, -1) for v in (k, z2))
        return OuterAction(
            k, z2, width.expand(*shape, -1).reshape(count, -1), temperature.expand(shape).reshape(count)
        ), shape

    def effective_action(
        self,
        order_parameter: Tensor,
        width: float | Sequence[float] | Tensor,
        temperature: float | Tensor,
    ) -> Tensor:
        """Return S(q_1, ..., q_L) of the outer composition (THEORY.md, eqs. (2) and (7)), ``*p``.

        Args:
            order_parameter: q, ``*p x L``.
            width: N_l > 0, finite here (S is divided by N_L).
            temperature: T > 0, or 0 for a non-singular K.
        """
        width = as_width(width, torch.float64).to(self.eigenvalues.device)
        order_parameter = torch.as_tensor(order_parameter, dtype=torch.float64, device=self.eigenvalues.device)
        temperature = as_temperature(temperature, torch.float64, self.eigenvalues.device)
        layers = (width * (order_parameter - order_parameter.log())).sum(-1)
        spread = temperature.unsqueeze(-1) + order_parameter.prod(-1, keepdim=True) * self.eigenvalues
        data = (spread.log() + self.projections.square() / spread).sum(-1) + self.log_det_base
        return (layers + data) / width[..., -1]

    def log_evidence(
        self, width: float | Sequence[float] | Tensor, temperature: float | Tensor, readout_precision: float = 1.0
    ) -> Tensor:
        r"""Return log p(y) by Laplace's method in log q around the global minimum, ``*p``, comparable across widths.

        .. math:: \log p(y) \approx -\tfrac12 \Big[\sum_l N_l (q_l - \log q_l - 1) + \log\det A + y^T A^{-1} y + P \log
                  2\pi + \sum_l \log q_l + \log\Big(1 + \tfrac{dg}{du} \sum_l \tfrac{1}{N_l q_l}\Big)\Big]

        Relative error of order 1/N. Use it at fixed prior variances only: with a free readout variance the infinite
        width always has the higher evidence.

        Reference: THEORY.md, section 1.
        """
        from .stationary_points import find_stationary_points

        action, shape = self.problems(width, temperature, readout_precision)
        points = find_stationary_points(action)
        u = global_minimum(points.u, points.action, points.curvature)[0]
        logs = action.log_order_parameters(u)
        stiffness = action.data_terms(u)[1] * (torch.exp(-logs) / action.width).sum(-1)
        finite_logs = torch.where(torch.isfinite(action.width), logs, 0.0).sum(-1)
        twice = action.layer_action(u) + action.data_action(u) + finite_logs + torch.log1p(stiffness)
        return -0.5 * (twice.reshape(shape) + self.log_det_base + self.num_data * math.log(2.0 * math.pi))


def global_minimum(u: Tensor, action: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and column of the lowest minimum among NaN-padded stationary points ``n x M``."""
    value = torch.where(torch.isnan(action) | (curvature < 0), torch.inf, action)
    column = value.argmin(dim=-1, keepdim=True)
    return u.gather(-1, column).squeeze(-1), column.squeeze(-1)


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
