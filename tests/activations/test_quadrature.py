"""Hermite expansions: accuracy where it is promised, honest estimates and a warning where it is not."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from torch_propkernel.activations import (
    GELU,
    Cos,
    Erf,
    Exp,
    Quadrature,
    QuadratureWarning,
    ReLU,
    Sign,
    Sin,
    Square,
    Tanh,
)
from torch_propkernel.activations.quadrature import hermite_expansion, hermite_grid

SMOOTH = {
    "erf": (torch.erf, Erf()),
    "sin": (torch.sin, Sin()),
    "cos": (torch.cos, Cos()),
    "exp": (torch.exp, Exp()),
    "square": (torch.square, Square()),
    "gelu": (torch.nn.functional.gelu, GELU()),
}
KINKED = {"relu": (torch.relu, ReLU()), "sign": (torch.sign, Sign())}


def gram(scale=1.0, dtype=torch.float64):
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x[:2], -x[:2], 0 * x[:1]])
    c = (scale * x @ x.T / 5).to(dtype)
    return c.diagonal()[:, None], c, c.diagonal()[None, :]


def test_weights_are_orthonormal():
    z, w = hermite_grid(2049, 60)
    functions = w / w[0].clamp_min(1e-300) * (w[0] > 1e-25)
    torch.testing.assert_close(functions[:9] @ w[:9].T, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(w[0] @ z**4) == pytest.approx(3, rel=1e-13)
    assert torch.isfinite(w).all()


def test_coefficients_of_a_polynomial():
    c = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    e = hermite_expansion(lambda u: u**3, c, 1025, 4)  # c^(3/2) (3 h_1 + sqrt(6) h_3)
    expected = c**1.5 * torch.tensor([0, 3, 0, 6**0.5, 0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(e.coefficients, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(e.odd, 15 * c**3, rtol=1e-12, atol=1e-12)
    assert all(bool((r <= 1e-12).all()) for r in (e.even, *e.remainder))


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_match_their_closed_forms(name):
    phi, closed = SMOOTH[name]
    numeric = Quadrature(phi)
    assert numeric.is_odd == closed.is_odd
    inputs = gram()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = numeric.dual(*inputs)
    scale = closed.dual_diag(inputs[0]).amax()
    assert (value - closed.dual(*inputs)).abs().amax() <= 1e-10 * scale
    for a, b in zip(numeric.dual_partials(*inputs), closed.dual_partials(*inputs), strict=True):
        torch.testing.assert_close(*torch.broadcast_tensors(a, b), rtol=1e-8, atol=1e-9 * float(scale))
    c = inputs[0]
    for moment in ("dual_diag", "mean", "slope"):
        torch.testing.assert_close(getattr(numeric, moment)(c), getattr(closed, moment)(c), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KINKED)
def test_kinks_and_jumps_are_right_within_their_estimate(name):
    phi, closed = KINKED[name]
    numeric = Quadrature(phi)
    c_xx, c_xy, c_yy = gram()
    with pytest.warns(QuadratureWarning, match=r"expected a relative error .* got an estimate") as caught:
        value = numeric.dual(c_xx, c_xy, c_yy)
    assert len(caught) == 1
    bound = (numeric.error_estimate(c_xx) * numeric.error_estimate(c_yy)).sqrt()
    assert ((value - closed.dual(c_xx, c_xy, c_yy)).abs() <= bound + 1e-14).all()
    assert (bound.amax() < 0.1 * closed.dual_diag(c_xx).amax()) or name == "sign"
    error = (numeric.dual_diag(c_xx) - closed.dual_diag(c_xx)).abs()
    assert (error <= numeric.error_estimate(c_xx) + 1e-14).all()
    # trapezoidal rule on the finest grid: step^2 / 12 times the jump of the slope, or step for a jump
    torch.testing.assert_close(numeric.mean(c_xx), closed.mean(c_xx), rtol=0, atol=2e-3)


def test_gradients_of_a_kinked_function():
    numeric = Quadrature(torch.relu)
    inputs = tuple(torch.tensor([v], dtype=torch.float64) for v in (1.0, 0.4, 0.7))
    for a, b in zip(numeric.dual_partials(*inputs), ReLU().dual_partials(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # trapezoidal rule of a jump of the slope
    c = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(numeric.dual_diag(c).sum(), c)
    torch.testing.assert_close(gradient, torch.full_like(c, 0.5), rtol=1e-5, atol=0)  # same


def test_the_estimate_is_honest_at_large_variance():
    c_xx, c_xy, c_yy = gram(60.0)
    with pytest.warns(QuadratureWarning):
        value = Tanh().dual(c_xx, c_xy, c_yy)
    finer = Quadrature(torch.tanh, max_order=1500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuadratureWarning)
        truth = finer.dual(c_xx, c_xy, c_yy)
    bound = (Tanh().error_estimate(c_xx) * Tanh().error_estimate(c_yy)).sqrt()
    assert ((value - truth).abs() <= bound + 1e-12).all()
    torch.testing.assert_close(value.diagonal(), Tanh().dual_diag(c_xx[:, 0]), rtol=1e-10, atol=1e-12)


def test_single_precision_is_computed_in_double():
    inputs = gram(dtype=torch.float32)
    value = Tanh().dual(*inputs)
    assert value.dtype == torch.float32
    exact = Tanh().dual(*(c.double() for c in inputs))
    torch.testing.assert_close(value, exact.float(), rtol=2e-7, atol=1e-8)
    assert Tanh().error_estimate(inputs[0]).dtype == torch.float32


def test_smooth_error_estimate_is_small():
    c = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    estimate = Tanh().error_estimate(c)
    assert estimate.shape == c.shape
    assert (estimate <= 1e-10).all()


def test_tanh_agrees_with_product_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    weights = weights / weights.sum()
    c_xx, c_xy, c_yy = 0.3, 0.1, 0.2
    w = c_xy / c_xx**0.5 * nodes[:, None] + (c_yy - c_xy**2 / c_xx) ** 0.5 * nodes
    truth = float(weights @ (np.tanh(c_xx**0.5 * nodes)[:, None] * np.tanh(w)) @ weights)
    inputs = (torch.tensor([v], dtype=torch.float64) for v in (c_xx, c_xy, c_yy))
    assert float(Tanh().dual(*inputs)) == pytest.approx(truth, rel=1e-10)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="elementwise callable, got 'tanh'"):
        Quadrature("tanh")
    with pytest.raises(ValueError, match="rtol > 0"):
        Quadrature(torch.tanh, rtol=0.0)
    assert pickle.loads(pickle.dumps(Quadrature(torch.tanh))) == Quadrature(torch.tanh)
    assert Quadrature(torch.tanh) != Quadrature(torch.tanh, rtol=1e-6)
