"""The reproduction of the paper's experiments, at tiny size: what is written, and that it is what direct calls give."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import gpytorch
import numpy as np
import pytest
import torch

from torch_propkernel import (
    Erf,
    NetworkGP,
    ReLU,
    RenormalizedNNGPKernel,
    fit_order_parameters,
    generalization_error,
)
from torch_propkernel.exceptions import SamplingWarning
from torch_propkernel.networks import FiniteNetwork, sample_posterior
from torch_propkernel.theories import Adaptive, FreeScale

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from reproduce_paper import __main__ as program
    from reproduce_paper import data, experiments, report, run, theory

    data._images.cache_clear()
    monkeypatch.setattr(theory, "ADAPTIVE", FreeScale())  # a fast theory in its place
    return SimpleNamespace(program=program, data=data, experiments=experiments, report=report, run=run, theory=theory)


def load(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def model(task, activation, widths, temperature, composition="outer"):
    kernel = RenormalizedNNGPKernel(activation, torch.tensor(widths, dtype=torch.float64), composition).double()
    kernel.weight_variance = torch.ones(len(widths) + 1, dtype=torch.float64)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = torch.tensor(temperature, dtype=torch.float64)
    return NetworkGP(task.x, task.y, likelihood, kernel).double()


def test_everything_is_written_and_an_interrupted_run_continues(example, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    pytest.importorskip("sklearn")
    options = ["--tiny", "--only", "width", "--data", str(tmp_path), "--output", str(tmp_path), "--workers", "0"]
    example.program.main([*options, "--minutes", "0"])  # nothing is begun
    assert "NOT COMPUTED within the time limit, so absent below (12;" in capsys.readouterr().out
    example.program.main(options)
    printed = capsys.readouterr().out
    results, report = load(tmp_path), (tmp_path / "reproduce_paper.md").read_text()
    assert "STAND-IN" in printed and "STAND-IN" in report  # there are no image files in that folder
    assert "NOT COMPUTED" not in report and not results["missing"]
    for name in ("width.png", "order_parameter.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert not (tmp_path / "data.png").exists()

    curves = results["curves"]
    assert {(c["task"], c["activation"]) for c in curves} == {
        (task, activation) for task in ("mnist", "cifar10", "teacher200") for activation in ("erf", "relu")
    }
    for curve in curves:
        assert [point["value"] for point in curve["points"]] == curve["values"]
        assert set(curve["theory"]) == {"infinite width", "free scale", "saddle point", "adaptive"}
        for theory in curve["theory"].values():
            assert len(theory["x"]) == len(theory["test_error"]) == len(theory["order_parameter"])
            assert theory["x"] == sorted(theory["x"]) and theory["x"][0] == min(curve["values"])
            assert np.isfinite(theory["test_error"]).all() and min(theory["variance"]) > 0
        for point in curve["points"]:
            assert set(point["measured"]) == set(example.run.QUANTITIES)
            for value in point["measured"].values():
                assert value["standard_error"] > 0 and value["effective_sample_size"] > 5 and value["r_hat"] < 3
            assert set(point["predicted"]) == set(curve["theory"]) | {"mixture", "saddle + 1/N", "reliability"}
            reliability = point["predicted"]["reliability"]
            assert 1 < reliability["participation_ratio"] < point["num_data"] and reliability["note"]
            assert not point["converged"] and "not converged" in point["message"]  # 20 draws
    assert report.count("NOT CONVERGED") >= len(example.report.unique_points(curves))

    finished = tmp_path / "finished.jsonl"
    lines = finished.read_text().splitlines(keepends=True)
    finished.write_text("".join(lines[:-1]))
    example.program.main(options)
    keys = [[json.loads(line)["key"] for line in text] for text in (lines, finished.read_text().splitlines())]
    assert keys[0] == keys[1] and load(tmp_path)["curves"] != []
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("activation", "depth", "names"),
    [
        ("erf", 2, {"outer", "nested", "linear part"}),
        ("relu", 2, {"outer = nested", "gated"}),
        ("relu", 3, {"outer = nested"}),
    ],
)
def test_deep_networks_have_the_theories_that_apply(example, activation, depth, names):
    pytest.importorskip("matplotlib")
    from reproduce_paper import plots

    curve = example.experiments.Curve("deep", "teacher300", activation, "width", (6,), 8, depth)
    theory = example.theory.predict_curve(curve, 5, example.data.Source(), num_values=2)
    assert set(theory) == {"infinite width", "free scale"} | names
    assert all(min(column["x"]) == 6 and max(column["x"]) == pytest.approx(9) for column in theory.values())
    assert set(theory) <= set(plots.STYLES)


def test_predictions_are_those_of_direct_calls(example, monkeypatch):
    monkeypatch.setattr(example.theory, "ADAPTIVE", Adaptive(num_units=20, tolerance=10.0))
    curve = example.experiments.Curve("width", "teacher200", "erf", "width", (5, 20), 15)
    source = example.data.Source()
    task = example.data.load_task("teacher200", 15, 10, source)
    theory = example.theory.predict_curve(curve, 10, source, num_values=4)
    for width in curve.values:
        gp = model(task, Erf(), [width], 0.1)
        q = fit_order_parameters(gp, warn=False).order_parameter
        error = generalization_error(gp, task.test_x, task.test_y)
        free, adaptive = FreeScale().fit(gp), example.theory.ADAPTIVE.fit(gp)
        expected = {
            "saddle point": (error.mean_total, q[0]),
            "infinite width": (error.infinite_width.mean_total, 1.0),
            "free scale": (free.error(task.test_x, task.test_y).mean_total, free.order_parameters["r"]),
            "adaptive": (adaptive.error(task.test_x, task.test_y).mean_total, adaptive.readout_norm),
        }
        point = example.theory.predict(task, curve.point(width))
        for name, (value, scale) in expected.items():
            column = theory[name]
            index = column["x"].index(width)
            for found in (column["test_error"][index], point[name]["test_error"]):
                assert found == pytest.approx(float(value), rel=1e-9)
            for found in (column["order_parameter"][index], point[name]["order_parameter"]):
                assert found == pytest.approx(float(scale), rel=1e-7)  # the free scale's search stops at 1e-8


def test_curves_along_the_data_use_the_training_set_of_each_size(example):
    curve = example.experiments.Curve("data", "teacher200", "relu", "num_data", (6, 12), 5)
    source = example.data.Source()
    theory = example.theory.predict_curve(curve, 10, source, num_values=3)
    assert theory["saddle point"]["x"] == sorted({6, 12, round(72**0.5)})
    for num_data in curve.values:
        task = example.data.load_task("teacher200", num_data, 10, source)
        gp = model(task, ReLU(), [5.0], 0.1)
        fit_order_parameters(gp, warn=False)
        index = theory["saddle point"]["x"].index(num_data)
        expected = generalization_error(gp, task.test_x, task.test_y).mean_total.item()
        assert theory["saddle point"]["test_error"][index] == pytest.approx(expected, rel=1e-9)


def test_sampled_values_are_those_of_a_direct_call(example):
    point = example.experiments.Point("teacher200", "relu", 8, (4,), 0.1)
    sampling = example.experiments.Sampling(num_test=10, num_samples=10, warmup=10)
    source = example.data.Source()
    found = example.run.sample(point, sampling, source, "cpu")
    task = example.data.load_task("teacher200", 8, 10, source)
    network = FiniteNetwork(ReLU(), 200, 4, dtype=torch.float64)
    options = {"test_x": task.test_x, "test_y": task.test_y, "num_chains": 4, "num_samples": 30, "warmup": 30}
    with pytest.warns(SamplingWarning):  # three times the draws were not enough; the example writes it down instead
        direct = sample_posterior(network, task.x, task.y, 0.1, **options)
    assert found["measured"]["test_error"]["mean"] == direct.test_error.mean.item()
    assert found["converged"] is False and found["message"] == direct.message


def test_random_data(example):
    load_task, source = example.data.load_task, example.data.Source()
    small, large = (load_task("teacher200", size, 5, source) for size in (7, 30))
    assert torch.equal(small.x, large.x[:7]) and torch.equal(small.test_y, large.test_y)
    weights = torch.linalg.lstsq(load_task("teacher200", 300, 5, source).x, load_task("teacher200", 300, 5, source).y)
    assert torch.allclose(large.test_x @ weights.solution, large.test_y)  # linear, without noise


def test_images_from_files_are_gray_standardized_and_labeled(example, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(60, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(60, dtype=np.uint8) % 3  # class 2 is left out
    np.savez(tmp_path / "cifar10_planes_cars.npz", images=images, labels=labels)
    source = example.data.Source(str(tmp_path))
    title, description = example.data.describe("cifar10", source)
    assert title == "CIFAR-10 planes / cars" and "cifar10_planes_cars.npz" in description
    task = example.data.load_task("cifar10", 25, 100, source)
    assert task.x.shape == (25, 784) and task.test_x.shape == (15, 784)
    assert set(task.y.tolist()) == set(task.test_y.tolist()) == {-1.0, 1.0}
    assert task.x.mean().abs() < 1e-12 and task.x.std().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="more than 40 images"):
        example.data.load_task("cifar10", 40, 1, source)


def test_torchvision_data_are_never_downloaded_unasked(example, monkeypatch):
    calls = []

    def mnist(root, train, download):
        calls.append((root, train, download))
        return SimpleNamespace(data=torch.zeros(4, 28, 28, dtype=torch.uint8), targets=torch.tensor([0, 1, 5, 1]))

    fake = SimpleNamespace(datasets=SimpleNamespace(MNIST=mnist, CIFAR10=None))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    source = example.data.Source(torchvision="somewhere")
    assert "torchvision" in example.data.describe("mnist", source)[1]
    assert len(example.data.load_task("mnist", 2, 9, source).test_y) == 1
    assert calls == [("somewhere", True, False)]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    example.data._images.cache_clear()
    with pytest.raises(ImportError, match="pip install torchvision"):
        example.data.describe("mnist", source)


def point_of(theory_error, *, converged=True, reliable=True):
    entries = {"infinite width": 1.1, "free scale": 2.0, "saddle point": theory_error}
    predicted = {name: {"test_error": value, "order_parameter": 1.5} for name, value in entries.items()}
    value = {"mean": 1.0, "standard_error": 0.01, "effective_sample_size": 900.0, "r_hat": 1.001}
    return {
        "task": "mnist",
        "title": "digits",
        "activation": "erf",
        "widths": [7],
        "num_data": 9,
        "converged": converged,
        "draws": {"num_samples": 30},
        "measured": {"test_error": value, "order_parameter": value},
        "predicted": predicted | {"reliability": {"reliable": reliable, "participation_ratio": 3.0}},
    }


def test_report_says_where_the_theory_fails(example):
    lines = example.report._failures([point_of(1.3, reliable=False), point_of(1.05), point_of(0.7)])
    text = "\n".join(lines)
    assert "at 2 of 3 points. The\npackage does not warn at 1 of them, and warns at 0 other points." in text
    assert "- digits, erf, N = 7, P = 9: +30 %, infinite width +10 %" in text  # a baseline is closer
    assert "+5 %" not in text
    table = example.report._table([point_of(1.3, converged=False)])
    assert "1.0000 +- 0.0100 NOT CONVERGED | +10.0 | +100.0 | +30.0 | 1.000 | 1.500" in table[-1]
    repeated = example.report._repeated([point_of(1.3)], {"num_samples": 10, "repeat": 3})
    assert repeated[0].startswith("1 of 1 points were sampled again, with 3 times the draws")
    assert not example.report._repeated([point_of(1.3)], {"num_samples": 30, "repeat": 3})
    failed = point_of(1.3, converged=False) | {"measured": {}}
    table = example.report._table([point_of(1.3), failed])
    assert "sampling failed" in table[-1] and table[-1].count("|") == table[-2].count("|")


def test_worker_processes_give_what_one_process_gives(example, tmp_path):
    pytest.importorskip("tqdm")
    curves = (example.experiments.Curve("data", "teacher200", "erf", "num_data", (4,), 3),)
    plan = example.experiments.Plan(
        curves, example.experiments.Sampling(num_test=3, num_samples=20, warmup=5, repeat=1)
    )
    source = example.data.Source()
    one, two = (example.run.run(plan, source, tmp_path / f"{n}.jsonl", workers=n) for n in (0, 1))
    values = [results["curves"][0]["points"][0]["measured"]["test_error"]["mean"] for results in (one, two)]
    assert math.isfinite(values[0]) and values[0] == values[1]
