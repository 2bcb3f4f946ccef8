"""The law of a Gaussian process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mixing_law import MixingLaw
from .parameters import as_parameter


class PointMass(MixingLaw):
    r"""The scale is a number: the process is Gaussian.

    .. math:: r = v, \qquad \sqrt{r}\, \mathrm{GP}(0, K) = \mathrm{GP}(0, v K)

    A fixed law: there is no density in r, so :meth:`log_density` and ``log_prob`` raise; use :attr:`is_point_mass`.

    Shapes: ``value`` is ``*batch_shape``. Exact.

    Args:
        value: v > 0, a number or a tensor; 1 is the network of infinite width.

    Raises:
        TypeError, ValueError: The value is not a number or tensor, or not finite and positive.

    Reference: THEORY.md, section 2.

    Example:
        >>> law = PointMass()
        >>> law.is_point_mass, law.mean.item(), law.variance.item(), law.log_interval()[0].item()
        (True, 1.0, 0.0, 0.0)
    """

    def __init__(self, value: float | Tensor = 1.0) -> None:
        """Store the value."""
        self.value = as_parameter("value", value, allow_infinite=False)
        self.batch_shape = self.value.shape

    @property
    def mean(self) -> Tensor:
        """The value itself."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.value)

    @property
    def point_masses(self) -> Tensor:
        """All."""
        return torch.ones_like(self.value, dtype=torch.bool)

    def log_density(self, u: Tensor) -> Tensor:
        """Raise: there is none."""
        raise ValueError(f"{self!r}: expected a law with a density, got a point mass; check `is_point_mass` first")

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Repeat the value, ``*sample_shape x *batch_shape``."""
        return self.value.detach().expand(*sample_shape, *self.batch_shape).clone()

    def __repr__(self) -> str:
        return f"PointMass(value={self.value.tolist()})"
