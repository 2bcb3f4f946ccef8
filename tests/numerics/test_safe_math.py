"""Guarded elementary functions: right where they are regular, finite where they are not, never hiding NaN."""

from __future__ import annotations

import pytest
import torch

from torch_propkernel.numerics.safe_math import gram_determinant, safe_atan2, safe_divide, safe_sqrt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_root(dtype):
    x = torch.tensor([-1.0, 0.0, 4.0], dtype=dtype, requires_grad=True)
    value = safe_sqrt(x)
    first = torch.autograd.grad(value.sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x)[0]
    assert value.tolist() == [0, 0, 2]
    assert first.tolist() == [0, 0, 0.25]
    assert second.tolist() == [0, 0, -1 / 32]


def test_quotient_and_angle():
    a = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    for f, expected in ((safe_divide, a.detach()[1] / 2), (safe_atan2, torch.atan2(a, b).detach()[1])):
        value = f(a, b)
        assert value[0] == 0
        assert value[1] == expected
        for gradient in torch.autograd.grad(value.sum(), (a, b), create_graph=True):
            assert torch.isfinite(gradient).all()
            assert gradient[0] == 0
    inputs = tuple(t.detach()[1:].requires_grad_() for t in (a, b))
    for f in (safe_divide, safe_atan2):
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_determinant_of_parallel_rows_is_zero(dtype, scale):
    c = scale * torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for factor in (1, -1, 2, 0):
        assert not gram_determinant(c, factor * c, factor**2 * c).any()
    half = gram_determinant(c, c / 2, c)
    torch.testing.assert_close(half, 0.75 * c * c, rtol=10 * torch.finfo(dtype).eps, atol=0)


def test_nan_stays():
    nan, one = torch.tensor(float("nan")), torch.tensor(1.0)
    assert safe_sqrt(nan).isnan()
    assert safe_divide(nan, one).isnan()
    assert safe_atan2(nan, one).isnan()
    assert gram_determinant(one, nan, one).isnan()
