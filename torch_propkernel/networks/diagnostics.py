"""Convergence diagnostics of batched Markov chains: R-hat, effective sample size, Monte Carlo standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import check_finite, check_floating


@dataclass(frozen=True)
class MonteCarloEstimate:
    """An average over Markov chains with what is needed to judge it; all four have the same shape.

    Attributes:
        mean: The average over chains and draws.
        standard_error: Monte Carlo standard error of the mean: standard deviation over the square root of the
            effective sample size.
        effective_sample_size: Number of independent draws that would give the same standard error.
        r_hat: Rank-normalized split R-hat, 1 for chains that agree.

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import estimate
        >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> result = estimate(draws)
        >>> bool(result.mean.abs() < 4 * result.standard_error), bool(result.r_hat < 1.01)
        (True, True)
    """

    mean: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    r_hat: Tensor

    def distance(self, other: MonteCarloEstimate | Tensor | float) -> Tensor:
        """Return the difference to another estimate (or an exact value) in units of the combined standard error."""
        if isinstance(other, MonteCarloEstimate):
            error = torch.hypot(self.standard_error, other.standard_error)
            return (self.mean - other.mean) / error
        return (self.mean - other) / self.standard_error

    def __getitem__(self, index: Any) -> MonteCarloEstimate:
        """Return the estimates of some entries."""
        return MonteCarloEstimate(
            self.mean[index], self.standard_error[index], self.effective_sample_size[index], self.r_hat[index]
        )

    def __str__(self) -> str:
        """Return ``mean +- standard error`` for a scalar."""
        if self.mean.numel() != 1:
            return f"MonteCarloEstimate(shape {tuple(self.mean.shape)})"
        return f"{self.mean.item():.6g} +- {self.standard_error.item():.2g}"


def estimate(draws: Tensor) -> MonteCarloEstimate:
    """Return mean, standard error, effective sample size and R-hat of draws ``C x S x *shape``, each of ``*shape``.

    Args:
        draws: C chains of S >= 4 draws of a quantity.

    Raises:
        TypeError, ValueError: Not a floating-point tensor with two dimensions or more; fewer than 4 draws.

    Reference: see :func:`effective_sample_size` and :func:`split_r_hat`.

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import estimate
        >>> estimate(torch.ones(2, 10, 3)).standard_error   # a constant is known exactly
        tensor([0., 0., 0.])
    """
    size = effective_sample_size(draws)
    spread = draws.flatten(0, 1).var(0)
    return MonteCarloEstimate(draws.mean((0, 1)), (spread / size).sqrt(), size, split_r_hat(draws))


def split_r_hat(draws: Tensor) -> Tensor:
    r"""Return the rank-normalized split R-hat of draws ``C x S x *shape``, of shape ``*shape``.

    .. math:: \hat R = \sqrt{\frac{(n - 1) W / n + B / n}{W}}

    n is the length of a half chain, W the mean variance within the 2 C half chains, n times the variance of their means
    is B. Draws are replaced by normal scores of their ranks first (ties share their mean rank), and the
    maximum over the draws and their folded version, the distances to the median, is returned: one sees chains that
    differ in location, the other those that differ in spread. Values above 1.01 mean that chains have not mixed. 1 for
    constant draws.

    Args:
        draws: C chains of S >= 4 draws.

    Raises:
        TypeError, ValueError: Not a floating-point tensor with two dimensions or more; fewer than 4 draws.

    Reference: Vehtari, Gelman, Simpson, Carpenter, Buerkner, Bayesian Analysis 16, 667 (2021), eqs. (3), (4), (14).

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import split_r_hat
        >>> draws = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
        >>> bool(split_r_hat(draws) < 1.02), bool(split_r_hat(draws + 2 * torch.arange(4.0).unsqueeze(-1)) > 1.5)
        (True, True)
    """
    chains = _split(draws)
    folded = (chains - chains.flatten(0, 1).median(0).values).abs()
    r_hat = torch.maximum(_plain_r_hat(_normal_scores(chains)), _plain_r_hat(_normal_scores(folded)))
    return torch.where(_is_constant(chains), 1.0, r_hat)


def effective_sample_size(draws: Tensor) -> Tensor:
    r"""Return the effective sample size for the mean of draws ``C x S x *shape``, of shape ``*shape``.

    .. math:: n_{eff} = \frac{C S}{-1 + 2 \sum_k P_k}, \qquad P_k = \rho_{2k} + \rho_{2k+1}

    Autocorrelations :math:`\rho_t` combine the split chains, so that chains that disagree lower the result; the sum
    ends at the first P_k <= 0 and P_k is made monotone (Geyer's initial monotone sequence). At most C S log10(C S), for
    antithetic chains; C S for constant
    draws.

    Args:
        draws: C chains of S >= 4 draws.

    Raises:
        TypeError, ValueError: Not a floating-point tensor with two dimensions or more; fewer than 4 draws.

    Reference: Geyer, Statistical Science 7, 473 (1992); Vehtari et al., Bayesian Analysis 16, 667 (2021), eqs.
        (10) - (13).

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import effective_sample_size
        >>> draws = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> slow = draws.cumsum(1)   # a random walk
        >>> bool(effective_sample_size(draws) > 1500), bool(effective_sample_size(slow) < 40)
        (True, True)
    """
    chains = _split(draws)
    total, length = chains.shape[0] * chains.shape[1], chains.shape[1]
    centered = chains - chains.mean(1, keepdim=True)
    power = torch.fft.rfft(centered, n=2 * length, dim=1).abs().square()
    covariance = torch.fft.irfft(power, n=2 * length, dim=1)[:, :length].mean(0) / length
    within = covariance[0] * length / (length - 1)
    pooled = covariance[0] + chains.mean(1).var(0)
    is_constant = _is_constant(chains)
    correlation = 1.0 - (within - covariance) / torch.where(is_constant, 1.0, pooled)
    correlation[0] = 1.0
    pairs = correlation[: length // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = torch.where((pairs > 0).cumprod(0) > 0, pairs, 0.0).cummin(0).values
    time = (-1.0 + 2.0 * pairs.sum(0)).clamp_min(1.0 / torch.log10(pairs.new_tensor(float(total))))
    return torch.where(is_constant, float(total), total / time)


def _split(draws: Tensor) -> Tensor:
    """Halve every chain: ``C x S x ...`` -> ``2 C x S // 2 x ...`` (the middle draw of an odd number is dropped)."""
    check_floating("draws", draws)
    if draws.dim() < 2 or draws.shape[1] < 4 or draws.shape[0] < 1:
        raise ValueError(f"draws: expected shape (chains, draws >= 4, ...), got {tuple(draws.shape)}")
    check_finite("draws", draws)
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _is_constant(chains: Tensor) -> Tensor:
    """Whether all draws of a quantity agree to rounding."""
    draws = chains.flatten(0, 1)
    spread = draws.amax(0) - draws.amin(0)
    return spread <= 64.0 * torch.finfo(draws.dtype).eps * draws.abs().amax(0)


def _normal_scores(chains: Tensor) -> Tensor:
    """Replace draws by normal quantiles of their ranks among all chains; repeated draws share their mean rank."""
    values = chains.flatten(0, 1).movedim(0, -1).contiguous()
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    rank = 0.5 * (below + up_to + 1).to(values.dtype)
    scores = torch.special.ndtri((rank - 0.375) / (values.shape[-1] + 0.25))
    return scores.movedim(-1, 0).reshape(chains.shape)


def _plain_r_hat(chains: Tensor) -> Tensor:
    """Return the potential scale reduction of chains that are split already."""
    length = chains.shape[1]
    within = chains.var(1).mean(0)
    pooled = within * (length - 1) / length + chains.mean(1).var(0)
    return (pooled / within).sqrt()
