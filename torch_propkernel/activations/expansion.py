"""Any elementwise callable as an activation: its dual by a Hermite (Mehler) expansion with a known error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..numerics.safe_math import safe_divide
from .activation import Activation
from .dual import apply_dual
from .quadrature import QuadratureWarning, Resolution, expansion_error, hermite_expansion, resolve

Function = Callable[[Tensor], Tensor]

ALWAYS = 10**6
"""Number of derivatives of a function that autograd differentiates correctly to any order."""


def _derivative(phi: Function, order: int) -> Function:
    """The derivative of an elementwise function, by reverse-mode autograd."""
    if order == 0:
        return phi

    def evaluate(u: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = phi(u)
            for left in range(order - 1, -1, -1):
                if not value.requires_grad:
                    return torch.zeros_like(u).detach()
                value = torch.autograd.grad(value.sum(), u, create_graph=left > 0, allow_unused=True)[0]
                value = torch.zeros_like(u).detach() if value is None else value
        return value.detach()

    return evaluate


def _trusted_derivatives(phi: Function) -> int:
    """How many derivatives autograd gives right, by Stein's identity E[f'(s z) h_n] s = sqrt(n+1) E[f(s z) h_(n+1)].

    A kink or a jump breaks it: its derivative is missing the delta function.
    """
    variance = torch.tensor([1.0, 9.0], dtype=torch.float64)
    root = torch.arange(1, 17, dtype=torch.float64).sqrt()[:, None]
    below = hermite_expansion(phi, variance, 4097, 16)
    for order in range(1, 5):
        try:
            above = hermite_expansion(_derivative(phi, order), variance, 4097, 16)
        except (RuntimeError, NotImplementedError):
            return order - 1
        mismatch = (above.coefficients[:-1] * variance.sqrt() - root * below.coefficients[1:]).abs().amax()
        scale = (below.even + below.odd + above.even + above.odd).sqrt().amax()
        if not bool(mismatch <= 1e-5 * scale):
            return order - 1
        below = above
    return ALWAYS


def _controls(*variances: Tensor) -> Tensor:
    """A few variances that span those present: the extremes and a geometric ladder between them."""
    flat = torch.cat([v.reshape(-1) for v in variances])
    positive = flat[(flat > 0) & flat.isfinite()]
    if not positive.numel():
        return flat.new_zeros(1)
    low, high = positive.amin().log(), positive.amax().log()
    return (low + (high - low) * torch.linspace(0, 1, 5, dtype=flat.dtype, device=flat.device)).exp()


@dataclass(frozen=True)
class Quadrature(Activation):
    r"""Activation of any elementwise callable phi, with its dual by a Hermite expansion of controlled error.

    .. math::
        \kappa = \sum_{n \le M} A_n(c_{xx}) A_n(c_{yy}) \rho^n, \quad A_n(c) = E[\phi(\sqrt{c} z) h_n(z)], \quad
        \rho = \frac{c_{xy}}{\sqrt{c_{xx} c_{yy}}}, \quad z \sim N(0, 1)

    with h_n the orthonormal Hermite polynomials (Mehler's formula). M grows until the Parseval remainder
    R = E[phi^2] - sum_n A_n^2 is below ``rtol`` E[phi^2]; the remainder itself enters as one more even and one more odd
    order, so that coincident and opposite rows of equal variance are exact and the matrix stays positive semi-definite
    by construction. The truncation error is at most ``2 sqrt(R(c_xx) R(c_yy)) |rho|^(M+1)``.

    Zero rows: rho = 0. Derivatives follow Price's theorem, with the derivatives of phi by autograd as far as they are
    right (kinks and jumps are detected) and by Stein's identity beyond, there with the variance bounded from below.
    What phi'' = delta adds at a kink is therefore truncated at order M: derivatives of non-smooth functions are
    inaccurate near coincident rows.

    Shapes as in :class:`Activation`. Everything runs in float64 and returns the input's dtype. Cost: M / 2 to M
    steps of Horner's rule per entry, M x grid per row and column; the coefficients take M numbers per variance, so
    variances should broadcast as ``(..., n, 1)`` and ``(..., 1, m)``. Accuracy: ``rtol`` for analytic functions at
    variances up to about 10; beyond, and for kinks (relative error about 1e-4) and jumps, the error is larger,
    warned of and estimated.

    Args:
        phi: elementwise function of a tensor, differentiable by autograd; module-level to be picklable.
        rtol: tolerance of the dual relative to E[phi^2].
        max_order: bound of M.
        odd: whether phi(-u) = -phi(u); None looks.

    Raises:
        TypeError: ``phi`` is not callable.
        ValueError: ``rtol`` or ``max_order`` is not positive.

    Warns:
        QuadratureWarning: the tolerance was not reached at the variances of a call.

    Reference:
        Mehler's formula; Daniely, Frostig and Singer (2016), arXiv:1602.05897; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Erf
        >>> c_xx, c_xy, c_yy = torch.tensor([[1.0], [0.3], [0.5]], dtype=torch.float64)
        >>> bool((Quadrature(torch.erf).dual(c_xx, c_xy, c_yy) - Erf().dual(c_xx, c_xy, c_yy)).abs() < 1e-10)
        True
    """

    phi: Function
    rtol: float = 1e-10
    max_order: int = 512
    odd: bool | None = None
    _trusted: int = field(init=False, repr=False, compare=False)

    _blockwise_partials: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not callable(self.phi):
            raise TypeError(f"expected an elementwise callable, got {self.phi!r}")
        if not self.rtol > 0 or not self.max_order > 0:
            raise ValueError(f"expected rtol > 0 and max_order > 0, got {self.rtol} and {self.max_order}")
        if self.odd is None:
            u = torch.linspace(0, 20, 1001, dtype=torch.float64)
            with torch.no_grad():
                object.__setattr__(self, "odd", torch.equal(self.phi(-u), -self.phi(u)))
        object.__setattr__(self, "_trusted", _trusted_derivatives(self.phi))

    @property
    def is_odd(self) -> bool:  # type: ignore[override]
        """Whether phi(-u) = -phi(u)."""
        return bool(self.odd)

    def __call__(self, u: Tensor) -> Tensor:
        """Return phi(u), elementwise."""
        return self.phi(u)

    def dual(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor, out: Tensor | None = None) -> Tensor:
        """Return E[phi(u) phi(w)]."""
        return _Pair(self, 0, 0).dual(c_xx, c_xy, c_yy, out)

    def dual_diag(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return _Expectation.apply(self, 2, 0, c_xx)

    def mean(self, c_xx: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return _Expectation.apply(self, 1, 0, c_xx)

    def slope(self, c_xx: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return _Expectation.apply(self, 1, 1, c_xx)

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        return _Pair(self, 0, 0).dual_partials(c_xx, c_xy, c_yy)

    def error_estimate(self, c_xx: Tensor) -> Tensor:
        """Return the estimated absolute error of the dual and its diagonal at this variance.

        It is the sum of the rigorous bound 2 R of the truncation, at any correlation, and of the change of the result
        when the grid is halved. A call that mixes variances resolves the widest, so its error is at most this.
        """
        c = c_xx.detach().double()
        done = self._resolve(0, c)
        truncation, quadrature, _ = expansion_error(self.phi, c, done.points, done.orders, self._trusted == ALWAYS)
        return (truncation + quadrature).to(c_xx.dtype)

    def _resolve(self, order: int, *variances: Tensor) -> Resolution:
        """Grid and orders for the derivative of phi of this order at the variances present."""
        f = _derivative(self.phi, min(order, self._trusted))
        return resolve(f, _controls(*variances), self.rtol, self.max_order, self._trusted == ALWAYS)

    def _coefficients(self, variance: Tensor, order: int, done: Resolution, close: bool) -> Tensor:
        """Coefficients of a derivative of phi, and two more orders that hold its remainder where ``close`` is set."""
        by_autograd = min(order, self._trusted)
        by_stein = order - by_autograd
        if by_stein:
            variance = variance.clamp_min(_stein_floor(by_stein))
        f = _derivative(self.phi, by_autograd)
        expansion = hermite_expansion(f, variance, done.points, done.orders + by_stein)
        table = expansion.coefficients
        for _ in range(by_stein):
            n = torch.arange(1, len(table), dtype=table.dtype, device=table.device).reshape(-1, *(1,) * variance.ndim)
            table = (n / variance).sqrt() * table[1:]
        rest = torch.zeros_like(table[:2])
        if close and not by_stein:
            even, odd = expansion.remainder
            rest = torch.stack([odd, even] if done.orders % 2 == 0 else [even, odd]).sqrt()
        return torch.cat([table, rest])


def _stein_floor(order: int) -> float:
    """Smallest variance c for Stein's identity: its rounding error eps c^(-order/2) equals its bias c there."""
    return torch.finfo(torch.float64).eps ** (2 / (2 + order))


@dataclass(frozen=True)
class _Pair:
    """The mixed dual E[phi^(i)(u) phi^(j)(w)] of two derivatives; Price's theorem closes on these pairs."""

    activation: Quadrature
    i: int
    j: int

    _blockwise_partials: ClassVar[bool] = False

    def dual(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor, out: Tensor | None = None) -> Tensor:
        """Return E[phi(u) phi(w)]."""
        return apply_dual(self, c_xx, c_xy, c_yy, out)

    def _prepare(self, c_xx: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor]:
        variances = c_xx.double(), c_yy.double()
        done = self.activation._resolve(max(self.i, self.j), *variances)
        if self.i == self.j == 0 and done.relative_error > self.activation.rtol:
            low, high = (f([float(v.amin()) if f is min else float(v.amax()) for v in variances]) for f in (min, max))
            warnings.warn(
                f"{self.activation!r}: expected a relative error of the dual below {self.activation.rtol:.1e}, got an "
                f"estimate of {done.relative_error:.1e} at variances from {low:.3g} to {high:.3g}. Scale the inputs, "
                "raise max_order or rtol, or use an activation with a closed form.",
                QuadratureWarning,
                stacklevel=2,
            )
        tables = []
        for c, order in zip(variances, (self.i, self.j), strict=True):
            inverse = safe_divide(torch.ones_like(c), c.sqrt())
            coefficients = self.activation._coefficients(c, order, done, self.i == self.j)
            tables.append(torch.cat([inverse[None], coefficients]))
        return tables[0], tables[1]

    def _dual(self, row: Tensor, c_xy: Tensor, column: Tensor) -> Tensor:
        rho = (c_xy * row[0]).mul_(column[0]).clamp_(-1, 1)
        row, column = row[1:], column[1:]
        first, step, variable = 0, 1, rho
        if self.activation.is_odd:
            first, step, variable = (1 + self.i) % 2, 2, rho.square()
        top, *lower = range(first, len(row), step)[::-1]
        total = (row[top] * column[top]).expand(rho.shape).clone()
        for n in lower:
            total.mul_(variable).addcmul_(row[n], column[n])
        return total.mul_(rho) if first else total

    def dual_partials(self, c_xx: Tensor, c_xy: Tensor, c_yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives of the dual in c_xx, c_xy and c_yy."""
        pairs = (2, 0), (1, 1), (0, 2)
        d_xx, d_xy, d_yy = (_Pair(self.activation, self.i + a, self.j + b) for a, b in pairs)
        inputs = c_xx, c_xy, c_yy
        return 0.5 * d_xx.dual(*inputs), d_xy.dual(*inputs), 0.5 * d_yy.dual(*inputs)


class _Expectation(torch.autograd.Function):
    """E[G^(order)(u)] with G = phi^power, whose derivative in the variance is E[G^(order + 2)(u)] / 2."""

    @staticmethod
    def forward(activation: Quadrature, power: int, order: int, c_xx: Tensor) -> Tensor:
        c = c_xx.detach().double()
        by_autograd = min(order, activation._trusted)
        by_stein = order - by_autograd
        if by_stein:
            c = c.clamp_min(_stein_floor(by_stein))
        points = activation._resolve(by_autograd, c).points
        f = _derivative(lambda u: activation.phi(u) ** power, by_autograd)
        value = hermite_expansion(f, c, points, by_stein).coefficients[-1]
        return (value * (math.factorial(by_stein) / c**by_stein).sqrt() if by_stein else value).to(c_xx.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.activation, ctx.power, ctx.order, c_xx = inputs
        ctx.save_for_backward(c_xx)
        ctx.save_for_forward(c_xx)

    @staticmethod
    def _derivative(ctx: Any) -> Tensor:
        return 0.5 * _Expectation.apply(ctx.activation, ctx.power, ctx.order + 2, *ctx.saved_tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, grad * _Expectation._derivative(ctx)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[-1] * _Expectation._derivative(ctx)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Expectation.apply(*inputs), in_dims[-1]


def _silu(u: Tensor) -> Tensor:
    return u * torch.sigmoid(u)


@dataclass(frozen=True, init=False)
class Tanh(Quadrature):
    r"""Hyperbolic tangent phi(u) = tanh(u), by :class:`Quadrature`.

    .. math:: \kappa = E[\tanh(u) \tanh(w)]

    No singular points. Shapes, accuracy, cost and warnings as in :class:`Quadrature`: a relative 1e-10 at variances up
    to about 10, estimated beyond.

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor(1e-6, dtype=torch.float64)
        >>> bool((Tanh().dual(c, c, c) / c - 1).abs() < 3e-6)  # tanh(u) = u - u^3 / 3 + ...
        True
    """

    def __init__(self) -> None:
        super().__init__(torch.tanh, odd=True)

    def __repr__(self) -> str:
        return "Tanh()"


@dataclass(frozen=True, init=False)
class SiLU(Quadrature):
    r"""Sigmoid linear unit phi(u) = u / (1 + exp(-u)), also called swish, by :class:`Quadrature`.

    .. math:: \kappa = E[\phi(u) \phi(w)]

    No singular points. Shapes, accuracy, cost and warnings as in :class:`Quadrature`.

    Reference:
        THEORY.md, section 0.

    Example:
        >>> import torch
        >>> c = torch.tensor([0.1, 2.0], dtype=torch.float64)
        >>> torch.allclose(SiLU().slope(c), torch.full_like(c, 0.5))  # phi(u) - u/2 is even
        True
    """

    def __init__(self) -> None:
        super().__init__(_silu, odd=False)

    def __repr__(self) -> str:
        return "SiLU()"
