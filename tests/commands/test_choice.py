"""``fit --theory auto`` and ``sampled``: the choice from the training rows, what stands beside it, what is saved."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from torch_propkernel.__main__ import main
from torch_propkernel.commands import analysis, fit
from torch_propkernel.commands.comparison import coverage_95
from torch_propkernel.commands.data import load_table, split_and_standardize
from torch_propkernel.models import FiniteNetworkProcess
from torch_propkernel.saving import load
from torch_propkernel.theories import Sampled
from torch_propkernel.tuning import fit_predictor

FEW = Sampled(num_chains=4, num_draws=4, every=1, spread=3.0)  # too few to be accurate, the same each time
HOT = ("--temperature", "0.3", "--weight-variance", "1", "--bias-variance", "1", "--no-ard", "--no-plot")


@pytest.fixture(autouse=True)
def _few_networks(monkeypatch):
    """Chains that take no time, and no time for adaptive units."""

    def few(*args, theory, **options):
        few.asked.append({"theory": theory, **options})
        return fit_predictor(*args, theory=FEW, **options)

    few.asked = []
    monkeypatch.setattr(fit, "fit_predictor", few)
    monkeypatch.setattr(analysis, "ADAPTIVE_SECONDS", 1e9)
    return few


def numbers(*arguments):
    assert main(["fit", *arguments, "--json", "n.json"]) == 0
    with open("n.json") as file:
        return json.load(file)


def test_the_choice_is_reported_and_compared(table, capsys, _few_networks):
    path = table(rows=40)
    result = numbers(path, "--theory", "auto", "--time-limit", "50", *HOT)
    (asked,) = _few_networks.asked
    assert asked["theory"] == "auto" and asked["width"] is None and asked["time_limit"] == 40.0
    assert asked["temperature"] == 0.3 and asked["ard_weights"] == 1.0
    names = [row["theory"] for row in result["comparison"]]
    assert names == ["infinite_width", "free_scale", "saddle", "mixture", "sampled"]
    assert [row["theory"] for row in result["comparison"] if row["chosen"]] == ["sampled"]
    assert result["choice"]["theory"] == "sampled" and result["choice"]["width"] == 50.0
    assert result["network"]["width"] == [50.0]
    out = capsys.readouterr().out
    assert "choice from the training rows alone" in out and result["choice"]["message"] in out
    assert "adaptive was left out for lack of time" in out and "chosen by auto" in out


def test_the_adaptive_theory_stands_beside_it(table, monkeypatch):
    monkeypatch.setattr(analysis, "ADAPTIVE_SECONDS", 0.0)
    monkeypatch.setattr(analysis, "ADAPTIVE_UNITS", 20)
    result = numbers(table(rows=24), "--theory", "auto", *HOT)
    assert "adaptive" in [row["theory"] for row in result["comparison"]]


def test_coverage_is_that_of_the_mixtures_quantiles(table):
    rows = split_and_standardize(load_table(table(rows=60), None), 0.5, 0)
    model = fit_predictor(rows.x, rows.y, theory="infinite_width").prior.model(rows.x, rows.y, 4.0)
    model.likelihood.noise = 0.3
    fitted = FEW.fit(model)
    mean, variance = fitted.conditioned.moments(rows.test_x)
    generator = torch.Generator().manual_seed(0)
    node = torch.randint(len(mean), (200_000,), generator=generator)
    noisy = (variance + 0.3).sqrt()
    draws = mean[node] + noisy[node] * torch.randn(len(node), len(rows.test_y), generator=generator, dtype=mean.dtype)
    low, high = np.quantile(draws.numpy(), [0.025, 0.975], axis=0)
    inside = (rows.test_y.numpy() >= low) & (rows.test_y.numpy() <= high)
    # A row at a quantile may fall on either side of its estimate.
    assert coverage_95(fitted, rows.test_x, rows.test_y) == pytest.approx(inside.mean(), abs=1.01 / 30)


@pytest.mark.parametrize("fraction", ["0", "0.25"])
def test_the_chosen_model_is_saved_and_predicts(table, fraction, capsys):
    path = table(rows=40)
    files = ("--save", "m", "--predictions", "p.csv", "--test-fraction", fraction)
    numbers(path, "--theory", "sampled", *HOT, *files)
    saved = load("m")
    assert type(saved.model) is FiniteNetworkProcess and saved.model.theory == FEW
    assert len(saved.model.train_targets) == 40  # all rows
    capsys.readouterr()
    assert main(["predict", "m", path, "--quantiles", "0.1,0.9", "--out", "new.csv"]) == 0
    with open("new.csv") as file:
        found = [[float(row[name]) for name in row] for row in csv.DictReader(file)]
    found = np.array(found)
    whole = load_table(path, None)
    with torch.no_grad():
        latent = saved.model(saved.normalization.to_model(whole.x))
        noisy = saved.model.likelihood(latent)
    scale, shift = float(saved.normalization.target_scale), float(saved.normalization.target_mean)
    expected = [
        shift + scale * latent.mean,
        scale * latent.stddev,
        scale * noisy.stddev,
        shift + scale * noisy.icdf(0.1),
        shift + scale * noisy.icdf(0.9),
    ]
    for column, values in zip(found.T[1:], expected, strict=True):
        np.testing.assert_allclose(column, values, rtol=1e-8)
    with open("p.csv") as file:
        rows = list(csv.DictReader(file))
    gap = [float(row["standard_deviation_with_noise"]) ** 2 - float(row["standard_deviation"]) ** 2 for row in rows]
    np.testing.assert_allclose(gap, 0.3 * scale**2, rtol=1e-6)


@pytest.mark.parametrize("theory", ["infinite_width", "mixture", "free_scale"])
def test_other_theories_are_saved_too(table, theory):
    path = table()
    numbers(path, "--theory", theory, *HOT, "--save", "m")
    assert load("m").model.theory.name == theory
    assert main(["predict", "m", path, "--out", "new.csv"]) == 0


def test_refusals(table, capsys):
    assert main(["fit", table(), "--time-limit", "0"]) == 2
    assert "--time-limit: expected a number of seconds > 0, got 0" in capsys.readouterr().err
