"""The benchmark for CUDA cards says so where there is none, and goes through all of itself on a processor."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "gpu.py"


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run for minutes")
def test_without_a_card():
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no CUDA device was found")


def test_a_dry_run(tmp_path):
    page = tmp_path / "gpu.md"
    done = run("--dry-run", "--rows", "96", "--many", "128", "--markdown", str(page))
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "|" in line]
    products = {tuple(row[:3]): row for row in rows if row[0] in ("tiles", "fused") and len(row) == 7}
    gradients = {tuple(row[:3]): row for row in rows if row[0] in ("tiles", "fused") and len(row) == 5}
    assert float(products["tiles", "highest", "float64"][-1]) < 1e-14
    assert float(products["tiles", "highest", "float32"][-1]) < 1e-5
    if find_spec("triton") is not None:
        assert float(products["fused", "highest", "float32"][-1]) < 1e-5
        assert float(gradients["fused", "highest", "float32"][-1]) < 1e-5
    assert float(gradients["tiles", "highest", "float32"][-1]) < 1e-5
    fits = [row for row in rows if row[1] == "KernelOperator"]
    assert [row[0] for row in fits] == ["P 96", "P 128"]
    assert all(0 < float(row[6]) < 5 for row in fits)  # the order parameter


def test_what_would_not_end_in_time_is_not_run(tmp_path):
    page = tmp_path / "gpu.md"
    done = run("--dry-run", "--rows", "96", "--many", "128", "--time-limit", "1e-3", "--markdown", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.count("not run, estimate") >= 4 and text.count("| not run |") == 2
