"""What every law of the scale offers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..exceptions import ConvergenceError


class MixingLaw(ABC):
    r"""Law of the scale r > 0 of the process :math:`\sqrt{r}\, \mathrm{GP}(0, K)`, described in u = log r.

    .. math:: f \mid r \sim \mathrm{GP}(0, r K), \qquad p(f) = \int p(u)\, N(f; 0, e^u K)\, du

    Integrals use :meth:`log_density`, the density of u, and :meth:`log_interval`, the range of u that matters. A law of
    your own defines ``batch_shape``, :meth:`log_density`, :attr:`mean`, :attr:`variance` and :meth:`sample`.

    Laws are plain objects: they hold tensors, no parameters. An element of a batch may be a point mass (an infinite
    width, infinitely many degrees of freedom): :attr:`point_masses` marks it, its interval is one point, and its log
    density is relative to the counting measure, 0 at that point and -inf elsewhere. A law that is nothing but point
    masses has no density, and :meth:`log_density` raises.

    Shapes: everything has shape ``*batch_shape`` and broadcasts against it.

    Attributes:
        batch_shape: Shape of the batch of laws.

    Reference: THEORY.md, section 2 (Table of processes) and eq. (1).

    Example:
        >>> import math, torch
        >>> class UniformMixing(MixingLaw):  # log r uniform in (-1, 1)
        ...     batch_shape = torch.Size()
        ...     mean = torch.tensor(math.sinh(1.0))
        ...     variance = torch.tensor(math.sinh(2.0) / 2 - math.sinh(1.0) ** 2)
        ...     def log_density(self, u):
        ...         return torch.where(u.abs() <= 1, -math.log(2.0), -math.inf)
        ...     def sample(self, sample_shape=torch.Size(), generator=None):
        ...         return (2 * torch.rand(sample_shape, generator=generator) - 1).exp()
        >>> law = UniformMixing()
        >>> lower, upper = law.log_interval()
        >>> bool(-1.1 < lower <= -1 and 1 <= upper < 1.1)
        True
    """

    batch_shape: torch.Size

    @abstractmethod
    def log_density(self, u: Tensor) -> Tensor:
        """Return the log density of u = log r at ``u``."""

    def log_density_at_nodes(self, u: Tensor) -> Tensor:
        """Return the log density at nodes ``*batch_shape x n``, n for each law of the batch."""
        return self.log_density(u.movedim(-1, 0)).movedim(0, -1)

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E r."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance of r; infinite where it does not exist."""

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw r, ``*sample_shape x *batch_shape``, without gradients."""

    @property
    def point_masses(self) -> Tensor:
        """Which elements of the batch are a point mass."""
        return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.mean.device)

    @cached_property
    def is_point_mass(self) -> bool:
        """Whether the whole law is."""
        return bool(self.point_masses.all())

    def log_prob(self, r: Tensor) -> Tensor:
        """Return the log density of r at ``r`` > 0."""
        u = r.log()
        return self.log_density(u) - u

    def log_interval(self, tail: float = 1e-18) -> tuple[Tensor, Tensor]:
        """Return bounds of u = log r, ``*batch_shape`` each; the mass beyond both together is below ``tail``.

        The bound is rigorous where the density of u is log-concave, as that of every law of this package is; a law with
        heavier tails than exponential ones in u overrides this method.
        """
        with torch.no_grad():
            center, fixed = self.mean.log(), self.point_masses
            spread = torch.log1p(self.variance / self.mean.square()).sqrt()
            step = torch.where(torch.isfinite(spread) & (spread > 0), spread, 1.0).clamp(max=1.0)
            bounds = [center if self.is_point_mass else self._bound(center, sign * step, tail) for sign in (-1, 1)]
            return torch.where(fixed, center, bounds[0]), torch.where(fixed, center, bounds[1])

    def to(self, *args: Any, **kwargs: Any) -> MixingLaw:
        """Return this law with its tensors converted as by ``torch.Tensor.to``."""
        law = copy.copy(self)
        law.__dict__.update({k: v.to(*args, **kwargs) for k, v in vars(self).items() if isinstance(v, Tensor)})
        return law

    def _bound(self, center: Tensor, step: Tensor, tail: float) -> Tensor:
        """Walk outward from ``center`` with doubling steps, then halve the last one."""
        dtype = torch.float64 if center.device.type != "mps" else torch.float32
        target = torch.tensor(0.5 * tail, dtype=dtype).log()

        def enough(inner: Tensor, outer: Tensor) -> Tensor:
            # Beyond `outer` a log-concave density is below exp(g - slope * distance), of mass exp(g) / slope.
            g = self.log_density(outer)
            slope = (self.log_density(inner) - g) / (outer - inner).abs()
            return (g == -torch.inf) | ((slope > 0) & (g - slope.log() < target))

        inner = center.to(dtype)
        outer = inner + step
        done = self.point_masses
        for _ in range(64):
            done = done | enough(inner, outer)
            if bool(done.all()):
                break
            inner, outer = torch.where(done, inner, outer), torch.where(done, outer, 2.0 * outer - center)
        else:
            raise ConvergenceError(f"{self!r}: expected a density that falls off in log r; found no end of its support")
        near = inner
        for _ in range(5):
            middle = 0.5 * (near + outer)
            inside = enough(inner, middle)
            near, outer = torch.where(inside, near, middle), torch.where(inside, middle, outer)
        return outer.to(center.dtype)

    def _check_density(self) -> None:
        if self.is_point_mass:
            raise ValueError(f"{self!r}: expected a law with a density, got a point mass; check `is_point_mass` first")

    def _at_point_masses(self, u: Tensor, value: Tensor) -> Tensor:
        """``value``, with the elements that are point masses at u = 0 replaced by their log density there."""
        return torch.where(self.point_masses, torch.where(u == 0, 0.0, -torch.inf).to(value.dtype), value)
