"""Writing a file in one step."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing whose content takes the place of what is there when the block ends without an error.

    A temporary file in the same folder is filled, flushed to the disk and renamed. An existing file keeps its mode. A
    symbolic link stays a link, and the file that it points to is replaced.

    Args:
        path: Where.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            if path.exists():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file as :func:`replaced_file` does; a device or a pipe is written to.

    Args:
        path: Where.
        data: The whole content.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with replaced_file(path) as file:
        file.write(data)
