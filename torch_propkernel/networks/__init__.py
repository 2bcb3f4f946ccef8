"""The finite networks themselves: their prior, conversion from and to kernels, samplers of their posterior."""

from .compare import NetworkComparison, compare_with_network
from .conditional import ReadoutLaw
from .conversion import model_from_network, network_from_model
from .convolutional import ConvolutionalNetwork
from .diagnostics import MonteCarloEstimate, effective_sample_size, estimate, split_r_hat
from .feature_network import FeatureNetwork
from .finite_network import FiniteNetwork
from .hamiltonian import HamiltonianMonteCarlo
from .langevin import LangevinDynamics, extrapolate_learning_rate
from .measure import LayerMeasurement, MeasuredOrderParameters, measure_order_parameters
from .practice import GibbsParameters, gibbs_parameters, linear_default_variances
from .row_space import RowSpaceTarget
from .sample_posterior import sample_posterior
from .sampled_posterior import SampledPosterior
from .sampler import Sampler, SamplerStatistics
from .targets import JointTarget, MarginalTarget, Observables, Target

__all__ = [
    "NetworkComparison",
    "compare_with_network",
    "ReadoutLaw",
    "MonteCarloEstimate",
    "effective_sample_size",
    "estimate",
    "split_r_hat",
    "HamiltonianMonteCarlo",
    "LangevinDynamics",
    "extrapolate_learning_rate",
    "sample_posterior",
    "RowSpaceTarget",
    "SampledPosterior",
    "Sampler",
    "SamplerStatistics",
    "JointTarget",
    "MarginalTarget",
    "Observables",
    "Target",
    "ConvolutionalNetwork",
    "FeatureNetwork",
    "FiniteNetwork",
    "GibbsParameters",
    "LayerMeasurement",
    "MeasuredOrderParameters",
    "gibbs_parameters",
    "linear_default_variances",
    "measure_order_parameters",
    "model_from_network",
    "network_from_model",
]
