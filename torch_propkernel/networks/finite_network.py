"""A fully connected Bayesian network of finite width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._validation import whole_number
from ..activations import Activation
from .feature_network import FeatureNetwork


class FiniteNetwork(FeatureNetwork):
    r"""Fully connected Bayesian network of finite width, the one whose posterior the renormalized kernels predict.

    .. math::
        h^1 = \frac{W^1 x}{\sqrt{N_0}} + b^1, \quad
        h^l = \frac{W^l \sigma(h^{l-1})}{\sqrt{N_{l-1}}} + b^l, \quad
        f = \frac{v \cdot \sigma(h^L)}{\sqrt{N_L}} + \beta

    N_0 = ``input_dim``, N_l the widths, :math:`\sigma` the activation. Under the prior the entries of W^l have variance
    w_{l-1} = 1 / lambda_{l-1}, those of v variance w_L, those of b^l variance b_{l-1}: the factors 1/sqrt(N) belong to
    the network. So ``weight_variance`` and ``bias_variance`` mean the same as in :class:`NNGPKernel`, whose covariance
    is exactly that of f for one hidden layer and its limit of large widths for more. The bias :math:`\beta` of the
    readout, of variance ``readout_bias_variance`` (zero by default: none), is a ``ConstantKernel`` added to it.

    The parameters are the *whitened* hidden weights in one flat vector (layer by layer, weight then bias) and the
    readout; ``layers`` gives the physical ones. Drawn from the prior at construction. With ``input_scale`` a, ARD
    weights, x_j is multiplied by sqrt(a_j) first. Not included: the noise.

    Shapes: x is ``P x d`` or ``*b x P x d``; the output is ``*b x P``, with ``num_outputs`` ``*b x P x D``. Cost: the
    matrix products of a forward pass, batched over networks.

    Args:
        activation: An activation object, e.g. ``Erf()``.
        input_dim: N_0, the number of inputs.
        width: N_1, ..., N_L: a whole number or a sequence of them.
        input_scale: ARD weights a_j, N_0 numbers >= 0; all 1 if None.
        active_dims: Columns of x that the network reads, N_0 of them; x has exactly N_0 columns if None.
        kwargs: ``num_outputs``, ``weight_variance``, ``bias_variance``, ``readout_bias_variance``, ``batch_shape``,
            ``dtype``, ``device`` and ``generator`` of :class:`FeatureNetwork`.

    Attributes:
        hidden: Parameter ``*b x num_hidden``, standard normal under the prior.
        readout: Parameter ``*b x N_L x D`` (D = 1 without ``num_outputs``), variance w_L; one more row for a bias.
        weight_variance: Buffer, w_0, ..., w_L in float64.
        bias_variance: Buffer, b_0, ..., b_{L-1} in float64.
        input_scale: Buffer of a_j in float64, or None.
        active_dims: Buffer of column indices, or None.

    Raises:
        TypeError: The activation is no activation object.
        ValueError: A width that is infinite, fractional or below one; variances that are not positive or of the wrong
            number; from a call: inputs of the wrong shape or device. NaN inputs give NaN.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497 (arXiv:2209.04882); THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf
        >>> from torch_propkernel.networks import FiniteNetwork
        >>> network = FiniteNetwork(Erf(), input_dim=3, width=[5, 4], num_outputs=2, batch_shape=(7,))
        >>> network(torch.ones(6, 3)).shape, network.num_hidden
        (torch.Size([7, 6, 2]), 35)
        >>> [weight.shape[1:] for weight, bias in network.layers()]
        [torch.Size([5, 3]), torch.Size([4, 5])]
    """

    input_scale: Tensor | None
    active_dims: Tensor | None

    def __init__(
        self,
        activation: str | Activation,
        input_dim: int,
        width: int | Sequence[int],
        *,
        input_scale: Sequence[float] | Tensor | None = None,
        active_dims: Sequence[int] | Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the architecture and draw the weights from the prior."""
        sizes = [whole_number("input_dim", input_dim), *_whole_widths(width)]
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        super().__init__(activation, input_dim, shapes, sizes[-1], **kwargs)
        scale = None if input_scale is None else torch.as_tensor(input_scale, dtype=torch.float64).detach().clone()
        columns = None if active_dims is None else torch.as_tensor(active_dims, dtype=torch.long).clone()
        for name, value in (("input_scale", scale), ("active_dims", columns)):
            if value is not None and (value.shape != (self.input_dim,) or not bool((value >= 0).all())):
                raise ValueError(f"{name}: expected {self.input_dim} numbers >= 0, got {value.tolist()}")
            self.register_buffer(name, None if value is None else value.to(self.hidden.device))

    def _features(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        for state in self.activations(x, hidden):
            last = state
        return last * self.num_units**-0.5

    def activations(self, x: Tensor, hidden: Tensor | None = None) -> Iterator[Tensor]:
        """Yield sigma(h^l) of the hidden layers one after the other, ``*b x P x N_l``.

        Args:
            x: Inputs ``P x d`` or ``*b x P x d``.
            hidden: Whitened hidden weights ``*b x num_hidden`` of any batch shape; the module's own if None.

        Raises:
            TypeError: Inputs of another dtype.
            ValueError: Inputs of another number of columns or device.
        """
        state = self.read_inputs(x, hidden).mT  # units by points: a batch of networks is one product
        for weight, bias in self.layers(hidden):
            state = (weight * weight.shape[-1] ** -0.5) @ state
            state = self.activation(state if bias is None else state + bias.unsqueeze(-1))
            yield state.mT

    def read_inputs(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return what the first layer's weights multiply: the columns that it reads, times sqrt(``input_scale``).

        Args:
            x: Inputs ``P x d`` or ``*b x P x d``.
            hidden: Hidden weights whose dtype and device they must have; the module's own if None.

        Raises:
            TypeError: Inputs of another dtype.
            ValueError: Inputs of another number of columns or device.
        """
        inputs = self._check_inputs(x if self.active_dims is None else x[..., self.active_dims], hidden)
        return inputs if self.input_scale is None else inputs * self.input_scale.sqrt().to(inputs.dtype)


def _whole_widths(width: Any) -> list[int]:
    """Return the widths as whole numbers."""
    widths = width.tolist() if isinstance(width, Tensor) else width
    hint = "; a network with an infinite or fractional width is a kernel: use NNGPKernel or RenormalizedNNGPKernel"
    widths = list(widths) if isinstance(widths, (list, tuple)) else [widths]
    if not widths:
        raise ValueError("width: expected one whole number per hidden layer, got none")
    return [whole_number("width", value, hint) for value in widths]
