"""Predicted errors of the network, from training data or at given test targets."""

from .curves import LearningCurve, WidthSweep, learning_curve, width_sweep
from .errors import (
    ErrorEstimate,
    expected_accuracy,
    generalization_error,
    leave_one_out_error,
    training_error,
)

__all__ = [
    "ErrorEstimate",
    "LearningCurve",
    "WidthSweep",
    "expected_accuracy",
    "generalization_error",
    "learning_curve",
    "leave_one_out_error",
    "training_error",
    "width_sweep",
]
