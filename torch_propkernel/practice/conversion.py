"""From a kernel or a model to the finite network with the same prior, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, ScaleKernel
from linear_operator import to_dense
from torch import Tensor

from .._validation import check_inputs, check_same_kind, check_targets, positive_number
from ..kernels import Composition, NNGPKernel, RenormalizedNNGPKernel
from ..models import NetworkGP
from ..networks.feature_network import FeatureNetwork
from ..networks.finite_network import FiniteNetwork

_PRIOR_KERNELS = (NNGPKernel.forward, RenormalizedNNGPKernel.forward)


def network_from_model(
    model_or_kernel: Any,
    input_dim: int | None = None,
    *,
    width: int | Sequence[int] | None = None,
    batch_shape: torch.Size | Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> FiniteNetwork:
    r"""Return a finite network whose prior is the one that a kernel stands for, with the kernel's present values.

    .. math:: w_l \leftarrow w_l^{\text{kernel}} \ (l < L), \qquad w_L \leftarrow s\, w_L^{\text{kernel}}

    w_l are weight variances, s the outputscale of a :class:`gpytorch.kernels.ScaleKernel` around the kernel (1
    without one); bias variances, ARD weights (as ``input_scale``) and ``active_dims`` carry over. Parametrization and
    units are the same in both (:class:`FiniteNetwork`). The order parameters and the composition do not carry over:
    they say what data do to the network. The noise is not part of a network; its temperature is ``likelihood.noise``.
    The values are exact to rounding; dtype and device are the kernel's.

    Args:
        model_or_kernel: An NNGPKernel (also ArcSineKernel, ArcCosineKernel), a RenormalizedNNGPKernel, a ScaleKernel
            around one, or a model with mean zero and such a kernel as ``covar_module``.
        input_dim: N_0; needed for a kernel without ``ard_num_dims`` and ``active_dims``.
        width: N_1, ..., N_L; a RenormalizedNNGPKernel's own if None.
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
        >>> from torch_propkernel.practice import network_from_model
        >>> kernel = RenormalizedNNGPKernel(Erf(), width=[20, 10], weight_variance=[1.0, 1.0, 4.0])
        >>> network = network_from_model(kernel, input_dim=3)
        >>> network.width, [round(w, 6) for w in network.weight_variance.tolist()]
        ((20, 10), [1.0, 1.0, 4.0])
    """
    kernel = model_or_kernel
    if not isinstance(kernel, Kernel):
        kernel = getattr(model_or_kernel, "covar_module", None)
        if not isinstance(kernel, Kernel):
            raise TypeError(f"model_or_kernel: expected a kernel or a model, got {type(model_or_kernel).__name__}")
        input_dim = _input_dim_of_model(model_or_kernel, input_dim)
    columns = kernel.active_dims  # a ScaleKernel's are those of its base kernel
    scale: float | Tensor = 1.0
    while isinstance(kernel, ScaleKernel):
        _refuse_batch(kernel)
        scale, kernel = scale * kernel.outputscale.detach().double(), kernel.base_kernel
    if getattr(type(kernel), "forward", None) not in _PRIOR_KERNELS:
        raise TypeError(
            "model_or_kernel: expected an NNGPKernel or RenormalizedNNGPKernel, alone or in a ScaleKernel, got "
            f"{type(kernel).__name__}: a sum, product or other kernel is not the prior of one fully connected network"
        )
    _refuse_batch(kernel)
    if width is None:
        if not isinstance(kernel, RenormalizedNNGPKernel):
            raise ValueError(
                f"width: expected {kernel.depth} whole numbers, got none: {type(kernel).__name__} has none"
            )
        width = kernel.width.reshape(-1).tolist()
    sizes = list(width) if isinstance(width, Sequence) else [width]
    if len(sizes) != kernel.depth:
        raise ValueError(f"width: expected {kernel.depth} numbers, one per hidden layer of the kernel, got {width!r}")
    reference = kernel.raw_hidden_weight_variance
    weights = kernel.weight_variance.detach().double().reshape(-1)
    weights[-1:] *= scale
    return FiniteNetwork(
        kernel.activation,
        _input_dim(kernel, columns, input_dim),
        sizes,
        weight_variance=weights,
        bias_variance=kernel.bias_variance.detach().double().reshape(-1),
        input_scale=None if kernel.ard_num_dims is None else kernel.ard_weights.detach().double().reshape(-1),
        active_dims=columns,
        batch_shape=batch_shape,
        dtype=reference.dtype,
        device=reference.device,
        generator=generator,
    )


def model_from_network(
    network: FiniteNetwork, x: Tensor, y: Tensor, temperature: float, composition: str | Composition = "outer"
) -> NetworkGP:
    r"""Return the Gaussian process model of a finite network on training data: the network's prior, its widths, T.

    Its kernel is a :class:`RenormalizedNNGPKernel` with the network's activation, widths, weight and bias variances,
    ARD weights and active columns, its likelihood a Gaussian one with noise T, its mean zero.
    :func:`fit_order_parameters` then predicts what the network's posterior does, without sampling it. The network's
    present weights and batch shape do not enter. An ``input_scale`` of mean other than one goes into w_0.

    Not included: several outputs and convolutional layers, whose kernels do not exist yet.

    Shapes: x is ``P x d``, y is ``P``. Values are exact to rounding; dtype and device are the network's.

    Args:
        network: The network.
        x: Training inputs.
        y: Training targets.
        temperature: T > 0, the variance of the noise.
        composition: How several order parameters enter.

    Raises:
        TypeError: Not a FiniteNetwork; data of another dtype.
        NotImplementedError: Several outputs, a convolutional network.
        ValueError: Shapes that do not fit, NaN or infinite data, T <= 0, an ``input_scale`` with a zero.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, sections 0 and 4.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf
        >>> from torch_propkernel.networks import FiniteNetwork
        >>> from torch_propkernel.practice import model_from_network, network_from_model
        >>> network = FiniteNetwork(Erf(), input_dim=3, width=20, weight_variance=[1.0, 2.0])
        >>> model = model_from_network(network, torch.eye(3), torch.ones(3), temperature=0.1)
        >>> torch.allclose(network_from_model(model).weight_variance, network.weight_variance)
        True
    """
    if isinstance(network, FeatureNetwork) and not isinstance(network, FiniteNetwork):
        raise NotImplementedError(
            f"network: expected a FiniteNetwork, got {type(network).__name__}: there is no renormalized kernel for it "
            "here yet"
        )
    if not isinstance(network, FiniteNetwork):
        raise TypeError(f"network: expected a FiniteNetwork, got {type(network).__name__}")
    if network.num_outputs is not None:
        raise NotImplementedError(
            f"network: expected num_outputs=None, got {network.num_outputs}: there is no renormalized kernel for "
            "several outputs here yet"
        )
    check_inputs(x)
    check_targets(y, x.shape[-2])
    check_same_kind(x=x, y=y, weights=network.hidden)
    if network.active_dims is None and x.shape[-1] != network.input_dim:
        raise ValueError(f"x: expected {network.input_dim} columns, got shape {tuple(x.shape)}")
    temperature = positive_number("temperature", temperature)
    weights, scale = network.weight_variance.clone(), network.input_scale
    if scale is not None:
        if not bool((scale > 0).all()):
            raise ValueError(f"input_scale: expected numbers > 0 (use active_dims instead), got {scale.tolist()}")
        weights[0] = weights[0] * scale.mean()
    kernel = RenormalizedNNGPKernel(
        network.activation,
        list(network.width),
        composition,
        weight_variance=weights.cpu(),
        bias_variance=network.bias_variance.cpu(),
        ard_num_dims=None if scale is None else network.input_dim,
        active_dims=None if network.active_dims is None else network.active_dims.cpu(),
    ).to(network.hidden)
    # Parameters are built in torch's default dtype: set them again after the conversion, without its rounding.
    kernel.weight_variance, kernel.bias_variance = weights, network.bias_variance
    if scale is not None:
        kernel.ard_weights = scale
    noise_constraint = gpytorch.constraints.Positive()
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=noise_constraint).to(network.hidden)
    likelihood.noise = torch.as_tensor(temperature, dtype=torch.float64).to(network.hidden)
    return NetworkGP(x, y, likelihood, kernel)


def _refuse_batch(kernel: Kernel) -> None:
    if kernel.batch_shape.numel() != 1:
        raise ValueError(
            f"model_or_kernel: expected a kernel without batch shape, got {tuple(kernel.batch_shape)}; index it "
            "(kernel[0]) and convert one at a time"
        )


def _input_dim(kernel: NNGPKernel, columns: Tensor | None, given: int | None) -> int:
    """Return N_0 from what the kernel knows and from what was given."""
    known = kernel.ard_num_dims if columns is None else len(columns)
    if known is None and given is None:
        raise ValueError("input_dim: expected the number of inputs, got None: this kernel takes any number of columns")
    if columns is None and known is not None and given not in (None, known):
        raise ValueError(f"input_dim: expected {known}, the kernel's ard_num_dims, got {given}")
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
