"""Gaussian noise outside of a scale mixture."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.distributions import Distribution
from gpytorch.likelihoods import GaussianLikelihood

from ..distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal


class FiniteWidthLikelihood(GaussianLikelihood):
    r"""Gaussian noise of variance T (the temperature) on the outputs of a finite-width process.

    .. math:: p(y_* | y) = \int p(r | y)\, N(y_*; \Gamma(r), \Sigma(r) + T)\, dr

    A :class:`gpytorch.likelihoods.GaussianLikelihood` that also takes the predictives of :class:`FiniteWidthProcess`:
    noise adds T to the covariance of every component of a mixture. For the moment-matched Student's t it adds T to the
    covariance and keeps the spread of the scale: the degrees of freedom become 4 + (nu - 4) (1 + T / s)^2 with s the
    mean latent variance, since Gaussian noise brings the predictive closer to a normal. The noise is constrained to be
    positive only, where GPyTorch's default is at least 1e-4.

    Args:
        noise_constraint: Constraint of ``noise``; positive by default.
        kwargs: Arguments of :class:`gpytorch.likelihoods.GaussianLikelihood`.

    Attributes:
        noise: T, ``*batch_shape x 1``.

    Reference: THEORY.md, section 1.

    Example:
        >>> from torch_propkernel.distributions import ScaleMixtureMultivariateNormal
        >>> likelihood = FiniteWidthLikelihood()
        >>> likelihood.noise = 0.5
        >>> latent = ScaleMixtureMultivariateNormal(
        ...     torch.zeros(2), torch.zeros(2, 1), variance=torch.tensor([[1.0], [3.0]])
        ... )
        >>> round(likelihood(latent).variance.item(), 5)
        2.5
    """

    def __init__(self, noise_constraint: Interval | None = None, **kwargs: Any) -> None:
        """Set the constraint of the noise."""
        super().__init__(noise_constraint=noise_constraint or Positive(), **kwargs)

    def __call__(self, input: Any, *args: Any, **kwargs: Any) -> Distribution:
        """Return the law of noisy targets for a predictive of the latent function, as for any GPyTorch likelihood."""
        if isinstance(input, ScaleMixtureMultivariateNormal | MultivariateStudentT):
            return self.marginal(input, *args, **kwargs)
        return super().__call__(input, *args, **kwargs)

    def marginal(self, function_dist: Any, *params: Any, **kwargs: Any) -> Distribution:
        """Add the noise to a normal, a scale mixture or a Student's t."""
        if isinstance(function_dist, ScaleMixtureMultivariateNormal):
            return function_dist.add_noise(self.noise)
        if isinstance(function_dist, MultivariateStudentT):
            latent = function_dist.variance.mean(-1, keepdim=True)
            widened = 4.0 + (function_dist.df.unsqueeze(-1) - 4.0) * (1.0 + self.noise / latent).square()
            covariance = function_dist.covariance_matrix
            unit = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
            return MultivariateStudentT(
                function_dist.loc, None, widened.squeeze(-1), covariance=covariance + self.noise.unsqueeze(-1) * unit
            )
        return super().marginal(function_dist, *params, **kwargs)
