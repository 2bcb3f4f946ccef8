"""The readout's law and the two targets against dense formulas, automatic differentiation and brute force."""

import math

import pytest
import torch

from torch_propkernel import Erf, ReLU
from torch_propkernel.activations import Identity
from torch_propkernel.networks import ConvolutionalNetwork, FiniteNetwork, JointTarget, MarginalTarget, ReadoutLaw

T, VARIANCE = 0.3, 1.7


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[(6, 4), (4, 6), (5, 5)], ids=["more data", "more features", "square"])
def regression(request):
    num_data, num_features = request.param
    return random(3, num_data, num_features), random(num_data, 2, seed=1)


def dense(features, targets, bias=0.0):
    """Covariance of the targets, and mean and covariance of the readout, with explicit inverses."""
    prior = torch.full((features.shape[-1],), VARIANCE, dtype=torch.float64)
    if bias:
        prior[-1] = bias
    covariance = T * torch.eye(len(targets), dtype=torch.float64) + prior * features @ features.mT
    gain = prior.unsqueeze(-1) * features.mT @ torch.linalg.inv(covariance)
    spread = (torch.eye(features.shape[-1], dtype=torch.float64) - gain @ features) * prior
    return covariance, gain @ targets, spread


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_law_of_the_readout(regression, bias):
    features, targets = regression
    covariance, mean, spread = dense(features, targets, bias)
    law = ReadoutLaw(features, targets, T, VARIANCE, bias)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(targets), dtype=torch.float64), covariance)
    torch.testing.assert_close(law.log_likelihood, sum(normal.log_prob(column) for column in targets.T))
    torch.testing.assert_close(law.mean, mean)
    test = random(3, 7, features.shape[-1], seed=2)
    torch.testing.assert_close(law.predict(test)[0], test @ mean)
    torch.testing.assert_close(law.predict(test)[1], (test @ spread @ test.mT).diagonal(dim1=-2, dim2=-1))
    inside = (features @ spread @ features.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    error = ((targets - features @ mean).square().sum((-2, -1)) + 2 * inside) / len(targets)
    torch.testing.assert_close(law.training_error(), error)
    torch.testing.assert_close(law.covariance(test), test @ spread @ test.mT)
    inverse = torch.linalg.inv(covariance)
    torch.testing.assert_close(law.left_out_terms(), (inverse @ targets, inverse.diagonal(dim1=-2, dim2=-1)))
    count = features.shape[-1] - (bias > 0)  # a bias is no part of the order parameter
    weights, spread = mean[:, :count], spread.diagonal(dim1=-2, dim2=-1)[:, :count]
    trace = spread.sum(-1)[:, None, None] * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(law.order_parameter(), (weights.mT @ weights + trace) / VARIANCE / count)


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_gradients_are_those_of_the_evidence(regression, bias):
    features, targets = regression
    leaf = features.clone().requires_grad_()
    temperature, scale = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))  # logarithms
    units = leaf[..., :-1] if bias else leaf
    covariance = T * temperature.exp() * torch.eye(len(targets), dtype=torch.float64)
    covariance = covariance + VARIANCE * scale.exp() * units @ units.mT
    if bias:
        covariance = covariance + bias * leaf[..., -1:] @ leaf[..., -1:].mT
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(targets), dtype=torch.float64), covariance)
    (-sum(evidence.log_prob(column) for column in targets.T)).sum().backward()
    law = ReadoutLaw(features, targets, T, VARIANCE, bias)
    torch.testing.assert_close(law.feature_gradient(), leaf.grad)
    torch.testing.assert_close(law.temperature_gradient().sum(), -temperature.grad)
    torch.testing.assert_close(law.scale_gradient().sum(), -scale.grad)


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_draws_of_the_readout_have_its_moments(regression, bias):
    features, targets = (v[:1] if v.dim() == 3 else v for v in regression)
    _, mean, spread = dense(features, targets, bias)
    many = ReadoutLaw(features.expand(200_000, -1, -1), targets, T, VARIANCE, bias)
    draws = many.sample(torch.Generator().manual_seed(0))
    scale = spread.diagonal(dim1=-2, dim2=-1).max()
    error = math.sqrt(scale.item() / 200_000)
    torch.testing.assert_close(draws.mean(0), mean[0], atol=5 * error, rtol=0)
    for k in range(2):
        measured = torch.cov(draws[..., k].T)
        torch.testing.assert_close(measured, spread[0], atol=5 * math.sqrt(2 * scale.item()) * error, rtol=0)


def test_low_temperature_is_not_silent():
    # Twice the same point without noise: the matrix is singular to rounding.
    law = ReadoutLaw(torch.ones(1, 2, 4, dtype=torch.float64), random(2, 1), 1e-30, 1.0)
    assert law.log_likelihood.item() == -math.inf


NETWORKS = {
    "relu": lambda: FiniteNetwork(ReLU(), 3, 4, weight_variance=[1.3, 0.7], dtype=torch.float64),
    "deep, biases": lambda: FiniteNetwork(
        Erf(), 3, [5, 4], weight_variance=[1.0, 2.0, 0.5], bias_variance=[0.3, 0.0], dtype=torch.float64
    ),
    "outputs": lambda: FiniteNetwork(Erf(), 3, 9, num_outputs=2, weight_variance=1.4, dtype=torch.float64),
    "readout bias": lambda: FiniteNetwork(
        Erf(), 3, 4, num_outputs=2, weight_variance=[1.0, 0.7], readout_bias_variance=0.4, dtype=torch.float64
    ),
    "convolution": lambda: ConvolutionalNetwork(Erf(), (1, 3), 2, 2, dtype=torch.float64),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [MarginalTarget, JointTarget])
def test_potential_and_gradient(name, kind):
    network = NETWORKS[name]()
    x, y = random(6, 3, seed=3), random(6, network.num_outputs or 1, seed=4)
    target = kind(network, x, y if network.num_outputs else y.squeeze(-1), T)
    state = target.draw_prior(3, torch.Generator().manual_seed(5))
    value, gradient = target.potential(state)
    leaf = state.clone().requires_grad_()
    hidden, rest = leaf[:, : network.num_hidden], leaf[:, network.num_hidden :]
    features = network.features(x, hidden)
    readout_variance = network.weight_variance[-1].repeat(features.shape[-1])
    if network.readout_bias_variance > 0:
        readout_variance[-1] = network.readout_bias_variance
        assert bool((features[..., -1] == 1).all())
    if kind is JointTarget:
        readout = readout_variance.sqrt().unsqueeze(-1) * rest.reshape(3, features.shape[-1], -1)
        log = torch.distributions.Normal(features @ readout, math.sqrt(T)).log_prob(y).sum((-2, -1))
        log = log + 0.5 * y.numel() * math.log(2 * math.pi * T)  # left out by the joint target
    else:
        covariance = T * torch.eye(6, dtype=torch.float64) + readout_variance * features @ features.mT
        normal = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
        log = sum(normal.log_prob(column) for column in y.T)
    expected = 0.5 * leaf.square().sum(-1) - log
    expected.sum().backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_observables_of_the_two_targets_agree(name):
    # Averages over the readout given the hidden weights, against many draws of the readout.
    network = NETWORKS[name]()
    y = random(6, network.num_outputs or 1, seed=4)
    y = y if network.num_outputs else y.squeeze(-1)
    arguments = network, random(6, 3, seed=3), y, T, random(2, 3, seed=6)
    marginal, joint = MarginalTarget(*arguments), JointTarget(*arguments)
    hidden = marginal.draw_prior(1, torch.Generator().manual_seed(7)).expand(50_000, -1)
    exact = marginal.observables(hidden, torch.Generator().manual_seed(8))
    deviation = network.weight_variance[-1].sqrt().repeat(exact.readout.shape[1])
    if network.readout_bias_variance > 0:
        deviation[-1] = network.readout_bias_variance.sqrt()
    whitened = (exact.readout / deviation.unsqueeze(-1)).flatten(1)
    sampled = joint.observables(torch.cat([hidden, whitened], dim=-1))
    torch.testing.assert_close(sampled.output, exact.output)
    torch.testing.assert_close(sampled.log_likelihood, exact.log_likelihood)

    def check(draws, mean):
        error = draws.std(0) / math.sqrt(50_000)
        assert ((draws.mean(0) - mean[0]).abs() < 5 * error + 1e-12).all()

    check(sampled.training_error, exact.training_error)
    check(sampled.order_parameter, exact.order_parameter)
    check(sampled.output, exact.mean)
    check((sampled.output - exact.mean).square(), exact.variance.unsqueeze(-1).expand_as(exact.mean))


def test_precisions_are_those_of_the_weights():
    network = FiniteNetwork(
        Erf(),
        2,
        [3, 2],
        weight_variance=[0.5, 0.25, 4.0],
        bias_variance=[0.0, 0.1],
        readout_bias_variance=0.2,
        dtype=torch.float64,
    )
    target = JointTarget(network, random(4, 2), random(4), T)
    expected = [2.0] * 6 + [4.0] * 6 + [10.0] * 2 + [0.25] * 2 + [5.0]
    torch.testing.assert_close(target.precisions, torch.tensor(expected, dtype=torch.float64))


class TestBadInput:
    network = FiniteNetwork(Identity(), 2, 3, dtype=torch.float64)
    x, y = random(4, 2), random(4)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0, got 0.0"),
            ({"temperature": math.nan}, ValueError, "temperature"),
            ({"y": random(5)}, ValueError, r"y: expected shape \(..., 4\), got \(5,\)"),
            ({"y": random(4, 1)}, ValueError, r"y: expected shape"),
            ({"y": random(4).float()}, TypeError, "expected one dtype"),
            ({"x": random(4, 2).float()}, TypeError, "expected one dtype"),
            ({"x": random(2, 4, 2)}, ValueError, r"x: expected shape \(P, N_0\), got \(2, 4, 2\)"),
            ({"x": random(4, 2) / 0.0}, ValueError, "x: expected finite values"),
            ({"y": random(4) * math.nan}, ValueError, "y: expected finite values, got 4 NaN"),
            ({"test_x": random(4, 2).float()}, TypeError, "test_x"),
            ({"network": torch.nn.Linear(2, 1)}, TypeError, "network: expected a FiniteNetwork"),
        ],
    )
    @pytest.mark.parametrize("kind", [MarginalTarget, JointTarget])
    def test_message(self, kind, change, error, message):
        arguments = {"network": self.network, "x": self.x, "y": self.y, "temperature": 0.1} | change
        with pytest.raises(error, match=message):
            kind(**arguments)

    def test_targets_of_several_outputs(self):
        network = FiniteNetwork(Identity(), 2, 3, num_outputs=2, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"y: expected shape \(4, 2\), got \(4, 3\)"):
            MarginalTarget(network, self.x, random(4, 3), 0.1)
