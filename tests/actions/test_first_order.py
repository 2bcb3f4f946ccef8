"""The first order in 1/N against the exact mixture, brute-force importance sampling and plain Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_propkernel import Erf, ReLU, Spectrum
from torch_propkernel.actions import draw_pre_activations, first_order_terms
from torch_propkernel.mixing import ProductGammaMixing, posterior_of_scale

F = torch.float64


def problem(points=4, dimension=6, test=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(points + test, dimension, generator=generator, dtype=F)
    return x / dimension**0.5, torch.randn(points, generator=generator, dtype=F)


def terms(covariance, y, temperature, units):
    size = len(y)
    factor = torch.linalg.cholesky(covariance[:size, :size] + temperature * torch.eye(size, dtype=F))
    return first_order_terms(
        covariance[:size, :size], covariance[:size, size:], covariance.diagonal()[size:], factor, y, units
    )


class TestGaussianUnits:
    def test_is_the_expansion_of_the_exact_mixture(self):
        """Linear networks are scale mixtures: their exact mean, variance and evidence, extrapolated in 1/N."""
        x, y = problem()
        y, temperature = 2 * y, 0.3
        covariance, size = x @ x.T, len(y)
        matrix, cross = covariance[:size, :size], covariance[:size, size:]
        got = terms(covariance, y, temperature, None).gaussian
        spectrum = Spectrum.from_kernel(matrix, y, eigenvectors=True)

        def exact(width):
            law = ProductGammaMixing(torch.tensor([width], dtype=F))
            posterior = posterior_of_scale(spectrum, law, torch.tensor(temperature, dtype=F))
            moments = torch.zeros(2, 3, dtype=F)
            for scale, weight in zip(posterior.scale, posterior.weights, strict=True):
                solved = torch.linalg.solve(scale * matrix + temperature * torch.eye(size, dtype=F), scale * cross)
                mean = solved.T @ y
                variance = scale * covariance.diagonal()[size:] - (solved * scale * cross).sum(0)
                moments += weight * torch.stack([mean, variance + mean**2])
            return torch.cat([moments[0], moments[1] - moments[0] ** 2, posterior.log_evidence.reshape(1)])

        wide = 1e4  # Richardson: the next orders are 1e-4 and 1e-8 of the first
        difference = wide * (exact(wide) - exact(2 * wide)) * 2
        second = 2 * wide * (exact(2 * wide) - exact(4 * wide)) * 2
        expected = 2 * second - difference
        torch.testing.assert_close(torch.cat([got.mean, got.variance, got.log_evidence.reshape(1)]), expected,
                                   rtol=1e-4, atol=1e-6)  # 1e-11 of the mixture's integral times 1e4  # fmt: skip

    def test_sampled_gaussian_units_have_no_fourth_cumulant(self):
        x, y = problem()
        covariance = x @ x.T
        units, _ = draw_pre_activations(covariance, 100_000, seed=3)
        found = terms(covariance, y, 0.5, units)
        for name in ("mean", "variance", "log_evidence"):
            value, error = getattr(found.non_gaussian, name), getattr(found.standard_error, name)
            assert torch.all(value.abs() < 4 * error)
            assert torch.all(error > 0)


@pytest.mark.parametrize("activation", [Erf(), ReLU()], ids=repr)
def test_against_brute_force_importance_sampling(activation):
    """Two points, widths N and 2N: log p(y) and predictions of prior networks, reweighted, extrapolated in 1/N."""
    generator = np.random.default_rng(5)
    x = np.array([[1.0, 0.3], [-0.4, 1.2], [0.7, 0.9]])
    y, temperature = np.array([0.6, -0.4]), 0.5
    covariance_of_h = torch.tensor(x @ x.T)
    diagonal = covariance_of_h.diagonal()
    covariance = activation.dual(diagonal[:, None], covariance_of_h, diagonal[None, :])
    units = activation(draw_pre_activations(covariance_of_h, 400_000, seed=1)[0])
    found = terms(covariance, torch.tensor(y), temperature, units)
    gp_factor = np.linalg.inv(covariance[:2, :2].numpy() + temperature * np.eye(2))
    gp_mean = (covariance[2, :2].numpy() @ gp_factor) @ y
    gp_variance = float(covariance[2, 2]) - covariance[2, :2].numpy() @ gp_factor @ covariance[:2, 2].numpy()
    gp_evidence = -0.5 * (y @ gp_factor @ y - np.linalg.slogdet(gp_factor)[1] + 2 * np.log(2 * np.pi))

    width, count, batches = 20, 30_000, 16
    estimates = []
    for _ in range(batches):  # the readout integrated: f | w is Gaussian with the empirical kernel
        phi = activation(torch.tensor(generator.standard_normal((count, width, 2)) @ x.T)).numpy()
        kernel = np.einsum("cna,cnb->cab", phi, phi) / width
        a = kernel[:, :2, :2] + temperature * np.eye(2)
        solved = np.linalg.solve(a, np.stack([np.tile(y, (count, 1)), kernel[:, :2, 2]], -1))
        log_weight = -0.5 * (solved[:, :, 0] @ y + np.linalg.slogdet(a)[1] + 2 * np.log(2 * np.pi))
        weight = np.exp(log_weight)
        mean = (kernel[:, 2, :2] * solved[:, :, 0]).sum(1)
        variance = kernel[:, 2, 2] - (kernel[:, 2, :2] * solved[:, :, 1]).sum(1)
        total = weight.mean()
        first = (weight * mean).mean() / total
        estimates.append([first, (weight * (variance + mean**2)).mean() / total - first**2, np.log(total)])
    estimates = width * (np.array(estimates) - [gp_mean, gp_variance, gp_evidence])
    measured, error = estimates.mean(0), estimates.std(0) / batches**0.5
    predicted = np.array([float((a + b).squeeze()) for a, b in zip(found.gaussian, found.non_gaussian, strict=True)])
    # the next order is 1/N of the first, relative: a tenth leaves room for a factor of two
    assert np.all(np.abs(measured - predicted) < 4 * error + 0.1 * np.abs(predicted) + 0.01), (measured, predicted)
    assert np.abs(predicted).max() > 20 * error.max()  # the test sees the correction


def test_shapes_and_batches():
    x, y = problem()
    covariance = (x @ x.T).expand(2, 7, 7)
    units = torch.erf(draw_pre_activations(covariance[0], 3000)[0])
    batch = first_order_terms(
        covariance[..., :4, :4],
        covariance[..., :4, 4:],
        covariance.diagonal(dim1=-2, dim2=-1)[..., 4:],
        torch.linalg.cholesky(covariance[..., :4, :4] + torch.eye(4, dtype=F)),
        torch.stack([y, 2 * y]),
        units,
    )
    single = terms(covariance[0], 2 * y, 1.0, units)
    assert batch.non_gaussian.mean.shape == (2, 3) and batch.gaussian.log_evidence.shape == (2,)
    for part in ("gaussian", "non_gaussian", "standard_error"):
        for a, b in zip(getattr(batch, part), getattr(single, part), strict=True):
            torch.testing.assert_close(a[1], b, rtol=1e-10, atol=1e-10)


def test_draws_leave_the_global_generator_alone_and_repeat():
    before = torch.get_rng_state()
    covariance = torch.eye(3, dtype=F)
    first, again = (draw_pre_activations(covariance, 10, seed=4)[0] for _ in range(2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.float(), draw_pre_activations(covariance.float(), 10, seed=4)[0])


def test_singular_covariances_and_a_wide_direction():
    """One direction of rank one, drawn wider: moments of the prior after reweighting."""
    covariance = torch.ones(3, 3, dtype=F)
    h, log_weight = draw_pre_activations(
        covariance, 200_000, direction=torch.tensor([1.0, 0.0, 0.0], dtype=F), spread=torch.tensor(3.0, dtype=F)
    )
    torch.testing.assert_close(h[:, 0], h[:, 2])
    weight = log_weight.exp()
    assert abs(weight.mean() - 1) < 0.01 and abs((weight * h[:, 0] ** 2).mean() - 1) < 0.01  # 3 standard errors
    assert h[:, 0].var() == pytest.approx(3.0, rel=0.02)
