"""The comparison in one call for convolutional networks."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP
from torch_propkernel.kernels import ConvolutionalRenormalizedKernel
from torch_propkernel.practice import compare_with_network

pytestmark = pytest.mark.usefixtures("in_double_precision")


@pytest.mark.parametrize(
    ("width", "geometry"),
    [
        (30, {"kernel_size": 3}),
        (30, {"kernel_size": 3, "readout": "pooled"}),
        ([40, 40], {"kernel_size": [(3,), (2,)], "stride": [3, 1], "padding": [0, 1]}),
    ],
)
def test_a_linear_network_is_where_the_matrices_say(width, geometry):
    """The saddle is exact up to 1/N, 3 % of 30 channels; infinite width is not."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 6, generator=generator)
    y = 3.0 * (x[:, 0] + x[:, 3] + 0.3 * torch.randn(40, generator=generator))
    kernel = ConvolutionalRenormalizedKernel("identity", width, (1, 6), **geometry)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.3
    model = NetworkGP(x[:20], y[:20], likelihood, kernel)
    draws = 600 if isinstance(width, int) else 250
    found = compare_with_network(model, x[20:], y[20:], num_samples=draws, warmup=100)
    assert sorted(found.fitted) == ["free_scale", "infinite_width", "saddle"] and "mixture" in found.skipped
    for quantity in found.measured:
        assert abs(found.error("saddle", quantity)) < 0.03, quantity
    assert abs(found.error("infinite_width", "order_parameter")) > 0.1
