"""What of a composed kernel is one network's prior: its kernel, a scale around it, a bias of the readout."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpytorch.kernels import AdditiveKernel, ConstantKernel, ScaleKernel
from torch import Tensor

from .convolutional_nngp_kernel import ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel
from .nngp_kernel import NNGPKernel
from .renormalized_nngp_kernel import RenormalizedNNGPKernel

NetworkKernel = NNGPKernel | ConvolutionalNNGPKernel | ConvolutionalRenormalizedKernel
"""Kernels that are the prior of one network; a subclass that computes something else is none."""

_PRIOR_KERNELS = (
    NNGPKernel.forward,
    RenormalizedNNGPKernel.forward,
    ConvolutionalNNGPKernel.forward,
    ConvolutionalRenormalizedKernel.forward,
)


class NetworkCovariance(NamedTuple):
    r"""The prior covariance of a network's output, :math:`s K + v_b`.

    Attributes:
        kernel: K, with its own readout variance.
        scale: s, the product of the output scales around it, ``*b``.
        bias_variance: v_b, the prior variance of a readout bias, ``*b``; zero without one.
        columns: Columns of the inputs that K reads; all if None.
    """

    kernel: NetworkKernel
    scale: Tensor
    bias_variance: Tensor
    columns: Tensor | None


def network_covariance(module: Any) -> NetworkCovariance:
    """Take the covariance of one network apart: its kernel, in ScaleKernels or not, and ConstantKernels added to it.

    Raises:
        TypeError: Another composition of kernels.

    Example:
        >>> from gpytorch.kernels import ConstantKernel, ScaleKernel
        >>> from torch_propkernel import NNGPKernel
        >>> bias = ConstantKernel()
        >>> bias.constant = bias.constant.new_tensor([0.5])
        >>> found = network_covariance(ScaleKernel(NNGPKernel("relu")) + bias)
        >>> type(found.kernel).__name__, round(found.bias_variance.item(), 4)
        ('NNGPKernel', 0.5)
    """
    found, own = _inside(module), module.active_dims
    if own is None:
        return found
    return found._replace(columns=own if found.columns is None else own[found.columns])


def _inside(module: Any) -> NetworkCovariance:
    """Likewise, with the columns among those that reach the module's ``forward``: a ScaleKernel has its inner one's."""
    if isinstance(module, NetworkKernel) and type(module).forward in _PRIOR_KERNELS:
        one = next(module.parameters()).new_ones(())
        return NetworkCovariance(module, one, 0 * one, None)
    if isinstance(module, ScaleKernel):
        inner, scale = _inside(module.base_kernel), module.outputscale
        return inner._replace(scale=scale * inner.scale, bias_variance=scale * inner.bias_variance)
    if isinstance(module, AdditiveKernel):
        constants = [_constant(kernel) for kernel in module.kernels]
        others = [kernel for kernel, value in zip(module.kernels, constants, strict=True) if value is None]
        if len(others) == 1:
            inner = network_covariance(others[0])
            return inner._replace(bias_variance=sum((v for v in constants if v is not None), inner.bias_variance))
    raise TypeError(
        "covar_module: expected an NNGPKernel or RenormalizedNNGPKernel, or their convolutional counterparts, in "
        "ScaleKernels or not, with nothing but ConstantKernels added (a readout bias), got "
        f"{type(module).__name__}: a sum, product or other kernel is not the prior of one network"
    )


def _constant(module: Any) -> Tensor | None:
    """Value ``*b`` of a constant kernel, in ScaleKernels or not; None for another kernel."""
    if isinstance(module, ConstantKernel):
        return module.constant.squeeze(-1)
    if isinstance(module, ScaleKernel):
        inner = _constant(module.base_kernel)
        return None if inner is None else module.outputscale * inner
    return None
