"""The comparison with sampled networks runs on the cases that ship, and writes what their file lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def compare(folder, out):
    """Return what the script prints and writes, and the cases."""
    script = ROOT / "examples" / "compare_with_sampled_networks.py"
    if not script.exists():
        pytest.skip("the examples are not beside the tests")
    command = [sys.executable, str(script), str(folder), "--json", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    results = {entry["id"]: entry for entry in json.loads(out.read_text())}
    return run.stdout, results, json.loads((folder / "finite_networks.json").read_text())


def test_the_comparison_of_all_theories(tmp_path):
    text, results, cases = compare(ROOT / "tests" / "data", tmp_path / "o")
    assert "median of |error|" in text
    compared = 0
    for case in cases:
        predictions = results[case["id"]]["predictions"]
        for name, listed in case["theory"].items():
            if name in predictions:
                got, expected = ([v[key] for key in ("mse", "bias2", "var")] for v in (predictions[name], listed))
                np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=f"{case['id']} {name}")
                compared += 1
    assert compared == 3 + 4 + 5  # erf: inf, saddle, mix; relu also (5); two layers: three saddles, mix, inf
    assert results["50"]["regime"] == "1 hidden, relu, ratio < 25"


def test_a_case_of_several_outputs(tmp_path):
    folder = ROOT / "tests" / "data" / "outputs"
    text, results, (case,) = compare(folder, tmp_path / "o")
    found = results[case["id"]]["predictions"]
    assert results[case["id"]]["regime"] == "2 outputs, 1 hidden, relu, ratio < 25" and "output    1" in text
    for prediction in found.values():
        assert sum(prediction["mse_per_output"]) == pytest.approx(prediction["mse"], rel=1e-12)
        assert prediction["bias2"] + prediction["var"] == pytest.approx(prediction["mse"], rel=1e-12)
    for value, sampled in zip(found["saddle"]["mse_per_output"], case["measured"]["mse_per_output"], strict=True):
        assert value == pytest.approx(sampled["mean"], rel=0.02)  # 20 units: the theory is off by a percent
    for name in ("inf", "free"):
        assert abs(found[name]["mse"] / case["measured"]["mse"]["mean"] - 1) > 0.1
    with np.load(folder / case["arrays"]) as arrays:
        x, y, test_x, test_y = (arrays[name].astype(float) for name in ("X", "y", "Xt", "yt"))
    points = np.concatenate([x, test_x])
    gram = points @ points.T / x.shape[1]
    length = np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
    angle = np.arccos(np.clip(gram / length, -1.0, 1.0))
    kernel = length * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    size = len(x)
    solved = np.linalg.solve(kernel[:size, :size] + case["temperature"] * np.eye(size), kernel[:size, size:])
    variance = kernel[size:, size:].diagonal() - (kernel[:size, size:] * solved).sum(0)
    expected = ((test_y - solved.T @ y) ** 2 + variance[:, None]).mean(0)
    # The arccosine of nearly parallel rows loses half of its digits.
    np.testing.assert_allclose(found["inf"]["mse_per_output"], expected, rtol=1e-6)
