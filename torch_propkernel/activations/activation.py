"""The interface of every activation: the function, its Gaussian moments and their derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .dual import apply_dual


@dataclass(frozen=True)
class Activation(ABC):
    r"""Elementwise activation phi with the Gaussian moments that a network of infinite width needs.

    .. math::
        \kappa(c_{xx}, c_{xy}, c_{yy}) = E[\phi(u) \phi(w)], \quad
        (u, w) \sim N\!\left(0, \begin{pmatrix} c_{xx} & c_{xy} \\ c_{xy} & c_{yy} \end{pmatrix}\right)

    Subclasses give ``__call__``, ``_dual``, ``dual_diag``, ``mean``, ``slope`` and ``dual_partials``. Values and
    gradients of any order are finite for every positive semi-definite triple, also for coincident, opposite and zero
    rows; where the limit does not exist the subclass states its convention. Objects are immutable, picklable and equal
    by value.

    Shapes: the arguments broadcast, for instance ``(..., n, 1), (..., n, m), (..., 1, m)``, or are elementwise equal.
    Closed forms hold to rounding and cost one blocked pass over the entries.

    Attributes:
        is_odd: whether phi(-u) = -phi(u).
        homogeneous_degree: k where phi(a u) = a^k phi(u) for all a > 0, otherwise None.

    Reference:
        Williams (1997); Cho and Saul (2009); Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> c = torch.tensor([0.3])
        >>> torch.equal(Identity().dual(torch.ones(1), c, torch.ones(1)), c)
        True
    """

    is_odd: ClassVar[bool] = False
    homogeneous_degree: ClassVar[float | None] = None
    _blockwise_partials: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""

    def dual(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor, out: Tensor | None = None) -> Tensor:
        """Return E[phi(u) phi(w)].

        Args:
            c_xx: variances of u.
            c_xy: covariances of u and w.
            c_yy: variances of w.
            out: where to write the result, possibly ``c_xy`` itself; only where no gradient is required.

        Raises:
            ValueError: ``out`` does not have the result's shape and dtype, or a gradient is required.
        """
        return apply_dual(self, c_xx, c_xy, c_yy, out)

    @abstractmethod
    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2], the dual of coincident rows."""

    @abstractmethod
    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""

    @abstractmethod
    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)], the D of THEORY.md, equation (8b)."""

    @abstractmethod
    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy, of shapes that broadcast to the dual's.

        By Price's theorem these are E[phi''(u) phi(w)] / 2, E[phi'(u) phi'(w)] and E[phi(u) phi''(w)] / 2. They are
        made of differentiable operations, so derivatives of any order follow.
        """

    def error_estimate(self, c_xx: Tensor) -> Tensor:
        """Return the absolute error of the dual at this variance beyond rounding: exactly zero for closed forms."""
        return torch.zeros_like(c_xx)

    def _prepare(self, c_xx: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor]:
        """What ``_dual`` reads in place of the variances, computed once per call; rows stay in dimension -2."""
        return c_xx, c_yy

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        """The raw formula on one block, where ``c_xy`` has the full shape.

        It is never recorded by autograd, so it may work in place on its temporaries, but not on its arguments.
        """
        raise NotImplementedError
