"""Sample the posterior of a finite network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .._validation import positive_number
from ..exceptions import ConvergenceError, SamplingWarning
from .diagnostics import MonteCarloEstimate
from .feature_network import FeatureNetwork
from .hamiltonian import HamiltonianMonteCarlo
from .row_space import reduce_to_row_space
from .sampled_posterior import SampledPosterior, summarize
from .sampler import Sampler, SamplerStatistics
from .targets import JointTarget, MarginalTarget, Target, as_columns

__all__ = ["MonteCarloEstimate", "SampledPosterior", "sample_posterior"]


def sample_posterior(
    network: FeatureNetwork,
    x: Tensor,
    y: Tensor,
    temperature: float,
    *,
    test_x: Tensor | None = None,
    test_y: Tensor | None = None,
    sampler: Sampler | None = None,
    num_chains: int = 8,
    num_samples: int = 1000,
    warmup: int = 500,
    seed: int = 0,
    keep_weights: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SampledPosterior:
    r"""Sample the posterior of a finite network at temperature T and average over it.

    .. math:: p(W, v | y) \propto \exp\Big(-\frac{1}{T} \Big[\tfrac12 \sum (y - f)^2
              + \tfrac{T}{2} \sum_l \lambda_l |W^l|^2\Big]\Big)

    Bayesian regression with noise variance T (in a GPyTorch model ``likelihood.noise``); D outputs are independent
    given the features. Chains start at draws from the prior. The default sampler integrates the readout out exactly, so
    that averages need fewer draws. Targets are taken as they are: nothing is centered or standardized.

    Where the training inputs do not span the input space (P < N_0), a fully connected network is sampled in their row
    space only; what is orthogonal keeps its prior and is drawn exactly (:class:`RowSpaceTarget`).

    A run whose scalars have an R-hat above 1.01 or an effective sample size below 400, or with more than one divergent
    transition in 1000, says so: ``converged`` is False, ``message`` tells why, and it issues a
    :class:`SamplingWarning`.

    Shapes: x ``P x d``, y ``P`` (``P x D`` with ``num_outputs``), test points likewise. Use float64: at low T energies
    are large. It runs where the network is (CPU or CUDA); the same seed gives the same draws on one device. Memory:
    3 m D numbers per draw, with ``keep_weights`` the weights too. Cost: about ``1.5 / step_size`` batched gradients per
    draw (6 to 25 at T = 0.1 to 0.01) of a forward and backward pass and min(P, N_L) P N_L for each chain.

    Args:
        network: Architecture and prior; its present weights and batch shape play no part.
        x: Training inputs.
        y: Targets.
        temperature: T > 0.
        test_x: Inputs at which predictions are wanted.
        test_y: Their targets, for the test error.
        sampler: :class:`HamiltonianMonteCarlo` (default) or :class:`LangevinDynamics`, with their settings.
        num_chains: Independent chains, moved as one batch; at least 2.
        num_samples: Draws per chain after the warm-up; at least 4.
        warmup: Transitions per chain that are dropped; step sizes are adapted in them.
        seed: Seed of the random numbers.
        keep_weights: Keep the weights of one network per draw.
        progress: Called as ``progress(done, total)`` after every transition; see ``torch_propkernel.progress``.

    Returns:
        The averages with their errors.

    Raises:
        TypeError, ValueError: NaN, wrong shapes, mixed dtypes or devices, T <= 0, too few chains or draws.
        ConvergenceError: Energies that are not finite, or (nearly) all proposals rejected.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel import Erf
        >>> from torch_propkernel.networks import FiniteNetwork, sample_posterior
        >>> x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> network = FiniteNetwork(Erf(), input_dim=3, width=5, dtype=torch.float64)
        >>> result = sample_posterior(network, x, x[:, 0].sign(), 0.5, test_x=x, num_samples=250, warmup=100)
        >>> result.converged, bool((result.posterior_mean.mean * x[:, 0] > 0).all())
        (True, True)
    """
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sampler: expected HamiltonianMonteCarlo(...) or LangevinDynamics(...), got {sampler!r}")
    sampler = sampler or HamiltonianMonteCarlo()
    for name, number, least in (("num_chains", num_chains, 2), ("num_samples", num_samples, 4), ("warmup", warmup, 0)):
        if positive_number(name, number, allow_zero=True) < least or int(number) != number:
            raise ValueError(f"{name}: expected a whole number >= {least}, got {number!r}")
    if test_y is not None and test_x is None:
        raise ValueError("test_x: expected inputs beside test_y, got None")
    kind: type[Target] = MarginalTarget if sampler.integrate_readout else JointTarget
    target = kind(network, x, y, temperature, test_x)
    columns = None if test_y is None or test_x is None else as_columns(network, test_y, test_x, "test_y")
    target = reduce_to_row_space(target, keep_weights)

    generator = torch.Generator(device=x.device).manual_seed(seed)
    statistics, kept = SamplerStatistics(), []
    states = sampler.iterate(target, target.draw_prior(num_chains, generator), warmup, generator, statistics)
    total = warmup + num_samples
    for done, state in zip(range(1, total + 1), states, strict=False):
        if done > warmup:
            seen = target.observables(state, generator)._asdict()
            kept.append(seen if keep_weights else {k: v for k, v in seen.items() if k not in ("hidden", "readout")})
        if progress is not None:
            progress(done, total)
    recorded = {name: torch.stack([seen[name] for seen in kept], dim=1) for name in kept[0]}
    _check_recorded(recorded)
    result = summarize(recorded, columns, network.num_outputs is None, statistics)
    if not result.converged:
        warnings.warn(result.message, SamplingWarning, stacklevel=2)
    return result


def _check_recorded(recorded: dict[str, Tensor]) -> None:
    """Raise if a chain left the numbers that its arithmetic can hold."""
    for name, value in recorded.items():
        if not bool(torch.isfinite(value).all()):
            raise ConvergenceError(
                f"{name}: expected finite values, got {int((~torch.isfinite(value)).sum())} that are not; use float64, "
                "a larger temperature or a smaller step"
            )
