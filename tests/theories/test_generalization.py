"""Predicted errors (THEORY.md section 1, equation (4)) against dense formulas and against really leaving rows out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import (
    DUALS,
    input_covariance,
    leave_one_out,
    predict,
    renormalized_kernel,
)
from reference import (
    expected_accuracy as accuracy_truth,
)
from reference import (
    training_error as training_truth,
)

from torch_propkernel import (
    Erf,
    ReLU,
    expected_accuracy,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    training_error,
)

# random labels and small widths are outside the validated regime on purpose: the package is right to warn
pytestmark = pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")

CASES = [
    ("erf", Erf(), [15], "outer"),
    ("relu", ReLU(), [15], "outer"),
    ("erf", Erf(), [15, 40], "outer"),
    ("erf", Erf(), [15, 40], "nested"),
    ("erf", Erf(), [15, 40], "linear_part"),
    ("relu", ReLU(), [15, 40], "nested"),
]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[2]}-{c[3]}")
def fitted(request, rng, make_model):
    """A fitted model, its q, and the dense K_R on training and test rows."""
    name, activation, widths, composition = request.param
    P, T = 30, 0.08
    X, y = rng.normal(size=(P + 12, 9)), rng.choice([-1.0, 1.0], size=P + 12)
    precisions = [1.4] + [0.8] * len(widths)
    biases = [0.1] * len(widths)
    model = make_model(X[:P], y[:P], activation, widths, T, precisions, biases, composition)
    fit_order_parameters(model)
    q = model.covar_module.order_parameter.detach().numpy().ravel()
    assert np.max(np.abs(q - 1)) > 0.02  # otherwise nothing below would test the renormalization
    C = input_covariance(X, X, precisions, biases)
    kernel = renormalized_kernel(C, DUALS[name], precisions, biases, composition)
    return model, X, y, P, T, kernel, q


def test_generalization_error(fitted):
    model, X, y, P, T, kernel, q = fitted
    result = generalization_error(model, torch.as_tensor(X[P:]), torch.as_tensor(y[P:]))
    for part, order in ((result, q), (result.infinite_width, np.ones_like(q))):
        mean, variance = predict(kernel(order), y[:P], T)
        bias = (y[P:] - mean) ** 2
        np.testing.assert_allclose(part.bias.detach().numpy(), bias, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(part.variance.detach().numpy(), variance, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(part.total.detach().numpy(), bias + variance, rtol=1e-10, atol=1e-11)
        assert float(part.mean_bias) == pytest.approx(bias.mean(), rel=1e-10)
        assert float(part.mean_variance) == pytest.approx(variance.mean(), rel=1e-10)
        assert float(part.mean_total) == pytest.approx((bias + variance).mean(), rel=1e-10)


def test_generalization_error_leaves_the_model_as_it_was(fitted):
    model, X, y, P, _, _, _ = fitted
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, targets = torch.as_tensor(X[P:]), torch.as_tensor(y[P:])
    values = []
    for training in (True, False):
        model.train(training)
        values.append(generalization_error(model, x, targets).total.detach())
        assert model.training is training
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_generalization_error_on_the_training_rows_is_the_training_error(fitted):
    model, X, y, P, _, _, _ = fitted
    same = generalization_error(model, torch.as_tensor(X[:P]), torch.as_tensor(y[:P]))
    assert float(same.mean_total) == pytest.approx(float(training_error(model)), rel=1e-9)


def test_training_error(fitted):
    model, _, y, P, T, kernel, q = fitted
    expected = training_truth(kernel(q)[:P, :P], y[:P], T)
    assert float(training_error(model)) == pytest.approx(expected, rel=1e-10)


def test_expected_accuracy(fitted):
    model, X, y, P, T, kernel, q = fitted
    mean, variance = predict(kernel(q), y[:P], T)
    value = expected_accuracy(model, torch.as_tensor(X[P:]), torch.as_tensor(y[P:]))
    assert float(value) == pytest.approx(accuracy_truth(mean, variance, y[P:]), rel=1e-10)


def test_leave_one_out(fitted):
    model, _, y, P, T, kernel, q = fitted
    result = leave_one_out_error(model)
    mean, variance = leave_one_out(kernel(q)[:P, :P], y[:P], T)
    bias = (y[:P] - mean) ** 2
    # sigma^2_{-i} = 1/[A^{-1}]_ii - T cancels one digit
    np.testing.assert_allclose(result.bias.detach().numpy(), bias, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(result.variance.detach().numpy(), variance, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(result.total.detach().numpy(), bias + variance, rtol=1e-9, atol=1e-11)
    assert float(result.mean_total) == pytest.approx((bias + variance).mean(), rel=1e-10)


def test_leave_one_out_at_infinite_width(fitted):
    model, _, y, P, T, kernel, q = fitted
    result = leave_one_out_error(model).infinite_width
    mean, variance = leave_one_out(kernel(np.ones_like(q))[:P, :P], y[:P], T)
    np.testing.assert_allclose(result.total.detach().numpy(), (y[:P] - mean) ** 2 + variance, rtol=1e-9, atol=1e-11)


def test_agrees_with_the_posterior_of_the_model(fitted):
    """The same numbers as the user's own model(x): Gamma and sigma^2 are the latent GP posterior."""
    import gpytorch

    model, X, y, P, _, _, _ = fitted
    result = generalization_error(model, torch.as_tensor(X[P:]), torch.as_tensor(y[P:]))
    model.eval()
    with (
        torch.no_grad(),
        gpytorch.settings.fast_computations(log_prob=False, covar_root_decomposition=False, solves=False),
    ):
        posterior = model(torch.as_tensor(X[P:]))
    # GPyTorch's own triangular solves: relative error about 1e-13 times the condition number 1e3
    np.testing.assert_allclose(result.bias.detach().numpy(), (y[P:] - posterior.mean.numpy()) ** 2, atol=1e-9)
    np.testing.assert_allclose(result.variance.detach().numpy(), posterior.variance.numpy(), atol=1e-9)


def test_cold_and_hot_limits(rng, make_model):
    X, y = rng.normal(size=(15, 40)), rng.choice([-1.0, 1.0], size=15)
    hot = make_model(X, y, Erf(), [20], 1e8)
    fit_order_parameters(hot)
    prior = renormalized_kernel(input_covariance(X, X, (1.0, 1.0)), DUALS["erf"], (1.0, 1.0))([1.0])
    # nothing is learned: bias y^2 = 1, variance the prior's, corrections of order K/T = 1e-8
    assert float(training_error(hot)) == pytest.approx(1 + np.trace(prior) / 15, rel=1e-6)
    cold = make_model(X, y, Erf(), [20], 1e-8)
    fit_order_parameters(cold)
    assert float(training_error(cold)) < 2e-8  # interpolation: at most T of variance plus T^2 |A^{-1} y|^2


def test_refuses_nan(fitted):
    model, X, y, P, _, _, _ = fitted
    x = torch.as_tensor(X[P:]).clone()
    x[0, 0] = float("nan")
    with pytest.raises((ValueError, RuntimeError)):
        generalization_error(model, x, torch.as_tensor(y[P:]))
