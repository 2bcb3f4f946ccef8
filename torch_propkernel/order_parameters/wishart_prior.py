"""The Wishart prior of matrix order parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import constraints
from torch.nn import Module as TModule

from .._validation import as_width
from ..numerics.special import log_gamma_normalizer, log_gamma_ratio


class WishartOrderParameterPrior(Prior):
    r"""Wishart prior of matrix order parameters E_l, one for each hidden layer, fixed by the layers' widths alone.

    .. math:: E_l \sim \mathrm{Wishart}_B(N_l + B + 1,\ I / N_l), \qquad
              \log p(E) = \tfrac{N}{2} [\log\det E - \mathrm{tr}\, E] + \text{const}

    With it, the negative log posterior of a GP whose covariance is built from the E_l is the effective action up to a
    factor and a constant, so a MAP fit solves the saddle point. The exact law of the Gram matrix of a readout has N_l
    degrees of freedom and no density for N_l < B; the B + 1 additional ones make the maximum in E that of the density
    in the invariant measure, which stays defined. The mode is the identity at every width. B = 1 is
    :class:`OrderParameterPrior`.

    A layer of infinite width has E = I, whatever value is given to it; it contributes zero.

    Shapes: ``width`` is ``*b x 1 x L``, E is ``*b x L x B x B``, :meth:`log_prob` is ``*b x L``.

    Args:
        width: Widths N_l: a number, a sequence of L numbers, or a tensor ``*b x L``.
        num_blocks: B.

    Raises:
        ValueError: A width that is NaN, zero or negative.

    Reference: THEORY.md, section 11, eq. (20).

    Example:
        >>> import torch
        >>> prior, E = WishartOrderParameterPrior(10.0, 2), torch.tensor([[[0.7, 0.1], [0.1, 1.2]]])
        >>> wishart = torch.distributions.Wishart(torch.tensor(13.0), torch.eye(2) / 10)
        >>> torch.allclose(prior.log_prob(E), wishart.log_prob(E), rtol=1e-5)
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.positive_definite
    has_rsample = True
    _validate_args = False

    def __init__(self, width: float | Sequence[float] | Tensor, num_blocks: int) -> None:
        """Store the widths as the one buffer."""
        TModule.__init__(self)
        self.register_buffer("width", as_width(width).unsqueeze(-2))
        self.num_blocks = num_blocks
        self._transform = None

    @property
    def _batch_shape(self) -> torch.Size:
        return self.width.squeeze(-2).shape

    @property
    def _event_shape(self) -> torch.Size:
        return torch.Size([self.num_blocks, self.num_blocks])

    @property
    def mode(self) -> Tensor:
        """The mode, the identity for every layer, ``*b x L x B x B``."""
        unit = torch.eye(self.num_blocks, dtype=self.width.dtype, device=self.width.device)
        return unit.expand(*self._batch_shape, self.num_blocks, self.num_blocks)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of every layer at x; zero for infinite layers."""
        width = self.width.squeeze(-2)
        finite = torch.isfinite(width)
        half = torch.where(finite, width, torch.ones_like(width)) / 2.0
        excess = x.diagonal(dim1=-2, dim2=-1).sum(-1) - torch.logdet(x) - self.num_blocks
        normalizer = 0.25 * self.num_blocks * (self.num_blocks - 1) * (half / math.pi).log()
        for block in range(self.num_blocks):
            normalizer = normalizer + log_gamma_normalizer(half) - log_gamma_ratio(half, 1.0 + 0.5 * block)
        return torch.where(finite, normalizer - half * excess, torch.zeros_like(half))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Draw order parameters, ``sample_shape x *b x L x B x B``; the identity for infinite layers."""
        width, size = self.width.squeeze(-2), self.num_blocks
        finite = torch.isfinite(width)
        counted = torch.where(finite, width, torch.ones_like(width))
        shape = torch.Size(sample_shape) + width.shape
        # Bartlett's decomposition; torch's own Wishart takes valid draws for singular ones.
        freedom = counted.unsqueeze(-1) + size + 1 - torch.arange(size, dtype=width.dtype, device=width.device)
        diagonal = 2.0 * torch._standard_gamma(0.5 * freedom.expand(*shape, size))
        below = torch.randn(*shape, size, size, dtype=width.dtype, device=width.device).tril(-1)
        factor = (below + torch.diag_embed(diagonal.sqrt())) * counted.rsqrt()[..., None, None]
        unit = torch.eye(size, dtype=width.dtype, device=width.device)
        return torch.where(finite[..., None, None], factor @ factor.mT, unit)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> WishartOrderParameterPrior:
        """Return a prior whose widths are expanded to ``batch_shape`` (including the layers)."""
        return WishartOrderParameterPrior(self.width.squeeze(-2).expand(torch.Size(batch_shape)), self.num_blocks)
