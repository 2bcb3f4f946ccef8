"""A kernel matrix and targets, reduced once for all widths and temperatures."""

from .conjugate_gradients import CGSolution, CGState, conjugate_gradients
from .fused_operator import FusedKernelOperator
from .kernel_operator import KernelOperator
from .lanczos import LanczosRun, gauss_quadrature, radau_quadrature
from .lanczos_reduction import LanczosReduction
from .low_rank import LowRank
from .sharded_operator import ShardedKernelOperator
from .spectrum import Spectrum, TridiagonalSpectrum
from .tridiagonal import Tridiagonal

__all__ = [
    "CGSolution",
    "CGState",
    "FusedKernelOperator",
    "KernelOperator",
    "LanczosReduction",
    "LanczosRun",
    "LowRank",
    "ShardedKernelOperator",
    "Spectrum",
    "Tridiagonal",
    "TridiagonalSpectrum",
    "conjugate_gradients",
    "gauss_quadrature",
    "radau_quadrature",
]
