"""The adaptive theory with a bias of the readout: exact linear networks, a sampled one, refits, limits."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from torch_propkernel import Erf, NetworkGP, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import Identity
from torch_propkernel.networks import sample_posterior
from torch_propkernel.theories import Adaptive, Auto, InfiniteWidth, Mixture, SaddlePoint, network_from_model

QUICK = Adaptive(num_units=300, tolerance=0.05)


def network(x, y, activation, width, variance, temperature=0.1):
    bias = gpytorch.kernels.ConstantKernel().double()
    bias.constant = torch.tensor([variance], dtype=torch.float64)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = temperature
    return NetworkGP(x, y, likelihood, RenormalizedNNGPKernel(activation, width).double() + bias).double()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x, points = (torch.randn(size, 4, generator=generator, dtype=torch.float64) for size in (20, 60))
    return x, target(x), points


def target(x):
    return 1.5 * x[:, 0].sign() + 0.3 * x[:, 1] + 1.5


def test_linear_networks_are_exact():
    # The mixture is exact there, with its bias; the theory is off by O(1/N), here 1/40 of what N = infinity is off by.
    generator = torch.Generator().manual_seed(0)
    x, points = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (30, 50))
    model = network(x, x[:, 0].sin() + 1.5, Identity(), 40, 2.0)
    ours, exact = Adaptive(500).fit(model), Mixture().fit(model)
    (mean, variance), (exact_mean, exact_variance) = ours.predict(points), exact.predict(points)
    assert bool(((mean - exact_mean) / exact_variance.sqrt()).abs().max() < 0.05)
    torch.testing.assert_close(variance, exact_variance, rtol=0.01, atol=0)
    torch.testing.assert_close(ours.training_error(), exact.training_error(), rtol=0.005, atol=0)
    assert ours.log_evidence.item() == pytest.approx(exact.log_evidence.item(), abs=0.05)
    assert ours.readout_norm.item() == pytest.approx(exact.readout_norm.item(), rel=0.01)
    left, other = ours.leave_one_out(), exact.leave_one_out()
    assert bool(((left.mean - other.mean) / other.variance.sqrt()).abs().max() < 0.05)
    torch.testing.assert_close(left.variance, other.variance, rtol=0.01, atol=0)


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.SamplingWarning")  # a short run; its error is used
def test_a_sampled_network(data):
    x, y, points = data
    model = network(x, y, Erf(), 8, 2.0)
    measured = sample_posterior(
        network_from_model(model), x, y, 0.1, test_x=points, test_y=target(points), num_samples=250, warmup=150
    ).test_error
    assert float(measured.standard_error) < 0.01 * float(measured.mean)
    fitted, rescaled = (theory.fit(model).error(points, target(points)).mean_total for theory in (QUICK, SaddlePoint()))
    # Without a bias the theory misses a network of this kind by 2.4 %; its noise and the sampler's are 1 % each.
    assert float(fitted) == pytest.approx(float(measured.mean), rel=0.045)
    assert abs(float(rescaled) / float(measured.mean) - 1) > 0.06  # a kernel with a factor


@pytest.mark.parametrize("activation", [Erf(), ReLU()])
def test_wide_networks_are_infinitely_wide_ones(data, activation):
    x, y, points = data
    wide = InfiniteWidth().fit(network(x, y, activation, 1e6, 3.0))
    large = QUICK.fit(network(x, y, activation, 1e6, 3.0))
    for ours, theirs in zip(large.predict(points), wide.predict(points), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # the correction is exact to first order
    left, other = large.leave_one_out(), wide.leave_one_out()
    torch.testing.assert_close(left.mean, other.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(left.variance, other.variance, rtol=1e-3, atol=0)
    assert large.log_evidence.item() == pytest.approx(wide.log_evidence.item(), abs=0.05)
    infinite = QUICK.fit(network(x, y, activation, float("inf"), 3.0))
    torch.testing.assert_close(infinite.predict(points), wide.predict(points), rtol=1e-4, atol=1e-6)


def test_the_posterior_is_that_of_its_kernel_and_mean_function(data):
    """N C + v_b and N [m - C (a - B m)] in the points' own coordinates, conditioned by dense algebra."""
    x, y, points = data
    fitted = QUICK.fit(network(x, y, Erf(), 8, 2.0))
    solution, width = fitted.conditioned.posterior.solution, 8.0
    noise = 0.1 * torch.eye(20, dtype=torch.float64) + 2.0
    values, vectors = torch.linalg.eigh(noise / 0.1)
    root, inverse = ((vectors * values**power) @ vectors.mT for power in (0.5, -0.5))
    closure = solution.posterior
    V, B = root @ closure.matrix(closure.values) @ root, inverse @ closure.precision() @ inverse
    C = torch.linalg.solve(torch.eye(20).double() - V @ B, V)
    torch.testing.assert_close(
        B @ (noise + (width - 1) * C), torch.eye(20).double(), rtol=0, atol=1e-7
    )  # of two solves
    m, a = root @ solution.response.mean, inverse @ solution.response.field
    assert float((noise @ a + (width * m - noise @ B @ m) - y).norm() / y.norm()) < 0.01  # eq. (14)
    shift = width * (m - C @ (a - B @ m))
    A, whole = noise + width * C, width * C + 2.0
    mean = shift + whole @ torch.linalg.solve(A, y - shift)
    covariance = whole - whole @ torch.linalg.solve(A, whole)
    got = fitted.conditioned.predict(x, joint=True)
    # C is that of V, a that of the field, which differ by the last change of V, below 1e-3 or a few times that.
    torch.testing.assert_close(got[0], mean, rtol=0, atol=0.01)
    torch.testing.assert_close(got[1], covariance, rtol=0, atol=1e-4 * float(covariance.diagonal().max()))
    torch.testing.assert_close(fitted.predict(x)[1], covariance.diagonal(), rtol=1e-3, atol=0)  # in single precision
    error = fitted.error(x, y).mean_total.item()
    assert error == pytest.approx(fitted.training_error().item(), rel=0.01)  # as the equation for a is solved


def test_leave_one_out_is_a_refit_without_the_point(data):
    x, y, _ = data
    left = QUICK.fit(network(x, y, Erf(), 8, 2.0)).leave_one_out()
    for i in range(0, 20, 4):
        rows = torch.arange(20) != i
        mean, variance = QUICK.fit(network(x[rows], y[rows], Erf(), 8, 2.0)).predict(x[i : i + 1])
        # In posterior deviations: a first-order step and the noise of two fits, as without a bias.
        assert abs(left.mean[i] - mean[0]) < 0.25 * variance[0].sqrt(), i
        assert 0.75 < left.variance[i] / variance[0] < 1.3, i


def test_no_bias_and_a_free_constant(data):
    x, y, points = data
    plain = network(x, y, Erf(), 8, 1e-12)
    none = NetworkGP(x, y, plain.likelihood, plain.covar_module.kernels[0]).double()
    # Rounding, which acceptances amplify to some Monte Carlo errors of 300 units.
    torch.testing.assert_close(QUICK.fit(plain).predict(points), QUICK.fit(none).predict(points), rtol=0, atol=0.15)
    # A bias of any size takes up a constant.
    first, second = (QUICK.fit(network(x, y + c, Erf(), 8, 1e6)) for c in (0.0, 100.0))
    (mean, variance), (shifted, other) = first.predict(points), second.predict(points)
    torch.testing.assert_close(shifted - 100.0, mean, rtol=0, atol=0.15)
    torch.testing.assert_close(other.mean(), variance.mean(), rtol=0.05, atol=0)


def test_auto(data):
    x, y, points = data
    learned = Auto().fit(network(x, y, Erf(), 8, 2.0))
    assert learned.theory.name == "adaptive" and set(learned.stats["considered"]) == {"saddle", "adaptive"}
    wide = Auto().fit(network(x, y, Erf(), 1e6, 2.0))
    assert wide.theory.name == "saddle" and wide.reliability.reliable is not None
    deep = Auto().fit(network(x, y, ReLU(), [3, 3], 2.0))  # the gated theory has no bias
    assert deep.theory.name == "sampled" and "the gated theory does not apply" in deep.message
    torch.testing.assert_close(deep.predict(x)[0].mean(), y.mean(), rtol=0, atol=0.2)
