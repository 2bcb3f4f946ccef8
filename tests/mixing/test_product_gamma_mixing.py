"""Several layers: the density of a product of gamma variables, four ways."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from torch_propkernel.mixing import GammaMixing, ProductGammaMixing


def law_of(*widths):
    return ProductGammaMixing(torch.tensor(widths, dtype=torch.float64))


@pytest.mark.parametrize("width", [0.5, 3.0, 60.0, 61.0, 1e4, 1e9, 1e15])
def test_one_layer_is_the_gamma_law_also_in_the_tails(width):
    law, exact = law_of(width), GammaMixing(torch.tensor(width, dtype=torch.float64))
    lower, upper = exact.log_interval(1e-100)
    u = lower + (upper - lower) * torch.linspace(0, 1, 41, dtype=torch.float64)
    # 1e-10 in the density is 1e-10 in its logarithm.
    assert torch.allclose(law.log_density(u), exact.log_density(u), rtol=0, atol=1e-11)


@pytest.mark.parametrize("widths", [(0.5, 0.5), (3.0, 40.0), (50.0, 50.0), (2.0, 300.0)])
def test_two_layers_are_a_bessel_function(widths):
    """p(u) = 2 z^((a + b)/2) K_{a-b}(2 sqrt z) / (Gamma(a) Gamma(b)), z = a b e^u, a = N_1/2, b = N_2/2."""
    law = law_of(*widths)
    a, b = (mpmath.mpf(n) / 2 for n in widths)
    lower, upper = (float(v) for v in law.log_interval(1e-60))
    with mpmath.workdps(40):
        for u in np.linspace(lower, upper, 25):
            z = a * b * mpmath.exp(mpmath.mpf(float(u)))
            bessel = mpmath.besselk(a - b, 2 * mpmath.sqrt(z))
            exact = mpmath.log(2 * bessel) + (a + b) / 2 * mpmath.log(z) - mpmath.loggamma(a) - mpmath.loggamma(b)
            assert abs(float(law.log_density(torch.tensor(u))) - float(exact)) < 1e-11


def test_two_layers_against_scipy():
    u = np.linspace(-3, 1.5, 10)
    z = 10.0 * 4.0 * np.exp(u)
    exact = np.log(2 * special.kv(6, 2 * np.sqrt(z))) + 7 * np.log(z) - special.gammaln(10) - special.gammaln(4)
    assert np.allclose(law_of(20.0, 8.0).log_density(torch.from_numpy(u)), exact, rtol=0, atol=1e-11)


def test_three_layers_by_convolution():
    """p(u) = double integral of the layers' densities over u_1 and u_2."""
    layers = [stats.loggamma(n / 2, loc=-np.log(n / 2)) for n in (3.0, 8.0, 20.0)]
    grid = np.linspace(-40, 5, 4001)
    step = grid[1] - grid[0]
    pair = lambda v: np.sum(layers[0].pdf(grid) * layers[1].pdf(v - grid)) * step  # noqa: E731
    for u in (-12.0, -2.0, 0.125, 2.5):
        exact = integrate.trapezoid([pair(u - w) * layers[2].pdf(w) for w in grid[::4]], dx=4 * step)
        # scipy's densities are good to 1e-12 and the coarser grid of the outer integral to 1e-11
        assert abs(float(law_of(3.0, 8.0, 20.0).log_density(torch.tensor(u).double())) - np.log(exact)) < 1e-10


def test_six_layers_are_meijers_function():
    halves = [1.0, 2.5, 5.0, 10.0, 25.5, 50.0]
    law = law_of(*(2 * a for a in halves))
    for u in (-6.0, -0.5, 1.0):
        with mpmath.workdps(30):
            z = mpmath.exp(u) * mpmath.fprod(halves)
            density = mpmath.meijerg([[], []], [halves, []], z) / mpmath.fprod(mpmath.gamma(a) for a in halves)
        assert abs(float(law.log_density(torch.tensor(u).double())) - float(mpmath.log(density))) < 1e-11


def test_six_unequal_layers_by_monte_carlo():
    """Given five of the layers, the density of u is the sixth's: the average of it over draws is unbiased."""
    widths = (2.0, 5.0, 10.0, 50.0, 300.0, 7.0)
    logs = torch.log(law_of(*widths[:-1]).sample((200_000,), torch.Generator().manual_seed(0)))
    last = GammaMixing(torch.tensor(widths[-1], dtype=torch.float64))
    for u in (-4.0, -0.5, 1.0):
        values = last.log_density(u - logs).exp()
        error = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean() - law_of(*widths).log_density(torch.tensor(u)).exp())) < 4 * error


def test_order_of_layers_and_infinite_layers_do_not_matter():
    u = torch.linspace(-5, 2, 9, dtype=torch.float64)
    expected = law_of(3.0, 80.0, 11.0).log_density(u)
    assert torch.allclose(law_of(80.0, 3.0, 11.0).log_density(u), expected, atol=1e-12, rtol=0)
    assert torch.allclose(law_of(80.0, 3.0, torch.inf, 11.0).log_density(u), expected, atol=1e-12, rtol=0)


def test_batches_are_the_laws_one_by_one():
    widths = torch.tensor([[[2.0, 9.0], [1e6, 5.0]], [[30.0, torch.inf], [7.0, 7.0]]], dtype=torch.float64)
    law, u = ProductGammaMixing(widths), torch.randn(5, 1, 2, dtype=torch.float64)
    together = law.log_density(u)
    assert law.batch_shape == (2, 2) and together.shape == (5, 2, 2)
    for i in range(2):
        for j in range(2):
            alone = ProductGammaMixing(widths[i, j])
            assert torch.allclose(alone.log_density(u[:, 0, j]), together[:, i, j], atol=1e-12, rtol=0)
            assert torch.allclose(alone.log_interval()[0], law.log_interval()[0][i, j], rtol=1e-12)


def test_far_out_it_stays_finite_and_ordered():
    for widths in ((10.0,), (1e6, 3.0), (1e15, 1e15), (0.5, 0.7, 9.0)):
        values = law_of(*widths).log_density(torch.tensor([-3000.0, -1000, -100, 0, 20, 100, 1000]).double())
        assert (
            not torch.isnan(values).any()
            and bool((values[:4].diff() > 0).all())
            and bool((values[4:].diff() < 0).all())
        )
    ends = law_of(4.0, 5.0).log_density(torch.tensor([-torch.inf, torch.inf, torch.nan]))
    assert ends[0] == ends[1] == -torch.inf and torch.isnan(ends[2])


def test_deep_network_approaches_the_log_normal_law():
    """Depth and width grow at fixed c = L/N: log r -> N(-c, 2c), with corrections of order 1/N."""
    from torch_propkernel.mixing import LogNormalMixing

    u = torch.linspace(-1.5, 1, 6, dtype=torch.float64)
    limit = LogNormalMixing(torch.tensor(0.25, dtype=torch.float64)).log_density(u)
    errors = [
        float((ProductGammaMixing([float(n)] * (n // 4)).log_density(u) - limit).abs().max()) for n in (40, 80, 160)
    ]
    assert errors[2] < 0.02 and errors[0] / errors[1] > 1.8 and errors[1] / errors[2] > 1.8
