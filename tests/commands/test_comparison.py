"""What ``fit`` fits, what it compares on held-out rows, which theory it recommends and what it saves."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from given_network import given_network

from torch_propkernel import ReLU, fit_order_parameters
from torch_propkernel.__main__ import main
from torch_propkernel.commands.comparison import recommend
from torch_propkernel.commands.data import load_table, split_and_standardize
from torch_propkernel.saving import load
from torch_propkernel.tuning import fit_network

THEORIES = ["infinite_width", "free_scale", "saddle", "mixture"]


class TestHyperparameters:
    @pytest.mark.parametrize(
        ("arguments", "name", "value"),
        [
            (("--temperature", "0.0123"), "temperature", 0.0123),
            (("--weight-variance", "2,0.7"), "weight_variance", [2.0, 0.7]),
            (("--bias-variance", "0.3"), "bias_variance", [0.3]),
            (("--no-ard",), "ard_weights", None),
        ],
    )
    def test_a_given_number_is_never_fitted(self, table, arguments, name, value):
        assert (
            main(["fit", table(), "--activation", "relu", *arguments, "--no-plot", "--json", "n.json"]) == 0
        )  # auto is the default
        with open("n.json") as file:
            result = json.load(file)
        assert result["network"][name] == value
        fitted = {
            "temperature": {"temperature"},
            "weight_variance": {"scale"},
            "bias_variance": {"bias_ratio"},
            "ard_weights": {"ard"},
        }
        assert not fitted[name] & set(result["hyperparameters"]["values"])
        others = {"temperature", "scale", "bias_ratio", "ard"} - fitted[name]
        assert others == set(result["hyperparameters"]["values"])

    def test_what_is_not_given_is_that_of_the_library(self, table):
        path = table()
        assert main(["compare-widths", path, "--widths", "5", "--test-fraction", "0.25", "--json", "n.json"]) == 0
        rows = split_and_standardize(load_table(path, None), 0.25, 0)
        expected = fit_network(rows.x, rows.y)
        with open("n.json") as file:
            network = json.load(file)["network"]
        assert network["temperature"] == expected.temperature
        assert network["weight_variance"] == list(expected.weight_variance)
        assert network["ard_weights"] == list(expected.ard_weights)

    def test_how_far_given_ones_are_from_the_best(self, table, run_json, capsys):
        path = table()
        result = run_json("fit", path, "--temperature", "1", "--no-plot")
        rows = split_and_standardize(load_table(path, None), 0.25, 0)
        kernel = given_network(ReLU(), (math.inf,), 1.0).model(rows.x, rows.y).covar_module
        matrix, unit = kernel(rows.x).to_dense().detach(), torch.eye(len(rows.y), dtype=torch.float64)

        def log_evidence(scale, temperature):
            law = torch.distributions.MultivariateNormal(torch.zeros_like(rows.y), scale * matrix + temperature * unit)
            return law.log_prob(rows.y).item()

        gap = result["evidence_gap"]
        best = log_evidence(gap["scale"], gap["temperature"])
        assert gap["nats"] == pytest.approx(best - log_evidence(1.0, 1.0), rel=1e-6) and gap["nats"] > 3
        for factor in (0.1, 0.9, 1.1, 10.0):  # a maximum, in both directions, to the tolerance of the search
            assert log_evidence(factor * gap["scale"], gap["temperature"]) < best + 1e-3
            assert log_evidence(gap["scale"], factor * gap["temperature"]) < best + 1e-3
        assert f"the evidence would be {gap['nats']:.2f} nats higher with T = " in capsys.readouterr().out
        assert result["next"].startswith("Leave the given temperature and variances out")


class TestComparison:
    def test_infinite_width_by_hand(self, table, run_json, capsys):
        """A GP in plain matrices, on rows in the file's units."""
        path = table(rows=40)
        found = run_json("fit", path, "--temperature", "0.05", "--no-plot")["comparison"]
        assert [row["theory"] for row in found] == THEORIES
        rows = split_and_standardize(load_table(path, None), 0.25, 0)
        kernel = given_network(ReLU(), (math.inf,), 0.05).model(rows.x, rows.y).covar_module
        both = torch.cat([rows.x, rows.test_x])
        matrix, P = kernel(both).to_dense().detach().numpy(), len(rows.y)
        solved = np.linalg.solve(matrix[:P, :P] + 0.05 * np.eye(P), matrix[:P, P:])
        y, mean = (rows.shift + rows.scale * v for v in (rows.test_y.numpy(), solved.T @ rows.y.numpy()))
        noisy = rows.scale**2 * (np.diag(matrix[P:, P:] - matrix[P:, :P] @ solved) + 0.05)
        row = found[0]
        # An eigendecomposition instead of a direct solve: rounding times a condition number of 1e3.
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean((y - mean) ** 2)), rel=1e-9)
        assert row["r2"] == pytest.approx(1 - np.mean((y - mean) ** 2) / np.var(y), rel=1e-9)
        density = -0.5 * ((y - mean) ** 2 / noisy + np.log(2 * np.pi * noisy))
        assert row["nlpd"] == pytest.approx(-density.mean(), rel=1e-9)
        assert row["coverage_95"] == np.mean(np.abs(y - mean) <= 1.959964 * np.sqrt(noisy))
        assert all(each["seconds"] > 0 for each in found)
        (recommended,) = [each["theory"] for each in found if each["recommended"]]
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "<- recommended" in line]
        assert line.split()[0] == recommended

    def test_without_held_out_rows(self, table, run_json):
        result = run_json("fit", table(), "--test-fraction", "0", "--no-plot")
        assert result["comparison"] is None and "--test-fraction" in result["next"]

    def test_a_composition_that_has_no_mixture(self, table, run_json):
        network = ("--width", "20,20", "--activation", "erf", "--composition", "nested")
        found = run_json("fit", table(), *network, "--no-plot")["comparison"]
        assert [row["theory"] for row in found] == THEORIES[:3]


def test_recommended():
    noise = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.5, 0.0, 2.0, -2.0])  # standard error 0.433
    zero = torch.zeros(8)
    assert recommend({"infinite_width": noise + 0.86, "saddle": zero}) == "infinite_width"
    assert recommend({"infinite_width": noise + 0.87, "saddle": zero}) == "saddle"
    # What a simpler theory beats is not recommended, though it is within two errors of the best and the other is not.
    losses = {"infinite_width": zero + 0.1, "free_scale": noise + 0.2, "mixture": zero}
    assert recommend(losses) == "mixture"
    assert recommend(dict.fromkeys(reversed(THEORIES), zero)) == "infinite_width"
    # What was chosen from other rows stays unless these rows speak against it.
    assert recommend({"infinite_width": zero, "sampled": noise + 0.86}, "sampled") == "sampled"
    assert recommend({"infinite_width": zero, "sampled": noise + 0.87}, "sampled") == "infinite_width"
    assert recommend({"saddle": zero[:1], "infinite_width": zero[:1] + 5.0}) == "infinite_width"  # one row says nothing


class TestSaved:
    def test_all_rows(self, table, capsys):
        path = table()
        arguments = (
            "--width",
            "100",
            "--activation",
            "relu",
            "--temperature",
            "0.1",
            "--weight-variance",
            "1",
            "--bias-variance",
            "1",
            "--no-ard",
            "--no-plot",
        )
        assert main(["fit", path, *arguments, "--save", "m"]) == 0
        assert "refitted on all rows with the same hyperparameters and units" in capsys.readouterr().out
        saved, whole = load("m"), load_table(path, None)
        rows = split_and_standardize(whole, 0.25, 0)  # the hyperparameters belong to the training rows' units
        expected = given_network(ReLU(), (100.0,), 0.1).model(
            rows.units.to_model(whole.x), rows.units.targets.to_model(whole.y)
        )
        fit_order_parameters(expected, warn=False)
        assert torch.equal(saved.model.train_inputs[0], expected.train_inputs[0])
        assert torch.equal(saved.model.train_targets, expected.train_targets)
        assert torch.equal(saved.model.covar_module.order_parameter, expected.covar_module.order_parameter)
        assert saved.model.likelihood.noise.item() == pytest.approx(0.1, rel=1e-15)

    @pytest.mark.parametrize(("limit", "size"), [(10, 10), (25, 25), (40, 30)])
    def test_no_more_than_the_limit(self, limit, size, table):
        rows = split_and_standardize(load_table(table(), None), 0.25, 0, limit)
        assert len(rows.saved) == len(set(rows.saved.tolist())) == size
        assert len(set(rows.train.tolist()) - set(rows.saved.tolist())) == 0


def test_predictions_of_a_theory(table, run_json):
    path = table()
    result = run_json("fit", path, "--theory", "infinite_width", "--predictions", "p.csv", "--no-plot")
    with open("p.csv") as file:
        errors = {"training": [], "held-out": []}
        for row in csv.DictReader(file):
            errors[row["split"]].append((float(row["target"]) - float(row["mean"])) ** 2)
    for split, key in (("training", "leave_one_out"), ("held-out", "held_out")):
        assert np.mean(errors[split]) == pytest.approx(result[key]["infinite_width"]["bias"], rel=1e-9)
    assert main(["fit", path, "--theory", "guess"]) == 2
