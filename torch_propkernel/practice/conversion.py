"""From a finite network to the Gaussian process model with the same prior; the way back is in ``networks``."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from gpytorch.kernels import ConstantKernel, Kernel
from torch import Tensor

from .._validation import check_inputs, check_same_kind, check_targets, positive_number
from ..kernels import (
    Composition,
    ConvolutionalRenormalizedKernel,
    MultitaskRenormalizedKernel,
    RenormalizedNNGPKernel,
)
from ..kernels.compositions import get_composition
from ..kernels.network_prior_kernel import NetworkPriorKernel
from ..kernels.patches import sizes_of
from ..models import MultitaskNetworkGP, NetworkGP
from ..networks.convolutional import ConvolutionalNetwork
from ..networks.feature_network import FeatureNetwork
from ..networks.finite_network import FiniteNetwork


def model_from_network(
    network: FiniteNetwork | ConvolutionalNetwork,
    x: Tensor,
    y: Tensor,
    temperature: float,
    composition: str | Composition = "outer",
) -> NetworkGP:
    r"""Return the Gaussian process model of a finite network on training data: the network's prior, its widths, T.

    Its kernel is a :class:`RenormalizedNNGPKernel` with the network's activation, widths, weight and bias variances,
    ARD weights and active columns, a ConstantKernel added to it for a bias of the readout, its likelihood a Gaussian
    one with noise T, its mean zero. :func:`fit_order_parameters` then predicts what the network's posterior does,
    without sampling it. The network's present weights and batch shape do not enter. An ``input_scale`` of mean other
    than one goes into w_0. A convolutional network has a :class:`ConvolutionalRenormalizedKernel`; linear layers
    have a matrix each (biases above the first are refused), of several others only the last one has.

    A fully connected network with ``num_outputs`` becomes a :class:`MultitaskNetworkGP` with a
    :class:`MultitaskRenormalizedKernel`.

    Not included: several outputs of a convolutional network, and a bias of several outputs' readout.

    Shapes: x is ``P x d``, y is ``P``, or ``P x D`` with ``num_outputs``. Values are exact to rounding; dtype and
    device are the network's.

    Args:
        network: The network, fully connected or with convolutional layers.
        x: Training inputs.
        y: Training targets.
        temperature: T > 0, the variance of the noise.
        composition: How several order parameters enter; several outputs have "outer" only, a convolutional network has
            one.

    Raises:
        TypeError: Neither a FiniteNetwork nor a ConvolutionalNetwork; data of another dtype.
        NotImplementedError: Several outputs of a convolutional network, with a readout bias or another composition;
            another network.
        ValueError: Shapes that do not fit, NaN or infinite data, T <= 0, an ``input_scale`` with a zero, linear
            convolutions with biases above the first.

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
    if not isinstance(network, (FiniteNetwork, ConvolutionalNetwork)):
        known = "network: expected a FiniteNetwork or ConvolutionalNetwork, got"
        if isinstance(network, FeatureNetwork):
            raise NotImplementedError(f"{known} {type(network).__name__}: there is no renormalized kernel for it here")
        raise TypeError(f"{known} {type(network).__name__}")
    num_outputs = network.num_outputs
    if num_outputs is not None:
        plain = isinstance(network, FiniteNetwork) and get_composition(composition) == get_composition("outer")
        if not plain or float(network.readout_bias_variance) > 0:
            raise NotImplementedError(
                f"network: expected a FiniteNetwork, no readout bias and composition 'outer' for num_outputs="
                f"{num_outputs}, got {type(network).__name__}, readout_bias_variance="
                f"{float(network.readout_bias_variance):g} and {composition!r}"
            )
        if y.dim() != 2 or y.shape[-1] != num_outputs:
            raise ValueError(f"y: expected shape ({x.shape[-2]}, {num_outputs}), got {tuple(y.shape)}")
    check_inputs(x)
    check_targets(y if num_outputs is None else y.mT, x.shape[-2])
    check_same_kind(x=x, y=y, weights=network.hidden)
    if getattr(network, "active_dims", None) is None and x.shape[-1] != network.input_dim:
        raise ValueError(f"x: expected {network.input_dim} columns, got shape {tuple(x.shape)}")
    temperature = positive_number("temperature", temperature)
    kernel = _kernel(network, composition)
    if num_outputs is not None:
        return MultitaskNetworkGP.with_temperature(x, y, kernel, temperature)
    if float(network.readout_bias_variance) > 0:
        constant = ConstantKernel().to(network.hidden)
        constant.constant = network.readout_bias_variance.to(network.hidden)
        kernel = kernel + constant
    noise_constraint = gpytorch.constraints.Positive()
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=noise_constraint).to(network.hidden)
    likelihood.noise = torch.as_tensor(temperature, dtype=torch.float64).to(network.hidden)
    return NetworkGP(x, y, likelihood, kernel)


def _kernel(network: FiniteNetwork | ConvolutionalNetwork, composition: str | Composition) -> Kernel:
    """Return the renormalized kernel with the network's prior, in its dtype and on its device."""
    weights, scale = network.weight_variance.clone(), network.input_scale
    if scale is not None:
        if not bool((scale > 0).all()):
            raise ValueError(f"input_scale: expected numbers > 0 (use active_dims instead), got {scale.tolist()}")
        weights[0] = weights[0] * scale.mean()
    options: dict[str, Any] = {
        "weight_variance": weights.cpu(),
        "bias_variance": network.bias_variance.cpu(),
        "ard_num_dims": None if scale is None else network.input_dim,
        "active_dims": None if network.active_dims is None else network.active_dims.cpu(),
    }
    activation, widths = network.activation, list(network.width)
    kernel: Kernel
    prior: NetworkPriorKernel
    if isinstance(network, ConvolutionalNetwork):
        readout = "pooled" if network.pooled else "dense"
        geometry = sizes_of(network.stack)
        kernel = ConvolutionalRenormalizedKernel(activation, widths, readout=readout, **geometry, **options)
        prior = kernel.blocks
    elif network.num_outputs is None:
        kernel = prior = RenormalizedNNGPKernel(activation, widths, composition, **options)
    else:
        kernel = MultitaskRenormalizedKernel(activation, widths, network.num_outputs, **options)
        prior = kernel.data_covar_module
    kernel.to(network.hidden)
    # Parameters are built in torch's default dtype: set them again after the conversion, without its rounding.
    prior.weight_variance, prior.bias_variance = weights, network.bias_variance
    if scale is not None:
        prior.ard_weights = scale
    return kernel
