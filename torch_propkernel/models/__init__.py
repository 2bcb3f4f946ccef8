"""Models: a GP of a network, the finite-width process, Student's t processes, and the pieces that solvers need."""

from .finite_width_process import FiniteWidthProcess
from .network_gp import NetworkGP
from .network_processes import NetworkFiniteWidthProcess, NetworkStudentTProcess
from .student_t_process import StudentTProcess

__all__ = [
    "FiniteWidthProcess",
    "NetworkFiniteWidthProcess",
    "NetworkGP",
    "NetworkStudentTProcess",
    "StudentTProcess",
]
