"""Reading a numeric CSV file into tensors, with errors that name the line and the column."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_csv"]

_MISSING = {"", "?", "na", "n/a", "nan", "null", "none", "-", "."}


def load_csv(
    path: str | os.PathLike[str], target: str | int | None = None, *, delimiter: str = ","
) -> tuple[Tensor, Tensor]:
    r"""Read inputs and targets from a numeric CSV file.

    The first row is a header if none of its cells is a number. Nothing is centered, scaled, encoded or filled in: a
    missing value or a cell that is not a finite number is an error, because dropping a row or guessing a code would
    change the data silently. The numbers are read in float64.

    Args:
        path: the file, plain or compressed with gzip, in UTF-8.
        target: name (needs a header) or index (may be negative) of the target column; the last one by default.
        delimiter: the character between columns.

    Returns:
        ``(x, y)``, float64 tensors of shapes ``P x N_0`` and ``P``; the columns of ``x`` keep their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: fewer than two rows or columns, rows of different length, missing values, cells that are not finite
            numbers, or no such target column.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "table.csv")
        ...     _ = path.write_text("a,b,price\n1,2,10\n3,4,20\n")
        ...     x, y = load_csv(path, target="price")
        >>> x.tolist(), y.tolist()
        ([[1.0, 2.0], [3.0, 4.0]], [10.0, 20.0])
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(_read_text(path)), delimiter=delimiter)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError(f"{path}: expected a numeric table, got an empty file")
    header = _header(path, rows[0])
    body = rows[1:] if header else rows
    num_columns = len(rows[0][1])
    if num_columns < 2:
        raise ValueError(
            f"{path}: expected at least 2 columns (inputs and a target) separated by {delimiter!r}, "
            f"got 1: {rows[0][1][0]!r}"
        )
    if len(body) < 2:
        raise ValueError(f"{path}: expected at least 2 rows of numbers, got {len(body)}")
    table = np.array([_numbers(path, line, row, header, num_columns) for line, row in body])
    column = _target_index(path, target, header, num_columns)
    x, y = np.delete(table, column, axis=1), table[:, column].copy()
    return torch.from_numpy(x), torch.from_numpy(y)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text in UTF-8, got byte {data[error.start]:#04x} at {error.start}"
        ) from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _header(path: Path, first: tuple[int, list[str]]) -> list[str] | None:
    """Return the column names, or None if the first row holds data."""
    line, row = first
    numeric = [_is_number(cell) for cell in row]
    if any(numeric):
        return None
    if "" in row:
        raise ValueError(
            f"{path}, line {line}: expected a name for every column of the header, got none for column "
            f"{row.index('') + 1} (an index column? write the file without it)"
        )
    return row


def _numbers(path: Path, line: int, row: list[str], header: list[str] | None, num_columns: int) -> list[float]:
    if len(row) != num_columns:
        raise ValueError(f"{path}, line {line}: expected {num_columns} columns, got {len(row)}")
    values = []
    for index, cell in enumerate(row):
        value = float(cell) if _is_number(cell) else math.nan
        if not math.isfinite(value):
            name = f"column {index + 1}" + (f" ({header[index]!r})" if header else "")
            if cell.lower() in _MISSING:
                what = f"a missing value ({cell!r}); drop or impute such rows first"
            elif _is_number(cell):
                what = f"{cell!r}"
            else:
                what = f"{cell!r}, which is not a number; encode categorical columns first"
            raise ValueError(f"{path}, line {line}, {name}: expected a finite number, got {what}")
        values.append(value)
    return values


def _target_index(path: Path, target: str | int | None, header: list[str] | None, num_columns: int) -> int:
    if target is None:
        return num_columns - 1
    if isinstance(target, str):
        if header is None:
            raise ValueError(f"{path}: expected a column index as target (the file has no header), got {target!r}")
        if header.count(target) != 1:
            raise ValueError(
                f"{path}: expected a target that names one column of {header}, got {target!r}, "
                f"which names {header.count(target)}"
            )
        return header.index(target)
    if not -num_columns <= target < num_columns:
        raise ValueError(f"{path}: expected a target index from {-num_columns} to {num_columns - 1}, got {target}")
    return target % num_columns
