"""Which description of a network ``Auto`` takes, and that it is that theory's own fit."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

from torch_propkernel import ConvergenceError, NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.theories import Adaptive, Auto, Gated, InfiniteWidth, SaddlePoint, Sampled, auto


def network(width, activation="erf", temperature=0.05, bias=0.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    kernel = RenormalizedNNGPKernel(activation, width=width, bias_variance=bias)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = temperature
    return NetworkGP(x, 2.0 * x[:, 0].sign(), likelihood, kernel).double()


@pytest.fixture
def adaptive_with(monkeypatch):
    """Put a quick adaptive fit in place whose stats are changed."""

    def put(**stats):
        class Changed(Adaptive):
            def __init__(self, **options):
                super().__init__(num_units=100, tolerance=1.0, seed=options["seed"])

            def _fit(self, problem):
                fitted = super()._fit(problem)
                fitted.stats.update(stats)
                return fitted

        monkeypatch.setattr(auto, "Adaptive", Changed)
        return Changed

    return put


def test_infinite_width_and_two_relu_layers():
    assert Auto().fit(network(math.inf)).theory == InfiniteWidth()
    model = network([20.0, 20.0], "relu")
    fitted = Auto().fit(model)
    assert fitted.theory == Gated() and fitted.message.startswith("gated, since for two relu layers")
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(fitted.predict(x)[0], Gated().fit(model).predict(x)[0])


def test_other_depths_are_sampled():
    fitted = Auto().fit(network([4.0, 4.0], "erf", temperature=0.5))
    assert isinstance(fitted.theory, Sampled) and "depth" in fitted.message


def test_the_saddle_is_taken_where_the_adaptive_theory_agrees():
    model = network(3000.0)
    fitted = Auto().fit(model)
    assert fitted.theory == SaddlePoint()
    saddle, adaptive = fitted.stats["considered"]["saddle"], fitted.stats["considered"]["adaptive"]
    assert all(abs(a / s - 1) <= auto.AGREE for a, s in zip(adaptive, saddle, strict=True))
    assert saddle[0] == SaddlePoint().fit(model).leave_one_out().mean_total.item()


@pytest.mark.parametrize(
    ("stats", "expected", "words"),
    [
        ({}, Adaptive, "learns features"),
        ({"converged": False}, Sampled, "did not converge"),
        ({"tolerance_reached": False}, Sampled, "too few for its tolerance"),
        ({"variance_trusted": False}, Sampled, "units specialize"),
    ],
)
def test_features_are_learned(adaptive_with, stats, expected, words):
    adaptive_with(**{"converged": True, "tolerance_reached": True, "variance_trusted": True, **stats})
    fitted = Auto().fit(network(10.0, temperature=0.1))  # one input of three matters: the saddle cannot know
    assert isinstance(fitted.theory, expected) and words in fitted.message
    assert set(fitted.stats["considered"]) == {"saddle", "adaptive"}


def test_a_failed_adaptive_theory_is_told(monkeypatch):
    def fail(self, problem):
        raise ConvergenceError("it did not arrive")

    monkeypatch.setattr(Adaptive, "_fit", fail)
    fitted = Auto().fit(network(10.0, temperature=0.5))
    assert isinstance(fitted.theory, Sampled) and "it did not arrive" in fitted.message


def test_a_batch_of_problems_is_refused_before_a_fit(monkeypatch):
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=torch.Size([2]))
    kernel = RenormalizedNNGPKernel("erf", width=20.0, batch_shape=torch.Size([2]))
    monkeypatch.setattr(SaddlePoint, "_fit", None)
    with pytest.raises(ValueError, match=r"expected no batch dimensions, got targets of shape \(2, 6\)"):
        Auto().fit(NetworkGP(x, x[..., 0], likelihood, kernel).double())
