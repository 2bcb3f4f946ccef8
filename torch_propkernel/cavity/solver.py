"""The one-unit cavity theory solved by annealing a population of units from high temperature."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from .closure import Closure
from .one_unit import OneUnit, moments
from .population import Generation, Mover, Pool, effective_share, resample
from .response import Response, solve_response
from .self_consistency import Solution, self_consistent

BURN_IN = 24
"""Steps at the final temperature before units are kept: a multiple of the generations that the field is made of."""

KEPT = 20
"""Generations that the solution is made of, in BLOCKS groups for its Monte Carlo error."""

BLOCKS = 5

_MOVING = 4  # generations that the field is made of on the way
_MOST_STEPS = 160  # of averaging
_LEAST_SHARE = 0.25  # effective share below which a generation is dropped,
_SAFE_SHARE = 0.5  # that the newest one must keep when the temperature is lowered,
_GOOD_SHARE = 0.7  # and above which it may be lowered faster
_SLOWEST = 1.001
_MOST_ANNEALING = 2000


class Step(NamedTuple):
    """One step of the solve, for its history."""

    temperature: float
    order_parameter: float
    effective_share: float
    residual: float
    acceptance: float


class Anneal(NamedTuple):
    """What a solve returns.

    Attributes:
        solution: The self-consistent solution over all kept units.
        generations: The kept units.
        history: One entry for each step.
        seconds: Time taken.
        monte_carlo_error: Standard error of the watched sum, relative to it.
        full_change: Relative change of the watched sum with the closure E2 - m m^T, after one iteration.
        scale: Factor of the readout's variance that the layers below give; 1 without them.
    """

    solution: Solution
    generations: list[Generation]
    history: list[Step]
    seconds: float
    monte_carlo_error: float
    full_change: float
    scale: float


class _Cooling:
    """A population of units and the field that it makes, on their way from high temperature to the final one.

    Every step gives a new field until BURN_IN steps are done at the final temperature. Then B stays for as many steps
    as it takes to renew all generations, and only a follows in between.

    Attributes:
        temperature: The present one.
        covariance: V, averaged over the last steps.
        field: a.
        unit: The unit, with the readout's variance that the layers below leave it.
        scale: Their factor of it.
        history: One entry for each step.
        steps_at_final: Steps since the final temperature was reached.
    """

    def __init__(
        self,
        unit: OneUnit,
        prior: Tensor,
        targets: Tensor,
        final: float,
        num_units: int,
        generator: torch.Generator,
        dtype: torch.dtype,
        lower: Callable[[float], float] | None,
    ) -> None:
        """Draw the first generation from the prior."""
        self.unit, self.targets, self.final = unit, targets, final
        self._bare, self._lower, self.scale = unit, lower, 1.0
        self.num_units, self.generator = num_units, generator
        self.mover = Mover(unit, dtype, generator)
        self.generations = [self.mover.draw(num_units)]
        self.temperature = max(final, 1.0, 3.0 * unit.width * float(prior.diagonal().mean()))
        self.covariance, self.field = prior, torch.zeros_like(targets)
        self._fastest, self._trajectories = (1.25, 8) if final < 0.05 else (1.8, 4)
        self._ratio = self._fastest
        self.history: list[Step] = []
        self.steps_at_final = 0

    @property
    def arrived(self) -> bool:
        """Whether the temperature is the final one."""
        return self.temperature <= self.final

    def expected_steps(self) -> int:
        """Return about how many steps it takes to the final temperature."""
        return math.ceil(math.log(self.temperature / self.final) / math.log(self._fastest)) + 2

    def step(self) -> Generation:
        """Lower the temperature or keep it, move the newest units in the field, and the field with them."""
        if self._renewed:
            self._close()
        shares = self._shares(self._response)
        newest = self._move(shares)
        self.steps_at_final += int(self.arrived)
        if self._renewed:
            found = moments(self.unit, Pool.of(self.generations).features, self._response.tilt, self._response.weights)
            self.covariance = self.covariance + self._gain() * (found.conditional - self.covariance)
        self._record(shares[-1])
        if self._renewed and self._lower is not None:  # the next step begins with a new field
            self._rescale(self._lower)
        return newest

    @property
    def _renewed(self) -> bool:
        """Whether enough units are new for a new B."""
        return self.steps_at_final <= BURN_IN or self.steps_at_final % _MOVING == 0

    def _gain(self) -> float:
        """Return the part of a new V that is taken: 0.15 a step in the end, when all generations are new at once."""
        if not self.arrived or self.steps_at_final > BURN_IN:
            return 0.5
        return 0.3 if self.steps_at_final <= BURN_IN - 10 else 0.15

    def _rescale(self, lower: Callable[[float], float]) -> None:
        """Relax the scale of the layers below as V."""
        second_moment = float((self._response.weights * self._response.tilt.second_moment).sum())
        self.scale *= (lower(self._bare.precision * second_moment) / self.scale) ** self._gain()
        self.mover.unit = self.unit = self._bare.scaled(self.scale)

    def _shares(self, response: Response) -> list[float]:
        """Return the effective share of each generation."""
        return [effective_share(w / w.sum()) for w in response.weights.split(self.num_units)]

    def _close(self) -> None:
        """Close the field with V, at the lowest temperature to which the newest generation can follow."""
        closure = Closure.of(self.covariance, self.temperature, self.unit.width)
        pool = Pool.of(self.generations)
        for _ in range(40):
            trial = max(self.final, self.temperature / self._ratio) if self.history else self.temperature
            closure = closure.at(trial)
            precision = closure.precision()
            strength = self.unit.strength(pool.features, precision)
            response = solve_response(self.unit, pool, closure, self.targets, strength, self.field)
            if not math.isfinite(response.residual):
                raise ConvergenceError(
                    f"adaptive theory: expected finite numbers at temperature {trial:.3g}, got a residual of "
                    f"{response.residual}; use more units or rescaled inputs and targets"
                )
            share = self._shares(response)[-1]
            if self.arrived or share >= _SAFE_SHARE:
                break
            if not self.history:
                self.temperature *= 2.0
            elif self._ratio <= _SLOWEST:
                break
            else:
                self._ratio = math.sqrt(self._ratio)
        if not self.arrived and share > _GOOD_SHARE:
            self._ratio = min(self._fastest, self._ratio**1.3)
        self.temperature, self.field = trial, response.field
        self._closure, self._precision, self._response = closure, precision, response

    def _move(self, shares: list[float]) -> Generation:
        """Return the newest generation, resampled and moved in the field, which then follows it."""
        unit, newest = self.unit, self.generations[-1]
        weights = self._response.weights[-self.num_units :]
        chosen = resample(weights / weights.sum(), self.generator)
        placed = self.mover.move(newest.weights[chosen], self.field, self._precision, self._trajectories)
        strength = placed.strength.to(self.field.dtype)
        log_base = unit.tilt(strength, unit.pull(placed.features, self.field)).log_weight
        generation = Generation(placed.weights, placed.features, log_base - self._response.log_normalizer)
        kept = [k for k, share in enumerate(shares) if share >= _LEAST_SHARE][1 - _MOVING :]
        strengths = unit.strength_of(self._response.tilt).split(self.num_units)
        self.generations = [*(self.generations[k] for k in kept), generation]
        pool, strength = Pool.of(self.generations), torch.cat([*(strengths[k] for k in kept), strength])
        self._response = solve_response(unit, pool, self._closure, self.targets, strength, self.field)
        self.field = self._response.field
        return generation

    def _record(self, share: float) -> None:
        """Add to the history, and check that it goes on."""
        response = self._response
        q = self.unit.precision * float((response.weights * response.tilt.second_moment).sum())
        self.history.append(Step(self.temperature, q, min(share, 1.0), response.residual, self.mover.acceptance))
        if not math.isfinite(q):
            raise ConvergenceError(
                f"adaptive theory: expected a finite order parameter at temperature {self.temperature:.3g}, got {q}; "
                "use more units"
            )
        if len(self.history) > _MOST_ANNEALING and not self.arrived:
            raise ConvergenceError(
                f"adaptive theory: the temperature could not be lowered below {self.temperature:.3g} (asked for "
                f"{self.final:.3g}) in {len(self.history)} steps: the units condense; use more units, a larger width "
                "or more noise"
            )


def anneal(
    unit: OneUnit,
    prior: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    num_units: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    tolerance: float,
    lower: Callable[[float], float] | None = None,
    time_limit: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Anneal:
    """Solve the theory at temperature T, from high temperature down.

    On the way the variance of a bias falls with the temperature, so that one whitening serves.

    Args:
        unit: The unit.
        prior: Covariance of f of one unit under the prior, ``P x P``.
        targets: y, ``P``, in float64.
        temperature: T.
        num_units: Units in a generation.
        generator: For all random numbers.
        dtype: Of the units' motion.
        tolerance: Of the Monte Carlo error; more units are drawn until it is met, or until the time or the number of
            steps is up.
        lower: Finite layers below: the factor that they give the readout's variance, from the product of all order
            parameters, lambda E v^2. It relaxes with V; None for one.
        time_limit: Seconds after which no more units are drawn.
        progress: Called with (done, total) after every step.

    Raises:
        ConvergenceError: The temperature cannot be lowered, or a number is not finite.

    Reference: THEORY.md, eqs. (13) and (14).

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.cavity import OneUnit, anneal
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        >>> unit, prior = OneUnit(Identity(), x, width=50.0, precision=1.0), x @ x.mT / 50.0
        >>> options = {"num_units": 200, "generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
        >>> solved = anneal(unit, prior, y, 0.5, tolerance=1.0, **options)
        >>> len(solved.generations), solved.history[-1].temperature, solved.solution.response.residual < 1e-3
        (20, 0.5, True)
    """
    begin = time.monotonic()
    prior, targets = unit.noise.whiten_both(prior), unit.noise.whiten(targets)
    cooling = _Cooling(unit, prior, targets, temperature, num_units, generator, dtype, lower)
    total = cooling.expected_steps() + BURN_IN + KEPT

    def step() -> Generation:
        generation = cooling.step()
        if progress is not None:
            progress(min(len(cooling.history), total), total)
        return generation

    while not cooling.arrived:
        step()
    for _ in range(BURN_IN - cooling.steps_at_final):
        step()
    kept: list[Generation] = []
    stride, averaged, wanted, late = 1, 0, KEPT, False
    while True:
        while averaged < wanted and not late:
            generation = step()
            averaged += 1
            if averaged % stride == 0:
                kept.append(generation)
            late = time_limit is not None and time.monotonic() - begin > time_limit and len(kept) >= BLOCKS
        closure = Closure.of(cooling.covariance, temperature, unit.width)
        seen, known = cooling.unit, cooling.scale * prior
        whole = self_consistent(seen, Pool.of(kept), known, targets, closure, cooling.field)
        error = _monte_carlo_error(seen, kept, known, targets, whole)
        if error <= tolerance or late or averaged >= _MOST_STEPS:
            break
        total = len(cooling.history) + averaged
        kept, stride, wanted = kept[1::2], 2 * stride, 2 * averaged
    full = self_consistent(
        seen, Pool.of(kept), known, targets, whole.posterior, whole.response.field, full=True, iterations=1
    )
    full_change = abs(full.observable() / whole.observable() - 1.0)
    return Anneal(whole, kept, cooling.history, time.monotonic() - begin, error, full_change, cooling.scale)


def _monte_carlo_error(unit: OneUnit, kept: list[Generation], prior: Tensor, targets: Tensor, whole: Solution) -> float:
    """Return the standard error of the watched sum relative to it, from BLOCKS groups of generations."""
    size = len(kept) // BLOCKS
    values = []
    for start in range(0, BLOCKS * size, size):
        pool = Pool.of(kept[start : start + size])
        block = self_consistent(unit, pool, prior, targets, whole.posterior, whole.response.field, iterations=1)
        values.append(block.observable())
    return float(torch.tensor(values, dtype=torch.float64).std() / math.sqrt(BLOCKS)) / whole.observable()
