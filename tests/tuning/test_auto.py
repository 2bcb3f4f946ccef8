"""All hyperparameters of a network at infinite width: against GPyTorch's own likelihood, and what stays given."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from torch.distributions import MultivariateNormal

from torch_propkernel import NetworkGP
from torch_propkernel.activations import Erf, ReLU
from torch_propkernel.kernels import NNGPKernel
from torch_propkernel.theories import SaddlePoint
from torch_propkernel.tuning import auto, fit_hyperparameters, fit_network

F = torch.float64


def data(rows=60, columns=4, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=F)
    y = x[:, 0].abs() + 0.5 * x[:, 1] + noise * torch.randn(rows, generator=generator, dtype=F)
    return x, (y - y.mean()) / y.std(correction=0)


def log_posterior(found, x, targets):
    """log p(y) by torch's normal, with the priors of the kernel in which it is built."""
    kernel = NNGPKernel(
        found.activation,
        len(found.bias_variance),
        bias_variance=found.bias_variance,
        ard_num_dims=None if found.ard_weights is None else x.shape[-1],
    ).double()
    kernel.weight_variance = torch.tensor(found.weight_variance, dtype=F)
    if found.ard_weights is not None:
        kernel.ard_weights = torch.tensor(found.ard_weights, dtype=F)
    with torch.no_grad():
        covariance = kernel(x).to_dense() + found.temperature * torch.eye(len(x), dtype=F)
        value = MultivariateNormal(torch.zeros(len(x), dtype=F), covariance).log_prob(targets).sum()
        prior = sum(p.log_prob(closure(module)).sum() for _, module, p, closure, _ in kernel.named_priors())
    return value.item(), (value + prior).item()


@pytest.mark.parametrize("activation", [ReLU(), Erf()])
@pytest.mark.parametrize("several", [False, True])
def test_evidence_is_that_of_the_normal_and_has_its_maximum_there(activation, several):
    x, y = data()
    targets = torch.stack([y, x[:, 2].sin(), -y]) if several else y
    found = fit_network(x, targets, activation)
    evidence, posterior = log_posterior(found, x, targets)
    assert found.search.log_evidence == pytest.approx(evidence, abs=1e-6)  # a jitter of 1e-8 in GPyTorch's Cholesky
    assert found.search.converged and found.rows == 60
    names = {"temperature", "scale", "ard", "bias_ratio"} | ({"weight_variance"} if activation == Erf() else set())
    assert set(found.search.values) == names
    if activation == ReLU():
        assert found.weight_variance[0] == 1.0
    for name, factor in (("temperature", 1.3), ("weight_variance", 1.3), ("bias_variance", 1.3)):
        value = getattr(found, name)
        for power in (1, -1):
            moved = factor**power * value if name == "temperature" else (*value[:-1], factor**power * value[-1])
            kind = type(found)(**{**vars(found), name: moved})
            # both priors need the same parametrization: an evidence beside the maximum is lower
            assert log_posterior(kind, x, targets)[1] < posterior


def test_given_numbers_stay(monkeypatch):
    x, y = data()
    given = {
        "temperature": 0.3,
        "weight_variance": (1.5, 2.5),
        "bias_variance": 0.0,
        "ard_weights": (1.0, 2.0, 3.0, 2.0),
    }
    for left_out in given:
        found = fit_network(x, y, **{name: value for name, value in given.items() if name != left_out})
        assert left_out == "temperature" or found.temperature == 0.3
        assert left_out == "weight_variance" or found.weight_variance == (1.5, 2.5)
        assert left_out == "bias_variance" or found.bias_variance == (0.0,)
        assert left_out == "ard_weights" or found.ard_weights == (0.5, 1.0, 1.5, 1.0)
    monkeypatch.setattr(auto, "_search", None)
    nothing_left = fit_network(x, y, **given)
    assert nothing_left.search is None and nothing_left.rows == 0


def test_no_ard_for_one_number_or_one_input():
    x, y = data()
    given = {"bias_variance": 0.0, "weight_variance": 1.0}
    assert fit_network(x, y, ard_weights=7.0, **given).ard_weights is None
    assert fit_network(x[:, :1], y, **given).ard_weights is None


def test_model_has_the_fitted_numbers():
    x, y = data()
    found = fit_network(x, y, "erf", depth=2)
    model = found.model(x, y, width=50, composition="nested")
    kernel = model.covar_module
    assert kernel.width.tolist() == [[50.0, 50.0]] and repr(kernel.composition) == "Nested()"
    for values, expected in (
        (kernel.weight_variance, found.weight_variance),
        (kernel.bias_variance, found.bias_variance),
        (kernel.ard_weights, found.ard_weights),
        (model.likelihood.noise, (found.temperature,)),
    ):
        torch.testing.assert_close(values.flatten(), torch.tensor(expected, dtype=F), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="width: expected 1 or 2 numbers, got"):
        found.model(x, y, width=[10, 10, 10])


def test_order_parameter_is_near_one_at_the_fitted_scale():
    """The scale's own maximum is q = 1; a prior on the readout variance and the width's own move it a little."""
    x, y = data()
    found = fit_network(x, y, "erf")
    q = SaddlePoint().fit(found.model(x, y, width=100)).order_parameters["q"]
    assert 0.9 < q.item() < 1.1


def test_many_rows_are_fitted_on_a_random_part(monkeypatch):
    x, y = data(90)
    monkeypatch.setattr(auto, "_COARSE_ROWS", 40)
    given = {"bias_variance": 0.1, "weight_variance": 2.0}
    state = torch.get_rng_state()
    found = fit_network(x, y, max_rows=70, seed=3, **given)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.rows == 70 and len(found.search.starts) == 2
    rows = torch.randperm(90, generator=torch.Generator().manual_seed(3))[:70]
    assert found.search.log_evidence == pytest.approx(log_posterior(found, x[rows], y[rows])[0], abs=1e-6)
    assert fit_network(x, y, max_rows=70, seed=3, **given).temperature == found.temperature
    assert fit_network(x, y, max_rows=70, seed=4, **given).temperature != found.temperature
    # few rows first or not, the maximum is the same
    monkeypatch.setattr(auto, "_COARSE_ROWS", 300)
    direct = fit_network(x, y, max_rows=70, seed=3, **given)
    assert direct.search.log_posterior == pytest.approx(found.search.log_posterior, abs=1e-4)  # L-BFGS-B's tolerance


def test_constant_targets_and_one_row():
    x, y = data(12)
    for targets in (torch.zeros(12, dtype=F), torch.zeros(2, 12, dtype=F)):
        assert fit_network(x, targets).temperature > 0
    assert fit_network(x[:1], y[:1]).rows == 1


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"temperature": -1.0}, ValueError, "temperature: expected a finite number > 0, got -1.0"),
        ({"temperature": "auto"}, ValueError, "temperature: expected a number > 0, or None to fit it, got 'auto'"),
        ({"bias_variance": -1.0}, ValueError, "bias_variance: expected finite numbers >= 0"),
        ({"ard_weights": (1.0, 2.0)}, ValueError, "ard_weights: expected 1 or 4 numbers"),
        ({"max_rows": 0}, ValueError, "max_rows: expected at least 1 or None, got 0"),
        ({"activation": "rellu"}, ValueError, "activation: expected"),
        ({"x": torch.zeros(60)}, ValueError, r"x: expected shape \(\.\.\., P, N_0\), got \(60,\)"),
        (
            {"y": torch.zeros(2, 2, 60)},
            ValueError,
            r"x, y: expected P x d and P or D x P, got \(60, 4\) and \(2, 2, 60\)",
        ),
    ],
)
def test_bad_input(options, error, message):
    x, y = data()
    arguments = {"x": x, "y": y, **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}}
    with pytest.raises(error, match=message):
        fit_network(**arguments)


def test_targets_of_one_kernel_only_for_a_gaussian_process_without_a_width():
    x, y = data()
    targets = torch.stack([y, -y])
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    finite = fit_network(x, y, temperature=0.1, weight_variance=1.0, bias_variance=0.0, ard_weights=1.0).model(x, y, 10)
    finite.set_train_data(x, targets, strict=False)
    batch = NetworkGP(x, targets, likelihood, NNGPKernel(ReLU(), batch_shape=torch.Size([2])).double())
    for model in (finite, batch):
        with pytest.raises(ValueError, match=r"expected targets of shape \(P,\), or \(D, P\) .* got \(2, 60\)"):
            fit_hyperparameters(model, train=["temperature"])
