"""The saddle point of a plain kernel matrix or spectrum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._validation import as_temperature, as_width
from ..numerics.first_derivatives import first_derivatives_only
from ..order_parameters import ScalarChain
from ..spectra.spectrum import Spectrum
from .outer_action import OuterAction
from .solution import Solution, SolveResult
from .stationary_points import StationaryPoints, find_stationary_points, global_minimum

_FLAT = 1e-7
_TIE = 1e-12


def solve_order_parameters(
    kernel_matrix: Tensor | Spectrum,
    targets: Tensor | None = None,
    *,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
    base: Tensor | None = None,
    readout_precision: float = 1.0,
    throw: bool = True,
) -> Solution:
    r"""Find the global minimum of the effective action for given kernel, targets, widths and temperatures.

    .. math:: S(q) = \sum_l \frac{N_l}{N_L}(q_l - \log q_l) + \frac{1}{N_L}\big[\log\det A + y^T A^{-1} y\big], \qquad
              A = T B + \Big(\prod_l q_l\Big) K

    One hidden layer, or several with the outer composition. All stationary points are found by a scan in log r,
    r = prod_l q_l, over a bracket that provably holds them, and polished to rounding (see
    :func:`torch_propkernel.actions.find_stationary_points`).

    Differentiable: where the kernel matrix, the targets, the temperature, the base or the width requires a gradient,
    ``order_parameter`` carries the implicit one, -S_{q theta} / S_{qq}, and ``action`` the envelope's; neither passes
    through an eigendecomposition, so duplicate rows and a rank-deficient K give finite, right gradients. First
    derivatives only: a backward pass with ``create_graph=True`` raises ``RuntimeError``.

    Shapes: K ``*b x P x P``, y ``*b x P``, width a number, L numbers or ``*p x L``, temperature a number or ``*p``.
    Accuracy: 1e-10 relative in q for the given spectrum away from double roots. Cost: see :class:`Spectrum`, then O(P)
    for each problem.

    Args:
        kernel_matrix: K (1/lambda_L included), or a :class:`Spectrum`, which answers many calls with one reduction.
        targets: y with the mean subtracted; None with a spectrum.
        width: N_l, ``math.inf`` allowed.
        temperature: T > 0, or T = 0 with a non-singular K (closed form for one layer, THEORY.md, eq. (3)).
        base: B, a matrix or a diagonal; the identity if None.
        readout_precision: lambda_L relative to the one inside K.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, dtypes, NaN, non-positive width, negative temperature.
        NotPositiveDefiniteError: K is indefinite, or singular at T = 0.
        ConvergenceError: Not converged, with ``throw=True``.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, results (i) and (ii); THEORY.md, eqs. (2), (3), (7).

    Example:
        >>> import torch
        >>> K, y = torch.eye(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
        >>> q = solve_order_parameters(K, y, width=3, temperature=0.0).order_parameter
        >>> abs(q.item() - 2.0) < 1e-12   # alpha = 1: q^2 = y^T K^{-1} y / P = 4
        True
    """
    if isinstance(kernel_matrix, Spectrum):
        if targets is not None or base is not None:
            raise TypeError("targets, base: expected None beside a Spectrum, which holds them already")
        return _solve_spectrum(kernel_matrix, width, temperature, readout_precision, throw)
    if targets is None:
        raise TypeError("targets: expected a tensor beside a kernel matrix, got None")
    widths = as_width(width, torch.float64)
    as_temperature(temperature, torch.float64, widths.device)
    spectrum = Spectrum.from_kernel(kernel_matrix, targets, base=base)
    solution = _solve_spectrum(spectrum, width, temperature, readout_precision, throw)
    return _attach_gradients(
        solution,
        kernel_matrix=kernel_matrix.to(torch.float64) / readout_precision,
        targets=targets,
        width=width.to(torch.float64) if isinstance(width, Tensor) else widths,
        temperature=temperature,
        base=base,
    )


@torch.no_grad()
def _solve_spectrum(
    spectrum: Spectrum,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
    readout_precision: float,
    throw: bool,
) -> Solution:
    action, shape = OuterAction.of(spectrum, width, temperature, readout_precision)
    last = action.width[:, -1]
    per_layer = torch.where(torch.isfinite(last), last, 1.0)
    prior = torch.where(action.chain.finite, action.width, 0.0).sum(-1)
    offset = prior + spectrum.num_outputs * spectrum.log_det_base.expand(shape).reshape(-1)
    stats: dict[str, Any] = {
        "alpha": (spectrum.num_data / action.width).reshape(*shape, -1),
        "condition": spectrum.condition,
    }
    points = find_stationary_points(action)
    u, column = global_minimum(points)
    result, details = _judge(points, u, column, action.slope_scale(torch.nan_to_num(u)))
    stats |= {"iterations": points.iterations, **{k: v.reshape(shape) for k, v in details.items()}}
    if result.successful and bool(torch.isinf(action.width).all()):
        result = SolveResult.infinite_width
    order_parameter = action.chain.at_log_scale(u).order_parameter
    actions = (points.action + offset.unsqueeze(-1)) / per_layer.unsqueeze(-1)
    stats["gap"] = stats["gap"] / per_layer.reshape(shape)
    solution = Solution(
        order_parameter.reshape(*shape, -1),
        actions.gather(-1, column.unsqueeze(-1)).reshape(shape),
        result,
        torch.exp(points.u).reshape(*shape, -1),
        actions.reshape(*shape, -1),
        stats,
    )
    return solution.raise_if_failed() if throw else solution


def _judge(points: StationaryPoints, u: Tensor, column: Tensor, scale: Tensor) -> tuple[SolveResult, dict[str, Tensor]]:
    """Decide on one result code for all problems, the worst."""
    minima = points.curvature >= 0
    found = ~torch.isnan(u)
    at = column.unsqueeze(-1)
    residual = points.residual.gather(-1, at).squeeze(-1)
    curvature = points.curvature.gather(-1, at).squeeze(-1)
    others = torch.where(minima, points.action, torch.inf).scatter(-1, at, torch.inf).amin(-1)
    gap = others - points.action.gather(-1, at).squeeze(-1)
    # Newton cannot place a root better than the slope's rounding over the curvature.
    converged = found & ((residual <= 1e-12) | (residual * scale <= 1e-11 * curvature))
    degenerate = points.touching | (curvature < _FLAT * scale) | (gap <= _TIE * scale)
    if not bool(converged.all()):
        result = SolveResult.not_converged
    else:
        result = SolveResult.near_degenerate if bool(degenerate.any()) else SolveResult.global_minimum
    return result, {"residual": residual, "num_minima": minima.sum(-1), "gap": gap}


def _attach_gradients(
    solution: Solution,
    *,
    kernel_matrix: Tensor,
    targets: Tensor,
    width: Tensor,
    temperature: float | Tensor,
    base: Tensor | None,
) -> Solution:
    """Give q its implicit gradient and S the envelope's, through a Cholesky factorization of A at the solution."""
    inputs = [v for v in (kernel_matrix, targets, temperature, base, width) if isinstance(v, Tensor)]
    if not torch.is_grad_enabled() or not any(v.requires_grad for v in inputs):
        return solution
    q = solution.order_parameter
    width = width.to(q.device).expand_as(q)
    chain = ScalarChain(width.detach())
    temperature = torch.as_tensor(temperature, dtype=torch.float64, device=q.device)[..., None, None]
    if base is None:
        base = torch.ones_like(kernel_matrix[..., 0])
    base = base.to(torch.float64)
    base = base if base.shape[-2:] == kernel_matrix.shape[-2:] else torch.diag_embed(base)
    r = chain.scale(q)[..., None, None]
    factor = torch.linalg.cholesky(temperature * base + r * kernel_matrix)
    y = targets.to(torch.float64).unsqueeze(-1)
    weights = torch.cholesky_solve(y, factor)
    data = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (y * weights).sum((-2, -1))
    finite = chain.finite
    layers = torch.where(finite, torch.where(finite, width, 0.0) * (q - q.log()), 0.0).sum(-1)
    divisor = torch.where(finite[..., -1], width[..., -1], 1.0)
    action = (layers + data) / divisor
    # g = r d/dr of the data's part, as a function of K, y, T, B at fixed r, and mu, the layers' pull, of the widths:
    # du = -d(g + mu) / (g' + mu') keeps g + mu = 0.
    ratio = torch.cholesky_solve(r * kernel_matrix, factor)
    bent = r * kernel_matrix @ weights
    g = ratio.diagonal(dim1=-2, dim2=-1).sum(-1) - (weights * bent).sum((-2, -1))
    with torch.no_grad():
        trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1) - (ratio * ratio.transpose(-1, -2)).sum((-2, -1))
        twisted = torch.cholesky_solve(bent, factor)
        curvature = trace - (weights * bent).sum((-2, -1)) + 2.0 * (bent * twisted).sum((-2, -1))
        u = q.log().sum(-1)
        stiffness = chain.at_log_scale(u).stiffness
    pull, _ = chain.moved(u, torch.zeros_like(u), width)
    changed = g + pull
    shift = -(changed - changed.detach()) / (stiffness + curvature)
    return dataclasses.replace(
        solution,
        order_parameter=first_derivatives_only(chain.moved(u, shift, width)[1], "order_parameter"),
        action=first_derivatives_only(action, "action"),
    )
