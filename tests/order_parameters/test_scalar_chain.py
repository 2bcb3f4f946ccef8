"""Stationary layers at a given product of the order parameters, against arithmetic in 50 digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from torch_propkernel.order_parameters import ScalarChain


@mpmath.workdps(50)
def stationary(widths, u):
    """log q_l with one common N_l (q_l - 1) and sum log q_l = u, by bisection in log q of the narrowest layer."""
    N = [mpmath.mpf(v) for v in widths]
    narrow = min(N)

    def logs(t):
        return [mpmath.log(1 + narrow / n * mpmath.expm1(t)) if n != narrow else t for n in N]

    low, high = mpmath.mpf(min(u, 0)) - 1, mpmath.mpf(max(u, 0)) + 1
    for _ in range(180):
        middle = (low + high) / 2
        low, high = (middle, high) if mpmath.fsum(logs(middle)) < u else (low, middle)
    return [float(v) for v in logs(low)]


@pytest.mark.parametrize(
    "widths", [[1.0, 10.0], [1.0, 1.0 + 1e-9], [5.0, math.inf], [3.0, 3.0, 4.0], [200.0, 2.0, 7.0]]
)
def test_stationary_layers(widths):
    scales = [-300.0, -60.0, -37.5, -19.0, -3.0, -0.5, -1e-6, 1e-6, 0.3, 5.0, 60.0]
    found = ScalarChain.of(widths).at_log_scale(torch.tensor(scales, dtype=torch.float64))
    expected = np.array([stationary(widths, u) for u in scales])
    logs = found.log_order_parameter.numpy()
    # of widths that agree to 1e-9 rounding leaves 1e-7 of the difference
    atol = 1e-8 if widths[1] / widths[0] - 1.0 == pytest.approx(1e-9, rel=1e-6) else 4e-16
    np.testing.assert_allclose(logs, expected, rtol=2e-15, atol=atol)
    np.testing.assert_allclose(logs.sum(-1), scales, rtol=2e-15, atol=4e-16)
    narrow = expected[:, int(np.argmin(widths))]
    np.testing.assert_allclose(found.pull, min(widths) * np.expm1(narrow), rtol=2e-14)
