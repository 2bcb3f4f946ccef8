"""Activations with a mean: against dense nested searches, brute integrals over v, and the sampled networks' file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from torch_propkernel import Erf, ReLU
from torch_propkernel.activations import Cos
from torch_propkernel.theories import SaddlePoint, TwoParameterSaddle

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


def test_odd_activations_have_one_order_parameter(rng, make_model):
    X, x = rng.normal(size=(20, 6)), torch.as_tensor(rng.normal(size=(4, 6)))
    model = make_model(X, 3 * X[:, 0], Erf(), [8], 0.05, [1.0, 2.0])
    two, one = TwoParameterSaddle().fit(model), SaddlePoint().fit(model)
    torch.testing.assert_close(two.predict(x), one.predict(x), rtol=1e-8, atol=1e-10)
    assert two.readout_norm.item() == pytest.approx(one.readout_norm.item(), rel=1e-9)
    torch.testing.assert_close(two.training_error(), one.training_error(), rtol=1e-8, atol=0)


def test_wide_networks(rng, make_model):
    """q and t go to one as 1/N."""
    X = rng.normal(size=(10, 6))
    y = X[:, 0] + 1
    for width, tolerance in ((1e3, 2e-2), (1e6, 2e-5)):
        model = make_model(X, y, ReLU(), [width], 0.1)
        saddle = TwoParameterSaddle().fit(model)
        for name in ("q", "t"):
            assert abs(saddle.order_parameters[name].item() - 1) < tolerance


def test_the_file_of_sampled_networks(reference_cases, make_model):
    """Independent values, to the rounding of the file."""
    compared = 0
    for case in reference_cases:
        if "saddle_qs" not in case["theory"]:
            continue
        listed = case["theory"]["saddle_qs"]
        model = make_model(case["X"], case["y"], ReLU(), case["widths"], case["temperature"], case["precisions"])
        fitted = TwoParameterSaddle().fit(model)
        error = fitted.error(torch.as_tensor(case["Xt"]), torch.as_tensor(case["yt"]))
        got = [
            *(v.item() for v in (error.mean_total, error.mean_bias, error.mean_variance)),
            fitted.readout_norm.item(),
        ]
        np.testing.assert_allclose(got, [listed[k] for k in ("mse", "bias2", "var", "q")], rtol=1e-10)
        assert fitted.order_parameters["s"].item() == pytest.approx(listed["s"], rel=1e-9)
        compared += 1
    assert compared >= 10
