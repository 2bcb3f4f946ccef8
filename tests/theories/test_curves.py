"""Sweeps and learning curves equal one fit at a time; units."""

from __future__ import annotations

import math
import warnings

import gpytorch
import pytest
import torch

from torch_propkernel import (
    Erf,
    ReLU,
    RenormalizedNNGPKernel,
    expected_accuracy,
    fit_order_parameters,
    generalization_error,
    learning_curve,
    leave_one_out_error,
    training_error,
    width_sweep,
)

F = torch.float64


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, covariance, mean=0.0, likelihood=None):
        super().__init__(x, y, likelihood or gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = covariance
        self.double()
        self.mean_module.constant = mean
        if likelihood is None:
            self.likelihood.noise = 0.1

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def data(n: int, seed: int = 0, d: int = 100):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F)
    return x, 2.0 * torch.sign(x[:, 0]) + 0.5 * torch.randn(n, generator=generator, dtype=F)


def covariance(kind: str, width):
    kernel = RenormalizedNNGPKernel(Erf(), width, bias_variance=0.1)
    return {
        "plain": kernel,
        "scaled": gpytorch.kernels.ScaleKernel(kernel),
        "sum": kernel + gpytorch.kernels.ConstantKernel(),
    }[kind]


def noises(kind: str):
    return gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.linspace(0.05, 0.3, 50, dtype=F)) if kind else None


@pytest.mark.parametrize("noise", ["", "fixed"])
@pytest.mark.parametrize("kind", ["plain", "scaled", "sum"])
def test_width_sweep_is_one_fit_for_each_width(kind, noise):
    (x, y), (test_x, test_y) = data(50), data(9, seed=1)
    widths = [10.0, 40.0, 1e5, math.inf]
    sweep = width_sweep(Model(x, y, covariance(kind, 77.0), 0.3, noises(noise)), widths, test_x, test_y, chunk_size=4)
    assert (
        sweep.width.shape == (4, 1) and sweep.test.total.shape == (4, 9) and sweep.leave_one_out.total.shape == (4, 50)
    )
    for index, width in enumerate(widths):
        model = Model(x, y, covariance(kind, width), 0.3, noises(noise))
        solution = fit_order_parameters(model, warn=False)
        assert torch.allclose(sweep.order_parameter[index], solution.order_parameter, rtol=1e-9)
        for ours, theirs in (
            (sweep.test, generalization_error(model, test_x, test_y)),
            (sweep.leave_one_out, leave_one_out_error(model)),
        ):
            assert torch.allclose(ours.bias[index], theirs.bias, rtol=1e-8, atol=1e-10)
            assert torch.allclose(ours.variance[index], theirs.variance, rtol=1e-8, atol=1e-10)
            assert torch.allclose(ours.infinite_width.total, theirs.infinite_width.total, rtol=1e-8)
    assert torch.allclose(sweep.test.total[-1], sweep.test.infinite_width.total, rtol=1e-12)


def test_width_sweep_of_several_layers():
    x, y = data(40)
    widths = torch.tensor([[10.0, 20.0], [30.0, 15.0]], dtype=F)
    sweep = width_sweep(Model(x, y, RenormalizedNNGPKernel(Erf(), [5, 5])), widths)
    for index in range(2):
        model = Model(x, y, RenormalizedNNGPKernel(Erf(), widths[index]))
        expected = fit_order_parameters(model, warn=False).order_parameter
        assert torch.allclose(sweep.order_parameter[index], expected, rtol=1e-9)
    assert sweep.test is None


@pytest.mark.parametrize("kind", ["plain", "sum"])
def test_learning_curve_is_one_fit_for_each_subset(kind):
    (x, y), (test_x, test_y) = data(30), data(6, seed=1)
    model = Model(x, y, covariance(kind, 20.0), 0.3)
    curve = learning_curve(model, [7, 30], test_x, test_y, num_repeats=2, generator=torch.Generator().manual_seed(5))
    assert curve.bias.shape == (2, 2) and curve.order_parameter.shape == (2, 2, 1)
    generator = torch.Generator().manual_seed(5)
    for size in range(2):
        for repeat in range(2):
            rows = torch.randperm(30, generator=generator)[: [7, 30][size]]
            part = Model(x[rows], y[rows], covariance(kind, 20.0), 0.3)
            q = fit_order_parameters(part, warn=False).order_parameter
            error = generalization_error(part, test_x, test_y)
            assert torch.allclose(curve.order_parameter[size, repeat], q, rtol=1e-9)
            assert torch.allclose(curve.bias[size, repeat], error.mean_bias, rtol=1e-8)
            assert torch.allclose(curve.variance[size, repeat], error.mean_variance, rtol=1e-8)
            assert torch.allclose(curve.infinite_width_bias[size, repeat], error.infinite_width.mean_bias, rtol=1e-8)


@pytest.mark.filterwarnings(
    "ignore::torch_propkernel.exceptions.ReliabilityWarning"
)  # alpha = 3.3: the fit is what is tested
def test_fit_in_the_same_call():
    (x, y), (test_x, test_y) = data(50), data(6, seed=1)
    first, second = (Model(x, y, RenormalizedNNGPKernel(ReLU(), 15)) for _ in range(2))
    solution = fit_order_parameters(first, warn=False)
    error = generalization_error(first, test_x, test_y)
    together = generalization_error(second, test_x, test_y, fit=True)
    assert torch.equal(together.solution.order_parameter, solution.order_parameter)
    assert torch.allclose(together.total, error.total, rtol=1e-12)
    assert torch.allclose(second.covar_module.order_parameter, first.covar_module.order_parameter)
    assert torch.allclose(leave_one_out_error(second, fit=True).total, leave_one_out_error(first).total, rtol=1e-12)
    with pytest.raises(ValueError, match="order_parameter: expected None with fit=True"):
        generalization_error(second, test_x, test_y, fit=True, order_parameter=torch.ones(1))


def test_test_points_in_chunks():
    (x, y), (test_x, test_y) = data(30), data(25, seed=1)
    model = Model(x, y, RenormalizedNNGPKernel(ReLU(), 15))
    whole = generalization_error(model, test_x, test_y)
    parts = generalization_error(model, test_x, test_y, chunk_size=4)
    assert torch.allclose(whole.total, parts.total, rtol=1e-11)


def test_batch_of_models():
    x, y = data(30)
    width = torch.tensor([[10.0], [50.0]], dtype=F)
    batch = Model(x.expand(2, -1, -1), torch.stack([y, 3 * y]), RenormalizedNNGPKernel(Erf(), width))
    fit_order_parameters(batch, warn=False)
    test_x, test_y = data(5, seed=1)
    error, left_out = generalization_error(batch, test_x, test_y), leave_one_out_error(batch)
    for index in range(2):
        alone = Model(x, (1 + 2 * index) * y, RenormalizedNNGPKernel(Erf(), width[index]))
        fit_order_parameters(alone, warn=False)
        assert torch.allclose(error.total[index], generalization_error(alone, test_x, test_y).total, rtol=1e-9)
        assert torch.allclose(left_out.total[index], leave_one_out_error(alone).total, rtol=1e-9)


def test_original_units_of_a_standardized_botorch_model():
    botorch = pytest.importorskip("botorch")
    (x, y), (test_x, test_y) = data(40), data(6, seed=1)
    y, test_y = 50.0 + 7.0 * y, 50.0 + 7.0 * test_y
    transform = botorch.models.transforms.Standardize(m=1)
    inputs = botorch.models.transforms.Normalize(d=100)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="botorch")
        model = botorch.models.SingleTaskGP(
            x, y.unsqueeze(-1), covar_module=RenormalizedNNGPKernel(ReLU(), 20, bias_variance=0.1),
            mean_module=gpytorch.means.ZeroMean(), outcome_transform=transform, input_transform=inputs,
        )  # fmt: skip
    fit_order_parameters(model, warn=False)
    error = generalization_error(model, test_x, test_y)
    posterior = model.posterior(test_x)
    # BoTorch predicts through GPyTorch's cached solves
    assert torch.allclose(error.mean, posterior.mean.squeeze(-1), rtol=1e-6)
    assert torch.allclose(error.variance, posterior.variance.squeeze(-1), rtol=1e-5)
    scaled = leave_one_out_error(model)
    assert torch.allclose(scaled.bias, (y - scaled.mean).square(), rtol=1e-10)
    assert training_error(model).item() == pytest.approx(
        (generalization_error(model, x, y).mean_total).item(), rel=1e-9
    )


def test_other_outcome_transforms_are_refused():
    botorch = pytest.importorskip("botorch")
    x, y = data(10)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="botorch")
        model = botorch.models.SingleTaskGP(
            x, y.abs().unsqueeze(-1) + 1, covar_module=RenormalizedNNGPKernel(ReLU(), 20),
            outcome_transform=botorch.models.transforms.Log(),
        )  # fmt: skip
    with pytest.raises(ValueError, match="outcome_transform: expected Standardize or None, got Log"):
        leave_one_out_error(model)


def test_expected_accuracy_needs_labels():
    x, y = data(10)
    model = Model(x, y.sign(), RenormalizedNNGPKernel(ReLU(), 10))
    with pytest.raises(ValueError, match=r"y: expected labels \+1 and -1"):
        expected_accuracy(model, x, y)
    assert 0.5 < expected_accuracy(model, x, y.sign()) < 1.0


def test_sweep_refuses_what_it_cannot_do():
    x, y = data(10)
    with pytest.raises(ValueError, match="composition: expected one in which only the product"):
        width_sweep(Model(x, y, RenormalizedNNGPKernel(Erf(), [10, 10], "nested")), [5.0], theory="mixture")
    with pytest.raises(ValueError, match="chunk_size: expected a whole number >= 1, got 0"):
        width_sweep(Model(x, y, RenormalizedNNGPKernel(Erf(), 10)), [5.0], chunk_size=0)
    with pytest.raises(ValueError, match="x, y: expected both"):
        width_sweep(Model(x, y, RenormalizedNNGPKernel(Erf(), 10)), [5.0], x)
    with pytest.raises(ValueError, match="num_data: expected sizes from 1 to 10"):
        learning_curve(Model(x, y, RenormalizedNNGPKernel(Erf(), 10)), [11], x, y)
    batch = Model(x.expand(2, -1, -1), y.expand(2, -1), RenormalizedNNGPKernel(Erf(), 10))
    with pytest.raises(ValueError, match="expected no batch dimensions"):
        width_sweep(batch, [5.0])
