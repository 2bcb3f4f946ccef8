"""The Gamma prior of the layers' order parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import constraints
from torch.nn import Module as TModule

from .._validation import as_width
from ..numerics.special import log_gamma_normalizer


class OrderParameterPrior(Prior):
    r"""Gamma prior of the order parameters q_l, one for each hidden layer, fixed by the layers' widths alone.

    .. math:: q_l \sim \mathrm{Gamma}(N_l/2 + 1,\ \text{rate } N_l/2)

    With it, the negative log posterior of a GP with kernel :math:`K_R(q)` is the effective action up to a factor and a
    constant, so a MAP fit solves the saddle point (THEORY.md, section 1). The exact law of q = ``lambda |v|^2 / N`` is
    Gamma(N/2, rate N/2); the additional power of q makes the maximum in q that of the density of log q. The mode is
    q = 1 at every width.

    A layer of infinite width has q = 1, whatever value is given to it: the kernel ignores the value. Yet samplers such
    as NUTS ask for a proper law, so here it stands under the law of that width, 12.9, whose density at q = 1 is one. It
    contributes zero at q = 1, the value that the kernel reports; draws, density and moments are those of the stand-in.

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

    _STAND_IN = 12.895173885676820
    """The width at which the density is one at its mode."""

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
    def batch_shape(self) -> torch.Size:
        """The shape of the widths, ``*batch_shape x 1 x L``."""
        return self.width.shape

    @batch_shape.setter
    def batch_shape(self, value: torch.Size) -> None:
        """Take nothing over: BoTorch's ``subset_output`` writes here after it has indexed the widths themselves."""

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
        return 1.0 + 1.0 / self._half()

    @property
    def variance(self) -> Tensor:
        """(1 + 2 / N_l) * 2 / N_l."""
        return self.mean / self._half()

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the elementwise log density at ``x``; for infinite layers that of the stand-in, zero at one."""
        half, deviation = self._half(), x - 1.0
        normalizer = torch.where(torch.isfinite(self.width), log_gamma_normalizer(half), torch.zeros_like(half))
        return half * (torch.log1p(deviation) - deviation) + normalizer

    def rsample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Draw order parameters of shape ``sample_shape x *batch_shape x 1 x L``."""
        half = self._half()
        return torch.distributions.Gamma(half + 1.0, half).rsample(torch.Size(sample_shape))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> OrderParameterPrior:
        """Return a prior whose widths are expanded to ``batch_shape`` (including the trailing 1 x L)."""
        return OrderParameterPrior(self.width.expand(torch.Size(batch_shape)).squeeze(-2))

    def _half(self) -> Tensor:
        """N_l / 2, of the stand-in where N_l is infinite."""
        return torch.where(torch.isfinite(self.width), self.width, self._STAND_IN) / 2.0
