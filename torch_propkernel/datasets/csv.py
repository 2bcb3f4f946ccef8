"""Reading a numeric CSV file into tensors, with errors that name the line and the column."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_csv"]

_MISSING = {"", "?", "na", "n/a", "nan", "null", "none", "-", "."}


@dataclass(frozen=True, eq=False)
class CsvTable:
    """A numeric table as it was read.

    Attributes:
        path: The file.
        names: Of the columns; None without a header.
        values: ``P x C``, float64.
        lines: Line in the file of each row.
        incomplete: Lines that were left out because a value is missing.
    """

    path: Path
    names: tuple[str, ...] | None
    values: Tensor
    lines: tuple[int, ...]
    incomplete: tuple[int, ...]

    def index(self, column: str | int | None) -> int:
        """Return the index of the target column: a name (needs a header) or an index; the last one if None.

        Raises:
            ValueError: No such column, or several of that name.
        """
        size = self.values.shape[-1]
        if column is None:
            return size - 1
        if isinstance(column, str):
            if self.names is None:
                raise ValueError(
                    f"{self.path}: expected a column index as target (the file has no header), got {column!r}"
                )
            if self.names.count(column) != 1:
                raise ValueError(
                    f"{self.path}: expected a target that names one column of {list(self.names)}, got {column!r}, "
                    f"which names {self.names.count(column)}"
                )
            return self.names.index(column)
        if not -size <= column < size:
            raise ValueError(f"{self.path}: expected a target index from {-size} to {size - 1}, got {column}")
        return column % size


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
    table = read_csv(path, delimiter=delimiter, min_rows=2, min_columns=2)
    column = table.index(target)
    rest = [index for index in range(table.values.shape[-1]) if index != column]
    return table.values[:, rest], table.values[:, column].clone()


def read_csv(
    path: str | os.PathLike[str],
    *,
    delimiter: str = ",",
    header: bool | None = None,
    drop_missing: bool = False,
    min_rows: int = 1,
    min_columns: int = 1,
) -> CsvTable:
    """Read a numeric table; :func:`load_csv` says what is refused.

    Args:
        path: The file.
        delimiter: The character between columns.
        header: Whether the first row holds names; if None, it does if none of its cells is a number.
        drop_missing: Leave out rows with a missing value instead of refusing them.
        min_rows: How many rows there must be.
        min_columns: How many columns there must be.
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(_read_text(path)), delimiter=delimiter)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError(f"{path}: expected a numeric table, got an empty file")
    names = _header(path, rows[0], header)
    body = rows[1:] if names else rows
    num_columns = len(rows[0][1])
    if num_columns < min_columns:
        raise ValueError(
            f"{path}: expected at least 2 columns (inputs and a target) separated by {delimiter!r}, "
            f"got 1: {rows[0][1][0]!r}"
        )
    if len(body) < min_rows:
        raise ValueError(f"{path}: expected at least {min_rows} rows of numbers, got {len(body)}")
    for line, row in body:
        if len(row) != num_columns:
            raise ValueError(f"{path}, line {line}: expected {num_columns} columns, got {len(row)}")
    _refuse_texts(path, body, names, rows[0] if names is None else None)
    table = np.array([[float(cell) if _is_number(cell) else math.nan for cell in row] for _, row in body])
    table = table.reshape(len(body), num_columns)
    missing = np.isnan(table)
    if np.isinf(table).any() or (missing.any() and not drop_missing):
        row, column = np.argwhere(np.isinf(table) if np.isinf(table).any() else missing)[0]
        line, cells = body[row]
        what = f"{cells[column]!r}"
        if missing[row, column]:
            count = int(missing.any(1).sum())
            what = (
                f"a missing value ({what}); drop or impute such rows first ({count} of {len(body)} rows have missing "
                f"values; --drop-missing leaves them out on the command line)"
            )
        raise ValueError(f"{path}, line {line}, {_column(column, names)}: expected a finite number, got {what}")
    keep = ~missing.any(1)
    if keep.sum() < min_rows:
        raise ValueError(f"{path}: expected at least {min_rows} rows without missing values, got {int(keep.sum())}")
    lines = [line for line, _ in body]
    return CsvTable(
        path,
        None if names is None else tuple(names),
        torch.from_numpy(table[keep]),
        tuple(line for line, kept in zip(lines, keep, strict=True) if kept),
        tuple(line for line, kept in zip(lines, keep, strict=True) if not kept),
    )


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


def _header(path: Path, first: tuple[int, list[str]], header: bool | None) -> list[str] | None:
    """Return the column names, or None if the first row holds data."""
    line, row = first
    if header is False or (header is None and any(_is_number(cell) for cell in row)):
        return None
    if "" in row:
        raise ValueError(
            f"{path}, line {line}: expected a name for every column of the header, got none for column "
            f"{row.index('') + 1} (an index column? write the file without it)"
        )
    return row


def _column(index: int, names: list[str] | None) -> str:
    return f"column {index + 1}" + (f" ({names[index]!r})" if names else "")


def _refuse_texts(
    path: Path, body: list[tuple[int, list[str]]], names: list[str] | None, first: tuple[int, list[str]] | None
) -> None:
    """Raise if a cell is neither a number nor missing; say which columns are categorical and how to encode them."""
    texts: dict[int, list[tuple[int, str]]] = {}
    for line, row in body:
        for index, cell in enumerate(row):
            if not _is_number(cell) and cell.lower() not in _MISSING:
                texts.setdefault(index, []).append((line, cell))
    if not texts:
        return
    index = min(texts, key=lambda column: texts[column][0])
    line, cell = texts[index][0]
    message = (
        f"{path}, line {line}, {_column(index, names)}: expected a finite number, got {cell!r}, which is not a number"
    )
    if first is not None and line == first[0]:
        message += "; if this line is a header: header=True (--header yes on the command line)"
    encode = []
    for column, cells in sorted(texts.items()):
        kinds = sorted({text for _, text in cells})
        shown = ", ".join(repr(kind) for kind in kinds[:4]) + (", ..." if len(kinds) > 4 else "")
        encode.append(f"{_column(column, names)}: {len(cells)} of {len(body)} cells are texts ({shown})")
    columns = [names[column] for column in sorted(texts)] if names else sorted(texts)
    raise ValueError(
        f"{message}; encode categorical columns first. {'; '.join(encode)}. One column of 0 and 1 for each value: "
        f"pandas.get_dummies(table, columns={columns}, dtype=float)"
    )
