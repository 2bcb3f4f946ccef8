"""Pareto smoothing against laws whose tail is known."""

import pytest
import torch

from torch_propkernel.numerics.pareto import smooth_log_weights


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.5])
def test_shape_of_a_pareto_tail(shape):
    found = smooth_log_weights(-shape * uniform(40, 4000).log())[1]
    # 190 weights in the tail: standard deviation of one estimate about (1 + k) / sqrt(190); of the mean of 40, 0.02.
    assert abs(found.mean().item() - shape) < 0.08


def test_smoothing_makes_averages_steadier():
    # E f w / E w with w = u^{-0.7} and f = u: exactly (1 / 1.3) / (1 / 0.3).
    u = uniform(400, 300)
    log_weights, exact = -0.7 * u.log(), 0.3 / 1.3
    raw = (torch.softmax(log_weights, -1) * u).sum(-1)
    smooth = (smooth_log_weights(log_weights)[0].exp() * u).sum(-1)
    assert (smooth - exact).square().mean() < (raw - exact).square().mean()


def test_weights_are_normalized_and_keep_their_order():
    log_weights = 2.0 * torch.randn(5, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    smooth, _ = smooth_log_weights(log_weights)
    torch.testing.assert_close(torch.logsumexp(smooth, -1), torch.zeros(5, dtype=torch.float64))
    order = log_weights.argsort(-1)
    assert bool((smooth.gather(-1, order).diff(dim=-1) >= -1e-12).all())


def test_equal_weights_and_few_weights():
    smooth, shape = smooth_log_weights(torch.zeros(200, dtype=torch.float64))
    assert shape == -torch.inf and bool((smooth - smooth[0] == 0).all())
    _, shape = smooth_log_weights(torch.randn(10, dtype=torch.float64))
    assert shape == torch.inf
