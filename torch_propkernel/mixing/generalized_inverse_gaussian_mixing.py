"""The posterior of the scale at zero temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..numerics.bessel import log_bessel_k
from ..spectra.spectrum import Spectrum
from .mixing_law import MixingLaw


class GeneralizedInverseGaussianMixing(MixingLaw):
    r"""Generalized inverse Gaussian law of the scale, GIG(p, a, b): the posterior of q at T = 0.

    .. math:: p(r) = \frac{(a/b)^{p/2}}{2 K_p(\sqrt{ab})}\, r^{p-1} e^{-(a r + b/r)/2}, \qquad
              E\, r^n = (b/a)^{n/2} \frac{K_{p+n}(\sqrt{ab})}{K_p(\sqrt{ab})}

    K_p is the modified Bessel function, evaluated in logarithms: orders and arguments in the millions are fine. For
    one hidden layer of width N at T = 0, q given y has p = (N - P)/2, a = N, b = y^T K^{-1} y
    (:meth:`at_zero_temperature`). Mixed over it, a normal of variance r s is symmetric generalized hyperbolic
    (:meth:`marginal_log_prob`).

    Shapes: ``*batch_shape`` for all. Accuracy: 1e-12 relative. Not differentiable in its parameters.

    Args:
        order: p, real.
        a: Weight of r, positive.
        b: Weight of 1 / r, positive.

    Raises:
        ValueError: a or b not positive.

    Reference: THEORY.md, section 1 ("beyond the saddle"); Jorgensen (1982), Lecture Notes in Statistics 9.

    Example:
        >>> law = GeneralizedInverseGaussianMixing(-0.5, 4.0, 4.0)   # inverse Gaussian of mean sqrt(b / a)
        >>> round(law.mean.item(), 12)
        1.0
    """

    def __init__(self, order: float | Tensor, a: float | Tensor, b: float | Tensor) -> None:
        """Store the parameters and the normalization."""
        values = [torch.as_tensor(v, dtype=torch.float64) for v in (order, a, b)]
        self.order, self.a, self.b = torch.broadcast_tensors(*values)
        for name, value in (("a", self.a), ("b", self.b)):
            if not bool((torch.isfinite(value) & (value > 0)).all()):
                raise ValueError(f"{name}: expected finite numbers > 0, got {value.tolist()}")
        self.batch_shape = self.order.shape
        self._argument = (self.a * self.b).sqrt()
        self._log_bessel = log_bessel_k(self.order, self._argument)

    @classmethod
    def at_zero_temperature(
        cls, spectrum: Spectrum, width: float | Tensor
    ) -> tuple[GeneralizedInverseGaussianMixing, Tensor]:
        r"""Return p(q | y) of one hidden layer at T = 0, and log p(y), in closed form.

        .. math:: \log p(y) = \tfrac N2 \log \tfrac N2 - \log\Gamma(\tfrac N2) - \tfrac P2 \log 2\pi
                  - \tfrac12 \log\det K + \log\big[2 (b/a)^{p/2} K_p(\sqrt{ab})\big]

        Args:
            spectrum: Of K and y; K non-singular, y not zero.
            width: N, ``*b``.
        """
        width = torch.as_tensor(width, dtype=torch.float64)
        if not bool(torch.isfinite(spectrum.condition).all()):
            raise ValueError(
                "kernel matrix: expected a non-singular one at T = 0, got one that is singular to rounding"
            )
        label = (spectrum.squares / spectrum.eigenvalues).sum(-1)
        law = cls(0.5 * (width - spectrum.num_data), width, label)
        half = 0.5 * width
        twice = spectrum.num_data * math.log(2.0 * math.pi) + spectrum.eigenvalues.log().sum(-1)
        return law, half * half.log() - torch.lgamma(half) - 0.5 * twice + law._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        """Log of 2 (b/a)^{p/2} K_p(sqrt(a b)), the integral of r^{p-1} exp(-(a r + b / r) / 2)."""
        return math.log(2.0) + 0.5 * self.order * (self.b / self.a).log() + self._log_bessel

    def log_density(self, u: Tensor) -> Tensor:
        """Return the log density of u = log r."""
        return self.order * u - 0.5 * (self.a * torch.exp(u) + self.b * torch.exp(-u)) - self._log_normalizer()

    def moment(self, n: float) -> Tensor:
        """Return E r^n for any real n."""
        ratio = log_bessel_k(self.order + n, self._argument) - self._log_bessel
        return torch.exp(0.5 * n * (self.b / self.a).log() + ratio)

    @property
    def mean(self) -> Tensor:
        """E r."""
        return self.moment(1.0)

    @property
    def variance(self) -> Tensor:
        """Variance of r."""
        return (self.moment(2.0) - self.mean.square()).clamp_min(0.0)

    def marginal_log_prob(self, deviation: Tensor, variance: Tensor) -> Tensor:
        r"""Return the log density at ``deviation`` from the location of a normal of variance r s mixed over this law.

        .. math:: \frac{(a/b)^{p/2}}{\sqrt{2\pi s}}\, \frac{K_{p-1/2}(\sqrt{a (b + d^2/s)})}{K_p(\sqrt{ab})}
                  \Big(\frac{b + d^2/s}{a}\Big)^{(p - 1/2)/2}

        Symmetric generalized hyperbolic: the predictive of the network at T = 0 with s = k_** - k_*^T K^{-1} k_*.

        Args:
            deviation: d.
            variance: s.
        """
        grown = self.b + deviation.square() / variance
        order = self.order - 0.5
        bessel = log_bessel_k(order, (self.a * grown).sqrt())
        return (math.log(2.0) - self._log_normalizer() + bessel + 0.5 * order * (grown / self.a).log()) - 0.5 * (
            2.0 * math.pi * variance
        ).log()

    def sample(self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw r, ``*sample_shape x *batch_shape``, by scipy's ratio-of-uniforms generator."""
        from scipy.stats import geninvgauss  # a third of the package's import time, for this method alone

        seed = int(torch.randint(2**31, (), generator=generator))
        shape = (*sample_shape, *self.batch_shape)
        scale = (self.b / self.a).sqrt()
        draws = geninvgauss.rvs(
            self.order.numpy(), self._argument.numpy(), size=shape, random_state=np.random.default_rng(seed)
        )
        return torch.as_tensor(draws, dtype=torch.float64) * scale
