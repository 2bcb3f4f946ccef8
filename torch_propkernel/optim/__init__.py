"""Solvers of the saddle point."""

from .fit_order_parameters import fit_order_parameters
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters

__all__ = ["Solution", "SolveResult", "fit_order_parameters", "solve_order_parameters"]
