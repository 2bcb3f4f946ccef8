"""Reading a numeric CSV file into tensors, with errors that name the line, the column and the cell."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cells import MISSING, NUMBER, OMIT, is_name, remedy

__all__ = ["load_csv"]


@dataclass(frozen=True, eq=False)
class CsvTable:
    """A numeric table as it was read, without the columns that were left out.

    Attributes:
        path: The file.
        names: Of the columns; None without a header.
        values: ``P x C``, float64.
        target: Index of the target among these columns.
        lines: Line in the file of each row.
        incomplete: Lines that were left out because a value is missing.
    """

    path: Path
    names: tuple[str, ...] | None
    values: Tensor
    target: int
    lines: tuple[int, ...]
    incomplete: tuple[int, ...]


def load_csv(
    path: str | os.PathLike[str],
    target: str | int | None = None,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    drop: Sequence[str | int] = (),
) -> tuple[Tensor, Tensor]:
    r"""Read inputs and targets from a numeric CSV file.

    Nothing is centered, scaled, encoded or filled in: a missing value or a cell that is not a finite number is an
    error, because dropping a row or guessing a code would change the data silently. The numbers are read in float64;
    whole numbers that it cannot hold, such as long identifiers, are errors too.

    Args:
        path: the file, plain or compressed with gzip, in UTF-8.
        target: name or index (from 0, may be negative) of the target column; the last one that is not left out by
            default.
        delimiter: the character between columns, a space for any number of spaces and tabs; by default what the file
            seems to use: a tab, a semicolon, a comma or spaces.
        header: whether the first row holds names; by default it does if none of its cells is a number, and a row like
            0, 1, 2, which may be either, is an error.
        drop: names or indices of columns to leave out, whatever they hold.

    Returns:
        ``(x, y)``, float64 tensors of shapes ``P x N_0`` and ``P``; the columns of ``x`` keep their order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: fewer than two rows or columns, rows of different length, missing values, cells that are not finite
            numbers, or no such column.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "table.csv")
        ...     _ = path.write_text("day;a;price\nMonday;2;10\nFriday;4;20\n")
        ...     x, y = load_csv(path, target="price", drop=["day"])
        >>> x.tolist(), y.tolist()
        ([[2.0], [4.0]], [10.0, 20.0])
    """
    table = read_csv(path, target=target, delimiter=delimiter, header=header, drop=drop, min_rows=2, min_columns=2)
    rest = [index for index in range(table.values.shape[-1]) if index != table.target]
    return table.values[:, rest], table.values[:, table.target].clone()


def read_csv(
    path: str | os.PathLike[str],
    *,
    target: str | int | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    drop: Sequence[str | int] = (),
    only: Sequence[str] | None = None,
    drop_missing: bool = False,
    min_rows: int = 1,
    min_columns: int = 1,
) -> CsvTable:
    """Read a numeric table; :func:`load_csv` says what is refused.

    Args:
        path: The file.
        target: Of :func:`load_csv`.
        delimiter: Of :func:`load_csv`.
        header: Of :func:`load_csv`.
        drop: Of :func:`load_csv`.
        only: Names of the columns to read, if the file has a header with all of them.
        drop_missing: Leave out rows with a missing value instead of refusing them.
        min_rows: How many rows there must be.
        min_columns: How many columns there must be.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        delimiter = delimiter or _delimiter(text)
        rows = list(_split(text, delimiter))
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table, got {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected a numeric table, got an empty file")
    size = len(rows[0][1])
    names = rows[0][1] if _is_header(path, *rows[0], header) else None
    body = rows if names is None else rows[1:]
    dropped = {_index(path, names, size, column, "column to drop") for column in drop}
    if only is not None and names is not None and all(names.count(name) == 1 for name in only):
        dropped |= {index for index, name in enumerate(names) if name not in only}
    kept = [index for index in range(size) if index not in dropped]
    if len(kept) < min_columns:
        got = f"1: {rows[0][1][0]!r}" if size == 1 else f"{len(kept)} of {size} that are not left out"
        raise ValueError(f"{path}: expected at least {min_columns} columns separated by {delimiter!r}, got {got}")
    for line, row in body:
        if len(row) != size:
            raise ValueError(f"{path}, line {line}: expected {size} columns separated by {delimiter!r}, got {len(row)}")
    place = kept[-1] if target is None else _index(path, names, size, target, "target")
    if place not in kept:
        raise ValueError(f"{path}: expected a target that is not left out, got {target!r}")
    for index in kept:
        if names is not None and not names[index]:
            number = index - size if str(index) in names else index
            raise ValueError(
                f"{path}, line {rows[0][0]}: expected a name for every column of the header, got none for column "
                f"{index + 1}; an index column? leave it out: --drop={number}, or drop=[{number}] in Python"
            )
    part = _Part([line for line, _ in body], [[row[index] for index in kept] for _, row in body], kept, names)
    table = part.numbers(path, top=rows[0][0])
    missing = np.isnan(table)
    complete = ~missing.any(1)
    if missing.any() and not drop_missing:
        row, column = np.argwhere(missing)[0]
        raise ValueError(
            f"{path}, {part.place(row, column)}: expected a finite number, got a missing value "
            f"({part.cells[row][column]!r}); drop or impute such rows first ({(~complete).sum()} of {len(body)} rows "
            "have missing values; --drop-missing leaves them out on the command line)"
        )
    if complete.sum() < min_rows:
        what = "without missing values" if len(body) >= min_rows else "of numbers"
        raise ValueError(f"{path}: expected at least {min_rows} rows {what}, got {complete.sum()}")
    return CsvTable(
        path,
        None if names is None else tuple(names[index] for index in kept),
        torch.from_numpy(table[complete]),
        kept.index(place),
        tuple(compress(part.lines, complete)),
        tuple(compress(part.lines, ~complete)),
    )


@dataclass(frozen=True)
class _Part:
    """The columns that are read, as texts: lines of the rows, cells, indices in the file, names of all columns."""

    lines: list[int]
    cells: list[list[str]]
    columns: list[int]
    names: list[str] | None

    def title(self, column: int) -> str:
        index = self.columns[column]
        return f"column {index + 1}" + (f" ({self.names[index]!r})" if self.names else "")

    def place(self, row: int, column: int) -> str:
        return f"line {self.lines[row]}, {self.title(column)}"

    def numbers(self, path: Path, top: int) -> np.ndarray:
        """Return the numbers, NaN where they are missing; ``top`` is the file's first line with anything in it.

        Raises:
            ValueError: A cell is neither a number that can be used nor missing; the message says what to do.
        """
        table = np.array([[float(cell) if NUMBER.fullmatch(cell) else math.nan for cell in row] for row in self.cells])
        table = table.reshape(len(self.cells), len(self.columns))
        texts: dict[int, list[str]] = {}
        first = ""
        for row, column in np.argwhere(np.isnan(table) | (abs(table) > 2.0**53)).tolist():
            cell = self.cells[row][column]
            todo = remedy(cell)
            if cell.lower() in MISSING or (not todo and not math.isnan(table[row, column])):
                continue
            first = first or f"{path}, {self.place(row, column)}: expected a finite number, got {cell!r}, "
            if todo and not texts:
                raise ValueError(first + todo)
            if not texts:
                first += "which is not a number; "
                if self.lines[row] == top:
                    first += "if this line is a header: header=True (--header yes on the command line); "
            if not todo:
                texts.setdefault(column, []).append(cell)
        if not texts:
            return table
        found = []
        for column, each in sorted(texts.items()):
            kinds = sorted(set(each))
            shown = ", ".join(map(repr, kinds[:4])) + (", ..." if len(kinds) > 4 else "")
            found.append(f"{self.title(column)}: {len(each)} of {len(self.cells)} cells are texts ({shown})")
        columns = [self.names[self.columns[column]] if self.names else self.columns[column] for column in sorted(texts)]
        raise ValueError(
            f"{first}encode categorical columns first, or {OMIT}. {'; '.join(found)}. One column of 0 and 1 for each "
            f"value: pandas.get_dummies(table, columns={columns}, dtype=float)"
        )


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip file, got a damaged one: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text in UTF-8, got byte {data[error.start]:#04x} at {error.start}"
        ) from error


def _split(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of every row that is not blank."""
    lines: Iterable[str] = io.StringIO(text, newline=None)
    if delimiter == " ":
        lines = (" ".join(line.split()) for line in lines)
    reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells


def _delimiter(text: str) -> str:
    """Return the first separator that divides each of the first rows into the same number of cells, more than one."""
    for delimiter in "\t;, ":
        sizes = {len(row) for _, row in islice(_split(text, delimiter), 20)}
        if len(sizes) == 1 and sizes != {1}:
            return delimiter
    first = text.strip().partition("\n")[0]
    return next((delimiter for delimiter in "\t;," if delimiter in first), ",")


def _is_header(path: Path, line: int, row: list[str], header: bool | None) -> bool:
    """Return whether a row holds names; without being told, raise if it may be either."""
    if header is not None:
        return header
    digits = row[1:] if row[0] == "" else row  # pandas writes its index without a name
    if len(digits) > 1 and all(cell.isdecimal() for cell in digits):
        first = int(digits[0])
        if (first == 0 or len(digits) > 3) and [*map(int, digits)] == [*range(first, first + len(digits))]:
            raise ValueError(
                f"{path}, line {line}: expected names or data, got {', '.join(digits[:3])}, ..., which may be either: "
                "say --header yes or --header no (header=True or False in Python)"
            )
    return all(map(is_name, row))


def _index(path: Path, names: list[str] | None, size: int, column: str | int, what: str) -> int:
    """Return the index of a column that is given by its name or by its index, which may be written as a text."""
    if isinstance(column, str) and (names is None or column not in names):
        try:
            column = int(column)
        except ValueError:
            if names is None:
                raise ValueError(
                    f"{path}: expected the index of the {what} (the file has no header), got {column!r}"
                ) from None
    if isinstance(column, str) and names is not None:
        if names.count(column) != 1:
            raise ValueError(
                f"{path}: expected a {what} that names one column of {names}, got {column!r}, which names "
                f"{names.count(column)}"
            )
        return names.index(column)
    if not -size <= int(column) < size:
        raise ValueError(f"{path}: expected an index of the {what} from {-size} to {size - 1}, got {column}")
    return int(column) % size
