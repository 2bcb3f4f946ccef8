"""The benchmark that samples reference networks again runs and writes its page."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "resample_reference.py"
DATA = Path(__file__).parents[1] / "data"


def test_page(shipped_cases):
    spec = importlib.util.spec_from_file_location("resample_reference", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    case = shipped_cases[0]
    rows = [script.resample(case, DATA, 12, 20, run) for run in ("marginal", "joint")]
    assert set(rows[0]["values"]) == set(script.NAMES)
    assert not rows[0]["converged"]
    page = script.markdown(rows, "12 draws")
    assert "of 6 values in 1 cases lie within 4 combined standard errors" in page
    assert page.count(f"| {case['id']} | ") == 2  # the table of values and that of the two ways
