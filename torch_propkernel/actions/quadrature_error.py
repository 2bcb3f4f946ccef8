"""How far the saddle point of a Lanczos reduction may be off: the scatter of its probes, and the rules it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..spectra import LanczosReduction
from .outer_action import OuterAction
from .solution import Solution
from .solve_order_parameters import solve_order_parameters


class QuadratureError(NamedTuple):
    """Errors of order parameters ``*p x L`` and of the action S ``*p`` that come from the reduction.

    Attributes:
        order_parameter: Standard error of q from the scatter of the probes.
        order_parameter_truncation: Difference of q between the Gauss and the Gauss-Radau rules.
        action: Standard error of S.
        action_truncation: Difference of S between both rules; the exact quadrature is between them.
    """

    order_parameter: Tensor
    order_parameter_truncation: Tensor
    action: Tensor
    action_truncation: Tensor


@torch.no_grad()
def quadrature_error(
    reduction: LanczosReduction,
    solution: Solution,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
) -> QuadratureError:
    r"""Return the errors of a solution that was found on the reduction's spectrum.

    With F = N_L dS/du and u = log r, an error of the trace :math:`h_1 = \sum_i n_i x_i/(1 + x_i)` moves the root by
    :math:`\delta u = \delta h_1 / F'(u)` and each layer by :math:`\delta \log q_l = \delta u\, (N_l q_l)^{-1} / \sum_k
    (N_k q_k)^{-1}`: to first order, at the minimum that was found. Where another minimum is as deep
    (``stats["gap"]``), which one is found is not covered.

    Args:
        reduction: The Lanczos reduction.
        solution: Of :func:`solve_order_parameters` on ``reduction.spectrum()`` with the same width and temperature.
        width: N_1, ..., N_L, ``*p x L``.
        temperature: T, ``*p``.

    Reference: THEORY.md, section 1.

    Example:
        >>> k = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
        >>> reduction = LanczosReduction.start(torch.ones(3, dtype=torch.float64), num_probes=2)
        >>> reduction.run.extend(torch.diag(k).matmul, 3)
        >>> solution = solve_order_parameters(reduction.spectrum(), width=5, temperature=0.1)
        >>> error = quadrature_error(reduction, solution, 5, 0.1)   # K is diagonal: no scatter, and all steps are done
        >>> bool((error.order_parameter < 1e-12).all() and (error.order_parameter_truncation < 1e-12).all())
        True
    """
    spectrum = reduction.spectrum()
    action, shape = OuterAction.of(spectrum, width, temperature)
    radau = solve_order_parameters(reduction.spectrum(radau=True), width=width, temperature=temperature, throw=False)
    q = solution.order_parameter.reshape(action.num_problems, -1)
    u = q.log().sum(-1)
    r, noise = (v[:, None, None] for v in (u.exp(), action.temperature))
    traces = reduction.probe_sums(lambda k: r * k / (noise + r * k))  # n x probes
    logs = reduction.probe_sums(lambda k: (noise + r * k).log())
    shift = _standard_error(traces) / action.slope(u)[1].abs()
    moved = action.chain.moved(u, shift, action.width)[1] - action.chain.at_log_scale(u).order_parameter
    last = action.width[:, -1]
    spread = _standard_error(logs) / torch.where(torch.isfinite(last), last, 1.0)
    return QuadratureError(
        moved.reshape(solution.order_parameter.shape),
        (solution.order_parameter - radau.order_parameter).abs(),
        spread.reshape(shape),
        (solution.action - radau.action).abs(),
    )


@torch.no_grad()
def scale_error(reduction: LanczosReduction, scale: float, temperature: float) -> float:
    r"""Return the standard error of a scale r that maximizes the evidence of T + r K, from the scatter of the probes.

    As in :func:`quadrature_error`, with the slope of the data's part alone. Infinite where r is at an edge.

    Args:
        reduction: The Lanczos reduction.
        scale: r.
        temperature: T.

    Example:
        >>> reduction = LanczosReduction.start(torch.tensor([3.0, 1.0], dtype=torch.float64), num_probes=2)
        >>> reduction.run.extend(torch.eye(2, dtype=torch.float64).matmul, 2)   # K = 1 is diagonal: no scatter
        >>> scale_error(reduction, 4.0, 1.0)   # T + r = |y|^2 / P
        0.0
    """
    action, _ = OuterAction.of(reduction.spectrum(), math.inf, temperature)
    traces = reduction.probe_sums(lambda k: scale * k / (temperature + scale * k))
    slope = action.data_terms(torch.tensor([math.log(scale)], dtype=torch.float64, device=traces.device))[1]
    return float(scale * _standard_error(traces) / slope.clamp_min(0.0))


def _standard_error(samples: Tensor) -> Tensor:
    return samples.std(-1) / samples.shape[-1] ** 0.5
