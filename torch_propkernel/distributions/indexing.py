"""Indices over batch and event dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def split_index(index: Any, num_batch: int) -> tuple[tuple[Any, ...], Any]:
    """Return the entries of an index for the batch dimensions and the one for the event dimension."""
    index = index if isinstance(index, tuple) else (index,)
    if any(entry is None for entry in index):
        raise IndexError(f"index: expected integers, slices, tensors or an ellipsis, got {index}; use `expand`")
    gaps = [i for i, entry in enumerate(index) if entry is Ellipsis]
    missing = num_batch + 1 - len(index) + len(gaps)
    if len(gaps) > 1 or missing < 0:
        raise IndexError(f"index: expected at most {num_batch + 1} entries and one ellipsis, got {index}")
    at = gaps[0] if gaps else len(index)
    index = index[:at] + (slice(None),) * missing + index[at + 1 :]
    return index[:-1], index[-1]


def events(index: Any, size: int) -> Tensor:
    """Return the dimensions that an integer, a slice, a mask or a sequence of integers names, as a vector."""
    return torch.arange(size)[index.cpu() if isinstance(index, Tensor) else index].reshape(-1)
