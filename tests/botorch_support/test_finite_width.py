"""The finite-width process in BoTorch: samples follow the mixture, acquisitions run, normal formulas are refused."""

from __future__ import annotations

import math
import warnings

import gpytorch
import pytest
import torch

botorch = pytest.importorskip("botorch")

from botorch.acquisition import LogExpectedImprovement, UpperConfidenceBound  # noqa: E402
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement  # noqa: E402
from botorch.exceptions import UnsupportedError  # noqa: E402
from botorch.optim import optimize_acqf  # noqa: E402
from botorch.sampling.get_sampler import get_sampler  # noqa: E402

from torch_propkernel import Erf, FiniteWidthMarginalLogLikelihood, RenormalizedNNGPKernel  # noqa: E402
from torch_propkernel.botorch_support import FiniteWidthPosterior, SingleTaskFiniteWidthGP  # noqa: E402

F = torch.float64


def data(n: int = 8, seed: int = 0):
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F)
    return x, (torch.sin(6 * x[:, :1]) + x[:, 1:] ** 2) * 10 + 50


def model_for(width=5.0, **options):
    x, y = data()
    return SingleTaskFiniteWidthGP(x, y, width, **options)


def test_posterior_is_the_process_in_original_units():
    model = model_for()
    x, (_, y) = data(4, seed=1)[0], data()
    posterior, plain = model.posterior(x), model.predict(x, "mixture")
    mean, deviation = y.mean(), y.std()
    assert isinstance(posterior, FiniteWidthPosterior)
    assert torch.allclose(posterior.mean.squeeze(-1), mean + deviation * plain.mean, rtol=1e-10)
    assert torch.allclose(posterior.variance.squeeze(-1), deviation**2 * plain.variance, rtol=1e-8)
    noise = model.likelihood.noise * deviation**2
    noisy = model.posterior(x, observation_noise=True)
    assert noisy.mean.shape == (4, 1)
    assert torch.allclose(noisy.variance, posterior.variance + noise, rtol=1e-8)
    given = model.posterior(x, observation_noise=torch.full((4, 1), 0.3, dtype=F))
    assert torch.allclose(given.variance, posterior.variance + 0.3 * deviation**2, rtol=1e-8)
    median = posterior.quantile(torch.tensor([0.1, 0.5], dtype=F))
    assert median.shape == (2, 4, 1) and (median[0] < median[1]).all()
    step = torch.linspace(-200, 200, 4001, dtype=F)
    densities = torch.stack([posterior.density(v)[0, 0] for v in posterior.mean[0, 0] + step])
    assert (densities.sum() * (step[1] - step[0])).item() == pytest.approx(1.0, abs=1e-4)


def test_samples_follow_the_mixture():
    posterior = model_for(3.0).posterior(data(3, seed=1)[0])
    sampler = get_sampler(posterior, torch.Size([4096]), seed=0)
    samples = sampler(posterior).squeeze(-1)
    assert samples.shape == (4096, 3)
    # Sobol points: errors well below 1/sqrt(4096) of a standard deviation
    assert torch.allclose(samples.mean(0), posterior.law.mean, atol=0.02 * posterior.law.stddev.max().item())
    covariance = torch.cov(samples.T)
    assert torch.allclose(
        covariance, posterior.law.covariance_matrix, rtol=0.1, atol=0.03 * covariance.abs().max().item()
    )
    batch = model_for(3.0).posterior(data(6, seed=1)[0].reshape(2, 3, 2))
    assert get_sampler(batch, torch.Size([16]))(batch).shape == (16, 2, 3, 1)


def test_samples_are_differentiable_in_the_points():
    model = model_for(3.0)
    x = data(2, seed=1)[0].requires_grad_(True)
    base = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F)
    function = lambda v: model.posterior(v).rsample_from_base_samples(torch.Size([5]), base)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,), atol=1e-5)


def test_fit_raises_the_evidence():
    model = model_for()
    mll = FiniteWidthMarginalLogLikelihood(model.likelihood, model)
    before = mll(model(*model.train_inputs), model.train_targets).item()
    botorch.fit.fit_gpytorch_mll(mll)
    model.train()
    assert mll(model(*model.train_inputs), model.train_targets).item() > before + 1e-3


def test_optimization_with_monte_carlo_acquisition():
    torch.manual_seed(0)
    x = data(5)[0]
    objective = lambda v: -((v - 0.3) ** 2).sum(-1, keepdim=True)  # noqa: E731
    y = objective(x)
    first = y.max().item()
    for step in range(3):
        kernel = RenormalizedNNGPKernel(Erf(), 20, bias_variance=1.0)
        model = SingleTaskFiniteWidthGP(x, y, covar_module=kernel)
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


def test_fantasies_are_the_process_on_the_joined_data():
    model = model_for()
    new_x = data(2, seed=3)[0]
    new_y = torch.tensor([[[48.0], [55.0]], [[60.0], [40.0]]], dtype=F)  # two fantasies of two points
    model.posterior(new_x)
    fantasies = model.condition_on_observations(new_x.expand(2, 2, 2), new_y)
    x, y = data()
    test_x = data(3, seed=4)[0]
    mean, deviation = y.mean(), y.std()
    for index in range(2):
        targets = (torch.cat([y, new_y[index]]) - mean) / deviation
        joined = SingleTaskFiniteWidthGP(torch.cat([x, new_x]), targets, 5.0, outcome_transform=None)
        expected = joined.posterior(test_x)
        found = fantasies.posterior(test_x)
        assert torch.allclose(found.mean[index], mean + deviation * expected.mean, rtol=1e-8)
        assert torch.allclose(found.variance[index], deviation**2 * expected.variance, rtol=1e-7)


@pytest.mark.parametrize("build", [lambda m: LogExpectedImprovement(m, 50.0), lambda m: UpperConfidenceBound(m, 1.0)])
def test_normal_formulas_are_refused(build):
    with pytest.raises(UnsupportedError, match="expected a model with a normal posterior, got SingleTaskFiniteWidthGP"):
        build(model_for())


def test_infinite_width_is_single_task_gp():
    x, y = data()
    kernel = RenormalizedNNGPKernel(Erf(), math.inf, bias_variance=1.0)
    model = SingleTaskFiniteWidthGP(x, y, covar_module=kernel)
    gp = botorch.models.SingleTaskGP(
        x, y, covar_module=kernel, likelihood=gpytorch.likelihoods.GaussianLikelihood().double()
    )
    gp.likelihood.noise = model.likelihood.noise.detach()
    test_x = data(4, seed=1)[0]
    # BoTorch predicts through GPyTorch's cached factorization
    assert torch.allclose(model.posterior(test_x).mean, gp.posterior(test_x).mean, rtol=1e-6)
    assert torch.allclose(model.posterior(test_x).variance, gp.posterior(test_x).variance, rtol=1e-4)


def test_bad_arguments():
    x, y = data()
    with pytest.raises(TypeError, match="width, covar_module: expected one of them, got none"):
        SingleTaskFiniteWidthGP(x, y)
    with pytest.raises(TypeError, match="expected one of them, got both"):
        SingleTaskFiniteWidthGP(x, y, 5.0, covar_module=RenormalizedNNGPKernel(Erf(), 5))
    with pytest.raises(UnsupportedError, match="train_Y: expected one output"):
        SingleTaskFiniteWidthGP(x, torch.cat([y, y], -1), 5.0)
    with pytest.raises(TypeError, match="law: expected a ScaleMixtureMultivariateNormal"):
        FiniteWidthPosterior(3)
    with pytest.raises(AttributeError, match="mvn: expected a normal posterior"):
        _ = model_for().posterior(x).mvn
