"""A Bayesian network with one convolutional layer and a dense readout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..activations import Activation
from .feature_network import FeatureNetwork, whole_number


class ConvolutionalNetwork(FeatureNetwork):
    r"""One convolutional hidden layer of N_c channels over patches of the input, then a dense readout.

    .. math::
        h_{cb} = \frac{w_c \cdot x_b}{\sqrt{k}} + \beta_c, \qquad
        f = \frac{1}{\sqrt{N_c B}} \sum_{c=1}^{N_c} \sum_{b=1}^{B} v_{cb}\, \sigma(h_{cb})

    x_b is patch b of the input, b = 1..B, with k entries (patch size times input channels); w_c the filter of channel
    c, shared by all patches, of prior variance w_0 = 1 / lambda_0 for each entry; :math:`\beta_c` its bias, of variance
    b_0; v the readout, of variance w_1. So the prior covariance of f is w_1 / B times the sum over patches of
    kappa(w_0 x_b . x'_b / k + b_0). Given v it is :math:`\frac{w_1}{B} \sum_{ab} Q_{ab} K_{ab}`, with the order
    parameter :math:`Q_{ab} = \lambda_1 \sum_c v_{ca} v_{cb} / N_c`, if the activation has mean zero.

    The parameters are the whitened filters and the readout, as in :class:`FeatureNetwork`. Not included: padding (rows
    and columns that no patch reaches are not read), more layers, pooling.

    Shapes: x is ``P x d`` or ``*b x P x d`` with ``d = channels * size`` (an image flattened as ``x.flatten(-3)``); the
    output is ``*b x P``, with ``num_outputs`` ``*b x P x D``. A filter is laid out as (channel, rows, columns); feature
    (c, b) has index ``c * B + b``. Cost: a forward pass as one matrix product over all patches.

    Args:
        activation: An activation object, e.g. ``ReLU()``.
        input_shape: (channels, length) or (channels, rows, columns).
        channels: N_c, the number of filters.
        patch_size: Edge of the patches, one number or one for each spatial dimension.
        stride: Step from patch to patch, likewise; the patch size (no overlap) if None.
        kwargs: ``num_outputs``, ``weight_variance`` (2 numbers), ``bias_variance``, ``readout_bias_variance``,
            ``batch_shape``, ``dtype``, ``device`` and ``generator`` of :class:`FeatureNetwork`.

    Attributes:
        hidden: Parameter ``*b x num_hidden``, standard normal under the prior.
        readout: Parameter ``*b x (N_c B) x D`` (D = 1 without ``num_outputs``), prior variance w_1; one more row for a
            bias.
        input_shape: The shape that was given.
        patch_size: One number for each spatial dimension.
        stride: One number for each spatial dimension.
        num_patches: B.

    Raises:
        TypeError: The activation is no activation object.
        ValueError: Sizes that are not whole numbers >= 1, patches larger than the input, an input of other than one or
            two spatial dimensions; variances as in :class:`FeatureNetwork`; from a call: inputs of the wrong shape.

    Reference: Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 6.

    Example:
        >>> import torch
        >>> from torch_propkernel import ReLU
        >>> from torch_propkernel.networks import ConvolutionalNetwork
        >>> network = ConvolutionalNetwork(ReLU(), input_shape=(1, 8, 8), channels=5, patch_size=4, stride=2)
        >>> network.num_patches, network.num_features, network(torch.ones(3, 64)).shape
        (9, 45, torch.Size([3]))
    """

    def __init__(
        self,
        activation: str | Activation,
        input_shape: Sequence[int],
        channels: int,
        patch_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the geometry and draw the weights from the prior."""
        shape = tuple(whole_number("input_shape", size) for size in input_shape)
        if len(shape) not in (2, 3):
            raise ValueError(f"input_shape: expected (channels, length) or (channels, rows, columns), got {shape}")
        patch = _per_dimension("patch_size", patch_size, len(shape) - 1)
        step = patch if stride is None else _per_dimension("stride", stride, len(shape) - 1)
        if any(size > limit for size, limit in zip(patch, shape[1:], strict=True)):
            raise ValueError(f"patch_size: expected at most the input's size {shape[1:]}, got {patch}")
        counts = [(size - p) // s + 1 for size, p, s in zip(shape[1:], patch, step, strict=True)]
        num_channels, num_patches = whole_number("channels", channels), math.prod(counts)
        fan_in = shape[0] * math.prod(patch)
        super().__init__(activation, math.prod(shape), [(num_channels, fan_in)], num_channels * num_patches, **kwargs)
        self.input_shape, self.patch_size, self.stride, self.num_patches = shape, patch, step, num_patches

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches of x (``*b x P x d``), ``*b x P x B x k``."""
        images = x.unflatten(-1, self.input_shape)
        dims = len(self.patch_size)
        for size, step in zip(self.patch_size, self.stride, strict=True):
            images = images.unfold(-dims, size, step)  # this dimension counts patches now; its entries go last
        return images.movedim(-2 * dims - 1, -dims - 1).flatten(-dims - 1).flatten(-dims - 1, -2)

    def _features(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        patches = self.patches(self._check_inputs(x, hidden))
        [(weight, bias)] = self.layers(hidden)
        state = (patches.flatten(-3, -2) * weight.shape[-1] ** -0.5) @ weight.mT
        state = self.activation(state if bias is None else state + bias.unsqueeze(-2))
        state = state.unflatten(-2, (-1, self.num_patches)).mT.flatten(-2)
        return state * self.num_units**-0.5

    def extra_repr(self) -> str:
        """Return the architecture."""
        geometry = f"input_shape={self.input_shape}, patch_size={self.patch_size}, stride={self.stride}"
        return f"{super().extra_repr()}, {geometry}"


def _per_dimension(name: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{name}: expected 1 or {dims} numbers, got {value!r}")
    return tuple(whole_number(name, v) for v in values)
