"""Noise and degrees of freedom of a Student's t process."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import GammaPrior, Prior
from torch import Tensor

from ..distributions.multivariate_student_t import MultivariateStudentT
from ..distributions.normal_given_scale import at_unit_scale
from ..numerics.safe_math import clamp_inside
from .latent_student_t import LatentStudentT

_START = 12.0


class StudentTProcessLikelihood(GaussianLikelihood):
    r"""Noise inside the scale matrix of a Student's t process, and the process's degrees of freedom.

    .. math:: y \mid r \sim N(m, r\,(K + \sigma^2 I)), \qquad r \sim \mathrm{InverseGamma}(\nu/2, (\nu - 2)/2)

    K is the prior covariance of the latent function, :math:`\sigma^2` the noise, :math:`\nu > 2` the degrees of
    freedom ``deg_free``. E r = 1, so K + noise is the covariance of the observations at every :math:`\nu`. One r is
    shared by the function and all its noise: signal and noise are uncorrelated, not independent, and the noise is no
    iid Student's t (that is :class:`gpytorch.likelihoods.StudentTLikelihood`).

    Called with the prior (a MultivariateNormal) or with the output of a :class:`StudentTProcess`, it returns the
    :class:`MultivariateStudentT` of new noisy observations. After n data the noise enters times
    E[r | y] = (nu + b - 2) / (nu + n - 2), like the latent covariance.

    A single data set has a single r: it says little about :math:`\nu`, and an overall output scale says the same as r.
    There the priors decide. Many data sets (a batch of targets with shared hyperparameters) determine :math:`\nu`.

    Not supported: heteroskedastic noise, noise known per training point, several tasks, samples of the latent function
    as input (given f, the noise depends on all of f), variational inference.

    Shapes: ``noise`` and ``deg_free`` are ``*batch_shape x 1``.

    Args:
        noise_prior: Prior of the noise variance.
        noise_constraint: Constraint of the noise; above 1e-4 by default.
        deg_free_prior: Prior of ``deg_free``; by default Gamma(2, rate 0.1) (mean 20, most of it between 4 and 50),
            which keeps it finite where data are indifferent. Give ``GammaPrior(1, 1e-6)`` for a nearly flat one.
        deg_free_constraint: Constraint of ``deg_free``, above 2 on a log scale by default.
        batch_shape: Batch shape of both parameters.

    Attributes:
        noise: Noise variance.
        deg_free: Degrees of freedom, 12 to begin with.

    Raises:
        ValueError: A constraint that allows ``deg_free`` of 2 or less; a ``deg_free`` that is not finite or not above
            2.

    Reference: Shah, Wilson & Ghahramani (2014), arXiv:1402.4306; Tracey & Wolpert (2018), arXiv:1801.06147; prior:
    Juarez & Steel (2010); THEORY.md, section 2.

    Example:
        >>> import gpytorch, torch
        >>> likelihood = StudentTProcessLikelihood()
        >>> likelihood.noise, likelihood.deg_free = 0.5, 5.0
        >>> prior = gpytorch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> torch.allclose(likelihood(prior).covariance_matrix, 1.5 * torch.eye(2))
        True
    """

    def __init__(
        self,
        noise_prior: Prior | None = None,
        noise_constraint: Interval | None = None,
        deg_free_prior: Prior | None = None,
        deg_free_constraint: Interval | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
    ) -> None:
        """Register both parameters with their constraints and priors."""
        super().__init__(noise_prior=noise_prior, noise_constraint=noise_constraint, batch_shape=batch_shape)
        if deg_free_constraint is None:
            deg_free_constraint = GreaterThan(2.0, transform=torch.exp, inv_transform=torch.log)
        if bool((deg_free_constraint.lower_bound < 2.0).any()):
            raise ValueError(
                f"deg_free_constraint: expected a lower bound >= 2 (K is a covariance), got {deg_free_constraint}"
            )
        self.register_parameter("raw_deg_free", torch.nn.Parameter(torch.zeros(*batch_shape, 1)))
        self.register_constraint("raw_deg_free", deg_free_constraint)
        if deg_free_constraint.initial_value is None and deg_free_constraint.check(torch.tensor(_START)):
            self.deg_free = _START
        prior = GammaPrior(2.0, 0.1) if deg_free_prior is None else deg_free_prior
        self.register_prior("deg_free_prior", prior, self._get_deg_free, self._set_deg_free)

    @property
    def deg_free(self) -> Tensor:
        """Degrees of freedom nu > 2 of the process, ``*batch_shape x 1``."""
        return self.raw_deg_free_constraint.transform(self.raw_deg_free)

    @deg_free.setter
    def deg_free(self, value: Any) -> None:
        value = torch.as_tensor(value, dtype=self.raw_deg_free.dtype, device=self.raw_deg_free.device)
        if not bool((torch.isfinite(value) & (value > 2.0)).all()):
            raise ValueError(f"deg_free: expected finite numbers > 2, got {value.tolist()}")
        if not self.raw_deg_free_constraint.check(value):
            raise ValueError(f"deg_free: expected numbers within {self.raw_deg_free_constraint}, got {value.tolist()}")
        self._set_deg_free(self, value)

    # Closures of the prior: bound methods, so that models pickle.
    def _get_deg_free(self, module: StudentTProcessLikelihood) -> Tensor:
        return module.deg_free

    def _set_deg_free(self, module: StudentTProcessLikelihood, value: Tensor) -> None:
        constraint = module.raw_deg_free_constraint  # the prior reaches below its bound: draws are moved inside
        value = clamp_inside(value, constraint.lower_bound, constraint.upper_bound)
        module.initialize(raw_deg_free=constraint.inverse_transform(value))

    def __call__(self, input: Any, *args: Any, **kwargs: Any) -> MultivariateStudentT:
        """Return the distribution of noisy observations; see :meth:`marginal`."""
        input = at_unit_scale(input)
        if isinstance(input, MultivariateNormal | MultivariateStudentT):
            return self.marginal(input, *args, **kwargs)
        return self.forward(input)

    def marginal(self, function_dist: Any, *params: Any, **kwargs: Any) -> MultivariateStudentT:
        """Return the Student's t of noisy observations, from the prior or from the latent posterior.

        ``noise=`` replaces the noise variance, ``*b x n`` (in units of the prior: it is multiplied by r too).
        """
        is_normal = isinstance(function_dist, MultivariateNormal)
        if isinstance(function_dist, MultitaskMultivariateNormal) or not (
            is_normal or isinstance(function_dist, LatentStudentT)
        ):
            raise TypeError(
                "function_dist: expected a MultivariateNormal (the prior of one output) or the output of a "
                f"StudentTProcess (which knows how the data changed the scale), got {type(function_dist).__name__}"
            )
        covariance = self.noisy_covariance(function_dist, *params, **kwargs)
        df = self.deg_free.squeeze(-1) if is_normal else function_dist.df
        return MultivariateStudentT(function_dist.mean, None, df, covariance=covariance)

    def noisy_covariance(self, function_dist: Any, *params: Any, **kwargs: Any) -> Tensor:
        """Return the covariance of noisy observations, dense; K + noise a priori."""
        noise = self._shaped_noise_covar(function_dist.mean.shape, *params, **kwargs).diagonal(dim1=-1, dim2=-2)
        if isinstance(function_dist, LatentStudentT):
            noise = noise * function_dist.mean_scale.unsqueeze(-1)
        return function_dist.lazy_covariance_matrix.to_dense() + torch.diag_embed(noise)

    def log_marginal(self, observations: Tensor, function_dist: Any, *params: Any, **kwargs: Any) -> Tensor:
        """Return the log density of each observation on its own, ``*b x n``."""
        marginal = self.marginal(function_dist, *params, **kwargs)
        df = marginal.df.unsqueeze(-1)
        scale = (marginal.variance * (df - 2.0) / df).sqrt()
        return torch.distributions.StudentT(df, marginal.mean, scale).log_prob(observations)

    def forward(self, function_samples: Any, *params: Any, **kwargs: Any) -> Any:
        """Refuse: given samples of f, observations are neither normal nor independent."""
        raise NotImplementedError(
            f"expected the distribution of the latent function, got {type(function_samples).__name__}: given samples "
            "of f, the noise of a Student's t process depends on all of f"
        )

    def expected_log_prob(self, target: Tensor, input: Any, *params: Any, **kwargs: Any) -> Tensor:
        """Refuse: the noise of a Student's t process does not factorize over the data."""
        raise NotImplementedError("variational inference is not supported by a Student's t process likelihood")
