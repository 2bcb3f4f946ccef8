"""Langevin dynamics: its stationary law on solvable cases, which is wrong by a known amount."""

import warnings

import pytest
import torch
from sampling_truth import all_estimates, exact_linear, problem, rejected

from torch_propkernel.activations import Identity
from torch_propkernel.exceptions import ConvergenceError, SamplingWarning
from torch_propkernel.networks import FiniteNetwork, LangevinDynamics, extrapolate_learning_rate, sample_posterior

T = 0.5
DATA = problem(8, 3)


def run(learning_rate, steps_per_draw, temperature=T, **settings):
    x, y, test_x, test_y = DATA
    network = FiniteNetwork(Identity(), 3, 4, dtype=torch.float64)
    sampler = LangevinDynamics(learning_rate, steps_per_draw=steps_per_draw, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # R-hat of slow chains is at the limit
        return all_estimates(
            sample_posterior(
                network,
                x,
                y,
                temperature,
                test_x=test_x,
                test_y=test_y,
                sampler=sampler,
                num_chains=100,
                num_samples=120,
                warmup=40,
            )
        )


@pytest.fixture(scope="module")
def truth():
    return exact_linear(DATA, T, (1.0, 1.0), (4,))


@pytest.fixture(scope="module")
def runs():
    """By learning rate, at the same time between draws."""
    return {rate: run(rate, round(0.8 / rate)) for rate in (0.04, 0.02)}


def test_without_data_the_variance_is_that_of_an_autoregressive_process():
    # theta' = (1 - eps) theta + sqrt(2 eps) noise has variance 1 / (1 - eps / 2), with eps = eta T lambda.
    rate, temperature, precision = 0.4, 1.5, 2.0
    x = torch.zeros(1, 1, dtype=torch.float64)
    network = FiniteNetwork(Identity(), 1, 40, weight_variance=[1.0, 1.0 / precision], dtype=torch.float64)
    sampler = LangevinDynamics(rate, steps_per_draw=3)
    result = sample_posterior(
        network, x, x[:, 0], temperature, sampler=sampler, num_chains=50, num_samples=200, warmup=20
    )
    exact = 1.0 / (1.0 - rate * temperature * precision / 2.0)
    assert abs(result.order_parameter.distance(exact)) < 4.5
    assert result.order_parameter.standard_error < 0.01 * exact


def test_bias_is_found_and_is_of_first_order(runs, truth):
    assert "training_error" in rejected(runs[0.04], truth)
    assert "training_error" in rejected(runs[0.02], truth)
    bias = {rate: (found["training_error"].mean - truth["training_error"][0]).item() for rate, found in runs.items()}
    # 2 at first order; the second order adds about a fifth here, the Monte Carlo error is 5 %.
    assert 1.7 < bias[0.04] / bias[0.02] < 3.0
    assert abs(runs[0.04]["training_error"].distance(runs[0.02]["training_error"])) > 5  # the check without a truth


def test_extrapolation_removes_most_of_it(runs, truth):
    extrapolated = extrapolate_learning_rate(runs[0.04], runs[0.02])
    assert rejected(extrapolated, truth) == {}
    value = extrapolated["training_error"]
    assert value.standard_error > runs[0.02]["training_error"].standard_error


def test_hidden_weights_alone(truth):
    # The stiff readout is integrated out: the bias of the same step is smaller, a wrong temperature is seen.
    assert rejected(run(0.02, 20, integrate_readout=True), truth) == {}
    assert rejected(run(0.02, 20, 1.1 * T, integrate_readout=True), truth) != {}


class TestFailures:
    def test_unstable_step(self):
        with pytest.raises(ConvergenceError, match="weights: expected finite numbers.*reduce learning_rate"):
            run(2.0, 50)

    @pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"learning_rate": 0.1, "steps_per_draw": 0}])
    def test_settings(self, settings):
        with pytest.raises(ValueError, match="expected a finite number > 0"):
            LangevinDynamics(**settings)

    def test_runs_that_do_not_belong_together(self, runs):
        with pytest.raises(ValueError, match="coarse, fine: expected the same quantities"):
            extrapolate_learning_rate(runs[0.04], {})
