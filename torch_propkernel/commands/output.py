"""Where a command's results go: the terminal, and files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STDOUT = Path("-")


class Output:
    """Prints and writes; if the numbers go to stdout, nothing else does.

    Args:
        json_path: Where the numbers go; ``-`` is stdout, None nowhere.
        others: Further files that will be written; None where not.

    Raises:
        FileNotFoundError: The folder of a file does not exist: said before any work is done.
    """

    def __init__(self, json_path: Path | None, *others: Path | None) -> None:
        """Check the folders."""
        for path in (json_path, *others):
            if path is not None and path != STDOUT and not path.parent.is_dir():
                raise FileNotFoundError(f"{path}: expected a folder {path.parent} that exists")
        self._json = json_path

    @property
    def quiet(self) -> bool:
        """Whether stdout is for the numbers."""
        return self._json == STDOUT

    def say(self, text: str) -> None:
        """Print for the reader."""
        if not self.quiet:
            _print(text + "\n")

    def numbers(self, record: dict[str, Any], silent: bool = False) -> None:
        """Write the numbers, not finite ones as null, and say where unless ``silent`` (a table is on stdout)."""
        if self._json is None:
            return
        text = json.dumps(finite(record), indent=1, allow_nan=False)
        if self.quiet:
            _print(text + "\n")
        else:
            self._json.write_text(text + "\n", encoding="utf-8")
            if not silent:
                self.say(f"\nnumbers: {self._json}")

    def table(self, path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], what: str) -> None:
        """Write a CSV file (``-``: to stdout)."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        if path == STDOUT:
            _print(buffer.getvalue())
        else:
            path.write_text(buffer.getvalue(), encoding="utf-8")
            self.say(f"\n{what}: {path}")

    def figure(self, path: Path, draw: Callable[[], Figure]) -> None:
        """Save a figure, or say on stderr that matplotlib is missing."""
        try:
            draw().savefig(path, dpi=150)
        except ImportError as error:
            print(f"\nno plot: {error}", file=sys.stderr)
            return
        self.say(f"\nplot: {path}")


def _print(text: str) -> None:
    """Print; if the reader has gone (``| head``), go on in silence, so that files are still written."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finite(value: Any) -> Any:
    """Return a JSON document in which numbers that are not finite are None.

    Example:
        >>> finite({"width": [10.0, math.inf]})
        {'width': [10.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
