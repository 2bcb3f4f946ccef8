"""What a fit costs, and the refusal of what the machine cannot hold."""

from __future__ import annotations

import math
import sys

import pytest

from torch_propkernel import _memory
from torch_propkernel._memory import Cost, available_memory, check_memory, estimate_fit
from torch_propkernel.exceptions import NotEnoughMemoryError

GB = 10**9


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return write({file: text}) -> None: a machine whose /proc and /sys/fs/cgroup hold these files and no others."""
    monkeypatch.setattr(_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_memory.os, "sysconf", lambda name: -1 if name == "SC_PAGE_SIZE" else -64 * GB, raising=False)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


MEMINFO = {"proc/meminfo": f"MemTotal: 32000000 kB\nMemAvailable:   {16 * 10**6} kB\n"}
VERSION_2 = {"proc/self/cgroup": "0::/job/step\n"}
VERSION_1 = {"proc/self/cgroup": "9:name=systemd:/a\n4:cpu,memory:/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64 * GB),  # all of the memory where no more is known
        (MEMINFO, 16 * 1.024 * GB),
        (MEMINFO | VERSION_2, 16 * 1.024 * GB),  # no limit can be read
        (
            MEMINFO
            | VERSION_2
            | {"cgroup/job/step/memory.max": "max\n", "cgroup/job/step/memory.current": f"{3 * GB}\n"},
            16 * 1.024 * GB,
        ),
        (
            MEMINFO
            | VERSION_2
            | {
                "cgroup/job/memory.max": f"{8 * GB}\n",  # the limit of a parent
                "cgroup/job/memory.current": f"{3 * GB}\n",
                "cgroup/job/memory.stat": f"anon {2 * GB}\ninactive_file {GB}\n",
            },
            6 * GB,
        ),
        (
            MEMINFO
            | VERSION_1
            | {
                "cgroup/memory/memory.limit_in_bytes": f"{4 * GB}\n",  # as it is mounted in a container
                "cgroup/memory/memory.usage_in_bytes": f"{5 * GB}\n",
                "cgroup/memory/memory.stat": "inactive_file 7\n",
            },
            0,
        ),
        (
            MEMINFO
            | VERSION_1
            | {
                "cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n",  # how version 1 says: no limit
                "cgroup/memory/job/memory.usage_in_bytes": f"{GB}\n",
            },
            16 * 1.024 * GB,
        ),
    ],
)
def test_what_is_available(machine, files, expected):
    machine(files)
    assert available_memory() == pytest.approx(expected, rel=1e-12)


def test_nothing_is_refused_where_nothing_is_known(machine, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(_memory.os, "sysconf", unknown, raising=False)
    machine({})
    assert available_memory() is None and available_memory("meta") is None
    check_memory("everything", 1e30)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine():
    assert 1e6 < available_memory() < 1e15
    check_memory("a small matrix", 8e6)


def test_the_message_says_what_is_needed_what_is_there_and_what_to_do(machine):
    machine(MEMINFO)
    check_memory("rows", 16 * GB)
    with pytest.raises(NotEnoughMemoryError) as caught:
        check_memory("200,000 rows", Cost(1.6e12, 7200.0), "take fewer")
    assert isinstance(caught.value, MemoryError)
    assert str(caught.value) == (
        "200,000 rows: expected at most 16 GB, the memory that is available, got an estimate of 1.6 TB of memory and "
        "2 hours; take fewer"
    )
    with pytest.raises(NotEnoughMemoryError, match="got an estimate of 17 GB of memory$"):
        check_memory("rows", 17 * GB)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 seconds"), (119, "119 seconds"), (121, "2 minutes"), (1e6, "12 days")]
)
def test_units_of_time(seconds, text):
    assert str(Cost(5e6, seconds)) == f"5 MB of memory and {text}"


def test_an_estimate_grows_with_its_matrices_and_factorizations(monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 5.5, 7.0, 9.0])
    monkeypatch.setattr(_memory.time, "perf_counter", lambda: next(clock))
    cost = estimate_fit(2000, 300, matrices=4, factorizations=10)
    assert cost.num_bytes == 8 * (4 * 2000**2 + 2000 * 300)
    assert math.isclose(cost.seconds, 10 * 0.5 * 4**3)  # the fastest of three factorizations of 500 x 500
