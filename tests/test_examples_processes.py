"""The examples of processes run at tiny size, and what they print is what was computed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
# Predictives of tiny fits may be poorly conditioned; the optimizer stops at its limit on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")


@pytest.fixture
def load(monkeypatch):
    def run(name):
        monkeypatch.setattr(sys, "path", list(sys.path))  # the examples extend it
        spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run


def test_intervals(load, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    example = load("intervals.py")
    picture = tmp_path / "intervals.png"
    example.main(["--size", "6", "--grid", "7", "--width", "3", "--plot", str(picture)])
    assert picture.stat().st_size > 10_000
    assert torch.get_default_dtype() == torch.float32
    rows = [
        line for line in capsys.readouterr().out.splitlines() if ";" in line and "/" in line and "width" not in line
    ]
    assert len(rows) == len(example.FACTORS)


def test_intervals_react_to_the_size_of_the_targets(load):
    example = load("intervals.py")
    torch.set_default_dtype(torch.float64)
    try:
        x, y = example.data(10, 0)
        grid = torch.linspace(-1.0, 1.0, 5)[:, None]
        wide, narrow = (example.intervals(x, factor * y, grid, 5.0, 5.0) for factor in (3.0, 1.0 / 3.0))
    finally:
        torch.set_default_dtype(torch.float32)
    size = {name: [(found[name][2] - found[name][1]) for found in (wide, narrow)] for name in wide}
    assert torch.allclose(*size["gp"])  # fixed scale: the targets do not enter
    for name in ("saddle", "mixture", "student_t"):
        assert bool((size[name][0] > size[name][1]).all()), name
    assert torch.allclose(wide["student_t"][0], wide["gp"][0])


def test_calibration(load, tmp_path, capsys):
    pytest.importorskip("botorch")
    pytest.importorskip("matplotlib")
    example = load("calibration.py")
    rng = np.random.default_rng(0)
    folder = tmp_path / "toy"
    folder.mkdir()
    x = rng.normal(size=(24, 2))
    x[20:] = x[:4]  # duplicate rows, in test sets too
    data = np.column_stack([x, np.sin(x[:, 0]) + 0.1 * rng.normal(size=24)])
    np.savetxt(folder / "data.csv.gz", data, delimiter=",")
    mask = np.stack([np.arange(24) % 4 == k for k in (0, 1)], axis=1)
    np.savetxt(folder / "test_mask.csv.gz", mask.astype(int), delimiter=",", fmt="%d")
    found, markdown, picture = (tmp_path / name for name in ("fits.jsonl", "table.md", "plot.png"))
    options = ["--data", str(tmp_path), "--sets", "toy", "--splits", "0", "1", "--evaluations", "4", "--starts", "1"]
    files = ["--json", str(found), "--markdown", str(markdown), "--plot", str(picture)]
    example.main([*options, *files])
    text = capsys.readouterr().out
    assert all(name in text for name in example.NAMES.values())
    records = [json.loads(line) for line in found.read_text().splitlines()]
    assert len(records) == 2 * len(example.MODELS)
    for record in records:
        for values in record["forms"].values():
            assert np.isfinite(values["nlpd"]) and values["rmse"] > 0
            assert values["coverage"] == sorted(values["coverage"])
    assert picture.stat().st_size > 10_000 and text.strip() in markdown.read_text()
    before = found.read_text()
    example.main([*options, *files])  # nothing is missing: nothing is fitted
    assert found.read_text() == before
    assert torch.get_default_dtype() == torch.float32


def test_ties(load):
    pytest.importorskip("botorch")
    example = load("calibration.py")
    assert example.verdict([0.1, -0.1, 0.05, -0.04]).endswith("tie")
    assert example.verdict([0.1, 0.11, 0.12, 0.11]).endswith("worse")
    assert example.verdict([-0.1, -0.11, -0.12, -0.11]).endswith("better")
    assert example.verdict([1e-5, -1e-5, 1e-5, -1e-5]) == "same"


def test_dirichlet_classes(load, capsys):
    load("dirichlet_classes.py").main(["--rows", "40", "--width", "20"])
    wide, narrow = capsys.readouterr().out.splitlines()
    assert wide.startswith("infinite width") and "q 1.00, 1.00, 1.00" in wide and narrow.startswith("width 20")
    for line in (wide, narrow):
        assert 0.85 < float(line.split("accuracy ")[1].split()[0]) <= 1.0  # a third by chance
        assert 0.0 < float(line.split("log loss ")[1]) < 0.6  # log 3 = 1.1 by chance
