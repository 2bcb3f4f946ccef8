"""The benchmark of finite and infinite width runs at tiny size, continues, and says what it measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "uci_table.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("uci_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # for the module that the benchmarks share
        spec.loader.exec_module(module)
    return module


def test_one_command(example, tmp_path, capsys):
    rng = np.random.default_rng(0)
    folder = tmp_path / "toy"
    folder.mkdir()
    x = rng.normal(size=(24, 2))
    np.savetxt(folder / "data.csv.gz", np.column_stack([x, np.sin(x[:, 0]) + 0.1 * rng.normal(size=24)]), delimiter=",")
    mask = np.stack([np.arange(24) % 4 == k for k in range(4)], axis=1)
    np.savetxt(folder / "test_mask.csv.gz", mask.astype(int), delimiter=",", fmt="%d")
    found, markdown = tmp_path / "fits.jsonl", tmp_path / "table.md"
    models = ["infinite", "saddle", "mixture", "scale", "student-t", "scale-ard", "matern-ard"]
    options = ["--data", str(tmp_path), "--sets", "toy", "--splits", "4", "--models", *models]
    files = ["--json", str(found), "--markdown", str(markdown)]
    example.main([*options, *files])
    text = markdown.read_text()
    assert capsys.readouterr().out.strip() in text
    records = [json.loads(line) for line in found.read_text().splitlines()]
    assert len(records) == 4 * len(models) and all(np.isfinite([r["rmse"], r["nlpd"]]).all() for r in records)
    by = {(r["model"], r["split"]): r for r in records}
    gaps = [by["mixture", k]["rmse"] - by["scale", k]["rmse"] for k in range(4)]
    row = next(line for line in text.splitlines() if line.startswith("| mixture |"))
    assert f"{np.mean(gaps):+.2g} +- {np.std(gaps, ddof=1) / 2:.2g} {example.verdict(gaps)}" in row
    assert "Saddle point against the integral" in text and "two standard errors" in text
    example.main([*options, *files])  # nothing is missing: nothing is fitted
    assert len(found.read_text().splitlines()) == len(records)
    assert torch.get_default_dtype() == torch.float32


def test_verdict(example):
    assert example.verdict([0.1, 0.11]) == "undecided"
    assert example.verdict([0.1, -0.1, 0.05, -0.04]) == "tie"
    assert example.verdict([0.1, 0.11, 0.12, 0.11]) == "worse"
    assert example.verdict([-0.1, -0.11, -0.12, -0.11]) == "better"
