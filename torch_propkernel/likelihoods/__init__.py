"""Observation models that belong to a process."""

from .latent_student_t import LatentStudentT
from .student_t_process_likelihood import StudentTProcessLikelihood

__all__ = ["LatentStudentT", "StudentTProcessLikelihood"]
