"""Theories of finite Bayesian networks under one interface: fit a model, predict, compare."""

from .adaptive import Adaptive, FittedAdaptive
from .auto import Auto
from .base import FittedTheory, Theory
from .errors import expected_accuracy, generalization_error, leave_one_out_error, training_error
from .first_order import CorrectedSaddle, FirstOrder
from .free_scale import FreeScale
from .from_model import network_from_model
from .gated import Gated
from .hidden_kernels import HiddenKernels, hidden_kernels
from .infinite_width import InfiniteWidth
from .mixture import Mixture
from .names import THEORIES, get_theory
from .outputs import FittedOutputs
from .saddle_point import SaddlePoint
from .sampled import Sampled
from .solve import ModelSolution, fit_order_parameters
from .sweeps import LearningCurve, WidthSweep, learning_curve, width_sweep
from .two_parameter import TwoParameterSaddle

__all__ = [
    "THEORIES",
    "Auto",
    "Adaptive",
    "CorrectedSaddle",
    "FirstOrder",
    "FittedAdaptive",
    "FittedOutputs",
    "FittedTheory",
    "FreeScale",
    "Gated",
    "HiddenKernels",
    "InfiniteWidth",
    "LearningCurve",
    "Mixture",
    "ModelSolution",
    "SaddlePoint",
    "Sampled",
    "Theory",
    "TwoParameterSaddle",
    "WidthSweep",
    "expected_accuracy",
    "fit_order_parameters",
    "generalization_error",
    "get_theory",
    "hidden_kernels",
    "learning_curve",
    "leave_one_out_error",
    "network_from_model",
    "training_error",
    "width_sweep",
]
