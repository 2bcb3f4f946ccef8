"""How a table is read and how much of it is used, for every command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from given_network import GIVEN

from torch_propkernel import _memory
from torch_propkernel.__main__ import main
from torch_propkernel.commands import options
from torch_propkernel.commands.data import load_table, split_and_standardize

NAMES = ("fit", "sweep", "compare-widths")
QUICK = {
    "fit": [*GIVEN, "--no-plot"],
    "sweep": [*GIVEN, "--no-plot", "--temperatures", "0.1"],
    "compare-widths": [*GIVEN],
}


@pytest.fixture
def odd_table(table):
    """Write odd.csv: the columns of table.csv, a date and a number of each row, separated by tabs."""
    lines = Path(table()).read_text().splitlines()
    rows = ["id\ta\twhen, UTC\tb\tc\tprice"]
    for i, line in enumerate(lines[1:]):
        a, b, c, price = line.split(",")
        rows.append("\t".join([f"X-{i}", a, f"2024-01-{i + 1}", b, c, price]))
    Path("odd.csv").write_text("\n".join(rows) + "\n")
    return "odd.csv"


class TestColumns:
    @pytest.mark.parametrize("command", NAMES)
    @pytest.mark.parametrize(
        "drop", [["--drop", 'id,"when, UTC"'], ["--drop", "0", "--drop", "2"], ["--drop", "id,-4", "--sep", "tab"]]
    )
    def test_as_if_they_had_never_been_there(self, command, drop, odd_table, run_json, capsys):
        expected = run_json(command, "table.csv", *QUICK[command])
        capsys.readouterr()
        found = run_json(command, odd_table, *drop, *QUICK[command])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "--drop" in line]
        assert line.startswith("  left out: columns ")
        for record in (expected, found):
            assert record.pop("data")["columns"] == 3
            for row in record.get("comparison", []):
                row.pop("seconds")
        assert found == expected

    def test_without_them(self, odd_table, capsys):
        assert main(["fit", odd_table]) == 2
        assert "line 2, column 1 ('id'): expected a finite number, got 'X-0'" in capsys.readouterr().err
        assert main(["fit", odd_table, "--drop", "id"]) == 2
        assert "'2024-01-1', a date or a time: write a number" in capsys.readouterr().err

    def test_new_rows(self, odd_table, capsys):
        assert main(["fit", "table.csv", "--no-plot", "--save", "m"]) == 0
        capsys.readouterr()
        assert main(["predict", "m", "table.csv"]) == 0
        expected = capsys.readouterr().out
        assert main(["predict", "m", odd_table]) == 0  # found by their names, whatever the others hold
        assert capsys.readouterr().out == expected
        bare = "\n".join(Path(odd_table).read_text().splitlines()[1:])
        Path("bare.csv").write_text("\n" + bare)
        assert main(["predict", "m", "bare.csv", "--drop", "0,2,5", "--sep", "\\t"]) == 0
        assert capsys.readouterr().out == expected

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--sep", "::"], "argument --sep: expected one character or one of comma, semicolon"),
            (["--sep", ";"], "expected at least 2 columns separated by ';', got 1: 'a,b,c,price'"),
            (["--drop", "d"], "expected a column to drop that names one column of ['a', 'b', 'c', 'price'], got 'd'"),
            (["--drop", "price", "--target", "price"], "expected a target that is not left out, got 'price'"),
        ],
    )
    def test_refuses(self, table, arguments, message, capsys):
        assert main(["fit", table(), *arguments]) == 2
        assert message in capsys.readouterr().err

    def test_the_shipped_table_has_no_columns_to_drop(self, capsys):
        assert main(["fit", "--drop", "0"]) == 2
        assert "--drop: expected it together with a DATA.csv only, got '0'" in capsys.readouterr().err

    def test_a_header_that_pandas_writes(self, table, run_json, capsys):
        rows = Path(table()).read_text().splitlines()[1:]
        Path("pandas.csv").write_text("\n".join(["0,1,2,3", *rows]))
        assert main(["fit", "pandas.csv", "--no-plot"]) == 2
        message = capsys.readouterr().err
        assert (
            "line 1: expected names or data, got 0, 1, 2, ..." in message and "--header yes or --header no" in message
        )
        assert run_json("fit", "pandas.csv", "--header", "yes", "--no-plot")["data"]["rows"] == 30
        assert run_json("fit", "pandas.csv", "--header", "no", "--no-plot")["data"]["rows"] == 31


class TestMaxRows:
    def test_the_subset(self, table):
        whole = load_table(Path(table(rows=40)), None)
        everything = split_and_standardize(whole, 0.25, 3)
        small = split_and_standardize(whole, 0.25, 3, 12)
        assert len(small.train) == len(small.y) == 12 and small.unused == 18 and everything.unused == 0
        assert torch.equal(small.test, everything.test)  # the same rows are held out
        assert set(small.train.tolist()) < set(everything.train.tolist())
        assert small.train.tolist() == sorted(small.train.tolist()) != everything.train[:12].tolist()
        again, other = (split_and_standardize(whole, 0.25, seed, 12) for seed in (3, 4))
        assert torch.equal(small.train, again.train) and not torch.equal(small.train, other.train)
        y = whole.y[small.train]  # the units are those of the rows that are used
        assert small.shift == pytest.approx(y.mean().item(), rel=1e-12)
        assert split_and_standardize(whole, 0.25, 3, 31).unused == 0

    @pytest.mark.parametrize("command", NAMES)
    def test_the_report_says_so(self, command, table, run_json, capsys):
        arguments = [*QUICK[command], "--test-fraction", "0.2", "--seed", "5"]
        data = run_json(command, table(), "--max-rows", "10", *arguments)["data"]
        assert (data["training_rows"], data["held_out_rows"], data["unused_rows"]) == (10, 6, 14)
        assert "not used: 14 more training rows (--max-rows; a random subset, seed 5)" in capsys.readouterr().out
        assert run_json(command, "table.csv", "--max-rows", "24", *arguments)["data"]["unused_rows"] == 0
        assert "not used" not in capsys.readouterr().out

    def test_rows_that_are_not_used_are_not_predicted(self, table):
        assert main(["fit", table(), "--max-rows", "10", "--no-plot", "--predictions", "p.csv"]) == 0
        splits = [line.split(",")[1] for line in Path("p.csv").read_text().splitlines()[1:]]
        assert splits.count("training") == 10 and splits.count("held-out") == 8 and len(splits) == 18

    def test_refuses(self, table, capsys):
        assert main(["fit", table(), "--max-rows", "1"]) == 2
        assert "--max-rows: expected at least 2, got 1" in capsys.readouterr().err


class TestMemory:
    @pytest.fixture
    def small_machine(self, monkeypatch):
        """Return available(number of bytes)."""

        def available(num_bytes):
            monkeypatch.setattr(_memory, "available_memory", lambda device="cpu": num_bytes)

        return available

    @pytest.mark.parametrize(("command", "size", "gigabytes"), [("fit", 200_000, 64), *((n, 8_000, 1) for n in NAMES)])
    def test_a_large_file_is_refused_before_the_kernel_is_built(self, command, size, gigabytes, small_machine, capsys):
        small_machine(gigabytes * 1e9)
        rows = np.random.default_rng(0).normal(size=(size, 2))
        Path("large.csv").write_text("\n".join(f"{a:.4f},{b:.4f}" for a, b in rows))
        assert main([command, "large.csv"]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        training = size if command == "compare-widths" else size * 3 // 4
        assert f"error: {training} training rows: expected at most {gigabytes} GB, the memory that" in captured.err
        assert "; --max-rows P trains on a random P of them; in Python fit_order_parameters" in captured.err

    def test_max_rows_is_what_it_takes(self, table, small_machine, capsys):
        small_machine(8 * (5 * 12**2 + 12 * 6))  # five matrices, and a vector for each point at which it predicts
        arguments = ["fit", table(), *GIVEN, "--test-fraction", "0.2", "--no-plot", "--max-rows"]
        assert main([*arguments, "13"]) == 2
        assert main([*arguments, "12"]) == 0
        capsys.readouterr()
        assert main([*arguments, "12", "--temperature", "auto"]) == 2  # gradients hold more
        assert "12 training rows: expected at most" in capsys.readouterr().err

    def test_predictions(self, table, small_machine, capsys):
        assert main(["fit", table(), "--no-plot", "--save", "m"]) == 0
        small_machine(1000)
        capsys.readouterr()
        assert main(["predict", "m", "table.csv"]) == 2
        assert "error: m: expected at most 0.001 MB" in capsys.readouterr().err

    def test_a_long_run_is_announced(self, table, monkeypatch, capsys):
        monkeypatch.setattr(options, "PATIENCE", -math.inf)
        assert main(["fit", table(), *GIVEN, "--no-plot", "--json", "-"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["data"]["rows"] == 30
        assert captured.err.startswith("22 training rows: each fit needs about 0.021 MB of memory and 0 seconds")
