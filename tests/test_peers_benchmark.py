"""The comparison with other packages: those that are not installed are skipped and named, answers come before times."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "peers.py"


@pytest.fixture
def program(monkeypatch):
    spec = importlib.util.spec_from_file_location("peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers", module)
    spec.loader.exec_module(module)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield module
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def test_a_peer_that_is_not_installed_is_skipped_and_named(program, monkeypatch, tmp_path):
    def only_torch(name):
        if name != "torch":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(program, "version", only_torch)
    page = tmp_path / "page.md"
    program.main(["--only", "deepbays", "neural-tangents", "--sizes", "20", "--markdown", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "float64; torch 1.0.\nNot installed, skipped: deepbays, neural-tangents." in text
    assert "| P = 20 |" not in text


def test_a_row_has_the_difference_of_the_answers_and_the_error_of_a_peer_that_fails(program):
    torch.set_default_dtype(torch.float64)

    def fails():
        raise ValueError("no | answer")

    row = program.measure(program.Row("task", "peer", lambda: [1.0, 4.0], lambda: [1.0, 3.0]), 20)
    assert row.startswith("| task | peer | P = 20 | ") and row.split(" | ")[-2] == "2.5e-01"
    row = program.measure(program.Row("task", "peer", lambda: [1.0], fails), 20)
    assert "| raises ValueError: no answer | - | - |" in row


def test_an_error_of_this_package_is_raised(program):
    torch.set_default_dtype(torch.float64)
    with pytest.raises(ZeroDivisionError):
        program.measure(program.Row("task", "peer", lambda: 1 / 0, lambda: [1.0]), 20)
