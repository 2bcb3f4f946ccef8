"""Gated relu layers: against brute-force minimization, the file of sampled networks, limits, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from scipy import optimize

from torch_propkernel import ConvergenceError, Erf, ReLU
from torch_propkernel.activations import LeakyReLU
from torch_propkernel.theories import Gated, InfiniteWidth, SaddlePoint


@pytest.fixture
def problem(rng):
    X, x = rng.normal(size=(10, 15)), rng.normal(size=(4, 15))
    return X, 0.6 * np.sign(X[:, 0]) + 0.2, x, [12, 9], 0.2, [0.8, 1.5, 2.0]


def test_saddle_is_that_of_a_simplex_search(problem, make_model):
    X, y, x, widths, T, precisions = problem
    both = np.vstack([X, x])
    C = reference.input_covariance(both, both, precisions)
    nodes = reference.gate_nodes(161, 8.0)
    P = len(y)
    unit = [reference.gated_kernel(C, precisions, *values)[:P, :P] for values in ((1, 1, 0), (1, 0, 1))]

    def action(logs):
        q, A, B = np.exp(logs)
        K = T * np.eye(P) + q * A * unit[0] + B * unit[1]
        data = np.linalg.slogdet(K)[1] + y @ np.linalg.solve(K, y)
        return widths[0] * (q - np.log(q)) + 2 * widths[1] * reference.gated_rate(A, B, precisions[2], nodes)[0] + data

    start = np.log([1.0, 0.3 / precisions[2], 0.07 / precisions[2]])
    found = optimize.minimize(action, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-11})
    fitted = Gated().fit(make_model(X, y, ReLU(), widths, T, precisions))
    got = [fitted.order_parameters[name].item() for name in ("q1", "A", "B")]
    np.testing.assert_allclose(got, np.exp(found.x), rtol=1e-5)  # a simplex stops at 1e-7 in the action
    assert action(np.log(got)) <= found.fun + 1e-9
    K_R = reference.gated_kernel(C, precisions, *got)
    mean, variance = reference.predict(K_R, y, T)
    predicted = fitted.predict(torch.as_tensor(x))
    np.testing.assert_allclose(predicted[0], mean, rtol=1e-9)
    np.testing.assert_allclose(predicted[1], variance, rtol=1e-9)
    assert fitted.training_error().item() == pytest.approx(reference.training_error(K_R[:P, :P], y, T), rel=1e-9)


def test_fields_are_derivatives_of_the_data_term(problem, make_model):
    X, y, _, widths, T, precisions = problem
    fitted = Gated().fit(make_model(X, y, ReLU(), widths, T, precisions))
    C = reference.input_covariance(X, X, precisions)
    values = {name: v.item() for name, v in fitted.order_parameters.items()}

    def data(A, B):
        K = T * np.eye(len(y)) + reference.gated_kernel(C, precisions, values["q1"], A, B)
        return np.linalg.slogdet(K)[1] + y @ np.linalg.solve(K, y)

    A, B, h = values["A"], values["B"], 1e-5
    slopes = (
        (data(A * (1 + h), B) - data(A * (1 - h), B)) / (2 * h * A),
        (data(A, B * (1 + h)) - data(A, B * (1 - h))) / (2 * h * B),
    )
    for name, slope in zip("ab", slopes, strict=True):
        assert values[name] == pytest.approx(slope / widths[1], rel=1e-6)  # central differences
    assert fitted.stats["residual"] < 1e-9
    assert fitted.stats["quadrature_error"] < 1e-12
    assert int(fitted.stats["agreeing_starts"]) == fitted.stats["starts"] == 3


def test_prior_values_give_the_nngp_kernel(problem):
    X, _, _, _, _, precisions = problem
    C = reference.input_covariance(X, X, precisions)
    moments = reference.gate_nodes()
    A, B = (moments[0] @ moments[i] / precisions[2] for i in (1, 2))
    K = reference.hidden_kernels(C, reference.DUALS["relu"], precisions)[-1]
    np.testing.assert_allclose(reference.gated_kernel(C, precisions, 1.0, A, B), K, rtol=1e-12)


@pytest.mark.parametrize("widths", [(1e8, 1e8), (1e8, 5), (5, 1e8)])
def test_wide_layers(problem, make_model, widths):
    """A layer of 1e8 units is an infinite one: to 1e-6 in the predictions."""
    X, y, x, _, T, precisions = problem
    infinite = [np.inf if width > 1e6 else width for width in widths]
    wide, limit = (Gated().fit(make_model(X, y, ReLU(), w, T, precisions)) for w in (widths, infinite))
    torch.testing.assert_close(
        wide.predict(torch.as_tensor(x)), limit.predict(torch.as_tensor(x)), rtol=1e-6, atol=1e-8
    )
    assert (limit.order_parameters["q1"] == 1) == np.isinf(infinite[0])
    assert wide.readout_norm.item() == pytest.approx(limit.readout_norm.item(), rel=1e-6)
    if all(np.isinf(infinite)):
        nngp = InfiniteWidth().fit(make_model(X, y, ReLU(), infinite, T, precisions))
        torch.testing.assert_close(
            limit.predict(torch.as_tensor(x)), nngp.predict(torch.as_tensor(x)), rtol=1e-9, atol=0
        )
        assert wide.readout_norm.item() == pytest.approx(1.0, abs=1e-6)


def test_the_file_of_sampled_networks(reference_cases, make_model):
    """Independent values, to 1e-8 (two minimizations); `q2` there is the predicted lambda_2 |v|^2/N_2."""
    compared, wide = 0, []
    for case in reference_cases:
        if "saddle_gated" not in case["theory"]:
            continue
        listed, measured = case["theory"]["saddle_gated"], case["measured"]
        model = make_model(case["X"], case["y"], ReLU(), case["widths"], case["temperature"], case["precisions"])
        fitted, plain = Gated().fit(model), SaddlePoint().fit(model)
        x, y = torch.as_tensor(case["Xt"]), torch.as_tensor(case["yt"])
        error = fitted.error(x, y)
        got = [
            error.mean_total,
            error.mean_bias,
            error.mean_variance,
            fitted.order_parameters["q1"],
            fitted.readout_norm,
        ]
        expected = [listed[name] for name in ("mse", "bias2", "var", "q1", "q2")]
        np.testing.assert_allclose([v.item() for v in got], expected, rtol=1e-8)
        # an observable: lambda_2 |v|^2/N_2 within 4 %, where q_2 of one scale for each layer is up to 11 % off
        assert fitted.readout_norm.item() == pytest.approx(measured["qv"]["mean"], rel=0.04)
        if case["X"].shape[1] >= 200:
            wide.append(
                [
                    abs(e.mean_total.item() / measured["mse"]["mean"] - 1)
                    for e in (error, plain.error(x, y), error.infinite_width)
                ]
            )
        compared += 1
    assert compared == 4
    for gated, outer, infinite in wide:
        assert gated < 0.01 < outer < infinite  # section 7: 0.2 to 1.7 %, 3 to 5 %, 15 to 28 %


@pytest.mark.parametrize("activation", [Erf(), LeakyReLU(0.1)])
def test_other_activations_are_refused(problem, make_model, activation):
    X, y, _, widths, T, precisions = problem
    with pytest.raises(TypeError, match=r"activation: Gated\(\) expected ReLU\(\), got"):
        Gated().fit(make_model(X, y, activation, widths, T, precisions))


def test_biases_and_other_depths_are_refused(problem, make_model):
    X, y, _, widths, T, precisions = problem
    for biases in ([0.5, 0.0], [0.0, 0.5]):
        with pytest.raises(ValueError, match=r"bias_variance: Gated\(\) expected zero"):
            Gated().fit(make_model(X, y, ReLU(), widths, T, precisions, biases))
    with pytest.raises(ValueError, match="expected 2 hidden layer"):
        Gated().fit(make_model(X, y, ReLU(), [5, 5, 5], T, [1.0] * 4))


def test_end_of_the_theory_is_reported(make_model, rng):
    """Loud linear labels, few units, low temperature: one unit would carry the readout, and no saddle point exists."""
    X = rng.normal(size=(60, 10))
    with pytest.raises(ConvergenceError, match="single unit"):
        Gated().fit(make_model(X, 8 * X[:, 0], ReLU(), [5, 5], 0.001))
