"""Whether somebody differentiates what is computed here, in any of torch's ways."""

from __future__ import annotations

import torch
from torch import Tensor


def transforms_are_active() -> bool:
    """Whether this runs inside of torch.func.grad, vmap, jvp or the like, where tensors have no memory of their own."""
    return torch._C._are_functorch_transforms_active()


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors is recorded for, or takes part in, any kind of differentiation.

    Where it is not, memory may be reused and values alone matter.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> is_recorded(x), is_recorded(x.detach()), torch.func.vmap(lambda v: v * is_recorded(v))(x.detach())
        (True, False, tensor([1., 1.]))
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None):
        return True
    return is_transformed()


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is on, which custom backward passes miss."""
    return transforms_are_active() or torch.autograd.forward_ad._current_level >= 0
