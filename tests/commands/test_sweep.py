"""``sweep``: the map over widths and temperatures, and the learning curve."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from given_network import GIVEN, given_network

from torch_propkernel import ReLU, fit_order_parameters, generalization_error, leave_one_out_error
from torch_propkernel.__main__ import main
from torch_propkernel.commands.data import load_table, split_and_standardize


def test_the_map_is_that_of_single_fits(table, run_json):
    path = table()
    result = run_json("sweep", path, "--widths", "10,300", "--temperatures", "0.02,0.2", "--no-plot")
    rows = split_and_standardize(load_table(path, None), 0.25, 0)
    square = rows.scale**2
    found = result["map"]
    assert found["width"] == [[10.0], [100.0], [300.0]] and found["temperature"] == [0.02, 0.2]
    for k, temperature in enumerate((0.02, 0.2)):
        for w, width in enumerate((10.0, 100.0, 300.0)):
            model = given_network(ReLU(), (width,), temperature).model(rows.x, rows.y)
            solution = fit_order_parameters(model, warn=False)
            # A Cholesky factorization and an eigendecomposition: rounding times a condition number of 1e3.
            assert found["order_parameter"][k][w] == pytest.approx(solution.order_parameter.tolist(), rel=1e-9)
            loo = leave_one_out_error(model)
            assert found["leave_one_out"][k][w] == pytest.approx(square * loo.mean_total.item(), rel=1e-9)
            test = generalization_error(model, rows.test_x, rows.test_y)
            assert found["held_out"][k][w] == pytest.approx(square * test.mean_total.item(), rel=1e-9)
        wide = square * test.infinite_width.mean_total.item()
        assert found["infinite_width"]["held_out"][k] == pytest.approx(wide, rel=1e-9)
    values = np.column_stack([found["leave_one_out"], found["infinite_width"]["leave_one_out"]])
    k, w = np.unravel_index(values.argmin(), values.shape)
    assert result["lowest"]["leave_one_out"] == values.min()
    assert result["lowest"]["temperature"] == found["temperature"][k]
    assert result["lowest"]["width"] == [*found["width"], [None]][w]


def test_shapes_of_the_learning_curve(table, run_json):
    result = run_json("sweep", table(), "--temperatures", "0.1", "--sizes", "22,10,5", "--repeats", "3", "--no-plot")
    curve = result["learning_curve"]
    assert curve["num_data"] == [5, 10, 22]
    assert np.array(curve["order_parameter"]).shape == (3, 3, 1) and np.array(curve["bias"]).shape == (3, 3)


def test_all_rows_are_one_subset(table, run_json):
    path = table(rows=32)  # 24 training rows
    result = run_json("sweep", path, "--temperature", "0.1", "--sizes", "24", "--repeats", "2", "--no-plot")
    rows = split_and_standardize(load_table(path, None), 0.25, 0)
    model = given_network(ReLU(), (100.0,), 0.1).model(rows.x, rows.y)
    fit_order_parameters(model, warn=False)
    error = generalization_error(model, rows.test_x, rows.test_y)
    curve, square = result["learning_curve"], rows.scale**2
    assert curve["bias"][0] == pytest.approx(2 * [square * error.mean_bias.item()], rel=1e-9)
    assert curve["variance"][0] == pytest.approx(2 * [square * error.mean_variance.item()], rel=1e-9)
    wide = square * error.infinite_width.mean_bias.item()
    assert curve["infinite_width_bias"][0] == pytest.approx(2 * [wide], rel=1e-9)


def test_report_and_plot(table, capsys, tmp_path):
    assert main(["sweep", table(), "--width", "20,40", "--widths", "10", "--temperatures", "0.1"]) == 0
    captured = capsys.readouterr()
    for text in ("leave-one-out", "held-out", "10,20", "20,40", "lowest leave-one-out error", "learning curve", "inf"):
        assert text in captured.out
    assert captured.err == ""
    assert (tmp_path / "propkernel_sweep.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_held_out(table, capsys, tmp_path):
    arguments = ("--test-fraction", "0", "--temperatures", "0.1", "--json", "n.json")
    assert main(["sweep", table(), *arguments]) == 0
    assert "no learning curve: no row is held out" in capsys.readouterr().out
    with open("n.json") as file:
        result = json.load(file)
    assert result["learning_curve"] is None and result["map"]["held_out"] is None
    assert (tmp_path / "propkernel_sweep.png").exists()


def test_temperature_by_evidence_is_that_of_the_curve(table, run_json):
    result = run_json("sweep", table(), "--temperature", "auto", "--temperatures", "0.1", "--no-plot")
    assert result["network"]["temperature"] == result["hyperparameters"]["values"]["temperature"][0]
    assert result["map"]["temperature"] == [0.1]


def test_an_end_of_the_grid_is_named(table, capsys):
    assert main(["sweep", table(), "--temperatures", "0.1,1", "--no-plot"]) == 0
    assert "T = 0.1, an end of --temperatures" in capsys.readouterr().out


def test_numbers_on_stdout_are_alone_there(table, capsys):
    assert main(["sweep", table(), "--temperatures", "0.1", "--json", "-"]) == 0
    assert math.isfinite(json.loads(capsys.readouterr().out)["lowest"]["leave_one_out"])


def test_help_documents_the_keys(table, run_json, capsys):
    result = run_json("sweep", table(), "--temperatures", "0.1", "--no-plot")
    capsys.readouterr()
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    for key, value in result.items():
        assert f"\n  {key} " in text
        if key in ("map", "lowest", "learning_curve"):
            assert all(inner in text for inner in value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "inf"], "--width: expected a finite layer to sweep, got infinite ones only"),
        (["--widths", "0"], "--widths: expected finite numbers > 0"),
        (["--temperatures", "0.1,-1"], "temperature: expected a finite number > 0"),
        (["--sizes", "2.5"], "--sizes: expected whole numbers from 1 to 231"),
        (["--sizes", "500"], "--sizes: expected whole numbers from 1 to 231"),
        (["--repeats", "0"], "--repeats: expected at least 1"),
        (
            ["--width", "9,9", "--composition", "nested", "--activation", "erf"],
            "composition: expected one in which only",
        ),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["sweep", *GIVEN, *arguments, "--no-plot"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
