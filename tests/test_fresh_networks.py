"""The benchmark of fresh networks predicts before it samples, never afterwards, and reports relative errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from torch_propkernel import generalization_error

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "fresh_networks.py"


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("fresh_networks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)  # for the module that the benchmarks share
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TEST_ROWS", 10)
    monkeypatch.setattr(module, "FIRST_DRAWS", 100)
    return module


def test_the_cases_are_those_of_the_page(example):
    cases = example.CASES
    assert len(cases) >= 12 and len(set(cases)) == len(cases)
    assert {case.data for case in cases} == {"yacht", "energy", "concrete", "pol", "kin40k"}
    assert {case.activation for case in cases} == {"erf", "relu"} and all(case.bias > 0 for case in cases)
    assert all(100 <= c.rows <= 200 and 15 <= c.width <= 200 and 0.02 <= c.temperature <= 0.3 for c in cases)


def test_predicted_first_and_sampled_afterwards(example, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    folder = tmp_path / "toy"
    folder.mkdir()
    x = rng.normal(size=(30, 2))
    data = np.column_stack([x, np.sin(x[:, 0])])
    np.savetxt(folder / "data.csv.gz", data, delimiter=",")
    cases = (example.Case("toy", "erf", 8, 2, 0.5), example.Case("toy", "relu", 6, 3, 0.4, weight=2.0))
    monkeypatch.setattr(example, "CASES", cases)
    files = {name: tmp_path / name for name in ("predictions", "json", "markdown")}
    options = ["--data", str(tmp_path), "--cases", "0", "1", "--theories", "infinite_width", "saddle"]
    options += [text for name, path in files.items() for text in (f"--{name}", str(path))]

    example.main([*options, "--stage", "predict"])
    predictions = [json.loads(line) for line in files["predictions"].read_text().splitlines()]
    assert len(predictions) == 4 and not files["json"].exists()
    assert "not sampled yet" in files["markdown"].read_text(encoding="utf-8")
    rows = data[np.random.default_rng(2001).permutation(30)]
    center, unit = rows[:6].mean(0), rows[:6].std(0, ddof=1)
    loaded = example.load(tmp_path, 1, cases[1])
    np.testing.assert_allclose(loaded.test_x.numpy(), ((rows[6:16] - center) / unit)[:, :-1], rtol=1e-12, atol=1e-12)
    model = example.model_of(cases[1], loaded)
    expected = generalization_error(model, loaded.test_x, loaded.test_y).infinite_width.mean_total.item()
    assert predictions[2]["test_error"] == pytest.approx(expected, rel=1e-12)

    capsys.readouterr()
    example.main(options)
    runs = [json.loads(line) for line in files["json"].read_text().splitlines()]
    text = files["markdown"].read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    assert files["predictions"].read_text().splitlines() == [json.dumps(p) for p in predictions]
    last = {run["case"]: run for run in runs}
    assert all(run["converged"] for run in last.values()) and set(last) == {0, 1}
    for one, two in zip(runs, runs[1:], strict=False):  # twice as many draws until it converges, then the next case
        assert two["draws"] == (100 if one["converged"] else 2 * one["draws"])
    errors = [p["test_error"] / last[p["case"]]["test_error"] - 1.0 for p in predictions if p["theory"] == "saddle"]
    lines = text.splitlines()
    assert all(
        f"{100 * e:+.1f} % |" in next(r for r in lines if r.startswith(f"| {k} toy")) for k, e in enumerate(errors)
    )
    summary = next(line for line in lines if line.startswith("| saddle |"))
    assert f"| 2 | {100 * np.median(np.abs(errors)):.1f} |" in summary
    # Small networks at T of a half: the saddle is a theory of large ones, but it is not off by half.
    assert max(np.abs(errors)) < 0.5

    example.main(options)  # nothing is missing
    assert len(files["json"].read_text().splitlines()) == len(runs)
    with pytest.raises(SystemExit, match="expected the predictions of mixture before its sampling"):
        example.main([*options, "--theories", "saddle", "mixture"])
    monkeypatch.setattr(example, "CASES", cases[::-1])
    with pytest.raises(SystemExit, match="got another case 0"):
        example.main([*options, "--tables-only"])
    with pytest.raises(ValueError, match="theory"):
        example.main([*options, "--theories", "wishful"])
