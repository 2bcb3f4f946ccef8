"""Products with a network's kernel matrix whose entries never leave the registers of an accelerator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from ..activations import Erf, LeakyReLU
from ..numerics.first_derivatives import first_derivatives_only
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
    ScaleKernels or with a constant added.

    First derivatives are those of autograd, in V, in the points, and in the hyperparameters of everything around. For
    an upstream gradient G the backward pass computes K(X2, X1) G, and for the rest each entry again, with the weight
    :math:`\sum_c G_{ic} V_{jc}`, back through its layers in registers. It keeps nothing but its arguments in float32.
    Where X1 is X2 the derivatives of diagonal entries are those of k(x, x); of relu's at other points that coincide,
    rounding moves the angle by about 1e-3, as in float32 tiles.

    Needs Triton, and CUDA or Triton's interpreter (the environment variable ``TRITON_INTERPRET=1`` before Triton is
    imported: for tests, a thousand times slower).

    Cost: (2 d + 2 c + about 30 L) n m flops; with more than 128 columns once more for every 128. Memory: 512 kB a
    column beside the result at most. Backward: as much for V, and for the rest (4 d + 2 c + about 80 L) n m, twice
    that for X1 and X2 apart, or 4 c in place of 2 c where they are one; with more than 64 inputs that have gradients
    once more for every 64.

    Args:
        covar_module: The kernel; its parameters are read at every call.

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
        """Keep the kernel."""
        missing = self.missing(covar_module)
        if missing is not None:
            raise ValueError(f"covar_module: a fused product expected {missing}")
        self.covar_module = covar_module

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

    def __call__(self, x1: Tensor, x2: Tensor, vectors: Tensor) -> Tensor:
        """Return K(X1, X2) V in float64, ``n x c``, for points ``n x d`` and ``m x d`` and V, ``m x c``.

        Raises:
            ValueError: No Triton, or tensors on another device.
        """
        missing = self.missing(self.covar_module, x1.device)
        if missing is not None:
            raise ValueError(f"x1: a fused product expected {missing}")
        covariance = network_covariance(self.covar_module)
        kernel = cast("NNGPKernel", covariance.kernel)
        inputs = kernel.inputs(*_read(x1, x2, covariance.columns))
        layers, activation = cast("Sequence[Layer]", kernel.effective_layers()), kernel.activation
        xx, yy = inputs.squared_norms()
        rows = torch.cat(layer_variances(xx.mT, inputs, layers)[:-1])
        columns = rows if inputs.symmetric else torch.cat(layer_variances(yy, inputs, layers)[:-1])
        factor, bias, *others = (p if p is not None else xx.new_zeros(()) for p in matrix_parameters(inputs, layers))
        pairs = zip(others[: len(layers)], others[len(layers) :], strict=True)
        parameters = torch.stack([p.reshape(()) for p in (factor, bias, *(p for pair in pairs for p in pair))])
        slope = activation.negative_slope if isinstance(activation, LeakyReLU) else None
        arguments = slope, inputs.x1, inputs.x2, rows, columns, parameters, vectors
        product = first_derivatives_only(_Product.apply(*arguments), "FusedProduct")  # type: ignore[no-untyped-call]
        return covariance.scale * product + covariance.bias_variance * vectors.double().sum(0)


class _Product(torch.autograd.Function):
    """K(X1, X2) V as a function of points, their variances in front of each layer, the layers' parameters, and V."""

    @staticmethod
    def forward(ctx: Any, slope: float | None, x1: Tensor, x2: Tensor, *others: Tensor) -> Tensor:
        from .triton_product import network_product

        ctx.slope, ctx.same = slope, x1 is x2
        x1, x2 = (first := _single(x1)), first if ctx.same else _single(x2)
        rows, columns, parameters, vectors = map(_single, others)
        ctx.save_for_backward(x1, x2, rows, columns, parameters, vectors)
        return network_product(x1, x2, rows, columns, parameters, vectors, slope)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return derivatives in float64, which autograd takes to the dtype of each argument.

        The device code has those of the rows' points alone. Those of the columns' are the rows' of the transpose.
        """
        from .triton_gradient import network_gradient
        from .triton_product import network_product

        x1, x2, rows, columns, parameters, vectors = ctx.saved_tensors
        _, *points, of_rows, of_columns, of_parameters, of_vectors = ctx.needs_input_grad
        g, found = _single(outer[0]), dict.fromkeys(("x1", "x2", "rows", "columns", "parameters", "vectors"))
        if of_vectors:
            found["vectors"] = network_product(x2, x1, columns, rows, parameters, g, ctx.slope)
        if ctx.same:  # sum over G K V = sum over V K G: both at once, with every pair of points twice
            if points[0] or of_rows or of_parameters:
                left, right = torch.cat([g, vectors], 1), torch.cat([vectors, g], 1)
                found["x1"], found["rows"], twice = network_gradient(
                    x1, x1, rows, rows, parameters, left, right, ctx.slope, with_points=points[0]
                )
                found["parameters"] = 0.5 * twice
            return None, *found.values()
        if points[0] or of_rows or of_parameters:
            found["x1"], found["rows"], found["parameters"] = network_gradient(
                x1, x2, rows, columns, parameters, g, vectors, ctx.slope, with_points=points[0]
            )
        if points[1] or of_columns:
            found["x2"], found["columns"], _ = network_gradient(
                x2, x1, columns, rows, parameters, vectors, g, ctx.slope, with_points=points[1]
            )
        return None, *found.values()


def _read(x1: Tensor, x2: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the columns of the inputs that a kernel reads."""
    if columns is None:
        return x1, x2
    read = x1.index_select(-1, columns)
    return read, read if x1 is x2 else x2.index_select(-1, columns)


def _single(value: Tensor) -> Tensor:
    return value.detach().float().contiguous()
