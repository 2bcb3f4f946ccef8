"""What the distributions of this package share."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from gpytorch.distributions import Distribution
from torch import Tensor
from torch.distributions import constraints

from .._validation import check_floating, check_same_kind


class EllipticalDistribution(Distribution):
    """Distribution of vectors whose marginals have quantiles; copies and pickles leave out cached factors.

    A tensor with a history of gradients is detached in a copy or pickle.

    Example:
        >>> from torch_propkernel.distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
        >>> all(issubclass(c, EllipticalDistribution) for c in (MultivariateStudentT, ScaleMixtureMultivariateNormal))
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True
    loc: Tensor
    _islazy = False

    @abstractmethod
    def icdf(self, value: float | Tensor) -> Tensor:
        """Return the quantiles of every marginal at levels in [0, 1] that broadcast to ``*b x m``."""

    def quantile(self, level: float | Tensor) -> Tensor:
        """Return the quantiles of every marginal; another name of :meth:`icdf`."""
        return self.icdf(level)

    def confidence_region(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the interval of probability ``level`` of every marginal, with equal tails."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level: expected a number between 0 and 1, got {level}")
        return self.icdf(0.5 * (1.0 - level)), self.icdf(0.5 * (1.0 + level))

    def _check_value(self, value: Tensor) -> Tensor:
        check_same_kind(loc=self.loc, value=check_floating("value", value))
        size = self.event_shape[0]
        if value.dim() < 1 or value.shape[-1] != size:
            raise ValueError(f"value: expected shape (..., {size}), got {tuple(value.shape)}")
        return value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))

    def _check_level(self, level: float | Tensor) -> Tensor:
        level = torch.as_tensor(level, dtype=self.loc.dtype, device=self.loc.device)
        if not bool(((level >= 0) & (level <= 1)).all()):
            raise ValueError(f"level: expected values in [0, 1], got {level.tolist()}")
        return level.expand(torch.broadcast_shapes(level.shape, self.batch_shape + self.event_shape))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again."""
        cached = {k for c in type(self).__mro__ for k, v in vars(c).items() if isinstance(v, cached_property)}
        return {
            k: v.detach() if isinstance(v, Tensor) and not v.is_leaf else v
            for k, v in self.__dict__.items()
            if k not in cached
        }
