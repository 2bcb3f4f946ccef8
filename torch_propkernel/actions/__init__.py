"""Effective actions on a spectrum or on a kernel map, their stationary points and minimizers."""

from .evidence import effective_action, laplace_evidence
from .first_order import FirstOrderTerms, Terms, draw_pre_activations, first_order_terms
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters
from .stationary_points import find_stationary_points

__all__ = [
    "FirstOrderTerms",
    "Solution",
    "SolveResult",
    "Terms",
    "effective_action",
    "laplace_evidence",
    "draw_pre_activations",
    "find_stationary_points",
    "first_order_terms",
    "solve_order_parameters",
]
