"""GPyTorch's own kernel test case, unmodified, for every kernel of the package."""

from __future__ import annotations

import unittest

import pytest
import torch
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase

from torch_propkernel import ArcCosineKernel, ArcSineKernel, Erf, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import GELU, Tanh
from torch_propkernel.kernels import BlockRenormalizedKernel

# The host draws unscaled random numbers: some of its few rows are tiny, some have variances that need more quadrature.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.InputScaleWarning"),
    pytest.mark.filterwarnings("ignore::torch_propkernel.activations.QuadratureWarning"),
]


def _without_ard(keywords):
    """Blocks have no relevances of their own; the host passes None or a number."""
    return {name: value for name, value in keywords.items() if name != "ard_num_dims"}


FACTORIES = {
    "ArcSine": lambda **kw: ArcSineKernel(bias_variance=0.1, **kw),
    "ArcCosineOrder0": lambda **kw: ArcCosineKernel(order=0, **kw),
    "ArcCosineOrder1": lambda **kw: ArcCosineKernel(order=1, bias_variance=0.1, **kw),
    "ArcCosineOrder2": lambda **kw: ArcCosineKernel(order=2, **kw),
    "NNGPDeepReLU": lambda **kw: NNGPKernel(ReLU(), depth=3, bias_variance=0.2, **kw),
    "NNGPGELU": lambda **kw: NNGPKernel(GELU(), depth=2, **kw),
    "NNGPTanh": lambda **kw: NNGPKernel(Tanh(), bias_variance=0.1, **kw),
    "RenormalizedOneLayer": lambda **kw: RenormalizedNNGPKernel(Erf(), 50, **kw),
    "RenormalizedOuter": lambda **kw: RenormalizedNNGPKernel(Erf(), [50, 20], bias_variance=[0.1, 0.0], **kw),
    "RenormalizedNested": lambda **kw: RenormalizedNNGPKernel(Erf(), [50, 20], "nested", bias_variance=0.1, **kw),
    "RenormalizedLinearPart": lambda **kw: RenormalizedNNGPKernel(ReLU(), [50, 20], "linear_part", **kw),
    "RenormalizedBlocks": lambda **kw: BlockRenormalizedKernel(
        [[NNGPKernel(Erf(), bias_variance=0.1), None], [None, NNGPKernel(ReLU())]], 50, **_without_ard(kw)
    ),
    "RenormalizedInfinite": lambda **kw: RenormalizedNNGPKernel(ReLU(), [float("inf"), 20], **kw),
}


def _case(name: str, factory) -> type:
    def create_kernel_no_ard(self, **kwargs):
        return factory(**kwargs)

    def create_kernel_ard(self, num_dims, **kwargs):
        return factory(ard_num_dims=num_dims, **kwargs)

    methods = {
        "create_kernel_no_ard": create_kernel_no_ard,
        "create_kernel_ard": create_kernel_ard,
        "setUp": lambda self: torch.manual_seed(0),
    }
    return type(f"Test{name}", (BaseKernelTestCase, unittest.TestCase), methods)


for _name, _factory in FACTORIES.items():
    globals()[f"Test{_name}"] = _case(_name, _factory)
