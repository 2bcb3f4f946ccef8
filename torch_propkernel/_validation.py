"""Checks of user input that name what was expected and what came, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def present(value: Any, name: str) -> Any:
    """Return a value that is there; a theory that has none says so by None.

    Raises:
        ValueError: It is None.
    """
    if value is None:
        raise ValueError(f"{name}: expected a value, got None; this theory has none")
    return value


def check_floating(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a floating-point tensor, else raise ``TypeError``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got dtype {value.dtype}; convert it first")
    return value


def check_finite(name: str, value: Tensor) -> Tensor:
    """Raise ``ValueError`` with the number of NaN and infinite entries if there is one."""
    # A sum needs no temporary as large as the tensor; only if it is not finite the entries are looked at.
    if not bool(torch.isfinite(value.detach().sum())) and not bool(torch.isfinite(value).all()):
        nans, infs = int(torch.isnan(value).sum()), int(torch.isinf(value).sum())
        raise ValueError(f"{name}: expected finite values, got {nans} NaN and {infs} infinite of {value.numel()}")
    return value


def check_same_kind(**tensors: Tensor) -> None:
    """Raise if the named tensors differ in dtype or device."""
    for attribute, error in (("dtype", TypeError), ("device", ValueError)):
        seen = {name: getattr(value, attribute) for name, value in tensors.items()}
        if len(set(seen.values())) > 1:
            got = ", ".join(
                f"{name} on {kind}" if attribute == "device" else f"{name} {kind}" for name, kind in seen.items()
            )
            raise error(f"expected one {attribute} for all tensors, got {got}")


def check_inputs(x: Tensor, name: str = "x") -> Tensor:
    """Check a design matrix of shape ``... x P x N_0``: floating, at least 2-D, not empty, finite."""
    check_floating(name, x)
    if x.dim() < 2:
        raise ValueError(
            f"{name}: expected shape (..., P, N_0), got {tuple(x.shape)}; use x.unsqueeze(-1) for one input"
        )
    if x.shape[-2] < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name}: expected at least 1 row and one column, got shape {tuple(x.shape)}")
    return check_finite(name, x)


def check_targets(y: Tensor, num_rows: int, name: str = "y") -> Tensor:
    """Check targets of shape ``... x P`` against the number of rows of their inputs."""
    check_floating(name, y)
    if y.dim() < 1 or y.shape[-1] != num_rows:
        raise ValueError(f"{name}: expected shape (..., {num_rows}), got {tuple(y.shape)}")
    return check_finite(name, y)


def check_kernel_and_targets(kernel_matrix: Tensor, targets: Tensor) -> None:
    """Check a kernel matrix ``... x P x P`` and targets ``... x P`` that belong together."""
    check_floating("kernel matrix", kernel_matrix)
    if kernel_matrix.dim() < 2 or kernel_matrix.shape[-1] != kernel_matrix.shape[-2] or kernel_matrix.shape[-1] == 0:
        raise ValueError(f"kernel matrix: expected shape (..., P, P) with P >= 1, got {tuple(kernel_matrix.shape)}")
    check_floating("targets", targets)
    check_same_kind(kernel_matrix=kernel_matrix, targets=targets)
    size = kernel_matrix.shape[-1]
    check_targets(targets, size, "targets")
    if size > 1 and kernel_matrix.dim() == 2 and targets.shape == (size, size):
        raise ValueError(
            f"targets: expected shape ({size},), got {(size, size)}, which reads as {size} problems or as {size} "
            f"outputs; give the kernel matrix a batch dimension for {size} problems"
        )
    largest = float(targets.detach().abs().max())
    if largest > 1e100:
        raise ValueError(
            f"targets: expected numbers up to 1e100, got {largest:.3g}, whose square overflows; rescale them"
        )
    check_finite("kernel matrix", kernel_matrix)


def as_width(width: float | Sequence[float] | Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return widths as a tensor ``... x L``; every width must be positive, ``math.inf`` is allowed.

    A number becomes shape ``(1,)``, a sequence of L numbers shape ``(L,)``.
    """
    if isinstance(width, bool) or isinstance(width, str):
        raise TypeError(f"width: expected a positive number, a sequence or a tensor, got {width!r}")
    if dtype is None:
        floating = isinstance(width, Tensor) and width.is_floating_point()
        dtype = width.dtype if floating else torch.get_default_dtype()  # type: ignore[union-attr]
    value = torch.as_tensor(width, dtype=dtype).detach().clone()
    value = value.reshape(1) if value.dim() == 0 else value
    if value.numel() == 0:
        raise ValueError("width: expected one number per hidden layer, got none")
    if bool((torch.isnan(value) | (value <= 0)).any()):
        raise ValueError(f"width: expected positive numbers (math.inf for an infinite layer), got {value.tolist()}")
    return value


def as_temperature(temperature: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the temperature T >= 0 as a tensor."""
    value = torch.as_tensor(temperature, dtype=dtype, device=device)
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError(f"temperature: expected finite numbers >= 0, got {value.tolist()}")
    return value


def check_positive_definite(name: str, value: Any, size: int, device: torch.device | None = None) -> Tensor:
    """Return a symmetric positive definite matrix ``size x size`` in float64."""
    matrix = torch.as_tensor(value, dtype=torch.float64, device=device)
    if tuple(matrix.shape) != (size, size):
        raise ValueError(f"{name}: expected shape ({size}, {size}), got {tuple(matrix.shape)}")
    finite = bool(torch.isfinite(matrix).all()) and torch.allclose(matrix, matrix.mT)
    if not finite or not bool((torch.linalg.eigvalsh(matrix) > 0).all()):
        raise ValueError(f"{name}: expected a symmetric positive definite matrix, got {matrix.tolist()}")
    return matrix


def positive_number(name: str, value: float, allow_zero: bool = False) -> float:
    """Return ``value`` as a float if it is a finite number above (or at) zero."""
    number = float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not allow_zero):
        raise ValueError(f"{name}: expected a finite number {'>=' if allow_zero else '>'} 0, got {value!r}")
    return number


def as_values(name: str, value: float | Sequence[float] | Tensor, size: int, allow_zero: bool = False) -> Tensor:
    """Return one or ``size`` finite positive numbers (or a tensor ``... x size``) as a tensor ``... x size``."""
    values = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
    values = values.reshape(1) if values.dim() == 0 else values
    if values.shape[-1] not in (1, size):
        raise ValueError(f"{name}: expected 1 or {size} numbers, got shape {tuple(values.shape)}")
    if not bool((torch.isfinite(values) & ((values >= 0) if allow_zero else (values > 0))).all()):
        raise ValueError(f"{name}: expected finite numbers {'>=' if allow_zero else '>'} 0, got {values.tolist()}")
    return values.expand(*values.shape[:-1], size)


def whole_number(name: str, value: Any, hint: str = "", least: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number >= ``least``."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not least <= value < math.inf or value != int(value):
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}{hint}")
    return int(value)
