"""``compare-widths``: evidence and leave-one-out over widths."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from given_network import GIVEN, given_network

from torch_propkernel import ReLU
from torch_propkernel.__main__ import main
from torch_propkernel.commands.data import load_table, split_and_standardize
from torch_propkernel.theories import FreeScale, width_sweep


def test_numbers_are_those_of_the_library(table, run_json):
    path = table()
    result = run_json("compare-widths", path, "--widths", "5,50", "--temperature", "0.1")
    rows = split_and_standardize(load_table(path, None), 0.0, 0)
    model = given_network(ReLU(), (100.0,), 0.1).model(rows.x, rows.y)
    expected = width_sweep(model, [5.0, 50.0, 100.0, math.inf], theory="mixture")
    found = result["widths"]
    assert found["width"] == [[5.0], [50.0], [100.0], [None]]
    assert found["log_evidence"] == expected.log_evidence.tolist()
    np.testing.assert_allclose(found["leave_one_out_error"], rows.scale**2 * expected.leave_one_out.mean_total)
    shifted = expected.leave_one_out.log_density.mean(-1) - math.log(rows.scale)
    np.testing.assert_allclose(found["leave_one_out_log_density"], shifted)
    assert result["data"]["held_out_rows"] == 0
    spread = expected.log_evidence.max() - expected.log_evidence.min()
    assert result["preference"]["spread"] == spread.item()
    free = FreeScale().fit(model)
    # One reduction has eigenvectors, the other has not; the scale is found by a search with a tolerance of 1e-10.
    assert result["free_scale"]["scale"] == pytest.approx(free.order_parameters["r"].item(), rel=1e-7)
    assert result["free_scale"]["log_evidence"] == pytest.approx(free.log_evidence.item(), rel=1e-11)


def test_densities_are_in_the_units_of_the_target(table, run_json, tmp_path):
    path = table()
    first = run_json("compare-widths", path, "--widths", "5", "--temperature", "0.1")
    x, y = load_table(path, None).x, load_table(path, None).y
    rows = [",".join(f"{v:.17g}" for v in (*x[i], 1000 * y[i] - 7)) for i in range(len(y))]
    (tmp_path / "scaled.csv").write_text("\n".join(rows))
    second = run_json("compare-widths", "scaled.csv", "--widths", "5", "--temperature", "0.1")
    a, b = (np.array(each["widths"]["leave_one_out_log_density"]) for each in (first, second))
    np.testing.assert_allclose(a - b, math.log(1000.0), rtol=1e-7)


def test_no_preference_and_a_preference(table, capsys):
    path = table()
    assert main(["compare-widths", path, *GIVEN, "--temperature", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "no preference: the log evidences differ by" in out and "less than 3 (--nats)" in out
    assert main(["compare-widths", path, *GIVEN, "--temperature", "0.1", "--nats", "0.001", "--json", "n.json"]) == 0
    assert "no evidence for a width:" in capsys.readouterr().out  # a free scale gains more than so little
    with open("n.json") as file:
        result = json.load(file)
    assert result["preference"]["explained_by_free_scale"]
    best = int(np.argmax(result["widths"]["log_evidence"]))
    assert result["preference"]["width"] == result["widths"]["width"][best]


def test_a_width_is_preferred_only_where_no_scale_explains_it(table, run_json, capsys):
    """At the best readout variance a free scale gains nothing; at a hundredth of it narrow widths only look better."""
    path = table()
    scale = run_json("compare-widths", path, "--temperature", "0.1")["free_scale"]["scale"]
    capsys.readouterr()

    def compare(variance):
        arguments = ("--temperature", "0.1", "--weight-variance", f"1,{variance!r}", "--nats", "0.1")
        return run_json("compare-widths", path, *arguments), capsys.readouterr().out

    result, out = compare(scale)
    assert result["free_scale"]["scale"] == pytest.approx(1.0, abs=1e-6)  # found by a search with a tolerance of 1e-10
    assert result["preference"]["width"] == [None] and not result["preference"]["explained_by_free_scale"]
    assert "preferred width: inf has the highest evidence" in out
    assert "no evidence for a width" not in out and "the prior variances are off" not in out

    result, out = compare(scale / 100)
    assert result["preference"]["width"] == result["widths"]["width"][0]
    assert result["preference"]["explained_by_free_scale"]
    assert "no evidence for a width: 10 has the highest evidence" in out and "preferred width" not in out
    assert "nats above infinite width at the prior's scale: the prior variances are off" in out


def test_the_leave_one_out_density_is_that_of_fits_without_a_row(table, run_json):
    """At infinite width by brute force: a GP on all other rows, standardized with all of them."""
    path = table(rows=12)
    result = run_json("compare-widths", path, "--widths", "5", "--temperature", "0.1")
    rows = split_and_standardize(load_table(path, None), 0.0, 0)
    kernel = given_network(ReLU(), (math.inf,), 0.1).model(rows.x, rows.y).covar_module
    matrix = kernel(rows.x).to_dense().detach() + 0.1 * torch.eye(12, dtype=torch.float64)
    total = 0.0
    for i in range(12):
        rest = [j for j in range(12) if j != i]
        solved = torch.linalg.solve(matrix[rest][:, rest], matrix[rest, i])
        mean, variance = solved @ rows.y[rest], matrix[i, i] - solved @ matrix[rest, i]
        total += torch.distributions.Normal(mean, variance.sqrt()).log_prob(rows.y[i]).item()
    expected = total / 12 - math.log(rows.scale)
    assert result["widths"]["leave_one_out_log_density"][-1] == pytest.approx(expected, rel=1e-9)


def test_numbers_on_stdout_are_alone_there(table, capsys):
    assert main(["compare-widths", table(), "--temperature", "auto", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["hyperparameters"]["message"].startswith("converged")


def test_help_documents_the_keys(table, run_json, capsys):
    result = run_json("compare-widths", table(), "--widths", "5")
    capsys.readouterr()
    assert main(["compare-widths", "--help"]) == 0
    text = capsys.readouterr().out
    for key, value in result.items():
        assert f"\n  {key} " in text
        if key in ("widths", "preference"):
            assert all(inner in text for inner in value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "inf"], "--width: expected a finite layer to compare"),
        (["--widths", "-1"], "--widths: expected finite numbers > 0"),
        (["--temperature", "0"], "temperature: expected a finite number > 0"),
        (
            ["--width", "9,9", "--composition", "nested", "--activation", "erf"],
            "composition: expected one in which only",
        ),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["compare-widths", *GIVEN, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
