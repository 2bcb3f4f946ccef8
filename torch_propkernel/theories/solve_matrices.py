"""The saddle points of problems whose order parameters are matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..actions.block_matrices import DenseBlocks
from ..actions.block_minimum import block_log_evidence
from ..actions.solution import Solution
from ..actions.solve_block_order_parameters import solve_chain_order_parameters
from ..actions.solve_matrix_order_parameters import MatrixSolution, solve_matrix_order_parameters
from ..inference import BlocksProblem, OutputsProblem


def solve_outputs(problem: OutputsProblem, evidence: bool = False) -> MatrixSolution:
    """Solve for the matrices of several outputs; with gradients from the kernel matrix, else from its reduction."""
    reduced = problem.is_complete and not torch.is_grad_enabled()
    return solve_matrix_order_parameters(
        problem.joint_spectrum if reduced else problem.unit_covariance,
        None if reduced else problem.residuals().mT,
        width=problem.output_chain.width,
        temperature=problem.noise_scale,
        output_noise=problem.output_noise,
        evidence=evidence,
        throw=False,
    )


def solve_blocks(problem: BlocksProblem) -> tuple[Solution, Callable[[], Tensor]]:
    """Solve for the matrix of blocks, or those of a chain of layers; return what computes A at the solution, too."""
    chain, width = problem.block_kernel.chain, problem.block_kernel.width.flatten().double()
    blocks, base = problem.training_blocks()
    found = solve_chain_order_parameters(blocks, problem.residuals(), chain, width=width, base=base, throw=False)
    return found, lambda: base + blocks(chain(chain.matrices(found.order_parameter)))


@torch.no_grad()
def evidence_of_blocks(problem: BlocksProblem, order_parameter: Tensor) -> Tensor | None:
    """Return log p(y) at a minimum E, ``L x r x r``, by Laplace's method; None where the blocks are not held."""
    chain, width = problem.block_kernel.chain, problem.block_kernel.width.flatten().double()
    blocks, base = problem.training_blocks()
    if not isinstance(blocks, DenseBlocks):
        return None
    return block_log_evidence(blocks, problem.residuals(), chain, order_parameter, width=width, base=base)
