"""From a table to standardized training and held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..datasets import YACHT, load_csv, load_yacht
from ..generalization import ErrorEstimate


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        name: Title or path.
        target: What the target is.
        x: Inputs, ``P x d``.
        y: Targets, ``P``.
        description: Further lines for the reader: source, license.
    """

    name: str
    target: str
    x: Tensor
    y: Tensor
    description: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Training and held-out rows; inputs and targets have mean zero and variance one on the training rows.

    Attributes:
        x: Training inputs, ``P x d``.
        y: Training targets, ``P``.
        test_x: Held-out inputs, ``m x d``; None if nothing is held out.
        test_y: Held-out targets, ``m``.
        shift: Mean of the training targets, in their own units.
        scale: Standard deviation of the training targets, in their own units.
        dropped: Indices of input columns that are constant on the training rows.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor | None
    test_y: Tensor | None
    shift: float
    scale: float
    dropped: tuple[int, ...]

    def in_target_units(self, error: ErrorEstimate) -> ErrorEstimate:
        """Return errors of standardized targets in the targets' own units."""
        wide = error.infinite_width
        return ErrorEstimate(
            self.shift + self.scale * error.mean,
            self.scale**2 * error.bias,
            self.scale**2 * error.variance,
            None if wide is None else self.in_target_units(wide),
        )


def load_table(path: Path | None, target: str | None) -> Table:
    """Read a CSV file, or the yacht data that ship with the package if ``path`` is None.

    Args:
        path: The file.
        target: Name or index (from 0; negative ones count from the end) of the target column; the last one if None.

    Raises:
        ValueError, OSError: As :func:`torch_propkernel.datasets.load_csv`; a target column for the yacht data.
    """
    if path is None:
        if target is not None:
            raise ValueError(f"--target: expected it together with a DATA.csv only, got {target!r} without a file")
        x, y = load_yacht()
        lines = (
            "the target is the natural log of the published resistance, centered: no error here compares with one for "
            "the raw resistance",
            f"source: {YACHT.source}, doi:{YACHT.doi}; license {YACHT.license}",
        )
        return Table(YACHT.name, YACHT.target_name, x, y, lines)
    try:  # the header of a file has no number in it, so a number is always an index
        column: str | int | None = None if target is None else int(target)
    except ValueError:
        column = target
    x, y = load_csv(path, column)
    return Table(str(path), "last column" if target is None else f"column {target}", x, y)


def split_and_standardize(table: Table, test_fraction: float, seed: int) -> Rows:
    """Hold out a random part of the rows and standardize both parts with the training rows' means and deviations.

    Raises:
        ValueError: A fraction outside [0, 1), fewer than two training rows, a constant target, or constant inputs only.
    """
    if not (math.isfinite(test_fraction) and 0 <= test_fraction < 1):
        raise ValueError(f"--test-fraction: expected a number from 0 to below 1, got {test_fraction}")
    size = len(table.y)
    num_test = round(test_fraction * size)
    if size - num_test < 2:
        raise ValueError(f"--test-fraction: expected at least 2 training rows, got {size - num_test} of {size}")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    test, train = order[:num_test].sort().values, order[num_test:].sort().values
    x, y = table.x[train], table.y[train]
    if bool((y == y[0]).all()):
        raise ValueError(
            f"target ({table.target}): expected at least two values, got {y[0].item():g} in all training rows"
        )
    constant = (x == x[0]).all(0)
    if bool(constant.all()):
        raise ValueError(
            "inputs: expected a column that varies, got only columns that are constant on the training rows"
        )
    center, spread = x[:, ~constant].mean(0), x[:, ~constant].std(0, correction=0)
    shift, scale = y.mean(), y.std(correction=0)
    return Rows(
        (x[:, ~constant] - center) / spread,
        (y - shift) / scale,
        (table.x[test][:, ~constant] - center) / spread if num_test else None,
        (table.y[test] - shift) / scale if num_test else None,
        float(shift),
        float(scale),
        tuple(torch.nonzero(constant).flatten().tolist()),
    )
