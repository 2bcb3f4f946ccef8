"""Observation models that belong to a process."""

from .finite_width_likelihood import FiniteWidthLikelihood
from .latent_student_t import LatentStudentT
from .student_t_process_likelihood import StudentTProcessLikelihood

__all__ = ["FiniteWidthLikelihood", "LatentStudentT", "StudentTProcessLikelihood"]
