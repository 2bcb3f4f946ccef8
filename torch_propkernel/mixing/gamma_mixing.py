"""The law of a network with one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics.special import exponential_excess, log_gamma_normalizer
from .mixing_law import MixingLaw
from .parameters import as_parameter


class GammaMixing(MixingLaw):
    r"""Gamma law of the scale: a network with one hidden layer of N units.

    .. math:: r \sim \mathrm{Gamma}(N/2,\ \text{rate } N/2), \qquad
        \log p(u) = \tfrac N2 (u - e^u) + \text{const},\ u = \log r

    r is :math:`\lambda_1 |v|^2 / N` for readout weights v of precision :math:`\lambda_1`; its mean is 1, its variance
    2/N. The width is data: it carries no gradient.

    An infinite width is a point mass at r = 1 (see :class:`MixingLaw` for a batch with finite and infinite widths).

    Shapes: ``width`` is ``*batch_shape``. Accuracy: rounding, for widths from 0.5 to 1e15 (no lgamma differences).

    Args:
        width: N > 0, a number or a tensor of any shape; for several layers see :class:`ProductGammaMixing`.

    Raises:
        TypeError, ValueError: Not a number or tensor; NaN, zero or negative.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497; THEORY.md, eq. (1).

    Example:
        >>> import torch
        >>> law = GammaMixing(100.0)
        >>> r = torch.tensor([0.7, 1.2])
        >>> torch.allclose(law.log_prob(r), torch.distributions.Gamma(50.0, 50.0).log_prob(r), rtol=1e-5)
        True
    """

    def __init__(self, width: float | Tensor) -> None:
        """Store the width."""
        self.width = as_parameter("width", width).detach()
        self.batch_shape = self.width.shape

    @property
    def mean(self) -> Tensor:
        """One."""
        return torch.ones_like(self.width)

    @property
    def variance(self) -> Tensor:
        """2 / N."""
        return 2.0 / self.width

    @property
    def point_masses(self) -> Tensor:
        """The infinite widths."""
        return torch.isinf(self.width)

    def log_density(self, u: Tensor) -> Tensor:
        """Return the log density of u = log r."""
        self._check_density()
        half = self._half()
        return self._at_point_masses(u, log_gamma_normalizer(half) - half * exponential_excess(u))

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw r, ``*sample_shape x *batch_shape``."""
        half = self._half().expand(*sample_shape, *self.batch_shape).contiguous()
        draws = (torch._standard_gamma(half, generator=generator) / half).clamp(min=torch.finfo(half.dtype).tiny)
        return torch.where(self.point_masses, 1.0, draws)

    def _half(self) -> Tensor:
        return torch.where(self.point_masses, 2.0, self.width) / 2.0

    def __repr__(self) -> str:
        return f"GammaMixing(width={self.width.tolist()})"
