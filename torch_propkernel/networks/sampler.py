"""What the samplers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .targets import Target


@dataclass
class SamplerStatistics:
    """What a sampler counts while it runs.

    Attributes:
        step_size: The present step size, in the sampler's own units.
        num_gradients: Gradients computed per chain after the warm-up.
        num_transitions: Transitions of all chains together after the warm-up.
        num_divergent: Those whose energy error was above 1000 or not finite.
        total_acceptance: Sum of their acceptance probabilities; they are 1 for a sampler without an accept step.

    Example:
        >>> SamplerStatistics(num_transitions=4, total_acceptance=3.0).acceptance
        0.75
    """

    step_size: float = float("nan")
    num_gradients: int = 0
    num_transitions: int = 0
    num_divergent: int = 0
    total_acceptance: float = 0.0

    @property
    def acceptance(self) -> float:
        """Mean acceptance probability after the warm-up."""
        return self.total_acceptance / self.num_transitions if self.num_transitions else float("nan")


class Sampler(ABC):
    """Moves a batch of chains; knows nothing of networks but a :class:`Target`.

    Attributes:
        integrate_readout: Whether it runs on :class:`MarginalTarget` (True) or :class:`JointTarget`.

    Example:
        >>> from torch_propkernel.networks import HamiltonianMonteCarlo
        >>> isinstance(HamiltonianMonteCarlo(), Sampler)   # a sampler of one's own gives ``iterate``
        True
    """

    integrate_readout: bool

    @abstractmethod
    def iterate(
        self,
        target: Target,
        state: Tensor,
        warmup: int,
        generator: torch.Generator | None,
        statistics: SamplerStatistics,
    ) -> Iterator[Tensor]:
        """Yield one state ``C x dim`` after another without end; the first ``warmup`` serve to adapt.

        Raises:
            ConvergenceError: The energy is not finite, or the dynamics is unstable.
        """
