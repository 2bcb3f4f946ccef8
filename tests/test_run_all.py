"""One command reruns the benchmarks: its smallest part runs, is compared with the stored page and is not run twice."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "run_all.py"
RESULTS = SCRIPT.parent / "results"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("run_all", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_all"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_all"]


PAGE = """\
# Title
### yacht: 10 splits, 278 rows

| model | splits | RMSE | verdict | worst \\|S\\| |
| --- | --- | --- | --- | --- |
| infinite | 10 | 0.25 +- 0.034 | +0.1 worse | 1e-3 |
| energy | erf 20 | -5.0 % | baseline | - |
"""


def test_numbers_have_names(program):
    assert dict(program.numbers(PAGE)) == {
        ("yacht", "infinite", "splits"): 10,
        ("yacht", "infinite", "RMSE"): 0.25,
        ("yacht", "infinite", "verdict"): 0.1,
        ("yacht", "infinite", "worst \\|S\\|"): 1e-3,
        ("yacht", "energy, erf 20", "RMSE"): -5.0,
    }


def test_ratios(program):
    new = PAGE.replace("0.25", "0.5").replace("infinite |", "saddle |", 0)
    assert program.compare("uci_table", PAGE, new) == [
        "| uci_table | yacht, infinite | RMSE | 0.25 | 0.5 | 2.000 |",
        "| uci_table | yacht, energy, erf 20 | RMSE | -5 | -5 | 1 |",
    ]
    assert program.compare("uci_table", "", new)[0] == "| uci_table | yacht, infinite | RMSE | - | 0.5 | - |"


def test_every_stored_page_belongs_to_a_benchmark_and_has_what_is_compared(program):
    stored = {path.stem: path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md")}
    assert set(stored) <= set(program.BENCHMARKS)
    for name, page in stored.items():
        assert len(program.chosen(page, program.BENCHMARKS[name].columns)) > 10, name
    for benchmark in program.BENCHMARKS.values():
        assert (SCRIPT.parent / benchmark.script).exists()


def test_smallest_part_runs_and_a_finished_page_is_not_computed_again(program, tmp_path, capsys, monkeypatch):
    options = ["--quick", "--only", "solver_vs_brute_force", "--output", str(tmp_path)]
    assert program.main(options) == 0
    printed = capsys.readouterr().out
    assert "| solver_vs_brute_force | The solver against brute force, all | beaten | 0 | 0 | 1 |" in printed
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.md", "solver_vs_brute_force.md"]

    def refuse(*arguments, **keywords):
        raise AssertionError("it was run again")

    monkeypatch.setattr(program.subprocess, "run", refuse)
    assert program.main(options) == 0
    assert capsys.readouterr().out == printed


def test_a_benchmark_that_fails_is_named_and_leaves_no_page(program, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.py").write_text("print('| a | b |'); raise SystemExit(1)")
    broken = program.BENCHMARKS["solve_and_predict"]._replace(script=str(tmp_path / "broken.py"))
    monkeypatch.setitem(program.BENCHMARKS, "solve_and_predict", broken)
    output = tmp_path / "new"
    assert program.main(["--quick", "--only", "solve_and_predict", "--output", str(output)]) == 1
    assert re.search(r"^FAILED: solve_and_predict: exit status 1 of ", capsys.readouterr().out, re.MULTILINE)
    assert [path.name for path in output.iterdir()] == ["comparison.md"]


def test_missing_data_are_named(program, tmp_path, capsys):
    options = ["--quick", "--only", "uci_table", "--output", str(tmp_path), "--uci", str(tmp_path / "none")]
    assert program.main(options) == 0
    assert f"NOT RUN: uci_table: expected data in {tmp_path / 'none'}, found none" in capsys.readouterr().out


def test_a_quick_run_is_not_stored(program, tmp_path, capsys):
    with pytest.raises(SystemExit):
        program.main(["--quick", "--store", "--output", str(tmp_path)])
    assert "--store: expected a full run, got --quick" in capsys.readouterr().err
