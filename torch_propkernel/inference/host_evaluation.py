"""What GPyTorch evaluates for a problem: lazy covariances, one thread at a time."""

from __future__ import annotations

import functools
import threading
from typing import Any

from linear_operator import to_dense as host_to_dense
from torch import Tensor

_HOST = threading.RLock()
"""Held while GPyTorch evaluates a lazy kernel: it switches a global setting off and on, which threads would mix up."""


def one_at_a_time(function: Any) -> Any:
    """Decorate a function that evaluates lazy kernels."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _HOST:
            return function(*args, **kwargs)

    return run


def to_dense(operator: Any) -> Tensor:
    """Return a lazy covariance as a matrix."""
    with _HOST:
        return host_to_dense(operator)


def diagonal_of(operator: Any) -> Tensor:
    """Return the variances of a lazy covariance."""
    with _HOST:
        return operator.diagonal(dim1=-2, dim2=-1)
