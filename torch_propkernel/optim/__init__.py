"""Solvers of the saddle point, and fits of hyperparameters."""

from .fit_hyperparameters import fit_hyperparameters
from .fit_order_parameters import fit_order_parameters
from .hyperparameter_fit import HyperparameterFit
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters

__all__ = [
    "HyperparameterFit",
    "Solution",
    "SolveResult",
    "fit_hyperparameters",
    "fit_order_parameters",
    "solve_order_parameters",
]
