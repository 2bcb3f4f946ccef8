"""``predict``: what a saved model says about new rows."""

from __future__ import annotations

import csv
import io
import json
from statistics import NormalDist

import numpy as np
import pytest
import torch
from given_network import GIVEN

import torch_propkernel._memory as memory_module
import torch_propkernel.inference.problem as problem_module
from torch_propkernel import FiniteNetworkProcess, FiniteWidthLikelihood, ReLU, RenormalizedNNGPKernel
from torch_propkernel.__main__ import main
from torch_propkernel.commands import predict as predict_module
from torch_propkernel.models import NetworkFiniteWidthProcess
from torch_propkernel.saving import load, save


@pytest.fixture
def model(table):
    """Path of a model of a table with columns a, b, c and a target."""
    assert (
        main(["fit", table(), *GIVEN, "--target", "price", "--temperature", "0.1", "--no-plot", "--save", "model"]) == 0
    )
    return "model"


def write(path, header, rows):
    lines = [header] * bool(header) + [",".join(f"{v:.17g}" for v in row) for row in rows]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.fixture
def new(rng):
    return rng.normal(size=(7, 3))


def read(text):
    rows = list(csv.DictReader(io.StringIO(text)))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_numbers_are_those_of_gpytorch(model, new, capsys):
    capsys.readouterr()
    assert main(["predict", model, write("new.csv", "a,b,c", new), "--quantiles", "0.1,0.5,0.9"]) == 0
    columns = read(capsys.readouterr().out)
    saved = load(model)
    with torch.no_grad():
        latent = saved.model(saved.normalization.to_model(torch.as_tensor(new)))
        noisy = saved.model.likelihood(latent)
    scale, shift = float(saved.normalization.target_scale), float(saved.normalization.target_mean)
    # GPyTorch solves with the same Cholesky factorization in another order.
    np.testing.assert_allclose(columns["mean"], shift + scale * latent.mean, rtol=1e-8)
    np.testing.assert_allclose(columns["standard_deviation"], scale * latent.stddev, rtol=1e-7)
    np.testing.assert_allclose(columns["standard_deviation_with_noise"], scale * noisy.stddev, rtol=1e-7)
    np.testing.assert_allclose(columns["q0.5"], columns["mean"])
    factor = NormalDist().inv_cdf(0.9)
    np.testing.assert_allclose(columns["q0.9"], columns["mean"] + factor * columns["standard_deviation_with_noise"])
    np.testing.assert_allclose(columns["q0.1"] + columns["q0.9"], 2 * columns["mean"])
    assert columns["line"].tolist() == list(range(2, 9))


@pytest.mark.parametrize("theory", [None, "saddle", "mixture", "first_order"])
def test_a_model_past_memory_is_streamed(theory, model, new, capsys, monkeypatch):
    """The model of 30 rows is taken for one that does not fit; only the first order needs its matrix."""
    saved = load(model)
    if theory is not None:
        gp = saved.model
        made = FiniteNetworkProcess(
            gp.train_inputs[0], gp.train_targets, gp.likelihood, gp.covar_module, theory=theory
        ).eval()
        save(made, model, normalization=saved.normalization, extra=saved.extra)
    command = ["predict", model, write("new.csv", "a,b,c", new)]
    capsys.readouterr()
    assert main(command) == 0
    truth = read(capsys.readouterr().out)
    monkeypatch.setattr(problem_module, "_LARGE", 10)
    monkeypatch.setattr(problem_module, "available_memory", lambda device="cpu": 100.0)
    if theory == "first_order":
        monkeypatch.setattr(memory_module, "available_memory", lambda device="cpu": 100.0)
        assert main(command) == 2
        assert "expected at most 0.0001 MB" in capsys.readouterr().err
        return
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "30 training rows do not fit into memory as a matrix: streamed" in captured.err
    found = read(captured.out)
    for name, value in truth.items():  # variances to 1e-3, means to 1e-4 of the targets
        np.testing.assert_allclose(found[name], value, rtol=5e-3, atol=5e-3 * np.abs(truth["mean"]).max())


def test_training_rows_are_predicted_as_fit_does(table, capsys):
    path = table()
    # The limit keeps the held-out rows out of the saved model.
    files = ("--max-rows", "18", "--predictions", "p.csv", "--save", "model")
    assert main(["fit", path, *GIVEN, "--test-fraction", "0.4", "--no-plot", *files]) == 0
    capsys.readouterr()
    assert main(["predict", "model", path]) == 0
    columns = read(capsys.readouterr().out)
    with open("p.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "held-out"]
    for row in rows:
        index = columns["line"].tolist().index(float(row["line"]))
        for name in ("mean", "standard_deviation", "standard_deviation_with_noise"):
            assert columns[name][index] == pytest.approx(float(row[name]), rel=1e-9)


def test_columns_are_found_by_name(model, new, capsys):
    capsys.readouterr()
    assert main(["predict", model, write("new.csv", "a,b,c", new)]) == 0
    expected = capsys.readouterr().out
    shuffled = np.column_stack([new[:, 2], np.full(7, 9.0), new[:, 0], new[:, 1]])
    assert main(["predict", model, write("other.csv", "c,price,a,b", shuffled)]) == 0
    assert capsys.readouterr().out == expected


def test_columns_without_names_go_by_number(model, new, capsys):
    capsys.readouterr()
    assert main(["predict", model, write("new.csv", "a,b,c", new)]) == 0
    expected = read(capsys.readouterr().out)
    assert main(["predict", model, write("bare.csv", "", new)]) == 0
    assert (read(capsys.readouterr().out)["mean"] == expected["mean"]).all()


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("a,b,d", 3, "expected the columns ['a', 'b', 'c'], each once, got ['a', 'b', 'd']: look at ['c']"),
        ("a,b,c,c", 4, "each once, got ['a', 'b', 'c', 'c']: look at ['c']"),
        ("", 4, "expected 3 columns (a, b, c), got 4; the target is not among them"),
        ("", 2, "expected 3 columns (a, b, c), got 2"),
    ],
)
def test_columns_that_do_not_fit(model, new, header, columns, message, capsys):
    capsys.readouterr()
    path = write("new.csv", header, np.column_stack([new, new])[:, :columns])
    assert main(["predict", model, path]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_constant_columns_that_fit_has_dropped(table, new, capsys):
    def constant(cells):
        for row in cells:
            row[1] = "3.5"

    assert main(["fit", table(edit=constant), "--no-plot", "--save", "model"]) == 0
    capsys.readouterr()
    assert main(["predict", "model", write("new.csv", "a,b,c", new)]) == 0
    first = capsys.readouterr().out
    new[:, 1] += 5.0
    assert main(["predict", "model", write("new.csv", "a,b,c", new)]) == 0
    assert capsys.readouterr().out == first


def test_outputs(model, new, capsys):
    path = write("new.csv", "a,b,c", new)
    capsys.readouterr()
    assert main(["predict", model, path, "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(["predict", model, path]) == 0
    columns = read(capsys.readouterr().out)
    assert record["inputs"] == ["a", "b", "c"] and record["target"] == "column price"
    assert all(record["predictions"][name] == pytest.approx(columns[name].tolist(), rel=1e-15) for name in columns)
    assert main(["predict", model, path, "--json", "-", "--out", "p.csv"]) == 0
    json.loads(capsys.readouterr().out)
    with open("p.csv") as file:
        assert (read(file.read())["mean"] == columns["mean"]).all()
    assert main(["predict", model, path, "--json", "n.json"]) == 0
    assert read(capsys.readouterr().out).keys() == columns.keys()
    with open("n.json") as file:
        assert json.load(file) == record


def test_help_documents_the_keys(model, new, capsys):
    capsys.readouterr()
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    assert main(["predict", model, write("new.csv", "a,b,c", new), "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert all(key in text for key in [*record, *(k for k in record["predictions"] if not k.startswith("q"))])


def test_missing_values(model, capsys):
    with open("new.csv", "w") as file:
        file.write("a,b,c\n1,2,3\n1,,3\n")
    capsys.readouterr()
    assert main(["predict", model, "new.csv"]) == 2
    assert "line 3, column 2 ('b'): expected a finite number, got a missing value" in capsys.readouterr().err
    assert main(["predict", model, "new.csv", "--drop-missing"]) == 0
    captured = capsys.readouterr()
    assert read(captured.out)["line"].tolist() == [2]
    assert captured.err == "left out: 1 rows with missing values (lines 3)\n"


def test_many_rows_come_in_chunks(model, rng, capsys, monkeypatch):
    path = write("new.csv", "a,b,c", rng.normal(size=(25, 3)))
    capsys.readouterr()
    assert main(["predict", model, path]) == 0
    expected = read(capsys.readouterr().out)
    monkeypatch.setattr(predict_module, "CHUNK", 10)
    assert main(["predict", model, path]) == 0
    got = read(capsys.readouterr().out)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-10)


def test_models_saved_in_python(capsys, new):
    x, y = torch.randn(20, 3).double(), torch.randn(20).double()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    kernel, likelihood = RenormalizedNNGPKernel(ReLU(), 20), FiniteWidthLikelihood()
    torch.set_default_dtype(before)
    save(gp(x, y, likelihood, kernel), "plain")
    assert main(["predict", "plain", write("new.csv", "u,v,w", new)]) == 0
    columns = read(capsys.readouterr().out)
    with torch.no_grad():
        expected = load("plain").model(torch.as_tensor(new))
    np.testing.assert_allclose(columns["mean"], expected.mean, rtol=1e-8)
    save(NetworkFiniteWidthProcess(x, y, likelihood, kernel), "process")
    assert main(["predict", "process", "new.csv"]) == 2
    assert "expected a NetworkGP or a FiniteNetworkProcess, got a NetworkFiniteWidthProcess" in capsys.readouterr().err
    save(gp(x, y, likelihood, kernel), "empty", training_data=False)
    assert main(["predict", "empty", "new.csv"]) == 2
    assert "saved without" in capsys.readouterr().err


def gp(x, y, likelihood, kernel):
    from torch_propkernel import NetworkGP

    return NetworkGP(x, y, likelihood, kernel)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "new.csv"], "nowhere"),
        (["new.csv", "new.csv"], "expected a model saved by torch_propkernel, got another kind of file"),
        (["model", "nowhere.csv"], "nowhere.csv"),
        (["model", "new.csv", "--quantiles", "0.5,1"], "--quantiles: expected numbers between 0 and 1"),
        (["model", "new.csv", "--out", "-", "--json", "-"], "--out, --json: expected two files, got stdout for both"),
        (["model", "new.csv", "--out", "nowhere/p.csv"], "expected a folder nowhere that exists"),
    ],
)
def test_bad_arguments(model, new, arguments, message, capsys):
    write("new.csv", "a,b,c", new)
    capsys.readouterr()
    assert main(["predict", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
