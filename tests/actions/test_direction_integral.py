"""Averages over one component of a uniform direction: Gauss-Jacobi quadrature, closed forms, draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from torch_propkernel.actions.direction_integral import direction_moments
from torch_propkernel.exceptions import ConvergenceError


def tensors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize("dimension", [1.2, 2.0, 3.0, 7.5, 300.0])
@pytest.mark.parametrize("linear", [-30.0, 0.0, 0.5, 200.0])
@pytest.mark.parametrize("square", [0.0, 3.0, 1e3])
def test_gauss_jacobi_quadrature(dimension, linear, square):
    x, weight = special.roots_jacobi(600, (dimension - 3) / 2, (dimension - 3) / 2)
    exponent = linear * x - 0.5 * square * x**2
    tilted = weight / weight.sum() * np.exp(exponent - exponent.max())
    mean = tilted @ x / tilted.sum()
    expected = math.log(tilted.sum()) + exponent.max(), mean, tilted @ (x - mean) ** 2 / tilted.sum()
    got = [v.item() for v in direction_moments(*tensors(linear, square, dimension))]
    # the spread of a mass at |x| -> 1 is a difference of numbers close to one
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-11)


def test_bessel_functions():
    """b = 0: Z = Gamma(N/2) (2/a)^{N/2-1} I_{N/2-1}(a)."""
    for a, n in ((0.3, 2.0), (5.0, 4.0), (40.0, 11.0)):
        expected = special.gammaln(n / 2) + (n / 2 - 1) * math.log(2 / a) + math.log(special.ive(n / 2 - 1, a)) + a
        assert direction_moments(*tensors(a, 0.0, n))[0].item() == pytest.approx(expected, abs=1e-11)


def test_drawn_directions(rng):
    v = rng.normal(size=(200_000, 4))
    x = v[:, 0] / np.linalg.norm(v, axis=1)
    weight = np.exp(1.5 * x - x**2)
    log_z, mean, _ = (v.item() for v in direction_moments(*tensors(1.5, 2.0, 4.0)))
    assert abs(math.exp(log_z) - weight.mean()) < 4 * weight.std() / math.sqrt(len(x))
    assert abs(mean - weight @ x / weight.sum()) < 0.01


def test_shapes_broadcast():
    a, b, n = torch.zeros(3, 1).double(), torch.ones(4).double(), torch.tensor(5.0).double()
    assert all(v.shape == (3, 4) for v in direction_moments(a, b, n))


def test_a_tolerance_out_of_reach_is_reported():
    with pytest.raises(ConvergenceError, match="direction: expected a change below"):
        direction_moments(*tensors(1.0, 2.0, 5.0), tolerance=0.0 - 1.0)
