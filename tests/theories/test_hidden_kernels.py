"""Kernels of hidden layers: against exact integrals, prior networks weighted with the likelihood, sampled networks."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.networks import FiniteNetwork, measure_hidden_kernels, sample_posterior
from torch_propkernel.theories import FirstOrder, InfiniteWidth, Mixture, SaddlePoint, Sampled, hidden_kernels

pytestmark = pytest.mark.usefixtures("in_double_precision")
WEIGHTS = [1.3, 0.6, 2.0]


def data(rows, outputs, columns=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x, x @ torch.randn(columns, outputs, generator=generator)


def several(x, y, activation, width, temperature, **options):
    weights = WEIGHTS[: len(width) + 1]
    kernel = MultitaskRenormalizedKernel(activation, width, y.shape[-1], weight_variance=weights, **options)
    return MultitaskNetworkGP.with_temperature(x, y, kernel, temperature)


def one(x, y, activation, width, temperature, **options):
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = temperature
    kernel = RenormalizedNNGPKernel(activation, width, weight_variance=WEIGHTS[: len(width) + 1], **options)
    return NetworkGP(x, y, likelihood, kernel)


def exact_scales(width, outputs, square, temperature, kernel):
    """E[g_1 | y] and E[g_1 g_2 | y] of a deep linear network at one point, K_2 = kernel g_1 g_2, by quadrature."""
    logs = np.linspace(-9, 9, 801) / math.sqrt(
        width
    )  # beyond nine deviations of log g, trapezoids are exact to rounding
    first, second = np.meshgrid(np.exp(logs), np.exp(logs), indexing="ij")
    prior = 0.5 * width * (np.log(first) - first + np.log(second) - second)
    covariance = temperature + kernel * first * second
    log_weight = prior - 0.5 * (outputs * np.log(covariance) + square / covariance)
    weight = np.exp(log_weight - log_weight.max())
    return [float((weight * value).sum() / weight.sum()) for value in (first, first * second)]


def test_linear_networks_at_one_point_converge_with_the_second_order():
    """|first order - exact| falls as 1/N^2, for three outputs and both layers."""
    x, y = torch.full((1, 1), 1.2), torch.tensor([[3.0, -4.0, 0.8]])
    kernel = 1.3 * 0.6 * 2.0 * 1.2**2
    gaps = []
    for width in (40, 80, 160):
        found = hidden_kernels(InfiniteWidth().fit(several(x, y, "identity", [width, width], 0.7)))
        exact = exact_scales(width, 3, float(y.square().sum()), 0.7, kernel)
        relative = (found.mean / found.infinite_width).flatten().tolist()
        gaps.append([abs(a - b) for a, b in zip(relative, exact, strict=True)])
        assert all(gap < 0.2 * abs(value - 1) for gap, value in zip(gaps[-1], exact, strict=True))
    for wide, wider in zip(gaps, gaps[1:], strict=False):
        # the third order, some units over N
        assert [a / b for a, b in zip(wide, wider, strict=True)] == pytest.approx([4.0, 4.0], rel=0.15)


def weighted_prior_networks(model, x, count, batch):
    """Means of the hidden kernels over prior networks, weighted with the likelihood or not, and of their difference."""
    kernel = model.covar_module
    inner = getattr(kernel, "data_covar_module", kernel)
    generator = torch.Generator().manual_seed(1)
    y, noise = model.train_targets, model.likelihood.noise.item()
    y = y if y.dim() == 2 else y.unsqueeze(-1)
    kernels, logs = [], []
    for _ in range(batch):
        network = FiniteNetwork(
            inner.activation,
            x.shape[-1],
            [int(w) for w in kernel.width.flatten()],
            weight_variance=inner.weight_variance.flatten(),
            bias_variance=inner.bias_variance.flatten(),
            batch_shape=(count,),
            generator=generator,
        )
        with torch.no_grad():
            layers = [units @ units.mT / units.shape[-1] for units in network.activations(x)]
        last = layers[-1] * WEIGHTS[len(layers)]
        law = torch.distributions.MultivariateNormal(torch.zeros(len(x)), last + noise * torch.eye(len(x)))
        logs.append(law.log_prob(y.mT.unsqueeze(1)).sum(0))
        kernels.append(torch.stack(layers, 1))
    kernels, logs = torch.cat(kernels), torch.cat(logs)
    weight = len(logs) * torch.softmax(logs, 0)[:, None, None, None]
    center = (weight * kernels).mean(0)
    terms = weight * (kernels - center) - (kernels - kernels.mean(0))
    return center, center - kernels.mean(0), terms.std(0) / math.sqrt(len(logs))


@pytest.mark.parametrize(
    ("activation", "width", "outputs"),
    [("identity", [60, 40], 2), ("erf", [50], 1), ("relu", [50], 2), ("erf", [60, 40], 2)],
)
def test_first_order_is_what_weighted_prior_networks_have(activation, width, outputs):
    x, y = data(3, outputs)
    bias = [0.4] if len(width) == 1 else [0.4, 0.2]
    model = several(x, y, activation, width, 0.8, bias_variance=bias)
    if outputs == 1:
        model = one(x, y[:, 0], activation, width, 0.8, bias_variance=bias)
    found = hidden_kernels(InfiniteWidth().fit(model), num_units=200_000)
    mean, change, error = weighted_prior_networks(model, x, 10_000, 3)
    moved = found.mean - found.infinite_width
    largest = change.abs().amax((-2, -1), keepdim=True)
    assert bool((largest > 8 * error).all())
    # the second order: at these widths 10 % of the first, as the identity's exact values have it
    assert bool(((moved - change).abs() < 5 * error + 0.12 * largest).all())
    assert not bool(((2 * moved - change).abs() < 5 * error + 0.12 * largest).all())
    if len(width) == 1 or activation == "identity":  # the prior's mean is that of infinite width
        assert bool(((found.mean - mean).abs() < 5 * error + 0.12 * largest + 0.02).all())
    if activation != "identity":
        assert bool((found.standard_error < 0.03 * largest).all())


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.SamplingWarning")  # the errors are in the bound
def test_saddle_is_the_mean_of_sampled_linear_networks():
    """Two outputs, two layers, P/N = 3/4: the change is of the order of the kernel itself."""
    x, y = data(30, 2, columns=20)
    y = 2 * y
    model = several(x, y, "identity", [40, 40], 0.3)
    saddle, first = (hidden_kernels(theory.fit(model), x[:4]) for theory in (SaddlePoint(), InfiniteWidth()))
    network = FiniteNetwork("identity", 20, [40, 40], num_outputs=2, weight_variance=WEIGHTS)
    sampled = sample_posterior(network, x, y, 0.3, num_chains=8, num_samples=100, warmup=80, keep_weights=True, seed=1)
    measured = measure_hidden_kernels(network, sampled.hidden, x[:4])
    for layer, exact in enumerate(measured):
        change = (exact.mean - saddle.infinite_width[layer]).norm()
        gap = (saddle.mean[layer] - exact.mean).norm()
        assert change > 0.25 * saddle.infinite_width[layer].norm()
        assert gap < 3 * exact.standard_error.norm() + 0.02 * change  # of four times as many draws: 2.0 and 0.9 %
        assert gap < 0.3 * (first.mean[layer] - exact.mean).norm()


def test_theories_of_one_output_agree_with_the_sampled_network():
    x, y = data(25, 1, columns=200, seed=2)
    model = one(x, 2 * y[:, 0] / y.std(), "erf", [25], 0.2)
    sampled = hidden_kernels(Sampled(num_chains=16, num_draws=30).fit(model))
    saddle = hidden_kernels(SaddlePoint().fit(model))
    change = (sampled.mean - sampled.infinite_width)[0]
    assert torch.equal(sampled.infinite_width, saddle.infinite_width)
    noise = sampled.standard_error.square().sum().sqrt()
    assert change.norm() > 5 * noise
    # Gaussian units in place of erf miss 20 to 25 % of the change (THEORY.md, section 13)
    assert (saddle.mean - sampled.mean).norm() < 0.3 * change.norm() + 2 * noise
    torch.testing.assert_close(
        hidden_kernels(FirstOrder().fit(model)).mean, hidden_kernels(InfiniteWidth().fit(model)).mean, rtol=0, atol=0
    )


@pytest.mark.parametrize("theory", [InfiniteWidth(), SaddlePoint()])
def test_scales_columns_and_missing_targets(theory):
    """A scale around the kernel is a part of the readout; columns that are not read and a mean change nothing."""
    x, y = data(8, 2)
    wide = torch.cat([torch.ones(8, 1), x], -1)
    plain = hidden_kernels(theory.fit(one(x, y[:, 0], "erf", [10], 0.3)))
    model = one(wide, y[:, 0] + 4.0, "erf", [10], 0.3, active_dims=[1, 2, 3])
    model.covar_module.readout_variance = WEIGHTS[1] / 3.0
    model.covar_module = gpytorch.kernels.ScaleKernel(model.covar_module)
    model.covar_module.outputscale = 3.0
    model.mean_module = gpytorch.means.ConstantMean()
    model.mean_module.constant = 4.0
    found = hidden_kernels(theory.fit(model))
    torch.testing.assert_close(found.mean, plain.mean, rtol=1e-6, atol=1e-8)  # the solver's tolerance
    both = several(wide, y, "erf", [10], 0.3, active_dims=[1, 2, 3]), several(x, y, "erf", [10], 0.3)
    found, plain = (hidden_kernels(theory.fit(each), each.train_inputs[0][:2]) for each in both)
    torch.testing.assert_close(found.mean, plain.mean, rtol=1e-6, atol=1e-8)
    if isinstance(theory, SaddlePoint):
        missing = y.clone()
        missing[1, 0] = math.nan
        partly = hidden_kernels(theory.fit(several(x, missing, "erf", [10], 0.3)), x[:2])
        moved = (plain.mean - plain.infinite_width).norm()
        assert 0 < (partly.mean - plain.mean).norm() < moved  # of 16 targets one is not known


def test_measured_kernels_of_the_prior_are_those_of_infinite_width():
    network = FiniteNetwork("relu", 3, [30, 300], bias_variance=0.3, weight_variance=[1.0, 2.0, 5.0])
    hidden = torch.randn(4, 200, network.num_hidden, generator=torch.Generator().manual_seed(0))
    x, y = data(5, 1)
    layers = measure_hidden_kernels(network, hidden, x)
    model = one(x, y[:, 0], "relu", [30, 300], 0.1, bias_variance=0.3)
    model.covar_module.weight_variance = torch.tensor([1.0, 2.0, 5.0])
    wide = hidden_kernels(InfiniteWidth().fit(model)).infinite_width
    # relu is homogeneous: the mean of the second layer is the infinite width's at any width of the first but for the
    # change of the angle, 1/N_1
    for layer, expected, slack in zip(layers, wide, (0.0, 1 / 30), strict=True):
        assert bool(((layer.mean - expected).abs() < 4 * layer.standard_error + slack * expected).all())
    features = network.features(x, hidden[0])
    torch.testing.assert_close(features, list(network.activations(x, hidden[0]))[-1] / 300**0.5)


def test_bad_input_is_refused():
    x, y = data(4, 2)
    model = several(x, y, "erf", [5, 5], 0.3)
    with pytest.raises(ValueError, match="expected one hidden layer"):
        hidden_kernels(SaddlePoint().fit(model))
    with pytest.raises(ValueError, match="expected an odd activation"):
        hidden_kernels(SaddlePoint().fit(several(x, y, "relu", [5], 0.3)))
    biased = one(x, y[:, 0], "erf", [5], 0.3)
    biased.covar_module = biased.covar_module + gpytorch.kernels.ConstantKernel()
    with pytest.raises(ValueError, match="got a readout bias"):
        hidden_kernels(SaddlePoint().fit(biased))
    assert hidden_kernels(InfiniteWidth().fit(biased), num_units=80).mean.shape == (1, 4, 4)
    with pytest.raises(ValueError, match="at least 2, one unit for each output"):
        hidden_kernels(SaddlePoint().fit(several(x, y, "erf", [1], 0.3)))
    missing = y.clone()
    missing[0, 0] = math.nan
    with pytest.raises(ValueError, match="expected all targets"):
        hidden_kernels(InfiniteWidth().fit(several(x, missing, "erf", [5], 0.3)))
    with pytest.raises(TypeError, match="expected one of InfiniteWidth"):
        hidden_kernels(Mixture().fit(one(x, y[:, 0], "erf", [5], 0.3)))
    with pytest.raises(ValueError, match="expected 3 columns"):
        hidden_kernels(InfiniteWidth().fit(model), torch.ones(2, 5))
    network = FiniteNetwork("erf", 3, 2)
    with pytest.raises(ValueError, match=r"hidden: expected shape \(chains, draws, 6\)"):
        measure_hidden_kernels(network, torch.zeros(4, 6), x)
    with pytest.raises(TypeError, match="expected a FiniteNetwork"):
        measure_hidden_kernels(torch.nn.Linear(1, 1), torch.zeros(1, 4, 6), x)
