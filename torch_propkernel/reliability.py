"""When the prediction can be trusted: a crude note from the regimes that were measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .functions.activations import Activation
from .functions.recursion import gram

_FEW_DIRECTIONS = 25.0
_MANY_DATA, _COLD = 3.0, 0.1


def participation_ratio(x: Tensor) -> Tensor:
    r"""Effective number of directions of the inputs, tr(G)^2 / tr(G^2) with G = X X^T, not centered.

    Between 1 (all rows on one line) and min(P, N_0). Shapes: ``... x P x d`` gives ``...``. Cost: one GEMM of the
    smaller side. Zero rows only give NaN-free 0.

    Args:
        x: Inputs, ``... x P x d``.

    Reference: THEORY.md, section 7.

    Example:
        >>> import torch
        >>> round(participation_ratio(torch.eye(4)).item(), 6)
        4.0
    """
    products = gram(x if x.shape[-2] < x.shape[-1] else x.transpose(-1, -2))
    trace, square = x.square().sum((-2, -1)), products.square().sum((-2, -1))
    return torch.where(square > 0, trace.square() / torch.where(square > 0, square, 1.0), 0.0)


@dataclass(frozen=True)
class Reliability:
    """Whether the inputs, widths and temperature lie where the prediction was found to hold.

    Attributes:
        reliable: False in the regimes where errors of 12 to 115 % were measured.
        note: One sentence that says why.
        participation_ratio: Smallest over the batch.
        alpha: Largest P / N_l.
        largest_correction: Largest |log q_l|.

    Example:
        >>> str(Reliability(True, "no known failure regime", 40.0, 0.5, 0.1))
        'no known failure regime'
    """

    reliable: bool
    note: str
    participation_ratio: float
    alpha: float
    largest_correction: float

    def __str__(self) -> str:
        """Return the note."""
        return self.note


def assess_reliability(
    activation: Activation, inputs: Tensor, width: Tensor, temperature: Tensor, order_parameter: Tensor
) -> Reliability:
    """Compare a problem with the regimes of THEORY.md, section 7.

    The note is crude: it knows the activation (saturating odd ones learn features that a rescaled kernel cannot
    express), the participation ratio of the inputs, alpha = P / N, the temperature and the size of the correction.

    Args:
        activation: The network's activation.
        inputs: Training inputs as the kernel scales them, ``... x P x d``.
        width: N_l.
        temperature: T.
        order_parameter: q_l.

    Reference: THEORY.md, section 7.

    Example:
        >>> from torch_propkernel import Erf, ReLU
        >>> x, one = torch.ones(30, 5), torch.ones(1)   # one direction only
        >>> [assess_reliability(a, x, 10 * one, 0.1 * one, 2 * one).reliable for a in (Erf(), ReLU())]
        [False, True]
    """
    directions = float(participation_ratio(inputs).min())
    alpha = float((inputs.shape[-2] / width).max())
    correction = float(order_parameter.log().abs().max())
    saturating = activation.is_odd and activation.homogeneous_degree is None
    cold = float(temperature.min()) <= _COLD * (1 + 1e-6)  # a constrained parameter set to 0.1 reads back with rounding
    facts = (
        f"participation ratio of the inputs {directions:.1f}, alpha = P/N {alpha:.3g}, largest |log q| {correction:.3g}"
    )
    if alpha == 0.0:
        return Reliability(True, f"infinite width, nothing to correct ({facts})", directions, alpha, correction)
    reasons = []
    if saturating and directions < _FEW_DIRECTIONS:
        reasons.append(f"{activation!r} with few dominant input directions (below {_FEW_DIRECTIONS:.0f})")
    if saturating and alpha >= _MANY_DATA and cold:
        reasons.append(f"{activation!r} with alpha >= {_MANY_DATA:.0f} at T <= {_COLD}")
    if reasons:
        note = "unreliable: " + " and ".join(reasons) + f"; errors of 6 to 115 % were measured there ({facts})"
    elif directions < _FEW_DIRECTIONS:
        note = f"few dominant input directions: errors of 5 % (median) to 11 % were measured for relu there ({facts})"
    else:
        note = f"no known failure regime ({facts})"
    return Reliability(not reasons, note, directions, alpha, correction)
