"""The evidence of a Student's t process, for training loops."""

from __future__ import annotations

from typing import Any

from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from .._validation import check_same_kind, check_targets
from ..distributions.normal_given_scale import at_unit_scale
from ..likelihoods import StudentTProcessLikelihood
from ..numerics.autocast import outside_autocast
from .other_terms import add_other_terms


class StudentTMarginalLogLikelihood(ExactMarginalLogLikelihood):
    r"""Exact log marginal likelihood of a Student's t process, divided by the number n of data; to be maximized.

    .. math:: \log p(y) = \log\Gamma\tfrac{\nu + n}{2} - \log\Gamma\tfrac{\nu}{2} - \tfrac n2 \log((\nu - 2)\pi)
              - \tfrac12 \log\det A - \tfrac{\nu + n}{2} \log\Big(1 + \frac{b}{\nu - 2}\Big)

    A = K + noise is the covariance of the data, :math:`b = (y - m)^T A^{-1} (y - m)`, :math:`\nu > 2` the likelihood's
    ``deg_free``. As in ``ExactMarginalLogLikelihood`` the log densities of all registered priors and added loss terms
    are included. At :math:`\nu \to \infty` it is the Gaussian one; there is no cancellation on the way, in float32
    either.

    Not included: missing targets (NaN is an error).

    Shapes: prior of batch shape ``*b`` with n points, targets ``*b x n``, result ``*b``.
    Accuracy: exact to rounding (Cholesky, also above 800 points). Cost: one Cholesky factorization.

    Args:
        likelihood: A :class:`StudentTProcessLikelihood`.
        model: A :class:`StudentTProcess`, or any module with priors whose output is the prior MultivariateNormal.

    Raises:
        TypeError: Another likelihood or output; targets of another dtype.
        ValueError: Targets of another length, NaN or infinite.

    Reference: Shah, Wilson & Ghahramani (2014), arXiv:1402.4306; THEORY.md, section 2.

    Example:
        >>> import gpytorch, math, torch
        >>> likelihood = StudentTProcessLikelihood()
        >>> likelihood.noise, likelihood.deg_free = 0.5, 3.0
        >>> mll = StudentTMarginalLogLikelihood(likelihood, gpytorch.models.GP())    # no priors
        >>> prior = gpytorch.distributions.MultivariateNormal(torch.zeros(1), 0.5 * torch.eye(1))
        >>> expected = math.log(2 / math.pi) - 2 * math.log(1 + 1)    # t of variance 1, nu = 3, at y = 1
        >>> abs(mll(prior, torch.ones(1)).item() - expected) < 1e-6
        True
    """

    def __init__(self, likelihood: StudentTProcessLikelihood, model: Any) -> None:
        """Check the likelihood."""
        if not isinstance(likelihood, StudentTProcessLikelihood):
            raise TypeError(f"likelihood: expected a StudentTProcessLikelihood, got {type(likelihood).__name__}")
        super().__init__(likelihood, model)

    @outside_autocast
    def forward(self, function_dist: MultivariateNormal, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Return the log marginal likelihood plus log priors over n, from the model's output in training mode."""
        function_dist = at_unit_scale(function_dist)
        if not isinstance(function_dist, MultivariateNormal):
            raise TypeError(
                "function_dist: expected the prior, a MultivariateNormal (is the model in training mode?), got "
                f"{type(function_dist).__name__}"
            )
        check_targets(target, function_dist.event_shape[0], "target")
        check_same_kind(mean=function_dist.mean, target=target)
        result = self.likelihood(function_dist, *params, **kwargs).log_prob(target)
        return add_other_terms(result, self.model, params) / function_dist.event_shape[0]
