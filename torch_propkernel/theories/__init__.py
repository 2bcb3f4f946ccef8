"""Theories of finite Bayesian networks under one interface: fit a model, predict, compare."""

from .base import FittedTheory, Theory
from .best_scale import FreeScale, fit_free_scale
from .compare_widths import WidthComparison, compare_widths
from .curves import LearningCurve, WidthSweep, learning_curve, width_sweep
from .errors import ErrorEstimate, expected_accuracy, generalization_error, leave_one_out_error, training_error
from .first_order import FirstOrder, FittedFirstOrder
from .fit_order_parameters import fit_order_parameters
from .free_scale import FreeScaleBaseline
from .gated import Gated
from .infinite_width import InfiniteWidth
from .mixture import Mixture
from .saddle_point import SaddlePoint
from .two_parameter import TwoParameterMixture, TwoParameterSaddle

__all__ = [
    "ErrorEstimate",
    "FirstOrder",
    "FittedFirstOrder",
    "FittedTheory",
    "FreeScale",
    "FreeScaleBaseline",
    "Gated",
    "InfiniteWidth",
    "LearningCurve",
    "Mixture",
    "SaddlePoint",
    "Theory",
    "TwoParameterMixture",
    "TwoParameterSaddle",
    "WidthComparison",
    "WidthSweep",
    "compare_widths",
    "expected_accuracy",
    "fit_free_scale",
    "fit_order_parameters",
    "generalization_error",
    "learning_curve",
    "leave_one_out_error",
    "training_error",
    "width_sweep",
]
