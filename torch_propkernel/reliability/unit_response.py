"""The response of one real hidden unit to the field of the others, against that of the theory's Gaussian unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..actions.first_order import draw_pre_activations
from ..activations import Activation
from ..spectra import Spectrum

_NODES = 64


@torch.no_grad()
def unit_response(
    activation: Activation,
    covariance: Tensor,
    scale: Tensor,
    kernel: Tensor,
    spectrum: Spectrum,
    order_parameter: Tensor,
    width: Tensor,
    *,
    num_units: int = 4096,
    seed: int = 0,
) -> Tensor:
    r"""Return how much the fit changes if one of N units is a real one, in units of the leave-one-out error.

    .. math:: \text{score} = \frac{\sqrt{|r|\, |r'|}}{|y - \mu_{loo}|}, \quad r = N (m - m_G), \quad
              r'_i = \frac{[A^{-1} r]_i}{[A^{-1}]_{ii}}, \quad
              m = \frac{E_w[\rho\, s b\, \phi]}{\sqrt N E_w[\rho]}, \quad
              \rho = s^{1/2} e^{s b^2/2}, \quad s = \frac{1}{1 + g/N}

    with A = noise + q K, a = A^{-1} y, b = a.phi/sqrt(N), g = phi^T A^{-1} phi: a unit phi = sqrt(scale) sigma(h), its
    readout integrated, in the field a that the other N - 1 units leave. m_G is the same for a Gaussian unit of the same
    covariance, by a one-dimensional integral. r is the change of the fit at the training points before the other units
    react, r' that of the leave-one-out means after they have reacted as Gaussian ones do; the truth is between.

    The spread of the mean over M units is part of the score, which therefore depends on M: a mean that few units with
    large weights dominate is a sign of its own, and on sampled networks the score with it orders cases better. The
    threshold belongs to M = 4,096.

    Units are drawn wider along a, and what is linear in their answer is subtracted with its known mean, so that most of
    the Monte Carlo error cancels; weights above sqrt(M) times their mean are cut to that.

    Shapes: covariance ``*b x n x n``, result ``*b``; NaN where the linear answer diverges (far from a saddle point).
    The units' part is computed in float32. Cost: one ``eigh`` in float32, 2 M n^2.

    Args:
        activation: sigma.
        covariance: Covariance of the last layer's pre-activations h at n training points.
        scale: What makes E phi phi^T the kernel K in front of q, broadcastable to ``*b x 1 x 1``.
        kernel: K, ``*b x n x n``.
        spectrum: Of K and of the targets minus the prior mean, with the noise as its base and with eigenvectors.
        order_parameter: q of the last layer, ``*b``.
        width: N of the last layer, ``*b``, finite.
        num_units: M.
        seed: Seed of the units that are drawn.

    Raises:
        ValueError: A spectrum without eigenvectors or of several outputs.

    Reference: derived for this package, from the one-unit cavity; THEORY.md, eq. (11). The cut of the weights: Ionides
    (2008), J. Comp. Graph. Stat. 17, 295.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf, Spectrum
        >>> one, eye = torch.ones((), dtype=torch.float64), torch.eye(40, dtype=torch.float64)
        >>> y = torch.linspace(-1, 1, 40, dtype=torch.float64)
        >>> def score(C):
        ...     K = Erf().dual(C.diagonal()[:, None], C, C.diagonal())
        ...     spectrum = Spectrum.from_kernel(K, y, base=0.01 * eye, eigenvectors=True)
        ...     return unit_response(Erf(), C, one[None, None], K, spectrum, one, 10 * one)
        >>> flat, steep = eye, 4 * torch.outer(y, y) + 0.01 * eye   # forty equal directions, or nearly one
        >>> bool(score(flat) > 0.2), bool(score(steep) > 0.2)
        (False, True)
    """
    covariance, scale = covariance.double(), scale.double()
    q, width = order_parameter.double().unsqueeze(-1), width.double().unsqueeze(-1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    # A^{-1} = V diag(1 / (1 + q k)) V^T and K = V^{-T} diag(k) V^{-1}.
    k, inverse = spectrum.eigenvalues, spectrum.vectors
    spread = 1.0 + q * k
    z = spectrum.single / spread
    a, precision = _apply(inverse, z), (inverse.square() / spread.unsqueeze(-2)).sum(-1)
    trace, power = (k / spread).sum(-1, keepdim=True), (k * z.square()).sum(-1, keepdim=True)
    softness = 1.0 + (trace - power) / width

    slope = scale.squeeze(-1).sqrt() * activation.slope(variance) * a
    linear = (slope * _apply(covariance, slope)).sum(-1, keepdim=True) / (width + trace)
    wider = (1.0 / (1.0 - linear.clamp_max(0.999))).squeeze(-1)  # as the Gaussian unit's answer along a
    h, log_prior = draw_pre_activations(covariance.float(), num_units, seed, slope.float(), wider.float())
    phi = scale.float().sqrt() * activation(h)
    n = width.float()
    b = _apply(phi, a.float()) / n.sqrt()
    g = (phi @ (inverse / spread.sqrt().unsqueeze(-2)).float()).square().sum(-1)
    s = 1.0 / (1.0 + g / n)
    log_weight = 0.5 * (s.log() + s * b.square()) + log_prior
    highest = torch.logsumexp(log_weight, -1, keepdim=True) - 0.5 * math.log(num_units)  # sqrt(M) times the mean
    real, known = torch.softmax(torch.minimum(log_weight, highest), dim=-1), torch.softmax(log_prior, dim=-1)
    sampled = _apply(phi.mT, (real * s - known / softness.float()) * b * n.sqrt()).double()
    exact = _apply(kernel.double(), _apply(inverse, z / softness - _gaussian_answer(k, z, spread, width, softness)))

    change = sampled + exact
    reacted = _apply(inverse, _apply(inverse.mT, change) / spread) / precision
    score = (change.norm(dim=-1) * reacted.norm(dim=-1)).sqrt() / (a / precision).norm(dim=-1)
    return torch.where((softness > 0).squeeze(-1), score, torch.nan)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _gaussian_answer(k: Tensor, z: Tensor, spread: Tensor, width: Tensor, softness: Tensor) -> Tensor:
    """K^{-1} N m_G in the frame of K: E[v^2 z / (1 + v^2 k/(N spread))] over the readout v, by the midpoint rule."""
    furthest = 10.0 * (1.0 / softness.clamp_min(1e-3)).clamp_min(1.0).sqrt()
    grid = (torch.arange(_NODES, dtype=k.dtype, device=k.device) + 0.5) / _NODES
    squares = (furthest * grid).square().unsqueeze(-1)  # *b x nodes x 1
    damping = 1.0 + squares * (k / (width * spread)).unsqueeze(-2)
    gain = squares.squeeze(-1) * ((k * z.square() / width).unsqueeze(-2) / damping).sum(-1)
    weight = torch.softmax(0.5 * (gain - squares.squeeze(-1) - damping.log().sum(-1)), dim=-1)
    return ((weight * squares.squeeze(-1)).unsqueeze(-1) * z.unsqueeze(-2) / damping).sum(-2)
