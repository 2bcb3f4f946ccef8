"""The comparison in one call: exact theory agrees with the sampler, a wrong one does not, and the table says so."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

from torch_propkernel import Erf, NetworkGP, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import Identity
from torch_propkernel.exceptions import SamplingWarning
from torch_propkernel.practice import compare_with_network
from torch_propkernel.theories import Gated, InfiniteWidth, Mixture, SaddlePoint


@pytest.fixture(scope="module")
def linear_case():
    """Few units, targets larger than the prior expects: infinite width is far off, the mixture is exact."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(14, 6, generator=generator, dtype=torch.float64)
    y = 3.0 * x[:, 0] + 0.3 * torch.randn(14, generator=generator, dtype=torch.float64)
    return x, y


@pytest.fixture(scope="module")
def linear(linear_case):
    x, y = linear_case
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        likelihood.noise = 0.3
        model = NetworkGP(x[:8], y[:8], likelihood, RenormalizedNNGPKernel(Identity(), width=4))
        calls = []
        comparison = compare_with_network(
            model, x[8:], y[8:], num_samples=1500, warmup=300, progress=lambda done, total: calls.append((done, total))
        )
    finally:
        torch.set_default_dtype(before)
    return comparison, calls


def test_the_exact_theory_agrees_and_infinite_width_does_not(linear):
    comparison, _ = linear
    assert comparison.sampled.converged
    for quantity in comparison.measured:
        assert abs(comparison.z_score("mixture", quantity)) < 4.5
    assert abs(comparison.z_score("infinite_width", "test_error")) > 8
    assert abs(comparison.z_score("infinite_width", "order_parameter")) > 8


def test_a_readout_bias_is_part_of_the_network(linear_case):
    x, y = linear_case
    bias = gpytorch.kernels.ConstantKernel().double()
    bias.constant = torch.tensor([4.0], dtype=torch.float64)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.3
    kernel = RenormalizedNNGPKernel(Identity(), width=4).double() + bias
    model = NetworkGP(x[:8], y[:8] + 2.0, likelihood, kernel)
    comparison = compare_with_network(model, x[8:], y[8:] + 2.0, theories=["mixture"], num_samples=800, warmup=300)
    for quantity in comparison.measured:
        assert abs(comparison.z_score("mixture", quantity)) < 4.5, quantity


def test_a_wrong_theory_is_not_hidden(linear):
    comparison, _ = linear
    wrong = dict(
        comparison.predicted["mixture"], order_parameter=1.1 * comparison.predicted["mixture"]["order_parameter"]
    )
    comparison.predicted["wrong"] = wrong
    try:
        assert abs(comparison.z_score("wrong", "order_parameter")) > 5
    finally:
        del comparison.predicted["wrong"]


def test_bias_and_variance_add_up(linear):
    comparison, _ = linear
    for values in (*comparison.predicted.values(), {k: float(v.mean) for k, v in comparison.measured.items()}):
        assert values["bias"] + values["variance"] == pytest.approx(values["test_error"], rel=1e-9)


def test_the_fair_baselines_are_always_there_and_skipped_theories_have_a_reason(linear):
    comparison, calls = linear
    assert list(comparison.predicted)[:2] == ["infinite_width", "free_scale"]
    assert "expected 2 hidden layer(s), got 1" in comparison.skipped["gated"]
    assert calls[0] == (1, 1800) and calls[-1] == (1800, 1800)
    text = str(comparison)
    assert text.splitlines()[1].startswith("sampled network")
    assert "sampler: converged" in text and "not applicable: gated" in text
    for name in comparison.predicted:
        assert name in text


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.SamplingWarning")
def test_given_theories_only_and_errors_in_original_units(make_model):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    model = make_model(x[:6], x[:6, 0], Erf(), [5], 0.2)
    theories = [InfiniteWidth(), SaddlePoint()]
    comparison = compare_with_network(
        model, x[6:], x[6:, 0], theories=theories, num_samples=20, warmup=20, num_chains=2
    )
    assert list(comparison.predicted) == ["infinite_width", "saddle"] and not comparison.skipped
    expected = SaddlePoint().fit(model).error(x[6:], x[6:, 0]).mean_total
    assert comparison.predicted["saddle"]["test_error"] == float(expected)
    assert "not converged" in str(comparison)


def test_a_run_that_is_too_short_warns(make_model):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = make_model(x[:4], x[:4, 0], Erf(), [5], 0.2)
    with pytest.warns(SamplingWarning, match="not converged"):
        compare_with_network(model, x[4:], x[4:, 0], theories=[Mixture()], num_samples=10, warmup=10, num_chains=2)


def test_what_cannot_be_compared_is_refused_before_sampling(make_model):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x[:, 0]
    with pytest.raises(ValueError, match="width: expected a whole number"):
        compare_with_network(make_model(x, y, Erf(), [math.inf], 0.2), x, y)
    with pytest.raises(ValueError, match="expected 2 hidden layer"):
        compare_with_network(make_model(x, y, ReLU(), [5], 0.2), x, y, theories=[Gated()])
    with pytest.raises(ValueError, match="y: expected"):
        compare_with_network(make_model(x, y, Erf(), [5], 0.2), x, y[:3])


def test_standardized_targets(linear_case):
    botorch = pytest.importorskip("botorch")
    from botorch.models.transforms import Standardize

    from torch_propkernel import RenormalizedNNGPKernel

    x, y = linear_case
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = botorch.models.SingleTaskGP(
            x[:8],
            y[:8, None],
            covar_module=RenormalizedNNGPKernel(Identity(), width=4),
            outcome_transform=Standardize(1),
        )
        model.mean_module = __import__("gpytorch").means.ZeroMean()
        model.likelihood.noise = 0.3
        comparison = compare_with_network(model, x[8:], y[8:], theories=[Mixture()], num_samples=1000, warmup=300)
    finally:
        torch.set_default_dtype(before)
    for quantity in comparison.measured:
        assert abs(comparison.z_score("mixture", quantity)) < 4.5
