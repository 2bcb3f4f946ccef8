"""A finite mixture of multivariate normals over the nodes of a random scale."""

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
from ..mixing import MixingLaw
from ..numerics.autocast import outside_autocast
from .checks import check_mixture_shapes
from .elliptical_distribution import EllipticalDistribution
from .factors import apply_root, cholesky_factor, log_determinant, sampling_root, squared_norm
from .mixture_marginals import MixtureMarginals
from .scale_nodes import scale_nodes


class ScaleMixtureMultivariateNormal(EllipticalDistribution):
    r"""Mixture of n multivariate normals, one for each node of the scale that was integrated out.

    .. math:: p(x) = \sum_{j=1}^n w_j\, N(x; \mu_j, s_j C_j), \qquad \sum_j w_j = 1

    with locations :math:`\mu_j`, covariances :math:`C_j` and optional factors :math:`s_j` of them: covariances that are
    multiples of one matrix share it, and one factorization. With ``variance`` in place of ``covariance`` only marginals
    are known. It is not a ``MultivariateNormal`` and never passes for one.

    Not included: conditioning, which changes the weights (a model's posterior does that).

    Shapes: log_weights ``*b x n``, loc ``*b x n x m`` (``*b x 1 x m`` if shared), covariance ``*b x n x m x m`` (or
    ``*b x 1 x m x m``), variance ``*b x n x m``, scales ``*b x n``; they broadcast.
    Accuracy: rounding; quantiles to 1e-10 standard deviations in float64. Cost: :meth:`log_prob` one Cholesky
    factorization for every covariance; marginals work through nodes in blocks, so that a temporary holds 4 million
    numbers. All are differentiable (quantiles once); :meth:`rsample` is differentiable in loc, covariance and scales,
    not in the weights, which decide between nodes.

    Args:
        log_weights: Logarithms of the weights, up to a constant.
        loc: Locations.
        covariance: Covariance matrices, a tensor or a linear operator.
        variance: Variances >= 0 of the marginals, in place of ``covariance``.
        scales: Factors of the covariances (or variances), 1 if None.

    Attributes:
        log_weights: Normalized, ``*b x n``.
        loc: Locations, ``*b x n x m``.
        quadrature_error: Bound of the relative error of the density at typical points, ``*b``, if made by
            :meth:`from_law`; else None.

    Raises:
        TypeError: Not floating-point tensors, mixed dtypes, both or none of covariance and variance.
        ValueError: Shapes that do not fit, NaN, negative variances, mixed devices; a joint quantity of a mixture that
            knows its variances only.
        NotPositiveDefiniteError: A covariance is not positive definite (where it is factored).

    Reference: THEORY.md, section 1 ("Beyond the saddle") and eq. (1).

    Example:
        >>> import torch
        >>> from torch_propkernel.distributions import MultivariateStudentT
        >>> from torch_propkernel.mixing import InverseGammaMixing
        >>> loc, covariance = torch.zeros(2).double(), torch.eye(2).double()
        >>> law = InverseGammaMixing(torch.tensor(6.0).double())
        >>> mixture = ScaleMixtureMultivariateNormal.from_law(law, loc, covariance)
        >>> student_t = MultivariateStudentT(loc, covariance=covariance, df=6.0)
        >>> x = torch.tensor([1.0, -2.0]).double()
        >>> bool((mixture.log_prob(x) - student_t.log_prob(x)).abs() < 1e-10)
        True
    """

    arg_constraints = {"log_weights": constraints.real_vector, "loc": constraints.real}

    def __init__(
        self,
        log_weights: Tensor,
        loc: Tensor,
        covariance: Tensor | LinearOperator | None = None,
        *,
        variance: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> None:
        """Check and store; nothing is factored."""
        if (covariance is None) == (variance is None):
            got = "none" if covariance is None else "both"
            raise TypeError(f"expected exactly one of covariance and variance, got {got}")
        for key, value in (("log_weights", log_weights), ("loc", loc)):
            check_floating(key, value)
        scales = torch.ones_like(log_weights[..., :1]) if scales is None else check_floating("scales", scales)
        given = {"log_weights": log_weights, "loc": loc, "scales": scales}
        spread: Any = covariance if variance is None else check_floating("variance", variance)
        check_same_kind(**given, **{"variance" if covariance is None else "covariance": spread})
        self._batch, self._nodes = check_mixture_shapes(log_weights, loc, scales, covariance, variance)
        if bool(torch.isnan(log_weights).any() | (log_weights == torch.inf).any()):
            raise ValueError(f"log_weights: expected numbers below infinity, got {log_weights.tolist()}")
        for name, tensor in (("variance", variance), ("scales", scales)):
            if tensor is not None and not bool(((tensor >= 0) & torch.isfinite(tensor)).all()):
                raise ValueError(
                    f"{name}: expected finite numbers >= 0, got a smallest one of {float(tensor.min()):.3g}"
                )
        self.log_weights = log_weights.expand(*self._batch, self._nodes).log_softmax(-1)
        self._loc, self._covariance = check_finite("loc", loc), covariance
        self._variance, self._scales = variance, scales
        self.loc = loc.expand(*self._batch, self._nodes, -1)
        self.quadrature_error: Tensor | None = None
        super().__init__(torch.Size(self._batch), loc.shape[-1:], validate_args=False)

    @classmethod
    def from_law(
        cls,
        law: MixingLaw,
        loc: Tensor,
        covariance: Tensor | LinearOperator | None = None,
        num_nodes: int | None = None,
        *,
        variance: Tensor | None = None,
    ) -> ScaleMixtureMultivariateNormal:
        r"""Return the law of :math:`\mu + \sqrt{r}\, N(0, C)` for a law of r, by the trapezoidal rule in log r.

        Args:
            law: Law of r, with a batch shape that broadcasts.
            loc: Location, ``*b x m``.
            covariance: Covariance C at r = 1, ``*b x m x m``; it is shared by the nodes.
            num_nodes: Number of nodes; by default doubled until ``quadrature_error`` is below 1e-10 (it is never
                above 8193). A point mass gives one node.
            variance: Variances at r = 1 in place of the covariance, ``*b x m``.
        """
        size = 1 if covariance is None else check_floating("loc", loc).shape[-1]
        u, log_weights, error = scale_nodes(law, size, num_nodes)
        spread = {"covariance": covariance, "variance": variance}
        mixture = cls(
            log_weights.to(loc),
            loc.unsqueeze(-2),
            **{k: None if v is None else v.unsqueeze(-3 if k == "covariance" else -2) for k, v in spread.items()},
            scales=u.exp().to(loc),
        )
        mixture.quadrature_error = error.expand(mixture.batch_shape)
        return mixture

    @property
    def num_nodes(self) -> int:
        """Number n of nodes."""
        return self._nodes

    @property
    def weights(self) -> Tensor:
        """Weights of the nodes, ``*b x n``."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """Mean, ``*b x m``."""
        return (self.weights.unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Mean of the variances plus variance of the locations, ``*b x m``."""
        deviation = self.loc - self.mean.unsqueeze(-2)
        return (self.weights.unsqueeze(-1) * (self._variances + deviation.square())).sum(-2)

    @property
    @outside_autocast
    def covariance_matrix(self) -> Tensor:
        """Mean of the covariances plus covariance of the locations, ``*b x m x m``."""
        deviation = self.loc - self.mean.unsqueeze(-2)
        between = (self.weights.unsqueeze(-1) * deviation).transpose(-1, -2) @ deviation
        weights = self.weights * self._scales
        dense = self._dense_covariance
        if dense.shape[-3] == 1:
            return between + weights.sum(-1)[..., None, None] * dense.squeeze(-3)
        return between + torch.einsum("...n,...nij->...ij", weights, dense)

    @property
    def lazy_covariance_matrix(self) -> LinearOperator:
        """The covariance matrix as a linear operator."""
        return to_linear_operator(self.covariance_matrix)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the joint log density at ``value``, ``*s x *b x m``."""
        value = self._check_value(value)
        size = value.shape[-1]
        distance = squared_norm(self._factor, value.unsqueeze(-2) - self._loc)
        log_det = log_determinant(self._factor) + size * self._scales.log()
        normal = -0.5 * (distance / self._scales + log_det + size * math.log(2.0 * math.pi))
        return torch.logsumexp(self.log_weights + normal, dim=-1)

    def marginal_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of every coordinate on its own, ``*s x *b x m``."""
        return self._marginals.log_density(self._check_value(value))

    def cdf(self, value: Tensor) -> Tensor:
        """Return the cumulative distribution of every marginal at ``value``, ``*s x *b x m``."""
        return self._marginals.cdf(self._check_value(value))

    def icdf(self, value: float | Tensor) -> Tensor:
        """Return the quantiles of every marginal at levels in [0, 1] that broadcast to ``*b x m``."""
        level = self._check_level(value)
        inner = (level > 0) & (level < 1)
        x = self._marginals.icdf(torch.where(inner, level, 0.5), 1e-14)
        return torch.where(inner, x, torch.where(level > 0, torch.inf, -torch.inf))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draw samples ``*sample_shape x *b x m``: a node by its weight, then a normal."""
        shape = torch.Size(sample_shape)
        count, batch, size = shape.numel(), self.batch_shape, self.event_shape[0]
        weights = self.weights.detach().reshape(-1, self._nodes)
        nodes = torch.multinomial(weights, count, replacement=True).T.reshape(count, *batch, 1)
        normal = torch.randn(count, *batch, size, dtype=self._loc.dtype, device=self._loc.device)
        scales = self._scales.expand(*batch, self._nodes).expand(count, *batch, -1).gather(-1, nodes)
        picked = nodes.unsqueeze(-1).expand(*nodes.shape, size)
        loc = self.loc.expand(count, *self.loc.shape).gather(-2, picked).squeeze(-2)
        root = self._root
        if root.shape[-3] == 1:
            deviation = apply_root(root.squeeze(-3), normal)
        else:
            # One node at a time: no copy of a root for every sample.
            deviation = torch.zeros_like(normal)
            for j in nodes.unique().tolist():
                deviation = torch.where(nodes == j, apply_root(root[..., j, :, :], normal), deviation)
        return (loc + scales.sqrt() * deviation).reshape(*shape, *batch, size)

    def add_noise(self, noise: Tensor) -> ScaleMixtureMultivariateNormal:
        """Return the law with independent normal noise of the given variance, ``*b x m`` (or broadcasting), added."""
        noise = noise.unsqueeze(-2)
        if self._variance is not None:
            return ScaleMixtureMultivariateNormal(self.log_weights, self._loc, variance=self._variances + noise)
        dense = self.component_covariances
        diagonal = torch.diag_embed(noise.expand(*noise.shape[:-1], self.event_shape[0]))
        return ScaleMixtureMultivariateNormal(self.log_weights, self._loc, dense + diagonal)

    @property
    def component_covariances(self) -> Tensor:
        """Covariance of every node, ``*b x n x m x m``."""
        return self._dense_covariance * self._scales[..., None, None]

    def affine(self, offset: Tensor, factor: Tensor) -> ScaleMixtureMultivariateNormal:
        """Return the law of ``offset + factor * f``, both ``*b x m`` (or broadcasting)."""
        offset, factor = (v.expand(torch.broadcast_shapes(v.shape, self.event_shape)) for v in (offset, factor))
        loc = offset.unsqueeze(-2) + factor.unsqueeze(-2) * self._loc
        if self._variance is not None:
            variance = factor.square().unsqueeze(-2) * self._variances
            return ScaleMixtureMultivariateNormal(self.log_weights, loc, variance=variance)
        outer = (factor.unsqueeze(-1) * factor.unsqueeze(-2)).unsqueeze(-3)
        return ScaleMixtureMultivariateNormal(self.log_weights, loc, outer * self.component_covariances)

    def to(self, dtype: torch.dtype) -> ScaleMixtureMultivariateNormal:
        """Return the same law in another dtype."""
        spreads = [None if each is None else each.to(dtype) for each in (self._covariance, self._variance)]
        covariance, variance = spreads
        weights, loc, scales = (each.to(dtype) for each in (self.log_weights, self._loc, self._scales))
        return ScaleMixtureMultivariateNormal(weights, loc, covariance, variance=variance, scales=scales)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ScaleMixtureMultivariateNormal:
        """Return the distribution with a larger batch shape."""
        weights = self.log_weights.expand(*batch_shape, self._nodes)
        return ScaleMixtureMultivariateNormal(
            weights, self._loc, self._covariance, variance=self._variance, scales=self._scales
        )

    @cached_property
    def _dense_covariance(self) -> Tensor:
        if self._covariance is None:
            raise ValueError("expected covariances for a joint quantity, got variances of the marginals only")
        return check_finite("covariance", to_dense(self._covariance))

    @cached_property
    def _factor(self) -> Tensor:
        return cholesky_factor(self._dense_covariance, "covariance")

    @cached_property
    def _root(self) -> Tensor:
        root = sampling_root(self._dense_covariance, "covariance")
        return root.expand(*self._batch, *root.shape[-3:])

    @property
    def _variances(self) -> Tensor:
        unit: Any = self._variance if self._covariance is None else self._covariance.diagonal(dim1=-1, dim2=-2)
        return (unit * self._scales.unsqueeze(-1)).expand(*self._batch, self._nodes, -1)

    @property
    def _marginals(self) -> MixtureMarginals:
        stddevs = self._variances.clamp_min(torch.finfo(self._loc.dtype).tiny).sqrt()
        return MixtureMarginals(self.log_weights, self.loc, stddevs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(nodes: {self._nodes}, loc: {tuple(self.loc.shape)})"
