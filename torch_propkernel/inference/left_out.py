"""Exact leave-one-out predictions with the scale integrated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..mixing.scale_integral import ScalePosterior
from ..spectra.spectrum import Spectrum


def leave_one_out_mixture(
    spectrum: Spectrum, posterior: ScalePosterior, temperature: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return log p(y_i | y_-i) and the expected squared error of a network given the other points, ``P`` each.

    .. math:: p(y_i | y_{-i}) = \Big[\int p(r | y) / p(y_i | y_{-i}, r)\, dr\Big]^{-1}

    The posterior of the scale given the other points is p(r | y) reweighted by the same factor. The density includes
    the noise, the error (y_i - f(x_i))^2 does not.

    Args:
        spectrum: Of K and y (and B), with eigenvectors.
        posterior: p(r | y) at this temperature.
        temperature: T.
        noise: Noise variances of the points, broadcastable to ``P``.
    """
    vectors = spectrum.eigenvectors
    assert vectors is not None
    scale = posterior.without_empty_nodes(1e-20)  # a point left out can lift a node by many nats
    spread = 1.0 / (temperature + scale.scale.unsqueeze(-1) * spectrum.eigenvalues)
    precision = spread @ vectors.square().transpose(-1, -2)
    deviation = (spread * spectrum.single) @ vectors.transpose(-1, -2) / precision
    log_density = 0.5 * (precision.log() - deviation.square() * precision - math.log(2.0 * math.pi))
    lifted = scale.log_weights.unsqueeze(-1) - log_density
    total = torch.logsumexp(lifted, 0)
    error = deviation.square() + (1.0 / precision - noise).clamp_min(0.0)
    return -total, (torch.exp(lifted - total) * error).sum(0)


def preferred(log_evidence: Tensor, nats: float) -> int | None:
    """Return the index of the highest log evidence if it is ahead of the lowest by ``nats``, else None.

    A data set is one draw of the scale: no preference is the common answer where the prior variances fit.
    """
    spread = float(log_evidence.max() - log_evidence.min())
    return int(log_evidence.argmax()) if spread >= nats else None
