"""A mark for values whose graph is right for first derivatives only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _FirstDerivativesOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, name: str) -> Tensor:
        ctx.name = name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # a graph of this derivative was asked for
            raise RuntimeError(
                f"{ctx.name}: expected first derivatives only (create_graph=False), got create_graph=True; second "
                "derivatives are not implemented. Take differences of first derivatives."
            )
        return outer[0], None


def first_derivatives_only(value: Tensor, name: str) -> Tensor:
    """Return the same values; a backward pass that is to be differentiated again raises ``RuntimeError``.

    Example:
        >>> x = torch.ones((), requires_grad=True)
        >>> y = first_derivatives_only(3 * x, "y")
        >>> torch.autograd.grad(y, x)[0].item()
        3.0
    """
    return _FirstDerivativesOnly.apply(value, name) if value.requires_grad else value
