"""What the benchmarks on UCI sets share: their rows, finished fits in JSON lines, paired statistics, Markdown tables.

A folder NAME holds data.csv.gz (no header, the last column is the target) and test_mask.csv.gz (a column for each
split, test rows are 1), as the splits of github.com/treforevans/uci_datasets can be exported.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Cut(NamedTuple):
    """What is used of a set: all rows unless limited; hyperparameters are fitted on the first ``fit`` of them."""

    train: int = 10**9
    test: int = 10**9
    fit: int = 10**9


def default_folder() -> Path:
    """The folder of the sets: $PROPKERNEL_DATA, or uci in it, or beside the repository."""
    folder = Path(os.environ.get("PROPKERNEL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    return folder / "uci" if (folder / "uci").is_dir() else folder


def load(folder: Path, split: int, cut: Cut) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and targets of one split, train then test, in the data's units, cut down at random."""
    data = np.loadtxt(folder / "data.csv.gz", delimiter=",")
    test = np.loadtxt(folder / "test_mask.csv.gz", delimiter=",")[:, split] == 1
    rng = np.random.default_rng(split)
    rows = [rng.permutation(np.flatnonzero(mask))[:size] for mask, size in ((~test, cut.train), (test, cut.test))]
    train, test = (torch.as_tensor(data[chosen]) for chosen in rows)
    return train[:, :-1], train[:, -1], test[:, :-1], test[:, -1]


class Standardized(NamedTuple):
    """Data in the units of the training rows: zero mean, unit deviation; a constant column stays zero there."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    unit: float  # of the targets


def standardize(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Standardized:
    """Shift and scale inputs and targets by the training rows."""
    shift, unit = x.mean(0), x.std(0)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    center, size = float(y.mean()), float(y.std())
    return Standardized(
        (x - shift) / unit, (y - center) / size, (test_x - shift) / unit, (test_y - center) / size, size
    )


@contextmanager
def double_precision() -> Iterator[None]:
    """Make float64 the default dtype inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; none if it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one record to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those entries that are one number, as JSON takes it."""
    single = {k: v for k, v in values.items() if not isinstance(v, Tensor) or v.numel() == 1}
    return {k: float(v) for k, v in single.items() if isinstance(v, Tensor | bool | int | float)}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over splits; NaN from a single one."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def show(values: Sequence[float], digits: str) -> str:
    """Mean +- standard error, as text."""
    mean, error = mean_and_error(values)
    return f"{mean:{digits}} +- {error:.2g}" if math.isfinite(error) else f"{mean:{digits}}"


def verdict(differences: Sequence[float], lower: str = "better", higher: str = "worse") -> str:
    """Lower, higher, or a tie (less than two standard errors); undecided with fewer than four splits."""
    if len(differences) < 4:
        return "undecided"
    mean, error = mean_and_error(differences)
    return "tie" if abs(mean) < 2.0 * error or mean == 0.0 else lower if mean < 0 else higher


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]


def versions() -> str:
    """Versions of the package and of what it stands on."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch_propkernel", "torch", "gpytorch", "scipy", "numpy"))
