"""The saddle points of problems whose order parameters are matrices."""

from __future__ import annotations

import torch

from ..actions.block_action import DenseBlocks
from ..actions.solution import Solution
from ..actions.solve_block_order_parameters import solve_block_order_parameters
from ..actions.solve_chain_order_parameters import solve_chain_order_parameters
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


def solve_blocks(problem: BlocksProblem, evidence: bool = False) -> Solution:
    """Solve for the matrix of blocks, or those of a chain of layers; evidence of blocks held in memory, else None."""
    chain, width = problem.block_kernel.chain, problem.block_kernel.width.flatten().double()
    blocks, base = problem.training_blocks()
    evidence, y = evidence and isinstance(blocks, DenseBlocks), problem.residuals()
    if chain.depth > 1:
        return solve_chain_order_parameters(blocks, y, chain, width=width, base=base, evidence=evidence, throw=False)
    return solve_block_order_parameters(
        blocks, y, width=width, temperature=1.0, base=base, evidence=evidence, throw=False
    )
