"""The Gaussian field of N - 1 units: its defining equations, and conditioning without cancellation."""

from __future__ import annotations

import pytest
import torch

from torch_propkernel.cavity import Closure


@pytest.fixture
def covariance(rng):
    root = torch.as_tensor(rng.normal(size=(6, 6)))
    return root @ root.mT / 6


@pytest.mark.parametrize("width", [2.0, 7.5, 1e4])
@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_defining_equations(covariance, width, temperature):
    closure = Closure.of(covariance, temperature, width)
    B, C = closure.precision(), closure.matrix(closure.covariance_values)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(C @ (eye - B @ covariance), covariance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(B @ (temperature * eye + (width - 1) * C), eye, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(closure.matrix(closure.total_values), temperature * eye + width * C)
    assert float((closure.values * closure.field).max()) <= 1 / width


def test_a_temperature_changed_is_a_closure_anew(covariance):
    moved, new = Closure.of(covariance, 1.0, 9.0).at(0.1), Closure.of(covariance, 0.1, 9.0)
    torch.testing.assert_close(moved.precision(), new.precision(), rtol=1e-12, atol=1e-14)


def test_conditioning_is_that_of_the_process(covariance, rng):
    """N C_** - N^2 C_*X A^-1 C_X*, with C = V + V B (1 - V B)^-1 V at new points, is N (V_** - V_*X G V_X*)."""
    width, temperature = 8.0, 0.2
    V = covariance[:4, :4]
    closure = Closure.of(V, temperature, width)
    B, eye = closure.precision(), torch.eye(4, dtype=torch.float64)
    inner = B @ torch.linalg.inv(eye - V @ B)
    cross, own = covariance[4:, :4], covariance[4:, 4:]
    C_cross, C_own = cross @ torch.linalg.inv(eye - B @ V), own + cross @ inner @ cross.mT
    A = closure.matrix(closure.total_values)
    process = width * C_own - width**2 * C_cross @ torch.linalg.solve(A, C_cross.mT)
    short = width * (own - cross @ closure.matrix(closure.conditioning_values) @ cross.mT)
    torch.testing.assert_close(short, process, rtol=1e-10, atol=1e-12)


def test_no_variance_means_the_noise_alone():
    closure = Closure.of(torch.zeros(3, 3, dtype=torch.float64), 0.25, 5.0)
    torch.testing.assert_close(closure.precision(), 4.0 * torch.eye(3, dtype=torch.float64))
