"""The sampled network in BoTorch: samples follow the drawn networks, acquisitions run, normal formulas are refused."""

from __future__ import annotations

import warnings

import pytest
import torch

botorch = pytest.importorskip("botorch")

from botorch.acquisition import qExpectedImprovement  # noqa: E402
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement  # noqa: E402
from botorch.models import SingleTaskGP  # noqa: E402
from botorch.models.transforms.input import Normalize  # noqa: E402
from botorch.optim import optimize_acqf  # noqa: E402
from botorch.sampling.get_sampler import get_sampler  # noqa: E402
from gpytorch.mlls import ExactMarginalLogLikelihood  # noqa: E402

from torch_propkernel import RenormalizedNNGPKernel  # noqa: E402
from torch_propkernel.botorch_support import FiniteWidthPosterior, SingleTaskFiniteNetworkGP  # noqa: E402
from torch_propkernel.theories import Sampled  # noqa: E402

F = torch.float64
FEW = Sampled(num_chains=4, num_draws=4, every=1, spread=3.0)  # too few to be accurate, the same each time


def data(n: int = 8, seed: int = 0):
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F)
    return x, (torch.sin(6 * x[:, :1]) + x[:, 1:] ** 2) * 10 + 50


def model_for(width=5.0, theory=FEW, **options):
    return SingleTaskFiniteNetworkGP(*data(), width, theory=theory, **options)


def test_posterior_is_the_theory_in_original_units():
    model, x = model_for(), data(4, seed=1)[0]
    posterior = model.posterior(x)
    mean, variance = model.fitted.predict(x)
    assert isinstance(posterior, FiniteWidthPosterior) and model.fitted.theory == FEW
    torch.testing.assert_close(posterior.mean.squeeze(-1), mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(posterior.variance.squeeze(-1), variance, rtol=1e-8, atol=0)
    noise = model.likelihood.noise * data()[1].var()
    noisy = model.posterior(x, observation_noise=True)
    torch.testing.assert_close(noisy.variance, posterior.variance + noise, rtol=1e-8, atol=0)


def test_samples_follow_the_networks():
    posterior = model_for().posterior(data(3, seed=1)[0])
    samples = get_sampler(posterior, torch.Size([4096]), seed=0)(posterior).squeeze(-1)
    # Sobol points: errors well below 1/sqrt(4096) of a standard deviation
    assert torch.allclose(samples.mean(0), posterior.law.mean, atol=0.02 * posterior.law.stddev.max().item())
    covariance = torch.cov(samples.T)
    scale = covariance.abs().max().item()
    assert torch.allclose(covariance, posterior.law.covariance_matrix, rtol=0.1, atol=0.03 * scale)


@pytest.mark.parametrize("theory", [FEW, "saddle"], ids=str)
def test_samples_are_differentiable_in_the_points(theory):
    model, x = model_for(theory=theory), data(2, seed=1)[0].requires_grad_(True)
    base = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F)
    function = lambda v: model.posterior(v).rsample_from_base_samples(torch.Size([5]), base)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,), atol=1e-5)


def test_hyperparameters_are_fitted_by_the_evidence_of_infinite_width():
    """BoTorch's own GP with the kernel at q = 1 has the same objective."""
    model = model_for(input_transform=Normalize(d=2))
    objective = ExactMarginalLogLikelihood(model.likelihood, model)
    gp = SingleTaskGP(
        *data(), covar_module=model.covar_module, likelihood=model.likelihood, mean_module=model.mean_module,
        input_transform=Normalize(d=2),
    )  # fmt: skip
    expected = ExactMarginalLogLikelihood(gp.likelihood, gp)(gp(*gp.train_inputs), gp.train_targets)
    before = objective(model(*model.train_inputs), model.train_targets)
    torch.testing.assert_close(before, expected, rtol=1e-10, atol=0)
    botorch.fit.fit_gpytorch_mll(objective)
    model.train()
    assert objective(model(*model.train_inputs), model.train_targets) > before + 1e-3


def test_optimization_with_monte_carlo_acquisition(monkeypatch):
    torch.manual_seed(0)
    x = data(5)[0]
    objective = lambda v: -((v - 0.3) ** 2).sum(-1, keepdim=True)  # noqa: E731
    y = objective(x)
    first, fits, fit = y.max().item(), [], Sampled._fit
    monkeypatch.setattr(Sampled, "_fit", lambda self, problem: fits.append(problem) or fit(self, problem))
    for step in range(3):
        kernel = RenormalizedNNGPKernel("erf", 20, bias_variance=1.0)
        theory = Sampled(num_chains=8, num_draws=8, spread=1.5)
        model = SingleTaskFiniteNetworkGP(x, y, covar_module=kernel, theory=theory)
        model.likelihood.noise = 1e-3
        sampler = get_sampler(model.posterior(x[:1]), torch.Size([32]), seed=step)
        if step % 2:
            acquisition = qLogNoisyExpectedImprovement(model, x, sampler=sampler, prune_baseline=True)
        else:
            acquisition = qLogExpectedImprovement(model, y.max(), sampler=sampler)
        bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="botorch")
            new, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=2, raw_samples=16, options={"maxiter": 20})
        x, y = torch.cat([x, new]), torch.cat([y, objective(new)])
    assert y.max().item() > first
    assert len(fits) == 3  # the networks of a model are drawn once


def test_a_fit_is_kept_while_data_and_hyperparameters_are_what_they_were(monkeypatch):
    fits, fit = [], Sampled._fit
    monkeypatch.setattr(Sampled, "_fit", lambda self, problem: fits.append(problem) or fit(self, problem))
    model, x = model_for(input_transform=Normalize(d=2)), data(3, seed=1)[0]
    expected = model.posterior(x).mean
    for _ in range(2):  # each turn makes the transformed inputs anew
        model.train()
        model(*model.train_inputs)
        assert torch.equal(model.eval().posterior(x).mean, expected)
    assert len(fits) == 1
    model.likelihood.noise = 0.5
    assert not torch.equal(model.posterior(x).mean, expected)
    model.train()
    model.set_train_data(model.train_inputs[0] + 0.1, strict=False)
    other = model.eval().posterior(x).mean
    assert len(fits) == 3
    model.train_inputs[0].mul_(1.1)  # in place
    assert not torch.equal(model.posterior(x).mean, other) and len(fits) == 4


def test_expected_improvement_is_that_of_the_mixture():
    """Against the integral over the quantiles of one point, whose Sobol estimate is accurate to some permille."""
    model, x = model_for(), data(1, seed=2)[0]
    posterior = model.posterior(x)
    best = posterior.mean.item()
    sampler = get_sampler(posterior, torch.Size([8192]), seed=0)
    found = qExpectedImprovement(model, best, sampler=sampler)(x.unsqueeze(0))
    levels = (torch.arange(20000, dtype=F) + 0.5) / 20000
    values = posterior.law.icdf(levels.unsqueeze(-1))
    expected = (values - best).clamp_min(0.0).mean()
    torch.testing.assert_close(found.squeeze(0), expected, rtol=1e-2, atol=0)


def test_a_fantasy_is_the_process_on_the_joined_data():
    model, new_x, new_y = model_for(), data(2, seed=3)[0], torch.tensor([[48.0], [55.0]], dtype=F)
    (x, y), test_x = data(), data(3, seed=4)[0]
    model.posterior(new_x)
    fantasy = model.condition_on_observations(new_x, new_y)
    targets = (torch.cat([y, new_y]) - y.mean()) / y.std()
    joined = SingleTaskFiniteNetworkGP(torch.cat([x, new_x]), targets, 5.0, theory=FEW, outcome_transform=None)
    found, expected = fantasy.posterior(test_x), joined.posterior(test_x)
    torch.testing.assert_close(found.mean, y.mean() + y.std() * expected.mean, rtol=1e-8, atol=0)
    with pytest.raises(ValueError, match="expected no batch dimensions"):
        model.condition_on_observations(new_x.expand(2, 2, 2), torch.stack([new_y, -new_y]))


def test_bad_arguments():
    x, y = data()
    with pytest.raises(TypeError, match="width, covar_module: expected one of them, got none"):
        SingleTaskFiniteNetworkGP(x, y)
    with pytest.raises(ValueError, match="expected a Theory or one of the names"):
        model_for(theory="moonshine")
