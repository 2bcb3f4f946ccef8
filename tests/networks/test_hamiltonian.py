"""Hamiltonian Monte Carlo against exact posteriors of linear networks, with targets that are right and wrong."""

import functools

import pytest
import torch
from sampling_truth import all_estimates, exact_linear, problem, rejected

from torch_propkernel.activations import Identity
from torch_propkernel.exceptions import ConvergenceError
from torch_propkernel.networks import FiniteNetwork, HamiltonianMonteCarlo, MarginalTarget, sample_posterior
from torch_propkernel.networks.sampler import SamplerStatistics

T = 0.5
LINEAR = {"one layer": ((4,), (1.0, 2.0)), "two layers": ((3, 4), (1.0, 1.5, 2.0))}
WRONG = 1.1


@functools.cache
def run(widths, variances, temperature=T, **settings):
    x, y, test_x, test_y = problem()
    network = FiniteNetwork(Identity(), 4, widths, weight_variance=list(variances), dtype=torch.float64)
    return sample_posterior(
        network,
        x,
        y,
        temperature,
        test_x=test_x,
        test_y=test_y,
        num_chains=32,
        num_samples=300,
        warmup=100,
        sampler=HamiltonianMonteCarlo(**settings),
    )


def verdict(case, result):
    widths, variances = LINEAR[case]
    return rejected(all_estimates(result), exact_linear(problem(), T, variances, widths))


@pytest.mark.parametrize("case", LINEAR)
def test_right_target_is_accepted(case):
    result = run(*LINEAR[case]).raise_if_failed()
    assert verdict(case, result) == {}
    assert result.acceptance == pytest.approx(0.88, abs=0.07)  # the target 0.8 is for a harmonic mean


# The verdict would not be worth much if it accepted these.
@pytest.mark.parametrize(
    ("case", "layer"),
    [("one layer", None), ("one layer", 0), ("one layer", 1), ("two layers", None), ("two layers", 1)],
)
def test_target_that_is_off_by_ten_percent_is_rejected(case, layer):
    widths, variances = LINEAR[case]
    if layer is None:
        result = run(widths, variances, temperature=WRONG * T)
    else:
        result = run(widths, tuple(v / WRONG if l == layer else v for l, v in enumerate(variances)))
    assert result.converged
    assert verdict(case, result) != {}


def test_all_weights_sampled():
    result = run(*LINEAR["one layer"], integrate_readout=False)
    assert verdict("one layer", result) == {}
    assert verdict("one layer", run(*LINEAR["one layer"], temperature=WRONG * T, integrate_readout=False)) != {}


def test_step_size_does_not_bias():
    # The accept step corrects a step that is twice the adapted one.
    result = run(*LINEAR["one layer"], step_size=0.45)
    assert result.step_size == 0.45
    assert result.acceptance < 0.8
    assert verdict("one layer", result) == {}


def test_adaptation_reaches_its_target():
    result = run(*LINEAR["one layer"], acceptance=0.6)
    assert 0.58 < result.acceptance < 0.85  # it is for a harmonic mean
    assert result.step_size > 1.2 * run(*LINEAR["one layer"]).step_size


def test_energy_error_is_of_second_order():
    x, y, _, _ = problem()
    target = MarginalTarget(FiniteNetwork(Identity(), 4, 3, dtype=torch.float64), x, y, T)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for step in (0.02, 0.01):
        sampler = HamiltonianMonteCarlo(step_size=step, trajectory_length=1.0)
        states = sampler.iterate(
            target, target.draw_prior(500, generator), 0, generator, statistics := SamplerStatistics()
        )
        next(states)
        errors.append(1.0 - statistics.acceptance)
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.6)  # 500 chains each


def test_cold_start_far_from_the_posterior():
    # Chains start at the prior, where the energy is of the order 1 / T.
    x, y, test_x, test_y = problem()
    network = FiniteNetwork(Identity(), 4, 4, dtype=torch.float64)
    result = sample_posterior(
        network, x, y, 0.01, test_x=test_x, test_y=test_y, num_chains=32, num_samples=120, warmup=100, seed=1
    )
    truth = exact_linear(problem(), 0.01, (1.0, 1.0), (4,))
    assert result.converged
    assert rejected(all_estimates(result), truth) == {}


class TestFailures:
    def test_step_that_is_too_large(self):
        with pytest.raises(ConvergenceError, match="acceptance: expected about 0.8, got 0.* at step size 50; leave"):
            run(*LINEAR["one layer"], step_size=50.0)

    def test_energy_that_is_not_finite(self):
        x, y, _, _ = problem()
        network = FiniteNetwork(Identity(), 4, 20, dtype=torch.float64)
        with pytest.raises(ConvergenceError, match="energies at the start: expected finite numbers"):
            sample_posterior(network, x[:1].expand(12, -1), y, 1e-30)

    @pytest.mark.parametrize(
        "settings", [{"step_size": 0.0}, {"trajectory_length": -1.0}, {"acceptance": 1.0}, {"max_steps": 0}]
    )
    def test_settings(self, settings):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
            HamiltonianMonteCarlo(**settings)
