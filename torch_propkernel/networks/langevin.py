"""Discretized Langevin dynamics of all weights, as the literature samples networks, and the bias of its step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .._validation import positive_number
from ..exceptions import ConvergenceError
from .diagnostics import MonteCarloEstimate
from .sampler import Sampler, SamplerStatistics
from .targets import Target


class LangevinDynamics(Sampler):
    r"""Discretized Langevin dynamics over all weights: gradient descent on the regularized loss with noise.

    .. math:: \theta \leftarrow \theta - \eta \nabla_\theta \Big[ \tfrac12 \sum (y - f)^2
              + \tfrac{T}{2} \sum_l \lambda_l |\theta_l|^2 \Big] + \sqrt{2 T \eta}\, \xi, \qquad \xi \sim N(0, 1)

    :math:`\theta` are the physical weights (readout and biases included), :math:`\eta` the ``learning_rate``. In
    whitened units the step of a weight of precision lambda is :math:`\epsilon = \eta T \lambda`.

    **The law that it samples is wrong at first order in the step.** There is no accept step. For a Gaussian posterior
    whose energy has curvature h in a (whitened) direction, the variance is exactly

    .. math:: \frac{1}{h (1 - \epsilon h / 2)} = \frac{1}{h} \Big(1 + \frac{\epsilon h}{2} + O(\epsilon^2)\Big)

    so stiff directions, which the data determine, are the worst, and the dynamics explodes at epsilon h >= 2. Halving
    ``learning_rate`` halves the bias; :func:`extrapolate_learning_rate` makes the check, and cancels the first order.
    Measured on a linear network of width 4 with exact averages (8 points, T = 0.5, lambda = 1): the training error is
    6.5 % too large at eta = 0.04, 2.7 % at 0.02 and 1.4 % at 0.01 (+- 0.1 %), the variance at test points 11, 5 and
    3 %. The Monte Carlo errors that are reported with the draws do not include this bias.

    Args:
        learning_rate: eta.
        steps_per_draw: Steps between recorded states; also one iteration of the warm-up.
        integrate_readout: True runs it on the hidden weights alone (:class:`MarginalTarget`).

    Raises:
        ValueError: Numbers out of range.
        ConvergenceError: While sampling: the weights are no longer finite.

    Reference: Welling and Teh, ICML (2011); Roberts and Tweedie, Bernoulli 2, 341 (1996); THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.networks import FiniteNetwork, LangevinDynamics, sample_posterior
        >>> network = FiniteNetwork(Identity(), input_dim=1, width=1, dtype=torch.float64)
        >>> x = torch.zeros(1, 1, dtype=torch.float64)   # no information: the posterior is the prior
        >>> result = sample_posterior(network, x, x[:, 0], 1.0, sampler=LangevinDynamics(1.0, steps_per_draw=1),
        ...                           warmup=50, num_chains=40, num_samples=200)
        >>> bool(abs(result.order_parameter.mean - 2.0) < 0.2)   # 1 / (1 - 1/2) where the exact value is 1
        True
    """

    def __init__(self, learning_rate: float, *, steps_per_draw: int = 10, integrate_readout: bool = False) -> None:
        """Check and store the settings."""
        self.learning_rate = positive_number("learning_rate", learning_rate)
        self.steps_per_draw = int(positive_number("steps_per_draw", steps_per_draw))
        self.integrate_readout = integrate_readout

    @torch.no_grad()
    def iterate(
        self,
        target: Target,
        state: Tensor,
        warmup: int,
        generator: torch.Generator | None,
        statistics: SamplerStatistics,
    ) -> Iterator[Tensor]:
        """Yield one state after another."""
        step = self.learning_rate * target.temperature * target.precisions
        noise = torch.sqrt(2.0 * step)
        state = state.clone()
        statistics.step_size = self.learning_rate
        for iteration in itertools.count():
            for _ in range(self.steps_per_draw):
                random = torch.randn(state.shape, generator=generator, dtype=state.dtype, device=state.device)
                state.addcmul_(step, target.potential(state)[1], value=-1.0).addcmul_(noise, random)
            if not bool(torch.isfinite(state.sum())):
                raise ConvergenceError(
                    f"weights: expected finite numbers, got NaN or infinity after {iteration + 1} x "
                    f"{self.steps_per_draw} steps; reduce learning_rate (now {self.learning_rate:g})"
                )
            if iteration >= warmup:
                statistics.num_gradients += self.steps_per_draw
                statistics.num_transitions += len(state)
                statistics.total_acceptance += len(state)
            yield state.clone()


def extrapolate_learning_rate(
    coarse: Mapping[str, MonteCarloEstimate], fine: Mapping[str, MonteCarloEstimate]
) -> dict[str, MonteCarloEstimate]:
    r"""Return estimates without the bias of first order in the step, from runs with learning rates eta and eta / 2.

    .. math:: 2\, a(\eta / 2) - a(\eta) = a(0) + O(\eta^2)

    The check of a run: ``coarse[name].distance(fine[name])`` far above 1 shows a bias that the Monte Carlo error does
    not cover; what is left in the fine run is about as large as the difference of the two. Standard errors add:
    the result's is the root of 4 se_fine^2 + se_coarse^2. Its effective sample size is the smaller of the two and its
    R-hat the larger.

    Args:
        coarse: ``SampledPosterior.estimates`` at learning rate eta.
        fine: The same at eta / 2.

    Raises:
        ValueError: The runs do not report the same quantities.

    Reference: Richardson extrapolation; Talay and Tubaro, Stochastic Analysis and Applications 8, 483 (1990).

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import MonteCarloEstimate, extrapolate_learning_rate
        >>> one = torch.ones(())
        >>> at = {mean: {"error": MonteCarloEstimate(mean * one, 0.1 * one, one, one)} for mean in (1.4, 1.2)}
        >>> str(extrapolate_learning_rate(at[1.4], at[1.2])["error"])
        '1 +- 0.22'
    """
    if coarse.keys() != fine.keys():
        raise ValueError(f"coarse, fine: expected the same quantities, got {sorted(coarse)} and {sorted(fine)}")
    return {
        name: MonteCarloEstimate(
            2.0 * fine[name].mean - coarse[name].mean,
            torch.hypot(2.0 * fine[name].standard_error, coarse[name].standard_error),
            torch.minimum(fine[name].effective_sample_size, coarse[name].effective_sample_size),
            torch.maximum(fine[name].r_hat, coarse[name].r_hat),
        )
        for name in coarse
    }
