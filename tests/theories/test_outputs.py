"""Theories of several outputs: against GPyTorch's dense predictions, and against one output."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.theories import FreeScale, Gated, InfiniteWidth, SaddlePoint


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def problem(num_outputs=3, width=(15.0, 25.0), temperature=0.1, mean=0.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(28, 8, generator=generator)
    y = x @ torch.randn(8, num_outputs, generator=generator) + 0.2 * torch.randn(28, num_outputs, generator=generator)
    y = y + mean
    kernel = MultitaskRenormalizedKernel("erf", list(width), num_outputs, bias_variance=0.3)
    model = MultitaskNetworkGP.with_temperature(x[:20], y[:20], kernel, temperature)
    if mean:
        model.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=num_outputs)
        for base in model.mean_module.base_means:
            base.constant = torch.tensor(mean)
    return model, x[20:], y[20:]


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_predictions_are_those_of_gpytorch_at_the_same_order_parameters(mean):
    model, x, y = problem(mean=mean)
    fitted = SaddlePoint().fit(model)
    model.covar_module.initialize(order_parameter=fitted.order_parameters["E"])
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        posterior = model(x)
        own = model(model.train_inputs[0])
    found, variance = fitted.predict(x)
    torch.testing.assert_close(found, posterior.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, posterior.variance, rtol=1e-9, atol=1e-9)
    joint = fitted.distribution(x, joint=True)
    torch.testing.assert_close(joint.covariance_matrix, posterior.covariance_matrix, rtol=0, atol=1e-9)
    torch.testing.assert_close(fitted.distribution(x).variance, posterior.variance, rtol=1e-9, atol=1e-9)
    block = posterior.covariance_matrix[:3, :3]
    deviation = block.diagonal().sqrt()
    torch.testing.assert_close(fitted.correlations(x)[0], block / deviation.outer(deviation), rtol=0, atol=1e-9)
    error = fitted.error(x, y)
    torch.testing.assert_close(error.bias, (y - posterior.mean).square().mT, rtol=1e-8, atol=1e-9)
    assert error.mean_total.shape == (3,) and error.infinite_width.mean_total.shape == (3,)
    training = ((model.train_targets - own.mean).square() + own.variance).mean(0)
    torch.testing.assert_close(fitted.training_error(), training, rtol=1e-8, atol=1e-10)


def test_leaving_out_a_point_is_refitting_without_it():
    model, _, _ = problem()
    fitted = SaddlePoint().fit(model)
    left = fitted.leave_one_out()
    x, y = model.train_inputs[0], model.train_targets
    kept = torch.arange(20) != 4
    kernel = model.covar_module
    kernel.initialize(order_parameter=fitted.order_parameters["E"])
    other = MultitaskNetworkGP.with_temperature(x[kept], y[kept], kernel, 0.1).eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        posterior = other(x[4:5])
    torch.testing.assert_close(left.mean[:, 4], posterior.mean[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left.variance[:, 4], posterior.variance[0], rtol=1e-9, atol=1e-9)
    density = torch.distributions.Normal(posterior.mean[0], (posterior.variance[0] + 0.1).sqrt()).log_prob(y[4])
    torch.testing.assert_close(left.log_density[:, 4], density, rtol=1e-8, atol=1e-9)


def test_one_output_is_the_scalar_theory():
    model, x, y = problem(num_outputs=1)
    fitted = SaddlePoint().fit(model)
    kernel = RenormalizedNNGPKernel("erf", [15.0, 25.0], bias_variance=0.3)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = 0.1
    scalar = SaddlePoint().fit(NetworkGP(model.train_inputs[0], model.train_targets[:, 0], likelihood, kernel))
    torch.testing.assert_close(fitted.order_parameters["E"].flatten(), scalar.order_parameters["q"], rtol=1e-9, atol=0)
    torch.testing.assert_close(fitted.error(x, y).total[0], scalar.error(x, y[:, 0]).total, rtol=1e-9, atol=0)


def test_infinite_width_has_independent_outputs():
    model, x, y = problem()
    fitted = InfiniteWidth().fit(model)
    off = fitted.correlations(x) - torch.eye(3)
    assert float(off.abs().max()) < 1e-12
    assert float(SaddlePoint().fit(model).correlations(x)[:, 0, 1].abs().max()) > 1e-3
    torch.testing.assert_close(fitted.error(x, y).total, fitted.error(x, y).infinite_width.total, rtol=1e-12, atol=0)


def test_accuracy_is_the_share_of_largest_outputs():
    model, x, _ = problem(num_outputs=3)
    fitted = SaddlePoint().fit(model)
    mean, _ = fitted.predict(x)
    classes = mean.argmax(-1)
    draws = fitted.distribution(x).sample(torch.Size([20000])).argmax(-1)
    expected = (draws == classes).double().mean().item()
    assert fitted.accuracy(x, classes).item() == pytest.approx(expected, abs=0.01)  # 1,000 draws of 8 points: 0.4 %
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        fitted.accuracy(x, classes + 1)


def test_what_does_not_apply_is_refused():
    model, x, y = problem()
    for theory in (Gated(), FreeScale()):
        with pytest.raises(ValueError, match="expected one output, got 3"):
            theory.fit(model)
    fitted = SaddlePoint().fit(model)
    with pytest.raises(ValueError, match=r"y: expected shape \(m, 3\)"):
        fitted.error(x, y[:, 0])
    noisy = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3)
    other = MultitaskNetworkGP(model.train_inputs[0], model.train_targets, noisy, model.covar_module)
    with pytest.raises(ValueError, match="has_task_noise=False"):
        SaddlePoint().fit(other)
    scaled = gpytorch.kernels.ScaleKernel(model.covar_module)
    with pytest.raises(ValueError, match="MultitaskRenormalizedKernel itself, got ScaleKernel"):
        SaddlePoint().fit(MultitaskNetworkGP(model.train_inputs[0], model.train_targets, model.likelihood, scaled))
