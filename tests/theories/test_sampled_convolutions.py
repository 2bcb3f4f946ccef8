"""Sampled convolutional networks: against chains that sample the readout too, and against the exact linear theory."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import ConstantKernel, ScaleKernel

from torch_propkernel import NetworkGP, NNGPKernel
from torch_propkernel.inference import BlocksProblem
from torch_propkernel.kernels import BlockRenormalizedKernel, ConvolutionalRenormalizedKernel
from torch_propkernel.networks import sample_posterior
from torch_propkernel.theories import THEORIES, SaddlePoint, Sampled, network_from_model

pytestmark = pytest.mark.usefixtures("in_double_precision")


def problem(activation="erf", readout="dense", width=5.0, wrap=lambda kernel: kernel):
    """Sixteen images of one row of two patches, and six more."""
    x = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
    y = 2.0 * torch.tanh(x[:, 0] + x[:, 1]) + x[:, 4]
    kernel = ConvolutionalRenormalizedKernel(activation, width, (1, 6), 3, readout=readout, bias_variance=0.2)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.3
    return NetworkGP(x[:16], y[:16], likelihood, wrap(kernel)), x[16:], y[16:]


@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_it_agrees_with_the_sampled_posterior(readout):
    model, x, y = problem(readout=readout)
    fitted = Sampled(num_chains=40, seed=1).fit(model)
    network = network_from_model(model.covar_module)
    sampled = sample_posterior(
        network, model.train_inputs[0], model.train_targets, 0.3, test_x=x, test_y=y, num_samples=300, warmup=100
    )
    assert fitted.stats["converged"] and sampled.converged
    # Monte Carlo errors of both; the annealed chains have less than 2 %. At infinite width q is 1, here 1.9 and 3.5.
    error = fitted.error(x, y)
    for own, other in (
        (error.mean_total, sampled.test_error),
        (error.mean_bias, sampled.bias),
        (error.mean_variance, sampled.variance),
        (fitted.readout_norm, sampled.order_parameter),
        (fitted.training_error(), sampled.training_error),
    ):
        assert abs(float(own) - other.mean) < 5.0 * other.standard_error + 0.02 * abs(other.mean)


def test_a_linear_convolution_has_the_evidence_of_its_wishart_law():
    """Linear units: E is Wishart, so that p(y) is an average over draws of it; with a scale and a readout bias."""

    def wrap(kernel):
        scaled, bias = ScaleKernel(kernel), ConstantKernel()
        scaled.outputscale, bias.constant = 1.7, torch.tensor([0.5])
        return scaled + bias

    model, x, _ = problem("identity", wrap=wrap)
    fitted = Sampled(num_chains=100, spread=0.4, seed=1).fit(model)
    blocks, base = BlocksProblem.of_blocks(model).training_blocks()
    v = torch.randn(20_000, 5, 2, generator=torch.Generator().manual_seed(3))
    covariance = torch.stack([blocks(matrix) for matrix in v.mT @ v / 5.0]) + base
    zero = torch.zeros(16)
    logs = torch.distributions.MultivariateNormal(zero, covariance, validate_args=False).log_prob(model.train_targets)
    exact = logs.logsumexp(0) - math.log(len(logs))
    error = fitted.stats["log_evidence_error"]
    assert error < 0.1 and abs(fitted.log_evidence - exact) < 3 * error + 0.02  # the average's own error
    # From 200,000 draws Laplace's method is off by 0.19 at N = 5, 0.026 at N = 20; infinite width by 0.38 and 0.10.
    assert abs(SaddlePoint().fit(model).log_evidence - exact) < 0.25


def test_points_are_left_out_and_means_are_joint():
    model, x, _ = problem()
    fitted = Sampled(num_chains=20).fit(model)
    left = fitted.leave_one_out()
    assert left.mean.shape == (16,) and fitted.left_out_shape.shape == (16,) and fitted.left_out_is_trusted
    joint, single = fitted.distribution(x, joint=True), fitted.distribution(x)
    torch.testing.assert_close(joint.variance, single.variance)
    again = Sampled(num_chains=20).restored(fitted.problem, fitted.record())
    torch.testing.assert_close(again.predict(x), fitted.predict(x), rtol=0, atol=0)


def test_blocks_without_a_network_are_refused():
    model, _, _ = problem()
    x, y, likelihood = model.train_inputs[0], model.train_targets, model.likelihood
    table = BlockRenormalizedKernel([[NNGPKernel("erf")]], 5.0)
    with pytest.raises(TypeError, match="got BlockRenormalizedKernel: .* is not the prior of one network"):
        Sampled().check(NetworkGP(x, y, likelihood, table))
    infinite, _, _ = problem(width=math.inf)
    with pytest.raises(ValueError, match="channels: expected a whole number >= 1, got inf"):
        Sampled().check(infinite)


def test_other_theories_refuse_blocks():
    model, _, _ = problem()
    takers = {"infinite_width", "free_scale", "saddle", "sampled"}
    for name, theory in THEORIES.items():
        if name in takers:
            theory().check(model)
            continue
        with pytest.raises(ValueError, match="expected a RenormalizedNNGPKernel, got a BlockRenormalizedKernel"):
            theory().check(model)
