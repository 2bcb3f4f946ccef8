"""The scale mixture behind the interface of theories: against FiniteWidthProcess and Monte Carlo over the scales."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch

from torch_propkernel import Erf, FiniteWidthProcess
from torch_propkernel.activations import Identity
from torch_propkernel.theories import Mixture


def test_it_is_the_finite_width_process(rng, make_model):
    class Process(FiniteWidthProcess):
        def __init__(self, like):
            super().__init__(like.train_inputs[0], like.train_targets, like.likelihood)
            self.covar_module = like.covar_module

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))

    X, x = rng.normal(size=(12, 5)), torch.as_tensor(rng.normal(size=(4, 5)))
    for widths in ([6], [6, 11]):
        model = make_model(X, 3 * X[:, 0], Erf(), widths, 0.1)
        fitted = Mixture().fit(model)
        mean, variance = fitted.predict(x)
        process = Process(model).eval()
        with torch.no_grad():
            expected = process(x)
        torch.testing.assert_close(mean, expected.mean, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(variance, expected.variance, rtol=1e-9, atol=1e-11)
        assert fitted.log_evidence.item() == pytest.approx(process.scale_posterior().log_evidence.item(), abs=1e-10)


def test_posterior_means_of_the_order_parameters(rng, make_model):
    """E[q_l | y] of unequal widths, by weighting draws of q_1, q_2, q_3 with the likelihood."""
    X = rng.normal(size=(4, 3))
    y, widths, T = np.array([2.0, -3.0, 2.5, 0.5]), [4, 9, 15], 0.3
    fitted = Mixture().fit(make_model(X, y, Identity(), widths, T))
    K = X @ X.T / 3
    draws = rng.gamma(np.array(widths) / 2, 2 / np.array(widths), size=(200_000, 3))
    k, U = np.linalg.eigh(K)
    spread = T + draws.prod(1, keepdims=True) * k
    weight = np.exp(-0.5 * (np.log(spread) + (U.T @ y) ** 2 / spread).sum(1))
    mean = weight @ draws / weight.sum()
    error = np.sqrt((weight**2) @ (draws - mean) ** 2) / weight.sum()
    got = fitted.order_parameters["q"].numpy()
    assert np.all(np.abs(got - mean) < 4 * error)
    assert np.all(error < 0.01)
    assert fitted.readout_norm == fitted.order_parameters["q"][-1]


def test_one_layer_has_one_order_parameter(rng, make_model):
    X = rng.normal(size=(10, 4))
    fitted = Mixture().fit(make_model(X, X[:, 0], Erf(), [7], 0.1))
    assert fitted.order_parameters["r"].item() == pytest.approx(fitted.readout_norm.item(), rel=1e-11)


def test_kernels_beside_the_renormalized_one_stay_fixed(rng, make_model):
    """K + 1: the mixture of dense GPs over the nodes of the scale."""
    X, x = rng.normal(size=(9, 4)), rng.normal(size=(3, 4))
    model = make_model(X, 2 * X[:, 0] + 1, Identity(), [5], 0.2)
    constant = gpytorch.kernels.ConstantKernel().double()
    constant.constant = torch.tensor(1.0)
    model.covar_module = model.covar_module + constant
    fitted = Mixture().fit(model)
    both = np.vstack([X, x])
    K, y = both @ both.T / 4, 2 * X[:, 0] + 1
    log_r = np.linspace(-9, 4, 4001)
    rows = []
    for r in np.exp(log_r):
        A = 0.2 * np.eye(9) + r * K[:9, :9] + 1.0
        cross = r * K[:9, 9:] + 1.0
        solved = np.linalg.solve(A, np.column_stack([y, cross]))
        log = 2.5 * np.log(r) - 2.5 * r - 0.5 * (np.linalg.slogdet(A)[1] + y @ solved[:, 0])
        rows.append((log, cross.T @ solved[:, 0], r * np.diagonal(K)[9:] + 1.0 - (cross * solved[:, 1:]).sum(0)))
    p = np.exp([row[0] - max(row[0] for row in rows) for row in rows])
    p /= p.sum()
    means, variances = (np.array([row[i] for row in rows]) for i in (1, 2))
    mean = p @ means
    got = fitted.predict(torch.as_tensor(x))
    np.testing.assert_allclose(got[0], mean, rtol=1e-8)
    np.testing.assert_allclose(got[1], p @ (variances + (means - mean) ** 2), rtol=1e-8)
    training = fitted.error(torch.as_tensor(X), torch.as_tensor(y)).mean_total
    torch.testing.assert_close(fitted.training_error(), training, rtol=1e-9, atol=0)
