"""The posterior of the network itself as a predictor, from annealed chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._validation import positive_number
from ..inference import OutputsProblem, Problem
from ..networks import estimate
from ..networks.annealing import Annealing, Draws, Population
from ..numerics.pareto import TRUSTED
from .base import FittedTheory, Theory
from .sampled_conditioned import SampledConditioned, columns_of, network_of, temperature_of
from .sampled_outputs import FittedSampledOutputs, SampledOutputsConditioned

_AGREE = 1.1  # R-hat of chains that have not converged to each other, but agree


class Sampled(Theory):
    r"""The network itself: its posterior, sampled by annealing, as a mixture of the networks that were drawn.

    .. math:: p(f_* | y) = \frac1S \sum_s N(f_*; \mu_s, \sigma_s^2), \qquad w_s \sim p(w | y), \qquad
              y | w \sim N(0, T 1 + w_L \Phi_w \Phi_w^T)

    No theory but the thing that theories describe, within Monte Carlo errors. Chains cool from the prior to T in steps
    (:class:`~torch_propkernel.networks.Annealing`), which gathers the evidence; then they go on at T, and
    ``num_draws`` states of each are kept. The readout is integrated out, in sampling and in predictions. Any depth and
    activation; the covariance must be one network's (a RenormalizedNNGPKernel or a ConvolutionalRenormalizedKernel,
    possibly in ScaleKernels; a ConstantKernel that is added is a bias of the readout, integrated out with it), whose
    order parameters and composition play no part; any mean. A model with a :class:`MultitaskRenormalizedKernel` is a
    network with several outputs (:class:`FittedOutputs`). Of other blocks no network is known.

    ``order_parameters["q"]`` is the posterior mean of ``lambda_L |v|^2 / N_L``, of a convolution with a dense readout
    of ``lambda_1 |v|^2 / (N B)``. ``log_evidence`` is log p(y | T), with
    ``stats["log_evidence_error"]``; on average it is too low, most so where chains do not follow. ``stats`` has the
    largest R-hat (``"r_hat"``; of the log likelihood, q and the training error), ``"monte_carlo_error"``, the standard
    error of the predicted means as a share of the predicted spread, ``"acceptance"``, ``"gradients"``, ``"draws"``.
    ``stats["converged"]`` is False, and ``message`` says so, where R-hat is above 1.1: the chains then sit in different
    modes or still drift; they are all in the mixture. Leave-one-out weighs the draws anew for every point, with
    Pareto-smoothed weights; ``left_out_shape`` tells for which points that holds.

    A finite width is needed. Cost on one CPU thread: about 10 s for P = 400, N = 50 at T = 0.01, 30 s for P = 1000; it
    grows with P N min(P, N). Memory: S states, and batches of bounded size in predictions.

    Args:
        num_chains: Chains, moved as one batch.
        num_draws: States kept of each chain.
        every: Transitions from one kept state to the next.
        spread: Of the log weights in one step of the annealing: smaller is slower and better.
        seed: Of all random numbers.
        progress: Called with (done, total).

    Raises:
        TypeError, ValueError: A model that is no network with independent noise, infinite width, a batch of models.
        ConvergenceError: Energies that are not finite.

    Reference: THEORY.md, section 10.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import Mixture, Sampled
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4).double()
        >>> model = NetworkGP(x, 2 * x[:, 0], gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
        >>> sampled, exact = (theory.fit(model) for theory in (Sampled(num_chains=50), Mixture()))
        >>> bool((sampled.predict(x)[0] - exact.predict(x)[0]).abs().max() < 0.02)   # a linear network: exact
        True
    """

    name = "sampled"
    has_outputs = True
    has_blocks = True

    def __init__(
        self,
        num_chains: int = 16,
        num_draws: int = 30,
        every: int = 4,
        spread: float = 0.7,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Check and store the options."""
        for name, number, least in (("num_chains", num_chains, 2), ("num_draws", num_draws, 4), ("every", every, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {number!r}")
        self.num_chains, self.num_draws, self.every = num_chains, num_draws, every
        self.spread, self.seed, self.progress = positive_number("spread", spread), seed, progress

    def _check(self, problem: Problem) -> None:
        temperature_of(problem)
        columns_of(problem)
        network_of(problem)

    def _fit(self, problem: Problem) -> FittedTheory:
        temperature = temperature_of(problem)
        annealing = self.annealing(problem)
        return self.drawn(problem, annealing, annealing.run(temperature))

    def restored(self, problem: Problem, record: dict[str, Any]) -> FittedSampled:
        """Return a fit of a frozen problem from the draws in its record."""
        like = problem.targets
        conditioned = SampledConditioned(problem, network_of(problem), record["states"].to(like.device))
        q, evidence = like.new_tensor(record["order_parameter"]), record["log_evidence"]
        if evidence is not None:
            evidence = torch.tensor(evidence, dtype=torch.float64, device=like.device)
        return FittedSampled(
            self, problem, conditioned, {"q": q}, q, record["message"], dict(record["stats"]), evidence
        )

    def annealing(self, problem: Problem, deadline: float | None = None) -> Annealing:
        """Return the chains of a problem at the prior."""
        return Annealing(
            network_of(problem),
            problem.inputs.double(),
            columns_of(problem) if isinstance(problem, OutputsProblem) else problem.residuals().double(),
            num_chains=self.num_chains,
            spread=self.spread,
            seed=self.seed,
            deadline=deadline,
            progress=self.progress,
        )

    def drawn(
        self, problem: Problem, annealing: Annealing, population: Population
    ) -> FittedSampled | FittedSampledOutputs:
        """Draw from the posterior at the population's temperature, which is to be the problem's."""
        draws = annealing.draw(population, self.num_draws, self.every)
        network = network_of(problem)
        states = annealing.target.complete(draws.states.flatten(0, 1).double(), annealing.generator)
        kind = SampledOutputsConditioned if isinstance(problem, OutputsProblem) else SampledConditioned
        conditioned = kind(problem, network, states)
        q = draws.order_parameter.mean()
        stats = _statistics(draws, conditioned) | {
            "log_evidence_error": population.error,
            "gradients": annealing.num_gradients,
            "draws": len(states),
        }
        r_hat, error = stats["r_hat"], stats["monte_carlo_error"]
        message = (
            f"{len(states)} networks of {self.num_chains} chains: largest R-hat {r_hat:.3f}, Monte Carlo error of the "
            f"means {100 * error:.2g} % of the predicted spread."
        )
        stats["converged"] = r_hat <= _AGREE
        if not stats["converged"]:
            message += (
                f" The chains disagree (R-hat above {_AGREE}): they sit in different modes or still drift; use more "
                "num_draws, a smaller spread or a higher temperature."
            )
        evidence = torch.tensor(population.log_evidence, dtype=torch.float64)
        like = problem.targets
        if isinstance(problem, OutputsProblem):
            q = conditioned.readout_gram()
        values, evidence = {"q": q.to(like)}, evidence.to(like.device)
        fitted = FittedSampledOutputs if isinstance(problem, OutputsProblem) else FittedSampled
        return fitted(self, problem, conditioned, values, values["q"], message, stats, evidence)


class FittedSampled(FittedTheory):
    """The sampled networks at a model's training data."""

    conditioned: SampledConditioned

    def record(self) -> dict[str, Any]:
        """Return the draws and what is known of them."""
        return {
            "states": self.conditioned.states,
            "order_parameter": float(self.order_parameters["q"]),
            "log_evidence": None if self.log_evidence is None else float(self.log_evidence),
            "message": self.message,
            "stats": self.stats,
        }

    @property
    def left_out_shape(self) -> Tensor:
        """Shape k of the importance weights of every point that is left out, ``P``: trusted below 0.7."""
        return self.conditioned.left_out_shape()

    @property
    def left_out_is_trusted(self) -> bool:
        """Whether leave-one-out holds: no more than one point in fifty has a shape above 0.7."""
        return bool((self.left_out_shape > TRUSTED).double().mean() <= 0.02)


def _statistics(draws: Draws, conditioned: SampledConditioned) -> dict[str, Any]:
    """R-hat of scalars, and the error of the means at the training points over their spread."""
    scalars = torch.stack([draws.log_likelihood, draws.order_parameter, draws.training_error], -1)
    r_hat = estimate(scalars).r_hat
    chains, count = draws.states.shape[:2]
    x = conditioned.problem.inputs
    means, variances = conditioned.moments(x[: min(len(x), 200)])
    grouped = means.unflatten(-2, (chains, count)).mean(-2)
    error = grouped.var(-2).mean() / chains
    spread = (variances.mean(-2) + means.var(-2)).mean()
    return {
        "r_hat": float(r_hat.max()),
        "monte_carlo_error": float((error / spread).sqrt()),
        "acceptance": draws.acceptance,
        "log_likelihood": draws.log_likelihood.mean().item(),
    }
