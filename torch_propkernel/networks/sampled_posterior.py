"""What a sampler returns: averages over the posterior of a network, each with its Monte Carlo error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from .diagnostics import MonteCarloEstimate, estimate
from .sampler import SamplerStatistics

R_HAT_LIMIT = 1.01
"""Largest R-hat of a converged scalar: the limit of Vehtari et al. (2021)."""
EFFECTIVE_SAMPLE_SIZE_LIMIT = 400.0
"""Smallest effective sample size of a converged scalar: below it R-hat and the standard error are themselves noisy."""
DIVERGENT_LIMIT = 1e-3
"""Largest part of divergent transitions: each is only a rejected step, but many hide a region that no chain enters."""


@dataclass(frozen=True)
class SampledPosterior:
    r"""Averages over the posterior of a finite network at temperature T, with Monte Carlo errors.

    Let m_w(x) and s_w^2(x) be mean and variance of f(x) given the sampled state (the readout integrated out exactly;
    without that s_w = 0). Sums over the D outputs are meant where there are several.

    Standard errors of averages are those of :func:`estimate`. ``bias`` and the variances are not averages of a function
    of one draw: for them the draws are linearized about E m_w (delta method), and the Monte Carlo variance of E m_w,
    which inflates the plug-in bias, is moved from the bias to the variance and added to both errors. So
    ``test_error = bias + variance`` holds exactly.

    Attributes:
        test_error: E (y_* - f(x_*))^2 averaged over the test points, no noise added; None without test targets.
        bias: (y_* - E f(x_*))^2 averaged over the test points.
        variance: Posterior variance of f(x_*) averaged over the test points; None without test inputs.
        training_error: (1/P) E sum (y - f)^2.
        order_parameter: ``E[lambda_L |v|^2] / F``, F the number of readout weights (N_L; for a convolutional layer
            channels times patches), averaged over outputs.
        log_likelihood: E log p(y | w), the readout integrated out (with the constant -(P D / 2) log 2 pi).
        order_parameter_matrix: E[lambda_L v^T v] / F, ``D x D``; None for a network without ``num_outputs``.
        posterior_mean: E f(x_*), ``m`` or ``m x D``; None without test inputs.
        posterior_variance: Var f(x_*), of the same shape.
        draws: f(x_*) of one network for each state, ``chains x draws x m`` (``x D``): joint over the test points.
        hidden: Whitened hidden weights ``chains x draws x num_hidden`` of these networks, with ``keep_weights``.
        readout: Their readouts, ``chains x draws x F x D``; one more row for a bias.
        acceptance: Mean acceptance probability.
        step_size: Size of the leapfrog steps, or the learning rate.
        num_divergent: Transitions with an energy error that is not finite or above 1000.
        num_transitions: All transitions after the warm-up.
        num_gradients: Gradients computed for each chain after the warm-up.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.networks import FiniteNetwork, sample_posterior
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> network = FiniteNetwork(Identity(), input_dim=1, width=1, dtype=torch.float64)
        >>> result = sample_posterior(network, x, x[:, 0], 1.0, num_samples=300, warmup=100)
        >>> result.converged, sorted(result.estimates)
        (True, ['log_likelihood', 'order_parameter', 'training_error'])
    """

    test_error: MonteCarloEstimate | None
    bias: MonteCarloEstimate | None
    variance: MonteCarloEstimate | None
    training_error: MonteCarloEstimate
    order_parameter: MonteCarloEstimate
    log_likelihood: MonteCarloEstimate
    order_parameter_matrix: MonteCarloEstimate | None
    posterior_mean: MonteCarloEstimate | None
    posterior_variance: MonteCarloEstimate | None
    draws: Tensor | None
    hidden: Tensor | None
    readout: Tensor | None
    acceptance: float
    step_size: float
    num_divergent: int
    num_transitions: int
    num_gradients: int

    @property
    def estimates(self) -> dict[str, MonteCarloEstimate]:
        """The scalars by name; convergence is judged by them."""
        names = "test_error", "bias", "variance", "training_error", "order_parameter", "log_likelihood"
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def problems(self) -> list[str]:
        """A sentence for everything that speaks against convergence."""
        found = []
        for name, value in self.estimates.items():
            r_hat, size = value.r_hat.item(), value.effective_sample_size.item()
            if not r_hat <= R_HAT_LIMIT:
                found.append(f"R-hat of {name} is {r_hat:.3f} (limit {R_HAT_LIMIT})")
            if not size >= EFFECTIVE_SAMPLE_SIZE_LIMIT:
                found.append(f"effective sample size of {name} is {size:.0f} (limit {EFFECTIVE_SAMPLE_SIZE_LIMIT:.0f})")
        if self.num_divergent > DIVERGENT_LIMIT * self.num_transitions:
            found.append(
                f"{self.num_divergent} of {self.num_transitions} transitions diverged (limit 1 in "
                f"{1 / DIVERGENT_LIMIT:.0f}; raise the target acceptance)"
            )
        return found

    @property
    def converged(self) -> bool:
        """Whether R-hat is at most 1.01, the effective sample size at least 400, and hardly any transition diverged."""
        return not self.problems

    @property
    def message(self) -> str:
        """What the diagnostics say and what to do."""
        if self.problems:
            return f"not converged: {'; '.join(self.problems)}. Use more num_samples, warmup or num_chains."
        r_hat = max(value.r_hat.item() for value in self.estimates.values())
        size = min(value.effective_sample_size.item() for value in self.estimates.values())
        return f"converged: largest R-hat {r_hat:.4f}, smallest effective sample size {size:.0f}."

    def raise_if_failed(self) -> SampledPosterior:
        """Return self, or raise :class:`ConvergenceError` if the chains have not converged."""
        if not self.converged:
            raise ConvergenceError(self.message)
        return self


def summarize(
    recorded: Mapping[str, Tensor], test_y: Tensor | None, squeeze: bool, statistics: SamplerStatistics
) -> SampledPosterior:
    """Average the recorded observables, each ``C x S x ...``.

    Args:
        recorded: Fields of ``Observables`` by name; hidden and readout may be missing.
        test_y: ``m x D``.
        squeeze: Drop the dimension of the outputs.
        statistics: Numbers of the run.
    """
    order = recorded["order_parameter"]
    test: dict[str, MonteCarloEstimate | None] = dict.fromkeys(
        ["test_error", "bias", "variance", "posterior_mean", "posterior_variance"]
    )
    mean, outputs = recorded["mean"], None
    if mean.shape[2]:
        outputs = recorded["output"].squeeze(-1) if squeeze else recorded["output"]
        test |= _test_estimates(mean, recorded["variance"], test_y, squeeze)
    return SampledPosterior(
        **test,
        training_error=estimate(recorded["training_error"]),
        order_parameter=estimate(order.diagonal(dim1=-2, dim2=-1).mean(-1)),
        log_likelihood=estimate(recorded["log_likelihood"]),
        order_parameter_matrix=None if squeeze else estimate(order),
        draws=outputs,
        hidden=recorded.get("hidden"),
        readout=recorded.get("readout"),
        acceptance=statistics.acceptance,
        step_size=statistics.step_size,
        num_divergent=statistics.num_divergent,
        num_transitions=statistics.num_transitions,
        num_gradients=statistics.num_gradients,
    )


def _test_estimates(
    mean: Tensor, variance: Tensor, test_y: Tensor | None, squeeze: bool
) -> dict[str, MonteCarloEstimate]:
    """Decompose the error at the test points; mean ``C x S x m x D``, variance ``C x S x m``."""
    center = estimate(mean)
    offset = mean - center.mean
    spread = offset.square() + variance.unsqueeze(-1)
    pointwise, noise = estimate(spread), center.standard_error.square()
    found = {
        "posterior_mean": center,
        "posterior_variance": _shift(pointwise, noise),
    }
    if squeeze:
        found = {name: _map(value, lambda v: v.squeeze(-1)) for name, value in found.items()}
    noise = noise.sum(-1).mean(-1)
    total_spread = spread.sum(-1).mean(-1)
    found["variance"] = _shift(estimate(total_spread), noise)
    if test_y is not None:
        misfit = test_y - center.mean
        bias = (misfit.square() - 2.0 * misfit * offset).sum(-1).mean(-1)
        found["bias"] = _shift(estimate(bias), -noise)
        found["test_error"] = estimate(bias + total_spread)
    return found


def _shift(value: MonteCarloEstimate, noise: Tensor) -> MonteCarloEstimate:
    """Add the Monte Carlo variance of the mean to a quadratic estimate, and its own uncertainty to the error."""
    error = torch.hypot(value.standard_error, math.sqrt(2.0) * noise)
    return MonteCarloEstimate(value.mean + noise, error, value.effective_sample_size, value.r_hat)


def _map(value: MonteCarloEstimate, function: Callable[[Tensor], Tensor]) -> MonteCarloEstimate:
    """Apply a function to all four tensors."""
    fields = value.mean, value.standard_error, value.effective_sample_size, value.r_hat
    return MonteCarloEstimate(*(function(v) for v in fields))
