"""What one cell of a table holds: a number, nothing, or something else, and what to do about it then."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
MISSING = {"", "?", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "-", "."}
_LARGEST = 1e100  # sums of squares of larger numbers may overflow

OMIT = "leave the column out (--drop, or drop= in Python)"
DATE = f"a date or a time: write a number, such as the days since the first one, or {OMIT}"
_ODD_CELLS = {  # what a cell that is not a number looks like, and what to do
    r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?|[+-]?\d{1,3}([ '_]\d{3})+([.,]\d*)?|[+-]?\d+(_\d+)+": "write it without marks "
    "between its digits",
    r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+": "write it with a decimal point and without marks between its digits",
    r"[+-]?[\d.,]+ ?%": "a percentage: write the number alone",
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?|\d{1,2}:\d{2}(:[\d.]+)?": DATE,
    r"[+-]?inf(inity)?": "if it stands for a missing value, leave the cell empty",
}


def remedy(cell: str) -> str:
    """Return what to do about a cell, or an empty text if it looks like nothing in particular."""
    if NUMBER.fullmatch(cell):
        if abs(float(cell)) >= _LARGEST:
            return f"larger than {_LARGEST:g}: rescale the column, or leave the cell empty if the value is missing"
        exact = not cell.lstrip("+-").isdecimal() or int(cell) == int(float(cell))
        return "" if exact else f"more digits than double precision holds; an identifier? {OMIT}"
    return next((todo for pattern, todo in _ODD_CELLS.items() if re.fullmatch(pattern, cell, re.ASCII | re.I)), "")


def is_name(cell: str) -> bool:
    """Return whether a cell may be the name of a column: neither a number nor one that is written in an odd way."""
    return not NUMBER.fullmatch(cell) and cell.lower() not in ("nan", "-nan") and remedy(cell) in ("", DATE)
