"""From a table to standardized training and held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..datasets import YACHT, load_yacht
from ..datasets.csv import read_csv
from ..inference import ErrorEstimate, Normalization


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
        saved: Indices of the rows of a saved model: all, or as many as the limit allows, training rows first.
        unused: How many more training rows there were.
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
    saved: Tensor
    unused: int = 0

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
        units, wide = self.units.targets, error.infinite_width
        return ErrorEstimate(
            units.value(error.mean),
            units.variance(error.bias),
            units.variance(error.variance),
            None if wide is None else self.in_target_units(wide),
            log_density=None if error.log_density is None else units.log_density(error.log_density),
        )


def load_table(path: Path | None, target: str | None, *, drop: Sequence[str] = (), **reading: Any) -> Table:
    """Read a CSV file, or the yacht data that ship with the package if ``path`` is None.

    Args:
        path: The file.
        target: Name or index (from 0; negative ones count from the end) of the target column; the last one if None.
        drop: Names or indices of columns to leave out.
        reading: More arguments of :func:`torch_propkernel.datasets.csv.read_csv`.

    Raises:
        ValueError, OSError: As :func:`torch_propkernel.datasets.load_csv`; columns that are named for the yacht data.
    """
    if path is None:
        for option, given in (("--target", target), ("--drop", ",".join(drop))):
            if given:
                raise ValueError(f"{option}: expected it together with a DATA.csv only, got {given!r} without a file")
        x, y = load_yacht()
        lines = (
            "the target is the natural log of the published resistance, centered: no error here compares with one for "
            "the raw resistance",
            f"source: {YACHT.source}, doi:{YACHT.doi}; license {YACHT.license}",
        )
        return Table(YACHT.name, YACHT.target_name, x, y, lines, None, tuple(range(1, len(y) + 1)))
    table = read_csv(path, target=target, drop=drop, **reading, min_rows=2, min_columns=2)
    inputs = [other for other in range(table.values.shape[-1]) if other != table.target]
    names = None if table.names is None else tuple(table.names[other] for other in inputs)
    what = "last column" if target is None else f"column {target}"
    left_out = (f"left out: columns {', '.join(drop)} (--drop)",) if drop else ()
    x, y = table.values[:, inputs], table.values[:, table.target]
    return Table(str(path), what, x, y, left_out, names, table.lines, table.incomplete)


def split_and_standardize(table: Table, test_fraction: float, seed: int, max_rows: int | None = None) -> Rows:
    """Hold out a random part of the rows and standardize both parts with the training rows' means and deviations.

    Args:
        table: The table.
        test_fraction: Share of rows to hold out.
        seed: Of the random order of the rows.
        max_rows: How many of the other rows to train on at most, a random part of them; all if None.

    Raises:
        ValueError: A fraction outside [0, 1), fewer than two training rows, a constant target, or constant inputs only.
    """
    if not (math.isfinite(test_fraction) and 0 <= test_fraction < 1):
        raise ValueError(f"--test-fraction: expected a number from 0 to below 1, got {test_fraction}")
    size = len(table.y)
    num_test = round(test_fraction * size)
    if size - num_test < 2:
        raise ValueError(f"--test-fraction: expected at least 2 training rows, got {size - num_test} of {size}")
    if max_rows is not None and max_rows < 2:
        raise ValueError(f"--max-rows: expected at least 2, got {max_rows}")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    test, train = order[:num_test].sort().values, order[num_test:][:max_rows].sort().values
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
        units.targets.to_model(y),
        units.to_model(table.x[test][:, ~constant]) if num_test else None,
        units.targets.to_model(table.y[test]) if num_test else None,
        units,
        tuple(torch.nonzero(~constant).flatten().tolist()),
        tuple(torch.nonzero(constant).flatten().tolist()),
        train,
        test,
        torch.cat([order[num_test:], order[:num_test]])[:max_rows].sort().values,
        size - num_test - len(train),
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
        *(
            [f"  not used: {rows.unused} more training rows (--max-rows; a random subset, seed {seed})"]
            * (rows.unused > 0)
        ),
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
        "unused_rows": rows.unused,
        "seed": seed,
        "target_mean": rows.shift,
        "target_standard_deviation": rows.scale,
    }
