"""The row space of the training inputs: the same density on fewer coordinates, the same averages, the same weights."""

from __future__ import annotations

import sys

import pytest
import torch

from torch_propkernel import Erf, ReLU
from torch_propkernel.networks import (
    ConvolutionalNetwork,
    FiniteNetwork,
    JointTarget,
    LangevinDynamics,
    MarginalTarget,
    RowSpaceTarget,
    sample_posterior,
)
from torch_propkernel.networks.row_space import reduce_to_row_space, row_space

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


NETWORKS = {
    "readout bias": {"readout_bias_variance": 0.7},
    "plain": {},
    "bias": {"bias_variance": [0.5, 0.0], "width": [4, 3]},
    "scaled columns": {
        "input_scale": [0.5, 2.0, 0.0, 1.0, 3.0, 1.0, 0.1, 1.0],
        "active_dims": [9, 0, 2, 3, 4, 5, 6, 7],
        "weight_variance": [2.0, 0.5],
    },
    "outputs": {"num_outputs": 2, "width": 5, "activation": ReLU()},
}


def build(name, num_rows=4, num_tests=2):
    options = {"activation": Erf(), "width": 3} | NETWORKS[name]
    x, test_x = normal(num_rows, 10), normal(num_tests, 10, seed=1)
    y = normal(num_rows, 2, seed=2) if "num_outputs" in options else normal(num_rows, seed=2)
    input_dim = 8 if "active_dims" in options else 10
    network = FiniteNetwork(options.pop("activation"), input_dim, options.pop("width"), dtype=F64, **options)
    return network, x, y, test_x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [MarginalTarget, JointTarget])
@pytest.mark.parametrize("keep_weights", [False, True])
def test_potential_and_gradient_are_those_of_the_full_weights(name, kind, keep_weights):
    network, x, y, test_x = build(name)
    full = kind(network, x, y, 0.1, test_x)
    target = RowSpaceTarget(full, keep_weights)
    assert target.dim < full.dim and len(target.precisions) == target.dim
    state = target.draw_prior(5, torch.Generator().manual_seed(3))
    complete = target.complete(state, torch.Generator().manual_seed(4))

    value, gradient = target.potential(state)
    expected, full_gradient = target.full.potential(complete)
    prior = 0.5 * (complete.square().sum(-1) - state.square().sum(-1))
    torch.testing.assert_close(value, expected - prior, rtol=1e-11, atol=1e-11)
    if keep_weights:
        assert target.full is full
    # The likelihood's gradient lies in the row space: completed by zeros it is the full one, and has the same length.
    likelihood, full_likelihood = gradient - state, full_gradient - complete
    torch.testing.assert_close(likelihood.norm(dim=-1), full_likelihood.norm(dim=-1), rtol=1e-10, atol=1e-10)
    rank = target.network.input_dim
    inside = likelihood[:, : network.width[0] * rank].unflatten(-1, (-1, rank))
    if keep_weights:
        inside = inside @ target.basis[:, :rank].mT
        actual = full_likelihood[:, : network.width[0] * network.input_dim].unflatten(-1, (-1, network.input_dim))
        torch.testing.assert_close(actual, inside, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_tests", [1, 3, 30])
def test_both_kinds_of_completion_record_the_same(name, num_tests):
    network, x, y, test_x = build(name, num_tests=num_tests)
    full = MarginalTarget(network, x, y, 0.1, test_x)
    small, kept = RowSpaceTarget(full), RowSpaceTarget(full, keep_weights=True)
    state = small.draw_prior(3, torch.Generator().manual_seed(3))
    columns = small.full.network.width[0] * small.basis.shape[-1]
    complete = small.complete(state)
    weight = complete[:, :columns].unflatten(-1, (-1, small.basis.shape[-1])) @ small.basis.mT
    physical = torch.cat([weight.flatten(1), complete[:, columns:]], dim=-1)
    seen, expected = (
        target.observables(values, torch.Generator().manual_seed(5))
        for target, values in ((small.full, complete), (kept.full, physical))
    )
    for field in set(seen._fields) - {"hidden"}:
        torch.testing.assert_close(getattr(seen, field), getattr(expected, field), rtol=1e-10, atol=1e-10)
    assert small.basis.shape[-1] <= min(network.input_dim, 4 + num_tests)
    unit = torch.eye(small.basis.shape[-1], dtype=F64)
    torch.testing.assert_close(small.basis.mT @ small.basis, unit, rtol=0, atol=1e-12)


def test_orthogonal_part_follows_the_prior():
    network, x, y, test_x = build("plain")
    target = RowSpaceTarget(MarginalTarget(network, x, y, 0.1, test_x), keep_weights=True)
    state = target.draw_prior(1).expand(20_000, -1)
    weight = target.complete(state, torch.Generator().manual_seed(1)).unflatten(-1, (3, 10))[:, 0]
    rest = torch.eye(10, dtype=F64) - target.basis[:, :4] @ target.basis[:, :4].mT
    covariance = torch.cov(weight.mT)
    assert float((covariance - rest).abs().max()) < 0.05  # 5 standard errors of a variance 1: sqrt(2 / 20,000) = 0.01


def sample_both(monkeypatch, **options):
    """Return the same run in the row space and on all weights."""
    network, x, y, test_x = build("plain", num_tests=3)
    options |= {"test_x": test_x, "test_y": normal(3, seed=5)}
    reduced = sample_posterior(network, x, y, 0.5, **options)
    module = sys.modules[sample_posterior.__module__]
    monkeypatch.setattr(module, "reduce_to_row_space", lambda target, keep_weights: target)
    return reduced, sample_posterior(network, x, y, 0.5, seed=1, **options)


@pytest.mark.parametrize("keep_weights", [False, True])
def test_averages_agree_with_the_full_sampler(monkeypatch, keep_weights):
    reduced, full = sample_both(monkeypatch, num_chains=20, num_samples=500, warmup=100, keep_weights=keep_weights)
    assert reduced.converged and full.converged, (reduced.message, full.message)
    for name, value in reduced.estimates.items():
        assert abs(float(value.distance(full.estimates[name]))) < 4.0, name
        assert float(value.standard_error) < 0.03 * abs(float(value.mean)), name  # so that it can fail
    assert float(reduced.posterior_variance.distance(full.posterior_variance).abs().max()) < 4.0


def test_langevin_dynamics_runs_in_the_row_space(monkeypatch):
    # Steps so large that their bias shows; on the training points both runs have the same one.
    sampler = LangevinDynamics(0.2, steps_per_draw=10)
    reduced, full = sample_both(monkeypatch, num_chains=40, num_samples=250, warmup=60, sampler=sampler)
    assert reduced.converged and full.converged, (reduced.message, full.message)
    for name in ("training_error", "order_parameter", "log_likelihood"):
        assert abs(float(reduced.estimates[name].distance(full.estimates[name]))) < 4.0, name


def test_kept_weights_are_those_of_the_full_network():
    network, x, y, test_x = build("scaled columns")
    result = sample_posterior(
        network, x, y, 0.5, test_x=test_x, num_samples=400, warmup=100, num_chains=4, keep_weights=True
    )
    assert result.hidden.shape[-1] == network.num_hidden
    output = network.features(test_x, result.hidden) @ result.readout
    torch.testing.assert_close(output.squeeze(-1), result.draws, rtol=1e-10, atol=1e-10)


def test_as_many_points_as_inputs_leave_the_target_alone():
    network, x, y, test_x = build("plain", num_rows=12)
    target = MarginalTarget(network, x, y, 0.1, test_x)
    assert reduce_to_row_space(target) is target
    x = torch.cat([x[:6], x[:6]])  # twelve points of rank six: what counts is the rank
    assert reduce_to_row_space(MarginalTarget(network, x, y, 0.1)).dim == 3 * 6


def test_convolutional_networks_are_left_alone():
    network = ConvolutionalNetwork(Erf(), (1, 6), 3, 3, dtype=F64)
    target = MarginalTarget(network, normal(2, 6), normal(2), 0.1)
    assert reduce_to_row_space(target) is target
    with pytest.raises(TypeError, match="FiniteNetwork, got one of a ConvolutionalNetwork"):
        RowSpaceTarget(target)


def test_zero_rows_and_test_points_inside_the_row_space():
    assert row_space(torch.zeros(3, 5, dtype=F64)).shape == (5, 1)
    network, x, y, _ = build("plain")
    target = RowSpaceTarget(MarginalTarget(network, x, y, 0.1, x[:2] + x[1:3]))
    assert target.basis.shape == (10, 4)  # nothing fresh to draw
