"""The finite networks themselves, and samplers of their posterior."""

from .annealing import Annealing, Draws, Population
from .conditional import ReadoutLaw
from .convolutional import ConvolutionalNetwork
from .diagnostics import MonteCarloEstimate, effective_sample_size, estimate, split_r_hat
from .feature_network import FeatureNetwork
from .finite_network import FiniteNetwork
from .hamiltonian import HamiltonianMonteCarlo
from .hidden_kernels import measure_hidden_kernels
from .langevin import LangevinDynamics, extrapolate_learning_rate
from .row_space import RowSpaceTarget
from .sample_posterior import sample_posterior
from .sampled_posterior import SampledPosterior
from .sampler import Sampler, SamplerStatistics
from .targets import JointTarget, MarginalTarget, Observables, Target

__all__ = [
    "Annealing",
    "ConvolutionalNetwork",
    "Draws",
    "FeatureNetwork",
    "FiniteNetwork",
    "HamiltonianMonteCarlo",
    "JointTarget",
    "LangevinDynamics",
    "MarginalTarget",
    "MonteCarloEstimate",
    "Observables",
    "Population",
    "ReadoutLaw",
    "RowSpaceTarget",
    "SampledPosterior",
    "Sampler",
    "SamplerStatistics",
    "Target",
    "effective_sample_size",
    "estimate",
    "extrapolate_learning_rate",
    "measure_hidden_kernels",
    "sample_posterior",
    "split_r_hat",
]
