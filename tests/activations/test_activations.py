"""Activations against nested quadrature, and the laws that every dual obeys."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, ndtr

from torch_propkernel.activations import (
    ACTIVATIONS,
    GELU,
    Cos,
    Erf,
    Exp,
    Identity,
    LeakyReLU,
    RectifiedQuadratic,
    ReLU,
    Sign,
    SiLU,
    Sin,
    Square,
    Step,
    Tanh,
    get_activation,
)

SMOOTH = {
    Identity(): lambda u: u,
    Erf(): erf,
    Sin(): np.sin,
    Cos(): np.cos,
    Exp(): np.exp,
    Square(): lambda u: u**2,
    GELU(): lambda u: u * ndtr(u),
    Tanh(): np.tanh,
    SiLU(): lambda u: u / (1 + np.exp(-u)),
}
KINKED = {
    ReLU(): lambda u: np.maximum(u, 0),
    LeakyReLU(0.2): lambda u: np.where(u > 0, u, 0.2 * u),
    RectifiedQuadratic(): lambda u: np.maximum(u, 0) ** 2,
    Sign(): np.sign,
    Step(): lambda u: np.heaviside(u, 0.5),
}
CASES = SMOOTH | KINKED
ALL = list(CASES)
NUMERICAL = [Tanh(), SiLU()]
CLOSED = [a for a in ALL if a not in NUMERICAL]
HOMOGENEOUS = [a for a in ALL if a.homogeneous_degree is not None]
IDS = {"ids": repr}

NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)
GRADED = 13.0 * 2.0 ** -np.arange(28)
GRADED = np.concatenate([-GRADED, [0.0], GRADED[::-1]])


def gaussian_rule(center):
    """Composite Gauss-Legendre rule of N(0, 1) on |z| < 13, with panels graded toward a feature at ``center``."""
    center = np.atleast_1d(center)[:, None]
    uniform = np.broadcast_to(np.arange(-13.0, 14.0), (len(center), 27))
    edges = np.sort(np.concatenate([np.clip(center + GRADED, -13, 13), uniform], 1), 1)
    half, middle = np.diff(edges)[..., None] / 2, (edges[:, 1:, None] + edges[:, :-1, None]) / 2
    z = (middle + half * NODES).reshape(len(center), -1)
    return z, (half * WEIGHTS).reshape(len(center), -1) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def true_mean(f, c):
    z, w = gaussian_rule(0.0)
    return float((f(math.sqrt(c) * z) * w).sum())


def true_dual(f, c_xx, c_xy, c_yy):
    """E[f(u) f(w)] by nested quadrature, with panels graded toward u = 0 and w = 0."""
    z, weights = (a[0] for a in gaussian_rule(0.0))
    slope = c_xy / math.sqrt(c_xx) if c_xx else 0.0
    residual = math.sqrt(max(c_yy - slope**2, 0.0))
    if residual <= 1e-8 * math.sqrt(c_yy):
        inner = f(slope * z)
    else:
        center = np.clip(-slope * z / residual, -13, 13)
        inner = np.empty_like(z)
        for k in np.array_split(np.arange(len(z)), 8):
            v, w = gaussian_rule(center[k])
            inner[k] = (f(slope * z[k, None] + residual * v) * w).sum(1)
    return float((f(math.sqrt(c_xx) * z) * inner * weights).sum())


def triple(a, rho, b):
    return a, rho * math.sqrt(a * b), b


GENERIC = [triple(0.7, 0.3, 1.9), triple(1.3, -0.6, 0.4), triple(0.5, 0.9, 0.8)]
EDGES = [
    triple(1.0, 0.0, 2.0),
    triple(0.8, 0.999999, 0.6),
    triple(0.8, -0.999999, 0.6),
    (1.5, 1.5, 1.5),
    (1.5, -1.5, 1.5),
    (0.0, 0.0, 1.2),
    (0.0, 0.0, 0.0),
    triple(1e-8, 0.5, 1.0),
]


def tensors(values, dtype=torch.float64, grad=False):
    return tuple(torch.tensor([v], dtype=dtype, requires_grad=grad) for v in values)


def pairs(n=4, m=3, batch=(), dtype=torch.float64, seed=0, grad=False):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, 6, generator=g, dtype=torch.float64)
    y = torch.randn(*batch, m, 6, generator=g, dtype=torch.float64)
    c = x.square().mean(-1, keepdim=True), x @ y.mT / 6, y.square().mean(-1).unsqueeze(-2)
    return tuple(t.to(dtype).requires_grad_(grad) for t in c)


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_dual_is_the_gaussian_moment(activation):
    cases = GENERIC + EDGES
    truth = [true_dual(CASES[activation], *case) for case in cases]
    value = activation.dual(*torch.tensor(cases, dtype=torch.float64).T)
    torch.testing.assert_close(value, torch.tensor(truth, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", [a for a in ALL if a not in (Sin(), Cos(), Exp(), *NUMERICAL)], **IDS)
@pytest.mark.parametrize("case", [triple(1e8, 0.4, 1e-8), triple(1e8, -0.7, 1e7), triple(1e-8, 0.9, 1e-7)])
def test_dual_at_extreme_scales(activation, case):
    truth = true_dual(CASES[activation], *case)
    scale = math.sqrt(true_dual(CASES[activation], *[case[0]] * 3) * true_dual(CASES[activation], *[case[2]] * 3))
    assert abs(float(activation.dual(*tensors(case))) - truth) <= 1e-10 * scale
    # float32: 1e-7 of rounding in c_xy, times the condition of the angle (about 10)
    assert abs(float(activation.dual(*tensors(case, torch.float32))) - truth) <= 2e-6 * scale


@pytest.mark.parametrize("activation", [Sin(), Cos()], **IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_oscillating_duals_neither_overflow_nor_cancel(activation, dtype):
    c = torch.tensor([1e-8, 1.0, 1e4, 1e8], dtype=dtype)
    torch.testing.assert_close(activation.dual(c, c, c), activation.dual_diag(c))
    assert float(activation.dual(*tensors((1e8, 0.0, 1e8), dtype))) == 0.0
    tiny = torch.tensor([1e-8], dtype=dtype)
    torch.testing.assert_close(Sin().dual(tiny * 0, tiny, tiny * 0), tiny)


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_moments_of_one_variable(activation):
    f = CASES[activation]
    for c in (0.0, 1e-4, 0.3, 2.5):
        v = torch.tensor([c], dtype=torch.float64)
        assert float(activation.dual_diag(v)) == pytest.approx(true_mean(lambda u: f(u) ** 2, c), rel=1e-10, abs=1e-14)
        assert float(activation.mean(v)) == pytest.approx(true_mean(f, c), rel=1e-10, abs=1e-14)
        if c:  # Stein: E[f'(u)] = E[f(s z) z] / s
            z, w = gaussian_rule(0.0)
            s = math.sqrt(c)
            truth = float((f(s * z) * z * w).sum()) / s
            assert float(activation.slope(v)) == pytest.approx(truth, rel=1e-10, abs=1e-12)
    assert torch.isfinite(activation.slope(torch.zeros(1)))


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_values_of_the_function(activation):
    u = torch.linspace(-3, 3, 31, dtype=torch.float64)
    torch.testing.assert_close(activation(u), torch.from_numpy(np.asarray(CASES[activation](u.numpy()))))
    assert activation.is_odd == torch.allclose(activation(-u), -activation(u))
    if activation.homogeneous_degree is not None:
        torch.testing.assert_close(activation(2.5 * u), 2.5**activation.homogeneous_degree * activation(u))


@pytest.mark.parametrize("activation", ALL, **IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_dual_is_the_diagonal(activation, dtype):
    c = torch.tensor([0.0, 1e-6, 0.1, 1.0, 7.0], dtype=dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(activation.dual(c, c, c), activation.dual_diag(c), rtol=20 * eps, atol=4 * eps)


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_partials_are_differences_of_the_truth(activation):
    f, step = CASES[activation], 2e-3
    case = GENERIC[0]
    partials = activation.dual_partials(*tensors(case))
    for k in range(3):

        def at(shift, k=k):
            return true_dual(f, *(v + shift * (i == k) for i, v in enumerate(case)))

        central = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
        # fourth-order differences: step^4 times a fifth derivative, up to about 1e3 for exp and sign
        assert float(partials[k]) == pytest.approx(central, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_gradcheck(activation):
    inputs = pairs(2, 2, grad=True)
    assert torch.autograd.gradcheck(activation.dual, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(activation.dual, inputs)
    c = inputs[0]
    for moment in (activation.dual_diag, activation.mean, activation.slope):
        value = moment(c)
        if value.requires_grad:
            assert torch.autograd.gradcheck(moment, (c,))
            assert torch.autograd.gradgradcheck(moment, (c,))


SINGULAR = [(c, c, c) for c in (0.0, 1e-8, 1.0, 30.0)] + [(1.0, -1.0, 1.0), (0.0, 0.0, 2.0), (2.0, 4.0, 8.0)]


@pytest.mark.parametrize("activation", ALL, **IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore::torch_propkernel.activations.QuadratureWarning")  # variance 30
def test_singular_points_are_finite(activation, dtype):
    inputs = tuple(torch.tensor(SINGULAR, dtype=dtype).T.clone().requires_grad_())
    value = activation.dual(*inputs)
    first = torch.autograd.grad(value.sum(), inputs, create_graph=True)
    total = sum(g.sum() for g in first if g.requires_grad)
    second = torch.autograd.grad(total, inputs, allow_unused=True) if torch.is_tensor(total) else ()
    for t in (value, *first, *(g for g in second if g is not None)):
        assert t.dtype == dtype
        assert torch.isfinite(t).all()


def test_relu_gradient_at_coincident_rows():
    inputs = tensors((2.0, 2.0, 2.0), grad=True)
    gradient = torch.autograd.grad(ReLU().dual(*inputs).sum(), inputs)
    assert [float(g) for g in gradient] == [0.0, 0.5, 0.0]


@pytest.mark.parametrize("activation", [Erf(), GELU(), Tanh(), SiLU()], **IDS)
def test_smooth_partials_at_a_zero_row(activation):
    c = torch.tensor([0.9], dtype=torch.float64)
    zero, u = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(activation(u).sum(), u, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), u)[0]
    d_xx, d_xy, _ = activation.dual_partials(zero, zero, c)
    torch.testing.assert_close(d_xy, first.detach() * activation.slope(c), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(d_xx, 0.5 * second * activation.mean(c), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_matrices_are_positive_semidefinite(activation):
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.cat([x, x[:3], -x[:3], 2 * x[:2], 0 * x[:1]])
    c = x @ x.T / 5
    kappa = activation.dual(c.diagonal()[:, None], c, c.diagonal()[None, :])
    assert torch.equal(kappa, kappa.T) or torch.allclose(kappa, kappa.T, rtol=1e-13, atol=1e-15)
    assert torch.linalg.eigvalsh(kappa)[0] > -1e-12 * kappa.diagonal().sum()


@pytest.mark.parametrize("activation", HOMOGENEOUS, **IDS)
def test_homogeneous_duals_scale(activation):
    c_xx, c_xy, c_yy = pairs()
    scaled = activation.dual(9 * c_xx, 3 * c_xy, c_yy)
    torch.testing.assert_close(scaled, 3**activation.homogeneous_degree * activation.dual(c_xx, c_xy, c_yy))


@pytest.mark.parametrize("activation", ALL, **IDS)
def test_objects_are_values(activation):
    for other in (pickle.loads(pickle.dumps(activation)), copy.deepcopy(activation)):
        assert other == activation
        assert repr(other) == repr(activation)
        assert hash(other) == hash(activation)
    assert activation != object()
    with pytest.raises(AttributeError):
        activation.is_odd = True


@pytest.mark.parametrize("activation", CLOSED, **IDS)
def test_closed_forms_have_no_error(activation):
    assert not activation.error_estimate(torch.rand(3)).any()


@pytest.mark.parametrize("activation", [Erf(), ReLU(), Sin(), Tanh()], **IDS)
@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    n=st.integers(1, 4),
    m=st.integers(1, 4),
    shared=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_batch_shapes_broadcast(activation, batch, n, m, shared):
    c_xx, c_xy, c_yy = pairs(n, m, tuple(batch))
    if shared and 0 not in batch:
        c_xx = c_xx[(0,) * len(batch)]
    value = activation.dual(c_xx, c_xy, c_yy)
    assert value.shape == (*batch, n, m)
    full = torch.broadcast_tensors(c_xx, c_xy, c_yy)
    torch.testing.assert_close(value, activation.dual(*full), rtol=1e-9, atol=1e-12)
    flat = activation.dual(*(t.reshape(-1) for t in full))
    torch.testing.assert_close(value.reshape(-1), flat, rtol=1e-9, atol=1e-12)


def test_names():
    assert {type(get_activation(name)) for name in ACTIVATIONS} == {type(a) for a in ALL}
    assert get_activation("ReLU") == ReLU()
    own = LeakyReLU(0.3)
    assert get_activation(own) is own
    with pytest.raises(ValueError, match="relu.*got 'rleu'"):
        get_activation("rleu")
    with pytest.raises(TypeError, match="erf.*got 3"):
        get_activation(3)
    with pytest.raises(ValueError, match="finite negative_slope"):
        LeakyReLU(math.nan)
