"""Functions that do not cancel, against 40 digits."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from torch_propkernel.numerics.complex_log_gamma import log_gamma_increment
from torch_propkernel.numerics.special import (
    digamma_difference,
    exponential_excess,
    log_gamma_normalizer,
    log_gamma_ratio,
)
from torch_propkernel.numerics.student_t import inverse_gamma_icdf_of_normal, student_t_cdf, student_t_icdf

ARGUMENTS = [0.05, 0.25, 1.0, 7.3, 15.99, 16.0, 40.0, 1e3, 1e6, 5e14]


@pytest.mark.parametrize("u", [-800.0, -3.0, -0.5, -0.4999, -1e-3, -1e-9, 1e-12, 1e-4, 0.4999, 0.5, 2.0, 50.0])
def test_exponential_excess(u):
    with mpmath.workdps(60):
        exact = mpmath.exp(mpmath.mpf(u)) - 1 - mpmath.mpf(u)
    value = exponential_excess(torch.tensor(u, dtype=torch.float64))
    assert abs(float(value) / float(exact) - 1) < 2e-15


@pytest.mark.parametrize("a", ARGUMENTS)
def test_log_gamma(a):
    value = torch.tensor(a, dtype=torch.float64)
    with mpmath.workdps(60):
        x = mpmath.mpf(a)
        normalizer = float((x + 1) * mpmath.log(x) - x - mpmath.loggamma(x + 1))
        assert abs(float(log_gamma_normalizer(value)) - normalizer) < 2e-14 * max(1, abs(normalizer))
        for s in (0.5, 3.0, 500.0):
            ratio = float(mpmath.loggamma(x + s) - mpmath.loggamma(x) - s * mpmath.log(x))
            assert abs(float(log_gamma_ratio(value, s)) - ratio) < 1e-13 * max(1, abs(ratio))
            psi = float(mpmath.digamma(x + s) - mpmath.digamma(x))
            assert abs(float(digamma_difference(value, s)) / psi - 1) < 1e-13


@pytest.mark.parametrize("a", [0.3, 15.999999, 16.000001, 300.0])
def test_gradients(a):
    value = torch.tensor([a], dtype=torch.float64, requires_grad=True)
    for function in (log_gamma_normalizer, lambda x: log_gamma_ratio(x, 2.5), lambda x: digamma_difference(x, 2.5)):
        assert torch.autograd.gradcheck(function, (value,))
        assert torch.autograd.gradgradcheck(function, (value,))
    u = torch.tensor([-0.6, -0.1, 0.0, 0.3, 1.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exponential_excess, (u,))


@pytest.mark.parametrize("s", [1e-3, 2.0, -0.2, 0.1j, 3 - 40j, 1e4j])
@pytest.mark.parametrize("a", ARGUMENTS[1:])
def test_complex_log_gamma_increment(a, s):
    value = complex(log_gamma_increment(np.array(s), np.array(a + s), np.array(a)))
    with mpmath.workdps(60):
        x, t = mpmath.mpf(a), mpmath.mpc(s)
        exact = complex(mpmath.loggamma(x + t) - mpmath.loggamma(x) - t * mpmath.log(x))
    assert abs(value - exact) < 2e-14 * (1 + abs(exact))


@pytest.mark.parametrize("df", [2.1, 5.0, 30.0, 1e6])
def test_student_t(df):
    """scipy.stats.t, whose quantiles hold nine digits near the median, and the closed form for the scale."""
    x, nu = (
        torch.tensor([-30.0, -2.0, -1e-3, 0.0, 0.7, 4.0], dtype=torch.float64),
        torch.tensor(df, dtype=torch.float64),
    )
    level = student_t_cdf(x, nu)
    np.testing.assert_allclose(level, stats.t.cdf(x.numpy(), df), rtol=1e-12)
    np.testing.assert_allclose(student_t_icdf(level[:-1], nu), x[:-1], rtol=1e-11, atol=1e-14)
    ratio = inverse_gamma_icdf_of_normal(x[1:], nu)
    np.testing.assert_allclose(stats.chi2.sf(df / ratio.numpy(), df), stats.norm.cdf(x[1:].numpy()), rtol=1e-9)
