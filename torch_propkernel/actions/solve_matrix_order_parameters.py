"""The saddle point of several outputs: a matrix order parameter in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .._validation import as_temperature, as_width, check_kernel_and_targets
from ..numerics.symmetric import from_coordinates
from ..spectra.spectrum import Spectrum
from .local_minimum import LocalMinimum, lowest_minimum, minimize
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


@torch.no_grad()
def solve_matrix_order_parameters(
    kernel_matrix: Tensor | Spectrum,
    targets: Tensor | None = None,
    *,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
    output_noise: Tensor | None = None,
    throw: bool = True,
) -> MatrixSolution:
    r"""Minimize the effective action of D outputs, whose layers each have a D x D matrix as order parameter.

    .. math:: S(E) = \sum_l \frac{N_l}{N_L} [\mathrm{tr}\, E_l - \log\det E_l]
              + \frac{1}{N_L} \big[\log\det A + \mathrm{vec}(Y)^T A^{-1} \mathrm{vec}(Y)\big], \qquad
              A = T 1 + Q \otimes K, \quad Q = \prod_l E_l

    At the minimum the E_l commute, so that layers are eliminated for each eigenvalue of Q and only Q is searched, in
    log Q (:class:`OutputAction`). Newton's method starts where the outputs, rotated to the eigenvectors of the label
    matrix (that of T + K, that of Y^T Y, and unrotated), are D one-dimensional problems, each solved globally; and at
    the identity. For one output this is :func:`solve_order_parameters`. The lowest minimum is returned, and
    ``stats["agreeing_starts"]`` says how many starts ended there: the result is "local minimum", since for several
    outputs nothing excludes a lower one.

    Noise that differs or is correlated between outputs, T R in place of T, costs nothing more. Where targets are
    missing (NaN), A is that of the M observed ones (:class:`ObservedOutputAction`): M^3 operations for each gradient
    and 6 M^2 numbers of memory, and the starts are the outputs by themselves, unrotated, and the identity. With M =
    1,000 that was 4 s for three outputs and 13 s for six on one core.

    A layer of fewer than D units has no density of its own, but this action stays defined (it is that of the invariant
    measure): it is minimized, and ``stats["narrow"]`` is True.

    Shapes: K ``P x P``, Y ``P x D``, width and temperature as in :func:`solve_order_parameters`, ``*p`` problems.
    Cost: one reduction with projections (:class:`Spectrum`); then about five Newton steps of all starts at once with
    exact second derivatives, P D^3 + D^6 operations each: with P = 400 on one core 0.05 s for ten outputs, 1.2 s for
    thirty, about 30 s for fifty.

    Args:
        kernel_matrix: K (1/lambda_L included), or a :class:`Spectrum` with D outputs.
        targets: Y with the mean subtracted, NaN where a target is missing; None with a spectrum.
        width: N_l, ``math.inf`` allowed.
        temperature: T > 0.
        output_noise: R, the noise covariance of the outputs at a point in units of T, ``D x D``; the identity if None.
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
    pose, size, device = _problem(kernel_matrix, targets)
    widths = as_width(width, torch.float64).to(device)
    temperature = as_temperature(temperature, torch.float64, widths.device)
    if not bool((temperature > 0).all()):
        raise ValueError(f"temperature: expected > 0 for several outputs, got {temperature.tolist()}")
    shape = torch.broadcast_shapes(widths.shape[:-1], temperature.shape)
    layers = widths.shape[-1]
    widths = widths.expand(*shape, layers).reshape(-1, layers)
    noise = None if output_noise is None else _checked_noise(output_noise, size).to(device)
    action = pose(widths, temperature.expand(shape).reshape(-1), noise)
    free = torch.isfinite(widths).any(-1, keepdim=True)
    runs = _descents(action, free)
    best, agreeing, num_minima = lowest_minimum(runs)
    u, vectors = torch.linalg.eigh(from_coordinates(best.logs, size))
    order_parameter = action.chain.at_log_scale(u).order_parameter.mT  # n x L x D
    matrices = (vectors.unsqueeze(-3) * order_parameter.unsqueeze(-2)) @ vectors.unsqueeze(-3).mT
    covariance = (vectors * u.exp().unsqueeze(-2)) @ vectors.mT
    last = widths[:, -1]
    constant = torch.where(torch.isfinite(widths), widths, 0.0).sum(-1) * size
    value = (best.value + constant) / torch.where(torch.isfinite(last), last, 1.0)
    solution = MatrixSolution(
        matrices.reshape(*shape, layers, size, size),
        value.reshape(shape),
        _result(best, free, size),
        stats={
            "iterations": max(run.iterations for run in runs),
            "residual": (best.gradient.abs().amax(-1) / action.scale()).reshape(shape),
            "num_minima": num_minima.reshape(shape),
            "alpha": (action.num_data / widths).reshape(*shape, layers),
            "starts": len(runs),
            "agreeing_starts": agreeing.reshape(shape),
            "narrow": bool((widths < size).any()),
            "num_missing": action.num_missing,
        },
        output_covariance=covariance.reshape(*shape, size, size),
    )
    if throw:
        solution.raise_if_failed()
    return solution


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
        missing = targets.isnan()
        if bool(missing.any()):
            check_kernel_and_targets(kernel_matrix, torch.where(missing, 0.0, targets).mT)
            pose = partial(ObservedOutputAction, kernel_matrix.double(), targets.double())
            return pose, targets.shape[-1], targets.device
        spectrum = Spectrum.from_kernel(kernel_matrix, targets, num_outputs=targets.shape[-1])
    if spectrum.batch_shape:
        raise ValueError(f"kernel matrix: expected no batch dimensions, got {tuple(spectrum.batch_shape)}")
    return partial(OutputAction, spectrum), spectrum.num_outputs, spectrum.eigenvalues.device


def _descents(action: OutputAction, free: Tensor) -> list[LocalMinimum]:
    """Descend from every start: all at once, with exact second derivatives, where no target is missing."""
    starts = action.starts()
    if action.num_missing:
        return [minimize(action, start, free.expand_as(start), action.scale()) for start in starts]
    together, first = action.repeated(len(starts)), torch.cat(starts)
    free = free.repeat(len(starts), 1).expand_as(first)
    run = minimize(together, first, free, together.scale(), hessian_of=together.hessian)
    parts = (run.logs, run.value, run.gradient, run.hessian, run.converged)
    logs, value, gradient, hessian, converged = (v.chunk(len(starts)) for v in parts)
    return [
        LocalMinimum(logs[i], value[i], gradient[i], hessian[i], converged[i], run.iterations)
        for i in range(len(starts))
    ]


def _checked_noise(covariance: Tensor, size: int) -> Tensor:
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    if covariance.shape != (size, size):
        raise ValueError(f"output_noise: expected shape ({size}, {size}), got {tuple(covariance.shape)}")
    symmetric = torch.allclose(covariance, covariance.mT)
    if not symmetric or not bool((torch.linalg.eigvalsh(covariance) > 0).all()):
        raise ValueError(f"output_noise: expected a symmetric positive definite matrix, got {covariance.tolist()}")
    return covariance


def _result(best: LocalMinimum, free: Tensor, size: int) -> SolveResult:
    if not bool(best.converged.all()):
        return SolveResult.not_converged
    if not bool(free.any()):
        return SolveResult.infinite_width
    return SolveResult.global_minimum if size == 1 else SolveResult.local_minimum
