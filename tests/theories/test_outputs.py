"""Theories of several outputs: against GPyTorch's dense predictions, and against one output."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.theories import FreeScale, Gated, InfiniteWidth, SaddlePoint

pytestmark = pytest.mark.usefixtures("in_double_precision")


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


def noisy_problem(kind, missing):
    model, x, y = problem()
    options = {"diagonal": {"rank": 0}, "correlated": {"rank": 2}, "equal": {"has_task_noise": False}}[kind]
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3, **options)
    likelihood.noise = 0.1
    if kind == "diagonal":
        likelihood.task_noises = torch.tensor([0.5, 0.02, 0.1])
    if kind == "correlated":
        factor = torch.tensor([[0.5, 0.1], [-0.4, 0.2], [0.0, 0.6]])
        likelihood.task_noise_covar_factor = torch.nn.Parameter(factor)
    targets = model.train_targets.clone()
    if missing:
        targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.25] = float("nan")
    return MultitaskNetworkGP(model.train_inputs[0], targets, likelihood, model.covar_module), x, y


@pytest.mark.parametrize("theory", [SaddlePoint(), FreeScale(), InfiniteWidth()])
@pytest.mark.parametrize(
    ("kind", "missing"), [("diagonal", False), ("correlated", False), ("diagonal", True), ("correlated", True)]
)
def test_noise_by_output_and_missing_targets(kind, missing, theory):
    """Against the formulas of a Gaussian process with a matrix of all observed targets."""
    model, x, y = noisy_problem(kind, missing)
    fitted = theory.fit(model)
    q = torch.diag(fitted.order_parameters["r"]) if "r" in fitted.order_parameters else fitted.order_parameters["Q"]
    train_x, targets = model.train_inputs[0], model.train_targets
    with torch.no_grad():
        noise = model.likelihood.noise * torch.eye(3)
        if kind == "diagonal":
            noise = noise + torch.diag(model.likelihood.task_noises)
        else:
            noise = noise + model.likelihood.task_noise_covar
        points = torch.cat([train_x, x])
        prior = torch.kron(model.covar_module.data_covar_module(points).to_dense(), q)
    stacked, size = targets.reshape(-1), targets.numel()
    seen = torch.nonzero(~stacked.isnan()).flatten()
    own = torch.kron(torch.eye(20), noise)[seen][:, seen]
    covariance, cross = own + prior[seen][:, seen], prior[size:][:, seen]
    mean = cross @ torch.linalg.solve(covariance, stacked[seen])
    spread = prior[size:, size:] - cross @ torch.linalg.solve(covariance, cross.T)
    found, variance = fitted.predict(x)
    torch.testing.assert_close(found, mean.reshape(8, 3), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(variance, spread.diagonal().reshape(8, 3), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(fitted.distribution(x, joint=True).covariance_matrix, spread, rtol=0, atol=1e-9)
    blocks = torch.stack([spread[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] for i in range(8)])
    torch.testing.assert_close(fitted.conditioned.covariances(x), blocks, rtol=0, atol=1e-9)
    log_density = torch.distributions.MultivariateNormal(torch.zeros(len(seen)), covariance).log_prob(stacked[seen])
    torch.testing.assert_close(fitted.conditioned.log_likelihoods()[0], log_density, rtol=1e-9, atol=0)
    at_points = prior[seen][:, seen]
    away = stacked[seen] - at_points @ torch.linalg.solve(covariance, stacked[seen])
    errors = away**2 + (at_points - at_points @ torch.linalg.solve(covariance, at_points)).diagonal()
    expected = torch.stack([errors[seen % 3 == output].mean() for output in range(3)])
    torch.testing.assert_close(fitted.training_error(), expected, rtol=1e-8, atol=1e-10)
    noisy = variance + noise.diagonal()
    density = torch.distributions.Normal(found, noisy.sqrt()).log_prob(y)
    torch.testing.assert_close(fitted.error(x, y).log_density, density.mT, rtol=1e-8, atol=1e-9)
    if missing:
        with pytest.raises(ValueError, match="leave_one_out: expected all targets to be observed"):
            fitted.leave_one_out()
    else:
        left = torch.ones(20, dtype=torch.bool)
        left[4] = False
        kept = torch.nonzero(left.repeat_interleave(3)).flatten()
        a, c = covariance[kept][:, kept], prior[12:15][:, kept]
        estimate = fitted.leave_one_out()
        torch.testing.assert_close(estimate.mean[:, 4], c @ torch.linalg.solve(a, stacked[kept]), rtol=1e-8, atol=1e-9)
        around = (prior[12:15, 12:15] - c @ torch.linalg.solve(a, c.T)).diagonal()
        torch.testing.assert_close(estimate.variance[:, 4], around, rtol=1e-7, atol=1e-9)


def test_a_free_scale_for_each_output_is_that_of_the_output_alone():
    for kind, missing in (("equal", False), ("diagonal", False), ("diagonal", True)):
        model, x, y = noisy_problem(kind, missing)
        fitted = FreeScale().fit(model)
        noise = model.likelihood.noise + (model.likelihood.task_noises if kind == "diagonal" else torch.zeros(3))
        evidence = 0.0
        for output in range(3):
            seen = ~model.train_targets[:, output].isnan()
            likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
            likelihood.noise = noise[output].detach()
            kernel = RenormalizedNNGPKernel("erf", [15.0, 25.0], bias_variance=0.3)
            targets = model.train_targets[seen, output]
            alone = FreeScale().fit(NetworkGP(model.train_inputs[0][seen], targets, likelihood, kernel))
            # A bounded search of the log scale to 1e-10 resolves a flat maximum to the root of the rounding.
            torch.testing.assert_close(
                fitted.order_parameters["r"][output], alone.order_parameters["r"], rtol=1e-6, atol=0
            )
            torch.testing.assert_close(
                fitted.error(x, y).total[output], alone.error(x, y[:, output]).total, rtol=1e-6, atol=1e-9
            )
            evidence = evidence + alone.log_evidence
        torch.testing.assert_close(fitted.log_evidence, evidence, rtol=1e-10, atol=0)
        assert fitted.correlations(x)[:, 0, 1].abs().max() < 1e-10
        assert fitted.stats["at_edge"].shape == (3,)


def test_what_does_not_apply_is_refused():
    model, x, y = problem()
    with pytest.raises(ValueError, match="expected one output, got 3"):
        Gated().fit(model)
    fitted = SaddlePoint().fit(model)
    with pytest.raises(ValueError, match=r"y: expected shape \(m, 3\)"):
        fitted.error(x, y[:, 0])
    other = MultitaskNetworkGP(model.train_inputs[0], model.train_targets, model.likelihood, model.covar_module)
    other.likelihood = gpytorch.likelihoods.GaussianLikelihood()
    with pytest.raises(ValueError, match="expected a MultitaskGaussianLikelihood, got GaussianLikelihood"):
        SaddlePoint().fit(other)
    empty = model.train_targets.clone()
    empty[:, 2] = float("nan")
    with pytest.raises(ValueError, match=r"got none of outputs \[2\]"):
        SaddlePoint().fit(MultitaskNetworkGP(model.train_inputs[0], empty, model.likelihood, model.covar_module))
    scaled = gpytorch.kernels.ScaleKernel(model.covar_module)
    with pytest.raises(ValueError, match="MultitaskRenormalizedKernel itself, got ScaleKernel"):
        SaddlePoint().fit(MultitaskNetworkGP(model.train_inputs[0], model.train_targets, model.likelihood, scaled))
