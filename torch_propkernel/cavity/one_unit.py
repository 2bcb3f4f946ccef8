"""One hidden unit in the field of all others: its exact law given the field, and the moments that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..activations import Activation
from .shared_noise import SharedNoise

NUM_BINS = 20
"""Bins of |v| up to five times its root mean square; one more holds the tail."""

RARE = 1e-12
"""Probability below which a bin is empty: it is lost in rounding."""

_WIDEST = 5.0
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)


class Tilt(NamedTuple):
    """What the field does to units with given features, one number for each of n units.

    Attributes:
        variance: s, the variance of v given w.
        mean: mu, the mean of v given w.
        log_weight: Logarithm of the density of w relative to its prior, up to the constant log Z_1.
    """

    variance: Tensor
    mean: Tensor
    log_weight: Tensor

    @property
    def second_moment(self) -> Tensor:
        """E v^2 given w."""
        return self.variance + self.mean.square()


@dataclass(frozen=True)
class OneUnit:
    r"""A unit of the last hidden layer, as the training points see it.

    .. math:: f_i = v\, \varphi(w) / \sqrt N, \qquad \varphi(w) = \sigma(X w) \in R^P, \quad w \sim N(0, 1), \
              v \sim N(0, 1/\lambda)

    In a field exp(a f - f^T B f / 2) of the other units, v is integrated out exactly:

    .. math:: g = \varphi^T B \varphi / N, \quad b = a \varphi / \sqrt N, \quad s = \frac{1}{\lambda + g}, \quad
              \mu = s b, \quad \log \text{weight}(w) = \tfrac12 \log(\lambda s) + \tfrac12 \mu b

    and v given w is N(mu, s).

    Args:
        activation: sigma.
        inputs: X, ``P x k``, such that X w with standard normal w has the prior of the unit's pre-activation: of one
            hidden layer the inputs in coordinates of their row space, prior scales multiplied in, one column for the
            bias if there is one; above other layers a root of their covariance.
        width: N.
        precision: lambda of the readout.
        noise: A bias of the readout, whose effect the units see; phi is whitened by it, and all that lives on the
            training points with it (a, B, V, y).

    Reference: THEORY.md, eq. (12).
    """

    activation: Activation
    inputs: Tensor
    width: float
    precision: float
    noise: SharedNoise = SharedNoise()

    def scaled(self, factor: float) -> OneUnit:
        """Return the unit with the variance of its readout times a factor."""
        return replace(self, precision=self.precision / factor)

    def features(self, weights: Tensor) -> Tensor:
        """Return phi(w), ``n x P``, in the dtype of the weights ``n x k``."""
        return self.outputs(weights @ self.inputs.to(weights.dtype).mT)

    def outputs(self, hidden: Tensor) -> Tensor:
        """Return phi of pre-activations at the training points, ``n x P``."""
        return self.noise.whiten(self.activation(hidden))

    def tilt(self, strength: Tensor, pull: Tensor) -> Tilt:
        """Return the tilt of units with given g and b."""
        variance = 1.0 / (self.precision + strength)
        mean = variance * pull
        return Tilt(variance, mean, 0.5 * ((self.precision * variance).log() + mean * pull))

    def strength(self, features: Tensor, precision: Tensor) -> Tensor:
        """Return g = phi^T B phi / N of features ``n x P``, computed in their dtype."""
        pressed = features @ precision.to(features.dtype)
        return (pressed.mul_(features).sum(-1) / self.width).to(precision.dtype)

    def strength_of(self, tilt: Tilt) -> Tensor:
        """Return the g that a tilt came from."""
        return 1.0 / tilt.variance - self.precision

    def pull(self, features: Tensor, field: Tensor) -> Tensor:
        """Return b = a phi / sqrt(N) of features ``n x P``, computed in their dtype."""
        return (features @ field.to(features.dtype) / math.sqrt(self.width)).to(field.dtype)


def bin_terms(tilt: Tilt, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return for each bin of \|v\| its probability, ``K``, and of each unit P(bin) and E[v; bin], ``n x K`` each.

    .. math:: E[v; |v| < e] = \mu [\Phi(z_+) - \Phi(z_-)] - \sqrt s\, [\phi(z_+) - \phi(z_-)], \qquad
              z_\pm = (\pm e - \mu) / \sqrt s

    Args:
        tilt: Of n units.
        weights: Their normalized weights, ``n``.
    """
    size = float((weights * tilt.second_moment).sum().sqrt())
    edges = torch.linspace(0.0, _WIDEST, NUM_BINS + 1, dtype=weights.dtype, device=weights.device)[1:] * size
    deviation = tilt.variance.sqrt().unsqueeze(-1)
    mean = tilt.mean.unsqueeze(-1)
    above, below = (edges - mean) / deviation, (-edges - mean) / deviation
    mass = torch.special.ndtr(above) - torch.special.ndtr(below)
    slope = (torch.exp(-0.5 * above.square()) - torch.exp(-0.5 * below.square())) / _ROOT_TWO_PI
    within = mean * mass - deviation * slope
    zero = torch.zeros_like(mean)
    first = torch.diff(torch.cat([zero, within, mean], -1), dim=-1)
    mass = torch.diff(torch.cat([zero, mass, torch.ones_like(mean)], -1), dim=-1)
    return weights @ mass, mass, first


class Moments(NamedTuple):
    r"""Moments of f of one unit under the tilt at P points.

    Attributes:
        mean: m, ``P``.
        second: E2, ``P x P``.
        conditional: V = E2 - sum_k p_k m_k m_k^T, the covariance given \|v\|.
    """

    mean: Tensor
    second: Tensor
    conditional: Tensor


def moments(unit: OneUnit, features: Tensor, tilt: Tilt, weights: Tensor) -> Moments:
    r"""Return the moments of f = v phi / sqrt(N) over weighted units.

    .. math:: m = E[\mu \varphi] / \sqrt N, \qquad E_2 = E[(s + \mu^2) \varphi \varphi^T] / N, \qquad
              V = E_2 - \sum_k p_k m_k m_k^T

    Args:
        unit: The unit.
        features: phi of n units at P points, ``n x P``.
        tilt: Of the n units.
        weights: Normalized, ``n``.
    """
    wide = weights.dtype
    mean = ((weights * tilt.mean).to(features.dtype) @ features).to(wide) / math.sqrt(unit.width)
    second = weighted_gram(features, weights * tilt.second_moment / unit.width)
    spread = bin_factor(unit, features, tilt, weights)
    return Moments(mean, second, second - spread.mT @ spread)


def bin_factor(unit: OneUnit, features: Tensor, tilt: Tilt, weights: Tensor) -> Tensor:
    """Return sqrt(p_k) m_k for each bin of |v|, ``K x P``."""
    chance, _, first = bin_terms(tilt, weights)
    narrow = ((weights.unsqueeze(-1) * first).to(features.dtype).mT @ features).to(weights.dtype)
    scale = torch.where(chance > RARE, (unit.width * chance.clamp_min(RARE)).rsqrt(), 0.0)
    return scale.unsqueeze(-1) * narrow


def weighted_gram(features: Tensor, weights: Tensor) -> Tensor:
    """Return sum_u weights_u phi_u phi_u^T for non-negative weights, ``P x P`` in their dtype."""
    scaled = features * weights.sqrt().to(features.dtype).unsqueeze(-1)
    return (scaled.mT @ scaled).to(weights.dtype)
