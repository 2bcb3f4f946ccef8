"""Effective actions on a spectrum or on a kernel map, their stationary points and minimizers."""

from .block_action import BlockAction
from .block_matrices import BlockMatrices, DenseBlocks
from .evidence import effective_action, laplace_evidence
from .first_order import FirstOrderTerms, Terms, draw_pre_activations, first_order_terms
from .hidden_response import hidden_kernel_response
from .observed_output_action import ObservedOutputAction
from .output_action import OutputAction
from .quadrature_error import QuadratureError, quadrature_error, scale_error
from .solution import Solution, SolveResult
from .solve_block_order_parameters import solve_block_order_parameters, solve_chain_order_parameters
from .solve_matrix_order_parameters import MatrixSolution, solve_matrix_order_parameters
from .solve_order_parameters import solve_order_parameters
from .stationary_points import find_stationary_points

__all__ = [
    "BlockAction",
    "BlockMatrices",
    "DenseBlocks",
    "FirstOrderTerms",
    "MatrixSolution",
    "ObservedOutputAction",
    "OutputAction",
    "QuadratureError",
    "Solution",
    "SolveResult",
    "Terms",
    "effective_action",
    "laplace_evidence",
    "draw_pre_activations",
    "find_stationary_points",
    "first_order_terms",
    "quadrature_error",
    "scale_error",
    "hidden_kernel_response",
    "solve_block_order_parameters",
    "solve_chain_order_parameters",
    "solve_matrix_order_parameters",
    "solve_order_parameters",
]
