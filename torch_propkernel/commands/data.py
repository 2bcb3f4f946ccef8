"""From a table to standardized training and held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets import YACHT, load_yacht
from ..datasets.csv import read_csv
from ..saving import Normalization
from ..theories import ErrorEstimate


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        name: Title or path.
        target: What the target is.
        x: Inputs, ``P x d``.
        y: Targets, ``P``.
        description: Further lines for the reader: source, license.
        input_names: Names of the inputs, or None.
        lines: Line of each row in the file.
        incomplete: Lines that were left out because a value is missing.
    """

    name: str
    target: str
    x: Tensor
    y: Tensor
    description: tuple[str, ...] = ()
    input_names: tuple[str, ...] | None = None
    lines: tuple[int, ...] = ()
    incomplete: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Training and held-out rows; inputs and targets have mean zero and variance one on the training rows.

    Attributes:
        x: Training inputs, ``P x d``.
        y: Training targets, ``P``.
        test_x: Held-out inputs, ``m x d``; None if nothing is held out.
        test_y: Held-out targets, ``m``.
        units: From the table's units to these.
        kept: Indices of input columns that vary on the training rows.
        dropped: Indices of those that do not.
        train: Indices of the training rows.
        test: Indices of the held-out rows.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor | None
    test_y: Tensor | None
    units: Normalization
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    train: Tensor
    test: Tensor

    @property
    def shift(self) -> float:
        """Mean of the training targets, in their own units."""
        return float(self.units.target_mean)

    @property
    def scale(self) -> float:
        """Standard deviation of the training targets, in their own units."""
        return float(self.units.target_scale)

    def in_target_units(self, error: ErrorEstimate) -> ErrorEstimate:
        """Return errors of standardized targets in the targets' own units."""
        wide = error.infinite_width
        return ErrorEstimate(
            self.shift + self.scale * error.mean,
            self.scale**2 * error.bias,
            self.scale**2 * error.variance,
            None if wide is None else self.in_target_units(wide),
        )


def load_table(path: Path | None, target: str | None, header: bool | None = None, drop_missing: bool = False) -> Table:
    """Read a CSV file, or the yacht data that ship with the package if ``path`` is None.

    Args:
        path: The file.
        target: Name or index (from 0; negative ones count from the end) of the target column; the last one if None.
        header: Whether the first row holds names; if None, it does if none of its cells is a number.
        drop_missing: Leave out rows with missing values.

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
        return Table(YACHT.name, YACHT.target_name, x, y, lines, None, tuple(range(1, len(y) + 1)))
    table = read_csv(path, header=header, drop_missing=drop_missing, min_rows=2, min_columns=2)
    named = table.names is not None and target in table.names  # a header that was asked for may hold numbers
    try:
        column: str | int | None = target if named or target is None else int(target)
    except ValueError:
        column = target
    index = table.index(column)
    inputs = [other for other in range(table.values.shape[-1]) if other != index]
    names = None if table.names is None else tuple(table.names[other] for other in inputs)
    what = "last column" if target is None else f"column {target}"
    values = table.values
    return Table(str(path), what, values[:, inputs], values[:, index], (), names, table.lines, table.incomplete)


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
    units = Normalization.of(x[:, ~constant], y)
    return Rows(
        units.to_model(x[:, ~constant]),
        units.targets_to_model(y),
        units.to_model(table.x[test][:, ~constant]) if num_test else None,
        units.targets_to_model(table.y[test]) if num_test else None,
        units,
        tuple(torch.nonzero(~constant).flatten().tolist()),
        tuple(torch.nonzero(constant).flatten().tolist()),
        train,
        test,
    )


def describe_data(table: Table, rows: Rows, seed: int) -> list[str]:
    """Return lines about the data for the reader."""
    lines = [f"data: {table.name}, {len(table.y)} rows, {table.x.shape[-1]} inputs; target: {table.target}"]
    lines += [f"  {line}" for line in table.description]
    if table.incomplete:
        shown = ", ".join(map(str, table.incomplete[:8])) + (", ..." if len(table.incomplete) > 8 else "")
        lines.append(f"  left out: {len(table.incomplete)} rows with missing values (lines {shown})")
    if rows.dropped:
        lines.append(f"  dropped: input columns {list(rows.dropped)} (from 0), constant on the training rows")
    lines += [
        f"  split: {len(rows.train)} training rows, {len(rows.test)} held out at random (seed {seed})",
        f"  standardized on the training rows, inputs and target (mean {rows.shift:.5g}, standard deviation "
        f"{rows.scale:.5g})",
    ]
    return lines


def data_record(table: Table, rows: Rows, seed: int) -> dict[str, Any]:
    """Return the numbers about the data."""
    return {
        "name": table.name,
        "target": table.target,
        "description": list(table.description),
        "rows": len(table.y),
        "columns": table.x.shape[-1],
        "dropped_columns": list(rows.dropped),
        "dropped_lines": list(table.incomplete),
        "training_rows": len(rows.train),
        "held_out_rows": len(rows.test),
        "seed": seed,
        "target_mean": rows.shift,
        "target_standard_deviation": rows.scale,
    }
