"""A Bayesian network with one convolutional layer and a dense or pooled readout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._validation import whole_number
from ..activations import Activation
from ..kernels.convolutional_nngp_kernel import READOUTS
from ..kernels.patches import Patches
from .feature_network import FeatureNetwork


class ConvolutionalNetwork(FeatureNetwork):
    r"""One convolutional hidden layer of N_c channels over patches of the input, then a dense readout or a pool.

    .. math::
        h_{cb} = \frac{w_c \cdot x_b}{\sqrt{k}} + \beta_c, \qquad
        f = \frac{1}{\sqrt{N_c B}} \sum_{c=1}^{N_c} \sum_{b=1}^{B} v_{cb}\, \sigma(h_{cb}) \ \text{("dense")}, \qquad
        f = \frac{1}{\sqrt{N_c}} \sum_{c} v_c\, \frac1B \sum_{b} \sigma(h_{cb}) \ \text{("pooled")}

    x_b is patch b of the input, b = 1..B, with k entries (patch size times input channels); w_c the filter of channel
    c, shared by all patches, of prior variance w_0 = 1 / lambda_0 for each entry; :math:`\beta_c` its bias, of variance
    b_0; v the readout, of variance w_1. With K_ab = kappa(w_0 x_a . x'_b / k + b_0) the prior covariance of a dense
    readout is w_1 / B times the sum over patches of K_bb, that of a pool w_1 / B^2 times the sum of all K_ab
    (:class:`ConvolutionalNNGPKernel`). Given v the covariance of the dense one is
    :math:`\frac{w_1}{B} \sum_{ab} Q_{ab} K_{ab}`, with the order parameter
    :math:`Q_{ab} = \lambda_1 \sum_c v_{ca} v_{cb} / N_c`, if the activation has mean zero.

    The parameters are the whitened filters and the readout, as in :class:`FeatureNetwork`. Not included: more layers.
    Rows and columns that no patch reaches are not read.

    Shapes: x is ``P x d`` or ``*b x P x d`` with ``d = channels * size`` (an image flattened as ``x.flatten(-3)``); the
    output is ``*b x P``, with ``num_outputs`` ``*b x P x D``. A filter is laid out as (channel, rows, columns); feature
    (c, b) of a dense readout has index ``c * B + b``. Cost: a forward pass as one matrix product over all patches.

    Args:
        activation: An activation object, e.g. ``ReLU()``.
        image_shape: (channels, length) or (channels, rows, columns).
        channels: N_c, the number of filters.
        kernel_size: Edge of the patches, one number or one for each spatial dimension.
        stride: Step from patch to patch, likewise; the patch size (no overlap) if None.
        padding: Zeros at both ends, likewise.
        readout: "dense" or "pooled".
        kwargs: ``num_outputs``, ``weight_variance`` (2 numbers), ``bias_variance``, ``readout_bias_variance``,
            ``input_scale`` (d numbers), ``active_dims``, ``batch_shape``, ``dtype``, ``device`` and ``generator`` of
            :class:`FeatureNetwork`.

    Attributes:
        hidden: Parameter ``*b x num_hidden``, standard normal under the prior.
        readout: Parameter ``*b x F x D`` (D = 1 without ``num_outputs``), prior variance w_1; F = N_c B for a dense
            readout, N_c for a pool; one more row for a bias.
        patches: Where the patches lie, a :class:`Patches`.
        num_patches: B.
        pooled: Whether the readout reads the mean over patches.

    Raises:
        TypeError: The activation is no activation object.
        ValueError: Sizes that are not whole numbers >= 1, patches larger than the input, an input of other than one or
            two spatial dimensions, another readout; variances as in :class:`FeatureNetwork`; from a call: inputs of the
            wrong shape.

    Reference: Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 6.

    Example:
        >>> import torch
        >>> from torch_propkernel import ReLU
        >>> from torch_propkernel.networks import ConvolutionalNetwork
        >>> network = ConvolutionalNetwork(ReLU(), image_shape=(1, 8, 8), channels=5, kernel_size=4, stride=2)
        >>> network.num_patches, network.num_features, network(torch.ones(3, 64)).shape
        (9, 45, torch.Size([3]))
    """

    def __init__(
        self,
        activation: str | Activation,
        image_shape: Sequence[int],
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        readout: str = "dense",
        **kwargs: Any,
    ) -> None:
        """Check the geometry and draw the weights from the prior."""
        if readout not in READOUTS:
            raise ValueError(f"readout: expected one of {READOUTS}, got {readout!r}")
        patches, pooled = Patches.of(image_shape, kernel_size, stride, padding), readout == "pooled"
        num_channels = whole_number("channels", channels)
        num_units = num_channels * (1 if pooled else patches.num_patches)
        shapes = [(num_channels, patches.num_entries)]
        super().__init__(activation, patches.num_inputs, shapes, num_units, **kwargs)
        self.patches, self.pooled = patches, pooled

    @property
    def num_patches(self) -> int:
        """Number B of patches."""
        return self.patches.num_patches

    def _features(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        patches = self.patches(self.read_inputs(x, hidden))
        [(weight, bias)] = self.layers(hidden)
        state = (patches.flatten(-3, -2) * weight.shape[-1] ** -0.5) @ weight.mT
        state = self.activation(state if bias is None else state + bias.unsqueeze(-2))
        state = state.unflatten(-2, (-1, self.num_patches))
        state = state.mean(-2) if self.pooled else state.mT.flatten(-2)
        return state * self.num_units**-0.5

    def extra_repr(self) -> str:
        """Return the architecture."""
        return f"{super().extra_repr()}, {self.patches}, readout={'pooled' if self.pooled else 'dense'}"
