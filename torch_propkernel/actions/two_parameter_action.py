"""The effective action of one hidden layer whose activation has a mean: two order parameters, from one spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics.root_finder import find_roots
from ..spectra.spectrum import Spectrum

_STEP = 0.05
"""Grid in log q: every term of the slope is a function of log q of width one or more."""


class TwoParameterSaddle(NamedTuple):
    """Global saddle point, each ``*p``; ``slope`` is q dS/dq there, ``gap`` that of S to the next minimum over q."""

    order_parameter: Tensor
    mean_scale: Tensor
    action: Tensor
    slope: Tensor
    curvature: Tensor
    num_minima: Tensor
    gap: Tensor
    iterations: int


@dataclass(frozen=True)
class TwoParameterAction:
    r"""Effective action of an activation with mean m at fixed readout v, where f ~ N(c m, q (K - M)), M = m m^T/lambda.

    .. math:: S(q, s) = -q s + \log(1 + s) + \frac1N [\log\det A + y^T A^{-1} y], \qquad
              A = T B + q (K - M) + \frac{M}{1 + s}

    q stands for lambda |v|^2 / N (the part of v along the mean included) and t = 1/(1 + s), ``mean_scale`` here, for
    lambda E c^2, the renormalized variance of c = sum_i v_i/sqrt(N). The solution is the minimum over q of the maximum
    over s > -1. For M = 0, t = q and S is the one-parameter action minus one.

    M = w w^T has rank one: with the spectrum of K - M, A_0 = T B + q (K - M), g = w^T A_0^{-1} w and h = w^T A_0^{-1}
    y, the maximum over s is a root of

    .. math:: \psi(t) = t \Big[1 - \frac1N \frac{t g}{1 + t g}\Big] + \frac{t^2 h^2}{N (1 + t g)^2} - q,

    which is a cubic in t. For N > 1 its first and last coefficients have opposite signs and the two between never make
    the pattern (-, +), so that by Descartes' rule there is exactly one positive root: the maximum over s is unique for
    every q. It lies between 2q/(1 + sqrt(1 + 4 q h^2/N)) and q N/(N - 1). The minimum over q is searched by a scan of
    q dS/dq over the interval that holds all stationary points,

    .. math:: \frac{1 - 1/N}{1 + \mathrm{tr}\,B^{-1}(K - M)/(N T)} \le q \le 1 + \frac{y^T B^{-1} y}{4 T N}.

    Shapes: a batch of problems ``*p``; methods take q as ``*p x n``. Cost: O(P) for each value of q. Accuracy: that of
    the spectrum; q to about 1e-12.

    Attributes:
        eigenvalues: Of K - M relative to B, ``*p x P``.
        projections: Of the targets, ``*p x P``.
        mean_projections: Of w = m / sqrt(lambda), ``*p x P``.
        width: N > 1, finite, ``*p``.
        temperature: T > 0, ``*p``.
        log_det_base: logdet B, ``*p``.

    Raises:
        ValueError: A width that is not finite and above one, T not above zero (from :meth:`from_spectrum`).

    Reference: THEORY.md, eq. (5).

    Example:
        >>> import torch
        >>> k, y = torch.eye(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
        >>> spectrum = Spectrum.from_kernel(k, y, eigenvectors=True)
        >>> action = TwoParameterAction.from_spectrum(spectrum, torch.zeros_like(y), torch.tensor(3.0), 1e-9)
        >>> round(action.solve().order_parameter.item(), 6)   # without a mean: q^2 = y^T K^{-1} y / P = 4 at P = N
        2.0
    """

    eigenvalues: Tensor
    projections: Tensor
    mean_projections: Tensor
    width: Tensor
    temperature: Tensor
    log_det_base: Tensor

    @classmethod
    def from_spectrum(
        cls, spectrum: Spectrum, mean: Tensor, width: Tensor, temperature: float | Tensor
    ) -> TwoParameterAction:
        """Combine a spectrum of K - M, with eigenvectors, and the mean vector w = m / sqrt(lambda), ``*b x P``."""
        if spectrum.eigenvectors is None:
            raise ValueError("spectrum: expected one with eigenvectors, got one without")
        moved = (spectrum.eigenvectors.transpose(-1, -2) @ mean.to(spectrum.eigenvalues).unsqueeze(-1)).squeeze(-1)
        width, temperature = (torch.as_tensor(v, dtype=moved.dtype, device=moved.device) for v in (width, temperature))
        if not bool((torch.isfinite(width) & (width > 1)).all()):
            raise ValueError(f"width: expected finite numbers above 1, got {width.tolist()}")
        if not bool((temperature > 0).all()):
            raise ValueError(f"temperature: expected > 0, got {temperature.tolist()}")
        shape = torch.broadcast_shapes(spectrum.batch_shape, width.shape, temperature.shape)
        return cls(
            spectrum.eigenvalues.expand(*shape, -1),
            spectrum.single.expand(*shape, -1),
            moved.expand(*shape, -1),
            width.expand(shape),
            temperature.expand(shape),
            spectrum.log_det_base.expand(shape),
        )

    def _select(self, index: Tensor) -> TwoParameterAction:
        """Return the problems at ``index`` of the flattened batch."""
        batch = self.width.dim()
        columns = (getattr(self, field.name) for field in fields(self))
        return TwoParameterAction(*(v.reshape(-1, *v.shape[batch:])[index] for v in columns))

    def _terms(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return 1 / (T + q k), ``*p x n x P``, and g, h, ``*p x n``."""
        spread = 1.0 / (self.temperature[..., None, None] + q.unsqueeze(-1) * self.eigenvalues.unsqueeze(-2))
        w, z = self.mean_projections.unsqueeze(-1), self.projections.unsqueeze(-1)
        return spread, (spread @ w.square()).squeeze(-1), (spread @ (w * z)).squeeze(-1)

    def mean_scale(self, q: Tensor) -> Tensor:
        """Return t = 1 / (1 + s) at the maximum over s, ``*p x n``."""
        _, g, h = self._terms(q)
        return self._mean_scale(q, g, h)

    def _mean_scale(self, q: Tensor, g: Tensor, h: Tensor) -> Tensor:
        """Find the root of psi."""
        width = self.width.unsqueeze(-1)
        low = 2.0 * q / (1.0 + (1.0 + 4.0 * q * h.square() / width).sqrt())
        high = q * width / (width - 1.0)
        columns = [v.expand(q.shape).reshape(-1) for v in (q, g, h.square() / width, width)]

        def psi(t: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, g, label, width = (column[index] for column in columns)
            share = t * g / (1.0 + t * g)
            label = (t / (1.0 + t * g)).square() * label
            value = t * (1.0 - share / width) + label - q
            return value, 1.0 - share * (2.0 - share) / width + 2.0 * label / t * (1.0 - share), t + label

        ends = low.reshape(-1), high.reshape(-1)
        return find_roots(psi, *ends, start=ends[0]).x.reshape(q.shape)

    def evaluate(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return max_s S(q, s), its slope q dS/dq, and t at the maximum, ``*p x n`` each."""
        spread, g, h = self._terms(q)
        t = self._mean_scale(q, g, h)
        width, one = self.width.unsqueeze(-1), 1.0 + t * g
        z = self.projections.unsqueeze(-2)
        data = (z.square() * spread - spread.log()).sum(-1) + one.log() - t * h.square() / one
        value = -q * (1.0 / t - 1.0) - t.log() + (data + self.log_det_base.unsqueeze(-1)) / width
        trace, label = self._forces(spread, h, t, one)[2:]
        return value, q * (1.0 - 1.0 / t) + q * (trace - label) / width, t

    def _forces(self, spread: Tensor, h: Tensor, t: Tensor, one: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a = A^{-1} y and b = A_0^{-1} w, ``*p x n x P``, tr A^{-1} k and a^T k a, ``*p x n``."""
        k, z, w = (v.unsqueeze(-2) for v in (self.eigenvalues, self.projections, self.mean_projections))
        b = spread * w
        a = spread * z - (t * h / one).unsqueeze(-1) * b
        return a, b, (spread * k).sum(-1) - t / one * (b.square() * k).sum(-1), (a.square() * k).sum(-1)

    def slope_terms(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return q dS/dq of max_s S, its derivative by log q, and the size of its terms, ``*p x n`` each.

        .. math:: \frac{d}{d\log q} q \frac{dS}{dq} = q S_q + q^2 \Big(S_{qq} - \frac{S_{qt}^2}{S_{tt}}\Big)
        """
        spread, g, h = self._terms(q)
        t = self._mean_scale(q, g, h)
        k, width, one = self.eigenvalues.unsqueeze(-2), self.width.unsqueeze(-1), 1.0 + t * g
        a, b, trace, label = self._forces(spread, h, t, one)
        share = t / one  # A^{-1} = diag(spread) - share b b^T, and A^{-1} w = b / one
        bb, ab = (b.square() * k).sum(-1), (a * b * k).sum(-1)
        double = (spread * k).square().sum(-1) - 2.0 * share * (b.square() * spread * k.square()).sum(-1)
        double = double + (share * bb).square()  # tr A^{-1} k A^{-1} k
        curved = (a.square() * spread * k.square()).sum(-1) - share * ab.square()  # a^T k A^{-1} k a
        gain, pull = g / one, h / one  # w^T A^{-1} w, w^T a
        s_qq = (2.0 * curved - double) / width
        s_qt = t.pow(-2) + (2.0 * pull * ab / one - bb / one.square()) / width
        s_tt = t.pow(-2) - 2.0 * q / t.pow(3) + (2.0 * pull.square() * gain - gain.square()) / width
        slope = q * (1.0 - 1.0 / t) + q * (trace - label) / width
        size = q * (1.0 + 1.0 / t) + q * (trace.abs() + label) / width
        return slope, slope + q.square() * (s_qq - s_qt.square() / s_tt), size

    def bracket(self) -> tuple[Tensor, Tensor]:
        """Return bounds of q between which all stationary points lie, ``*p`` each."""
        scaled = self.width * self.temperature
        low = (1.0 - 1.0 / self.width) / (1.0 + self.eigenvalues.sum(-1) / scaled)
        return low, 1.0 + self.projections.square().sum(-1) / (4.0 * scaled)

    def solve(self) -> TwoParameterSaddle:
        """Return the saddle point: the global minimum over q of the maximum over s."""
        low, high = (end.log() for end in self.bracket())
        low, high = low - _STEP, high + _STEP
        count = int(math.ceil(float((high - low).max()) / _STEP)) + 2
        u = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * torch.linspace(
            0.0, 1.0, count, dtype=low.dtype, device=low.device
        )
        slope = self.evaluate(u.exp())[1]
        rises = (slope[..., :-1] <= 0) & (slope[..., 1:] > 0)
        # All minima of all problems at once, in columns; a problem with fewer repeats its first.
        num_minima = rises.sum(-1)
        order = rises.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., : max(1, int(num_minima.max()))]
        order = torch.where(rises.gather(-1, order), order, order[..., :1])
        left, right = u.gather(-1, order), u.gather(-1, order + 1)
        left_slope, right_slope = slope.gather(-1, order), slope.gather(-1, order + 1)
        secant = left - left_slope * (right - left) / (right_slope - left_slope)
        flat = self._select(torch.arange(low.numel(), device=u.device).repeat_interleave(order.shape[-1]))

        def slope_terms(u: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            slope, steepness, size = flat._select(index).slope_terms(u.exp().unsqueeze(-1))
            return slope.squeeze(-1), steepness.squeeze(-1), size.squeeze(-1)

        roots = find_roots(slope_terms, *(v.reshape(-1) for v in (left, right, secant)))
        found, steepness = roots.x.reshape(order.shape), roots.slope.reshape(order.shape)
        value, slope_there, t = self.evaluate(found.exp())
        best = value.argmin(-1, keepdim=True)
        others = torch.where(order == order.gather(-1, best), torch.inf, value).amin(-1)

        def pick(v: Tensor) -> Tensor:
            return v.gather(-1, best).squeeze(-1)

        lowest = pick(value)
        gap = others - lowest
        return TwoParameterSaddle(
            pick(found).exp(), pick(t), lowest, pick(slope_there), pick(steepness), num_minima, gap, roots.iterations
        )
