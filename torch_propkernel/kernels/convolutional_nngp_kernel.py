"""The covariance of a network of convolutional layers, at infinite width and renormalized."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._validation import as_width
from ..activations import Activation, Identity, get_activation
from .block_kernel import BlockKernel, Pairs
from .block_renormalized_kernel import BlockRenormalizedKernel
from .network_prior_kernel import NetworkPriorKernel
from .patch_chain import patch_chain
from .patches import Patches, sizes_of
from .recursion import Covariance, Layer, affine, dual_covariance, propagate

READOUTS = ("dense", "pooled")
"""How the units of a convolutional layer are read out: each patch by weights of its own, or all by the same."""


class ConvolutionalNNGPKernel(NetworkPriorKernel, BlockKernel):
    r"""Covariance of a Bayesian network with convolutional hidden layers of infinitely many channels.

    .. math::
        C^1_{ab}(x, x') = \frac{w_0}{k}\, x_a \cdot x'_b + b_0, \qquad
        C^{l+1}_{ab} = \frac{w_l}{F_{l+1}} \sum_{t=1}^{F_{l+1}} \kappa(C^l_{s(a,t)\, s(b,t)}) + b_l, \qquad
        K_{ab} = \frac{w_L}{B}\, \kappa(C^L_{ab})

        K = \sum_{a} K_{aa} \ \text{("dense")}, \qquad K = \frac1B \sum_{ab} K_{ab} \ \text{("pooled")}

    x_a is patch a of the image x, with k entries (patch size times input channels); patch a of layer l + 1 reads
    F_{l+1} places s(a, t) of layer l, each a patch there; places in the padding contribute nothing. Filters are shared
    by all patches, so that only equal places t meet. :math:`\kappa` is the activation's dual with the variances of the
    two patches; w_0 the prior variance of the filters' weights times k, w_l of those of layer l + 1 times their number,
    b_l that of their biases, w_L that of the readout; a, b = 1..B in the last layer. "dense" is a readout that reads
    every patch by weights of its own, so that only equal patches meet at infinite width; "pooled" reads the mean over
    patches. :class:`ConvolutionalNetwork` is the network, :class:`ConvolutionalRenormalizedKernel` its kernel at finite
    width.

    Parameters, what of them trains, and priors are those of :class:`NNGPKernel`. Not included: pooling between layers,
    a readout bias, the noise.

    Shapes: inputs ``... x n x d``, d = channels * rows * columns, an image flattened as ``image.flatten(-3)``. Cost: B
    ("dense") or B (B + 1) / 2 ("pooled") pairs of patches, each :math:`F_2 \cdots F_L` matrix products and
    :math:`1 + F_L + F_L F_{L-1} + \dots` elementwise passes over its receptive field, a few matrices of ``n x m`` for
    each layer at a time: the memory does not grow with the image. Patches that overlap are computed anew for each pair.

    Args:
        activation: An activation object such as ``Erf()``, or its name.
        image_shape: (channels, rows, columns), or (channels, length).
        kernel_size: Edge of the patches, one number or one for each spatial dimension. For several layers a list with
            such an entry for each of them, of which at least one is a sequence: ``[(3, 3), (2, 2)]``.
        stride: Step from patch to patch, likewise; the patch's size (no overlap) if None. For several layers a list
            has an entry for each of them, and a number holds in all.
        padding: Zeros at both ends, likewise; above the first layer they stand beside the activations.
        readout: "dense" or "pooled".
        kwargs: ``weight_variance`` (w_0, ..., w_L), ``bias_variance`` (b_0, ..., b_{L-1}), ``ard_num_dims`` (d),
            priors, constraints, ``batch_shape`` and ``active_dims`` of :class:`NNGPKernel`.

    Attributes:
        stack: Where the patches of each layer lie, a :class:`Patches` each; its length is the depth L.
        patches: Those of the first layer, which cut the images.
        num_blocks: B.
        readout: "dense" or "pooled".

    Raises:
        ValueError: Sizes that are not whole numbers >= 1, patches larger than the image, lists of different lengths,
            another readout; from a call: inputs of another number of columns; and as :class:`NNGPKernel`.

    Reference: Novak et al. (2019), arXiv:1810.05148; THEORY.md, section 12, eqs. (24) and (25).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import ConvolutionalNNGPKernel, NNGPKernel
        >>> kernel = ConvolutionalNNGPKernel("relu", image_shape=(1, 4, 4), kernel_size=2)
        >>> x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        >>> patches = kernel.patches(x)   # 3 x 4 x 4: four patches without overlap
        >>> mean = sum(NNGPKernel("relu")(patches[:, a]).to_dense() for a in range(4)) / 4
        >>> torch.allclose(kernel(x).to_dense(), mean, atol=1e-6)
        True
        >>> two = ConvolutionalNNGPKernel("relu", (1, 4, 4), kernel_size=[(2, 2), (1, 1)])   # the second layer is local
        >>> mean = sum(NNGPKernel("relu", depth=2)(patches[:, a]).to_dense() for a in range(4)) / 4
        >>> torch.allclose(two(x).to_dense(), mean, atol=1e-6)
        True
    """

    def __init__(
        self,
        activation: str | Activation,
        image_shape: Sequence[int],
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        readout: str = "dense",
        **kwargs: Any,
    ) -> None:
        """Check the geometry and register the parameters."""
        if readout not in READOUTS:
            raise ValueError(f"readout: expected one of {READOUTS}, got {readout!r}")
        if "depth" in kwargs:
            raise TypeError("depth: expected the lists of kernel_size, stride and padding to say it, got depth")
        stack = Patches.of_layers(image_shape, kernel_size, stride, padding)
        super().__init__(activation, len(stack), **kwargs)
        self.stack, self.readout = stack, readout
        self.num_blocks = stack[-1].num_patches
        self._sites = [patches.sites for patches in stack]

    @property
    def patches(self) -> Patches:
        """The patches of the first layer."""
        return self.stack[0]

    @property
    def factor(self) -> Tensor | None:
        """R, ``B x 1`` of entries B^(-1/2) for a pool; None for a dense readout."""
        if self.readout == "dense":
            return None
        raw = self.raw_hidden_weight_variance
        return torch.full((self.num_blocks, 1), self.num_blocks**-0.5, dtype=raw.dtype, device=raw.device)

    def prepared(self, x: Tensor) -> Tensor:
        """Return the patches of the first layer times sqrt(w_0 / k), ``... x B_1 x n x k``."""
        if x.shape[-1] != self.patches.num_inputs:
            raise ValueError(
                f"x: expected {self.patches.num_inputs} columns, an image of shape {self.patches.image_shape} "
                f"flattened, got {x.shape[-1]}"
            )
        if self.ard_num_dims is not None:
            x = x * self.ard_weights.sqrt()
        scale = (self.hidden_weight_variance[..., :1] / self.patches.num_entries).sqrt()  # *b x 1 x 1
        return self.patches(x).movedim(-2, -3) * scale.unsqueeze(-1)

    def covariances(self, pairs: Pairs, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        """Return K_ab of the pairs (a, b)."""
        first, second = torch.tensor(pairs).unbind(-1)
        state = self._pre_activations(self.depth - 1, first, second, z1, z2, diag, symmetric)
        factor = self._shaped_to(self.readout_variance, diag) / self.num_blocks
        return propagate(state, Layer(self.activation, factor), overwrite=True).xy

    def _pre_activations(
        self, layer: int, first: Tensor, second: Tensor, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool
    ) -> Covariance:
        """Return C^{layer + 1} of p pairs of patches; one place of the receptive fields at a time."""
        bias = self.bias_variance[..., layer : layer + 1] if self._has_bias[layer] else None
        bias = None if bias is None else self._shaped_to(bias, diag)
        if layer == 0:
            return affine(_products(z1[..., first, :, :], z2[..., second, :, :], diag, symmetric), None, bias)

        def at_place(one: Tensor, other: Tensor) -> Covariance:
            below = one.clamp_min(0), other.clamp_min(0)
            state = self._pre_activations(layer - 1, *below, z1, z2, diag, symmetric)
            return _inside(dual_covariance(state, self.activation, overwrite=True), one >= 0, other >= 0)

        sites = self._sites[layer]
        total = functools.reduce(
            _sum, (at_place(*both) for both in zip(sites[first].mT, sites[second].mT, strict=True))
        )
        factor = self._shaped_to(self.hidden_weight_variance[..., layer : layer + 1], diag) / sites.shape[-1]
        return affine(total, factor, bias, overwrite=True)

    @staticmethod
    def _shaped_to(value: Tensor, diag: bool) -> Tensor:
        """Return a variance, ``*b x 1 x 1``, to broadcast against covariances of pairs."""
        return value if diag else value.unsqueeze(-1)


def _products(left: Tensor, right: Tensor, diag: bool, symmetric: bool) -> Covariance:
    """Return the products of patches, ``... x p x n x k`` and ``... x p x m x k``."""
    xx, yy = left.square().sum(-1), right.square().sum(-1)
    if diag:
        return Covariance(xx, (left * right).sum(-1), yy, elementwise=True)
    return Covariance(xx.unsqueeze(-1), left @ right.mT, yy.unsqueeze(-2), symmetric)


def _inside(state: Covariance, one: Tensor, other: Tensor) -> Covariance:
    """Return a state without what lies in the padding; one number for each pair."""
    if bool(one.all()) and bool(other.all()):
        return state
    shape = (-1, *[1] * (1 if state.elementwise else 2))
    left, right = (mask.to(state.xy).reshape(shape) for mask in (one, other))
    return state._replace(xx=state.xx * left, xy=state.xy * (left * right), yy=state.yy * right)


def _sum(first: Covariance, second: Covariance) -> Covariance:
    """Return the sum of two states of one kind."""
    return first._replace(xx=first.xx + second.xx, xy=first.xy + second.xy, yy=first.yy + second.yy)


class ConvolutionalRenormalizedKernel(BlockRenormalizedKernel):
    r"""Covariance of a network of convolutional layers with N channels in the last one, renormalized.

    .. math:: K_R = \sum_{ab} Q_{ab} K_{ab}, \qquad Q \sim \mathrm{Wishart}_B(N + B + 1,\ I / N) \ \text{("dense")},
              \qquad Q = \frac qB\, 1 1^T \ \text{("pooled")}

    :class:`BlockRenormalizedKernel` over the blocks of :class:`ConvolutionalNNGPKernel`: for a dense readout patches a
    and b meet at finite width, as far as the readout that the data ask for correlates them; a pool has one number q, as
    a fully connected layer. The readout variance is fixed: the order parameter is its scale. In a network
    :math:`Q_{ab} = \lambda_L \sum_c v_{ca} v_{cb} / N`.

    Of several layers the last one is renormalized, and those below are taken at infinite width, whatever their numbers
    of channels: the right limit for many channels below (with 20 and 20 channels of erf the test error was 9 % too low,
    THEORY.md, section 12). With the identity as activation and the numbers of channels of
    all layers every layer is renormalized,

    .. math:: K_R = \sum_{ab} Q_{1,ab}\, w_1 \cdots w_L\, C^1_{ab} / B, \qquad
              Q_l = R_l E_l R_l^T, \quad E_l \sim \mathrm{Wishart}(N_l, I / N_l), \qquad
              R_l R_l^T = \frac{1}{F_{l+1}} \sum_t A_t^T Q_{l+1} A_t

    with a, b the patches of the first layer and (A_t)_{ps} = 1 where place t of patch p of layer l + 1 is patch s of
    layer l. This is exact in the proportional limit. For other activations it is wrong (by a factor of two for relu).

    Args:
        activation: An activation object or its name.
        width: N, the number of channels of the last layer; or N_1, ..., N_L of all layers, of which
            ``network_from_model`` needs the others.
        image_shape: As for :class:`ConvolutionalNNGPKernel`.
        kernel_size: Likewise.
        stride: Likewise.
        padding: Likewise.
        kwargs: ``readout`` and the other arguments of :class:`ConvolutionalNNGPKernel`.

    Attributes:
        lower_width: Numbers of channels of the layers below those of ``width``, which do not enter the covariance;
            infinite where they were not given.

    Raises:
        ValueError: Widths of another number than 1 or L, a batch of widths of several layers, biases above the first of
            several renormalized layers; and as :class:`ConvolutionalNNGPKernel` and :class:`BlockRenormalizedKernel`.

    Reference: Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 12, eqs. (22) and (24) to (26).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import ConvolutionalRenormalizedKernel
        >>> kernel = ConvolutionalRenormalizedKernel("erf", width=20, image_shape=(3, 8, 8), kernel_size=4)
        >>> kernel.order_parameter.shape, kernel(torch.ones(2, 192)).shape   # four patches
        (torch.Size([1, 4, 4]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        activation: str | Activation,
        width: float | Sequence[float] | Tensor,
        image_shape: Sequence[int],
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *,
        batch_shape: torch.Size | None = None,
        active_dims: Any = None,
        **kwargs: Any,
    ) -> None:
        """Build the blocks with a fixed readout variance."""
        widths = as_width(width)
        given = widths.shape[-1]
        if given > 1 and widths.dim() > 1:
            raise ValueError(f"width: expected one list for several layers, got shape {tuple(widths.shape)}")
        stack = Patches.of_layers(image_shape, kernel_size, stride, padding, [1] * given if given > 1 else None)
        options = {**sizes_of(stack), "batch_shape": batch_shape, **kwargs}
        lower = tuple(widths[:-1].tolist()) if given > 1 else (math.inf,) * (len(stack) - 1)
        blocks: _Blocks
        if get_activation(activation) == Identity() and any(math.isfinite(number) for number in lower):
            blocks = _ChainBlocks(activation, **options)
            super().__init__(blocks, widths, chain=blocks.chain, batch_shape=batch_shape, active_dims=active_dims)
            self.lower_width: tuple[float, ...] = ()
        else:
            blocks = _Blocks(activation, **options)
            super().__init__(blocks, widths[..., -1:], batch_shape=batch_shape, active_dims=active_dims)
            self.lower_width = lower


class _Blocks(ConvolutionalNNGPKernel):
    """The infinitely wide network's blocks with a fixed readout variance: a scale of them is the order parameter's."""

    _trains_readout = False


class _ChainBlocks(_Blocks):
    """The blocks of the first layer of a linear network, w_1 ... w_L C^1_ab / B: the layers above are in the chain."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the chain; there are as many blocks as patches of the first layer."""
        super().__init__(*args, **kwargs)
        if any(self._has_bias[1:]):
            raise ValueError(
                "bias_variance: expected zeros above the first of several renormalized layers, got "
                f"{self.bias_variance.tolist()}; an infinite width below leaves the last layer's matrix alone"
            )
        self._basis, self.chain = patch_chain(self.stack, self.readout == "pooled")
        self.num_blocks = self.patches.num_patches

    @property
    def factor(self) -> Tensor:
        """U_1, ``B_1 x r_1``."""
        return self._basis.to(self.raw_hidden_weight_variance)

    def prior_weights(self, like: Tensor) -> Tensor:
        """Return Q_1 at infinite width."""
        units = [torch.eye(size, dtype=like.dtype, device=like.device) for size in self.chain.sizes]
        factor = self._basis.to(like)
        return factor @ self.chain(units) @ factor.mT

    def covariances(self, pairs: Pairs, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        """Return the blocks of the pairs (a, b) of patches of the first layer."""
        first, second = torch.tensor(pairs).unbind(-1)
        state = self._pre_activations(0, first, second, z1, z2, diag, symmetric)
        above = self.weight_variance[..., 1:].prod(-1, keepdim=True) / self.stack[-1].num_patches
        return affine(state, self._shaped_to(above, diag), None, overwrite=True).xy
