"""The saddle point of several outputs: a matrix order parameter in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._validation import as_temperature, as_width
from ..numerics.symmetric import from_coordinates, to_coordinates
from ..spectra.spectrum import Spectrum
from .local_minimum import LocalMinimum, lowest_minimum, minimize
from .output_action import OutputAction
from .solution import Solution, SolveResult
from .stationary_points import find_stationary_points, global_minimum


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

    A layer of fewer than D units has no density of its own, but this action stays defined (it is that of the invariant
    measure): it is minimized, and ``stats["narrow"]`` is True.

    Shapes: K ``P x P``, Y ``P x D``, width and temperature as in :func:`solve_order_parameters`, ``*p`` problems.
    Cost: one ``eigh``; then D (D + 1) / 2 gradients of P D^2 operations for a Newton step, some ten of them.

    Args:
        kernel_matrix: K (1/lambda_L included), or a :class:`Spectrum` with D outputs.
        targets: Y with the mean subtracted; None with a spectrum.
        width: N_l, ``math.inf`` allowed.
        temperature: T > 0.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, dtypes, NaN, non-positive width or temperature, a batch of kernel matrices.
        NotPositiveDefiniteError: K is indefinite.
        ConvergenceError: Not converged, with ``throw=True``.

    Reference: Pacelli, Giambagli, Baglioni (2024), arXiv:2412.15911; Bassetti et al. (2024), arXiv:2406.03260;
    THEORY.md, section 11, eqs. (20) and (21).

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
    spectrum = _spectrum(kernel_matrix, targets)
    widths = as_width(width, torch.float64).to(spectrum.eigenvalues.device)
    temperature = as_temperature(temperature, torch.float64, widths.device)
    if not bool((temperature > 0).all()):
        raise ValueError(f"temperature: expected > 0 for several outputs, got {temperature.tolist()}")
    shape = torch.broadcast_shapes(widths.shape[:-1], temperature.shape)
    layers = widths.shape[-1]
    widths = widths.expand(*shape, layers).reshape(-1, layers)
    action = OutputAction(spectrum, widths, temperature.expand(shape).reshape(-1))
    size, number = spectrum.num_outputs, len(widths)
    free = torch.isfinite(widths).any(-1, keepdim=True)
    runs = [minimize(action, start, free.expand_as(start), action.scale()) for start in _starts(action, number)]
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
            "iterations": sum(run.iterations for run in runs),
            "residual": (best.gradient.abs().amax(-1) / action.scale()).reshape(shape),
            "num_minima": num_minima.reshape(shape),
            "alpha": (spectrum.num_data / widths).reshape(*shape, layers),
            "starts": len(runs),
            "agreeing_starts": agreeing.reshape(shape),
            "narrow": bool((widths < size).any()),
        },
        output_covariance=covariance.reshape(*shape, size, size),
    )
    if throw:
        solution.raise_if_failed()
    return solution


def _spectrum(kernel_matrix: Tensor | Spectrum, targets: Tensor | None) -> Spectrum:
    if isinstance(kernel_matrix, Spectrum):
        if targets is not None:
            raise TypeError("targets: expected None beside a Spectrum, which holds them already")
        spectrum = kernel_matrix
    else:
        if not isinstance(targets, Tensor) or targets.dim() != 2:
            got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(f"targets: expected shape (P, D), got {got}")
        spectrum = Spectrum.from_kernel(kernel_matrix, targets, num_outputs=targets.shape[-1])
    if spectrum.batch_shape:
        raise ValueError(f"kernel matrix: expected no batch dimensions, got {tuple(spectrum.batch_shape)}")
    return spectrum


def _starts(action: OutputAction, number: int) -> list[Tensor]:
    """Return first points, ``n x D (D + 1) / 2`` each."""
    unit = torch.eye(action.num_outputs, dtype=torch.float64, device=action.eigenvalues.device)
    unit = unit.expand(number, *unit.shape)
    labels = action.projections.mT @ action.projections
    starts = []
    rotations = [
        torch.linalg.eigh(action.label_matrix(action.temperature)).eigenvectors,
        torch.linalg.eigh(labels).eigenvectors.expand_as(unit),
        unit,
    ]
    for vectors in rotations if action.num_outputs > 1 else rotations[-1:]:
        u = global_minimum(find_stationary_points(action.rotated(vectors)))[0].reshape(number, -1)
        starts.append(to_coordinates((vectors * torch.nan_to_num(u).unsqueeze(-2)) @ vectors.mT))
    return [*starts, torch.zeros_like(starts[0])]


def _result(best: LocalMinimum, free: Tensor, size: int) -> SolveResult:
    if not bool(best.converged.all()):
        return SolveResult.not_converged
    if not bool(free.any()):
        return SolveResult.infinite_width
    return SolveResult.global_minimum if size == 1 else SolveResult.local_minimum
