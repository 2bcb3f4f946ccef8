"""Fixtures: sampled finite networks, public data sets, fixed seeds, and the slow reference on sys.path."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # --import-mode=importlib does not add it; tests say `from reference import ...`
    sys.path.insert(0, str(HERE))


def load_cases(folder: Path) -> list[dict]:
    """Entries of finite_networks.json, each with its arrays X, y, Xt, yt (float64)."""
    cases = json.loads((folder / "finite_networks.json").read_text())
    for case in cases:
        with np.load(folder / case["arrays"]) as arrays:
            case.update({name: np.asarray(arrays[name], dtype=np.float64) for name in ("X", "y", "Xt", "yt")})
    return cases


def _folder(variable: str, default: str, marker: str) -> Path:
    folder = Path(os.environ.get(variable, HERE.parent.parent / "shared" / default))
    if not (folder / marker).exists():
        pytest.skip(f"no {marker} in {folder}: set {variable} to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def reference_cases() -> list[dict]:
    """All sampled posteriors of finite networks (folder: environment variable PROPKERNEL_REFERENCE)."""
    return load_cases(_folder("PROPKERNEL_REFERENCE", "reference", "finite_networks.json"))


@pytest.fixture(scope="session")
def shipped_cases() -> list[dict]:
    """Three small cases that ship with the tests: erf L = 1, relu L = 1, erf L = 2 (random inputs and labels)."""
    return load_cases(HERE / "data")


@pytest.fixture(scope="session")
def uci():
    """uci(name) -> (X, y, test_mask): test_mask has one column per split (folder: PROPKERNEL_DATA)."""

    def load(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        folder = _folder("PROPKERNEL_DATA", "data", f"uci/{name}/data.csv.gz") / "uci" / name
        table = np.loadtxt(folder / "data.csv.gz", delimiter=",")
        mask = np.loadtxt(folder / "test_mask.csv.gz", delimiter=",").astype(bool)
        return table[:, :-1], table[:, -1], mask

    return load


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh generator with a fixed seed for every test."""
    return np.random.default_rng(20230407)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    np.random.seed(0)  # noqa: NPY002 (for hosts that draw from the global generator)
    torch = sys.modules.get("torch")  # the self-checks of reference.py do not need torch
    if torch is not None:
        torch.manual_seed(0)


@contextmanager
def double_precision() -> Iterator[None]:
    """Construction in float64: `module.double()` afterwards would keep variances that float32 has rounded."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def in_double_precision() -> Iterator[None]:
    """Models are built in float64."""
    with double_precision():
        yield


@pytest.fixture
def make_model():
    """make_model(X, y, activation, widths, T, ...) -> ExactGP (zero mean, renormalized kernel) in double precision.

    `precisions` are lambda_0..lambda_L of the theory; the kernel takes the weight variances 1/lambda_l.
    """

    def make(X, y, activation, widths, temperature, precisions=None, biases=None, composition="outer"):
        import gpytorch
        import torch

        from torch_propkernel import RenormalizedNNGPKernel

        class Model(gpytorch.models.ExactGP):
            def __init__(self, x, targets, likelihood, kernel):
                super().__init__(x, targets, likelihood)
                self.mean_module = gpytorch.means.ZeroMean()
                self.covar_module = kernel

            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        depth = len(widths)
        precisions = [1.0] * (depth + 1) if precisions is None else precisions
        biases = [0.0] * depth if biases is None else biases
        with double_precision():
            kernel = RenormalizedNNGPKernel(
                activation,
                list(widths),
                composition=composition,
                weight_variance=[1 / value for value in precisions],
                bias_variance=list(biases),
            )
            likelihood = gpytorch.likelihoods.GaussianLikelihood(
                noise_constraint=gpytorch.constraints.GreaterThan(1e-10)
            )
            model = Model(torch.as_tensor(X), torch.as_tensor(y), likelihood, kernel).double()
            likelihood.noise = torch.tensor([temperature], dtype=torch.float64)
        return model

    return make


@pytest.fixture
def triton_interpreter(monkeypatch):
    """Device code in Triton's interpreter, on a processor; skipped where Triton is not installed."""
    standard = pytest.importorskip("triton.language.standard")  # tl.sum is device code too
    names = ("triton_product", "triton_gradient")
    modules = [standard, *(importlib.import_module(f"torch_propkernel.kernels.{name}") for name in names)]
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in modules:  # what was imported before is compiled code
            importlib.reload(module)
            patch.setattr("triton.language.sum", standard.sum)
        yield
    for module in modules:
        importlib.reload(module)
