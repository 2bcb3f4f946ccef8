"""The posterior of a network's weights by annealing: a population of chains that cools from the prior."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._validation import positive_number
from ..exceptions import ConvergenceError
from .conditional import ReadoutLaw
from .feature_network import FeatureNetwork
from .row_space import reduce_to_row_space
from .targets import MarginalTarget

_HOTTEST = 100.0  # times the mean square of the targets: the first temperature, where the data say next to nothing
_LARGEST_STEP = 0.5  # of log T
_SMALLEST_STEP = 0.01
_RESAMPLE = 0.5  # of the chains of an island: an effective size below it
_ISLANDS = 2
_ACCEPTANCE = 0.75


@dataclass(frozen=True, eq=False)
class Population:
    r"""Chains at one temperature: weighted draws from :math:`p(w | y, T)`, and the evidence gathered on the way.

    Attributes:
        states: Whitened hidden weights, ``C x dim``, of the network that :class:`Annealing` moves.
        log_weights: Normalized log weights, ``C``.
        temperature: T.
        readout_factor: c, the variance of the readout's weights over that of the network; a bias keeps its own.
        log_evidence: Estimate of log p(y | T, c).
        variance: Of ``log_evidence``, as far as weights were spent in resampling.
        step_size: Of the leapfrog steps.

    Example:
        >>> two = torch.tensor([0.5, 0.5])
        >>> one = Population(torch.zeros(2, 1), two.log(), 1.0, 1.0, -3.0, 0.04, 0.1)
        >>> round(one.effective_size, 4), round(one.error, 4)
        (2.0, 0.2)
    """

    states: Tensor
    log_weights: Tensor
    temperature: float
    readout_factor: float
    log_evidence: float
    variance: float
    step_size: float

    @property
    def effective_size(self) -> float:
        """Effective number of chains, 1 / sum of squared weights."""
        return float(1.0 / self.log_weights.exp().square().sum())

    @property
    def error(self) -> float:
        """Standard error of the log evidence, from the spread of the weights and half the difference of the islands.

        Chains of one island descend from each other and move slowly, so that their weights alone would state half of
        the error. What all chains miss does not show.
        """
        within = self.variance + 1.0 / self.effective_size - 1.0 / len(self.log_weights)
        first, second = (torch.logsumexp(part, 0) for part in islands(self.log_weights))
        return math.sqrt(within + 0.25 * float(first - second) ** 2)


@dataclass(frozen=True, eq=False)
class Draws:
    """States of several chains at one temperature.

    Attributes:
        states: ``C x S x dim``.
        log_likelihood: log p(y | w), ``C x S``.
        order_parameter: Posterior mean of ``lambda_L |v|^2 / N_L`` given the state, ``C x S``.
        training_error: ``C x S``.
        population: The last states, from which it can go on.
        acceptance: Mean acceptance.
    """

    states: Tensor
    log_likelihood: Tensor
    order_parameter: Tensor
    training_error: Tensor
    population: Population
    acceptance: float


class Annealing:
    r"""Moves a population of networks from the prior to the posterior at any temperature: sequential Monte Carlo.

    .. math:: p_T(w) \propto N(w; 0, 1)\, p(y | w, T, c), \qquad
              p(y | w, T, c) = N(y; 0, T 1 + c\, w_L \Phi_w \Phi_w^T)

    The readout is integrated out, and its bias with it where there is one. Each step changes (T, c), multiplies the
    weight of a chain by the ratio of its likelihoods, resamples where the effective size falls below half of the
    chains, and moves every chain by Hamiltonian Monte Carlo that leaves the new posterior invariant. Chains form two
    islands, which do not mix until draws are made: their difference is part of the error. The product of the mean
    weights estimates p(y | T, c) without bias, so that its logarithm is too low on average: by about half of the
    variance of the logarithm, and by more where the chains do not follow. The size of a step of log T is such that the
    log weights of one step spread by ``spread``.

    The trajectories use a fixed diagonal metric :math:`(1 + j/T)^{1/2}`, j the mean squared derivative of the output
    with respect to a weight under the prior, summed over the points. Forces are computed in float32, energies in
    float64: the rounding of a force costs acceptance, not correctness. Where the training inputs do not span the
    input space, only the weights that they see are moved (:class:`RowSpaceTarget`).

    Shapes: x ``P x d``, y ``P`` (``P x D`` with ``num_outputs``). Cost: ``moves`` x ``leapfrogs`` batched gradients for
    each step, of a forward and backward pass and min(P, N) P N for each chain; 40 to 70 steps on five UCI sets of 280
    to 400 rows, down to T = 0.02 to 0.0005.

    Args:
        network: Architecture and prior; of any kind, its present weights play no part.
        x: Training inputs.
        y: Targets.
        num_chains: C, half of them on each island.
        moves: Transitions for each step.
        leapfrogs: Leapfrog steps for each transition.
        spread: Standard deviation of the log weights that one step may cause.
        seed: Of all random numbers.
        deadline: Value of ``time.monotonic()`` at which it stops with a :class:`ConvergenceError`.
        progress: Called with (done, total) in steps of log T, in per mille.

    Attributes:
        target: The target that is moved; ``target.complete`` exists where it is one of the row space.
        num_gradients: Batched gradients so far.

    Raises:
        TypeError, ValueError: Bad data, numbers out of range.
        ConvergenceError: While it runs: energies that are not finite, the deadline.

    Reference: Del Moral, Doucet and Jasra, J. Roy. Stat. Soc. B 68, 411 (2006); Neal, Stat. Comput. 11, 125 (2001);
        THEORY.md, section 10.

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import Annealing, FiniteNetwork
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> network = FiniteNetwork("identity", input_dim=1, width=1, dtype=torch.float64)
        >>> found = Annealing(network, x, x[:, 0], num_chains=200, seed=1).run(1.0)   # y = 1, f = v w
        >>> exact = -1.50377   # log of E_w N(1; 0, 1 + w^2)
        >>> abs(found.log_evidence - exact) < 4 * found.error < 0.2
        True
    """

    def __init__(
        self,
        network: FeatureNetwork,
        x: Tensor,
        y: Tensor,
        *,
        num_chains: int = 16,
        moves: int = 2,
        leapfrogs: int = 10,
        spread: float = 1.0,
        seed: int = 0,
        deadline: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Reduce the target to what the inputs see, and measure the metric."""
        for name, number, least in (("num_chains", num_chains, 2), ("moves", moves, 1), ("leapfrogs", leapfrogs, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, got {number!r}")
        self.target = reduce_to_row_space(MarginalTarget(network, x, y, 1.0), keep_weights=True)
        self._network, self._targets = self.target.network, self.target.y.double()
        self._x = self.target.x.double()
        self._x32 = self._x.float()
        self.num_chains, self._moves, self._leapfrogs = num_chains, moves, leapfrogs
        self._spread = positive_number("spread", spread)
        self.generator = torch.Generator(device=x.device).manual_seed(seed)
        self.deadline, self._progress = deadline, progress
        self.num_gradients = 0
        self._curvature = self._measure_curvature()

    # What is moved ------------------------------------------------------------------------------------------------

    def law(self, states: Tensor, temperature: float, readout_factor: float = 1.0) -> ReadoutLaw:
        """Return the readout's law at states ``C x dim``, in float64."""
        return self._law(self._network.features(self._x, states.double()), temperature, readout_factor)

    def _law(self, features: Tensor, temperature: float, readout_factor: float) -> ReadoutLaw:
        weights, bias = self._network.readout_prior
        return ReadoutLaw(features, self._targets, temperature, readout_factor * weights, bias)

    def _force(self, states: Tensor, temperature: float, readout_factor: float) -> Tensor:
        """Return the gradient of the energy at float32 states."""
        self.num_gradients += 1
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            features = self._network.features(self._x32, leaf)
        law = self._law(features.detach(), temperature, readout_factor)
        (gradient,) = torch.autograd.grad(features, leaf, law.feature_gradient())
        return gradient.add_(states)

    def _measure_curvature(self) -> Tensor:
        """Mean squared derivative of the outputs, summed over points, for each weight; alike for all units of a layer.

        A random combination z of the outputs, z ~ N(0, 1), has a squared derivative of that mean.
        """
        total, repeats = torch.zeros(self.target.dim, dtype=torch.float32, device=self._x.device), 8
        for _ in range(repeats):
            state = self._normal(32, self.target.dim).float()
            with torch.enable_grad():
                leaf = state.requires_grad_()
                features = self._network.features(self._x32, leaf)
                readout = self._normal(32, 1, features.shape[-1]).float() * math.sqrt(self._network.readout_prior[0])
                mixed = (features * readout * self._normal(32, features.shape[-2], 1).float()).sum()
            (gradient,) = torch.autograd.grad(mixed, leaf)
            total += gradient.square().mean(0) / repeats
        blocks = self._network.blocks
        pieces = total.split([rows * columns for rows, columns in blocks])
        means = [piece.unflatten(0, shape).mean(0).expand(shape) for piece, shape in zip(pieces, blocks, strict=True)]
        return torch.cat([mean.flatten() for mean in means])

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device=self._x.device)

    # Moves --------------------------------------------------------------------------------------------------------

    def start(self) -> Population:
        """Return chains drawn from the prior: infinite temperature, where log p(y | T) is counted from zero."""
        states = self._normal(self.num_chains, self.target.dim).float()
        weights = torch.full((self.num_chains,), -math.log(self.num_chains), dtype=torch.float64, device=states.device)
        return Population(states, weights, math.inf, 1.0, 0.0, 0.0, 0.1)

    @torch.no_grad()
    def run(self, temperature: float, start: Population | None = None) -> Population:
        """Cool to a temperature, from the prior or from another population."""
        return self.ladder([temperature], start)[-1]

    @torch.no_grad()
    def ladder(
        self,
        temperatures: Sequence[float],
        start: Population | None = None,
        enough: Callable[[list[Population]], bool] | None = None,
    ) -> list[Population]:
        """Cool through falling temperatures and return the population at each.

        Args:
            temperatures: Falling.
            start: Where to start; the prior if None.
            enough: Called with the populations so far after each rung; True stops.
        """
        here = start or self.start()
        path = [here.temperature, *temperatures]
        if any(not later < before for before, later in itertools.pairwise(path)):
            raise ValueError(f"temperatures: expected falling numbers, got {path}")
        found, law = [], None
        hottest = max(_HOTTEST * float(self._targets.square().mean()), 2.0 * temperatures[0])
        whole = math.log(hottest / temperatures[-1])
        for rung in temperatures:
            while here.temperature > rung:
                if math.isinf(here.temperature):
                    following = hottest
                else:
                    law = law or self.law(here.states, here.temperature, here.readout_factor)
                    step = self._step_of(here, law.temperature_gradient())
                    following = here.temperature * math.exp(-step)
                    if following < rung * math.exp(0.3 * step):
                        following = rung
                here, law = self._step(here, law, following, here.readout_factor)
                if self._progress is not None:
                    self._progress(round(1000 * (1 - math.log(here.temperature / temperatures[-1]) / whole)), 1000)
            found.append(here)
            if enough is not None and enough(found):
                break
        return found

    @torch.no_grad()
    def rescale(self, here: Population, readout_factor: float) -> Population:
        """Move a population to another readout factor at the same temperature."""
        law = None
        while here.readout_factor != readout_factor:
            law = law or self.law(here.states, here.temperature, here.readout_factor)
            step = self._step_of(here, law.scale_gradient())
            distance = math.log(readout_factor / here.readout_factor)
            following = readout_factor
            if abs(distance) > 1.3 * step:
                following = here.readout_factor * math.exp(math.copysign(step, distance))
            here, law = self._step(here, law, here.temperature, following)
        return here

    @torch.no_grad()
    def draw(self, here: Population, num_draws: int, every: int = 2) -> Draws:
        """Go on at the population's temperature and keep the states after every few transitions.

        Args:
            here: Where to start; it is resampled first.
            num_draws: S.
            every: Transitions from one draw to the next.
        """
        chosen = self._systematic(here.log_weights, len(here.states))
        even = torch.full_like(here.log_weights, -math.log(len(here.states)))
        here = replace(here, states=here.states[chosen], log_weights=even)
        law = self.law(here.states, here.temperature, here.readout_factor)
        step_size, kept, accepted = here.step_size, [], 0.0
        for done in range(num_draws):
            for _ in range(every):
                states, law, acceptance = self._transition(here, law, step_size)
                here = replace(here, states=states)
                if done < num_draws // 4:  # fixed afterwards, so that the posterior is left invariant
                    step_size *= math.exp(0.1 * (acceptance - _ACCEPTANCE))
                accepted += acceptance / (num_draws * every)
            kept.append((here.states, law.log_likelihood, _order_parameter(law), law.training_error()))
            if self._progress is not None:
                self._progress(done + 1, num_draws)
        states, likelihood, order, error = (torch.stack(column, 1) for column in zip(*kept, strict=True))
        return Draws(states, likelihood, order, error, replace(here, step_size=step_size), accepted)

    def _step_of(self, here: Population, slope: Tensor) -> float:
        """Return the step of a logarithm at which log likelihoods with this derivative spread as they may."""
        weights = here.log_weights.exp()
        spread = float((weights * (slope - (weights * slope).sum()).square()).sum().sqrt())
        return min(max(self._spread / max(spread, 1e-12), _SMALLEST_STEP), _LARGEST_STEP)

    def _step(
        self, here: Population, law: ReadoutLaw | None, temperature: float, readout_factor: float
    ) -> tuple[Population, ReadoutLaw]:
        """Reweight to another (T, c), resample where needed, move."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise ConvergenceError(
                f"time limit: reached at temperature {here.temperature:.3g} on the way to {temperature:.3g}; allow "
                "more time, or take a smaller width or fewer rows"
            )
        after = self.law(here.states, temperature, readout_factor)
        change = after.log_likelihood
        if math.isfinite(here.temperature):
            change = change - (law or self.law(here.states, here.temperature, here.readout_factor)).log_likelihood
        weights = here.log_weights + change
        gained = float(torch.logsumexp(weights, 0))
        if not math.isfinite(gained):
            raise ConvergenceError(
                f"energies at temperature {temperature:.3g}: expected finite numbers, got {change.tolist()}"
            )
        here = replace(
            here,
            log_weights=weights - gained,
            temperature=temperature,
            readout_factor=readout_factor,
            log_evidence=here.log_evidence + gained,
        )
        here, after = self._resampled(here, after)
        step_size, current = here.step_size, after
        for _ in range(self._moves):
            states, current, acceptance = self._transition(here, current, step_size)
            here = replace(here, states=states)
            step_size *= math.exp(0.15 * (acceptance - _ACCEPTANCE))
        return replace(here, step_size=step_size), current

    def _resampled(self, here: Population, law: ReadoutLaw) -> tuple[Population, ReadoutLaw]:
        """Draw the chains of an island in proportion to their weights, where few of them carry it; its weight stays."""
        count, chosen, weights, variance = len(here.states), [], [], here.variance
        for indices, own in zip(
            islands(torch.arange(count, device=here.states.device)), islands(here.log_weights), strict=True
        ):
            total = torch.logsumexp(own, 0)
            size = float(1.0 / (own - total).exp().square().sum())
            if size < _RESAMPLE * len(own):
                chosen.append(indices[self._systematic(own - total, len(own))])
                weights.append(torch.full_like(own, float(total) - math.log(len(own))))
                variance += float(total.exp()) ** 2 * (1.0 / size - 1.0 / len(own))
            else:
                chosen.append(indices)
                weights.append(own)
        if variance == here.variance:
            return here, law
        states = here.states[torch.cat(chosen)]
        here = replace(here, states=states, log_weights=torch.cat(weights), variance=variance)
        return here, self.law(states, here.temperature, here.readout_factor)

    def _systematic(self, log_weights: Tensor, count: int) -> Tensor:
        """Return so many indices in proportion to normalized weights."""
        first = torch.rand((), generator=self.generator, dtype=torch.float64, device=log_weights.device)
        points = (first + torch.arange(count, device=log_weights.device)) / count
        return torch.searchsorted(log_weights.exp().double().cumsum(0), points).clamp_max(len(log_weights) - 1)

    def _transition(self, here: Population, law: ReadoutLaw, step_size: float) -> tuple[Tensor, ReadoutLaw, float]:
        """One trajectory of every chain; returns states, their law and the mean acceptance."""
        at = (here.temperature, here.readout_factor)
        metric = (1.0 + here.readout_factor * self._curvature / here.temperature).sqrt()
        states, count = here.states, len(here.states)
        momentum = self._normal(*states.shape).float() * metric.sqrt()
        uniform = torch.rand(count, 1, generator=self.generator, dtype=torch.float32, device=states.device)
        steps = step_size * (0.6 + 0.8 * uniform)
        before = _energy(states, momentum, metric, law)
        drift, moved = steps / metric, states.clone()
        momentum = momentum - 0.5 * steps * self._force(moved, *at)
        for k in range(self._leapfrogs):
            moved = moved + drift * momentum
            momentum = momentum - (steps if k < self._leapfrogs - 1 else 0.5 * steps) * self._force(moved, *at)
        proposed = self.law(moved, *at)
        error = _energy(moved, momentum, metric, proposed) - before
        probability = torch.exp(-error.clamp_min(0.0)).nan_to_num(0.0)
        uniform = torch.rand(count, generator=self.generator, dtype=torch.float64, device=states.device)
        accept = uniform < probability
        law = proposed if bool(accept.all()) else proposed.where(accept, law)
        return torch.where(accept.unsqueeze(-1), moved, states), law, float(probability.mean())


def islands(values: Tensor) -> tuple[Tensor, ...]:
    """Return the parts of something that belong to the islands of chains."""
    return values.tensor_split(_ISLANDS)


def _energy(states: Tensor, momentum: Tensor, metric: Tensor, law: ReadoutLaw) -> Tensor:
    kinetic = 0.5 * (momentum.double().square() / metric).sum(-1)
    return kinetic + 0.5 * states.double().square().sum(-1) - law.log_likelihood


def _order_parameter(law: ReadoutLaw) -> Tensor:
    return law.order_parameter().diagonal(dim1=-2, dim2=-1).mean(-1)
