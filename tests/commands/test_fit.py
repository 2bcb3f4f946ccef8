"""``fit``, in process: what it prints, writes and refuses."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import json
import math
import os
import sys

import gpytorch
import numpy as np
import pytest
import torch
from given_network import GIVEN, given_network

from torch_propkernel import (
    Erf,
    NetworkGP,
    ReliabilityWarning,
    ReLU,
    Spectrum,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
    width_sweep,
)
from torch_propkernel.__main__ import main
from torch_propkernel.activations import Identity
from torch_propkernel.commands.analysis import DEFAULT_WIDTHS, analyze
from torch_propkernel.commands.data import load_table, split_and_standardize
from torch_propkernel.saving import load
from torch_propkernel.theories import FreeScale
from torch_propkernel.tuning import auto, fit_network


def fit(*arguments, plot=False):
    return main(["fit", *GIVEN, "--width", "100", "--activation", "relu", *arguments, *([] if plot else ["--no-plot"])])


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_yacht_report(tmp_path, capsys):
    assert fit(plot=True) == 0
    captured = capsys.readouterr()
    out = captured.out
    assert captured.err == ""  # no progress bar on a run of a second
    for text in (
        "Yacht Hydrodynamics, 308 rows, 6 inputs",
        "natural log of the published resistance",
        "J. Gerritsma",
        "CC-BY-4.0",
        "231 training rows, 77 held out at random (seed 0)",
        "standardized on the training rows",
        "infinite width    finite width",
        "free scale (ScaleKernel)",
        "from training rows alone (leave-one-out)",
        "expected squared error at given targets, formula (4)",
        "global_minimum",
        "all from one factorization",
        "reliability",
    ):
        assert text in out
    assert (tmp_path / "propkernel_fit.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_numbers_of_the_library(tmp_path):
    path = tmp_path / "numbers.json"
    assert fit("--json", str(path), "--widths", "20,400") == 0
    result = json.loads(path.read_text())
    assert all(math.isfinite(v) for v in leaves(result) if isinstance(v, int | float))

    rows = split_and_standardize(load_table(None, None), 0.25, 0)
    assert (len(rows.y), len(rows.test_y)) == (231, 77)
    model = given_network(ReLU(), (100.0,), 0.01).model(rows.x, rows.y)
    solution = fit_order_parameters(model, warn=False)
    test = generalization_error(model, rows.test_x, rows.test_y)
    loo = leave_one_out_error(model)
    sweep = width_sweep(model, [20.0, 100.0, 400.0], rows.test_x, rows.test_y)
    # One reduction has eigenvectors, the other has not: rounding times the condition number of the covariance.
    assert result["solution"]["order_parameter"] == pytest.approx(solution.order_parameter.tolist(), rel=1e-11)
    assert result["solution"]["num_minima"] == 1
    assert result["network"]["alpha"] == [231 / 100]
    square = rows.scale**2
    for name, error in (("leave_one_out", loo), ("held_out", test)):
        for column, estimate in (("finite_width", error), ("infinite_width", error.infinite_width)):
            entry = result[name][column]
            assert entry["bias"] == pytest.approx(square * estimate.mean_bias.item(), rel=1e-12)
            assert entry["variance"] == pytest.approx(square * estimate.mean_variance.item(), rel=1e-12)
            assert entry["total"] == pytest.approx(entry["bias"] + entry["variance"], rel=1e-12)
    assert result["sweep"]["width"] == [[20.0], [100.0], [400.0]]
    np.testing.assert_allclose(result["sweep"]["order_parameter"], sweep.order_parameter, rtol=1e-12)
    np.testing.assert_allclose(result["sweep"]["leave_one_out"], square * sweep.leave_one_out.mean_total, rtol=1e-12)
    np.testing.assert_allclose(result["sweep"]["held_out"], square * sweep.test.mean_total, rtol=1e-12)
    # A Cholesky factorization and an eigendecomposition of one covariance: rounding times its condition number, 1e6.
    assert result["sweep"]["held_out"][1] == pytest.approx(result["held_out"]["finite_width"]["total"], rel=1e-8)


def test_errors_are_in_the_units_of_the_target(table, tmp_path):
    path = table()
    x, y = load_table(path, None).x, load_table(path, None).y
    assert fit(path, "--json", "a.json") == 0
    rows = [",".join(f"{v:.17g}" for v in (*x[i], 1000 * y[i] - 7)) for i in range(len(y))]
    (tmp_path / "scaled.csv").write_text("\n".join(rows))
    assert fit("scaled.csv", "--json", "b.json") == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert second["solution"]["order_parameter"] == pytest.approx(first["solution"]["order_parameter"], rel=1e-9)
    for name in ("leave_one_out", "held_out"):
        for column in first[name]:
            # the scale is found by a search with a tolerance of 1e-10 in its log; its errors follow to first order
            expected = 1e6 * first[name][column]["total"]
            assert second[name][column]["total"] == pytest.approx(expected, rel=1e-7)


def test_help_documents_the_keys(table, capsys):
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert fit(table(), "--temperature", "auto", "--json", "numbers.json") == 0
    with open("numbers.json") as file:
        result = json.load(file)
    for key, value in result.items():
        assert f"\n  {key} " in text
        for inner in {} if value is None or isinstance(value, str) else value[0] if isinstance(value, list) else value:
            assert inner in text


@pytest.mark.parametrize("header", [True, False])
def test_csv(table, capsys, header):
    path = table(header)
    assert fit(path, "--test-fraction", "0.2", "--temperature", "0.05", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert "30 rows, 3 inputs; target: last column" in out
    assert "24 training rows, 6 held out at random (seed 3)" in out


def test_target_by_name_and_by_index(table):
    path = table()
    for target in ("b", "1", "-3"):
        assert fit(path, "--target", target, "--json", f"n{target}.json") == 0
    results = []
    for target in ("b", "1", "-3"):
        with open(f"n{target}.json") as file:
            results.append(json.load(file)["leave_one_out"])
    assert results[0] == results[1] == results[2]


def test_constant_columns_are_dropped_with_a_note(table, capsys):
    def constant(cells):
        for row in cells:
            row[1] = "3.5"

    assert fit(table(edit=constant)) == 0
    assert "dropped: input columns [1] (from 0), constant on the training rows" in capsys.readouterr().out


def test_nothing_held_out(table, capsys):
    assert fit(table(), "--test-fraction", "0", "--json", "n.json", plot=True) == 0
    out = capsys.readouterr().out
    assert "0 held out" in out and "formula (4)" not in out
    with open("n.json") as file:
        result = json.load(file)
    assert result["held_out"] is None and result["sweep"]["held_out"] is None


def cell(value, column=1):
    def edit(cells):
        cells[7][column] = value

    return edit


def constant_target(cells):
    for row in cells:
        row[-1] = "4.0"


def constant_inputs(cells):
    for row in cells:
        row[:-1] = ["1", "2", "3"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cell("nan"), "expected a finite number, got a missing value"),
        (cell("red"), "'red', which is not a number"),
        (cell("nan"), "1 of 30 rows have missing values; --drop-missing leaves them out"),
        (cell("red"), "column 2 ('b'): 1 of 30 cells are texts ('red')"),
        (cell("red"), "pandas.get_dummies(table, columns=['b'], dtype=float)"),
        (constant_target, "expected at least two values, got 4 in all training rows"),
        (constant_inputs, "expected a column that varies"),
    ],
)
def test_bad_tables(table, capsys, edit, message):
    assert fit(table(edit=edit)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--activation", "reluu"], "cos, erf, exp, gelu, identity, leaky_relu"),
        (["nowhere.csv"], "nowhere.csv"),
        (["--width", "0"], "width: expected positive numbers"),
        (["--width", "10,-5"], "width: expected positive numbers"),
        (["--width", "ten"], "expected numbers separated by commas"),
        (["--widths", "10,inf"], "--widths: expected finite numbers > 0"),
        (["--temperature", "-0.1"], "temperature: expected a finite number > 0, got -0.1"),
        (["--temperature", "0"], "temperature: expected a finite number > 0"),
        (["--temperature", "nan"], "temperature: expected a finite number > 0"),
        (["--weight-variance", "1,2,3"], "weight_variance: expected 1 or 2 numbers"),
        (["--bias-variance", "-1"], "bias_variance: expected finite numbers >= 0"),
        (["--composition", "inner"], "composition: expected one of"),
        (["--test-fraction", "1"], "--test-fraction: expected a number from 0 to below 1"),
        (["--test-fraction", "0.999"], "expected at least 2 training rows"),
        (["--target", "price"], "together with a DATA.csv only"),
        (["--temperature", "warm"], "expected a number or auto, got 'warm'"),
        (["--json", "nowhere/a.json"], "expected a folder nowhere that exists"),
        (["--save", "nowhere/a.model"], "expected a folder nowhere that exists"),
        (["--predictions", "nowhere/a.csv"], "expected a folder nowhere that exists"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert fit(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--activation", "relu", "--theory", "gated"], "width: Gated() expected 2 hidden layer(s), got 1"),
        (["fit", "--theory", "gated", "--width", "9,9", "--activation", "erf"], "activation: Gated() expected ReLU()"),
        (
            ["fit", "--activation", "relu", "--theory", "gated", "--width", "9,9"],
            "bias_variance: Gated() expected zero",
        ),
        (["fit", "--theory", "first_order"], "invalid choice: 'first_order'"),  # it has no leave-one-out
        (["sweep", "--width", "9,9", "--activation", "erf", "--composition", "nested"], "a map would need minutes"),
        (
            ["compare-widths", "--width", "9,9", "--activation", "erf", "--composition", "nested"],
            "composition: expected",
        ),
    ],
)
def test_what_does_not_apply_is_refused_before_the_search(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(auto, "fit_hyperparameters", lambda *args, **options: pytest.fail("a search was started"))
    try:
        assert main(arguments) == 2
    except SystemExit as stopped:  # from the parser
        assert stopped.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_without_matplotlib_the_report_still_comes(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert fit(plot=True) == 0
    captured = capsys.readouterr()
    assert 'pip install "torch_propkernel[examples]"' in captured.err
    assert "from training rows alone" in captured.out


def test_several_layers_keep_their_ratio(table):
    assert fit(table(), "--width", "100,50", "--widths", "20", "--json", "n.json", plot=True) == 0
    with open("n.json") as file:
        assert json.load(file)["sweep"]["width"] == [[20.0, 10.0], [100.0, 50.0]]


def test_other_compositions_fit_the_given_widths_only(table, capsys):
    arguments = (table(), "--width", "40,40", "--activation", "erf", "--composition", "nested")
    assert fit(*arguments, "--widths", "20", "--json", "n.json") == 0
    assert "only for the given ones: this composition is not one-dimensional" in capsys.readouterr().out
    with open("n.json") as file:
        result = json.load(file)
    assert result["solution"]["result"] == "local_minimum"
    assert result["sweep"]["width"] == [[20.0, 20.0], [40.0, 40.0]]
    assert result["sweep"]["held_out"][1] == pytest.approx(result["held_out"]["finite_width"]["total"], rel=1e-12)


def test_infinite_width(capsys):
    assert fit("--width", "inf", "--json", "n.json", plot=True) == 0
    assert "no plot" in capsys.readouterr().out
    with open("n.json") as file:
        result = json.load(file)
    assert result["network"]["width"] == [None] and result["sweep"] is None
    assert result["leave_one_out"]["finite_width"] == result["leave_one_out"]["infinite_width"]


def test_the_reliability_note_is_printed_once(capsys, recwarn):
    assert fit("--activation", "erf", "--width", "30") == 0
    captured = capsys.readouterr()
    note = captured.out.partition("\nreliability: ")[2].strip()
    assert len(note) > 20 and (captured.out + captured.err).count(note) == 1
    assert not [w for w in recwarn if issubclass(w.category, ReliabilityWarning)]


class TestFreeScale:
    @pytest.fixture
    def rows(self):
        return split_and_standardize(load_table(None, None), 0.25, 0)

    @pytest.mark.parametrize(("activation", "T"), [(ReLU(), 0.01), (Erf(), 0.1)])
    def test_is_the_limit_of_a_prior_without_weight(self, rows, activation, T):
        model = given_network(activation, (100.0,), T).model(rows.x, rows.y)
        matrix = model.covar_module(rows.x).to_dense().detach()  # q = 1
        spectrum = Spectrum.from_kernel(matrix, rows.y, base=torch.full_like(rows.y, T))
        free = FreeScale().fit(model)
        scale, at_edge = free.order_parameters["r"].item(), free.stats["at_edge"]
        limit = solve_order_parameters(spectrum, width=1e-9, temperature=1.0).order_parameter.item()
        # A maximum of a function known to rounding is known to the root of rounding.
        assert scale == pytest.approx(limit, rel=1e-6)
        assert not at_edge

    def test_is_the_maximum_of_gpytorch_with_a_scale_kernel(self, rows):
        free = analyze(given_network(ReLU(), (100.0,), 0.01), rows, (100.0,)).free_scale
        base = given_network(ReLU(), (math.inf,), 0.01).model(rows.x, rows.y)
        kernel = gpytorch.kernels.ScaleKernel(base.covar_module.requires_grad_(False)).double()
        kernel.outputscale = free.order_parameters["r"]
        covariance = kernel(rows.x).to_dense() + 0.01 * torch.eye(len(rows.y), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(rows.y), covariance)
        log_prob = normal.log_prob(rows.y)
        (slope,) = torch.autograd.grad(log_prob, kernel.raw_outputscale)
        assert free.log_evidence.item() == pytest.approx(log_prob.item(), rel=1e-9)
        assert abs(slope.item()) < 1e-4  # beside terms of the order of P = 231

    def test_says_where_there_is_no_maximum(self):
        x, y = 5**0.5 * torch.eye(5, dtype=torch.float64), torch.full((5,), 0.1, dtype=torch.float64)
        model = given_network(Identity(), (100.0,), 1.0, bias_variance=0.0).model(x, y)  # K = 1
        assert FreeScale().fit(model).stats["at_edge"]  # targets below the noise: the evidence falls with r


class TestTemperatureByEvidence:
    def test_it_is_that_of_the_library(self, table, run_json, capsys):
        path = table()
        result = run_json("fit", path, "--temperature", "auto", "--bias-variance", "auto", "--no-plot")
        rows = split_and_standardize(load_table(path, None), 0.25, 0)
        chosen = fit_network(rows.x, rows.y, weight_variance=1.0, ard_weights=1.0)
        assert result["network"]["temperature"] == chosen.temperature != 0.01
        assert result["network"]["bias_variance"] == list(chosen.bias_variance) != [1.0]
        assert result["hyperparameters"]["log_evidence"] == chosen.search.log_evidence
        assert result["hyperparameters"]["rows"] == 22 and result["hyperparameters"]["converged"]
        model = chosen.model(rows.x, rows.y, 100.0)
        expected = fit_order_parameters(model, warn=False).order_parameter.tolist()
        assert result["solution"]["order_parameter"] == pytest.approx(expected, rel=1e-11)
        out = capsys.readouterr().out
        assert "fitted by evidence at infinite width on the training rows, then frozen: temperature, bias_ratio" in out

    def test_without_biases(self, table, run_json):
        result = run_json("fit", table(), "--temperature", "auto", "--bias-variance", "0", "--no-plot")
        assert result["network"]["bias_variance"] == [0.0]

    def test_the_width_plays_no_part(self, table, run_json):
        path, arguments = table(), ("--temperature", "auto", "--no-plot")
        found = [run_json("fit", path, *arguments, "--width", width) for width in ("5", "inf")]
        assert found[0]["hyperparameters"] == found[1]["hyperparameters"]

    def test_no_convergence_is_exit_code_one(self, table, monkeypatch, capsys):
        def stop_early(*arguments, **keywords):
            found = fit_network(*arguments, **keywords)
            search = dataclasses.replace(found.search, converged=False, message="it stopped early")
            return dataclasses.replace(found, search=search)

        monkeypatch.setattr("torch_propkernel.commands.options.fit_network", stop_early)
        assert fit(table(), "--temperature", "auto") == 1
        captured = capsys.readouterr()
        assert "a search that did not converge: it stopped early" in captured.err
        assert "theories on the held-out rows" in captured.out


class TestMissingValues:
    @staticmethod
    def edit(cells):
        cells[4][0], cells[9][3], cells[9][1] = "", "NA", "?"

    def test_rows_are_left_out_on_request_only(self, table, run_json, capsys):
        path = table(edit=self.edit)
        assert fit(path) == 2
        message = capsys.readouterr().err
        assert "line 6, column 1 ('a')" in message and "2 of 30 rows have missing values" in message
        result = run_json("fit", path, "--drop-missing", "--no-plot")
        assert result["data"]["rows"] == 28 and result["data"]["dropped_lines"] == [6, 11]
        assert "left out: 2 rows with missing values (lines 6, 11)" in capsys.readouterr().out

    def test_as_if_the_rows_had_never_been_there(self, table, run_json, tmp_path):
        path = table(edit=self.edit)
        result = run_json("fit", path, "--drop-missing", "--no-plot")
        with open(path) as file:
            lines = file.read().splitlines()
        (tmp_path / "clean.csv").write_text("\n".join(line for i, line in enumerate(lines, 1) if i not in (6, 11)))
        assert run_json("fit", "clean.csv", "--no-plot")["leave_one_out"] == result["leave_one_out"]

    def test_too_few_are_left(self, tmp_path, capsys):
        (tmp_path / "t.csv").write_text("1,2\n3,\n,4\n")
        assert fit("t.csv", "--drop-missing") == 2
        assert "expected at least 2 rows without missing values, got 1" in capsys.readouterr().err


class TestHeader:
    def test_names_that_are_numbers(self, tmp_path, run_json, capsys):
        (tmp_path / "t.csv").write_text("1990,2000,mean\n" + "\n".join(f"{i},{i * i},{3 * i}" for i in range(8)))
        assert fit("t.csv") == 2
        assert "if this line is a header: header=True (--header yes" in capsys.readouterr().err
        result = run_json("fit", "t.csv", "--header", "yes", "--target", "2000", "--no-plot")
        assert result["data"]["rows"] == 8 and result["data"]["target"] == "column 2000"

    def test_a_first_row_of_texts_can_be_declared_data(self, table, capsys):
        assert fit(table(), "--header", "no") == 2
        assert "line 1, column 1: expected a finite number, got 'a'" in capsys.readouterr().err


class TestFiles:
    def test_saved_model(self, table, run_json):
        result = run_json("fit", table(), "--width", "30,20", "--save", "m", "--test-fraction", "0", "--no-plot")
        saved = load("m")
        assert type(saved.model) is NetworkGP
        assert saved.model.covar_module.order_parameter.flatten().tolist() == result["solution"]["order_parameter"]
        assert saved.extra["columns"] == {"inputs": ["a", "b", "c"], "count": 3, "kept": [0, 1, 2]}
        assert float(saved.normalization.target_mean) == result["data"]["target_mean"]

    def test_predictions(self, table, run_json):
        path = table(edit=lambda cells: cells[4].__setitem__(0, ""))
        result = run_json("fit", path, "--drop-missing", "--predictions", "p.csv", "--no-plot")
        with open("p.csv") as file, open(path) as original:
            rows = list(csv.DictReader(file))
            lines = original.read().splitlines()
        assert [int(row["line"]) for row in rows] == [line for line in range(2, 32) if line != 6]
        assert all(float(row["target"]) == float(lines[int(row["line"]) - 1].split(",")[-1]) for row in rows)
        for split, key in (("training", "leave_one_out"), ("held-out", "held_out")):
            own = [{k: float(v) for k, v in row.items() if k != "split"} for row in rows if row["split"] == split]
            bias = np.mean([(row["target"] - row["mean"]) ** 2 for row in own])
            assert bias == pytest.approx(result[key]["finite_width"]["bias"], rel=1e-9)
            variance = np.mean([row["standard_deviation"] ** 2 for row in own])
            assert variance == pytest.approx(result[key]["finite_width"]["variance"], rel=1e-9)
            noise = 0.01 * result["data"]["target_standard_deviation"] ** 2
            both = [row["standard_deviation_with_noise"] ** 2 - row["standard_deviation"] ** 2 for row in own]
            np.testing.assert_allclose(both, noise, rtol=1e-6)  # a difference of squares

    def test_numbers_on_stdout_are_alone_there(self, table, capsys):
        files = ("--save", "m", "--predictions", "p.csv", "--plot", "p.png")
        assert fit(table(), "--json", "-", *files, plot=True) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["data"]["rows"] == 30
        assert sorted(os.listdir()) == ["m", "p.csv", "p.png", "table.csv"]


def test_default_widths():
    assert len(DEFAULT_WIDTHS) == 13 and min(DEFAULT_WIDTHS) == 10 and max(DEFAULT_WIDTHS) == 1000
