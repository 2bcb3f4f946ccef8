"""Square roots, quotients and angles whose values and gradients stay finite at coincident and zero inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .differentiation import is_recorded


def safe_sqrt(x: Tensor) -> Tensor:
    r"""Square root that is zero, with zero gradients of every order, where its argument is not positive.

    .. math:: \sqrt{\max(x, 0)}

    At ``x <= 0`` value and derivatives are 0 by convention (``torch.sqrt`` has an infinite slope at 0, and
    0 * inf = NaN in the backward pass). NaN stays NaN. Elementwise, any shape; rounding accuracy.

    Args:
        x: any tensor of floating point numbers.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> safe_sqrt(x).sum().backward()
        >>> x.grad.tolist()
        [0.0, 0.25]
    """
    if not is_recorded(x):
        return x.clamp_min(0).sqrt_()
    zero = x <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    r"""Quotient that is zero, with zero gradients, where the denominator is zero.

    .. math:: a / b \text{ for } b \ne 0, \quad 0 \text{ for } b = 0

    Finite numerators, elementwise with broadcasting; NaN stays NaN; rounding accuracy.

    Args:
        numerator: a.
        denominator: b.

    Example:
        >>> import torch
        >>> safe_divide(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])).tolist()
        [0.0, 0.5]
    """
    return numerator / torch.where(denominator == 0, math.inf, denominator)


def safe_atan2(y: Tensor, x: Tensor) -> Tensor:
    r"""Angle of the point (x, y), x >= 0, with finite gradients also at the origin.

    .. math:: \arg(x + i y)

    The origin counts as the point (1, 0): value 0 and zero gradients. Elementwise with broadcasting; rounding accuracy.

    Args:
        y: ordinate.
        x: abscissa.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(2, 1, requires_grad=True).unbind(0)
        >>> bool(torch.autograd.grad(safe_atan2(y, x).sum(), y)[0] == 0)
        True
    """
    if not is_recorded(x, y):
        return torch.atan2(y, x)
    origin = (x == 0) & (y == 0)
    return torch.atan2(torch.where(origin, 0.0, y), torch.where(origin, 1.0, x))


def gram_determinant(c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> Tensor:
    r"""Determinant of a 2 x 2 covariance matrix, exactly zero where rounding alone keeps it from zero.

    .. math:: \max\{(1 - 4 \epsilon)\, c_{xx} c_{yy} - c_{xy}^2,\ 0\}

    with epsilon the machine precision: the shift is as large as the rounding error of the difference itself, so it
    costs no accuracy, and coincident (or opposite, or zero) rows give exactly 0. NaN stays NaN. Broadcasting.

    Args:
        c_xx: variance of u.
        c_xy: covariance of u and w.
        c_yy: variance of w.

    Example:
        >>> import torch
        >>> c = torch.rand(1000)
        >>> bool((gram_determinant(c, c, c) == 0).all())
        True
    """
    shrink = 1 - 4 * torch.finfo(c_xy.dtype).eps
    return torch.addcmul((shrink * c_xx) * c_yy, c_xy, c_xy, value=-1).clamp_min(0)


def clamp_inside(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return x, moved into the open interval (lower, upper) where it is not inside.

    It stays one rounding away from the ends, so that logarithms of the distances are finite.

    Args:
        x: Any tensor of floating point numbers.
        lower: Lower end, finite.
        upper: Upper end, ``math.inf`` for none.

    Example:
        >>> import torch
        >>> x = torch.tensor([-1.0, 0.5, 3.0])
        >>> inside = clamp_inside(x, torch.tensor(0.0), torch.tensor(2.0))
        >>> bool((inside > 0).all()), bool((inside < 2).all()), inside[1].item()
        (True, True, 0.5)
    """
    info = torch.finfo(x.dtype)
    lower, upper = lower.to(x), upper.to(x)
    reach = torch.where(torch.isfinite(upper), upper - lower, 1.0).clamp_min(1.0)
    low = lower + torch.maximum(2.0 * info.eps * lower.abs(), info.tiny * reach)
    high = torch.where(torch.isfinite(upper), upper - info.eps * (upper - lower), upper)
    return torch.minimum(torch.maximum(x, low), high)
