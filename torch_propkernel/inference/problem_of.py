"""From a model to its problem, by the kind of order parameters that its kernel has."""

from __future__ import annotations

from typing import Any

from .blocks import BlocksProblem, find_block_kernel
from .outputs import OutputsProblem, has_outputs
from .problem import Problem


def problem_of(model: Any, *, frozen: bool = True, needs_order_parameters: bool = True) -> Problem:
    """Return the problem of a model: numbers, matrices of outputs, or matrices of blocks as order parameters.

    Args:
        model: An ExactGP-like model, or a problem, which is returned.
        frozen: Take a deep copy, without gradients; else live, differentiable in the model's parameters.
        needs_order_parameters: Refuse a model without order parameters.

    Raises:
        TypeError, ValueError: Not a suitable model.

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import problem_of
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), torch.ones(3, 2), kernel, temperature=0.5)
        >>> type(problem_of(model)).__name__
        'OutputsProblem'
    """
    if not isinstance(model, Problem) and has_outputs(model):
        return OutputsProblem.of_outputs(model) if frozen else OutputsProblem.live(model)
    if find_block_kernel(model.model if isinstance(model, Problem) else model) is not None:
        return BlocksProblem.of_blocks(model) if frozen else BlocksProblem.live(model)
    make = Problem.frozen if frozen else Problem.of
    return make(model, needs_order_parameters=needs_order_parameters)
