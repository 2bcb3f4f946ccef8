"""The benchmarks of networks over blocks run at tiny size, on data made here, and their kernels are what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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
