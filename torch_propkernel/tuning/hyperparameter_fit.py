"""What a fit of hyperparameters returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..exceptions import ConvergenceError


@dataclass(frozen=True)
class HyperparameterFit:
    """Hyperparameters of the highest evidence that was found, and how the search went.

    Attributes:
        model: The model that was given, with the fitted values, and the order parameters solved for them.
        temperature: T, the likelihood's noise.
        values: Fitted values by name, flattened; b_l / w_l for each layer as "bias_ratio" (zero without a bias).
        log_evidence: log p(y) at the end without priors of hyperparameters: integrated over the scale, at the saddle
            the likelihood at q* with the action's price for it, or the likelihood of a process without a finite width.
        log_posterior: log_evidence plus the log densities of the model's priors: what was maximized.
        converged: Whether the best start met its tolerance.
        message: One or two sentences: convergence, starts, bounds.
        at_bound: Names of the parameters that ended at an end of their box.
        iterations: Of the best start.
        evaluations: Of all starts, on all rows; those of a screening on a part of the rows are not counted.
        starts: log_posterior at the end of each start, or where it was left behind: the message says how many were.
    """

    model: Any
    temperature: float
    values: dict[str, tuple[float, ...]]
    log_evidence: float
    log_posterior: float
    converged: bool
    message: str
    at_bound: tuple[str, ...]
    iterations: int
    evaluations: int
    starts: tuple[float, ...]

    def raise_if_failed(self) -> HyperparameterFit:
        """Return self, or raise :class:`ConvergenceError` if the search did not converge."""
        if not self.converged:
            raise ConvergenceError(self.message)
        return self

    def __str__(self) -> str:
        """One line."""
        numbers = [f"{name} {', '.join(f'{v:.4g}' for v in values)}" for name, values in self.values.items()]
        return f"{'; '.join(numbers)}; log evidence {self.log_evidence:.3f}; {self.message}"
