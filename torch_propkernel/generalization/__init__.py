"""Predicted errors of the network, from training data or at given test targets."""

from .compare_widths import WidthComparison, compare_widths
from .curves import LearningCurve, WidthSweep, learning_curve, width_sweep
from .errors import (
    ErrorEstimate,
    expected_accuracy,
    generalization_error,
    leave_one_out_error,
    training_error,
)
from .free_scale import FreeScale, fit_free_scale

__all__ = [
    "ErrorEstimate",
    "FreeScale",
    "LearningCurve",
    "WidthComparison",
    "WidthSweep",
    "compare_widths",
    "expected_accuracy",
    "fit_free_scale",
    "generalization_error",
    "learning_curve",
    "leave_one_out_error",
    "training_error",
    "width_sweep",
]
