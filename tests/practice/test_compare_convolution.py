"""The comparison in one call for convolutional networks."""

from __future__ import annotations

import gpytorch
import pytest
import torch

from torch_propkernel import NetworkGP
from torch_propkernel.kernels import ConvolutionalRenormalizedKernel
from torch_propkernel.practice import compare_with_network

pytestmark = pytest.mark.usefixtures("in_double_precision")


@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_a_linear_network_is_where_the_matrix_says(readout):
    """The saddle is exact up to 1/N = 3 % of the readout's norm; infinite width is not."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 6, generator=generator)
    y = 3.0 * (x[:, 0] + x[:, 3] + 0.3 * torch.randn(40, generator=generator))
    kernel = ConvolutionalRenormalizedKernel("identity", 30, (1, 6), 3, readout=readout)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.3
    model = NetworkGP(x[:20], y[:20], likelihood, kernel)
    found = compare_with_network(model, x[20:], y[20:], num_samples=600, warmup=200)
    assert sorted(found.fitted) == ["free_scale", "infinite_width", "saddle"] and "mixture" in found.skipped
    for quantity in found.measured:
        assert abs(found.error("saddle", quantity)) < 0.03, quantity
    assert abs(found.error("infinite_width", "order_parameter")) > 0.1
