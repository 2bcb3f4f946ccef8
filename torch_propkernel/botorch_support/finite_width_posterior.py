"""The posterior of a finite-width process for BoTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributions import ScaleMixtureMultivariateNormal
from ..distributions.factors import apply_root
from ..likelihoods.latent_student_t import safe_root
from .latent_scale_posterior import LatentScalePosterior


class FiniteWidthPosterior(LatentScalePosterior):
    r"""Joint posterior at q points of a finite-width process: a mixture over the nodes of p(r | y).

    .. math:: f = \Gamma(r) + L(r) z, \qquad r = F^{-1}(\Phi(z_0))

    F is the (discrete) distribution function of the nodes, :math:`L L^T = \Sigma(r)`; z and z_0 are normal base
    samples, as ``LatentScalePosterior`` says. The nodes and weights do not depend on the points, so a base sample
    picks the same node wherever it is used, and samples are differentiable in the points.

    Shapes: mean ``*b x q x 1``. Cost: one Cholesky factorization of q x q for each of some dozens of nodes.

    Args:
        law: The mixture, with covariances, of batch shape ``*b`` and event shape q.

    Reference: THEORY.md, section 1.

    Example:
        >>> law = ScaleMixtureMultivariateNormal(torch.zeros(2), torch.zeros(2, 1), torch.tensor([[[1.0]], [[9.0]]]))
        >>> low, high = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 2.0]])   # first or second node, z = 2
        >>> posterior = FiniteWidthPosterior(law)
        >>> [posterior.rsample_from_base_samples(torch.Size([1]), base).item() for base in (low, high)]
        [2.0, 6.0]
    """

    law: ScaleMixtureMultivariateNormal

    def __init__(self, law: ScaleMixtureMultivariateNormal) -> None:
        """Store the mixture."""
        if not isinstance(law, ScaleMixtureMultivariateNormal):
            raise TypeError(f"law: expected a ScaleMixtureMultivariateNormal, got {type(law).__name__}")
        super().__init__(law)
        self._roots: Tensor | None = None

    def _samples(self, scale: Tensor, points: Tensor) -> Tensor:
        if self._roots is None:
            self._roots = safe_root(self.law.component_covariances)
        weights = self.law.weights
        cumulative = weights.cumsum(-1)[..., :-1]
        # Which node: how many of the cumulative weights lie below Phi(z_0).
        node = (torch.special.ndtr(scale).unsqueeze(-1) > cumulative).sum(-1)
        lead = torch.broadcast_shapes(node.shape, points.shape[:-1])
        node, size = node.expand(lead), points.shape[-1]
        loc = self.law.loc.expand(*lead, *self.law.loc.shape[-2:])
        loc = loc.gather(-2, node[..., None, None].expand(*lead, 1, size)).squeeze(-2)
        roots = self._roots.expand(*lead, *self._roots.shape[-3:])
        roots = roots.gather(-3, node[..., None, None, None].expand(*lead, 1, size, size)).squeeze(-3)
        return loc + apply_root(roots, points)

    def density(self, value: Tensor) -> Tensor:
        """Return the density of each point on its own: ``*b x q x 1``, with a leading dimension for several values."""
        if value.numel() > 1:
            return torch.stack([self.density(v) for v in value], dim=0)
        at = value.to(self.mean).expand(self.law.mean.shape)
        return self.law.marginal_log_prob(at).exp().unsqueeze(-1)

    def affine(self, offset: Tensor, factor: Tensor) -> FiniteWidthPosterior:
        """Return the posterior of ``offset + factor * f``, both broadcastable to ``*b x q``."""
        return FiniteWidthPosterior(self.law.affine(offset, factor))
