"""Pyro's No-U-Turn sampler, an independent implementation, on the same targets."""

import warnings

import pytest
import torch

pytest.importorskip("pyro")

from sampling_truth import all_estimates, exact_linear, problem, rejected  # noqa: E402

from torch_propkernel import Identity  # noqa: E402
from torch_propkernel.exceptions import SamplingWarning  # noqa: E402
from torch_propkernel.networks import FiniteNetwork, sample_posterior  # noqa: E402
from torch_propkernel.pyro_support import NoUTurnSampler  # noqa: E402

DATA = problem(6, 2)


def run(**settings):
    x, y, test_x, test_y = DATA
    network = FiniteNetwork(Identity(), 2, 2, dtype=torch.float64, generator=torch.Generator())
    return sample_posterior(
        network, x, y, 0.5, test_x=test_x, test_y=test_y, num_chains=2, sampler=NoUTurnSampler(), **settings
    )


def test_linear_network():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # a short run
        result = run(num_samples=300, warmup=100)
    assert rejected(all_estimates(result), exact_linear(DATA, 0.5, (1.0, 1.0), (2,))) == {}


def test_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.warns(SamplingWarning):
        first, second = (run(num_samples=6, warmup=4, seed=7) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.draws, second.draws)
