"""Activations with a mean: against dense nested searches, brute integrals over v, and the sampled networks' file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from torch_propkernel import Cos, Erf, ReLU
from torch_propkernel.theories import Mixture, SaddlePoint, TwoParameterMixture, TwoParameterSaddle

# The mean of one hidden unit and its kernel, with the precision of the readout and hidden biases.
SETTINGS = {
    "relu": (ReLU(), "relu", 2.0, 0.0),
    "relu with biases": (ReLU(), "relu", 0.7, 0.5),
    "cos": (Cos(), "cos", 1.0, 0.1),
}


@pytest.fixture(params=list(SETTINGS))
def problem(request, rng, make_model):
    activation, name, precision, bias = SETTINGS[request.param]
    X, x, width, T = rng.normal(size=(8, 6)), rng.normal(size=(3, 6)), 6, 0.1
    y = 1.5 + 2 * np.sin(X[:, 0])
    both, dual = np.vstack([X, x]), reference.DUALS[name]
    K = reference.nngp(both, both, dual, [1.3, precision], [bias])
    w = dual.mean(np.sum(both**2, 1) / (1.3 * 6) + bias) / math.sqrt(precision)
    model = make_model(X, y, activation, [width], T, [1.3, precision], [bias])
    return model, torch.as_tensor(x), K - np.outer(w, w), w, y, width, T, precision


def test_saddle(problem):
    model, x, D, w, y, width, T, _ = problem
    fitted = TwoParameterSaddle().fit(model)
    P = len(y)
    q, s, S = reference.two_parameter_saddle(D[:P, :P], w[:P], y, width, T)
    assert fitted.order_parameters["q"].item() == pytest.approx(q, rel=1e-5)  # a simplex search of values
    assert fitted.order_parameters["s"].item() == pytest.approx(s, rel=1e-4, abs=1e-5)
    assert fitted.stats["action"].item() == pytest.approx(S, rel=1e-9)
    assert fitted.readout_norm == fitted.order_parameters["q"]
    q, t = fitted.order_parameters["q"].item(), fitted.order_parameters["t"].item()
    K_R = q * D + t * np.outer(w, w)
    mean, variance = reference.predict(K_R, y, T)
    got = fitted.predict(x)
    np.testing.assert_allclose(got[0], mean, rtol=1e-9)
    np.testing.assert_allclose(got[1], variance, rtol=1e-9)
    assert fitted.training_error().item() == pytest.approx(reference.training_error(K_R[:P, :P], y, T), rel=1e-9)


def test_mixture(problem):
    model, x, D, w, y, width, T, precision = problem
    fitted = TwoParameterMixture().fit(model)
    brute = reference.two_parameter_mixture(D, w, y, width, T)
    got = fitted.predict(x)
    np.testing.assert_allclose(got[0], brute.mean, rtol=1e-8)
    np.testing.assert_allclose(got[1], brute.variance, rtol=1e-8)
    assert fitted.stats["log_evidence"].item() == pytest.approx(brute.log_evidence, abs=1e-8)
    assert fitted.readout_norm.item() == pytest.approx(brute.q, rel=1e-8)
    assert fitted.order_parameters["c"].item() == pytest.approx(brute.c / math.sqrt(precision), rel=1e-7)
    assert fitted.order_parameters["c_squared"].item() == pytest.approx(brute.c_squared / precision, rel=1e-8)
    assert fitted.training_error().item() == pytest.approx(brute.training_error, rel=1e-8)


def test_odd_activations_have_one_order_parameter(rng, make_model):
    X, x = rng.normal(size=(20, 6)), torch.as_tensor(rng.normal(size=(4, 6)))
    model = make_model(X, 3 * X[:, 0], Erf(), [8], 0.05, [1.0, 2.0])
    for two, one in ((TwoParameterSaddle(), SaddlePoint()), (TwoParameterMixture(), Mixture())):
        a, b = two.fit(model), one.fit(model)
        torch.testing.assert_close(a.predict(x), b.predict(x), rtol=1e-8, atol=1e-10)
        assert a.readout_norm.item() == pytest.approx(b.readout_norm.item(), rel=1e-9)
        torch.testing.assert_close(a.training_error(), b.training_error(), rtol=1e-8, atol=0)


def test_the_mixture_is_the_posterior_of_networks_with_random_features_like_these(rng, make_model):
    """Given v, f is the GP of the theory by construction here: weight draws of v with the likelihood."""
    X = rng.normal(size=(3, 5))
    y, N, T = np.array([1.5, 0.5, 2.0]), 4, 0.2
    dual = reference.DUALS["relu"]
    K = reference.nngp(X, X, dual, [1.0, 1.0])
    w = dual.mean(np.sum(X**2, 1) / 5)
    v = rng.normal(size=(200_000, N))
    gamma, q = v.sum(1) / math.sqrt(N), (v**2).mean(1)
    k, U = np.linalg.eigh(K - np.outer(w, w))
    spread = T + q[:, None] * k
    residual = (y - gamma[:, None] * w) @ U
    weight = np.exp(-0.5 * (np.log(spread) + residual**2 / spread).sum(1))
    fitted = TwoParameterMixture().fit(make_model(X, y, ReLU(), [N], T))
    for name, values in (("q", q), ("c", gamma), ("c_squared", gamma**2)):
        mean = weight @ values / weight.sum()
        error = math.sqrt(weight**2 @ (values - mean) ** 2) / weight.sum()
        assert abs(fitted.order_parameters[name].item() - mean) < 4 * error, name


def test_wide_networks(rng, make_model):
    """q and t go to one as 1/N, and the evidence to that of the NNGP."""
    X = rng.normal(size=(10, 6))
    y = X[:, 0] + 1
    for width, tolerance in ((1e3, 2e-2), (1e6, 2e-5)):
        model = make_model(X, y, ReLU(), [width], 0.1)
        saddle = TwoParameterSaddle().fit(model)
        for name in ("q", "t"):
            assert abs(saddle.order_parameters[name].item() - 1) < tolerance


def test_the_file_of_sampled_networks(reference_cases, make_model):
    """Independent values of both, to the rounding of the file; `mix_qc` there has q >= c^2 lambda_1/N_1 built in."""
    compared = 0
    for case in reference_cases:
        for name, theory in (("saddle_qs", TwoParameterSaddle()), ("mix_qc", TwoParameterMixture())):
            if name not in case["theory"]:
                continue
            listed = case["theory"][name]
            model = make_model(case["X"], case["y"], ReLU(), case["widths"], case["temperature"], case["precisions"])
            fitted = theory.fit(model)
            error = fitted.error(torch.as_tensor(case["Xt"]), torch.as_tensor(case["yt"]))
            got = [
                error.mean_total.item(),
                error.mean_bias.item(),
                error.mean_variance.item(),
                fitted.readout_norm.item(),
            ]
            np.testing.assert_allclose(got, [listed[k] for k in ("mse", "bias2", "var", "q")], rtol=1e-10)
            other = {"saddle_qs": ("s", "s"), "mix_qc": ("c", "c")}[name]
            assert fitted.order_parameters[other[0]].item() == pytest.approx(listed[other[1]], rel=1e-9)
            compared += 1
    assert compared >= 20
