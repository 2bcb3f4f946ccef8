"""Diagnostics of Markov chains against loops over the published formulas and against processes with known answers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from torch_propkernel.networks import MonteCarloEstimate, effective_sample_size, estimate, split_r_hat


def autoregressive(coefficient, chains=8, draws=4000, shape=(), seed=0):
    """Chains of an AR(1) process with unit variance."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, chains, *shape, dtype=torch.float64, generator=generator)
    state, states = noise[0], []
    for step in noise:
        state = coefficient * state + math.sqrt(1 - coefficient**2) * step
        states.append(state)
    return torch.stack(states, dim=1)


def halves(draws):
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def slow_size(draws):
    """Vehtari et al. (2021), eqs. (10) - (13), and Geyer's sequence, in loops."""
    chains = halves(draws)
    m, n = chains.shape
    centered = chains - chains.mean(1, keepdims=True)
    covariance = np.array([[(c[: n - t] * c[t:]).sum() / n for t in range(n)] for c in centered])
    within = covariance[:, 0].mean() * n / (n - 1)
    pooled = within * (n - 1) / n + chains.mean(1).var(ddof=1)
    correlation = 1 - (within - covariance.mean(0)) / pooled
    correlation[0] = 1
    time, last = -1.0, np.inf
    for k in range(n // 2):
        pair = correlation[2 * k] + correlation[2 * k + 1]
        if pair <= 0:
            break
        last = min(last, pair)
        time += 2 * last
    return m * n / max(time, 1 / math.log10(m * n))


def slow_r_hat(draws):
    def plain(chains):
        n = chains.shape[1]
        within, between = chains.var(1, ddof=1).mean(), n * chains.mean(1).var(ddof=1)
        return math.sqrt(((n - 1) / n * within + between / n) / within)

    def scores(chains):
        return norm.ppf((rankdata(chains).reshape(chains.shape) - 0.375) / (chains.size + 0.25))

    chains = halves(draws)
    # torch's median is the lower of the two middle values.
    folded = np.abs(chains - np.sort(chains, axis=None)[(chains.size - 1) // 2])
    return max(plain(scores(chains)), plain(scores(folded)))


@pytest.mark.parametrize("coefficient", [-0.6, 0.0, 0.9])
@pytest.mark.parametrize("draws", [40, 101])
def test_formulas(coefficient, draws):
    values = autoregressive(coefficient, chains=3, draws=draws, shape=(2,))
    for k in range(2):
        column = values[..., k]
        assert effective_sample_size(values)[k].item() == pytest.approx(slow_size(column.numpy()), rel=1e-10)
        assert split_r_hat(values)[k].item() == pytest.approx(slow_r_hat(column.numpy()), rel=1e-10)


def test_repeated_draws_share_their_rank():
    # A chain that rejects repeats its state.
    values = autoregressive(0.5, chains=4, draws=60).repeat_interleave(3, dim=1)
    assert split_r_hat(values).item() == pytest.approx(slow_r_hat(values.numpy()), rel=1e-10)


@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregressive_process(coefficient):
    values = autoregressive(coefficient, shape=(20,))
    exact = 8 * 4000 * (1 - coefficient) / (1 + coefficient)
    # 20 independent estimates with an error of about 5 % each; Geyer's truncation is biased by a percent or two.
    assert (effective_sample_size(values).mean() / exact).item() == pytest.approx(1.0, abs=0.05)


def test_standard_error_covers_the_truth():
    result = estimate(autoregressive(0.8, chains=4, draws=1000, shape=(400,)))
    distance = result.distance(0.0)
    assert distance.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.12)  # 400 values: standard error 0.035
    assert (distance.abs() < 4.5).all()


def test_r_hat_sees_location_and_spread():
    values = autoregressive(0.0, chains=4, draws=500)
    assert split_r_hat(values) < 1.01
    moved, stretched = values.clone(), values.clone()
    moved[0] += 1.0
    stretched[0] *= 3.0
    assert split_r_hat(moved) > 1.05
    assert split_r_hat(stretched) > 1.05
    assert split_r_hat(values + torch.linspace(0, 2, 500)) > 1.1  # a drift, which only split chains show


def test_constant_draws_are_known_exactly():
    result = estimate(torch.full((3, 10), 2.0) * (1 + 1e-7 * torch.rand(3, 10)))
    assert result.standard_error < 1e-6
    assert result.effective_sample_size == 30
    assert result.r_hat == 1


def test_stuck_chains_have_not_converged():
    values = torch.arange(4.0).unsqueeze(-1).expand(4, 50)
    assert split_r_hat(values) > 10
    assert effective_sample_size(values) < 20


def test_distance_of_two_estimates():
    one = torch.ones(())
    first, second = MonteCarloEstimate(3 * one, 0.3 * one, one, one), MonteCarloEstimate(one, 0.4 * one, one, one)
    assert first.distance(second).item() == pytest.approx(4.0)
    assert first.distance(0.0).item() == pytest.approx(10.0)
    assert str(first) == "3 +- 0.3"


@pytest.mark.parametrize("function", [estimate, split_r_hat, effective_sample_size])
def test_bad_input(function):
    with pytest.raises(ValueError, match=r"draws: expected shape \(chains, draws >= 4, ...\), got \(2, 3\)"):
        function(torch.ones(2, 3))
    with pytest.raises(TypeError, match="floating-point"):
        function(torch.ones(2, 10, dtype=torch.long))
    with pytest.raises(ValueError, match="draws: expected finite values, got 1 NaN"):
        function(torch.tensor([[1.0, 2.0, math.nan, 3.0]] * 1))
