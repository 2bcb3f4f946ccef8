"""Checks of the parameters of distributions."""

from __future__ import annotations

from typing import Any

import torch
from linear_operator.operators import LinearOperator
from torch import Tensor

from .._validation import check_finite, check_floating, check_same_kind


def degrees_of_freedom(df: float | Tensor, loc: Tensor, above: float) -> Tensor:
    """Return df as a tensor of the kind of ``loc``."""
    value = df if isinstance(df, Tensor) else torch.tensor(float(df), dtype=loc.dtype, device=loc.device)
    check_same_kind(loc=loc, df=check_floating("df", value))
    if not bool((value > above).all()):
        reason = " for a covariance to exist" if above else ""
        raise ValueError(f"df: expected numbers > {above:g}{reason}, got {value.tolist()}")
    return value


def check_matrix(name: str, matrix: Any, loc: Tensor) -> None:
    """Check a scale or covariance matrix against its location; a linear operator is not evaluated."""
    if not isinstance(matrix, LinearOperator):
        check_floating(name, matrix)
    check_same_kind(**{"loc": loc, name: matrix})
    size = loc.shape[-1] if loc.dim() else None
    if size is None or size == 0:
        raise ValueError(f"loc: expected shape (..., m) with m >= 1, got {tuple(loc.shape)}")
    if matrix.dim() < 2 or matrix.shape[-2:] != (size, size):
        raise ValueError(f"{name}: expected shape (..., {size}, {size}), got {tuple(matrix.shape)}")
    if isinstance(matrix, Tensor):
        check_finite(name, matrix)


def check_mixture_shapes(
    log_weights: Tensor, loc: Tensor, scales: Tensor, covariance: Any, variance: Tensor | None
) -> tuple[torch.Size, int]:
    """Return batch shape and number of nodes."""
    if log_weights.dim() < 1 or loc.dim() < 2 or loc.shape[-1] == 0:
        raise ValueError(
            f"expected log_weights (..., n) and loc (..., n, m), got {tuple(log_weights.shape)} and {tuple(loc.shape)}"
        )
    size = loc.shape[-1]
    event = (size, size) if variance is None else (size,)
    name, shape = ("covariance", covariance.shape) if variance is None else ("variance", variance.shape)
    if len(shape) <= len(event) or tuple(shape[-len(event) :]) != event:
        expected = ", ".join(str(v) for v in event)
        raise ValueError(f"{name}: expected shape (..., n, {expected}), got {tuple(shape)}")
    shapes = {
        "log_weights": log_weights.shape,
        "loc": loc.shape[:-1],
        name: shape[: -len(event)],
        "scales": scales.shape,
    }
    try:
        whole = torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        got = ", ".join(f"{key} {tuple(value)}" for key, value in shapes.items())
        raise ValueError(f"expected shapes (..., n) that broadcast, got {got}") from error
    if log_weights.shape[-1] != whole[-1]:
        raise ValueError(f"log_weights: expected {whole[-1]} nodes, got {log_weights.shape[-1]}")
    return whole[:-1], whole[-1]
