"""The law of a Student's t process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics.special import exponential_excess, log_gamma_normalizer
from .mixing_law import MixingLaw
from .parameters import as_parameter


class InverseGammaMixing(MixingLaw):
    r"""Inverse gamma law of the scale: a Student's t process whose covariance is K.

    .. math:: r \sim \mathrm{InverseGamma}\big(\tfrac\nu2,\ \text{scale } \tfrac{\nu-2}2\big), \qquad E\, r = 1

    The variance is :math:`2/(\nu - 4)` for :math:`\nu > 4`, infinite otherwise. Infinite degrees of freedom are a point
    mass at r = 1.

    Shapes: ``df`` is ``*batch_shape``. Accuracy: rounding, for df - 2 from 1 to 1e15; differentiable in df and u.

    Args:
        df: Degrees of freedom nu > 2, a number or a tensor of any shape.

    Raises:
        TypeError, ValueError: Not a number or tensor; NaN or not above 2.

    Reference: Shah, Wilson and Ghahramani (2014), AISTATS; THEORY.md, section 2.

    Example:
        >>> import torch
        >>> law = InverseGammaMixing(6.0)  # 1 / r ~ Gamma(3, rate 2)
        >>> r = torch.tensor([0.7, 1.2])
        >>> expected = torch.distributions.InverseGamma(torch.tensor(3.0), torch.tensor(2.0)).log_prob(r)
        >>> torch.allclose(law.log_prob(r), expected, rtol=1e-5)
        True
    """

    def __init__(self, df: float | Tensor) -> None:
        """Store the degrees of freedom."""
        self.df = as_parameter("df", df, above=2.0)
        self.batch_shape = self.df.shape

    @property
    def mean(self) -> Tensor:
        """One."""
        return torch.ones_like(self.df)

    @property
    def variance(self) -> Tensor:
        """2 / (df - 4), infinite for df <= 4."""
        exists = self.df > 4
        return torch.where(exists, 2.0 / (torch.where(exists, self.df, 6.0) - 4.0), torch.inf)

    @property
    def point_masses(self) -> Tensor:
        """The infinite degrees of freedom."""
        return torch.isinf(self.df)

    def log_density(self, u: Tensor) -> Tensor:
        """Return the log density of u = log r."""
        self._check_density()
        # With b = nu/2 - 1 it is log Gamma(-u; shape b + 1, rate b): -b (e^-u - 1 + u) - u + normalizer.
        b = self._safe_df() / 2.0 - 1.0
        return self._at_point_masses(u, log_gamma_normalizer(b) - b * exponential_excess(-u) - u)

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw r, ``*sample_shape x *batch_shape``."""
        shape = (self._safe_df().detach() / 2.0).expand(*sample_shape, *self.batch_shape).contiguous()
        draws = (shape - 1.0) / torch._standard_gamma(shape, generator=generator)
        return torch.where(self.point_masses, 1.0, draws)

    def _safe_df(self) -> Tensor:
        return torch.where(self.point_masses, 6.0, self.df)

    def __repr__(self) -> str:
        return f"InverseGammaMixing(df={self.df.tolist()})"
