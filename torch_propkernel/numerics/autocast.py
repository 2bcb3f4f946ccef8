"""Keeps automatic mixed precision away from covariances."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def outside_autocast(function: Function) -> Function:
    """Decorate a function so that it computes in the dtype of its inputs under ``torch.autocast`` too.

    Autocast would form the products of a covariance with 8 or 11 bits: it is not positive definite then, and a solve
    amplifies the error by the condition number. Backward passes belong outside of autocast, as everywhere in torch.

    Example:
        >>> import torch
        >>> x = torch.full((1, 2), 1.001)
        >>> gram = outside_autocast(lambda x: x @ x.T)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     (x @ x.T).dtype, gram(x).dtype
        (torch.bfloat16, torch.float32)
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        active = _active()
        if not active:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for device in active:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def refuse_autocast(name: str) -> None:
    """Raise ``RuntimeError`` where ``torch.autocast`` is on.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     refuse_autocast("f")
        Traceback (most recent call last):
            ...
        RuntimeError: f: expected to run outside of torch.autocast, got autocast on cpu; turn it off with enabled=False
    """
    if _active():
        raise RuntimeError(
            f"{name}: expected to run outside of torch.autocast, got autocast on {', '.join(_active())}; turn it off "
            "with enabled=False"
        )


def _active() -> list[str]:
    return [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
