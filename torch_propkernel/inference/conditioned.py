"""A problem conditioned on its data at weighted nodes: one node for a saddle point, many for a mixture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from .._validation import check_targets
from ..distributions import ScaleMixtureMultivariateNormal
from ..numerics.autocast import outside_autocast
from ..spectra import Spectrum
from .cholesky import safe_cholesky
from .error_estimate import ErrorEstimate

if TYPE_CHECKING:
    from .problem import Problem

_LOG_TWO_PI = math.log(2.0 * math.pi)


class Blocks(NamedTuple):
    """Prior at test points: mean ``*b x m``, covariance with the training points ``*b x P x m``, and own (co)variance.

    ``prior`` is the variance ``*b x m``, or the covariance ``*b x m x m`` of a joint prediction.
    """

    mean: Tensor
    cross: Tensor
    prior: Tensor


class Node(Protocol):
    """One Gaussian process to condition: it may have a kernel and a mean function of its own.

    :class:`KernelNode` is the model's own process; theories whose kernel is another one bring a node for it.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> problem = Problem.frozen(NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel))
        >>> from torch_propkernel.inference import KernelNode
        >>> KernelNode(problem, None).covariance().shape
        torch.Size([3, 3])
    """

    def residuals(self) -> Tensor:
        """Return targets minus the mean function at the training points, ``*b x P``."""

    def covariance(self) -> Tensor:
        """Return the covariance of the training points without noise, ``*b x P x P``; it may be overwritten."""

    def blocks(self, x: Tensor, joint: bool) -> Blocks:
        """Return the prior at test points."""


class Conditioned(ABC):
    r"""The posterior of a problem: a mixture of n Gaussian processes, each conditioned on the training data.

    .. math:: p(f_* | y) = \sum_n w_n N(f_*; \Gamma_n, \Sigma_n), \qquad
              \Gamma = m_* + k_*^T A^{-1} (y - m), \quad \Sigma = k_{**} - k_*^T A^{-1} k_*

    A subclass says how the nodes are factorized (:class:`DenseConditioned`, :class:`TridiagonalConditioned`,
    :class:`SpectralConditioned`), by two methods: :meth:`moments` at test points, and :meth:`left_out_terms` at the
    training points. Everything that is asked of a posterior follows here, once: mean, variance, covariance,
    distribution, errors, leave-one-out, training error, accuracy. :meth:`moments`, :meth:`predict` and
    :meth:`distribution` are in the model's units, errors in the user's.

    Shapes: x is ``*b x m x d``, prepared by :meth:`Problem.points`; nodes stand behind the batch, ``*b x n``.

    Args:
        problem: What is conditioned.
        log_weights: Normalized log w, ``*b x n``; one node if None.

    Reference: THEORY.md, eq. (4) and section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> problem = Problem.frozen(NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel))
        >>> posterior = problem.conditioned(problem.at_scale(2.0))   # q = 2
        >>> isinstance(posterior, Conditioned), posterior.leave_one_out().mean.abs().max().item() < 1e-6
        (True, True)
    """

    def __init__(self, problem: Problem, log_weights: Tensor | None = None) -> None:
        """Store the problem and the weights of its nodes."""
        self.problem = problem
        self.log_weights = log_weights

    @abstractmethod
    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``*b x n x m`` and variances ``*b x n x m`` (joint: covariances ``*b x n x m x m``) of nodes."""

    @abstractmethod
    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) and the diagonal of A^{-1} for each node, ``*b x n x P``."""

    _smooth: Callable[[Tensor], Tensor] | None = None
    """What makes nodes' log weights ``*b x n x P``, for every point that is left out, trustworthy; None where exact."""

    @property
    def _how(self) -> str | None:
        """How errors are computed, where that is not the ordinary way."""
        return None

    def log_likelihoods(self) -> Tensor:
        """Return log N(y; m, A) of each node, ``*b x n``, of the model's own targets."""
        raise ValueError(f"{type(self).__name__}: expected Gaussian nodes, which have a likelihood")

    # Posterior at test points -------------------------------------------------------------------------------------

    @outside_autocast
    def predict(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean ``*b x m`` and latent variance ``*b x m`` (joint: covariance ``*b x m x m``) of the mixture."""
        means, spreads = self.moments(x, joint)
        return self._mixed(means, spreads, joint)

    def _mixed(self, means: Tensor, spreads: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        if self.log_weights is None:
            return means.squeeze(-2), spreads.squeeze(-3 if joint else -2)
        weights = self.log_weights.exp().to(means.dtype).unsqueeze(-1)
        mean = (weights * means).sum(-2)
        away = means - mean.unsqueeze(-2)
        if joint:
            own = (weights.unsqueeze(-1) * spreads).sum(-3)
            return mean, own + (weights * away).transpose(-1, -2) @ away
        return mean, (weights * (spreads + away.square())).sum(-2)

    @outside_autocast
    def distribution(self, x: Tensor, joint: bool = False) -> Any:
        """Return the posterior: a normal for one node, else a :class:`ScaleMixtureMultivariateNormal`."""
        means, spreads = self.moments(x, joint)
        if self.log_weights is not None:
            kind = "covariance" if joint else "variance"
            return ScaleMixtureMultivariateNormal(self.log_weights.to(means.dtype), means, **{kind: spreads})
        spread = spreads.squeeze(-3 if joint else -2)
        covariance = to_linear_operator(spread) if joint else DiagLinearOperator(spread)
        return MultivariateNormal(means.squeeze(-2), covariance)

    # What a user asks of it ---------------------------------------------------------------------------------------

    def error(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> ErrorEstimate:
        """Return the expected squared error at test points with known targets ``*b x m``, in the user's units."""
        return expected_errors([self], x, y, chunk_size)[0]

    def _moments_with(self, others: Sequence[Conditioned], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return :meth:`moments` of this posterior and of others; a subclass may compute them together."""
        return [each.moments(x) for each in (self, *others)]

    def _left_out_with(self, others: Sequence[Conditioned]) -> list[ErrorEstimate]:
        """Return :meth:`leave_one_out` of this posterior and of others; a subclass may compute them together."""
        return [each.leave_one_out() for each in (self, *others)]

    def _error(self, y: Tensor, means: Tensor, variances: Tensor) -> ErrorEstimate:
        units, temperature = self.problem.units, self.problem.temperature
        mean, variance = self._mixed(means, variances, joint=False)
        log_density = None
        if temperature is not None:
            noisy = variances + temperature[..., None, None].to(variances.dtype)
            deviation = units.to_model(y).unsqueeze(-2) - means
            per_node = -0.5 * (deviation.square() / noisy + noisy.log() + _LOG_TWO_PI)
            if self.log_weights is None:
                log_density = units.log_density(per_node.squeeze(-2))
            else:
                weighted = per_node + self.log_weights.to(means.dtype).unsqueeze(-1)
                log_density = units.log_density(torch.logsumexp(weighted, -2))
        mean = units.value(mean)
        bias, variance = (y - mean).square(), units.variance(variance)
        return ErrorEstimate(mean, bias, variance, log_density=log_density, message=self._how)

    @outside_autocast
    def accuracy(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> Tensor:
        r"""Return the expected share of labels +-1 that the sign of a posterior network gets right, ``*b``.

        .. math:: \frac1m \sum_* \sum_n w_n \Phi(y_* \Gamma_n / \sigma_n)

        Raises:
            ValueError: A label other than +-1.
        """
        if not bool((y.abs() == 1).all()):
            raise ValueError(
                f"y: expected labels +1 and -1, got values from {float(y.min()):.3g} to {float(y.max()):.3g}"
            )
        units, pieces = self.problem.units, []
        for rows, labels in _chunks(x, y, chunk_size):
            means, variances = self.moments(rows)
            shift, scale = (
                v.unsqueeze(-2) if isinstance(v, Tensor) and v.dim() > 0 else v for v in (units.shift, units.scale)
            )
            margin = labels.unsqueeze(-2) * (shift + scale * means)
            deviation = scale * variances.sqrt()
            # A point without spread is right, wrong, or (at zero) a coin toss.
            spread = deviation > 0
            chance = torch.special.ndtr(margin / torch.where(spread, deviation, torch.ones_like(deviation)))
            right = torch.where(spread, chance, 0.5 * (1.0 + torch.sign(margin)))
            if self.log_weights is not None:
                right = self.log_weights.exp().to(right.dtype).unsqueeze(-1) * right
            pieces.append(right.sum(-2))
        return torch.cat(pieces, -1).mean(-1)

    @outside_autocast
    def leave_one_out(self) -> ErrorEstimate:
        r"""Return errors at each training point given the others, ``*b x P``, in the user's units.

        .. math:: y_i - \mu_{-i} = [A^{-1} y]_i / [A^{-1}]_{ii}, \qquad \sigma^2_{-i} = 1/[A^{-1}]_{ii} - T

        for every node. The nodes' weights given the other points are w_n / p(y_i | y_{-i}, n), normalized: nothing is
        held fixed when a point is left out but the hyperparameters and the nodes.
        """
        weights, precision = self.left_out_terms()
        noise = self.problem.noise_diagonal().to(precision.dtype)
        away, spread, log_density = left_out(weights, precision, noise, self.log_weights, self._smooth)
        units, targets = self.problem.units, self.problem.targets.to(away.dtype)
        return ErrorEstimate(
            units.value(targets - away),
            units.deviation(away).square(),
            units.variance(spread),
            log_density=units.log_density(log_density),
        )

    @outside_autocast
    def training_error(self) -> Tensor:
        r"""Return E (1/P) sum (y - f)^2 over the posterior, ``*b``, in the user's units.

        .. math:: \frac1P \sum_n w_n \big[T^2 |A^{-1} y|^2 + T P - T^2 \mathrm{tr} A^{-1}\big]

        Raises:
            ValueError: Noise that is correlated between points.
        """
        if self.problem.has_dense_noise():
            raise ValueError("likelihood: expected noise that is independent between points, got a full covariance")
        weights, precision = self.left_out_terms()
        noise = self.problem.noise_diagonal().to(precision.dtype).unsqueeze(-2)
        per_node = (noise.square() * (weights.square() - precision) + noise).mean(-1)
        if self.log_weights is not None:
            per_node = self.log_weights.exp() * per_node
        return self.problem.units.mean_variance(per_node.sum(-1)).to(self.problem.targets.dtype)


class DenseConditioned(Conditioned):
    """Nodes that are factorized one by one: a Cholesky factorization of A = noise + K each.

    Differentiable in all that the nodes depend on. Cost: P^3 / 3 for each node, as much again for leave-one-out.

    Args:
        problem: What is conditioned.
        nodes: The processes.
        log_weights: Normalized log weights, ``*b x n``; needed for more than one.
        noisy: A of each node, where they are known; from the nodes if None.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> problem = Problem.frozen(NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel))
        >>> from torch_propkernel.inference import KernelNode
        >>> one = DenseConditioned(problem, [KernelNode(problem, problem.at_scale(1.0))])
        >>> torch.allclose(one.predict(x)[0], problem.infinite_width.predict(x)[0])
        True
    """

    @outside_autocast
    def __init__(
        self,
        problem: Problem,
        nodes: Sequence[Node],
        log_weights: Tensor | None = None,
        noisy: Sequence[Tensor] | None = None,
    ) -> None:
        """Factorize A for every node and whiten the residuals."""
        if (log_weights is None) != (len(nodes) == 1) and (log_weights is None or log_weights.shape[-1] != len(nodes)):
            raise ValueError(f"log_weights: expected one for each of {len(nodes)} nodes, got {log_weights}")
        super().__init__(problem, log_weights)
        self.nodes = list(nodes)
        own = (problem.add_noise(node.covariance()) for node in self.nodes)
        self.factors = [safe_cholesky(covariance) for covariance in (own if noisy is None else noisy)]
        self.whitened = [
            torch.linalg.solve_triangular(factor, node.residuals().unsqueeze(-1), upper=False)
            for factor, node in zip(self.factors, self.nodes, strict=True)
        ]

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means and (co)variances of the nodes."""
        means, spreads = [], []
        for node, factor, whitened in zip(self.nodes, self.factors, self.whitened, strict=True):
            prior_mean, cross, prior = node.blocks(x, joint)
            half = torch.linalg.solve_triangular(factor, cross, upper=False)
            means.append(prior_mean + (half.transpose(-1, -2) @ whitened).squeeze(-1))
            if joint:
                spreads.append(without_negative_variances(prior - half.transpose(-1, -2) @ half))
            else:
                spreads.append((prior - half.square().sum(-2)).clamp_min(0.0))
        return torch.stack(means, -2), torch.stack(spreads, -3 if joint else -2)

    def log_likelihoods(self) -> Tensor:
        """Return log N(y; m, A) of each node."""
        twice = [
            2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + whitened.square().sum((-2, -1))
            for factor, whitened in zip(self.factors, self.whitened, strict=True)
        ]
        return -0.5 * (torch.stack(twice, -1) + self.problem.num_data * _LOG_TWO_PI)

    @cached_property
    def _left_out_terms(self) -> tuple[Tensor, Tensor]:
        weights = [
            torch.linalg.solve_triangular(factor.transpose(-1, -2), whitened, upper=True).squeeze(-1)
            for factor, whitened in zip(self.factors, self.whitened, strict=True)
        ]
        return torch.stack(weights, -2), torch.stack([_inverse_diagonal(factor) for factor in self.factors], -2)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) and the diagonal of A^{-1}."""
        return self._left_out_terms


class SpectralConditioned(Conditioned):
    r"""Nodes of the scale r of A(r) = T B + r K, all from one eigendecomposition.

    .. math:: A(r)^{-1} = V\, \mathrm{diag}\frac{1}{T + r k}\, V^T, \qquad k_*(r) = \text{fixed part} + r \cdot
              \text{renormalized part}

    Arithmetic in float64, results in the dtype of x. Gradients with respect to x are formed, others are not. Cost: for
    m test points m P^2 once, then m P for each node; leave-one-out P^2 for each node.

    Args:
        problem: A problem whose order parameters enter through their product.
        scale: Nodes r, ``*b x n``.
        log_weights: Normalized log weights; one node if None.
        spectrum: With eigenvectors; the problem's own if None.
        temperature: T, ``*b``; the problem's own if None.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> problem = Problem.frozen(NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel))
        >>> two = SpectralConditioned(problem, torch.tensor([0.5, 2.0]), torch.tensor([0.5, 0.5]).log())
        >>> two.moments(x)[0].shape, two.distribution(x).mean.shape   # two nodes, three points
        (torch.Size([2, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        problem: Problem,
        scale: Tensor,
        log_weights: Tensor | None = None,
        spectrum: Spectrum | None = None,
        temperature: Tensor | None = None,
    ) -> None:
        """Store the nodes."""
        super().__init__(problem, log_weights)
        self.spectrum = problem.spectrum(eigenvectors=True) if spectrum is None else spectrum
        self.scale = scale.to(self.spectrum.eigenvalues)
        temperature = (problem.scalar().temperature if temperature is None else temperature).to(self.scale)
        # 1 / (T + r k), *b x n x P.
        self.spread = 1.0 / (
            temperature[..., None, None] + self.scale.unsqueeze(-1) * self.spectrum.eigenvalues.unsqueeze(-2)
        )

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means and (co)variances of the nodes."""
        fixed, moved = self.problem.affine_blocks(x, joint)
        moved = Blocks(*(v.double() for v in moved))
        rotate, spread, r = self.spectrum.vectors.transpose(-1, -2), self.spread, self.scale.unsqueeze(-1)
        cross = rotate @ moved.cross
        solved = spread * self.spectrum.single.unsqueeze(-2)
        mean = moved.mean.unsqueeze(-2) + r * (solved @ cross)
        own = r.unsqueeze(-1) * moved.prior.unsqueeze(-3) if joint else r * moved.prior.unsqueeze(-2)
        still = None
        if fixed is not None:
            fixed = Blocks(*(v.double() for v in fixed))
            still = rotate @ fixed.cross
            mean = mean + solved @ still
            own = own + fixed.prior.unsqueeze(-3 if joint else -2)
        if joint:
            taken = []
            for node in range(r.shape[-2]):
                factor, weight = r[..., node, :, None], spread[..., node, :].sqrt().unsqueeze(-1)
                half = (factor * cross if still is None else still + factor * cross) * weight
                taken.append(half.transpose(-1, -2) @ half)
            return mean.to(x.dtype), without_negative_variances(own - torch.stack(taken, -3)).to(x.dtype)
        reduction = r.square() * (spread @ cross.square())
        if still is not None:
            reduction = reduction + spread @ still.square() + 2.0 * r * (spread @ (still * cross))
        return mean.to(x.dtype), (own - reduction).clamp_min(0.0).to(x.dtype)

    def log_likelihoods(self) -> Tensor:
        """Return log N(y; m, A) of each node."""
        spectrum = self.spectrum
        twice = (self.spread * spectrum.squares.unsqueeze(-2) - self.spread.log()).sum(-1)
        return -0.5 * (twice + spectrum.log_det_base.unsqueeze(-1) + spectrum.num_data * _LOG_TWO_PI)

    @cached_property
    def _left_out_terms(self) -> tuple[Tensor, Tensor]:
        return spectral_left_out_terms(self.spectrum, self.spread)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) and the diagonal of A^{-1}."""
        return self._left_out_terms


def without_negative_variances(covariance: Tensor) -> Tensor:
    """Return a covariance whose diagonal, the difference of terms that may be huge, is not negative by rounding."""
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
    return torch.diagonal_scatter(covariance, diagonal, dim1=-2, dim2=-1)


def spectral_left_out_terms(spectrum: Spectrum, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return A^{-1} y and the diagonal of A^{-1}, ``*b x n x P``, from 1 / (T + r k) of n nodes."""
    back = spectrum.vectors.transpose(-1, -2)
    return (spread * spectrum.single.unsqueeze(-2)) @ back, spread @ back.square()


def left_out(
    weights: Tensor,
    precision: Tensor,
    noise: Tensor,
    log_weights: Tensor | None,
    smooth: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return y_i - mean, latent variance and log p(y_i | y_-i) of every point given the others, ``*b x P`` each.

    .. math:: p(y_i | y_{-i}) = \Big[\sum_n w_n / p(y_i | y_{-i}, n)\Big]^{-1}

    Args:
        weights: A^{-1} (y - m) of each node, ``*b x n x P``.
        precision: Diagonal of A^{-1} of each node.
        noise: Noise variances, broadcastable to ``*b x P``.
        log_weights: Normalized log w, ``*b x n``; None for one node.
        smooth: Replaces the log weights of the nodes given the other points, ``*b x n x P``.
    """
    deviation = weights / precision
    variance = (1.0 / precision - noise.unsqueeze(-2)).clamp_min(0.0)
    per_node = left_out_densities(weights, precision)
    if log_weights is None:
        return deviation.squeeze(-2), variance.squeeze(-2), per_node.squeeze(-2)
    lifted = log_weights.to(precision.dtype).unsqueeze(-1) - per_node
    if smooth is not None:
        lifted = smooth(lifted)
    share = torch.log_softmax(lifted, -2)
    log_density = torch.logsumexp(share + per_node, -2)
    share = share.exp()
    away = (share * deviation).sum(-2)
    spread = (share * (variance + (deviation - away.unsqueeze(-2)).square())).sum(-2)
    return away, spread, log_density


def left_out_densities(weights: Tensor, precision: Tensor) -> Tensor:
    """Return log p(y_i | y_-i) of each node, ``*b x n x P``, from A^{-1} (y - m) and the diagonal of A^{-1}."""
    return 0.5 * (precision.log() - weights.square() / precision - _LOG_TWO_PI)


def check_chunk_size(chunk_size: int) -> None:
    """Raise ``ValueError`` unless it is a whole number of points, at least one."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size: expected a whole number >= 1, got {chunk_size!r}")


@outside_autocast
def expected_errors(posteriors: Sequence[Conditioned], x: Tensor, y: Tensor, chunk_size: int) -> list[ErrorEstimate]:
    """Return the errors of several posteriors at the same prepared points; those of one problem share its blocks."""
    columns = []
    for rows, part in _chunks(x, y, chunk_size):
        moments = posteriors[0]._moments_with(posteriors[1:], rows)
        columns.append([each._error(part, *own) for each, own in zip(posteriors, moments, strict=True)])
    return [_joined(list(pieces)) for pieces in zip(*columns, strict=True)]


def left_out_errors(posteriors: Sequence[Conditioned]) -> list[ErrorEstimate]:
    """Return the leave-one-out errors of several posteriors; those of one streamed problem share its products."""
    return posteriors[0]._left_out_with(posteriors[1:])


def _chunks(x: Tensor, y: Tensor, chunk_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield test points and targets in parts of bounded size; few points as they are, so that blocks are found."""
    check_chunk_size(chunk_size)
    check_targets(y, x.shape[-2])
    if x.shape[-2] <= chunk_size:
        yield x, y
        return
    yield from zip(x.split(chunk_size, dim=-2), y.split(chunk_size, dim=-1), strict=True)


def _joined(pieces: list[ErrorEstimate]) -> ErrorEstimate:
    """Return estimates of consecutive points as one."""
    mean, bias, variance = (torch.cat([getattr(p, n) for p in pieces], -1) for n in ("mean", "bias", "variance"))
    densities = [p.log_density for p in pieces if p.log_density is not None]
    log_density = torch.cat(densities, -1) if densities else None
    return ErrorEstimate(mean, bias, variance, log_density=log_density, message=pieces[0].message)


def _inverse_diagonal(factor: Tensor, block: int = 512) -> Tensor:
    """Return the diagonal of A^{-1}, ``*b x P``, from column blocks of L^{-1}: P^3 / 3 multiplications."""
    size = factor.shape[-1]
    columns = []
    for start in range(0, size, block):
        corner = factor[..., start:, start:]
        unit = torch.eye(size - start, min(block, size - start), dtype=corner.dtype, device=corner.device)
        columns.append(torch.linalg.solve_triangular(corner, unit.expand(*corner.shape[:-2], *unit.shape), upper=False))
    return torch.cat([c.square().sum(-2) for c in columns], -1)
