"""Predictions from the reduction that solved are those of a Cholesky factorization, and cost none."""

from __future__ import annotations

import warnings

import gpytorch
import pytest
import torch

from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel, fit_order_parameters, generalization_error
from torch_propkernel.exceptions import NotPositiveDefiniteError
from torch_propkernel.inference import DenseConditioned, KernelNode, Problem, SpectralConditioned
from torch_propkernel.inference.tridiagonal_conditioned import TridiagonalConditioned
from torch_propkernel.spectra import Tridiagonal
from torch_propkernel.theories import SaddlePoint

DOUBLE = torch.float64


def data(size, dimension=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, dimension, generator=generator, dtype=DOUBLE)
    return x, x[:, 0].sin() + 0.1 * torch.randn(size, generator=generator, dtype=DOUBLE)


def model_of(kind, size=30):
    x, y = data(size)
    kernel, likelihood = RenormalizedNNGPKernel(Erf(), [20, 30]), gpytorch.likelihoods.GaussianLikelihood()
    if kind == "fixed term":
        kernel = kernel + gpytorch.kernels.RBFKernel()
    elif kind == "noise of each point":
        noise = 0.05 + 0.1 * torch.rand(size, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
        likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)
    elif kind == "zero and equal rows":
        x[3], x[4] = 0.0, x[5]
    return NetworkGP(x, y, likelihood.double(), kernel.double()).double()


KINDS = ("plain", "fixed term", "noise of each point", "zero and equal rows")


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_that_of_a_cholesky_factorization(kind):
    model, (test_x, test_y) = model_of(kind), data(7, seed=1)
    with torch.no_grad():
        problem = Problem.frozen(model)
        problem.spectrum()
        q = problem.at_scale(1.7)
        one = problem.conditioned(q)
        two = DenseConditioned(Problem.frozen(model), [KernelNode(Problem.frozen(model), q)])
        assert isinstance(one, TridiagonalConditioned)
        for joint in (False, True):
            for a, b in zip(one.predict(test_x, joint), two.predict(test_x, joint), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)  # condition numbers of about 100
        torch.testing.assert_close(one.log_likelihoods(), two.log_likelihoods(), rtol=1e-11, atol=0)
        torch.testing.assert_close(one.training_error(), two.training_error(), rtol=1e-11, atol=0)
        for first, second in (
            (one.leave_one_out(), two.leave_one_out()),
            (one.error(test_x, test_y, chunk_size=3), two.error(test_x, test_y)),
        ):
            for name in ("mean", "bias", "variance", "log_density"):
                # A variance is the small difference of two terms.
                torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-10, atol=1e-11)


def test_mixtures_are_those_of_eigenvectors():
    model, (test_x, _) = model_of("fixed term"), data(6, seed=1)
    with torch.no_grad():
        problem = Problem.frozen(model)
        scale, weights = torch.tensor([0.5, 1.0, 4.0], dtype=DOUBLE), torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE).log()
        one = problem.conditioned_at_scales(scale, weights)
        assert isinstance(one, TridiagonalConditioned)
        two = SpectralConditioned(problem, scale, weights)
        for a, b in zip(one.predict(test_x, True), two.predict(test_x, True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
        a, b = one.leave_one_out(), two.leave_one_out()
        torch.testing.assert_close(a.log_density, b.log_density, rtol=1e-10, atol=1e-11)


def test_one_call_factorizes_once(monkeypatch):
    """Kernel, order parameter, finite and infinite width: no Cholesky factorization or eigendecomposition of P rows."""
    model, (test_x, test_y) = model_of("plain", 220), data(9, seed=1)
    sizes = []
    for name in ("cholesky", "cholesky_ex", "eigh", "eigvalsh"):
        original = getattr(torch.linalg, name)
        monkeypatch.setattr(
            torch.linalg, name, lambda a, *r, f=original, **k: sizes.append(a.shape[-1]) or f(a, *r, **k)
        )
    error = generalization_error(model, test_x, test_y, fit=True)
    assert error.infinite_width is not None and 220 not in sizes
    refit = fit_order_parameters(model, warn=False)
    again = generalization_error(model, test_x, test_y)  # by Cholesky factorizations
    assert 220 in sizes
    torch.testing.assert_close(refit.order_parameter, error.solution.order_parameter, rtol=1e-12, atol=0)
    torch.testing.assert_close(error.mean, again.mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(error.infinite_width.variance, again.infinite_width.variance, rtol=1e-11, atol=1e-12)


def test_gradients_with_respect_to_test_points_and_batches_of_them():
    fitted = SaddlePoint().fit(model_of("plain"))
    assert isinstance(fitted.conditioned, TridiagonalConditioned)
    x = data(4, seed=3)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda v: fitted.distribution(v, joint=True).covariance_matrix, x)
    batch = torch.stack([data(4, seed=s)[0] for s in (3, 4)])
    mean, variance = fitted.conditioned.predict(batch)
    for i in range(2):
        one = fitted.conditioned.predict(batch[i])
        torch.testing.assert_close(mean[i], one[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(variance[i], one[1], rtol=1e-11, atol=1e-13)


def _refuse(*_):
    raise NotPositiveDefiniteError("a pivot below zero")


def test_a_temperature_below_rounding_takes_jitter_and_says_so(monkeypatch):
    model = model_of("zero and equal rows")
    model.likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    model.double().likelihood.noise = 1e-30
    with torch.no_grad():
        problem = Problem.frozen(model)
        problem.spectrum()
        # Rounding decides whether the tridiagonal matrix has pivots above zero: here it does not.
        monkeypatch.setattr(Tridiagonal, "solve", _refuse)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            conditioned = problem.conditioned(problem.at_scale(1.0))
        assert isinstance(conditioned, DenseConditioned)
        # Rounding also decides whether the singular matrix has a factor as it is.
        failed = bool(torch.linalg.cholesky_ex(problem.unit_covariance + 1e-30 * torch.eye(problem.num_data)).info)
        assert failed == any("added jitter" in str(warning.message) for warning in said)


def test_batches_of_models_keep_factorizations_of_their_own():
    x = torch.stack([data(12, seed=s)[0] for s in (0, 1)])
    y = torch.stack([data(12, seed=s)[1] for s in (0, 1)])
    with torch.no_grad():
        likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=torch.Size([2]))
        problem = Problem.frozen(NetworkGP(x, y, likelihood, RenormalizedNNGPKernel(Erf(), 20)).double())
        assert problem.spectrum().batch_shape == (2,)
        assert isinstance(problem.conditioned(problem.at_scale(1.0)), DenseConditioned)
        assert isinstance(problem.conditioned_at_scales(torch.ones(2, 1)), SpectralConditioned)
