"""Densities of scale mixtures far from their means, by few nodes, against a fine grid over the scale."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch
from scipy import special, stats

from torch_propkernel import FiniteWidthProcess, NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.inference import SpectralConditioned
from torch_propkernel.likelihoods import FiniteWidthLikelihood
from torch_propkernel.mixing import InverseGammaMixing
from torch_propkernel.mixing.scale_integral import ScalePosterior
from torch_propkernel.theories import Mixture

F = torch.float64


def data(rows, targets=1.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, dtype=F, generator=generator)
    return x, targets * (torch.tanh(x[:, 0] * x[:, 1]) + x[:, 2]), torch.randn(4, 3, dtype=F, generator=generator)


class Process(FiniteWidthProcess):
    """A process with a renormalized kernel and a law of its own."""

    def __init__(self, x, y, likelihood, kernel, **options):
        super().__init__(x, y, likelihood, **options)
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))


def made(cls, x, y, width, temperature, **options):
    likelihood = FiniteWidthLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = temperature
    kernel = RenormalizedNNGPKernel("relu", width, bias_variance=0.5)
    return cls(x, y, likelihood, kernel, **options).double().requires_grad_(False)


def log_gamma(u, width):
    """Log density of u = log r, r of Gamma(N/2, rate N/2)."""
    a = width / 2
    return a * np.log(a) + a * u - a * np.exp(u) - special.gammaln(a)


def log_inverse_gamma(u, nu):
    """The same of r = (nu - 2) / chi^2_nu."""
    a, b = nu / 2, (nu - 2) / 2
    return a * np.log(b) - a * u - b * np.exp(-u) - special.gammaln(a)


def truth(model, log_law, test, points, noise=0.0):
    """Log density of the latent function plus noise at ``points x m``, by 20,001 values of log r and dense solves."""
    x, y, T = model.train_inputs[0], model.train_targets.numpy(), float(model.likelihood.noise)
    with torch.no_grad():
        whole = model.covar_module(torch.cat([x, test])).to_dense().numpy()
    n = len(y)
    k, vectors = np.linalg.eigh(whole[:n, :n])
    z, cross = vectors.T @ y, vectors.T @ whole[:n, n:]
    u = np.linspace(-40, 60, 20001)
    r = np.exp(u)[:, None]
    spread = 1 / (T + r * k)
    weight = log_law(u) + 0.5 * np.log(spread).sum(-1) - 0.5 * (z**2 * spread).sum(-1)
    weight -= special.logsumexp(weight)
    mean = r * (spread * z) @ cross
    variance = r * whole.diagonal()[n:] - r**2 * (spread @ cross**2)
    terms = stats.norm.logpdf(points[:, None], mean, np.sqrt(variance + noise)) + weight[:, None]
    return special.logsumexp(terms, axis=1)


def far(distribution):
    """0, 1, 3, 10, 20 and 30 standard deviations away on both sides."""
    z = torch.tensor([0.0, 1.0, -3.0, 10.0, -20.0, 30.0, -30.0], dtype=F).unsqueeze(-1)
    return distribution.mean + z * distribution.variance.sqrt()


@pytest.mark.parametrize("rows", [6, 40])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
@pytest.mark.parametrize("width", [2.0, 10.0, 300.0])
def test_tails_of_a_network(rows, temperature, width):
    x, y, test = data(rows)
    model = made(NetworkGP, x, y, width, temperature)
    fitted = Mixture().fit(model)
    latent = fitted.conditioned.distribution(test, False)
    points = far(latent)
    expected = truth(model, lambda u: log_gamma(u, width), test, points.numpy())
    np.testing.assert_allclose(latent.marginal_log_prob(points).numpy(), expected, rtol=0, atol=1e-6)  # what is stated
    near = points[:4]
    # dense solves beside rounding of a matrix of condition 1e4
    np.testing.assert_allclose(latent.marginal_log_prob(near).numpy(), expected[:4], rtol=0, atol=1e-8)
    assert float(fitted.stats["predictive_error"]) <= 1e-7
    if rows == 40 and width > 2.0:
        assert fitted.stats["nodes"] <= 128


@pytest.mark.parametrize("width", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_tails_of_observed_targets(temperature, width):
    """The noise, up to thirty times the latent variance, moves what matters to larger scales."""
    x, y, test = data(40)
    model = made(NetworkGP, x, y, width, temperature)
    fitted = Mixture().fit(model)
    latent = fitted.conditioned.distribution(test, False)
    z = torch.tensor([3.0, -10.0, 20.0, 30.0, -30.0], dtype=F).unsqueeze(-1)
    noise = float(model.likelihood.noise)  # to float32 what was set
    points = latent.mean + z * (latent.variance + noise).sqrt()
    found = torch.stack([fitted.error(test, row).log_density for row in points])
    expected = truth(model, lambda u: log_gamma(u, width), test, points.numpy(), noise)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)  # what is stated


@pytest.mark.parametrize("nu", [3.0, 8.0])
def test_heavy_tails(nu):
    """A law whose density falls off as a power of r."""
    x, y, test = data(10, targets=2.0)
    law = InverseGammaMixing(torch.tensor(nu, dtype=F))
    process = made(Process, x, y, 10.0, 0.05, mixing=law).eval()
    with torch.no_grad():
        latent = process.predict(test, joint=False)
        points = far(latent)
        found = latent.marginal_log_prob(points).numpy()
    expected = truth(process, lambda u: log_inverse_gamma(u, nu), test, points.numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_few_nodes_predict_as_all_do():
    """Means, variances, quantiles and densities of points left out."""
    x, y, test = data(40)
    model = made(NetworkGP, x, y, 300.0, 0.1)
    fitted = Mixture().fit(model)
    posterior = fitted.stats["posterior"]
    whole = SpectralConditioned(fitted.problem, posterior.scale, posterior.log_weights)
    everything = whole.distribution(test, False)
    few = fitted.conditioned.distribution(test, False)
    assert few.num_nodes == fitted.stats["nodes"] < 0.6 * everything.num_nodes
    torch.testing.assert_close(few.mean, everything.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(few.variance, everything.variance, rtol=1e-10, atol=0)
    for level in (1e-8, 0.025, 0.5, 0.999):
        torch.testing.assert_close(few.icdf(level), everything.icdf(level), rtol=1e-7, atol=1e-9)
    left_out = (each.leave_one_out().log_density for each in (fitted.conditioned, whole))
    torch.testing.assert_close(*left_out, rtol=0, atol=1e-9)


def test_a_coarse_rule_is_not_thinned_and_a_fine_one_says_its_error():
    """A normal law of log r of deviation 0.3 with a step of its own width, and of a sixteenth of it."""
    zero = torch.zeros((), dtype=F)

    def posterior(step):
        u = torch.arange(-3.0, 3.0 + 0.5 * step, step, dtype=F)
        weights = -0.5 * (u / 0.3).square()
        return ScalePosterior(u, weights.log_softmax(-1), zero, zero)

    coarse, fine = posterior(0.3), posterior(0.3 / 16)
    kept = coarse.for_predictions(10.0)
    assert float(kept.predictive_error) == 0.0
    assert float(kept.log_scale.diff()[0]) == pytest.approx(0.3)
    thin = fine.for_predictions(10.0)
    assert 0.0 < float(thin.predictive_error) <= 1e-6
    assert float(thin.log_scale.diff()[0]) > 0.07
    torch.testing.assert_close(thin.mean, fine.mean, rtol=1e-8, atol=0)
    assert len(fine.for_predictions(10.0, tolerance=0.0).log_scale) > len(thin.log_scale)
    assert len(fine.for_predictions(10.0, mass=1e-3).log_scale) < len(thin.log_scale)
    assert len(ScalePosterior(zero[None], zero[None], zero, zero).for_predictions(30.0).log_scale) == 1  # a point mass
