"""The response of one real hidden unit to the field of the others, against that of the theory's Gaussian unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..actions.first_order import draw_pre_activations
from ..activations import Activation

_NODES = 200


@torch.no_grad()
def unit_response(
    activation: Activation,
    covariance: Tensor,
    scale: Tensor,
    order_parameter: Tensor,
    width: Tensor,
    noise: Tensor,
    targets: Tensor,
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

    Units are drawn wider along a, and what is linear in their answer is subtracted with its known mean, so that most of
    the Monte Carlo error cancels; weights above sqrt(M) times their mean are cut to that.

    Shapes: covariance ``*b x n x n``, result ``*b``; NaN where A is not positive definite or the linear answer diverges
    (far from a saddle point). The units' part is computed in float32; the Monte Carlo error of the score is 10 to 20 %
    (more where few units dominate). Cost: two ``eigh``, a few n^3, 2 M n^2.

    Args:
        activation: sigma.
        covariance: Covariance of the last layer's pre-activations h at n training points.
        scale: What makes phi phi^T the kernel K in front of q, broadcastable to ``*b x 1 x 1``.
        order_parameter: q of the last layer, ``*b``.
        width: N of the last layer, ``*b``, finite.
        noise: Covariance of the noise, ``*b x n x n``.
        targets: y minus the prior mean, ``*b x n``.
        num_units: M.
        seed: Seed of the units that are drawn.

    Reference: derived for this package, from the one-unit cavity; THEORY.md, eq. (11). The cut of the weights: Ionides
    (2008), J. Comp. Graph. Stat. 17, 295.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf
        >>> one, eye = torch.ones((), dtype=torch.float64), torch.eye(40, dtype=torch.float64)
        >>> y = torch.linspace(-1, 1, 40, dtype=torch.float64)
        >>> flat, steep = eye, 4 * torch.outer(y, y) + 0.01 * eye   # forty equal directions, or nearly one
        >>> scores = [unit_response(Erf(), C, one[None, None], one, 10 * one, 0.01 * eye, y) for C in (flat, steep)]
        >>> [bool(score > 0.2) for score in scores]
        [False, True]
    """
    covariance, noise, targets = covariance.double(), noise.double(), targets.double()
    scale, q, width = scale.double(), order_parameter.double().unsqueeze(-1), width.double().unsqueeze(-1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    kernel = scale * activation.dual(variance.unsqueeze(-1), covariance, variance.unsqueeze(-2))
    # K = F diag(k) F^T and A = F diag(1 + q k) F^T; inverse^T is F^{-1}.
    root, info = torch.linalg.cholesky_ex(noise)
    whitened = torch.linalg.solve_triangular(root, kernel, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.transpose(-1, -2), upper=False)
    k, vectors = torch.linalg.eigh(whitened)
    k, frame = k.clamp_min(0.0), root @ vectors
    inverse = torch.linalg.solve_triangular(root.transpose(-1, -2), vectors, upper=True)
    spread = 1.0 + q * k
    z = _apply(inverse.transpose(-1, -2), targets) / spread
    a, precision = _apply(inverse, z), (inverse.square() / spread.unsqueeze(-2)).sum(-1)
    trace, power = (k / spread).sum(-1, keepdim=True), (k * z.square()).sum(-1, keepdim=True)
    softness = 1.0 + (trace - power) / width

    slope = scale.squeeze(-1).sqrt() * activation.slope(variance) * a
    linear = (slope * _apply(covariance, slope)).sum(-1, keepdim=True) / (width + trace)
    wider = (1.0 / (1.0 - linear.clamp_max(0.999))).squeeze(-1)  # as the Gaussian unit's answer along a
    h, log_prior = draw_pre_activations(covariance.float(), num_units, seed, slope.float(), wider.float())
    phi = scale.float().sqrt() * activation(h)
    g = ((phi @ inverse.float()).square() / spread.float().unsqueeze(-2)).sum(-1)
    n = width.float()
    b = _apply(phi, a.float()) / n.sqrt()
    s = 1.0 / (1.0 + g / n)
    log_weight = 0.5 * (s.log() + s * b.square()) + log_prior
    limit = torch.logsumexp(log_weight, -1, keepdim=True) - 0.5 * math.log(num_units)  # sqrt(M) times the mean
    real = torch.softmax(torch.minimum(log_weight, limit), dim=-1) * s
    known = torch.softmax(log_prior, dim=-1) / softness.float()
    sampled = _apply(phi.transpose(-1, -2), (real - known) * b * n.sqrt()).double()
    exact = _apply(frame, k * z / softness - _gaussian_answer(k, z, spread, width, softness))
    change = sampled + exact
    reacted = _apply(inverse, _apply(inverse.transpose(-1, -2), change) / spread) / precision
    left_out = (a / precision).norm(dim=-1)
    score = (change.norm(dim=-1) * reacted.norm(dim=-1)).sqrt() / left_out
    return torch.where((info == 0) & (softness > 0).squeeze(-1), score, torch.nan)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _gaussian_answer(k: Tensor, z: Tensor, spread: Tensor, width: Tensor, softness: Tensor) -> Tensor:
    """N m_G in the frame of K: E[v^2 k z/(1 + v^2 k/(N spread))] over the readout v, by the midpoint rule."""
    furthest = 10.0 * (1.0 / softness.clamp_min(1e-3)).clamp_min(1.0).sqrt()
    grid = (torch.arange(_NODES, dtype=k.dtype, device=k.device) + 0.5) / _NODES
    squares = (furthest * grid).square().unsqueeze(-1)  # *b x nodes x 1
    damping = 1.0 + squares * (k / (width * spread)).unsqueeze(-2)
    gain = squares.squeeze(-1) * ((k * z.square() / width).unsqueeze(-2) / damping).sum(-1)
    weight = torch.softmax(0.5 * (gain - squares.squeeze(-1) - damping.log().sum(-1)), dim=-1)
    return ((weight * squares.squeeze(-1)).unsqueeze(-1) * (k * z).unsqueeze(-2) / damping).sum(-2)
