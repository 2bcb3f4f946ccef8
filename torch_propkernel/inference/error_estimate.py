"""Expected squared errors, split into bias and variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ErrorEstimate:
    """Expected squared errors of a network drawn from the posterior, split into bias and variance.

    All in the targets' original units, without the noise T.

    Attributes:
        mean: Posterior mean Gamma for each point, ``*b x m``.
        bias: (y - Gamma)^2 for each point: the measured squared error of the mean, no prediction.
        variance: sigma^2 for each point.
        infinite_width: The same at q = 1 with the same hyperparameters, not refitted; None in that object itself.
        solution: What the solver returned, if the call was asked to fit.
        log_density: log p of each target, noise included, ``*b x m``; None where the noise of a point is not known.
        message: How it was computed where the kernel matrix was not held, and which points were left out; else None.
    """

    mean: Tensor
    bias: Tensor
    variance: Tensor
    infinite_width: ErrorEstimate | None = None
    solution: Any = None
    log_density: Tensor | None = None
    message: str | None = None

    @property
    def total(self) -> Tensor:
        """Bias plus variance for each point."""
        return self.bias + self.variance

    @property
    def mean_bias(self) -> Tensor:
        """Bias averaged over the points, ``*b``."""
        return self.bias.mean(-1)

    @property
    def mean_variance(self) -> Tensor:
        """Variance averaged over the points, ``*b``."""
        return self.variance.mean(-1)

    @property
    def mean_total(self) -> Tensor:
        """Total averaged over the points, ``*b``."""
        return self.total.mean(-1)

    def __str__(self) -> str:
        """One line, with the infinite-width value beside it."""
        text = f"error {_show(self.mean_total)} = bias {_show(self.mean_bias)} + variance {_show(self.mean_variance)}"
        if self.infinite_width is not None:
            text += f" (infinite width: {_show(self.infinite_width.mean_total)})"
        return text


def _show(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else str([f"{v:.6g}" for v in value.flatten().tolist()])
