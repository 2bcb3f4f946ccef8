"""The covariance of a network with one convolutional layer, at infinite width and renormalized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import Activation
from .block_kernel import BlockKernel, Pairs
from .block_renormalized_kernel import BlockRenormalizedKernel
from .network_prior_kernel import NetworkPriorKernel
from .patches import Patches
from .recursion import Covariance, Layer, affine, propagate

READOUTS = ("dense", "pooled")
"""How the units of a convolutional layer are read out: each patch by weights of its own, or all by the same."""


class ConvolutionalNNGPKernel(NetworkPriorKernel, BlockKernel):
    r"""Covariance of a Bayesian network with one convolutional hidden layer of infinitely many channels.

    .. math::
        K_{ab}(x, x') = \frac{w_1}{B}\, \kappa\Big(\frac{w_0}{k}\, x_a \cdot x'_b + b_0\Big), \qquad
        K = \sum_{a} K_{aa} \ \text{("dense")}, \qquad K = \frac1B \sum_{ab} K_{ab} \ \text{("pooled")}

    x_a is patch a of the image x, a = 1..B, with k entries (patch size times input channels); :math:`\kappa` the
    activation's dual with the variances of the two patches; w_0 the prior variance of the filters' weights times k, b_0
    that of their biases, w_1 that of the readout. "dense" is a readout that reads every patch by weights of its own, so
    that only equal patches meet at infinite width; "pooled" reads the mean over patches. :class:`ConvolutionalNetwork`
    is the network, :class:`ConvolutionalRenormalizedKernel` its kernel at finite width.

    Parameters, what of them trains, and priors are those of :class:`NNGPKernel`. One convolutional layer; not included:
    several, a readout bias, the noise.

    Shapes: inputs ``... x n x d``, d = channels * rows * columns, an image flattened as ``image.flatten(-3)``. Cost: B
    ("dense") or B (B + 1) / 2 matrix products and elementwise passes ("pooled"), a few matrices at a time.

    Args:
        activation: An activation object such as ``Erf()``, or its name.
        image_shape: (channels, rows, columns), or (channels, length).
        kernel_size: Edge of the patches, one number or one for each spatial dimension.
        stride: Step from patch to patch, likewise; the patch's size (no overlap) if None.
        padding: Zeros at both ends, likewise.
        readout: "dense" or "pooled".
        kwargs: ``weight_variance`` (w_0, w_1), ``bias_variance`` (b_0), ``ard_num_dims`` (d), priors, constraints,
            ``batch_shape`` and ``active_dims`` of :class:`NNGPKernel`.

    Attributes:
        patches: Where the patches lie, a :class:`Patches`.
        num_blocks: B.
        readout: "dense" or "pooled".

    Raises:
        ValueError: Sizes that are not whole numbers >= 1, patches larger than the image, another readout; from a call:
            inputs of another number of columns; and as :class:`NNGPKernel`.

    Reference: Novak et al. (2019), arXiv:1810.05148; THEORY.md, section 12, eq. (24).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import ConvolutionalNNGPKernel, NNGPKernel
        >>> kernel = ConvolutionalNNGPKernel("relu", image_shape=(1, 4, 4), kernel_size=2)
        >>> x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        >>> patches = kernel.patches(x)   # 3 x 4 x 4: four patches without overlap
        >>> mean = sum(NNGPKernel("relu")(patches[:, a]).to_dense() for a in range(4)) / 4
        >>> torch.allclose(kernel(x).to_dense(), mean, atol=1e-6)
        True
    """

    def __init__(
        self,
        activation: str | Activation,
        image_shape: Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        readout: str = "dense",
        **kwargs: Any,
    ) -> None:
        """Check the geometry and register the parameters."""
        if readout not in READOUTS:
            raise ValueError(f"readout: expected one of {READOUTS}, got {readout!r}")
        if "depth" in kwargs:
            raise TypeError("depth: expected one convolutional layer, without this argument, got depth")
        super().__init__(activation, 1, **kwargs)
        self.patches = Patches.of(image_shape, kernel_size, stride, padding)
        self.num_blocks = self.patches.num_patches
        self.readout = readout

    @property
    def factor(self) -> Tensor | None:
        """R, ``B x 1`` of entries B^(-1/2) for a pool; None for a dense readout."""
        if self.readout == "dense":
            return None
        raw = self.raw_hidden_weight_variance
        return torch.full((self.num_blocks, 1), self.num_blocks**-0.5, dtype=raw.dtype, device=raw.device)

    def prepared(self, x: Tensor) -> Tensor:
        """Return the patches times sqrt(w_0 / k), ``... x B x n x k``."""
        if x.shape[-1] != self.patches.num_inputs:
            raise ValueError(
                f"x: expected {self.patches.num_inputs} columns, an image of shape {self.patches.image_shape} "
                f"flattened, got {x.shape[-1]}"
            )
        if self.ard_num_dims is not None:
            x = x * self.ard_weights.sqrt()
        scale = (self.hidden_weight_variance / self.patches.num_entries).sqrt()  # *b x 1 x 1
        return self.patches(x).movedim(-2, -3) * scale.unsqueeze(-1)

    def covariances(self, pairs: Pairs, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        """Return K_ab of the pairs (a, b)."""
        first, second = (list(index) for index in zip(*pairs, strict=True))
        left, right = z1[..., first, :, :], z2[..., second, :, :]
        bias = self.bias_variance.unsqueeze(-1) if self._has_bias[0] else None  # *b x 1 x 1 x 1
        factor = self.readout_variance.unsqueeze(-1) / self.num_blocks
        xx, yy = left.square().sum(-1), right.square().sum(-1)
        if diag:
            state = Covariance(xx, (left * right).sum(-1), yy, elementwise=True)
            factor, bias = factor.squeeze(-1), None if bias is None else bias.squeeze(-1)
        else:
            state = Covariance(xx.unsqueeze(-1), left @ right.mT, yy.unsqueeze(-2), symmetric)
        state = affine(state, None, bias)
        return propagate(state, Layer(self.activation, factor), overwrite=True).xy


class ConvolutionalRenormalizedKernel(BlockRenormalizedKernel):
    r"""Covariance of a network with one convolutional layer of N channels, renormalized.

    .. math:: K_R = \sum_{ab} Q_{ab} K_{ab}, \qquad Q \sim \mathrm{Wishart}_B(N + B + 1,\ I / N) \ \text{("dense")},
              \qquad Q = \frac qB\, 1 1^T \ \text{("pooled")}

    :class:`BlockRenormalizedKernel` over the blocks of :class:`ConvolutionalNNGPKernel`: for a dense readout patches a
    and b meet at finite width, as far as the readout that the data ask for correlates them; a pool has one number q, as
    a fully connected layer. The readout variance is fixed: the order parameter is its scale. In a network
    :math:`Q_{ab} = \lambda_1 \sum_c v_{ca} v_{cb} / N`.

    Args:
        activation: An activation object or its name.
        width: N, the number of channels.
        image_shape: As for :class:`ConvolutionalNNGPKernel`.
        kernel_size: Likewise.
        kwargs: ``stride``, ``padding``, ``readout`` and the other arguments of :class:`ConvolutionalNNGPKernel`.

    Reference: Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 12, eqs. (22) and (24).

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
        width: float | Tensor,
        image_shape: Sequence[int],
        kernel_size: int | Sequence[int],
        *,
        batch_shape: torch.Size | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the blocks with a fixed readout variance."""
        active_dims = kwargs.pop("active_dims", None)
        blocks = _Blocks(activation, image_shape, kernel_size, batch_shape=batch_shape, **kwargs)
        super().__init__(blocks, width, batch_shape=batch_shape, active_dims=active_dims)


class _Blocks(ConvolutionalNNGPKernel):
    """The infinitely wide network's blocks with a fixed readout variance: a scale of them is the order parameter's."""

    _trains_readout = False
