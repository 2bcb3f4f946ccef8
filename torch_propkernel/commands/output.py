"""Where a command's results go: the terminal, and files that none of its inputs can be."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STDOUT = Path("-")
JSON, PLOT, TABLES = "--json", "--plot", ("--predictions", "--out")


class Output:
    """Prints and writes; if a file goes to stdout, nothing else does.

    All paths are checked before any work is done. Earlier files may be replaced, each in one step; a file that the run
    reads may not, by whatever name or link it is called.

    Args:
        reads: The files that the command reads, by the names of their arguments; None where there is none.
        writes: The files that it writes, by the names of their options; None where not, ``-`` for stdout.

    Raises:
        ValueError: Two of the files are one, a plot has an ending that matplotlib does not know, a file that is no
            text goes to stdout.
        OSError: A folder does not exist, or a file or folder cannot be written to.
    """

    def __init__(self, reads: Mapping[str, Path | None], writes: Mapping[str, Path | None]) -> None:
        """Check the paths."""
        inputs = {name: path for name, path in reads.items() if path is not None}
        outputs = {name: path for name, path in writes.items() if path is not None}
        for name, path in outputs.items():
            _check(name, path)
            for other, source in inputs.items():
                if _same(path, source):
                    raise ValueError(
                        f"{name}, {other}: expected two files, got {path} for both, which would be overwritten"
                    )
        for (name, path), (other, second) in combinations(outputs.items(), 2):
            if _same(path, second):
                raise ValueError(f"{name}, {other}: expected two files, got {_shown(path)} for both")
        self._json = outputs.get(JSON)
        self.quiet = STDOUT in outputs.values()

    def say(self, text: str) -> None:
        """Print for the reader."""
        if not self.quiet:
            _print(text + "\n")

    def numbers(self, record: dict[str, Any]) -> None:
        """Write the numbers, not finite ones as null, and say where."""
        if self._json is not None:
            self._text(self._json, json.dumps(finite(record), indent=1, allow_nan=False) + "\n", "numbers")

    def table(self, path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], what: str) -> None:
        """Write a CSV file (``-``: to stdout)."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        self._text(path, buffer.getvalue(), what)

    def figure(self, path: Path, draw: Callable[[], Figure]) -> None:
        """Save a figure, or say on stderr that matplotlib is missing."""
        buffer = io.BytesIO()
        try:
            draw().savefig(buffer, format=path.suffix[1:].lower(), dpi=150)
        except ImportError as error:
            print(f"\nno plot: {error}", file=sys.stderr)
            return
        write_atomically(path, buffer.getvalue())
        self.say(f"\nplot: {path}")

    def _text(self, path: Path, text: str, what: str) -> None:
        if path == STDOUT:
            _print(text)
        else:
            write_atomically(path, text.encode())
            self.say(f"\n{what}: {path}")


def _check(name: str, path: Path) -> None:
    """Raise if an output cannot be written."""
    if path == STDOUT:
        if name != JSON and name not in TABLES:
            raise ValueError(f"{name}: expected a file, got - (stdout), which is for numbers and tables")
        return
    if path.is_dir():
        raise IsADirectoryError(f"{name}: expected a file, got the folder {path}")
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    instead = "; --no-plot saves none" if name == PLOT else ""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder {target.parent} that exists, got {path}{instead}")
    replaced = target.is_file() or not target.exists()  # in its folder; a device or a pipe is written to
    needed = [target.parent, target] if replaced else [target]
    for each in needed:
        if each.exists() and not os.access(each, os.W_OK):
            raise PermissionError(f"{name}: expected {each} to be writable, got {path}{instead}")
    if name == PLOT:
        try:
            from matplotlib.backend_bases import FigureCanvasBase
        except ImportError:  # said when there is something to draw
            return
        if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
            raise ValueError(f"{name}: expected an ending that matplotlib writes, such as .png or .pdf, got {path}")


def _same(path: Path, other: Path) -> bool:
    """Return whether two paths are one file, by whatever links, or would be one."""
    if STDOUT in (path, other):
        return path == other
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist yet
        return os.path.realpath(path) == os.path.realpath(other)


def _shown(path: Path) -> str:
    return "stdout" if path == STDOUT else str(path)


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
