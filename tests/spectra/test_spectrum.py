"""Spectrum: the reduction of (K, y) after which everything is O(P) (THEORY.md section 1, spectral form)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import (
    DUALS,
    action_dense,
    brute_force_minimum,
    exact_log_evidence,
    laplace_log_evidence,
    nngp,
)

from torch_propkernel import Spectrum, solve_order_parameters
from torch_propkernel.actions import effective_action, laplace_evidence


@pytest.fixture
def data(rng):
    X, y = rng.normal(size=(20, 6)), rng.normal(size=20)
    return nngp(X, X, DUALS["erf"], (1.0, 1.0)), y


def spectrum_of(K, y, **options):
    return Spectrum.from_kernel(torch.as_tensor(K), torch.as_tensor(y), **options)


def as_float(value) -> float:
    return float(torch.as_tensor(value).reshape(()))


def test_eigenvalues_and_projections(data):
    K, y = data
    spectrum = spectrum_of(K, y)
    k, U = np.linalg.eigh(K)
    assert spectrum.num_data == 20
    assert spectrum.eigenvectors is None
    assert spectrum.eigenvalues.dtype == torch.float64
    np.testing.assert_allclose(spectrum.eigenvalues.numpy(), k, rtol=1e-10)
    # eigenvectors are defined up to a sign; their error is about 1e-16 over the smallest gap (1e-4 here)
    np.testing.assert_allclose(np.abs(spectrum.single.numpy()), np.abs(U.T @ y), atol=1e-10)


def test_eigenvectors_rebuild_the_kernel(data):
    K, y = data
    spectrum = spectrum_of(K, y, eigenvectors=True)
    U, k = spectrum.eigenvectors.numpy(), spectrum.eigenvalues.numpy()
    np.testing.assert_allclose((U * k) @ U.T, K, atol=1e-13)
    np.testing.assert_allclose(U @ spectrum.single.numpy(), y, atol=1e-13)


@pytest.mark.parametrize("q, width", [([0.4], 30), ([2.5, 0.7], [12, 90]), ([1.3, 0.2, 4.0], [7, 30, 300])])
@pytest.mark.parametrize("T", [1e-3, 0.3])
def test_effective_action_is_the_dense_one(data, q, width, T):
    K, y = data
    S = effective_action(spectrum_of(K, y), torch.tensor(q, dtype=torch.float64), width, T)
    widths = [width] if np.isscalar(width) else width
    assert as_float(S) == pytest.approx(action_dense(q, np.prod(q) * K, y, widths, T), rel=1e-10)


def test_effective_action_broadcasts(data):
    K, y = data
    spectrum = spectrum_of(K, y)
    q = torch.tensor([[0.5, 2.0], [1.0, 1.0], [3.0, 0.1]], dtype=torch.float64)
    N = torch.tensor([[10.0, 20.0], [30.0, 5.0], [8.0, 8.0]], dtype=torch.float64)
    T = torch.tensor([0.1, 1.0, 0.01], dtype=torch.float64)
    S = effective_action(spectrum, q, N, T)
    assert S.shape == (3,)
    for i in range(3):
        dense = action_dense(q[i].numpy(), float(q[i].prod()) * K, y, N[i].numpy(), float(T[i]))
        assert as_float(S[i]) == pytest.approx(dense, rel=1e-10)
    table = effective_action(spectrum, q, [10, 20], T[:, None])  # temperatures along a new leading dimension
    assert table.shape == (3, 3)
    dense = action_dense(q[2].numpy(), float(q[2].prod()) * K, y, [10, 20], 1.0)
    assert as_float(table[1, 2]) == pytest.approx(dense, rel=1e-10)


def test_units_of_temperature(data):
    """K -> c K, y -> sqrt(c) y, T -> c T adds (P/N) log c to S and nothing else."""
    K, y = data
    q, c = torch.tensor([0.8], dtype=torch.float64), 1e-6
    small = effective_action(spectrum_of(c * K, math.sqrt(c) * y), q, 15, c * 0.2)
    large = effective_action(spectrum_of(K, y), q, 15, 0.2)
    assert as_float(small - large) == pytest.approx(20 / 15 * math.log(c), rel=1e-10)


def test_action_is_differentiable_in_q(data):
    K, y = data
    spectrum = spectrum_of(K, y)
    q = torch.tensor([1.7, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: effective_action(spectrum, v, [10, 25], 0.1), (q,))


def test_batches_of_kernels(rng):
    X, y = rng.normal(size=(2, 3, 12, 5)), rng.normal(size=(2, 3, 12))
    K = np.array([[nngp(x, x, DUALS["relu"], (1.0, 2.0)) for x in row] for row in X])
    spectrum = spectrum_of(K, y)
    assert spectrum.eigenvalues.shape == (2, 3, 12)
    assert spectrum.single.shape == (2, 3, 12)
    assert spectrum.num_data == 12
    S = effective_action(spectrum, torch.full((2, 3, 1), 0.7, dtype=torch.float64), 9, 0.2)
    assert S.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            dense = action_dense([0.7], 0.7 * K[i, j], y[i, j], [9], 0.2)
            assert as_float(S[i, j]) == pytest.approx(dense, rel=1e-10)


def test_one_reduction_serves_every_width_and_temperature(data):
    K, y = data
    spectrum = spectrum_of(K, y)
    k, U = np.linalg.eigh(K)
    for width in (3, 20, [50, 9], [1000, 10, 40]):
        for T in (1e-3, 0.1, 10.0):
            widths = [width] if np.isscalar(width) else width
            best = brute_force_minimum(k, U.T @ y, widths, T)
            solution = solve_order_parameters(spectrum, width=width, temperature=T)
            np.testing.assert_allclose(solution.order_parameter.numpy(), best.order_parameter, rtol=1e-9)
            assert as_float(solution.action) == pytest.approx(best.action, rel=1e-10)


def test_solution_is_stationary(data):
    K, y = data
    spectrum = spectrum_of(K, y)
    u = (
        solve_order_parameters(spectrum, width=[12, 30], temperature=0.05)
        .order_parameter.detach()
        .log()
        .requires_grad_()
    )
    (slope,) = torch.autograd.grad(effective_action(spectrum, u.exp(), [12, 30], 0.05), u)
    assert slope.abs().max() < 1e-10


@pytest.mark.parametrize("width", [5, 40, 3000])
@pytest.mark.parametrize("T", [1e-3, 0.1])
def test_log_evidence_is_the_laplace_formula(data, width, T):
    K, y = data
    k, U = np.linalg.eigh(K)
    value = as_float(laplace_evidence(spectrum_of(K, y), width, T))
    assert value == pytest.approx(laplace_log_evidence(k, U.T @ y, width, T), rel=1e-10)


def test_log_evidence_approaches_the_exact_one(data):
    K, y = data
    k, U = np.linalg.eigh(K)
    for width in (50, 200, 800):
        gap = as_float(laplace_evidence(spectrum_of(K, y), width, 0.1)) - exact_log_evidence(k, U.T @ y, width, 0.1)
        assert abs(gap) < 2 / width  # the Laplace formula is O(1/N) off, with a coefficient below one


def test_singular_kernels(rng):
    features, y = rng.normal(size=(15, 4)), rng.normal(size=15)
    K = features @ features.T
    k, U = np.linalg.eigh(K)
    k[:11] = 0.0
    best = brute_force_minimum(k, U.T @ y, [6], 0.01)
    solution = solve_order_parameters(spectrum_of(K, y), width=6, temperature=0.01)
    # rounding of the zero eigenvalues (1e-15) over T
    np.testing.assert_allclose(solution.order_parameter.numpy(), best.order_parameter, rtol=1e-8)


def test_one_point():
    spectrum = spectrum_of(np.array([[2.0]]), np.array([1.5]))
    assert spectrum.num_data == 1
    S = as_float(effective_action(spectrum, torch.tensor([0.5], dtype=torch.float64), 4, 0.1))
    assert S == pytest.approx(0.5 - math.log(0.5) + (math.log(1.1) + 2.25 / 1.1) / 4, rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_targets_and_kernels_that_are_not_finite(data, bad):
    K, y = data
    wrong = y.copy()
    wrong[3] = bad
    with pytest.raises((ValueError, RuntimeError)):
        spectrum_of(K, wrong)
    wrong = K.copy()
    wrong[3, 4] = wrong[4, 3] = bad
    with pytest.raises((ValueError, RuntimeError)):
        spectrum_of(wrong, y)


def test_refuses_shapes_that_do_not_match(data):
    K, y = data
    with pytest.raises((ValueError, RuntimeError)):
        spectrum_of(K, y[:-1])
    with pytest.raises((ValueError, RuntimeError)):
        spectrum_of(K[:, :-1], y)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_reduction_without_the_exported_routine(monkeypatch, rng, size):
    """If scipy does not export LAPACK's bidiagonal iteration, eigenvectors of the tridiagonal matrix take its place."""
    from torch_propkernel.spectra import lapack as _lapack

    x = rng.normal(size=(size, size))
    K, y = torch.as_tensor(x @ x.T), torch.as_tensor(rng.normal(size=size))
    usual = Spectrum.from_kernel(K, y)
    assert _lapack._dbdsqr() is not None
    monkeypatch.setattr(_lapack, "_dbdsqr", lambda: None)
    fallback = Spectrum.from_kernel(K, y)
    vectors = Spectrum.from_kernel(K, y, eigenvectors=True)
    for other in (fallback, vectors):
        assert torch.allclose(usual.eigenvalues, other.eigenvalues, rtol=1e-9, atol=1e-12)
        q, q_other = (
            solve_order_parameters(s, width=[7.0, 20.0], temperature=0.1).order_parameter for s in (usual, other)
        )
        assert torch.allclose(q, q_other, rtol=1e-11)
