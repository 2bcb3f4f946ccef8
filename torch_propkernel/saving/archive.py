"""The file: a zip of one JSON text and plain arrays, with a checksum over all of it, written in one step."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._files import write_atomically

FORMAT = 1
"""Version of the file's format; a reader refuses higher ones."""

_TEXT = "torch_propkernel.json"
_TAIL = "torch_propkernel model, format {:06d}, sha256 {}"
_TAIL_SIZE = len(_TAIL.format(0, "0" * 64))


class SavedModelError(ValueError):
    """A model cannot be saved, or a file holds no model that can be loaded; the message says why."""


def write_archive(path: str | os.PathLike[str], text: dict[str, Any], tensors: list[Tensor]) -> None:
    """Write a JSON text and tensors to ``path`` in one step.

    The zip's comment, its last bytes, holds the format and the SHA-256 of everything before it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr(_member(_TEXT), json.dumps(text, indent=1, allow_nan=False))
        for index, tensor in enumerate(tensors):
            array = io.BytesIO()
            np.save(array, tensor.detach().cpu().numpy(), allow_pickle=False)
            file.writestr(_member(_name(index)), array.getvalue())
        file.comment = b" " * _TAIL_SIZE
    body = buffer.getvalue()[:-_TAIL_SIZE]
    write_atomically(path, body + _TAIL.format(FORMAT, hashlib.sha256(body).hexdigest()).encode())


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # without the time of day: equal models are equal files


def _name(index: int) -> str:
    return f"{index}.npy"


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the JSON text and the tensors of a file that :func:`write_archive` wrote.

    Nothing in the file is executed: it is JSON and arrays of numbers, and arrays of objects are refused.

    Raises:
        SavedModelError: A damaged, truncated or foreign file, or one of a newer format.
    """
    data = Path(path).read_bytes()
    body, tail = data[:-_TAIL_SIZE], data[-_TAIL_SIZE:]
    version = _format_of(tail)
    if version is None:
        if data[:4] == b"PK\x03\x04" and data[30 : 30 + len(_TEXT)] == _TEXT.encode():
            raise SavedModelError(f"{path}: expected a whole file, got a truncated or damaged one")
        raise SavedModelError(f"{path}: expected a model saved by torch_propkernel, got another kind of file")
    if version > FORMAT:
        raise SavedModelError(
            f"{path}: expected format {FORMAT} or lower, got {version}: it was saved by a newer torch_propkernel, "
            "upgrade to load it"
        )
    if tail != _TAIL.format(version, hashlib.sha256(body).hexdigest()).encode():
        raise SavedModelError(f"{path}: expected a whole file, got a damaged one (its checksum does not fit)")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
                raise ValueError("compressed members")
            text = json.loads(file.read(_TEXT))
            count = len(file.namelist()) - 1
            arrays = [np.load(io.BytesIO(file.read(_name(i))), allow_pickle=False) for i in range(count)]
            # A clone lies in memory as torch allocates it, so that results do not depend on the file.
            return text, [torch.from_numpy(array).clone() for array in arrays]
    except Exception as error:  # the checksum fits, so a hand has made the file: every error means the same
        raise SavedModelError(f"{path}: expected JSON and arrays of numbers, got {error!r}") from error


def _format_of(tail: bytes) -> int | None:
    """Return the format that the last bytes of a file state, or None if they are not of this kind."""
    start, middle = _TAIL.format(0, "").encode().split(b"000000")
    digits = tail[len(start) : len(start) + 6]
    known = tail.startswith(start) and tail[len(start) + 6 :].startswith(middle) and digits.isdigit()
    return int(digits) if known else None
