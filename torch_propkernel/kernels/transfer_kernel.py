"""The covariance of a network whose hidden weights start from those of networks that learned another task."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from .._validation import check_finite, check_floating, whole_number
from .nngp_kernel import _refuse_last_dim_is_batch
from .recursion import same_points

_LARGEST = 2**24
"""Numbers of the features that are held at a time."""


class TransferKernel(Kernel):
    r"""Covariance of a network whose hidden weights are coupled to draws from the posterior of a source task.

    .. math:: w = c\, w_s + \sqrt{1 - c^2}\, \xi, \quad \xi \sim N(0, 1), \qquad
              K(x, x') = \mathrm{w}_L\, \frac1S \sum_{s=1}^S \phi_w(x) \cdot \phi_w(x')

    w are whitened hidden weights, w_s those of S networks of the source task, :math:`\phi_w` the features of a network
    (its last hidden activations over the square root of their number), w_L the variance of the readout, which is drawn
    anew. At coupling c = 0 nothing is transferred: with one hidden layer that is :class:`NNGPKernel` (with more, the
    mean of the finite network's kernel). At c = 1 the features of the source are fixed: a linear kernel in them. Where
    w_s has the prior, so has w, at any c.

    The sum is over units that were drawn once, the same for all points and couplings, so that the kernel is positive
    semidefinite, smooth in c, and off by one over the square root of S times the width, relative. Put it into
    ``BlockRenormalizedKernel([[kernel]], width)``: one number, which the theories find, is then the order parameter of
    the target's network. With one source network (S = 1) it is the target's infinitely wide network around that very
    draw, with more the average over the source's posterior.

    The source's inputs and the target's are the same columns in the same units. Not included: a readout bias (add a
    ConstantKernel), trained couplings; choose c by leave-one-out densities. ``saving`` does not take it.

    Shapes: inputs ``... x n x d`` and ``... x m x d`` give ``... x n x m``. Cost: S networks at n + m points and
    n m S F for F units each. Memory: the features of some networks at a time, and two copies of the S hidden weights.

    Args:
        network: A :class:`FeatureNetwork`: architecture and prior.
        source: Whitened hidden weights of the source's networks, ``... x num_hidden``; such as
            ``Sampled().fit(source_model).conditioned.states``, ``SampledPosterior.hidden``, or, for a network of width
            1, ``Adaptive().fit(source_model).draw_units(4096)``.
        coupling: c, from 0 to 1; an attribute that can be set later.
        num_fresh: Draws of xi for each w_s.
        seed: Seed of xi.
        kwargs: ``active_dims`` of :class:`gpytorch.kernels.Kernel`.

    Attributes:
        coupling: c.
        network: The network, without gradients.
        source: w_s, ``S x num_hidden``.
        fresh: xi, ``num_fresh x S x num_hidden``.

    Raises:
        TypeError: A network without features, hidden weights that are no floating-point tensor.
        ValueError: Hidden weights of another number, that are not finite, or none; c outside of [0, 1]; a readout bias.

    Reference: Ingrosso, Pacelli, Rotondo, Gerace (2024), arXiv:2407.07168, for the coupling of two networks; THEORY.md,
    section 14.

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import BlockRenormalizedKernel, TransferKernel
        >>> from torch_propkernel.networks import FiniteNetwork
        >>> network = FiniteNetwork("identity", input_dim=1, width=2)
        >>> kernel = TransferKernel(network, source=torch.tensor([[3.0, 1.0]]), coupling=1.0)
        >>> round(kernel(torch.ones(1, 1)).to_dense().item(), 4)   # (3^2 + 1^2) / 2
        5.0
        >>> BlockRenormalizedKernel([[kernel]], width=50).order_parameter.item()
        1.0
    """

    source: Tensor
    fresh: Tensor

    def __init__(
        self,
        network: Any,
        source: Tensor,
        coupling: float = 1.0,
        *,
        num_fresh: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """Keep the hidden weights and draw what is new of the target's."""
        super().__init__(**kwargs)
        if not hasattr(network, "features") or not hasattr(network, "num_hidden"):
            raise TypeError(f"network: expected a FiniteNetwork or ConvolutionalNetwork, got {type(network).__name__}")
        check_finite("source", check_floating("source", source))
        if source.shape[-1:] != (network.num_hidden,) or source.numel() == 0:
            raise ValueError(f"source: expected shape (..., {network.num_hidden}), got {tuple(source.shape)}")
        if float(network.readout_bias_variance) > 0:
            raise ValueError(
                f"network: expected no readout bias, got one of variance {float(network.readout_bias_variance):g}; "
                "add a ConstantKernel"
            )
        count = whole_number("num_fresh", num_fresh)
        states = source.detach().reshape(-1, source.shape[-1]).clone()
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        fresh = torch.randn(count, *states.shape, generator=generator, dtype=torch.float64)
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("source", states)
        self.register_buffer("fresh", fresh.to(states))
        self.coupling = coupling

    @property
    def coupling(self) -> float:
        """The coupling c between the target's hidden weights and the source's, from 0 to 1."""
        return self._coupling

    @coupling.setter
    def coupling(self, value: float) -> None:
        if not 0.0 <= float(value) <= 1.0:
            raise ValueError(f"coupling: expected a number from 0 to 1, got {value!r}")
        self._coupling = float(value)

    def hidden(self) -> Tensor:
        """Return the whitened hidden weights w of the target's networks, ``num_fresh S x num_hidden``."""
        return (self._coupling * self.source + math.sqrt(1.0 - self._coupling**2) * self.fresh).flatten(0, 1)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return K(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        hidden, scale = self.hidden(), self.network.readout_variance[0].to(x1)
        number = max(1, _LARGEST // max(1, max(x1.shape[:-1].numel(), x2.shape[:-1].numel()) * self.network.num_units))
        total = x1.new_zeros(())
        for some in hidden.split(number):
            first = self._features(x1, some)
            second = first if same_points(x1, x2) else self._features(x2, some)
            total = total + ((first * second).sum(-1) if diag else first @ second.mT)
        return total * (scale / len(hidden))

    def _features(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the features of several networks beside each other, ``... x n x (S F)``."""
        return self.network.features(x.unsqueeze(-3), hidden).transpose(-3, -2).flatten(-2)
