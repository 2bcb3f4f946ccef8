"""Models: a GP of a network, the predictive of any theory, the finite-width process, Student's t processes."""

from .finite_network_process import FiniteNetworkProcess
from .finite_width_process import FiniteWidthProcess
from .multitask_network_gp import MultitaskNetworkGP
from .network_gp import NetworkGP
from .network_processes import NetworkFiniteWidthProcess, NetworkStudentTProcess
from .student_t_process import StudentTProcess

__all__ = [
    "FiniteNetworkProcess",
    "FiniteWidthProcess",
    "MultitaskNetworkGP",
    "NetworkFiniteWidthProcess",
    "NetworkGP",
    "NetworkStudentTProcess",
    "StudentTProcess",
]
