"""Each row of the table: the exact stationary law of a training run against the Bayes posterior it should sample.

On a linear model the update of (weights, momentum) by torch.optim.SGD is affine. The map is read off the optimizer
itself, its stationary law solved (a discrete Lyapunov equation), and compared with Gaussian process regression with the
variances and temperature that the helper names.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from torch_propkernel import Erf
from torch_propkernel.networks import FiniteNetwork
from torch_propkernel.practice import (
    gibbs_parameters,
    linear_default_variances,
    measure_order_parameters,
    model_from_network,
)

P, INPUTS, OUTPUTS = 6, 3, 2
DECAY, LEARNING_RATE, NOISE = 0.05, 0.02, 0.1


def data():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(P, INPUTS))), torch.from_numpy(rng.normal(size=(P, OUTPUTS)))


class Scaled(torch.nn.Module):
    """Weights with the factor 1/sqrt(N) outside."""

    def __init__(self, bias):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.zeros(OUTPUTS, dtype=torch.float64)) if bias else None

    def forward(self, x):
        output = x @ self.weight.T / math.sqrt(INPUTS)
        return output if self.bias is None else output + self.bias


def model(parametrization, bias):
    if parametrization == "scaled":
        return Scaled(bias)
    return torch.nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=torch.float64)


def loss(prediction, target, reduction, half):
    return torch.nn.MSELoss(reduction=reduction)(prediction, target) * (0.5 if half else 1.0)


def one_step(net, state, noise, *, learning_rate, momentum, reduction, half, noise_on):
    """One step of torch's own SGD from (weights, momentum) with a given noise vector."""
    x, y = data()
    parameters = list(net.parameters())
    sizes = [p.numel() for p in parameters]
    weights, buffers, kicks = (part.split(sizes) for part in (*state.chunk(2), noise))
    optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=DECAY)
    for p, weight, buffer in zip(parameters, weights, buffers, strict=True):
        p.data.copy_(weight.view_as(p))
        optimizer.state[p]["momentum_buffer"] = buffer.view_as(p).clone()
    optimizer.zero_grad()
    loss(net(x), y, reduction, half).backward()
    for p, kick in zip(parameters, kicks, strict=True):
        if noise_on == "gradients":
            p.grad += kick.view_as(p)
    optimizer.step()
    for p, kick in zip(parameters, kicks, strict=True):
        if noise_on == "parameters":
            p.data += kick.view_as(p)
    after = [p.detach().flatten() for p in parameters]
    momenta = [
        optimizer.state[p]["momentum_buffer"].flatten() if momentum else torch.zeros(p.numel()).double()
        for p in parameters
    ]
    return torch.cat(after + momenta)


def stationary_output(net, noise_std, **kwargs):
    """Mean and covariance of the first output at the training inputs under the run's stationary law."""
    count = sum(p.numel() for p in net.parameters())
    zero, quiet = torch.zeros(2 * count).double(), torch.zeros(count).double()
    offset = one_step(net, zero, quiet, **kwargs)
    drift = torch.stack([one_step(net, e, quiet, **kwargs) - offset for e in torch.eye(2 * count).double()], dim=-1)
    kick = torch.stack([one_step(net, zero, e, **kwargs) - offset for e in torch.eye(count).double()], dim=-1)
    mean = torch.linalg.solve(torch.eye(2 * count).double() - drift, offset)[:count]
    covariance = scipy.linalg.solve_discrete_lyapunov(drift.numpy(), noise_std**2 * (kick @ kick.T).numpy())[
        :count, :count
    ]
    x, _ = data()

    def output(weights):
        torch.nn.utils.vector_to_parameters(weights, net.parameters())
        return net(x)[:, 0].detach()

    jacobian = torch.stack([output(e) for e in torch.eye(count).double()], dim=-1).numpy()
    return output(mean).numpy(), jacobian @ covariance @ jacobian.T


def posterior_output(weight_variance, bias_variance, temperature):
    """Gaussian process regression in numpy."""
    x, y = (part.numpy() for part in data())
    prior = weight_variance * x @ x.T / INPUTS + bias_variance
    gain = np.linalg.solve(prior + temperature * np.eye(P), prior).T
    return gain @ y[:, 0], prior - gain @ prior


def extrapolated(function, learning_rate, order=3):
    """Value at learning rate 0 of a smooth function of it, by Richardson's extrapolation."""
    rows = [function(learning_rate / 2**i) for i in range(order + 1)]
    for k in range(1, order + 1):
        rows = [(2**k * fine - coarse) / (2**k - 1) for coarse, fine in itertools.pairwise(rows)]
    return rows[0]


@pytest.mark.parametrize("parametrization", ["standard", "scaled"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("noise_on", "momentum"), [("parameters", 0.0), ("gradients", 0.0), ("gradients", 0.6), ("parameters", 0.4)]
)
def test_a_training_run_samples_the_posterior_that_is_named(parametrization, reduction, half, bias, noise_on, momentum):
    practice = {"reduction": reduction, "half": half, "noise_on": noise_on, "momentum": momentum}
    found = gibbs_parameters(
        weight_decay=DECAY,
        num_samples=P,
        num_outputs=OUTPUTS,
        fan_in=[INPUTS],
        learning_rate=LEARNING_RATE,
        noise_std=NOISE,
        parametrization=parametrization,
        bias=bias,
        **practice,
    )
    (weight_variance,) = found.weight_variance
    assert (found.readout_bias_variance > 0) == bias
    mean, covariance = posterior_output(weight_variance, found.readout_bias_variance, found.temperature)

    def run(learning_rate):
        # the same tau at every learning rate: the noise shrinks with its square root (on gradients: grows)
        factor = (learning_rate / LEARNING_RATE) ** (0.5 if noise_on == "parameters" else -0.5)
        net = model(parametrization, bias)
        return np.vstack(stationary_output(net, NOISE * factor, learning_rate=learning_rate, **practice))

    result = extrapolated(run, LEARNING_RATE)
    np.testing.assert_allclose(result[0], mean, rtol=1e-9, atol=1e-11)  # the mean has no step-size error
    # what is left of the extrapolation is of fourth order in eta h, at most 0.02 * 14 / 2
    np.testing.assert_allclose(result[1:], covariance, rtol=2e-3, atol=2e-3 * covariance.max())


@pytest.mark.parametrize(("noise_on", "momentum"), [("parameters", 0.0), ("gradients", 0.5), ("parameters", 0.5)])
def test_error_of_a_finite_step(noise_on, momentum):
    """One weight with curvature h: the factors in the docstring are exact."""
    eta, h = 0.3, 0.7
    drift = np.array([[1 - eta * h, -eta * momentum], [h, momentum]])  # (theta, momentum buffer) -> next
    kick = np.array([[1.0], [0.0]]) if noise_on == "parameters" else np.array([[-eta], [1.0]])
    variance = scipy.linalg.solve_discrete_lyapunov(drift, kick @ kick.T)[0, 0]
    found = gibbs_parameters(
        weight_decay=h,
        num_samples=1,
        fan_in=[1],
        learning_rate=eta,
        noise_std=1.0,
        noise_on=noise_on,
        momentum=momentum,
    )
    (expected,) = found.weight_variance  # tau / h
    c = eta * h / (2 * (1 + momentum))
    factor = 1 / (1 - c)
    if noise_on == "parameters":
        factor *= 1 + 4 * momentum * c / (1 - momentum) ** 2
    assert variance == pytest.approx(expected * factor, rel=1e-12)
    first_order = float(found.notes[0].split("fraction ")[1].split()[0]) * h  # printed with three digits
    expected_slope = c * (1 + (4 * momentum / (1 - momentum) ** 2 if noise_on == "parameters" else 0))
    assert first_order == pytest.approx(expected_slope, rel=5e-3)


def test_sgld_samples_at_temperature_one():
    epsilon = 1e-3
    found = gibbs_parameters(
        weight_decay=2.0,
        num_samples=P,
        fan_in=[INPUTS],
        learning_rate=epsilon / 2,
        noise_std=math.sqrt(epsilon),
        reduction="sum",
        half=True,
        parametrization="scaled",
    )
    assert (found.weight_variance, found.temperature) == (pytest.approx((0.5,)), pytest.approx(1.0))


def test_log_prior_row():
    """1/2 sum - T log_prior, divided by T, is minus the log posterior in physical weights, up to a constant."""
    temperature, variances, bias_variance = 0.3, [0.7, 2.5], 0.4
    x, y = data()
    net = FiniteNetwork(
        Erf(),
        INPUTS,
        4,
        weight_variance=variances,
        bias_variance=bias_variance,
        readout_bias_variance=1.3,
        batch_shape=(9,),
        dtype=torch.float64,
    )
    readout, readout_bias = net.readout.split([4, 1], dim=1)
    [(weight, bias)] = net.layers()
    residual = y[:, 0] - net(x)
    energy = 0.5 * residual.square().sum(-1) - temperature * net.log_prior()
    log_posterior = -residual.square().sum(-1) / (2 * temperature)
    parts = ((weight, variances[0]), (bias, bias_variance), (readout, variances[1]), (readout_bias, 1.3))
    for value, variance in parts:
        log_posterior = log_posterior - value.square().flatten(1).sum(-1) / (2 * variance)
    constant = energy / temperature + log_posterior
    torch.testing.assert_close(constant, constant[:1].expand(9), rtol=1e-12, atol=0.0)


def test_standard_parametrization_has_the_prior_of_the_kernel():
    tau, decay, width, count = 0.02, [0.01, 0.04], 6, 40_000
    found = gibbs_parameters(
        weight_decay=decay, num_samples=P, fan_in=[INPUTS, width], dynamics_temperature=tau, bias=True
    )
    assert found.notes == ()
    x, _ = data()
    generator = torch.Generator().manual_seed(0)

    def draw(layer, *shape):  # the law exp(-omega |theta|^2 / (2 tau)) of torch.nn.Linear's own weights
        deviation = math.sqrt(tau / decay[layer])
        return deviation * torch.randn(count, *shape, dtype=torch.float64, generator=generator)

    hidden = torch.erf(x @ draw(0, width, INPUTS).mT + draw(0, 1, width))
    output = (hidden @ draw(1, width, 1)).squeeze(-1) + draw(1, 1)
    products = output.unsqueeze(-1) * output.unsqueeze(-2)
    error = products.std(0) / math.sqrt(count)
    network = FiniteNetwork(
        Erf(),
        INPUTS,
        width,
        weight_variance=found.weight_variance,
        bias_variance=found.bias_variance,
        readout_bias_variance=found.readout_bias_variance,
        dtype=torch.float64,
    )
    expected = model_from_network(network, x, x[:, 0], 0.1).covar_module(x).to_dense().detach()
    assert float(((products.mean(0) - expected) / error).abs().max()) < 4.5


def test_default_initialization():
    torch.manual_seed(0)
    weight, bias = linear_default_variances([50, 400])
    for layer, w, b in zip((torch.nn.Linear(50, 4000), torch.nn.Linear(400, 4000)), weight, bias, strict=True):
        drawn = layer.weight.detach().double()
        # uniform: the variance of n draws has relative error sqrt(0.8 / n)
        assert float(drawn.square().mean()) * drawn.shape[1] == pytest.approx(w, rel=4 * math.sqrt(0.8 / drawn.numel()))
        assert float(layer.bias.detach().square().mean()) == pytest.approx(b, rel=4 * math.sqrt(0.8 / 4000))
    with pytest.raises(ValueError, match="fan_in: expected a whole number >= 1, got 0"):
        linear_default_variances([0])


def test_measured_weights_of_a_prior_sample_are_one():
    """The variances that are named are those in which measure_order_parameters reads a torch network."""
    tau, decay = 0.02, 0.01
    net = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Tanh(), torch.nn.Linear(200, 100))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=math.sqrt(tau / decay))
    found = gibbs_parameters(weight_decay=decay, num_samples=P, fan_in=[300, 200], dynamics_temperature=tau)
    for layer in measure_order_parameters(net, found.weight_variance).layers:
        assert float(layer.mean_square) == pytest.approx(1.0, abs=4 * math.sqrt(2 / math.prod(layer.shape)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoupled_weight_decay": True}, "AdamW's decay is not the gradient of a loss"),
        ({"dynamics_temperature": None}, "expected it, or learning_rate and noise_std, got neither; without noise"),
        ({"learning_rate": 0.1, "noise_std": 0.1}, "expected either it or learning_rate and noise_std, got both"),
        ({"dynamics_temperature": 0.0}, "dynamics_temperature: expected a finite number > 0"),
        ({"weight_decay": 0.0}, "weight_decay: expected finite numbers > 0"),
        ({"weight_decay": [1.0, 1.0, 1.0]}, "weight_decay: expected 1 or 2 numbers"),
        ({"reduction": "none"}, "reduction: expected 'mean' or 'sum', got 'none'"),
        ({"parametrization": "ntk"}, r"parametrization: expected one of \('standard', 'scaled'\), got 'ntk'"),
        ({"momentum": 1.0}, "momentum: expected 0 <= momentum < 1, got 1.0"),
        ({"noise_on": "loss"}, "noise_on: expected 'parameters' or 'gradients', got 'loss'"),
        ({"fan_in": []}, "fan_in: expected one number for each layer of weights, got none"),
        ({"num_samples": 0.5}, "num_samples: expected a whole number >= 1, got 0.5"),
    ],
)
def test_what_has_no_temperature_is_refused(arguments, message):
    good = {"weight_decay": 0.1, "num_samples": 5, "fan_in": [3, 4], "dynamics_temperature": 0.1}
    with pytest.raises(ValueError, match=message):
        gibbs_parameters(**(good | arguments))


def test_printing_shows_numbers_and_notes():
    found = gibbs_parameters(weight_decay=0.1, num_samples=5, fan_in=[3], learning_rate=0.1, noise_std=0.1)
    assert str(found).startswith("weight_variance (1.5), bias_variance (), readout_bias_variance 0, temperature 0.125")
    assert str(found).endswith("curvature h of the loss adds a fraction 0.05 h to variances.")
