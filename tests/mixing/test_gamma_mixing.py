"""One hidden layer: Gamma(N/2, rate N/2)."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from torch_propkernel.mixing import GammaMixing


@pytest.mark.parametrize("width", [0.5, 2.0, 30.0, 1000.0])
def test_density_is_that_of_scipy(width):
    law = GammaMixing(torch.tensor(width, dtype=torch.float64))
    r = torch.tensor([1e-8, 0.1, 0.7, 1.0, 1.3, 5.0], dtype=torch.float64)
    expected = stats.gamma(width / 2, scale=2 / width).logpdf(r.numpy())
    assert np.allclose(law.log_prob(r), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1e6, 1e10, 1e15])
def test_nothing_cancels_at_large_widths(width):
    """In units of its standard deviation, from the series in 1/N to the order that is left at these widths."""
    law, sigma = GammaMixing(torch.tensor(width, dtype=torch.float64)), (2 / width) ** 0.5
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    series = -x.square() / 2 - sigma * x**3 / 6 - sigma**2 * x**4 / 24 - sigma**3 * x**5 / 120 - sigma**2 / 12
    expected = series - 0.5 * np.log(2 * np.pi) - np.log(sigma)
    # The next term of the series is sigma^4 x^6 / 720: 1e-10 at a million units and 5 sigma.
    assert torch.allclose(law.log_density(sigma * x), expected, rtol=1e-10, atol=0)


def test_interval_against_exact_quantiles():
    for width in (0.5, 4.0, 200.0):
        lower, upper = (float(v) for v in GammaMixing(torch.tensor(width, dtype=torch.float64)).log_interval(1e-12))
        exact = stats.gamma(width / 2, scale=2 / width)
        assert exact.cdf(np.exp(lower)) + exact.sf(np.exp(upper)) < 1e-12
        assert lower > 1.3 * np.log(special.gammaincinv(width / 2, 1e-13) * 2 / width)


def test_width_is_data():
    width = torch.tensor(3.0, requires_grad=True)
    assert not GammaMixing(width).log_density(torch.zeros(())).requires_grad
