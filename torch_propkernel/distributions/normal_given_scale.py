"""The prior of a process with a random scale, at scale one."""

from __future__ import annotations

from typing import Any

from gpytorch.distributions import Distribution, MultivariateNormal
from linear_operator.operators import LinearOperator
from torch import Tensor


class NormalGivenScale(Distribution):
    r"""Mean and covariance of a process whose overall scale is random, at scale one.

    .. math:: f \mid r \sim N(m, r K) \quad (\text{here } m \text{ and } K)

    It is no MultivariateNormal, on purpose: whoever conditions a normal of this mean and covariance on data leaves out
    the law of r, and gets a wrong spread. So code that expects a normal prior (BoTorch's ``loo_cv``, GPyTorch's
    ``ExactMarginalLogLikelihood``) refuses it. A BoTorch model of this package returns it from ``forward``.

    Shapes: mean ``*b x n``, covariance ``*b x n x n``.

    Args:
        mean: m.
        covariance: K, a tensor or a linear operator.

    Attributes:
        normal: The law given r = 1, a MultivariateNormal.

    Reference: THEORY.md, section 2.

    Example:
        >>> import torch
        >>> prior = NormalGivenScale(torch.zeros(2), torch.eye(2))
        >>> isinstance(prior, MultivariateNormal), prior.normal.variance.tolist()
        (False, [1.0, 1.0])
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, mean: Tensor, covariance: Tensor | LinearOperator) -> None:
        """Store the normal law at scale one."""
        self.normal = MultivariateNormal(mean, covariance)
        super().__init__(self.normal.batch_shape, self.normal.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """m, ``*b x n``."""
        return self.normal.mean

    @property
    def loc(self) -> Tensor:
        """m, ``*b x n``."""
        return self.normal.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of K, ``*b x n``."""
        return self.normal.variance

    @property
    def covariance_matrix(self) -> Tensor:
        """K, ``*b x n x n``."""
        return self.normal.covariance_matrix

    @property
    def lazy_covariance_matrix(self) -> LinearOperator:
        """K as a linear operator."""
        return self.normal.lazy_covariance_matrix


def at_unit_scale(prior: Any) -> Any:
    """Return the normal law inside a :class:`NormalGivenScale`, and anything else as it is."""
    return prior.normal if isinstance(prior, NormalGivenScale) else prior
