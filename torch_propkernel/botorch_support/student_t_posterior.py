"""A Student's t posterior for BoTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributions.factors import apply_root
from ..distributions.multivariate_student_t import MultivariateStudentT
from ..likelihoods.latent_student_t import safe_root
from ..numerics.student_t import inverse_gamma_icdf_of_normal
from .latent_scale_posterior import LatentScalePosterior


class StudentTPosterior(LatentScalePosterior):
    r"""Joint Student's t posterior at q points of one output.

    .. math:: f = m + \sqrt{s}\, L z, \qquad s = F^{-1}(\Phi(z_0))

    m, :math:`L L^T` and :math:`\nu` are location, scale matrix and degrees of freedom, F is the distribution function
    of InverseGamma(nu/2, nu/2); z and z_0 are normal base samples, as ``LatentScalePosterior`` says.

    Not differentiable: samples with respect to the degrees of freedom. Shapes: as ``GPyTorchPosterior`` with one
    output, mean ``*b x q x 1``; base samples ``*b x (q + 1)``.

    Args:
        student_t: A MultivariateStudentT of batch shape ``*b`` and event shape q.

    Attributes:
        student_t: The distribution, also ``law``.
        df: Degrees of freedom, ``*b``.

    Reference: THEORY.md, section 2.

    Example:
        >>> student_t = MultivariateStudentT(torch.zeros(2), torch.eye(2), torch.tensor(5.0))
        >>> posterior = StudentTPosterior(student_t)
        >>> zero = torch.tensor([[0.0, 0.0, 0.0]])    # the scale's median and the location
        >>> posterior.rsample_from_base_samples(torch.Size([1]), zero).squeeze().tolist()
        [0.0, 0.0]
    """

    def __init__(self, student_t: MultivariateStudentT) -> None:
        """Store the distribution."""
        if not isinstance(student_t, MultivariateStudentT):
            raise TypeError(f"student_t: expected a MultivariateStudentT, got {type(student_t).__name__}")
        super().__init__(student_t)
        self._root: Tensor | None = None

    @property
    def student_t(self) -> MultivariateStudentT:
        """The distribution."""
        return self.law

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ``*b``."""
        return self.student_t.df

    def _samples(self, scale: Tensor, points: Tensor) -> Tensor:
        if self._root is None:
            self._root = safe_root(self.student_t.scale)
        width = inverse_gamma_icdf_of_normal(scale, self.df).sqrt().unsqueeze(-1)
        return self.student_t.loc + width * apply_root(self._root, points)

    def density(self, value: Tensor) -> Tensor:
        """Return the density of each point on its own: ``*b x q x 1``, with a leading dimension for several values."""
        if value.numel() > 1:
            return torch.stack([self.density(v) for v in value], dim=0)
        df = self.df[..., None, None]
        scale = (self.variance * ((df - 2.0) / df)).sqrt()
        return torch.distributions.StudentT(df, self.mean, scale).log_prob(value.to(self.mean)).exp()

    def affine(self, offset: Tensor, factor: Tensor) -> StudentTPosterior:
        """Return the posterior of ``offset + factor * f``, both broadcastable to ``*b x q``; the df stay."""
        mean = offset + factor * self.student_t.mean
        factor = factor.expand(mean.shape)
        covariance = factor.unsqueeze(-1) * self.student_t.covariance_matrix * factor.unsqueeze(-2)
        return StudentTPosterior(MultivariateStudentT(mean, None, self.df, covariance=covariance))
