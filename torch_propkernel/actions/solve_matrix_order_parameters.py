"""The saddle point of several outputs: a matrix order parameter in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from .._validation import as_temperature, as_width, check_kernel_and_targets, check_positive_definite
from ..numerics.first_derivatives import first_derivatives_only
from ..numerics.symmetric import from_coordinates, symmetric_log, to_coordinates
from ..order_parameters import ScalarChain
from ..spectra.spectrum import Spectrum
from .local_minimum import LocalMinimum, lowest_minimum, minimize
from .matrix_gradients import layers_part, linear_terms, moved_minimum, output_terms
from .matrix_minimum import MatrixMinimum, directions
from .observed_output_action import ObservedOutputAction
from .output_action import OutputAction
from .solution import Solution, SolveResult


@dataclass(frozen=True)
class MatrixSolution(Solution):
    r"""Matrix order parameters of D outputs at the saddle point.

    Attributes:
        order_parameter: E_1, ..., E_L, ``*p x L x D x D``; they commute.
        output_covariance: Q = prod_l E_l, ``*p x D x D``: the covariance of the outputs is Q (x) K.

    Example:
        >>> import torch
        >>> from torch_propkernel.actions import solve_matrix_order_parameters
        >>> K, y = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:, :2]
        >>> solution = solve_matrix_order_parameters(K, y, width=6, temperature=0.1)
        >>> bool(abs(solution.output_covariance[0, 1]) < 1e-8), solution.order_parameter.shape
        (True, torch.Size([1, 2, 2]))
    """

    output_covariance: Tensor = field(kw_only=True)


def solve_matrix_order_parameters(
    kernel_matrix: Tensor | Spectrum,
    targets: Tensor | None = None,
    *,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
    output_noise: Tensor | None = None,
    start: Tensor | None = None,
    evidence: bool = False,
    throw: bool = True,
) -> MatrixSolution:
    r"""Minimize the effective action of D outputs, whose layers each have a D x D matrix as order parameter.

    .. math:: S(E) = \sum_l \frac{N_l}{N_L} [\mathrm{tr}\, E_l - \log\det E_l]
              + \frac{1}{N_L} \big[\log\det A + \mathrm{vec}(Y)^T A^{-1} \mathrm{vec}(Y)\big], \qquad
              A = T 1 + Q \otimes K, \quad Q = \prod_l E_l

    At the minimum the E_l commute, so that layers are eliminated for each eigenvalue of Q and only Q is searched, in
    log Q (:class:`OutputAction`). Newton's method starts where the outputs, rotated to the eigenvectors of the label
    matrix (that of T + K, that of Y^T Y, and unrotated), are D one-dimensional problems, each solved globally; and at
    the identity; and at ``start``. For one output this is :func:`solve_order_parameters`. The lowest minimum is
    returned; ``stats["agreeing_starts"]`` says how many of the starts ended there, ``stats["num_minima"]`` how many
    different minima they found. The result is "local minimum", since for several outputs nothing excludes a lower one.

    Differentiable: where the kernel matrix, the targets, the temperature, the noise between outputs or the width
    requires a gradient, ``order_parameter`` and ``output_covariance`` carry the implicit one and ``action`` the
    envelope's, also where eigenvalues meet. First derivatives only: a backward pass with ``create_graph=True`` raises
    ``RuntimeError``. They take D factorizations of P rows for each problem (one of M rows where targets are missing).

    Noise that differs or is correlated between outputs, T R in place of T, costs nothing more. Where targets are
    missing (NaN), A is that of the M observed ones (:class:`ObservedOutputAction`): M^3 operations for each gradient
    and 6 M^2 numbers of memory, and the starts are the outputs by themselves, unrotated, and the identity. With M =
    1,000 that was 4 s for three outputs and 13 s for six on one core.

    A layer of fewer than D units has no density of its own, but this action stays defined (it is that of the invariant
    measure): it is minimized, and ``stats["narrow"]`` is True.

    Shapes: K ``P x P``, Y ``P x D``, width and temperature as in :func:`solve_order_parameters`, ``*p`` problems.
    Cost: one ``eigh``; then D (D + 1) / 2 gradients of P D^2 operations for a Newton step, some twenty of
    them: with P = 400 on one core 0.5 s for ten outputs, 7 s for thirty, 32 s for fifty.

    Args:
        kernel_matrix: K (1/lambda_L included), or a :class:`Spectrum` with D outputs.
        targets: Y with the mean subtracted, NaN where a target is missing; None with a spectrum.
        width: N_l, ``math.inf`` allowed.
        temperature: T > 0.
        output_noise: R, the noise covariance of the outputs at a point in units of T, ``D x D``; the identity if None.
        start: A further start, Q, ``D x D``, such as an earlier solution.
        evidence: Compute ``log_evidence`` too (:func:`laplace_evidence` for matrices, THEORY.md, eq. (21d)); NaN for
            problems with a layer of fewer than D units, whose prior has no density.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, dtypes, NaN, non-positive width or temperature, a batch of kernel matrices.
        NotPositiveDefiniteError: K is indefinite.
        NotEnoughMemoryError: Targets are missing, and the matrices of the observed ones do not fit.
        ConvergenceError: Not converged, with ``throw=True``.

    Reference: Pacelli, Giambagli, Baglioni (2024), arXiv:2412.15911; Bassetti et al. (2024), arXiv:2406.03260;
    THEORY.md, section 11, eqs. (20), (21), (21b) and (21c).

    Example:
        >>> import torch
        >>> from torch_propkernel import solve_order_parameters
        >>> from torch_propkernel.actions import solve_matrix_order_parameters
        >>> K, y = torch.eye(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
        >>> one = solve_matrix_order_parameters(K, y.unsqueeze(-1), width=[3.0, 5.0], temperature=0.1)
        >>> q = solve_order_parameters(K, y, width=[3.0, 5.0], temperature=0.1).order_parameter
        >>> torch.allclose(one.order_parameter.flatten(), q, rtol=1e-12)
        True
    """
    with torch.no_grad():
        pose, size, device = _problem(kernel_matrix, targets)
        widths = as_width(width, torch.float64).to(device)
        cold = as_temperature(temperature, torch.float64, device)
        if not bool((cold > 0).all()):
            raise ValueError(f"temperature: expected > 0 for several outputs, got {cold.tolist()}")
        shape = torch.broadcast_shapes(widths.shape[:-1], cold.shape)
        widths = widths.expand(*shape, widths.shape[-1]).reshape(-1, widths.shape[-1])
        noise, own = (
            None if matrix is None else check_positive_definite(name, matrix, size, device).detach()
            for name, matrix in (("output_noise", output_noise), ("start", start))
        )
        action = pose(widths, cold.expand(shape).reshape(-1), noise)
        free = torch.isfinite(widths).any(-1, keepdim=True)
        starts = action.starts()
        if own is not None:
            starts.append(to_coordinates(symmetric_log(own)).expand_as(starts[0]))
        runs = [minimize(action, point, free.expand_as(point), action.scale()) for point in starts]
        found = _Found(action, widths, *lowest_minimum(runs))
        best, last = found.best, widths[:, -1]
        value = (best.value + found.constant) / torch.where(torch.isfinite(last), last, 1.0)
        stats = {
            "iterations": sum(run.iterations for run in runs),
            "residual": (best.gradient.abs().amax(-1) / action.scale()).reshape(shape),
            "num_minima": found.num_minima.reshape(shape),
            "alpha": (action.num_data / widths).reshape(*shape, -1),
            "starts": len(runs),
            "agreeing_starts": found.agreeing.reshape(shape),
            "narrow": bool((widths < size).any()),
            "num_missing": action.num_missing,
        }
        solution = MatrixSolution(
            found.order_parameter().reshape(*shape, -1, size, size),
            value.reshape(shape),
            _result(best, free, size),
            stats=stats,
            log_evidence=found.log_evidence().reshape(shape) if evidence else None,
            output_covariance=found.covariance().reshape(*shape, size, size),
        )
        if throw:
            solution.raise_if_failed()
    live = [v for v in (kernel_matrix, targets, temperature, width, output_noise) if isinstance(v, Tensor)]
    if not torch.is_grad_enabled() or not any(v.requires_grad for v in live):
        return solution
    if isinstance(kernel_matrix, Spectrum) or targets is None:  # a reduction has no graph
        return solution
    return _attach_gradients(solution, found, kernel_matrix, targets, width, temperature, output_noise)


class _Found:
    """The lowest minima of n problems."""

    def __init__(
        self, action: OutputAction, widths: Tensor, best: LocalMinimum, agreeing: Tensor, num_minima: Tensor
    ) -> None:
        self.action, self.widths, self.best, self.agreeing, self.num_minima = action, widths, best, agreeing, num_minima
        self.u, self.vectors = torch.linalg.eigh(from_coordinates(best.logs, action.num_outputs))
        self.eigenvalues = action.chain.at_log_scale(self.u).order_parameter.mT  # n x L x D

    @property
    def constant(self) -> Tensor:
        """D times the sum of the finite widths: what the action leaves out."""
        return torch.where(torch.isfinite(self.widths), self.widths, 0.0).sum(-1) * self.action.num_outputs

    def order_parameter(self) -> Tensor:
        vectors = self.vectors.unsqueeze(-3)
        return (vectors * self.eigenvalues.unsqueeze(-2)) @ vectors.mT

    def covariance(self) -> Tensor:
        return (self.vectors * self.u.exp().unsqueeze(-2)) @ self.vectors.mT

    @cached_property
    def along(self) -> Tensor:
        return directions(self.u, self.vectors)

    @cached_property
    def minimum(self) -> MatrixMinimum:
        _, slope = self.action.data_term(self.u, self.vectors)
        curvature = self.action.data_curvature(self.u, self.vectors, self.along)
        return MatrixMinimum(self.u, self.eigenvalues, self.widths, slope, curvature)

    def log_evidence(self) -> Tensor:
        return self.minimum.log_evidence(self.best.value, self.action.num_observed)


def _attach_gradients(
    solution: MatrixSolution,
    found: _Found,
    kernel_matrix: Tensor,
    targets: Tensor,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
    output_noise: Tensor | None,
) -> MatrixSolution:
    """Give E and Q their implicit gradients and S the envelope's, one problem after the other."""
    action, size, shape = found.action, found.action.num_outputs, solution.action.shape
    device, number = found.u.device, len(found.u)
    widths = torch.as_tensor(width, dtype=torch.float64, device=device)
    widths = widths.expand(*shape, found.widths.shape[-1]).reshape(number, -1)
    temperature = torch.as_tensor(temperature, dtype=torch.float64, device=device).expand(shape).reshape(-1)
    unit = torch.eye(size, dtype=torch.float64, device=device)
    output_noise = unit if output_noise is None else output_noise.to(device, torch.float64)
    kernel_matrix, targets = kernel_matrix.double(), targets.double()
    values, covariances, layers = [], [], []
    for index in range(number):
        noise, u, vectors = temperature[index] * output_noise, found.u[index], found.vectors[index]
        if isinstance(action, ObservedOutputAction):
            data = action.data_of(kernel_matrix, targets, noise)
            value, gradient = linear_terms(data, found.covariance()[index])
        else:
            value, gradient = output_terms(kernel_matrix, targets, noise, u, vectors)
        chain = ScalarChain(found.widths[[index]])
        values.append(value + layers_part(found.eigenvalues[index], widths[index]))
        covariance, order_parameter = moved_minimum(
            found.minimum.of(index), chain, widths[index], u, vectors, found.along[index], gradient
        )
        covariances.append(covariance)
        layers.append(order_parameter)
    last = widths[:, -1]
    action_value = torch.stack(values) / torch.where(torch.isfinite(last), last, 1.0)
    return dataclasses.replace(
        solution,
        order_parameter=first_derivatives_only(
            torch.stack(layers).reshape_as(solution.order_parameter), "order_parameter"
        ),
        output_covariance=first_derivatives_only(
            torch.stack(covariances).reshape_as(solution.output_covariance), "output_covariance"
        ),
        action=first_derivatives_only(action_value.reshape(shape), "action"),
    )


def _problem(
    kernel_matrix: Tensor | Spectrum, targets: Tensor | None
) -> tuple[Callable[[Tensor, Tensor, Tensor | None], OutputAction], int, torch.device]:
    """Return what makes the action from widths, temperatures and noise, D, and the device."""
    if isinstance(kernel_matrix, Spectrum):
        if targets is not None:
            raise TypeError("targets: expected None beside a Spectrum, which holds them already")
        spectrum = kernel_matrix
    else:
        if not isinstance(targets, Tensor) or targets.dim() != 2:
            got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(f"targets: expected shape (P, D), got {got}")
        if targets.shape[-1] == 0:
            raise ValueError(f"targets: expected at least one output, got shape {tuple(targets.shape)}")
        missing = targets.isnan()
        if bool(missing.any()):
            check_kernel_and_targets(kernel_matrix, torch.where(missing, 0.0, targets).mT)
            pose = partial(ObservedOutputAction, kernel_matrix.detach().double(), targets.detach().double())
            return pose, targets.shape[-1], targets.device
        spectrum = Spectrum.from_kernel(kernel_matrix.detach(), targets.detach(), num_outputs=targets.shape[-1])
    if spectrum.batch_shape:
        raise ValueError(f"kernel matrix: expected no batch dimensions, got {tuple(spectrum.batch_shape)}")
    return partial(OutputAction, spectrum), spectrum.num_outputs, spectrum.eigenvalues.device


def _result(best: LocalMinimum, free: Tensor, size: int) -> SolveResult:
    if not bool(best.converged.all()):
        return SolveResult.not_converged
    if not bool(free.any()):
        return SolveResult.infinite_width
    return SolveResult.global_minimum if size == 1 else SolveResult.local_minimum
