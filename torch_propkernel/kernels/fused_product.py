"""Products with a network's kernel matrix whose entries never leave the registers of an accelerator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import cast

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from ..activations import Erf, LeakyReLU
from .kernel_matrix import layer_variances, matrix_parameters
from .network_covariance import network_covariance
from .nngp_kernel import NNGPKernel
from .recursion import Layer


class FusedProduct:
    r"""The product K(X1, X2) V of a network's kernel in one pass of a GPU, without a tile of K in its memory.

    .. math:: (K V)_{ic} = \sum_j k(x_i, x_j)\, V_{jc}

    A block of rows computes x_i . x_j, all layers of the recursion and its share of the sum where they are, in
    registers. Entries are float32, as those of tiles of this dtype: right to 1e-6 of the largest one. Sums over blocks
    of columns keep what rounding takes off (compensated summation), so that the result, float64, does not lose digits
    with the number of points. The order of all sums is fixed.

    Dots are IEEE float32 products at ``torch.set_float32_matmul_precision("highest")``, torch's default; "high" asks
    for three TensorFloat-32 products (about as accurate), "medium" for one (1e-3).

    Not symmetric: a product with K costs P^2 entries, twice those of :class:`KernelOperator`, and needs no atomics. For
    networks with the activation erf, relu or leaky relu, any depth, bias variances and ARD weights, also inside of
    ScaleKernels or with a constant added. Nothing is recorded for differentiation; the product is linear in V, and its
    transpose is the product of the points exchanged.

    Needs Triton, and CUDA or Triton's interpreter (the environment variable ``TRITON_INTERPRET=1`` before the first
    product: for tests, a thousand times slower).

    Cost: (2 d + 2 c + about 30 L) n m flops; with more than 128 columns once more for every 128. Memory: 512 kB a
    column beside the result at most.

    Args:
        covar_module: The kernel, with the order parameters that it has.

    Raises:
        ValueError: Another kernel, or what :meth:`missing` says.

    Example:
        >>> import torch
        >>> from torch_propkernel import NNGPKernel
        >>> from torch_propkernel.kernels import FusedProduct
        >>> FusedProduct.missing(NNGPKernel("sin"), torch.device("cuda"))
        'the activation erf, relu or leaky relu, got Sin()'
    """

    def __init__(self, covar_module: Kernel) -> None:
        """Take the kernel apart."""
        missing = self.missing(covar_module)
        if missing is not None:
            raise ValueError(f"covar_module: a fused product expected {missing}")
        kernel, self.scale, self.bias_variance, self.columns = network_covariance(covar_module)
        self.kernel = cast("NNGPKernel", kernel)
        self.layers, activation = cast("Sequence[Layer]", self.kernel.effective_layers()), self.kernel.activation
        self.slope = activation.negative_slope if isinstance(activation, LeakyReLU) else None

    @staticmethod
    def missing(covar_module: Kernel, device: torch.device | None = None) -> str | None:
        """Return what is expected of a kernel (and a device), and what there is instead; None if nothing is missing."""
        try:
            kernel, scale, bias_variance, _ = network_covariance(covar_module)
        except TypeError:
            return f"the kernel of one network, got {type(covar_module).__name__}"
        if not isinstance(kernel, NNGPKernel) or (layers := kernel.effective_layers()) is None:
            return f"the kernel of a fully connected network of infinite width, got {type(kernel).__name__}"
        if type(kernel.activation) is not Erf and not isinstance(kernel.activation, LeakyReLU):
            return f"the activation erf, relu or leaky relu, got {kernel.activation!r}"
        if any(layer.weight_variance.dim() > 2 for layer in layers) or scale.dim() or bias_variance.dim():
            return f"no batch dimensions, got {tuple(kernel.batch_shape)}"
        if device is None:
            return None
        if find_spec("triton") is None:
            return "Triton, which is not installed (pip install triton)"
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"a CUDA device, got {device.type}"
        return None

    @torch.no_grad()
    def __call__(self, x1: Tensor, x2: Tensor, vectors: Tensor) -> Tensor:
        """Return K(X1, X2) V in float64, ``n x c``, for points ``n x d`` and ``m x d`` and V, ``m x c``.

        Raises:
            ValueError: No Triton, or tensors on another device.
        """
        missing = self.missing(self.kernel, x1.device)
        if missing is not None:
            raise ValueError(f"x1: a fused product expected {missing}")
        from .triton_product import network_product

        read = self._read(x1)
        inputs = self.kernel.inputs(read, read if x1 is x2 else self._read(x2))
        xx, yy = inputs.squared_norms()
        rows, columns = (torch.stack(layer_variances(v, inputs, self.layers)[:-1]) for v in (xx.mT, yy))
        parameters = [p if p is not None else xx.new_zeros(()) for p in matrix_parameters(inputs, self.layers)]
        first, others = parameters[:2], parameters[2:]
        depth = len(self.layers)
        ordered = [*first, *(v for pair in zip(others[:depth], others[depth:], strict=True) for v in pair)]
        product = network_product(
            _single(inputs.x1),
            _single(inputs.x2),
            _single(rows.flatten(1)),
            _single(columns.flatten(1)),
            _single(torch.stack([p.reshape(()) for p in ordered])),
            _single(vectors),
            self.slope,
        )
        return self.scale * product + self.bias_variance * vectors.double().sum(0)

    def _read(self, x: Tensor) -> Tensor:
        return x if self.columns is None else x.index_select(-1, self.columns)


def _single(value: Tensor) -> Tensor:
    return value.detach().float().contiguous()
