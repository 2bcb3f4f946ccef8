"""Annealed chains against exact linear networks and brute force."""

import math
import time

import numpy as np
import pytest
import torch
from sampling_truth import exact_linear, problem

from torch_propkernel.exceptions import ConvergenceError
from torch_propkernel.networks import Annealing, FiniteNetwork, estimate

DATA = problem()


def exact_evidence(temperature, variances, widths, resolution=400):
    """log p(y) of a linear network: the scales of all layers summed on a grid of their logarithms."""
    x, y = (a.numpy() for a in DATA[:2])
    values, vectors = np.linalg.eigh(np.prod(variances) * x @ x.T / x.shape[1])
    projected = vectors.T @ y
    grid = np.linspace(-16.0, 4.0, resolution)
    step = grid[1] - grid[0]
    log_scale, log_weight = np.zeros(1), np.zeros(1)
    for width in widths:
        prior = 0.5 * width * (math.log(0.5 * width) + grid - np.exp(grid)) - math.lgamma(0.5 * width) + math.log(step)
        log_scale = (log_scale[:, None] + grid).ravel()
        log_weight = (log_weight[:, None] + prior).ravel()
    noisy = temperature + np.exp(log_scale)[:, None] * values
    log = log_weight - 0.5 * (np.log(2 * math.pi * noisy) + projected**2 / noisy).sum(-1)
    return log.max() + math.log(np.exp(log - log.max()).sum())


def network(width, activation="identity", **kwargs):
    return FiniteNetwork(activation, 4, width, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize(("width", "variances"), [([3], (1.0, 2.0)), ([4, 3], (1.0, 0.5, 2.0))], ids=["one", "two"])
def test_evidence_of_linear_networks(width, variances):
    annealing = Annealing(network(width, weight_variance=variances), *DATA[:2], num_chains=200, spread=0.5, seed=1)
    for population in annealing.ladder([3.0, 0.3, 0.1]):
        exact = exact_evidence(population.temperature, variances, width)
        assert abs(population.log_evidence - exact) < 4 * population.error
        assert population.error < 0.4


def test_evidence_against_draws_of_the_prior():
    x, y = DATA[0][:5], DATA[1][:5]
    net = network(2, "erf", bias_variance=0.5, weight_variance=[2.0, 3.0])
    annealing = Annealing(net, x, y, num_chains=300, spread=0.5)
    found = annealing.run(0.3)
    prior = torch.randn(200_000, net.num_hidden, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    log = annealing.law(prior, 0.3).log_likelihood
    exact = torch.logsumexp(log, 0) - math.log(len(log))
    share = torch.softmax(log, 0)
    assert abs(found.log_evidence - exact) < 4 * math.hypot(found.error, float(share.square().sum().sqrt()))


def test_a_readout_factor_is_a_readout_variance():
    annealing = Annealing(network(3), *DATA[:2], num_chains=200, seed=2)
    found = annealing.rescale(annealing.run(0.3), 4.0)
    assert found.readout_factor == 4.0
    assert abs(found.log_evidence - exact_evidence(0.3, (1.0, 4.0), [3])) < 4 * found.error


def test_a_readout_bias_keeps_its_variance_in_another_readout_variance():
    # f = sqrt(q) linear + bias with q ~ Gamma(3/2, 3/2), exact for the identity; q by the trapezoidal rule.
    x, y = DATA[0].numpy(), DATA[1].numpy() + 2.0
    grid = np.linspace(-16.0, 4.0, 400)
    prior = 1.5 * (math.log(1.5) + grid - np.exp(grid)) - math.lgamma(1.5) + math.log(grid[1] - grid[0])
    logs = []
    for u, weight in zip(grid, prior, strict=True):
        covariance = 0.3 * np.eye(len(y)) + 5.0 + 4.0 * np.exp(u) * x @ x.T / x.shape[1]
        log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
        logs.append(weight - 0.5 * (log_det + y @ np.linalg.solve(covariance, y)))
    annealing = Annealing(network(3, readout_bias_variance=5.0), DATA[0], DATA[1] + 2.0, num_chains=200, seed=2)
    found = annealing.rescale(annealing.run(0.3), 4.0)
    assert abs(found.log_evidence - np.logaddexp.reduce(logs)) < 4 * found.error < 1.0


def test_draws_are_those_of_the_posterior():
    annealing = Annealing(network([3], weight_variance=[1.0, 2.0]), *DATA[:2], num_chains=50, seed=3)
    draws = annealing.draw(annealing.run(0.3), 60, every=4)
    exact = exact_linear(DATA, 0.3, (1.0, 2.0), (3,))
    for name in ("order_parameter", "training_error"):
        found = estimate(getattr(draws, name))
        assert abs(found.mean - exact[name][0]) < 4 * found.standard_error
        assert found.r_hat < 1.02
    wrong = exact_linear(DATA, 0.3, (1.0, 2.4), (3,))  # one variance off by a fifth is told apart
    found = estimate(draws.order_parameter)
    assert abs(found.mean - wrong["order_parameter"][0]) > 4 * found.standard_error


def test_derivatives_of_the_likelihood():
    net = network(6, "relu", readout_bias_variance=0.7)
    annealing = Annealing(net, *DATA[:2], num_chains=2)
    state, h = torch.randn(3, net.num_hidden, dtype=torch.float64), 1e-5
    law = annealing.law(state, 0.2, 1.5)

    def slope(index):
        values = []
        for sign in (1, -1):
            at = [0.2, 1.5]
            at[index] *= math.exp(sign * h)
            values.append(annealing.law(state, *at).log_likelihood)
        return (values[0] - values[1]) / (2 * h)

    # Central differences: rounding of log likelihoods of size 100 over 2e-5.
    torch.testing.assert_close(law.temperature_gradient(), slope(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(law.scale_gradient(), slope(1), rtol=1e-6, atol=1e-6)


def test_fewer_rows_than_inputs():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = FiniteNetwork("erf", 40, 3, dtype=torch.float64)
    annealing = Annealing(net, x, x[:, 0], num_chains=4)
    assert annealing.target.dim == 15
    state = annealing.run(0.5).states.double()
    whole = annealing.target.complete(state, annealing.generator)
    features = net.features(x, whole)
    own = annealing.law(state, 0.5)
    torch.testing.assert_close(
        annealing.law(state, 0.5).log_likelihood,
        type(own)(features, x[:, :1], 0.5, 1.0).log_likelihood,
    )


def test_torch_s_default_dtype_plays_no_part():
    plain = Annealing(network(3), *DATA[:2], num_chains=4).run(0.3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        other = Annealing(network(3), *DATA[:2], num_chains=4).run(0.3)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(plain.states, other.states) and plain.states.dtype == torch.float32


def test_one_seed_gives_one_result():
    first, second, other = (Annealing(network(3), *DATA[:2], num_chains=4, seed=seed).run(0.3) for seed in (1, 1, 2))
    assert torch.equal(first.states, second.states) and first.log_evidence == second.log_evidence
    assert first.log_evidence != other.log_evidence


def test_progress_ends_at_the_whole():
    seen = []
    Annealing(network(3), *DATA[:2], num_chains=4, progress=lambda done, total: seen.append((done, total))).run(0.3)
    assert seen[-1] == (1000, 1000) and sorted(seen) == seen


class TestFailures:
    def test_numbers(self):
        for name, value in (("num_chains", 1), ("moves", 0), ("leapfrogs", 0.5), ("spread", 0.0)):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                Annealing(network(3), *DATA[:2], **{name: value})

    def test_rising_temperatures(self):
        with pytest.raises(ValueError, match="temperatures: expected falling numbers"):
            Annealing(network(3), *DATA[:2]).ladder([0.1, 0.2])

    def test_the_time_limit(self):
        annealing = Annealing(network(3), *DATA[:2], deadline=time.monotonic())
        with pytest.raises(ConvergenceError, match="time limit: reached at temperature"):
            annealing.run(0.1)
