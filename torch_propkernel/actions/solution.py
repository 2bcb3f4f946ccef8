"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from ..exceptions import ConvergenceError


class SolveResult(Enum):
    """Outcome of a solve; the value is a sentence that says what it means and what to do.

    Example:
        >>> [r.name for r in SolveResult if not r.successful]
        ['not_converged']
    """

    global_minimum = "The global minimum of the effective action was found for every problem."
    near_degenerate = (
        "The global minimum was found, but for at least one problem another minimum lies within rounding of it or it "
        "is close to a double root, where its position is ill-conditioned; look at stats['gap'] and "
        "stationary_points."
    )
    local_minimum = "Descents from several starts found it; a lower minimum elsewhere is not excluded."
    infinite_width = "Every width is infinite: the order parameters are one, there is nothing to solve."
    not_converged = (
        "The iteration stopped before its tolerance; stats['residual'] tells by how much. Try a larger temperature, "
        "float64, or the composition 'outer', which is solved in one dimension."
    )

    @property
    def successful(self) -> bool:
        """Whether the order parameters can be used."""
        return self is not SolveResult.not_converged


@dataclass(frozen=True)
class Solution:
    """Order parameters at the saddle point, with the outcome and statistics of the solve.

    Attributes:
        order_parameter: q_1, ..., q_L, ``*p x L``; carries gradients where that was asked for.
        action: Effective action S at the solution, ``*p`` (N_L S replaced by its data part where N_L is infinite).
        result: Outcome code whose text helps.
        stationary_points: Products r = prod_l q_l of all stationary points, ``*p x M``, ascending, NaN-padded; None
            where they are not known.
        stationary_actions: S at these points, ``*p x M``; None where they are not known.
        stats: ``iterations``, ``residual``, ``num_minima``, ``gap`` (S of the second-lowest minimum minus S),
            ``condition``, ``alpha``, and from a model ``participation_ratio``; for local minima ``starts``,
            ``agreeing_starts``, and ``rows``, the data on which they began.
        log_evidence: log p(y) by Laplace's method, ``*p``; None where it was not asked for.

    Example:
        >>> import torch
        >>> from torch_propkernel import solve_order_parameters
        >>> solution = solve_order_parameters(torch.eye(2), torch.ones(2), width=10, temperature=0.1)
        >>> solution.value is solution.order_parameter, solution.result.name, int(solution.stats["num_minima"])
        (True, 'global_minimum', 1)
    """

    order_parameter: Tensor
    action: Tensor
    result: SolveResult
    stationary_points: Tensor | None = None
    stationary_actions: Tensor | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    log_evidence: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The order parameters."""
        return self.order_parameter

    @property
    def message(self) -> str:
        """What the outcome means; for local minima also how many starts agree."""
        if self.result is SolveResult.local_minimum:
            agreeing, starts = self.stats["agreeing_starts"], self.stats["starts"]
            return f"local minimum, {agreeing.tolist()} of {starts} starts agree. {self.result.value}"
        return self.result.value

    def raise_if_failed(self) -> Solution:
        """Return self, or raise :class:`ConvergenceError` if the solve did not converge."""
        if not self.result.successful:
            raise ConvergenceError(f"{self.message} (residual {self.stats.get('residual')})")
        return self
