"""Kernels of infinitely wide networks and their finite-width renormalizations."""

from .arc_kernels import ArcCosineKernel, ArcSineKernel
from .block_kernel import BlockKernel, KernelBlocks
from .block_renormalized_kernel import BlockRenormalizedKernel
from .compositions import COMPOSITIONS, Composition, LinearPart, Nested, Outer
from .convolutional_nngp_kernel import ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel
from .fused_product import FusedProduct
from .multitask_renormalized_kernel import MultitaskRenormalizedKernel
from .nngp_kernel import NNGPKernel
from .patches import Patches
from .renormalized_nngp_kernel import RenormalizedNNGPKernel
from .transfer_kernel import TransferKernel

__all__ = [
    "COMPOSITIONS",
    "ArcCosineKernel",
    "ArcSineKernel",
    "BlockKernel",
    "BlockRenormalizedKernel",
    "Composition",
    "ConvolutionalNNGPKernel",
    "ConvolutionalRenormalizedKernel",
    "FusedProduct",
    "KernelBlocks",
    "LinearPart",
    "MultitaskRenormalizedKernel",
    "NNGPKernel",
    "Nested",
    "Outer",
    "Patches",
    "RenormalizedNNGPKernel",
    "TransferKernel",
]
