"""The file of an unfinished Lanczos run, or the files of the processes that share it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replaced_file

_FORMAT = 2


def save_checkpoint(
    path: str | os.PathLike[str], state: dict[str, Any], share: tuple[int, int], rows: slice, **identity: Any
) -> None:
    """Write the state of a run and what it belongs to, in one step: the file is the old one or the new one.

    Args:
        path: The file; of process n of N it is ``path.nofN``.
        state: Of the :class:`LanczosRun`, with the process's own rows.
        share: n and N.
        rows: The own rows.
        identity: What the run belongs to.
    """
    rank, number = share
    own = Path(path) if number == 1 else Path(f"{path}.{rank}of{number}")
    with replaced_file(own) as file:
        torch.save({"format": _FORMAT, "identity": identity, "rows": [rows.start, rows.stop], "state": state}, file)


def load_checkpoint(path: str | os.PathLike[str] | None, rows: slice, **identity: Any) -> dict[str, Any] | None:
    """Return some rows of the state that the files of a run hold, None where there are none.

    The run may have been shared by another number of processes. Where several numbers have left files, the run with
    the most steps is read; where its processes were killed between their files, the steps that all of them have.
    Tensors of the identity may differ by rounding, as they do between machines.

    Raises:
        ValueError: Not a checkpoint, one of another problem, or the files of some processes only.
    """
    runs = [_Run(files, identity) for files in _files_of_runs(path)]
    return max(runs, key=lambda run: run.num_steps).rows(rows) if runs else None


def _files_of_runs(path: str | os.PathLike[str] | None) -> list[list[Path]]:
    """Return the files of each number of processes.

    Raises:
        ValueError: Some are missing.
    """
    if path is None:
        return []
    path = Path(path)
    found = [[path]] if path.exists() else []
    named = re.compile(re.escape(path.name) + r"\.(\d+)of(\d+)")
    names = [match for match in (named.fullmatch(file.name) for file in path.parent.glob("*")) if match]
    for number in sorted({int(match[2]) for match in names}):
        ranks = sorted(int(match[1]) for match in names if int(match[2]) == number)
        if ranks != list(range(number)):
            raise ValueError(
                f"checkpoint: expected the files of all {number} processes, {path}.0of{number} and so on, got those of "
                f"{ranks}; give a folder that all machines share, or remove them (what processes leave that were "
                "killed in their first block)"
            )
        found.append([path.with_name(f"{path.name}.{rank}of{number}") for rank in ranks])
    return found


class _Run:
    """The files of one run, which are mapped and not read before some rows are asked for."""

    def __init__(self, files: list[Path], identity: dict[str, Any]) -> None:
        self.parts = [_load(file, identity) for file in files]
        self.num_steps = min(content["state"]["alphas"].shape[1] for content in self.parts)

    def rows(self, rows: slice) -> dict[str, Any]:
        """Return the state of some rows, after the steps that all files have: each has written whole blocks of them."""
        states = [(content["state"], _common(rows, *content["rows"])) for content in self.parts]
        states = [(state, own) for state, own in states if own.start < own.stop]
        first, steps = states[0][0], self.num_steps
        ends = torch.tensor([block.shape[1] for block in first["basis"]]).cumsum(0)
        blocks = int((ends <= steps).sum())
        following = []
        for state, own in states:
            further = state["alphas"].shape[1] > steps  # this process had gone on: what came next is in its basis
            following.append((state["basis"][blocks][:, 0] if further else state["next"])[:, own])
        return {
            **{name: first[name][..., :steps].clone() for name in ("alphas", "betas")},
            "norms": first["norms"].clone(),
            "basis": [torch.cat([state["basis"][k][..., own] for state, own in states], -1) for k in range(blocks)],
            "next": torch.cat(following, -1),
        }


def _common(rows: slice, start: int, stop: int) -> slice:
    """Return the rows from ``start`` to ``stop`` that are wanted, counted from ``start``."""
    return slice(max(rows.start, start) - start, max(min(rows.stop, stop) - start, 0))


def _load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        known = content["identity"]
        content.setdefault("rows", [0, content["state"]["next"].shape[-1]])  # files of one process had none
    except Exception as error:
        raise ValueError(f"checkpoint: expected a file of an earlier run at {path}, got one that is none") from error
    for name, value in identity.items():
        if not _alike(known.get(name), value):
            raise ValueError(
                f"checkpoint: expected that of the same problem at {path}, got one with other {name}; give another "
                "file, or remove it"
            )
    return content


def _alike(known: Any, value: Any) -> bool:
    if not isinstance(value, Tensor):
        return bool(known == value)
    if not isinstance(known, Tensor) or known.shape != value.shape:
        return False
    scale = float(value.abs().max())
    return torch.allclose(known, value.cpu(), rtol=1e-5, atol=1e-5 * scale)
