"""Objectives for training loops."""

from .effective_action import EffectiveAction
from .finite_width_marginal_log_likelihood import FiniteWidthMarginalLogLikelihood
from .student_t_marginal_log_likelihood import StudentTMarginalLogLikelihood

__all__ = ["EffectiveAction", "FiniteWidthMarginalLogLikelihood", "StudentTMarginalLogLikelihood"]
