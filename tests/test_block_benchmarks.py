"""The benchmarks of networks over blocks run at tiny size, on data made here, and their kernels are what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_propkernel import NNGPKernel

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")


@pytest.fixture
def load(monkeypatch):
    def run(name):
        monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # they import what they share
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return run


def test_feature_blocks_are_kernels_of_one_column_each(load):
    example = load("uci_additive")
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"weight_variance": [2.0, 0.3], "bias_variance": 0.5}
    blocks = example.FeatureBlocks(NNGPKernel("erf", **options), 3).double()
    weights = torch.tensor([[2.0, 0.7, 0.0], [0.7, 1.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    parts = [NNGPKernel("erf", active_dims=[a], **options).double()(x).to_dense() for a in range(3)]
    expected = 2.0 * parts[0] + parts[1] + 0.5 * parts[2]  # blocks of different features are independent
    torch.testing.assert_close(blocks.weighted(x, x, weights), expected, rtol=1e-12, atol=1e-14)
    diagonal = blocks.weighted(x, x, weights, diag=True)
    torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-12, atol=1e-14)


def test_additive_page_finds_the_feature_that_matters(load, tmp_path, monkeypatch, capsys):
    example = load("uci_additive")
    monkeypatch.setitem(example.FEATURES, "toy", ("matters", "does not"))
    folder = tmp_path / "toy"
    folder.mkdir()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    np.savetxt(folder / "data.csv.gz", np.column_stack([x, np.sin(2.0 * x[:, 0])]), delimiter=",")
    mask = np.stack([np.arange(40) % 4 == k for k in (0, 1)], axis=1)
    np.savetxt(folder / "test_mask.csv.gz", mask.astype(int), delimiter=",", fmt="%d")
    fits, page = tmp_path / "fits.jsonl", tmp_path / "page.md"
    options = ["--data", str(tmp_path), "--sets", "toy", "--splits", "1", "--json", str(fits), "--markdown", str(page)]
    example.main(options)
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text and all(f"| {model} |" in text for model in example.MODELS)
    weights = {}
    for line in text.splitlines():
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        if name in example.FEATURES["toy"]:
            weights[name] = [float(cell) for cell in cells]  # Q at both widths, and the free scales
    assert len(weights["matters"]) == 3
    for matters, not_so in zip(weights["matters"], weights["does not"], strict=True):
        assert matters > 1.0 > not_so
    before = fits.read_text()
    example.main(options)  # nothing is missing: nothing is fitted
    assert fits.read_text() == before
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.PropKernelWarning")  # a few draws
def test_cifar_page(load, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    example = load("cifar_convolution")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_planes_cars.npz", images=images, labels=np.arange(20, dtype=np.uint8) % 2)
    for name, value in {"TRAIN": 10, "TEST": 8, "DRAWS": 6, "LONGEST": 6, "WIDTHS": (30, 3)}.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(example, "SAMPLED", (("dense", 3, 10), ("fully connected", 3, 10)))
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    files = ["--json", str(tmp_path / "runs.jsonl"), "--markdown", str(page), "--plot", str(picture)]
    example.main(["--data", str(tmp_path), "--splits", "2", "--sizes", "5", "10", *files])
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text and picture.stat().st_size > 10_000
    assert text.count("**not converged**") == 4 and "nan" not in text  # 6 draws; both in two tables
    assert len([line for line in text.splitlines() if line.startswith("| dense, P =")]) == 3 * 2


def test_images_are_the_same_for_every_number_of_training_images(load, tmp_path):
    example = load("cifar_convolution")
    images = np.random.default_rng(1).integers(0, 256, size=(900, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_planes_cars.npz", images=images, labels=np.arange(900, dtype=np.uint8) % 2)
    few, many = (example.data(tmp_path, 0, size) for size in (50, 100))
    assert torch.equal(few[1], many[1][:50]) and torch.equal(few[3], many[3])
    for x, *_ in (few, many):
        assert x.shape[-1] == 768 and float(x.mean(0).abs().max()) < 1e-12 and float(x.std()) == pytest.approx(1.0)
