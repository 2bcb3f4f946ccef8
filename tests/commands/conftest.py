"""A folder of its own for every test, and small tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from given_network import GIVEN

from torch_propkernel.__main__ import main
from torch_propkernel.commands import fit as fit_module


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the default plots are written to the working folder


@pytest.fixture(autouse=True)
def _the_saddle_unless_asked_for_more(monkeypatch):
    monkeypatch.setattr(fit_module, "DEFAULT_THEORY", "saddle")  # sampling takes seconds; tests of it name it


@pytest.fixture
def table(tmp_path, rng):
    """Return write(header, edit, rows, name) -> path of a small table whose last column is the target."""

    def write(header=True, edit=None, rows=30, name="table.csv"):
        x = rng.normal(size=(rows, 3))
        numbers = np.column_stack([x, 5 + 2 * (x[:, 0] + 0.5 * x[:, 1] ** 2) + 0.1 * rng.normal(size=rows)])
        cells = [[f"{value:.6f}" for value in row] for row in numbers]
        if edit is not None:
            edit(cells)
        lines = ["a,b,c,price"] * header + [",".join(row) for row in cells]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


@pytest.fixture
def run_json(tmp_path):
    """Return run(command, *arguments) -> its numbers; hyperparameters are given where the arguments do not say auto."""

    def run(command, *arguments):
        path = tmp_path / "numbers.json"
        assert main([command, *GIVEN, "--width", "100", "--activation", "relu", *arguments, "--json", str(path)]) == 0
        return json.loads(path.read_text())

    return run
