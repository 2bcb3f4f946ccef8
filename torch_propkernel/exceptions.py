"""Warnings and errors that the package raises, so that a caller can filter or catch each by its class."""

from __future__ import annotations


class PropKernelWarning(UserWarning):
    """Base class of every warning that this package issues."""


class ReliabilityWarning(PropKernelWarning):
    """The data or the network lie in a regime where the prediction is known to be unreliable."""


class IdentifiabilityWarning(PropKernelWarning):
    """An order parameter and an overall scale are free together, so only their product is determined."""


class InputScaleWarning(PropKernelWarning):
    """The inputs are far from the unit scale that the default priors assume."""


class BoundaryWarning(PropKernelWarning):
    """A trained hyperparameter ended at an end of the interval in which it was searched."""


class SamplingWarning(PropKernelWarning):
    """Markov chains have not converged: too few effective draws, chains that disagree, or divergent transitions."""


class PrecisionWarning(PropKernelWarning):
    """Rounding of a single-precision kernel matrix is not small against the temperature."""


class ConvergenceError(RuntimeError):
    """A solve did not reach its tolerance."""


class LostProcessError(RuntimeError):
    """Another process of a computation that several share has ended, or did not answer in time."""


class NotPositiveDefiniteError(ValueError):
    """A covariance matrix is not positive semi-definite beyond rounding."""


class NotEnoughMemoryError(MemoryError):
    """A computation would need more memory than the machine has available; said before anything is allocated."""


__all__ = [
    "BoundaryWarning",
    "ConvergenceError",
    "IdentifiabilityWarning",
    "InputScaleWarning",
    "LostProcessError",
    "NotEnoughMemoryError",
    "NotPositiveDefiniteError",
    "PrecisionWarning",
    "PropKernelWarning",
    "ReliabilityWarning",
    "SamplingWarning",
]
