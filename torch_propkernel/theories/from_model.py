"""From a kernel or a model to the finite network with the same prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from linear_operator import to_dense
from torch import Tensor

from ..kernels import (
    ConvolutionalNNGPKernel,
    ConvolutionalRenormalizedKernel,
    MultitaskRenormalizedKernel,
    RenormalizedNNGPKernel,
)
from ..kernels.network_covariance import network_covariance
from ..kernels.network_prior_kernel import NetworkPriorKernel
from ..kernels.patches import sizes_of
from ..networks.convolutional import ConvolutionalNetwork
from ..networks.finite_network import FiniteNetwork


def network_from_model(
    model_or_kernel: Any,
    input_dim: int | None = None,
    *,
    width: int | Sequence[int] | None = None,
    batch_shape: torch.Size | Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> FiniteNetwork | ConvolutionalNetwork:
    r"""Return a finite network whose prior is the one that a kernel stands for, with the kernel's present values.

    .. math:: w_l \leftarrow w_l^{\text{kernel}} \ (l < L), \qquad w_L \leftarrow s\, w_L^{\text{kernel}}

    w_l are weight variances, s the outputscale of a :class:`gpytorch.kernels.ScaleKernel` around the kernel (1
    without one); bias variances, ARD weights (as ``input_scale``) and ``active_dims`` carry over, and a
    :class:`gpytorch.kernels.ConstantKernel` that is added becomes the bias of the readout. Parametrization and units
    are the same in both (:class:`FiniteNetwork`). The order parameters and the composition do not carry over:
    they say what data do to the network. The noise is not part of a network; its temperature is ``likelihood.noise``.
    A :class:`MultitaskRenormalizedKernel` is a network with ``num_outputs``, a :class:`ConvolutionalNNGPKernel` or
    :class:`ConvolutionalRenormalizedKernel` a :class:`ConvolutionalNetwork` of the same geometry. The values are exact
    to rounding; dtype and device are the kernel's.

    Args:
        model_or_kernel: An NNGPKernel (also ArcSineKernel, ArcCosineKernel), a RenormalizedNNGPKernel or one of their
            convolutional counterparts, possibly in ScaleKernels and with ConstantKernels added, a
            MultitaskRenormalizedKernel by itself, or a model with mean zero and such a ``covar_module``.
        input_dim: N_0; needed for a fully connected kernel without ``ard_num_dims`` and ``active_dims``.
        width: N_1, ..., N_L, channels for a convolutional layer; a renormalized kernel's own if None.
        batch_shape: Shape of a batch of independent networks.
        generator: Draws the weights.

    Returns:
        The network, drawn from its prior.

    Raises:
        TypeError: Another composition of kernels, no kernel at all.
        ValueError: A batch of kernels, widths that are infinite or missing, an unknown or contradicting ``input_dim``,
            a model with another mean, with transformed inputs or targets.

    Reference: THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import network_from_model
        >>> kernel = RenormalizedNNGPKernel(Erf(), width=[20, 10], weight_variance=[1.0, 1.0, 4.0])
        >>> network = network_from_model(kernel, input_dim=3)
        >>> network.width, [round(w, 6) for w in network.weight_variance.tolist()]
        ((20, 10), [1.0, 1.0, 4.0])
    """
    covariance = model_or_kernel
    if not isinstance(covariance, Kernel):
        covariance = getattr(model_or_kernel, "covar_module", None)
        if not isinstance(covariance, Kernel):
            raise TypeError(f"model_or_kernel: expected a kernel or a model, got {type(model_or_kernel).__name__}")
        input_dim = _input_dim_of_model(model_or_kernel, input_dim)
    outputs = covariance if isinstance(covariance, MultitaskRenormalizedKernel) else None
    inner = covariance if outputs is None else outputs.data_covar_module
    kernel, scale, bias_variance, columns = network_covariance(inner)
    columns = columns if outputs is None else outputs.active_dims
    batch = torch.broadcast_shapes(kernel.batch_shape, scale.shape, bias_variance.shape)
    if batch.numel() != 1:
        raise ValueError(
            f"model_or_kernel: expected a kernel without batch shape, got {tuple(batch)}; index it (kernel[0]) and "
            "convert one at a time"
        )
    prior: NetworkPriorKernel = kernel.blocks if isinstance(kernel, ConvolutionalRenormalizedKernel) else kernel
    if width is None:
        owner = kernel if outputs is None else outputs
        finite = (RenormalizedNNGPKernel, MultitaskRenormalizedKernel, ConvolutionalRenormalizedKernel)
        if not isinstance(owner, finite):
            raise ValueError(f"width: expected {prior.depth} whole numbers, got none: {type(owner).__name__} has none")
        width = [*getattr(owner, "lower_width", ()), *owner.width.reshape(-1).tolist()]
    sizes = list(width) if isinstance(width, Sequence) else [width]
    if len(sizes) != prior.depth:
        raise ValueError(f"width: expected {prior.depth} numbers, one per hidden layer of the kernel, got {width!r}")
    reference = prior.raw_hidden_weight_variance
    weights = prior.weight_variance.detach().double().reshape(-1)
    weights[-1:] *= scale.detach().double().reshape(())
    number = _input_dim(prior, columns, input_dim)
    options: dict[str, Any] = {
        "weight_variance": weights,
        "bias_variance": prior.bias_variance.detach().double().reshape(-1),
        "readout_bias_variance": float(bias_variance.detach()),
        "input_scale": None if prior.ard_num_dims is None else prior.ard_weights.detach().double().reshape(-1),
        "active_dims": columns,
        "batch_shape": batch_shape,
        "dtype": reference.dtype,
        "device": reference.device,
        "generator": generator,
    }
    if isinstance(prior, ConvolutionalNNGPKernel):
        geometry = sizes_of(prior.stack)
        return ConvolutionalNetwork(prior.activation, channels=sizes, readout=prior.readout, **geometry, **options)
    num_outputs = None if outputs is None else outputs.num_tasks
    return FiniteNetwork(prior.activation, number, sizes, num_outputs=num_outputs, **options)


def _input_dim(kernel: NetworkPriorKernel, columns: Tensor | None, given: int | None) -> int:
    """Return N_0 from what the kernel knows and from what was given."""
    known = kernel.ard_num_dims if columns is None else len(columns)
    if isinstance(kernel, ConvolutionalNNGPKernel) and known is None:
        known = kernel.patches.num_inputs
    if known is None and given is None:
        raise ValueError("input_dim: expected the number of inputs, got None: this kernel takes any number of columns")
    if columns is None and known is not None and given not in (None, known):
        raise ValueError(f"input_dim: expected {known}, what the kernel reads, got {given}")
    return int(given if known is None else known)  # type: ignore[arg-type]


def _input_dim_of_model(model: Any, given: int | None) -> int | None:
    """Check that a model is its kernel and nothing else, and return the number of its inputs."""
    for name in ("input_transform", "outcome_transform"):
        if getattr(model, name, None) is not None:
            raise ValueError(f"model: expected none with {name}, got {type(getattr(model, name)).__name__}")
    if getattr(model, "train_inputs", None) is None:
        return given
    x = model.train_inputs[0]
    if given not in (None, x.shape[-1]):
        raise ValueError(f"input_dim: expected {x.shape[-1]}, the columns of the model's inputs, got {given}")
    with torch.no_grad():
        prior, own = model.forward(x[..., :4, :]), to_dense(model.covar_module(x[..., :4, :]))
        if bool((prior.mean != 0).any()):
            raise ValueError("model: expected a mean of zero, got another; subtract it from the targets first")
        if not torch.allclose(to_dense(prior.lazy_covariance_matrix), own):
            raise ValueError("model: expected a prior covariance that is covar_module's, got another")
    return x.shape[-1]
