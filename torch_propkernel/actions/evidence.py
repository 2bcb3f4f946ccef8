"""The effective action of given order parameters, and the evidence around its minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._validation import as_temperature, as_width
from ..order_parameters import ScalarChain
from ..spectra.spectrum import Spectrum
from .outer_action import OuterAction
from .stationary_points import find_stationary_points, global_minimum


def effective_action(
    spectrum: Spectrum,
    order_parameter: Tensor,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
) -> Tensor:
    r"""Return S(q_1, ..., q_L) of the outer composition, ``*p``, differentiable in q.

    .. math:: S(q) = \sum_l \frac{N_l}{N_L}(q_l - \log q_l)
              + \frac{1}{N_L}\big[\log\det A + y^T A^{-1} y\big], \qquad A = T B + \Big(\prod_l q_l\Big) K

    Shapes: width ``*p x L`` and temperature ``*p`` broadcast with the spectrum's ``*b``. Cost: O(P) for each problem.

    Args:
        spectrum: Spectrum of K and y (and B).
        order_parameter: q, ``*p x L``.
        width: N_l > 0, finite here (S is divided by N_L).
        temperature: T > 0, or 0 for a non-singular K.

    Reference: THEORY.md, eqs. (2) and (7).

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> S = effective_action(Spectrum.from_eigenvalues(3 * one, 2 * one), one, width=4, temperature=1.0)
        >>> abs(S.item() - (1 + (math.log(4) + 4 / 4) / 4)) < 1e-12
        True
    """
    k = spectrum.eigenvalues
    width = as_width(width, torch.float64).to(k.device)
    order_parameter = torch.as_tensor(order_parameter, dtype=torch.float64, device=k.device)
    temperature = as_temperature(temperature, torch.float64, k.device)
    layers = (width * (order_parameter - order_parameter.log())).sum(-1)
    spread = temperature.unsqueeze(-1) + ScalarChain.scale(order_parameter).unsqueeze(-1) * k
    counts = spectrum.multiplicities
    logs = spread.log() if counts is None else counts * spread.log()
    data = (logs + spectrum.squares / spread).sum(-1) + spectrum.num_outputs * spectrum.log_det_base
    return (layers + data) / width[..., -1]


def laplace_evidence(
    spectrum: Spectrum,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor,
    readout_precision: float = 1.0,
) -> Tensor:
    r"""Return log p(y) by Laplace's method in log q around the global minimum, ``*p``, comparable across widths.

    .. math:: \log p(y) \approx -\tfrac12 \Big[\sum_l N_l (q_l - \log q_l - 1) + \log\det A + y^T A^{-1} y + P \log
              2\pi + \sum_l \log q_l + \log\Big(1 + \tfrac{dg}{du} \sum_l \tfrac{1}{N_l q_l}\Big)\Big]

    Relative error of order 1/N. Use it at fixed prior variances only: with a free readout variance the infinite width
    always has the higher evidence.

    Args:
        spectrum: Spectrum of K and y (and B).
        width: N_l, ``*p x L``; ``math.inf`` allowed.
        temperature: T, ``*p``.
        readout_precision: lambda_L relative to the one inside K.

    Reference: THEORY.md, section 1 ("Evidence").

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> value = laplace_evidence(Spectrum.from_eigenvalues(one, one), math.inf, 1.0)
        >>> abs(value.item() + 0.5 * (math.log(2) + 0.5 + math.log(2 * math.pi))) < 1e-12   # log N(1; 0, T + k)
        True
    """
    action, shape = OuterAction.of(spectrum, width, temperature, readout_precision)
    u, _ = global_minimum(find_stationary_points(action))
    logs = action.chain.at_log_scale(u).log_order_parameter
    stiffness = action.data_terms(u)[1] * (torch.exp(-logs) / action.width).sum(-1)
    finite_logs = torch.where(action.chain.finite, logs, 0.0).sum(-1)
    twice = action.layer_action(u) + action.data_action(u) + finite_logs + torch.log1p(stiffness)
    constant = spectrum.log_det_base + spectrum.num_data * math.log(2.0 * math.pi)
    return -0.5 * (twice.reshape(shape) + spectrum.num_outputs * constant)
