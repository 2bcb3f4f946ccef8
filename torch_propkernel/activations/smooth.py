"""Smooth activations with a closed dual: erf, GELU, sine, cosine and exponential."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.safe_math import gram_determinant
from .activation import Activation


@dataclass(frozen=True)
class Erf(Activation):
    r"""Error function activation phi(u) = erf(u): the arc-sine kernel.

    .. math::
        \kappa = \frac{2}{\pi} \arcsin \frac{2 c_{xy}}{\sqrt{(1 + 2 c_{xx})(1 + 2 c_{yy})}}
        = \frac{2}{\pi} \mathrm{atan2}\Big(c_{xy}, \sqrt{\tfrac14 + \tfrac12 (c_{xx} + c_{yy}) + \det}\Big)

    with det = c_xx c_yy - c_xy^2. No singular points: the square root is at least 1/2, so rounding cannot leave the
    domain of the arc-sine. Shapes as in :class:`Activation`. Rounding accuracy.

    Reference:
        Williams (1997), equation (11); THEORY.md, section 0.

    Example:
        >>> import torch
        >>> half = torch.tensor(0.5, dtype=torch.float64)
        >>> round(float(Erf().dual(half, half, half)), 12) == round(1 / 3, 12)  # (2/pi) asin(1/2)
        True
    """

    is_odd = True

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.erf(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        floor = (0.5 * column).expand(c_xy.shape)  # gram_determinant + floor, in one pass less
        r = torch.addcmul(floor, (1 - 4 * torch.finfo(c_xy.dtype).eps) * row, column)
        r = r.addcmul_(c_xy, c_xy, value=-1).clamp_min_(floor).add_(0.25 + 0.5 * row).sqrt_()
        return torch.atan2(c_xy, r, out=r).mul_(2 / math.pi)

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return 2 / math.pi * torch.atan2(c_xx, (0.25 + c_xx).sqrt())

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.zeros_like(c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return 2 / math.sqrt(math.pi) * (1 + 2 * c_xx).rsqrt()

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        d_xy = 2 / math.pi * (gram_determinant(c_xx, c_xy, c_yy) + (0.25 + 0.5 * c_xx) + 0.5 * c_yy).rsqrt()
        product = d_xy * c_xy
        return product * (-1 / (1 + 2 * c_xx)), d_xy, product * (-1 / (1 + 2 * c_yy))


@dataclass(frozen=True)
class GELU(Activation):
    r"""Gaussian error linear unit phi(u) = u Phi(u), Phi the normal distribution function (not its tanh approximation).

    .. math::
        \kappa = \frac{c_{xy}}{4} + \frac{c_{xy}}{2 \pi} \theta
        + \frac{\det + c_{xy}^2 (1/X + 1/Y)}{2 \pi s}, \quad \theta = \mathrm{atan2}(c_{xy}, s), \quad
        s = \sqrt{X Y - c_{xy}^2}

    with X = 1 + c_xx, Y = 1 + c_yy and det = c_xx c_yy - c_xy^2. No singular points, since s >= 1.
    Shapes as in :class:`Activation`. Rounding accuracy.

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> bool(torch.isclose(GELU().dual(one, one, one), GELU().dual_diag(one), rtol=1e-14))
        True
    """

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.nn.functional.gelu(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        det = gram_determinant(row, c_xy, column)
        s = (det + (1 + row)).add_(column).sqrt_()
        angle = torch.atan2(c_xy, s).add_(math.pi / 2).mul_(c_xy)
        curvature = ((1 / (1 + row) + 1 / (1 + column)) * c_xy).mul_(c_xy)
        return det.add_(curvature).div_(s).add_(angle).mul_(1 / (2 * math.pi))

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        s = (1 + 2 * c_xx).sqrt()
        angle = math.pi / 2 + torch.atan2(c_xx, s)
        return c_xx * (angle + 2 * c_xx / ((1 + c_xx) * s)) / (2 * math.pi)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return c_xx * (2 * math.pi * (1 + c_xx)).rsqrt()

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.full_like(c_xx, 0.5)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        det = gram_determinant(c_xx, c_xy, c_yy)
        x, y = 1 + c_xx, 1 + c_yy
        s2 = det + x + c_yy
        s = s2.sqrt()
        d_xx = ((det - 1) / x + 2 * s2 / x.square() - y / s2) / (4 * math.pi * s)
        d_yy = ((det - 1) / y + 2 * s2 / y.square() - x / s2) / (4 * math.pi * s)
        d_xy = 0.25 + (torch.atan2(c_xy, s) + c_xy / s * (1 / x + 1 / y + 1 / s2)) / (2 * math.pi)
        return d_xx, d_xy, d_yy


def _bounded_exponential(row: Tensor, c_xy: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """exp(|c_xy| - (c_xx + c_yy)/2) / 2, at most 1/2, and -2 |c_xy|."""
    size = c_xy.abs()
    return torch.exp(size.sub(0.5 * row).sub_(0.5 * column).clamp_max_(0)).mul_(0.5), size.mul_(-2)


@dataclass(frozen=True)
class Sin(Activation):
    r"""Sine activation phi(u) = sin(u).

    .. math:: \kappa = e^{-(c_{xx} + c_{yy})/2} \sinh c_{xy}

    evaluated as ``sign(c_xy) exp(|c_xy| - (c_xx + c_yy)/2) (1 - exp(-2 |c_xy|)) / 2``, which neither overflows nor
    cancels.
    No singular points. Shapes as in :class:`Activation`. Accuracy: rounding of the exponent, epsilon (c_xx + c_yy).

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor(1e6)
        >>> float(Sin().dual(c, c, c))  # E sin^2 -> 1/2
        0.5
    """

    is_odd = True

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.sin(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        envelope, exponent = _bounded_exponential(row, c_xy, column)
        return envelope.mul_(exponent.expm1_()).mul_(-torch.sign(c_xy))

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return -0.5 * torch.expm1(-2 * c_xx)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.zeros_like(c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.exp(-0.5 * c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        half = -0.5 * self.dual(c_xx, c_xy, c_yy)
        return half, Cos().dual(c_xx, c_xy, c_yy), half


@dataclass(frozen=True)
class Cos(Activation):
    r"""Cosine activation phi(u) = cos(u); with :class:`Sin` it adds up to the Gaussian (RBF) kernel.

    .. math:: \kappa = e^{-(c_{xx} + c_{yy})/2} \cosh c_{xy}

    evaluated as ``exp(|c_xy| - (c_xx + c_yy)/2) (1 + exp(-2 |c_xy|)) / 2``, which does not overflow.
    No singular points. Shapes as in :class:`Activation`. Accuracy: rounding of the exponent, epsilon (c_xx + c_yy).

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.rand(5, dtype=torch.float64)
        >>> bool(torch.allclose(Cos().dual(c, c, c) + Sin().dual(c, c, c), torch.ones(5, dtype=torch.float64)))
        True
    """

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.cos(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        envelope, exponent = _bounded_exponential(row, c_xy, column)
        return envelope.mul_(exponent.exp_().add_(1))

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return 0.5 + 0.5 * torch.exp(-2 * c_xx)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.exp(-0.5 * c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.zeros_like(c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        half = -0.5 * self.dual(c_xx, c_xy, c_yy)
        return half, Sin().dual(c_xx, c_xy, c_yy), half


@dataclass(frozen=True)
class Exp(Activation):
    r"""Exponential activation phi(u) = exp(u).

    .. math:: \kappa = \exp\big((c_{xx} + c_{yy})/2 + c_{xy}\big)

    No singular points; it overflows to infinity where its value does (variances above 350 in double precision).
    Shapes as in :class:`Activation`. Accuracy: rounding of the exponent.

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> bool(torch.isclose(Exp().dual(one, -one, one), one))  # exp(u) exp(-u)
        True
    """

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return torch.exp(u)

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        return (c_xy + 0.5 * row).add_(0.5 * column).exp_()

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return torch.exp(2 * c_xx)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return torch.exp(0.5 * c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return torch.exp(0.5 * c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        kappa = self.dual(c_xx, c_xy, c_yy)
        return 0.5 * kappa, kappa, 0.5 * kappa
