"""Predicted errors of the network, from training data or at given test targets."""

from .baselines import Baseline
from .choose_network import choose_network
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
from .network_choice import NetworkChoice

__all__ = [
    "Baseline",
    "ErrorEstimate",
    "FreeScale",
    "LearningCurve",
    "NetworkChoice",
    "WidthComparison",
    "WidthSweep",
    "choose_network",
    "compare_widths",
    "expected_accuracy",
    "fit_free_scale",
    "generalization_error",
    "learning_curve",
    "leave_one_out_error",
    "training_error",
    "width_sweep",
]
