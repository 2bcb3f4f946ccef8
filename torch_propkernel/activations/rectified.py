"""Homogeneous activations: identity, the rectified powers (arc-cosine kernels), sign, step and square."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.safe_math import gram_determinant, safe_atan2, safe_divide, safe_sqrt
from .activation import Activation


def _radius(c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> Tensor:
    """Square root of the determinant, sqrt(c_xx c_yy) sin t, in place on its own temporary: for raw formulas."""
    return gram_determinant(c_xx, c_xy, c_yy).sqrt_()


def _radius_and_coangle(c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(c_xx c_yy) sin t and pi - t, with t = pi/2 at a zero row: differentiable, finite derivatives."""
    r = safe_sqrt(gram_determinant(c_xx, c_xy, c_yy))
    return r, math.pi / 2 + safe_atan2(c_xy, r)


@dataclass(frozen=True)
class Identity(Activation):
    r"""Linear activation phi(u) = u: the deep linear network.

    .. math:: \kappa = c_{xy}

    No singular points. Shapes as in :class:`Activation`. Exact.

    Reference:
        Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> float(Identity().dual(torch.tensor(2.0), torch.tensor(-1.0), torch.tensor(3.0)))
        -1.0
    """

    is_odd = True
    homogeneous_degree = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return u

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        return c_xy

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return c_xx

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.zeros_like(c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.ones_like(c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        return torch.zeros_like(c_xx), torch.ones_like(c_xy), torch.zeros_like(c_yy)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    r"""Leaky rectifier phi(u) = max(u, 0) + a min(u, 0) with negative slope a.

    .. math::
        \kappa = a\, c_{xy} + \frac{(1 - a)^2}{2 \pi} [r + (\pi - t)\, c_{xy}], \quad
        r = \sqrt{c_{xx} c_{yy} - c_{xy}^2}, \quad t = \mathrm{atan2}(r, c_{xy})

    The derivative in c_xx, (1-a)^2 r / (4 pi c_xx), counts as 0 at a zero row, where also t = pi/2; second derivatives
    diverge at coincident rows and count as 0 there. Shapes as in :class:`Activation`. Rounding accuracy.

    Args:
        negative_slope: a, any finite number; 0 is the rectifier, 1 the identity.

    Raises:
        ValueError: ``negative_slope`` is not finite.

    Reference:
        Cho and Saul (2009), order 1; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor(2.0, dtype=torch.float64)
        >>> round(float(LeakyReLU(0.5).dual(c, -c, c)), 12)  # E[phi(u) phi(-u)] = -a E[u^2]
        -1.0
    """

    negative_slope: float = 0.01
    homogeneous_degree = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.negative_slope):
            raise ValueError(f"expected a finite negative_slope, got {self.negative_slope}")

    @property
    def is_odd(self) -> bool:  # type: ignore[override]
        """Whether phi(-u) = -phi(u)."""
        return self.negative_slope == 1

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.where(u > 0, u, self.negative_slope * u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        a, scale = self.negative_slope, (1 - self.negative_slope) ** 2 / (2 * math.pi)
        r = _radius(row, c_xy, column)
        angle = torch.atan2(c_xy, r).add_(math.pi / 2 + (a / scale if scale else 0.0))
        return r.addcmul_(angle, c_xy).mul_(scale) if scale else c_xy

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return (1 + self.negative_slope**2) / 2 * c_xx

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return (1 - self.negative_slope) * safe_sqrt(c_xx / (2 * math.pi))

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.full_like(c_xx, (1 + self.negative_slope) / 2)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        a, scale = self.negative_slope, (1 - self.negative_slope) ** 2 / (2 * math.pi)
        r, coangle = _radius_and_coangle(c_xx, c_xy, c_yy)
        half = scale / 2 * r
        return safe_divide(half, c_xx), a + scale * coangle, safe_divide(half, c_yy)


@dataclass(frozen=True, init=False)
class ReLU(LeakyReLU):
    r"""Rectifier phi(u) = max(u, 0), the arc-cosine kernel of order 1.

    .. math::
        \kappa = \frac{1}{2 \pi} [r + (\pi - t)\, c_{xy}], \quad
        r = \sqrt{c_{xx} c_{yy} - c_{xy}^2}, \quad t = \mathrm{atan2}(r, c_{xy})

    The derivative in c_xx, r / (4 pi c_xx), counts as 0 at a zero row, where also t = pi/2; second derivatives diverge
    at coincident rows and count as 0 there. Shapes as in :class:`Activation`. Rounding accuracy.

    Reference:
        Cho and Saul (2009), order 1; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor(2.0)
        >>> float(ReLU().dual(c, c, c)), float(ReLU().dual(c, -c, c))
        (1.0, 0.0)
    """

    def __init__(self) -> None:
        super().__init__(0.0)

    def __repr__(self) -> str:
        return "ReLU()"

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.relu(u)


@dataclass(frozen=True)
class RectifiedQuadratic(Activation):
    r"""Rectified quadratic phi(u) = max(u, 0)^2, the arc-cosine kernel of order 2.

    .. math::
        \kappa = \frac{1}{2 \pi} [3 r c_{xy} + (\pi - t) (c_{xx} c_{yy} + 2 c_{xy}^2)], \quad
        r = \sqrt{c_{xx} c_{yy} - c_{xy}^2}, \quad t = \mathrm{atan2}(r, c_{xy})

    At a zero row t = pi/2; third derivatives diverge at coincident rows and count as 0 there.
    Shapes as in :class:`Activation`. Rounding accuracy relative to c_xx c_yy.

    Reference:
        Cho and Saul (2009), order 2; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor(2.0, dtype=torch.float64)
        >>> float(RectifiedQuadratic().dual(c, c, c))  # 3 c^2 / 2
        6.0
    """

    homogeneous_degree = 2.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.relu(u).square()

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        r = _radius(row, c_xy, column)
        angle = torch.atan2(c_xy, r).add_(math.pi / 2)
        moment = torch.addcmul(row * column, c_xy, c_xy, value=2)
        return moment.mul_(angle).addcmul_(r, c_xy, value=3).mul_(1 / (2 * math.pi))

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return 1.5 * c_xx.square()

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return c_xx / 2

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return safe_sqrt(2 / math.pi * c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        r, coangle = _radius_and_coangle(c_xx, c_xy, c_yy)
        product = r * c_xy
        d_xx = (safe_divide(product, c_xx) + coangle * c_yy) / (2 * math.pi)
        d_yy = (safe_divide(product, c_yy) + coangle * c_xx) / (2 * math.pi)
        return d_xx, 2 / math.pi * (r + coangle * c_xy), d_yy


@dataclass(frozen=True)
class Sign(Activation):
    r"""Sign activation phi(u) = sign(u).

    .. math:: \kappa = \frac{2}{\pi} \arcsin \frac{c_{xy}}{\sqrt{c_{xx} c_{yy}}}, \quad
        \frac{d\kappa}{d c_{xy}} = \frac{2}{\pi r}, \quad \frac{d\kappa}{d c_{xx}} = -\frac{c_{xy}}{\pi c_{xx} r}, \quad
        r = \sqrt{c_{xx} c_{yy} - c_{xy}^2}

    A zero row gives 0, as sign(0) = 0. The derivatives diverge at coincident, opposite and zero rows (r = 0) and count
    as 0 there; so does the slope sqrt(2 / (pi c_xx)) at variance 0. Shapes as in :class:`Activation`. Rounding
    accuracy, but rounding of the inputs moves the dual of nearly coincident rows by its square root.

    Reference:
        THEORY.md, section 0; Cho and Saul (2009), order 0.

    Example:
        >>> import torch
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> round(float(Sign().dual(one, one / 2, one)), 12) == round(1 / 3, 12)
        True
    """

    is_odd = True
    homogeneous_degree = 0.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.sign(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        return torch.atan2(c_xy, _radius(row, c_xy, column)).mul_(2 / math.pi)

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return (c_xx > 0).to(c_xx.dtype)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.zeros_like(c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return safe_divide(torch.full_like(c_xx, math.sqrt(2 / math.pi)), safe_sqrt(c_xx))

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        r = safe_sqrt(gram_determinant(c_xx, c_xy, c_yy))
        d_xy = safe_divide(torch.full_like(r, 2 / math.pi), r)
        half = -0.5 * d_xy * c_xy
        return safe_divide(half, c_xx), d_xy, safe_divide(half, c_yy)


@dataclass(frozen=True)
class Step(Activation):
    r"""Step activation phi(u) = 1 for u > 0, 0 for u < 0 and 1/2 at 0: the arc-cosine kernel of order 0.

    .. math:: \kappa = \frac{\pi - t}{2 \pi}, \quad \cos t = \frac{c_{xy}}{\sqrt{c_{xx} c_{yy}}}

    A zero row gives t = pi/2 and the dual 1/4, as phi(0) = 1/2. The derivatives, a quarter of those of :class:`Sign`,
    diverge where r = 0 and count as 0 there. Shapes as in :class:`Activation`. Rounding accuracy.

    Reference:
        Cho and Saul (2009), order 0; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> float(Step().dual(one, one, one)), float(Step().dual(one, -one, one))
        (0.5, 0.0)
    """

    homogeneous_degree = 0.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return 0.5 + 0.5 * torch.sign(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        return torch.atan2(c_xy, _radius(row, c_xy, column)).mul_(0.5 / math.pi).add_(0.25)

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return 0.25 + 0.25 * (c_xx > 0).to(c_xx.dtype)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.full_like(c_xx, 0.5)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return 0.5 * Sign().slope(c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        d_xx, d_xy, d_yy = Sign().dual_partials(c_xx, c_xy, c_yy)
        return d_xx / 4, d_xy / 4, d_yy / 4


@dataclass(frozen=True)
class Square(Activation):
    r"""Square activation phi(u) = u^2.

    .. math:: \kappa = c_{xx} c_{yy} + 2 c_{xy}^2

    No singular points. Shapes as in :class:`Activation`. Rounding accuracy.

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor(2.0)
        >>> float(Square().dual(c, c, c))  # E[u^4] = 3 c^2
        12.0
    """

    homogeneous_degree = 2.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return u.square()

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        return torch.addcmul(row * column, c_xy, c_xy, value=2)

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return 3 * c_xx.square()

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return c_xx

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.zeros_like(c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        return c_yy, 4 * c_xy, c_xx
