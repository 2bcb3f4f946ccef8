"""The multivariate Student's t distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from linear_operator import to_dense, to_linear_operator
from linear_operator.operators import LinearOperator
from torch import Tensor
from torch.distributions import constraints

from .._validation import check_finite, check_floating, check_same_kind
from ..numerics.autocast import outside_autocast
from ..numerics.special import digamma_difference, log_gamma_ratio
from ..numerics.student_t import inverse_gamma_icdf_of_normal, student_t_cdf, student_t_icdf
from .checks import check_matrix, degrees_of_freedom
from .elliptical_distribution import EllipticalDistribution
from .factors import apply_root, cholesky_factor, log_determinant, sampling_root, squared_norm
from .indexing import events, split_index


class MultivariateStudentT(EllipticalDistribution):
    r"""Multivariate Student's t, a scale mixture of normals and the law of a Student's t process at some points.

    .. math:: p(x) = \frac{\Gamma((\nu + m)/2)}{\Gamma(\nu/2) (\nu \pi)^{m/2} |\Sigma|^{1/2}}
        \Big(1 + \frac{b}{\nu}\Big)^{-(\nu + m)/2}, \qquad b = (x - \mu)^T \Sigma^{-1} (x - \mu)

    for location :math:`\mu` and scale matrix :math:`\Sigma` in m dimensions. The covariance is
    :math:`\Sigma\, \nu / (\nu - 2)` and exists for :math:`\nu > 2`; give one or the other. Infinite degrees of freedom
    are the normal distribution. It is not a ``MultivariateNormal`` and never passes for one.

    Not included: sums with other distributions (a sum of independent Student's t is none). No jitter is added: a scale
    matrix that is singular to rounding can be sampled but has no density.

    Shapes: loc ``*b x m``, scale ``*b x m x m``, df ``*b``; they broadcast. Only the lower triangle of a dense scale is
    read where it is factored.
    Accuracy: rounding, for df from 0.1 to 1e15. :meth:`log_prob` costs one Cholesky factorization, kept for later
    calls, and is differentiable in all arguments; :meth:`rsample` in loc, scale and df. :meth:`cdf` and :meth:`icdf`
    are those of the marginals, come from scipy on the CPU and are not differentiable.

    Args:
        loc: Location, the mean where it exists (df > 1).
        scale: Scale matrix, a tensor or a linear operator.
        df: Degrees of freedom > 0, a number or a tensor; ``math.inf`` is the normal.
        covariance: Covariance matrix in place of ``scale``; needs df > 2.

    Attributes:
        loc: Location, ``*b x m``.
        df: Degrees of freedom, ``*b``.

    Raises:
        TypeError: Not floating-point tensors, mixed dtypes, both or none of scale and covariance.
        ValueError: Shapes that do not fit, NaN, df out of range, mixed devices, a covariance for df <= 2.
        NotPositiveDefiniteError: The scale matrix is not positive definite (where it is factored).

    Reference: Shah, Wilson and Ghahramani (2014), AISTATS; THEORY.md, section 2.

    Example:
        >>> import torch
        >>> t = MultivariateStudentT(torch.zeros(2), torch.eye(2), 5.0)
        >>> x = torch.tensor([1.0, -2.0])
        >>> given_first = t.condition(0, x[:1])
        >>> chain = t[..., :1].log_prob(x[:1]) + given_first.log_prob(x[1:])
        >>> torch.allclose(t.log_prob(x), chain), given_first.df.item()
        (True, 6.0)
    """

    arg_constraints = {"loc": constraints.real_vector, "df": constraints.positive}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | LinearOperator | None = None,
        df: float | Tensor = math.inf,
        *,
        covariance: Tensor | LinearOperator | None = None,
    ) -> None:
        """Check and store; nothing is factored."""
        if (scale is None) == (covariance is None):
            raise TypeError(f"expected exactly one of scale and covariance, got {'none' if scale is None else 'both'}")
        matrix: Any = scale if covariance is None else covariance
        name = "scale" if covariance is None else "covariance"
        self.df = degrees_of_freedom(df, check_floating("loc", loc), 0.0 if covariance is None else 2.0)
        check_matrix(name, matrix, loc)
        if covariance is not None:
            matrix = covariance * (1.0 - 2.0 / self.df)[..., None, None]
        self._scale = matrix
        self._islazy = isinstance(matrix, LinearOperator)
        batch = torch.broadcast_shapes(loc.shape[:-1], self._scale.shape[:-2], self.df.shape)
        self.loc, self.df = check_finite("loc", loc).expand(*batch, -1), self.df.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=False)

    @property
    def lazy_scale(self) -> LinearOperator:
        """Scale matrix as a linear operator, ``*b x m x m``."""
        return to_linear_operator(self._scale).expand(*self.batch_shape, *self._scale.shape[-2:])

    @property
    def scale(self) -> Tensor:
        """Scale matrix, ``*b x m x m``."""
        return self._dense_scale.expand(*self.batch_shape, *self._scale.shape[-2:])

    @property
    def mean(self) -> Tensor:
        """The location; NaN for df <= 1, where no mean exists."""
        return torch.where((self.df > 1).unsqueeze(-1), self.loc, torch.nan)

    @property
    def covariance_matrix(self) -> Tensor:
        """Df / (df - 2) times the scale matrix."""
        return self.scale * self._variance_factor[..., None, None]

    @property
    def lazy_covariance_matrix(self) -> LinearOperator:
        """The covariance matrix as a linear operator."""
        return self.lazy_scale * self._variance_factor[..., None, None]

    @property
    def variance(self) -> Tensor:
        """Variances, ``*b x m``."""
        return self._diagonal * self._variance_factor.unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the joint log density at ``value``, ``*s x *b x m``."""
        size, distance = self.loc.shape[-1], squared_norm(self._factor, self._check_value(value) - self.loc)
        normal = torch.isinf(self.df)
        df = torch.where(normal, 1.0, self.df)
        student = log_gamma_ratio(df / 2.0, size / 2.0) - 0.5 * (df + size) * torch.log1p(distance / df)
        # Gamma((df + m)/2) / Gamma(df/2) (df pi)^(-m/2) = (2 pi)^(-m/2) exp(log_gamma_ratio)
        return torch.where(normal, -0.5 * distance, student) - 0.5 * (self._log_det + size * math.log(2.0 * math.pi))

    def entropy(self) -> Tensor:
        """Return the differential entropy, ``*b``."""
        size, normal = self.loc.shape[-1], torch.isinf(self.df)
        df = torch.where(normal, 1.0, self.df)
        student = 0.5 * (df + size) * digamma_difference(df / 2.0, size / 2.0) - log_gamma_ratio(df / 2.0, size / 2.0)
        return torch.where(normal, 0.5 * size, student) + 0.5 * (self._log_det + size * math.log(2.0 * math.pi))

    @property
    def base_sample_shape(self) -> torch.Size:
        """The shape m + 1 of one base sample, a standard normal that gives the scale, then one for every dimension."""
        return torch.Size([self.loc.shape[-1] + 1])

    def rsample(self, sample_shape: Sequence[int] = torch.Size(), base_samples: Tensor | None = None) -> Tensor:
        """Draw samples ``*sample_shape x *b x m``, differentiable in loc, scale and df.

        Args:
            sample_shape: Shape of the sample.
            base_samples: Standard normals ``*s x *b x (m + 1)`` to be transformed instead of fresh ones; the first
                becomes the scale by its quantile function, without a gradient to df.
        """
        if base_samples is not None:
            expected = (*self.batch_shape, *self.base_sample_shape)
            if base_samples.shape[-len(expected) :] != expected:
                sizes = ", ".join(str(v) for v in expected)
                raise ValueError(f"base_samples: expected shape (..., {sizes}), got {tuple(base_samples.shape)}")
            check_same_kind(loc=self.loc, base_samples=base_samples)
            inverse_scale = inverse_gamma_icdf_of_normal(base_samples[..., 0], self.df).reciprocal()
            normal = base_samples[..., 1:]
        else:
            shape = torch.Size(sample_shape) + self.loc.shape
            normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            half = torch.where(torch.isinf(self.df), 1.0, self.df).expand(shape[:-1]) / 2.0
            gamma = torch._standard_gamma(half.contiguous()).clamp_min(torch.finfo(half.dtype).tiny)
            inverse_scale = torch.where(torch.isinf(self.df), 1.0, gamma / half)
        return self.loc + apply_root(self._root, normal) * inverse_scale.rsqrt().unsqueeze(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the cumulative distribution of every marginal at ``value``, ``*s x *b x m``; not differentiable."""
        standard = (self._check_value(value) - self.loc) / self._diagonal.sqrt()
        return student_t_cdf(standard, self.df.unsqueeze(-1))

    def icdf(self, value: float | Tensor) -> Tensor:
        """Return the quantiles of every marginal at levels in [0, 1] that broadcast to ``*b x m``."""
        standard = student_t_icdf(self._check_level(value), self.df.unsqueeze(-1))
        return self.loc + standard * self._diagonal.sqrt()

    def __getitem__(self, index: Any) -> MultivariateStudentT:
        """Return the marginal of some dimensions or batch elements; df is kept.

        An index has entries for the batch and then one for the event, as that of GPyTorch's ``MultivariateNormal``. An
        integer for the event keeps a dimension of size one: elements of a batch are not jointly Student's t.
        """
        rest, event = split_index(index, len(self.batch_shape))
        scale: Any = self.lazy_scale if self._islazy else self.scale
        scale = scale[(*rest, slice(None), slice(None))] if rest else scale
        event = event if isinstance(event, slice) else events(event, self.loc.shape[-1]).to(self.loc.device)
        scale = scale[..., event, event] if isinstance(event, slice) else scale[..., event, :][..., event]
        loc, df = (self.loc[(*rest, slice(None))], self.df[rest]) if rest else (self.loc, self.df)
        return MultivariateStudentT(loc[..., event], scale, df)

    def marginal(self, index: Any) -> MultivariateStudentT:
        """Return the marginal of some dimensions: an integer, a slice, a mask or a sequence of integers."""
        return self[..., index]

    @outside_autocast
    def condition(self, indices: Any, values: Tensor) -> MultivariateStudentT:
        r"""Return the law of the other dimensions given n of them, with df + n degrees of freedom.

        .. math:: \mu' = \mu_2 + \Sigma_{21} \Sigma_{11}^{-1} (x_1 - \mu_1), \quad \Sigma' = \frac{\nu + b}{\nu + n}
            (\Sigma_{22} - \Sigma_{21} \Sigma_{11}^{-1} \Sigma_{12}), \quad b = (x_1 - \mu_1)^T \Sigma_{11}^{-1} (x_1 -
            \mu_1)

        Args:
            indices: Dimensions that are given: an integer, a slice, a mask or a sequence of integers.
            values: Their values x_1, ``*s x *b x n``.
        """
        size = self.loc.shape[-1]
        known = events(indices, size).to(self.loc.device)
        free = torch.ones(size, dtype=torch.bool, device=self.loc.device).index_fill(0, known, False)
        other = free.nonzero().squeeze(-1)
        if len(known) + len(other) != size or len(other) == 0 or len(known) == 0:
            raise ValueError(
                f"indices: expected some but not all of {size} dimensions, each once, got {known.tolist()}"
            )
        check_same_kind(loc=self.loc, values=check_floating("values", values))
        if values.dim() < 1 or values.shape[-1] != len(known):
            raise ValueError(f"values: expected shape (..., {len(known)}), got {tuple(values.shape)}")
        rows = self._dense_scale[..., known]
        factor = cholesky_factor(rows[..., known, :], "scale of the given dimensions")
        deviation = values - self.loc[..., known]
        cross = torch.linalg.solve_triangular(factor, rows[..., other, :].transpose(-1, -2), upper=False)
        gain = torch.linalg.solve_triangular(factor.transpose(-1, -2), cross, upper=True).transpose(-1, -2)
        loc = self.loc[..., other] + (gain @ deviation.unsqueeze(-1)).squeeze(-1)
        scale = self._dense_scale[..., other, :][..., other] - cross.transpose(-1, -2) @ cross
        # (nu + b) / (nu + n), which is one for infinitely many degrees of freedom.
        ratio = 1.0 + (squared_norm(factor, deviation) - len(known)) / (self.df + len(known))
        return MultivariateStudentT(loc, scale * ratio[..., None, None], (self.df + len(known)).expand(ratio.shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MultivariateStudentT:
        """Return the distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return MultivariateStudentT(self.loc.expand(*shape, -1), self._scale, self.df.expand(shape))

    def to(self, *args: Any, **kwargs: Any) -> MultivariateStudentT:
        """Return the distribution with its tensors converted as by ``torch.Tensor.to``."""
        return MultivariateStudentT(*(x.to(*args, **kwargs) for x in (self.loc, self._scale, self.df)))

    @cached_property
    def _dense_scale(self) -> Tensor:
        return check_finite("scale", to_dense(self._scale))

    @cached_property
    def _factor(self) -> Tensor:
        return cholesky_factor(self._dense_scale, "scale")

    @cached_property
    def _root(self) -> Tensor:
        root = sampling_root(self._dense_scale, "scale")
        return root.expand(*self.batch_shape, *root.shape[-2:])

    @property
    def _log_det(self) -> Tensor:
        return log_determinant(self._factor).expand(self.batch_shape)

    @property
    def _diagonal(self) -> Tensor:
        diagonal = self._scale.diagonal(dim1=-1, dim2=-2)
        return diagonal.expand(self.loc.shape)

    @property
    def _variance_factor(self) -> Tensor:
        if not bool((self.df > 2).all()):
            raise ValueError(f"df: expected > 2 for a covariance to exist, got {self.df.tolist()}")
        return 1.0 / (1.0 - 2.0 / self.df)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(loc: {tuple(self.loc.shape)}, scale: {tuple(self._scale.shape)}, df: {self.df})"
