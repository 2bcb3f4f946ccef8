"""When the prediction can be trusted: how far a real hidden unit is from the Gaussian one that the theory assumes."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..kernels.recursion import gram

THRESHOLD = 0.2
# Ends of the scores' ranges; for each: number of cases, median, 90th percentile and largest |predicted / measured - 1|
# of the test error (examples/benchmarks/results/reliability.md).
_ENDS = (THRESHOLD, 0.5)
_MEASURED = ((25, 0.006, 0.056, 0.186), (8, 0.058, 0.33, 0.818), (5, 0.16, 0.97, 1.148))


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
    """How far the prediction may be off, from the training data alone.

    The score is the change of the fit if hidden units are real ones instead of Gaussian ones, in units of the
    leave-one-out error (:func:`unit_response`). On sampled networks it ordered cases by the error of the predicted test
    error; the ranges below are what was measured there, no bounds.

    Attributes:
        reliable: False where the score is 0.2 or more: 11 of 13 sampled networks there were off by more than 5 %. None
            without a score.
        alpha: Largest P / N_l.
        largest_correction: Largest ``|log q_l|``.
        score: Largest over the batch; None where it is not available, zero at infinite width.
        typical_error: Median relative error of the test error of sampled cases with scores in this range, or None.
        large_error: 90th percentile of the same.
    """

    reliable: bool | None
    alpha: float
    largest_correction: float
    score: float | None = None
    typical_error: float | None = None
    large_error: float | None = None
    _inputs: Tensor = field(default_factory=lambda: torch.zeros(1, 1), repr=False, compare=False)
    _reason: str = field(default="", repr=False)

    @cached_property
    def participation_ratio(self) -> float:
        """Effective number of directions of the inputs, the smallest over the batch; computed when it is read."""
        x = self._inputs
        # A ratio to a few digits, at half the cost.
        return float(participation_ratio((x / x.abs().amax().clamp_min(1e-30)).float()).min())

    @cached_property
    def note(self) -> str:
        """One sentence that says why."""
        note = (
            f"{self._reason} (participation ratio of the inputs {self.participation_ratio:.1f}, alpha = P/N "
            f"{self.alpha:.3g}, largest |log q| {self.largest_correction:.3g})"
        )
        if self.reliable is False:
            note += (
                ". What to do: use theory='auto', which takes the adaptive theory or samples the network where the "
                "saddle point is off; compare_with_network shows them beside each other"
            )
        return note

    def __str__(self) -> str:
        """Return the note."""
        return self.note


def assess_reliability(
    score: Tensor | None, inputs: Tensor, width: Tensor, order_parameter: Tensor, missing: str = "not computed"
) -> Reliability:
    """Say what a score means: how large the errors of sampled networks with such scores were.

    Args:
        score: Of :func:`~torch_propkernel.reliability.unit_response`, ``*b``; None or NaN where it is not available.
        inputs: Training inputs as the kernel scales them, ``... x P x d``.
        width: N_l.
        order_parameter: q_l.
        missing: Why there is no score.

    Reference: THEORY.md, section 8.

    Example:
        >>> x, one = torch.eye(30), torch.ones(1)
        >>> [assess_reliability(s * one, x, 10 * one, 2 * one).reliable for s in (0.1, 2.0)]
        [True, False]
    """
    alpha = float((inputs.shape[-2] / width).max())
    correction = float(order_parameter.log().abs().max())
    if alpha == 0.0:
        return Reliability(True, alpha, correction, 0.0, 0.0, 0.0, inputs, "infinite width, nothing to correct")
    value = math.nan if score is None else float(score.max())
    if math.isnan(value):
        reason = f"no score of the reliability: {missing}"
        return Reliability(None, alpha, correction, _inputs=inputs, _reason=reason)
    index = bisect_right(_ENDS, value)
    count, median, large, worst = _MEASURED[index]
    reliable = value < THRESHOLD
    reason = (
        f"{'' if reliable else 'unreliable: '}real hidden units move the fit by {value:.2g} leave-one-out errors "
        f"(score; warned of from {THRESHOLD}); the {count} sampled networks with scores {_range(index)} had test "
        f"errors off by {100 * median:.2g} % in the median, {100 * large:.2g} % at the 90th percentile, "
        f"{100 * worst:.3g} % at worst"
    )
    return Reliability(reliable, alpha, correction, value, median, large, inputs, reason)


def _range(index: int) -> str:
    if index == 0:
        return f"below {_ENDS[0]}"
    return f"above {_ENDS[-1]}" if index == len(_ENDS) else f"from {_ENDS[index - 1]} to {_ENDS[index]}"
