"""Kernels of infinitely wide networks and their finite-width renormalizations."""

from .arc_kernels import ArcCosineKernel, ArcSineKernel
from .compositions import COMPOSITIONS, Composition, LinearPart, Nested, Outer
from .multitask_renormalized_kernel import MultitaskRenormalizedKernel
from .nngp_kernel import NNGPKernel
from .renormalized_nngp_kernel import RenormalizedNNGPKernel

__all__ = [
    "COMPOSITIONS",
    "ArcCosineKernel",
    "ArcSineKernel",
    "Composition",
    "LinearPart",
    "MultitaskRenormalizedKernel",
    "NNGPKernel",
    "Nested",
    "Outer",
    "RenormalizedNNGPKernel",
]
