"""Sampled networks with several outputs, against the exact posterior of a linear one and against refits."""

from __future__ import annotations

import math

import pytest
import torch
from gpytorch.constraints import Positive
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.theories import Mixture, Sampled

pytestmark = pytest.mark.usefixtures("in_double_precision")

WIDTH, TEMPERATURE = 4.0, 0.3
FEW = Sampled(num_chains=40, num_draws=30, seed=1)


def model(num_outputs=2, activation="identity"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, generator=generator)
    y = torch.stack([2.0 * x[:, 0], 1.5 * x[:, 0] - x[:, 1], x[:, 2]], -1)[:, :num_outputs]
    kernel = MultitaskRenormalizedKernel(activation, WIDTH, num_outputs)
    return MultitaskNetworkGP.with_temperature(x[:7], y[:7], kernel, TEMPERATURE), x[7:], y[7:]


def exact(gp, x):
    """Mean, joint covariance (interleaved), E Q and log p(Y) of a linear network: Q integrated over its Wishart law.

    100,000 draws of Q from the prior, weighted by the likelihood of all targets.
    """
    generator = torch.Generator().manual_seed(3)
    train, y = gp.train_inputs[0], gp.train_targets
    v = torch.randn(100_000, int(WIDTH), 2, generator=generator)
    q = v.mT @ v / WIDTH
    rho, vectors = torch.linalg.eigh(q)
    k, u = torch.linalg.eigh(train @ train.T / 3)
    spread = TEMPERATURE + rho.unsqueeze(-2) * k.unsqueeze(-1)  # draws x P x D
    turned = (u.T @ y) @ vectors
    log_weight = -0.5 * (spread.log() + turned.square() / spread + math.log(2 * math.pi)).sum((-2, -1))
    weight = torch.softmax(log_weight, 0)
    cross = (x @ train.T / 3) @ u
    means = (rho.unsqueeze(-2) * (cross @ (turned / spread))) @ vectors.mT  # draws x m x D
    own = rho[..., None, None] * (x @ x.T / 3)
    own = own - rho[..., None, None].square() * torch.einsum("ip,npd,jp->ndij", cross, 1 / spread, cross)
    within = torch.einsum("n,nad,ndij,nbd->iajb", weight, vectors, own, vectors)
    mean = torch.einsum("n,nmd->md", weight, means)
    away = means - mean
    covariance = within + torch.einsum("n,nia,njb->iajb", weight, away, away)
    # The Gram matrix of the readout and that of the units play the same part in a linear network: E Q is both.
    gram = torch.einsum("n,nab->ab", weight, q)
    return mean, covariance.reshape(4, 4), gram, torch.logsumexp(log_weight, 0) - math.log(len(q))


def test_a_linear_network_has_the_exact_posterior():
    gp, x, _ = model()
    fitted = FEW.fit(gp)
    mean, covariance, gram, evidence = exact(gp, x)
    found, variance = fitted.predict(x)
    size = covariance.diagonal().reshape(2, 2).sqrt()
    assert bool(((found - mean).abs() < 0.1 * size).all())  # 40 chains of correlated draws: 0.05 deviations
    torch.testing.assert_close(variance, size.square(), rtol=0.1, atol=0)
    joint = fitted.distribution(x, joint=True).covariance_matrix
    torch.testing.assert_close(joint, covariance, rtol=0, atol=0.1 * float(size.max()) ** 2)
    torch.testing.assert_close(fitted.distribution(x).variance, variance, rtol=1e-10, atol=0)
    block = fitted.conditioned.covariances(x)
    torch.testing.assert_close(block[1], joint[2:, 2:], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(fitted.order_parameters["q"], gram, rtol=0, atol=0.15 * float(gram.max()))
    error = fitted.stats["log_evidence_error"]
    assert abs(float(fitted.log_evidence - evidence)) < 4 * error < 1.0


def test_one_output_is_the_mixture():
    gp, x, y = model(1)
    fitted = FEW.fit(gp)
    likelihood = GaussianLikelihood(noise_constraint=Positive())
    likelihood.noise = TEMPERATURE
    single = NetworkGP(gp.train_inputs[0], gp.train_targets[:, 0], likelihood, RenormalizedNNGPKernel("identity", 4.0))
    truth, sampled = Mixture().fit(single), FEW.fit(single)
    mean, variance = truth.predict(x)
    assert bool(((fitted.predict(x)[0][:, 0] - mean).abs() < 0.1 * variance.sqrt()).all())
    # The same chains, so the same answers to all questions.
    for mine, other in (
        (fitted.error(x, y).total[0], sampled.error(x, y[:, 0]).total),
        (fitted.training_error()[0], sampled.training_error()),
        (fitted.leave_one_out().mean[0], sampled.leave_one_out().mean),
        (fitted.leave_one_out().log_density[0], sampled.leave_one_out().log_density),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_leave_one_out_is_about_a_refit():
    gp, _, _ = model()
    left = FEW.fit(gp).leave_one_out()
    x, y = gp.train_inputs[0], gp.train_targets
    kept = torch.arange(7) != 2
    mean, covariance, _, _ = exact(
        MultitaskNetworkGP.with_temperature(x[kept], y[kept], gp.covar_module, TEMPERATURE), x[[2, 2]]
    )
    deviation = covariance.diagonal()[:2].sqrt()
    assert bool(((left.mean[:, 2] - mean[0]).abs() < 0.3 * deviation).all())  # re-weighted draws
    torch.testing.assert_close(left.variance[:, 2].sqrt(), deviation, rtol=0.2, atol=0)


def test_classes_and_refusals():
    gp, x, _ = model(3, "erf")
    fitted = Sampled(num_chains=4, num_draws=8).fit(gp)
    shares = fitted.class_probabilities(x)
    assert shares.shape == (2, 3)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2))
    means, variances = fitted.conditioned.moments(x)
    noise = torch.randn(3000, *means.shape, generator=torch.Generator().manual_seed(0))
    largest = (means + variances.sqrt() * noise).argmax(1)
    expected = torch.stack([(largest == a).double().mean((0, 1)) for a in range(3)], -1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)  # 1,024 draws: 0.015
    assert fitted.record() is None and fitted.error(x, torch.zeros(2, 3)).mean_total.shape == (3,)
    missing = gp.train_targets.clone()
    missing[0, 0] = math.nan
    with pytest.raises(ValueError, match="expected none missing, got 1 NaN"):
        Sampled().fit(MultitaskNetworkGP(gp.train_inputs[0], missing, gp.likelihood, gp.covar_module))
    noisy = MultitaskGaussianLikelihood(3, has_global_noise=False)
    noisy.task_noises = torch.tensor([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="whose noise is one number"):
        Sampled().fit(MultitaskNetworkGP(gp.train_inputs[0], gp.train_targets, noisy, gp.covar_module))
