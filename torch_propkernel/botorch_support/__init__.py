"""BoTorch models, posteriors and samplers; needs BoTorch, which the rest of the package does not.

Import from here only: ``from torch_propkernel.botorch_support import SingleTaskStudentTProcess``. Importing it
registers the posteriors' samplers with BoTorch, and checks that refuse what assumes normality (``NonGaussianModel``).
"""

from . import pathwise as _pathwise  # noqa: F401 (registers its refusals)
from .finite_network_gp import SingleTaskFiniteNetworkGP
from .finite_width_gp import SingleTaskFiniteWidthGP
from .finite_width_posterior import FiniteWidthPosterior
from .kronecker_network_gp import KroneckerNetworkGP
from .non_gaussian import NonGaussianModel
from .student_t_posterior import StudentTPosterior
from .student_t_process import SingleTaskStudentTProcess

__all__ = [
    "FiniteWidthPosterior",
    "KroneckerNetworkGP",
    "NonGaussianModel",
    "SingleTaskFiniteNetworkGP",
    "SingleTaskFiniteWidthGP",
    "SingleTaskStudentTProcess",
    "StudentTPosterior",
]
