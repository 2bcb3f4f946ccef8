"""The example of attention paths: its kernel is the formula, and at small size it says what sampled networks do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "attention_paths.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("attention_paths", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_paths"] = module
    spec.loader.exec_module(module)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield module
    torch.set_default_dtype(before)
    del sys.modules["attention_paths"]


def test_kernel_joins_the_attention_maps_of_two_heads(example):
    x, _ = example.sequences(5, torch.Generator().manual_seed(1))
    tokens = x.reshape(5, example.TOKENS, -1)
    omega = (example.SHARPNESS * tokens[:, :, : example.HEADS]).exp()
    omega = omega / omega.sum(1, keepdim=True)
    products = torch.einsum("nsd,mtd->nmst", tokens, tokens)  # x x'^T
    pairs = torch.einsum("nsa,nmst,mtb->abnm", omega, products, omega) / (example.HEADS * tokens.shape[-1])
    weights = torch.tensor([[2.0, 0.3, 0, -1], [0.3, 1, 0, 0], [0, 0, 3, 0.5], [-1, 0, 0.5, 1]])
    kernel = example.AttentionPaths()
    expected = torch.einsum("ab,abnm->nm", weights, pairs)
    torch.testing.assert_close(kernel.weighted(x, x, weights), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.weighted(x, x, weights, diag=True), expected.diagonal(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel(x, x[:2]).to_dense(), torch.einsum("aanm->nm", pairs)[:, :2])


def test_every_marker_stands_at_one_token_and_the_task_is_the_same_for_all_sizes(example):
    x, y = example.sequences(7, torch.Generator().manual_seed(0))
    markers = x.unflatten(-1, (example.TOKENS, -1))[..., : example.HEADS]
    assert bool((markers.sum(-2) == 1).all()) and bool((markers.sum(-1) <= 1).all())
    assert x.shape == (7, example.TOKENS * (example.HEADS + example.CONTENT)) and y.shape == (7,)


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.SamplingWarning")  # few draws
def test_theory_finds_the_helpful_heads_and_the_error_of_sampled_networks(example, tmp_path):
    pytest.importorskip("matplotlib")
    x, y = example.sequences(60 + example.NUM_TEST, torch.Generator().manual_seed(0))
    data = (x[:60], y[:60], x[60:], y[60:])
    found = example.compare(data, 10, 60)
    measured, theory = float(found.sampled.test_error.mean), found.theory
    # The theory is exact for N and P to infinity; at N = 20 and P = 80 it is 1.1 % off. Monte Carlo adds 1 to 2 % here.
    assert float(theory.mean_total) == pytest.approx(measured, rel=0.08)
    assert float(theory.infinite_width.mean_total) > 1.3 * measured
    sign = torch.tensor(example.HELP)
    for q in (found.theory_q, found.sampled_q):
        together = torch.outer(sign, sign)
        assert bool((q[together > 0] > 0.5).all()) and bool((q[together < 0] < -0.5).all())
        assert int(q.diagonal().argmin()) == 3 and float(q[3, :3].abs().max()) < 0.5 * float(q[:3, :3].abs().min())
    assert float((found.theory_q - found.sampled_q).norm()) < 0.15 * float((found.sampled_q - torch.eye(4)).norm())
    lines = example.report([found]).splitlines()
    assert float(lines[2].split()[1]) == pytest.approx(measured, abs=1e-4) and lines[2].split()[0] == "10"
    assert sum(line.count(".") for line in lines[3:]) == 2 * 16  # two matrices
    example.plot(data, [found], tmp_path / "paths.png")
    assert (tmp_path / "paths.png").stat().st_size > 10_000
