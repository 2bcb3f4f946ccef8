"""The Gamma prior of the layers' order parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import constraints
from torch.nn import Module as TModule

from .._validation import as_width


class OrderParameterPrior(Prior):
    r"""Gamma prior of the order parameters q_l, one for each hidden layer, fixed by the layers' widths alone.

    .. math:: q_l \sim \mathrm{Gamma}(N_l/2 + 1,\ \text{rate } N_l/2)

    With it, the negative log posterior of a GP with kernel :math:`K_R(q)` is the effective action up to a factor and a
    constant, so a MAP fit solves the saddle point (THEORY.md, section 1). The exact law of q = ``lambda |v|^2 / N`` is
    Gamma(N/2, rate N/2); the additional power of q makes the maximum in q that of the density of log q. The mode is
    q = 1 at every width.

    A layer of infinite width has q = 1 and contributes zero to :meth:`log_prob`.

    Shapes: ``width`` is ``*batch_shape x 1 x L`` (the shape of ``order_parameter``); it is the one buffer that kernel
    and prior share. :meth:`log_prob` is elementwise, exact to rounding for widths up to 1e15 (no lgamma differences).

    Args:
        width: Widths N_l: a number, a sequence of L numbers, or a tensor ``*batch_shape x L``.

    Raises:
        ValueError: A width is NaN, zero or negative.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497; THEORY.md, eq. (2).

    Example:
        >>> import torch
        >>> prior = OrderParameterPrior(100.0)
        >>> gamma = torch.distributions.Gamma(51.0, 50.0)
        >>> q = torch.tensor([[0.7]])
        >>> torch.allclose(prior.log_prob(q), gamma.log_prob(q), rtol=1e-5)
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.positive
    has_rsample = True
    _validate_args = False

    def __init__(self, width: float | Sequence[float] | Tensor) -> None:
        """Store the widths as the one buffer."""
        TModule.__init__(self)
        self.register_buffer("width", as_width(width).unsqueeze(-2))
        self._transform = None

    @property
    def _batch_shape(self) -> torch.Size:
        return self.width.shape

    @property
    def _event_shape(self) -> torch.Size:
        return torch.Size([])

    @property
    def mode(self) -> Tensor:
        """The mode, one for every layer."""
        return torch.ones_like(self.width)

    @property
    def mean(self) -> Tensor:
        """1 + 2 / N_l."""
        return 1.0 + 2.0 / self.width

    @property
    def variance(self) -> Tensor:
        """(1 + 2 / N_l) * 2 / N_l."""
        return self.mean * 2.0 / self.width

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the elementwise log density at ``x``, zero for infinite layers."""
        finite = torch.isfinite(self.width)
        half = torch.where(finite, self.width, 2.0) / 2.0
        deviation = x - 1.0
        value = half * (torch.log1p(deviation) - deviation) + _log_normalizer(half)
        return torch.where(finite, value, torch.zeros_like(value))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Draw order parameters of shape ``sample_shape x *batch_shape x 1 x L``; infinite layers give one."""
        finite = torch.isfinite(self.width)
        half = torch.where(finite, self.width, 2.0) / 2.0
        draws = torch.distributions.Gamma(half + 1.0, half).rsample(torch.Size(sample_shape))
        return torch.where(finite, draws, torch.ones_like(draws))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> OrderParameterPrior:
        """Return a prior whose widths are expanded to ``batch_shape`` (including the trailing 1 x L)."""
        return OrderParameterPrior(self.width.expand(torch.Size(batch_shape)).squeeze(-2))


def _log_normalizer(a: Tensor) -> Tensor:
    """(a + 1) log a - a - lgamma(a + 1), from Stirling's series where differences would cancel."""
    large = torch.where(a > 1e2, a, 1e2)
    stirling = 0.5 * (large / (2.0 * math.pi)).log() - (1.0 - 1.0 / (30.0 * large**2)) / (12.0 * large)
    small = torch.where(a > 1e2, 1e2, a)
    return torch.where(a > 1e2, stirling, (small + 1.0) * small.log() - small - torch.lgamma(small + 1.0))
