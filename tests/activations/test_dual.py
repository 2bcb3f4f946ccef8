"""The blocked autograd function: the same numbers, gradients and transforms as the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from torch_propkernel.activations import GELU, Erf, Identity, ReLU, SiLU, Sin, Tanh, dual

ACTIVATIONS = [Identity(), Erf(), ReLU(), Sin(), GELU(), Tanh(), SiLU()]
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)


def gram(n=23, m=17, batch=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(*batch, k, 8, generator=g, dtype=torch.float64).to(dtype) for k in (n, m))
    return x.square().mean(-1, keepdim=True), x @ y.mT / 8, y.square().mean(-1).unsqueeze(-2)


def value_and_gradients(activation, inputs):
    inputs = tuple(c.clone().requires_grad_() for c in inputs)
    value = activation.dual(*inputs)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weights).sum(), inputs)


@each_activation
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_blocks_change_nothing(activation, batch, monkeypatch):
    inputs = gram(batch=batch)
    whole, whole_gradients = value_and_gradients(activation, inputs)
    monkeypatch.setattr(dual, "CPU_BLOCK", 64)
    blocked, blocked_gradients = value_and_gradients(activation, inputs)
    torch.testing.assert_close(blocked, whole, rtol=1e-14, atol=1e-15)
    for a, b in zip(blocked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@each_activation
def test_gradient_with_and_without_graph(activation):
    inputs = tuple(c.requires_grad_() for c in gram())
    value = activation.dual(*inputs).sin().sum()
    plain = torch.autograd.grad(value, inputs, retain_graph=True)
    graph = torch.autograd.grad(value, inputs, create_graph=True)
    for a, b, c in zip(plain, graph, inputs, strict=True):
        assert a.shape == b.shape == c.shape
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@each_activation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_out_may_be_the_covariance(activation, dtype, monkeypatch):
    monkeypatch.setattr(dual, "CPU_BLOCK", 64)
    c_xx, c_xy, c_yy = gram(dtype=dtype)
    expected = activation.dual(c_xx, c_xy, c_yy)
    assert expected.dtype == dtype
    result = activation.dual(c_xx, c_xy, c_yy, out=c_xy)
    assert result is c_xy
    assert torch.equal(result, expected)


def test_out_is_checked():
    c_xx, c_xy, c_yy = gram()
    with pytest.raises(ValueError, match=r"expected out of shape \(23, 17\)"):
        Erf().dual(c_xx, c_xy, c_yy, out=torch.empty(3))
    with pytest.raises(ValueError, match="float64.*float32"):
        Erf().dual(c_xx, c_xy, c_yy, out=torch.empty(23, 17))
    with pytest.raises(ValueError, match="no gradient"):
        Erf().dual(c_xx.requires_grad_(), c_xy, c_yy, out=c_xy)
    with torch.no_grad():
        assert Erf().dual(c_xx, c_xy, c_yy, out=c_xy) is c_xy


def test_only_inputs_are_saved():
    inputs = tuple(c.requires_grad_() for c in gram())
    output = Erf().dual(*inputs)  # kept: old versions of torch free what is saved together with the output
    assert [t is c for t, c in zip(output.grad_fn.saved_tensors, inputs, strict=True)] == [True] * 3


def kernel_sum(activation, x):
    c = x @ x.mT
    d = c.diagonal(dim1=-2, dim2=-1)
    return (activation.dual(d[..., :, None], c, d[..., None, :]) * torch.arange(1, 5, dtype=x.dtype)).sum((-1, -2))


@each_activation
def test_function_transforms(activation):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, generator=g, dtype=torch.float64)
    t = torch.randn(4, 2, generator=g, dtype=torch.float64)

    def f(v):
        # the shift keeps relu away from its singular diagonal, where second derivatives are a convention
        return kernel_sum(activation, torch.cat([v, torch.eye(4, dtype=v.dtype)], -1))

    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(f(leaf), leaf, create_graph=True)[0]
    torch.testing.assert_close(grad(f)(x), expected.detach())
    torch.testing.assert_close(jvp(f, (x,), (t,))[1], (expected * t).sum().detach())
    second = torch.autograd.functional.hessian(f, x)
    torch.testing.assert_close(hessian(f)(x), second)
    torch.testing.assert_close(jacrev(jacrev(f))(x), second)
    torch.testing.assert_close(jacfwd(f)(x), expected.detach())
    stack = torch.stack([x, x / 2, -x])
    torch.testing.assert_close(vmap(f)(stack), torch.stack([f(v) for v in stack]))
    torch.testing.assert_close(vmap(grad(f))(stack), torch.stack([grad(f)(v) for v in stack]))


@each_activation
def test_broadcast_and_vmap_over_some_inputs(activation):
    c_xx, c_xy, c_yy = gram(batch=(3,))
    value = vmap(activation.dual, in_dims=(0, 0, None))(c_xx, c_xy, c_yy[0] + 5)
    torch.testing.assert_close(value, activation.dual(c_xx, c_xy, c_yy[0] + 5))
    flat = vmap(activation.dual, in_dims=(None, 1, None))(torch.tensor(4.0), torch.rand(2, 3), torch.tensor(5.0))
    assert flat.shape == (3, 2)
    for shapes in (((), (1, 3), (2, 1)), ((2, 1), (), (1, 3)), ((), (2, 3), ()), ((3,), (), (2, 1))):
        c_xx, c_xy, c_yy = (torch.full(s, v, dtype=torch.float64) for s, v in zip(shapes, (1.0, 0.2, 2.0), strict=True))
        value = activation.dual(c_xx, c_xy, c_yy)
        assert value.shape == (2, 3)
        first = activation.dual(*(c.reshape(-1)[:1, None] for c in (c_xx, c_xy, c_yy)))
        torch.testing.assert_close(value, first.expand(2, 3))


@each_activation
def test_vmap_of_moments(activation):
    c_xx = gram(batch=(3,))[0]
    moments = vmap(activation.dual_diag, in_dims=1)(c_xx[0])
    torch.testing.assert_close(moments, activation.dual_diag(c_xx[0]).T)


def test_empty_and_scalar_inputs():
    empty = torch.empty(0, 1), torch.empty(0, 4), torch.ones(1, 4)
    assert Erf().dual(*empty).shape == (0, 4)
    assert Erf().dual(*(torch.tensor(0.5),) * 3).shape == ()


def test_nan_is_not_hidden():
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    for activation in ACTIVATIONS:
        assert activation.dual(one, nan, one).isnan().all()
