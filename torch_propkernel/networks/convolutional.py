"""A Bayesian network with convolutional layers and a dense or pooled readout."""

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
    r"""Convolutional hidden layers over patches of the input, then a dense readout or a pool.

    .. math::
        h^1_{cb} = \frac{w^1_c \cdot x_b}{\sqrt{k_1}} + \beta^1_c, \qquad
        h^{l+1}_{cb} = \frac{w^{l+1}_c \cdot \sigma(h^l)_b}{\sqrt{k_{l+1}}} + \beta^{l+1}_c,

        f = \frac{1}{\sqrt{N_L B}} \sum_{c=1}^{N_L} \sum_{b=1}^{B} v_{cb}\, \sigma(h^L_{cb}) \ \text{("dense")}, \qquad
        f = \frac{1}{\sqrt{N_L}} \sum_{c} v_c\, \frac1B \sum_{b} \sigma(h^L_{cb}) \ \text{("pooled")}

    x_b is patch b of the input, :math:`\sigma(h^l)_b` that of layer l's activations, N_l channels on the grid of its
    own patches; k_l entries of a patch are patch size times input channels (N_{l-1}). w^l_c is the filter of channel c,
    shared by all patches, of prior variance w_{l-1} = 1 / lambda_{l-1} for each entry; :math:`\beta^l_c` its bias, of
    variance b_{l-1}; v the readout, of variance w_L; b = 1..B in the last layer. The prior covariance is that of
    :class:`ConvolutionalNNGPKernel`, exactly for one layer, in the limit of many channels for more. Given v that of one
    layer with a dense readout is :math:`\sum_{ab} Q_{ab} K_{ab}`, with the order parameter
    :math:`Q_{ab} = \lambda_1 \sum_c v_{ca} v_{cb} / N_1`, if the activation has mean zero.

    The parameters are the whitened filters and the readout, as in :class:`FeatureNetwork`. Rows and columns that no
    patch reaches are not read. Not included: pooling between layers.

    Shapes: x is ``P x d`` or ``*b x P x d`` with ``d = channels * size`` (an image flattened as ``x.flatten(-3)``); the
    output is ``*b x P``, with ``num_outputs`` ``*b x P x D``. A filter is laid out as (channel, rows, columns); feature
    (c, b) of a dense readout has index ``c * B + b``. Cost: a matrix product over all patches for each layer.

    Args:
        activation: An activation object, e.g. ``ReLU()``.
        image_shape: (channels, length) or (channels, rows, columns).
        channels: N_1, ..., N_L, the number of filters of each layer: a whole number, or a list for several layers.
        kernel_size: Edge of the patches, one number or one for each spatial dimension. For several layers a list has
            such an entry for each of them, ``[(3, 3), (2, 2)]``, and a number holds in all.
        stride: Step from patch to patch, likewise; the patch size (no overlap) if None.
        padding: Zeros at both ends, likewise; above the first layer they stand beside the activations.
        readout: "dense" or "pooled".
        kwargs: ``num_outputs``, ``weight_variance`` (L + 1 numbers), ``bias_variance``, ``readout_bias_variance``,
            ``input_scale`` (d numbers), ``active_dims``, ``batch_shape``, ``dtype``, ``device`` and ``generator`` of
            :class:`FeatureNetwork`.

    Attributes:
        hidden: Parameter ``*b x num_hidden``, standard normal under the prior.
        readout: Parameter ``*b x F x D`` (D = 1 without ``num_outputs``), prior variance w_L; F = N_L B for a dense
            readout, N_L for a pool; one more row for a bias.
        stack: Where the patches of each layer lie, a :class:`Patches` each.
        patches: Those of the first layer.
        num_patches: B.
        pooled: Whether the readout reads the mean over patches.

    Raises:
        TypeError: The activation is no activation object.
        ValueError: Sizes that are not whole numbers >= 1, patches larger than the input, an input of other than one or
            two spatial dimensions, lists of different lengths, another readout; variances as in
            :class:`FeatureNetwork`; from a call: inputs of the wrong shape.

    Reference: Novak et al. (2019), arXiv:1810.05148; Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 12.

    Example:
        >>> import torch
        >>> from torch_propkernel import ReLU
        >>> from torch_propkernel.networks import ConvolutionalNetwork
        >>> network = ConvolutionalNetwork(ReLU(), image_shape=(1, 8, 8), channels=5, kernel_size=4, stride=2)
        >>> network.num_patches, network.num_features, network(torch.ones(3, 64)).shape
        (9, 45, torch.Size([3]))
        >>> ConvolutionalNetwork("relu", (1, 8, 8), [5, 7], [(3, 3), (2, 2)], [1, None]).num_patches   # of 6 x 6 sites
        9
    """

    def __init__(
        self,
        activation: str | Activation,
        image_shape: Sequence[int],
        channels: int | Sequence[int],
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        readout: str = "dense",
        **kwargs: Any,
    ) -> None:
        """Check the geometry and draw the weights from the prior."""
        if readout not in READOUTS:
            raise ValueError(f"readout: expected one of {READOUTS}, got {readout!r}")
        listed = channels if isinstance(channels, (list, tuple)) else [channels]
        sizes = [whole_number("channels", number) for number in listed]
        stack, pooled = Patches.of_layers(image_shape, kernel_size, stride, padding, sizes), readout == "pooled"
        num_units = sizes[-1] * (1 if pooled else stack[-1].num_patches)
        shapes = [(number, patches.num_entries) for number, patches in zip(sizes, stack, strict=True)]
        super().__init__(activation, stack[0].num_inputs, shapes, num_units, **kwargs)
        self.stack, self.pooled = stack, pooled

    @property
    def patches(self) -> Patches:
        """The patches of the first layer."""
        return self.stack[0]

    @property
    def num_patches(self) -> int:
        """Number B of patches of the last layer."""
        return self.stack[-1].num_patches

    def _features(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        state = self.read_inputs(x, hidden)
        for patches, (weight, bias) in zip(self.stack, self.layers(hidden), strict=True):
            state = (patches(state).flatten(-3, -2) * weight.shape[-1] ** -0.5) @ weight.mT
            state = self.activation(state if bias is None else state + bias.unsqueeze(-2))
            state = state.unflatten(-2, (-1, patches.num_patches)).mT.flatten(-2)  # channel slow, patch fast
        if self.pooled:
            state = state.unflatten(-1, (-1, self.num_patches)).mean(-1)
        return state * self.num_units**-0.5

    def extra_repr(self) -> str:
        """Return the architecture."""
        stack = ", ".join(str(patches) for patches in self.stack)
        return f"{super().extra_repr()}, {stack}, readout={'pooled' if self.pooled else 'dense'}"
