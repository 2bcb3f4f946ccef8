"""The problem taken from a model, and what conditioning it on its data gives."""

from .blocks import BlocksProblem
from .conditioned import Blocks, Conditioned, DenseConditioned, Node, SpectralConditioned
from .error_estimate import ErrorEstimate
from .observed_outputs_conditioned import ObservedOutputsConditioned
from .outputs import OutputsProblem
from .outputs_conditioned import OutputsConditioned
from .problem import KernelNode, Problem, ScalarProblem
from .tridiagonal_conditioned import TridiagonalConditioned
from .units import Normalization, Units

__all__ = [
    "Blocks",
    "BlocksProblem",
    "Conditioned",
    "DenseConditioned",
    "ErrorEstimate",
    "KernelNode",
    "Node",
    "Normalization",
    "ObservedOutputsConditioned",
    "OutputsConditioned",
    "OutputsProblem",
    "Problem",
    "ScalarProblem",
    "SpectralConditioned",
    "TridiagonalConditioned",
    "Units",
]
