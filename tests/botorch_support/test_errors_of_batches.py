"""Errors of BoTorch models with several outputs: each output has the units of its own Standardize."""

import pytest
import torch
from botorch.models import SingleTaskGP

from torch_propkernel import RenormalizedNNGPKernel, generalization_error, leave_one_out_error

DOUBLE = dict(dtype=torch.float64)


def model_of(x, y):
    covariance = RenormalizedNNGPKernel("relu", 30, bias_variance=1.0, batch_shape=torch.Size([2] * (y.shape[-1] > 1)))
    return SingleTaskGP(x, y, covar_module=covariance.double())


@pytest.mark.parametrize("points", [2, 7])  # two points for two outputs broadcast to something wrong silently
def test_each_output_is_a_model_of_its_own(points):
    x = torch.rand(9, 3, generator=torch.Generator().manual_seed(0), **DOUBLE)
    y = torch.stack([torch.sin(3 * x[:, 0]), 100 + 40 * x[:, 1] ** 2], -1)
    both = model_of(x, y)
    test_x, test_y = x[:points] + 0.01, y[:points]
    error = generalization_error(both, test_x, test_y.T)
    left_out = leave_one_out_error(both)
    for output in range(2):
        alone = model_of(x, y[:, output : output + 1])
        expected = generalization_error(alone, test_x, test_y[:, output])
        torch.testing.assert_close(error.total[output], expected.total, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(error.mean[output], expected.mean, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(left_out.total[output], leave_one_out_error(alone).total, rtol=1e-8, atol=1e-10)
