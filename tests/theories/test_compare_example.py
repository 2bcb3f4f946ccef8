"""The comparison with sampled networks runs on the cases that ship, and writes what their file lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_comparison_of_all_theories(tmp_path):
    script, folder, out = (
        ROOT / "examples" / "compare_with_sampled_networks.py",
        ROOT / "tests" / "data",
        tmp_path / "o",
    )
    if not script.exists():
        pytest.skip("the examples are not beside the tests")
    command = [sys.executable, str(script), str(folder), "--json", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "median of |error|" in run.stdout
    results = {entry["id"]: entry for entry in json.loads(out.read_text())}
    cases = json.loads((folder / "finite_networks.json").read_text())
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
