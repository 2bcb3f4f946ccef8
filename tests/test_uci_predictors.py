"""The benchmark of predictors takes the rows it says, pairs by split, continues, and tells losses."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from torch_propkernel import tuning
from torch_propkernel.distributions import ScaleMixtureMultivariateNormal
from torch_propkernel.theories import FreeScale

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "uci_predictors.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("uci_predictors", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # for the modules that it shares
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path):
    """A set of 30 rows in four splits, in the format of the UCI sets; a constant column among its inputs."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "toy"
    folder.mkdir()
    x = np.column_stack([rng.normal(size=(30, 2)), np.full(30, 3.0)])
    data = np.column_stack([x, 5.0 + 2.0 * np.sin(x[:, 0]) + 0.1 * rng.normal(size=30)])
    np.savetxt(folder / "data.csv.gz", data, delimiter=",")
    mask = np.stack([np.arange(30) % 4 == k for k in range(4)], axis=1)
    np.savetxt(folder / "test_mask.csv.gz", mask.astype(int), delimiter=",", fmt="%d")
    return folder, data, mask


def test_rows_of_a_split(example, toy, monkeypatch):
    folder, data, mask = toy
    monkeypatch.setattr(example, "TEST_ROWS", 5)
    for split in range(3):
        rng = np.random.default_rng(split)
        train = data[rng.permutation(np.flatnonzero(~mask[:, split]))[:12]]
        test = data[rng.permutation(np.flatnonzero(mask[:, split]))[:5]]
        center, unit = train.mean(0), train.std(0, ddof=1)
        unit[2] = 1.0  # the constant column is only shifted
        prepared = example.prepare(folder, split, 12)
        for got, rows, columns in zip(prepared[:4], (train, train, test, test), (slice(3), 3) * 2, strict=True):
            expected = (rows[:, columns] - center[columns]) / unit[columns]
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)
    monkeypatch.undo()
    example.prepare.cache_clear()
    whole = example.prepare(folder, 0, 400)
    assert (len(whole.y), len(whole.test_y)) == (int((~mask[:, 0]).sum()), int(mask[:, 0].sum()))


def test_measures_of_a_mixture(example):
    weights, means, deviations = np.array([0.7, 0.3]), np.array([0.0, 4.0]), np.array([1.0, 0.5])
    y = torch.linspace(-3.0, 6.0, 1201, dtype=torch.float64)  # more than one chunk

    def predict(x):
        columns = torch.ones(len(x), dtype=torch.float64)
        loc, variance = (torch.outer(torch.as_tensor(v), columns) for v in (means, deviations**2))
        return ScaleMixtureMultivariateNormal(torch.as_tensor(np.log(weights)), loc, variance=variance)

    found = example.measure(predict, torch.zeros(len(y), 1, dtype=torch.float64), y)
    grid = np.linspace(-10.0, 10.0, 2_000_001)
    cdf = sum(w * stats.norm.cdf(grid, m, s) for w, m, s in zip(weights, means, deviations, strict=True))
    low, high = np.interp([0.025, 0.975], cdf, grid)
    density = sum(w * stats.norm.pdf(y.numpy(), m, s) for w, m, s in zip(weights, means, deviations, strict=True))
    assert math.isclose(found["rmse"], np.sqrt(np.mean((y.numpy() - 1.2) ** 2)), rel_tol=1e-12)
    assert math.isclose(found["nlpd"], -np.mean(np.log(density)), rel_tol=1e-12)
    assert math.isclose(found["coverage"], np.mean((y.numpy() >= low) & (y.numpy() <= high)), rel_tol=1e-12)


def records(differences, name="pol", method="auto", other="free-scale-ard"):
    """Records of two methods whose RMSE and NLPD differ by these numbers."""
    found = []
    for split, (rmse, nlpd) in enumerate(differences):
        common = {"set": name, "rows": 400, "split": split, "sizes": [400, 50], "coverage": 0.9}
        common |= {"seconds": 2.0, "cpu_seconds": 1.0, "theory": "sampled", "width": 50.0, "log_evidence": None}
        base = 1.0 + 0.1 * split  # splits differ more than methods do
        found.append({**common, "method": method, "rmse": base + rmse, "nlpd": nlpd - base})
        found.append({**common, "method": other, "rmse": base, "nlpd": -base})
    return found


def test_paired_statistics_and_what_they_say(example):
    ahead = [(-0.010, -0.20), (-0.011, -0.21), (-0.012, -0.20), (-0.011, -0.22)]
    mixed = [(+0.010, -0.20), (+0.011, -0.21), (+0.012, -0.20), (+0.011, -0.22)]
    tie = [(-0.010, 0.1), (+0.011, -0.1), (-0.012, 0.1), (+0.011, -0.1)]
    stored = records(ahead) + records(mixed, "yacht") + records(tie, "energy")
    stored.append({"set": "pol", "rows": 400, "split": 4, "sizes": [400, 50], "method": "auto", "failed": "no result"})
    text = example.tables(stored)
    first = "ahead in RMSE and NLPD by two standard errors on 1 of 3 sets (pol), behind in RMSE or NLPD on 1 (yacht)."
    assert f"- **auto** against free-scale-ard, 400 rows: {first}" in text
    gaps = np.array([rmse for rmse, _ in mixed])
    error = gaps.std(ddof=1) / 2
    loss = f"its RMSE is higher by {gaps.mean():.2g} +- {error:.2g}, that of free-scale-ard is 1.15."
    assert [line for line in text.splitlines() if "loses" in line] == [
        f"  - auto loses to free-scale-ard on yacht: {loss}"
    ]
    rows = [line for line in text.splitlines() if line.startswith("| auto - free-scale-ard |")]
    expected = f"| {gaps.mean():+.2g} +- {error:.2g} | behind |"
    assert len(rows) == 3 and expected in rows[0] and "| tie |" in rows[1] and "| ahead |" in rows[2]  # yacht is first
    assert "| auto | 4 | 1 |" in text and "- auto, split 4: failed, no result" in text
    assert "Too few splits" in example.tables(records(ahead[:3]))


def test_one_command(example, toy, tmp_path, capsys, monkeypatch):
    folder, _, _ = toy
    found, markdown = tmp_path / "fits.jsonl", tmp_path / "table.md"

    def fit_predictor(x, y, activation, *, depth, width, theory, time_limit, seed):
        assert (activation, depth, width, theory, time_limit) == ("erf", 1, None, "auto", 120.0)
        prior = tuning.fit_network(x, y, activation, seed=seed)
        fitted = FreeScale().fit(prior.model(x, y, 50))
        row = {"theory": "free_scale", "width": math.inf, "temperature": prior.temperature, "readout_factor": 0.5}
        return SimpleNamespace(fitted=fitted, candidates=[row], message="Infinite width is best.")

    monkeypatch.setattr(tuning, "fit_predictor", fit_predictor, raising=False)
    methods = ["auto", "free-scale-ard", "saddle", "matern-ard"]
    options = ["--data", str(folder.parent), "--sets", "toy", "--splits", "4", "--json", str(found)]
    options += ["--markdown", str(markdown), "--methods", *methods]
    example.main(options)
    text = markdown.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    lines = found.read_text().splitlines()
    by = {(r["method"], r["split"]): r for r in map(json.loads, lines)}
    assert len(lines) == len(by) == 4 * (len(methods) + 1)  # the shared hyperparameters of a split once
    for split in range(4):
        ours, plain = by["auto", split], by["free-scale-ard", split]
        # 1e-6: a second fit of the same model
        assert math.isclose(ours["rmse"], plain["rmse"], rel_tol=1e-6) and ours["readout_factor"] == 0.5
        assert plain["width"] == math.inf and by["saddle", split]["width"] == 50
        assert plain["cpu_seconds"] > by["hyperparameters", split]["cpu_seconds"]
        assert plain["temperature"] == pytest.approx(by["hyperparameters", split]["temperature"], rel=1e-12)
    assert "auto - matern-ard" in text
    found.write_text("\n".join(lines[:-1]) + "\n")
    example.main(options)  # the last fit alone is repeated
    again = found.read_text().splitlines()
    assert len(again) == len(lines) and again[:-1] == lines[:-1]
    markdown.unlink()
    monkeypatch.setattr(example, "run", None)
    example.main([*options, "--tables-only"])
    assert "| free-scale-ard | 4 | 0 |" in markdown.read_text(encoding="utf-8")
    assert torch.get_default_dtype() == torch.float32


def test_ensemble_learns_and_repeats_itself(example, monkeypatch):
    monkeypatch.setattr(example, "EPOCHS", 60)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    y = x[:, 0] - 0.5 * x[:, 1] + 0.1 * torch.randn(60, generator=generator)
    data = example.Standardized(x[:40], y[:40], x[40:], y[40:], 1.0)
    first, second = (example.mlp_ensemble(data, None, 3) for _ in range(2))
    # A linear function of unit size, noise 0.1; 40 rows leave the ensemble well below half of its size.
    assert first["rmse"] < 0.5 and (first["rmse"], first["nlpd"]) == (second["rmse"], second["nlpd"])


def test_a_failure_is_a_record(example, toy):
    folder, _, _ = toy
    record = example.run(folder, 400, 0, "saddle", {"failed": "ConvergenceError: it did not converge"})
    assert "it did not converge" in record["failed"] and "rmse" not in record
