"""Theory-corrected predictors for finite-width Bayesian networks, as GPyTorch kernels and solvers.

A kernel that owns its order parameters, with the prior that the width dictates (:class:`RenormalizedNNGPKernel`), a
solver of the saddle point (:func:`fit_order_parameters`), and the predicted errors (:func:`generalization_error`,
:func:`leave_one_out_error`), always beside those of the infinitely wide network. The equations are in ``THEORY.md`` of
this package; the source is Pacelli et al., Nature Machine Intelligence 5, 1497 (2023), arXiv:2209.04882.
"""

from importlib.metadata import PackageNotFoundError, version

from .distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
from .exceptions import (
    ConvergenceError,
    IdentifiabilityWarning,
    InputScaleWarning,
    NotPositiveDefiniteError,
    PropKernelWarning,
    ReliabilityWarning,
)
from .functions import (
    GELU,
    Activation,
    Cos,
    Erf,
    Exp,
    Identity,
    LeakyReLU,
    Quadrature,
    RectifiedQuadratic,
    ReLU,
    Sign,
    SiLU,
    Sin,
    Spectrum,
    Square,
    Step,
    Tanh,
)
from .generalization import (
    ErrorEstimate,
    FreeScale,
    LearningCurve,
    WidthComparison,
    WidthSweep,
    compare_widths,
    expected_accuracy,
    fit_free_scale,
    generalization_error,
    learning_curve,
    leave_one_out_error,
    training_error,
    width_sweep,
)
from .kernels import (
    ArcCosineKernel,
    ArcSineKernel,
    Composition,
    Linearized,
    LinearPart,
    Nested,
    NNGPKernel,
    Outer,
    RenormalizedNNGPKernel,
)
from .likelihoods import FiniteWidthLikelihood, StudentTProcessLikelihood
from .mixing import (
    GammaMixing,
    GeneralizedInverseGaussianMixing,
    InverseGammaMixing,
    LogNormalMixing,
    MixingLaw,
    PointMass,
    ProductGammaMixing,
    posterior_of_scale,
)
from .mlls import EffectiveAction, FiniteWidthMarginalLogLikelihood, StudentTMarginalLogLikelihood
from .models import FiniteWidthProcess, NetworkGP, StudentTProcess
from .optim import Solution, SolveResult, fit_order_parameters, solve_order_parameters
from .priors import OrderParameterPrior
from .reliability import Reliability, assess_reliability, participation_ratio

try:
    __version__ = version("torch_propkernel")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0.0.0"

__all__ = [
    "Activation",
    "ArcCosineKernel",
    "ArcSineKernel",
    "Composition",
    "ConvergenceError",
    "Cos",
    "EffectiveAction",
    "Erf",
    "ErrorEstimate",
    "Exp",
    "FiniteWidthLikelihood",
    "FiniteWidthMarginalLogLikelihood",
    "FiniteWidthProcess",
    "FreeScale",
    "GELU",
    "GammaMixing",
    "GeneralizedInverseGaussianMixing",
    "IdentifiabilityWarning",
    "Identity",
    "InputScaleWarning",
    "InverseGammaMixing",
    "LeakyReLU",
    "LearningCurve",
    "LinearPart",
    "Linearized",
    "LogNormalMixing",
    "MixingLaw",
    "MultivariateStudentT",
    "NNGPKernel",
    "Nested",
    "NetworkGP",
    "NotPositiveDefiniteError",
    "OrderParameterPrior",
    "Outer",
    "PointMass",
    "ProductGammaMixing",
    "PropKernelWarning",
    "Quadrature",
    "ReLU",
    "RectifiedQuadratic",
    "Reliability",
    "ReliabilityWarning",
    "RenormalizedNNGPKernel",
    "ScaleMixtureMultivariateNormal",
    "SiLU",
    "Sign",
    "Sin",
    "Solution",
    "SolveResult",
    "Spectrum",
    "Square",
    "Step",
    "StudentTMarginalLogLikelihood",
    "StudentTProcess",
    "StudentTProcessLikelihood",
    "Tanh",
    "WidthComparison",
    "WidthSweep",
    "assess_reliability",
    "compare_widths",
    "expected_accuracy",
    "fit_free_scale",
    "fit_order_parameters",
    "generalization_error",
    "learning_curve",
    "leave_one_out_error",
    "participation_ratio",
    "posterior_of_scale",
    "solve_order_parameters",
    "training_error",
    "width_sweep",
]
