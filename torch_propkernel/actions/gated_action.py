"""Large deviations of the readout of gated units: the prior part of the action of two relu layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations.quadrature import hermite_grid

GATE = 1.0 / math.sqrt(math.pi - 1.0)
"""a: the mean activation of a relu layer in units of the standard deviation of its fluctuation."""

_POINTS = 513
_MAX_ITERATIONS = 50
_MAX_HALVINGS = 20
_EDGE = 1e-10
"""Smallest bracket that is told from zero."""


class GateMoments(NamedTuple):
    """Quadrature nodes' weights, squared slopes Phi^2 and residual variances R; all ``n``."""

    weights: Tensor
    squared_slope: Tensor
    residual: Tensor

    @property
    def prior_slope(self) -> Tensor:
        """E[Phi^2] = 1/4 + asin(1/pi)/(2 pi)."""
        return (self.weights * self.squared_slope).sum()

    @property
    def prior_residual(self) -> Tensor:
        """E[R]."""
        return (self.weights * self.residual).sum()


def gate_moments(points: int = _POINTS, device: torch.device | None = None) -> GateMoments:
    r"""Slope and residual variance of sigma(g a + z), z ~ N(0, 1), sigma the relu, at nodes of g ~ N(0, 1).

    .. math:: \Phi = \Phi(g a), \qquad R = \mathrm{Var}\, \sigma(g a + z) - \Phi^2

    R is even in g, because the units at g and -g differ by a linear function and a reflection of z. It is evaluated at
    the negative one, where nothing cancels. The trapezoidal rule on (-12, 12) converges exponentially here.

    Args:
        points: Number of nodes, odd.
        device: Where the tensors live.

    Reference: THEORY.md, eq. (8c).

    Example:
        >>> moments = gate_moments()
        >>> abs(moments.prior_slope.item() - (0.25 + math.asin(1 / math.pi) / (2 * math.pi))) < 1e-14
        True
        >>> round(moments.prior_residual.item(), 6)
        0.069776
    """
    nodes, table = (v.to(device) for v in hermite_grid(points, 0))
    shift = GATE * nodes
    x = -shift.abs()
    tail = torch.special.ndtr(x)
    density = (-0.5 * x.square()).exp() / math.sqrt(2.0 * math.pi)
    residual = (x.square() + 1.0) * tail + x * density - (x * tail + density).square() - tail.square()
    return GateMoments(table[0], torch.special.ndtr(shift).square(), residual.clamp_min(0.0))


class GateRate(NamedTuple):
    """I(A, B) and what comes with it, each ``*p``.

    ``slope_field`` and ``residual_field`` are a' and b'; ``gap`` is the smallest bracket 1 + (a' Phi^2 + b' R)/lambda_2
    over the nodes; ``gradient`` the largest derivative that is left, relative to A and B.
    """

    value: Tensor
    slope_field: Tensor
    residual_field: Tensor
    gap: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class GatedPrior:
    r"""Large-deviation function of A = sum_i v_i^2 Phi_i^2 / N_2 and B = sum_i v_i^2 R_i / N_2 over the prior.

    .. math:: I(A, B) = \max_{a', b'} \Big\{ -\tfrac12 (a' A + b' B) - \log E_g
              \Big(1 + \frac{a' \Phi^2 + b' R}{\lambda_2}\Big)^{-1/2} \Big\}

    over the fields for which the bracket is positive for every g: the density of (A, B) goes as exp(-N_2 I). The
    function in the braces is concave, so the maximum is unique; I is convex and zero at the prior values
    E[Phi^2]/lambda_2 and E[R]/lambda_2. Found by Newton's method with backtracking, for a batch of problems at once.

    For A well above its prior value at small B the maximum moves to the end of the domain, a' = -lambda_2: there a
    single unit carries a finite share of the readout. The derivative does not vanish then (``gradient``), and the
    theory, which adds up many units, ends. Close to it the integrand is narrow: compare two numbers of nodes.

    Shapes: A and B ``*p``. Cost: 513 numbers for each problem and iteration, about ten iterations. The value is
    differentiable twice in A and B.

    Attributes:
        moments: Nodes.
        precision: lambda_2, broadcastable to ``*p``.

    Reference: THEORY.md, eq. (8c).

    Example:
        >>> import torch
        >>> prior = GatedPrior(gate_moments(), torch.tensor(2.0, dtype=torch.float64))
        >>> A, B = prior.mean
        >>> rate = prior.rate(A, B)
        >>> bool(rate.value.abs() < 1e-14), bool(prior.rate(2 * A, B).value > 0.05)
        (True, True)
    """

    moments: GateMoments
    precision: Tensor

    @property
    def mean(self) -> tuple[Tensor, Tensor]:
        """Prior values of A and B."""
        return self.moments.prior_slope / self.precision, self.moments.prior_residual / self.precision

    @property
    def _rows(self) -> Tensor:
        return torch.stack([self.moments.squared_slope, self.moments.residual])

    def _bracket(self, fields: Tensor) -> Tensor:
        """1 + (a' Phi^2 + b' R)/lambda_2 for fields ``*p x 2``, ``*p x n``."""
        return 1.0 + (fields / self.precision.unsqueeze(-1)) @ self._rows

    def _objective(self, fields: Tensor, target: Tensor) -> Tensor:
        """The function in the braces; -inf outside of the domain."""
        deviation = self._bracket(fields) - 1.0
        inside = (deviation > -1.0).all(-1)
        # E bracket^{-1/2} - 1, so that small fields (wide layers) keep their digits.
        excess = torch.expm1(-0.5 * torch.log1p(torch.where(deviation > -1.0, deviation, 0.0)))
        value = -0.5 * (fields * target).sum(-1) - torch.log1p(excess @ self.moments.weights)
        return torch.where(inside, value, -torch.inf)

    def tilted_units(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nodes' tilted weights, proportional to bracket^{-1/2}, and 1/bracket, ``*p x n`` each."""
        bracket = self._bracket(fields)
        tilted = self.moments.weights * bracket.rsqrt()
        return tilted / tilted.sum(-1, keepdim=True), 1.0 / bracket

    def readout_norm(self, fields: Tensor) -> Tensor:
        """Return lambda_2 E |v|^2 / N_2 at the fields ``*p x 2``: E_tilted[1/bracket]."""
        tilted, inverse = self.tilted_units(fields)
        return (tilted * inverse).sum(-1)

    def _newton(self, fields: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradient and negative Hessian of the objective, ``*p x 2`` and ``*p x 2 x 2``."""
        tilted, inverse = self.tilted_units(fields)
        scaled = inverse.unsqueeze(-2) * self._rows / self.precision[..., None, None]  # *p x 2 x n
        mean = (tilted.unsqueeze(-2) * scaled).sum(-1)
        second = (tilted.unsqueeze(-2) * scaled) @ scaled.transpose(-1, -2)
        return 0.5 * (mean - target), 0.75 * second - 0.25 * mean.unsqueeze(-1) * mean.unsqueeze(-2)

    def rate(self, slope: Tensor, residual: Tensor) -> GateRate:
        """Return I(A, B), with its fields.

        Args:
            slope: A > 0.
            residual: B > 0.
        """
        target = torch.stack([slope, residual], -1)
        with torch.no_grad():
            fixed = target.detach()
            fields = torch.zeros_like(fixed)
            value = self._objective(fields, fixed)
            for _ in range(_MAX_ITERATIONS):
                gradient, hessian = self._newton(fields, fixed)
                step, _ = torch.linalg.solve_ex(hessian, gradient)
                small = (2.0 * gradient / fixed).abs().amax(-1) <= 1e-14
                # At most 0.95 of the way to the end of the domain, then halved until the value rises.
                bracket = self._bracket(fields)
                reach = (bracket / (bracket - self._bracket(fields + step)).clamp_min(1e-300)).amin(-1)
                length = (0.95 * reach).clamp_max(1.0)
                for _ in range(_MAX_HALVINGS):
                    there = fields + length.unsqueeze(-1) * step
                    trial = self._objective(there, fixed)
                    good = trial >= value - 1e-15 * (1.0 + value.abs())
                    ends = small | ~good | (self._bracket(there).amin(-1) < _EDGE)
                    # All that the program reads from the device in one step.
                    is_good, is_done = torch.stack([good.all(), ends.all()]).tolist()
                    if is_good:
                        break
                    length = torch.where(good, length, 0.5 * length)
                fields = torch.where(good.unsqueeze(-1), there, fields)
                value = torch.where(good, trial, value)
                if is_done:
                    break
            gradient, hessian = self._newton(fields, fixed)
            left = (2.0 * gradient / fixed).abs().amax(-1)
        if torch.is_grad_enabled() and target.requires_grad:
            # One Newton step with a graph: its derivative is that of the maximizer.
            fields = fields + torch.linalg.solve_ex(hessian, self._newton(fields, target)[0])[0]
            value = self._objective(fields, target)
        gap = self._bracket(fields.detach()).amin(-1)
        return GateRate(value, fields[..., 0], fields[..., 1], gap, left)
