"""What a fit costs, and whether the machine has the memory for it: said before anything is allocated."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

from .exceptions import NotEnoughMemoryError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Cost(NamedTuple):
    """What a computation is expected to need.

    Attributes:
        num_bytes: Memory at its peak.
        seconds: Time, to a factor of two or three.

    Example:
        >>> str(Cost(1.6e12, 7300.0))
        '1.6 TB of memory and 2 hours'
    """

    num_bytes: float
    seconds: float

    def __str__(self) -> str:
        """Say it with a unit that fits."""
        limits = ((172_800, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))
        unit, name = next((unit, name) for limit, unit, name in limits if self.seconds >= limit)
        return f"{_size(self.num_bytes)} of memory and {self.seconds / unit:.0f} {name}"


def estimate_fit(num_rows: int, num_test: int = 0, *, matrices: float = 5.0, factorizations: float = 30.0) -> Cost:
    r"""Return what a fit of P training rows needs, in double precision.

    That is ``8 (matrices P^2 + P m)`` bytes and a number of Cholesky factorizations of ``P x P``, whose speed is
    measured on a small one. The defaults are what the command line needs to fit one network; they were measured at
    P = 3000.

    Args:
        num_rows: P.
        num_test: Points m at which it predicts.
        matrices: Matrices of ``P x P`` that are held at the same time.
        factorizations: Time, in Cholesky factorizations of ``P x P``.

    Example:
        >>> estimate_fit(10_000).num_bytes / 1e9
        4.0
    """
    size = 500
    matrix = torch.eye(size, dtype=torch.float64) + 1.0
    trials = []
    for _ in range(3):  # the first one may have to wake up threads
        begun = time.perf_counter()
        torch.linalg.cholesky(matrix)
        trials.append(time.perf_counter() - begun)
    seconds = factorizations * min(trials) * (num_rows / size) ** 3
    return Cost(8.0 * (matrices * num_rows**2 + num_rows * num_test), seconds)


def check_memory(what: str, cost: Cost | float, remedy: str = "", device: torch.device | str = "cpu") -> None:
    """Raise if a computation needs more memory than there is; where nothing is known about the memory, do nothing.

    Args:
        what: What needs it, as the message begins.
        cost: What is expected; bytes, if it is a number.
        remedy: What to do, as the message ends.
        device: Where it is allocated.

    Raises:
        NotEnoughMemoryError: It needs more.

    Example:
        >>> check_memory("a small matrix", 800)
    """
    cost, text = (cost.num_bytes, str(cost)) if isinstance(cost, Cost) else (cost, f"{_size(cost)} of memory")
    available = available_memory(device)
    if available is not None and cost > available:
        raise NotEnoughMemoryError(
            f"{what}: expected at most {_size(available)}, the memory that is available, got an estimate of {text}"
            + (f"; {remedy}" if remedy else "")
        )


def available_memory(device: torch.device | str = "cpu") -> float | None:
    """Return how many bytes can be allocated, None where that is not known.

    On the CPU it is the system's own figure or what control groups leave, whichever is lower; on CUDA what is free or
    cached by torch.

    Args:
        device: Where.
    """
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type != "cpu":
        return None
    known = [value for value in (_of_the_system(), *_left_by_control_groups()) if value is not None]
    return min(known, default=None)


def _of_the_system() -> float | None:
    kilobytes = _fields(PROC / "meminfo").get("MemAvailable:")
    if kilobytes is not None:
        return 1024.0 * kilobytes
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def _left_by_control_groups() -> list[float]:
    """Return what the limits of each group of this process leave, in version 2 and version 1 of control groups."""
    left = []
    for line in _text(PROC / "self" / "cgroup").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if controllers == "":
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            limit, used = (_text(folder / name).strip() for name in names[:2])
            if limit.isdigit() and used.isdigit():  # "max" is no limit
                cache = _fields(folder / "memory.stat").get(names[2], 0)  # given back when memory is short
                left.append(max(0.0, float(int(limit) - int(used) + cache)))
            if folder == root:
                break
    return left


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, int]:
    """Return the lines "name number" of a file."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _size(num_bytes: float) -> str:
    """Return a number of bytes with a unit that fits.

    Example:
        >>> _size(1.6e12), _size(24.4e9), _size(720.0)
        ('1.6 TB', '24 GB', '0.00072 MB')
    """
    power, name = next((p, name) for p, name in ((12, "TB"), (9, "GB"), (6, "MB")) if num_bytes >= 10**p or p == 6)
    number = num_bytes / 10**power
    return f"{number:.0f} {name}" if number >= 100 else f"{number:.2g} {name}"
