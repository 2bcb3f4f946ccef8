"""Truth for samplers: exact posteriors of linear networks, importance sampling from the prior, and the one verdict.

Nothing here uses the package's samplers, theories or linear algebra.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch


def problem(num_data=12, num_inputs=4, num_test=5, seed=0):
    """Inputs, targets, test inputs and test targets: a noisy linear map."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_data + num_test, num_inputs))
    y = x @ rng.standard_normal(num_inputs) + 0.5 * rng.standard_normal(len(x))
    arrays = x[:num_data], y[:num_data], x[num_data:], y[num_data:]
    return [torch.as_tensor(a) for a in arrays]


def exact_linear(data, temperature, variances, widths, resolution=300):
    """Posterior averages of a linear network with one or two hidden layers.

    Given the scales q_l ~ Gamma(N_l / 2, rate N_l / 2) of all layers the outputs are a Gaussian process with kernel
    prod q_l prod w_l x.x' / N_0; the scales are summed on a grid of their logarithms (the trapezoidal rule converges
    geometrically for densities that decay at both ends).
    """
    x, y, test_x, test_y = (a.numpy() for a in data)
    everything = np.concatenate([x, test_x])
    kernel = np.prod(variances) * everything @ everything.T / x.shape[1]
    grid = np.linspace(-14.0, 4.0, resolution)
    values, vectors = np.linalg.eigh(kernel[: len(y), : len(y)])
    projected, cross = vectors.T @ y, vectors.T @ kernel[: len(y)]
    logs, means, spreads, last = [], [], [], []
    for u in itertools.product(grid, repeat=len(widths) - 1):
        total = grid[:, None] + sum(u)
        noisy = temperature + np.exp(total) * values
        log = -0.5 * (np.log(noisy) + projected**2 / noisy).sum(-1)
        for width, value in zip(widths, (*u, grid), strict=True):
            log = log + 0.5 * width * (value - np.exp(value))
        scale = np.exp(total)
        logs.append(log)
        means.append(scale * ((projected / noisy) @ cross))
        spreads.append(scale * np.diag(kernel) - scale**2 * ((1.0 / noisy) @ cross**2))
        last.append(np.exp(grid))
    log = np.concatenate(logs)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean_given, spread_given = np.concatenate(means), np.concatenate(spreads)
    mean = weight @ mean_given
    variance = weight @ (spread_given + (mean_given - mean) ** 2)
    train, test = slice(len(y)), slice(len(y), None)
    exact = {
        "training_error": ((y - mean[train]) ** 2 + variance[train]).mean(),
        "order_parameter": weight @ np.concatenate(last),
        "bias": ((test_y - mean[test]) ** 2).mean(),
        "variance": variance[test].mean(),
        "posterior_mean": mean[test],
        "posterior_variance": variance[test],
    }
    exact["test_error"] = exact["bias"] + exact["variance"]
    return {name: (torch.as_tensor(value), 0.0) for name, value in exact.items()}


def importance_sampling(network, data, temperature):
    """Posterior averages with standard errors; ``network`` is a batch of many draws from the prior.

    Only the forward pass is used: a network of the batch has the weight exp(-|y - f|^2 / (2 T)).
    """
    x, y, test_x, test_y = data
    with torch.no_grad():
        outputs, test = network(x), network(test_x)
        weights = network.readout[..., : network.num_units, :]  # without a bias
        size = (weights.square().sum((-2, -1)) / weights[0].numel()) / network.weight_variance[-1]
    if outputs.dim() == 2:
        outputs, test, y, test_y = (v.unsqueeze(-1) for v in (outputs, test, y, test_y))
    loss = (outputs - y).square().sum((-2, -1))
    weight = torch.softmax(-0.5 * loss / temperature, 0)
    assert 1.0 / weight.square().sum() > 5000  # effective draws

    def average(value):
        shaped = weight.reshape(-1, *[1] * (value.dim() - 1))
        mean = (shaped * value).sum(0)
        return mean, (shaped * (value - mean)).square().sum(0).sqrt()

    mean, _ = average(test)
    return {
        "training_error": average(loss / len(y)),
        "order_parameter": average(size),
        "test_error": average((test - test_y).square().sum(-1).mean(-1)),
        "variance": average((test - mean).square().sum(-1).mean(-1)),
        "posterior_mean": tuple(v.reshape(-1) for v in average(test)),
    }


def rejected(estimates, truth, limit=5.0):
    """Names of the quantities that lie beyond ``limit`` combined standard errors of the truth: the verdict.

    Used for right targets, which must pass, and for wrong ones, which must not. About twenty numbers are compared:
    beyond 5 standard errors by chance once in 10^5.
    """
    found = {}
    for name, (value, error) in truth.items():
        estimate = estimates[name]
        error = torch.hypot(estimate.standard_error.reshape(-1), torch.as_tensor(error).to(torch.float64).reshape(-1))
        distance = ((estimate.mean.reshape(-1) - value.reshape(-1)).abs() / error).max().item()
        if not distance <= limit:
            found[name] = distance
    return found


def all_estimates(result):
    """The scalars of a result and its predictions at the test points."""
    predictions = {name: getattr(result, name) for name in ("posterior_mean", "posterior_variance")}
    return result.estimates | predictions
