"""The law of a deep linear network whose depth grows with its width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .mixing_law import MixingLaw
from .parameters import as_parameter


class LogNormalMixing(MixingLaw):
    r"""Log-normal law of the scale: depth L and width N of a linear network grow together at fixed c = L / N.

    .. math:: \log r \sim N(-c,\ 2c), \qquad E\, r = 1, \quad \mathrm{Var}\, r = e^{2c} - 1

    c = 0 is a point mass at r = 1 (infinite width at finite depth).

    Shapes: ``c`` is ``*batch_shape``. Accuracy: rounding; differentiable in c and u.

    Args:
        c: Depth over width, c >= 0, a number or a tensor of any shape.

    Raises:
        TypeError, ValueError: Not a number or tensor; NaN, infinite or negative.

    Reference: THEORY.md, section 2.

    Example:
        >>> import torch
        >>> law = LogNormalMixing(0.3)
        >>> r = torch.tensor([0.7, 1.2])
        >>> torch.allclose(law.log_prob(r), torch.distributions.LogNormal(-0.3, 0.6**0.5).log_prob(r), rtol=1e-5)
        True
    """

    def __init__(self, c: float | Tensor) -> None:
        """Store depth over width."""
        self.c = as_parameter("c", c, inclusive=True, allow_infinite=False)
        self.batch_shape = self.c.shape

    @property
    def mean(self) -> Tensor:
        """One."""
        return torch.ones_like(self.c)

    @property
    def variance(self) -> Tensor:
        """exp(2 c) - 1."""
        return torch.expm1(2.0 * self.c)

    @property
    def point_masses(self) -> Tensor:
        """Where c is zero."""
        return self.c == 0

    def log_density(self, u: Tensor) -> Tensor:
        """Return the log density of u = log r."""
        self._check_density()
        c = torch.where(self.point_masses, 1.0, self.c)
        return self._at_point_masses(u, -(u + c).square() / (4.0 * c) - 0.5 * (4.0 * math.pi * c).log())

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw r, ``*sample_shape x *batch_shape``."""
        c, shape = self.c.detach(), (*sample_shape, *self.batch_shape)
        normal = torch.randn(shape, generator=generator, dtype=c.dtype, device=c.device)
        return ((2.0 * c).sqrt() * normal - c).exp()

    def __repr__(self) -> str:
        return f"LogNormalMixing(c={self.c.tolist()})"
