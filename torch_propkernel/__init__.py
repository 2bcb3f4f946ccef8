"""Theory-corrected predictors for finite-width Bayesian networks, as GPyTorch kernels and solvers.

A kernel that owns its order parameters, with the prior that the width dictates (:class:`RenormalizedNNGPKernel`), a
solver of the saddle point (:func:`fit_order_parameters`), and the predicted errors (:func:`generalization_error`,
:func:`~torch_propkernel.theories.leave_one_out_error`), always beside those of the infinitely wide network; the
networks themselves, samplers of their posterior and the comparison of both (:func:`compare_with_network`). What is not
at the top is in the rooms, each named by what is in it. The equations are in ``THEORY.md`` of this package; the source
is Pacelli et al., Nature Machine Intelligence 5, 1497 (2023), arXiv:2209.04882.
"""

from importlib.metadata import PackageNotFoundError, version

from .actions import solve_order_parameters
from .activations import Erf, ReLU
from .exceptions import ConvergenceError, NotPositiveDefiniteError, PropKernelWarning, ReliabilityWarning
from .kernels import ArcCosineKernel, ArcSineKernel, NNGPKernel, RenormalizedNNGPKernel
from .likelihoods import FiniteWidthLikelihood, StudentTProcessLikelihood
from .mlls import EffectiveAction, FiniteWidthMarginalLogLikelihood, StudentTMarginalLogLikelihood
from .models import (
    FiniteNetworkProcess,
    FiniteWidthProcess,
    NetworkFiniteWidthProcess,
    NetworkGP,
    NetworkStudentTProcess,
    StudentTProcess,
)
from .practice import compare_with_network
from .saving import load, save
from .spectra import Spectrum
from .theories import (
    Theory,
    expected_accuracy,
    fit_order_parameters,
    generalization_error,
    learning_curve,
    leave_one_out_error,
    training_error,
    width_sweep,
)
from .tuning import choose_network, fit_hyperparameters

try:
    __version__ = version("torch_propkernel")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0.0.0"

__all__ = [
    "ArcCosineKernel",
    "ArcSineKernel",
    "ConvergenceError",
    "EffectiveAction",
    "Erf",
    "FiniteNetworkProcess",
    "FiniteWidthLikelihood",
    "FiniteWidthMarginalLogLikelihood",
    "FiniteWidthProcess",
    "NNGPKernel",
    "NetworkFiniteWidthProcess",
    "NetworkGP",
    "NetworkStudentTProcess",
    "NotPositiveDefiniteError",
    "PropKernelWarning",
    "ReLU",
    "ReliabilityWarning",
    "RenormalizedNNGPKernel",
    "Spectrum",
    "StudentTMarginalLogLikelihood",
    "StudentTProcess",
    "StudentTProcessLikelihood",
    "Theory",
    "choose_network",
    "compare_with_network",
    "expected_accuracy",
    "fit_hyperparameters",
    "fit_order_parameters",
    "generalization_error",
    "learning_curve",
    "leave_one_out_error",
    "load",
    "save",
    "solve_order_parameters",
    "training_error",
    "width_sweep",
]
