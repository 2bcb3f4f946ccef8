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
from .one_unit import Moments, OneUnit, moments
from .population import Generation, Mover, Pool, effective_share, resample
from .response import Response, solve_response
from .shared_noise import SharedNoise

BURN_IN = 25
"""Steps at the final temperature before units are kept."""

KEPT = 20
"""Generations that the solution is made of, in BLOCKS groups for its Monte Carlo error."""

BLOCKS = 5

_MOVING = 4  # generations that the field is made of on the way
_FIRST_STEPS = 20  # of averaging; doubled until the tolerance is met
_MOST_STEPS = 160
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


class Solution(NamedTuple):
    """A self-consistent field, and the moments of the weighted units in it.

    Attributes:
        field: B and C of the field in which the units are.
        posterior: Those of the units' own V in this field, which differ by ``change``.
        response: a, and the units' weights.
        moments: m, E2 and V over the units.
        change: Relative difference of V between the last two iterations at fixed units.
        rho: Coefficient of the control variate, see :meth:`Pool.control`.
        correction: Delta, which is part of the moments, ``P x P``.
        noise: In whose coordinates all of these are; the methods return what is true of the points themselves.
    """

    field: Closure
    posterior: Closure
    response: Response
    moments: Moments
    change: float
    rho: float
    correction: Tensor
    noise: SharedNoise

    def left_out_variance(self) -> Tensor:
        """Return the variance of f at each training point given the others at a fixed C, ``P``."""
        return 1.0 / self.precision_diagonal() - self.posterior.temperature

    def precision_diagonal(self) -> Tensor:
        """Return the diagonal of A^{-1}, ``P``."""
        vectors = self.noise.whiten(self.posterior.vectors.mT).mT
        return vectors.square() @ (1.0 / self.posterior.total_values)

    def residuals(self) -> Tensor:
        """Return A^{-1} (y - N mu) = a - B m, which is (y - E f) / T, ``P``."""
        return self.noise.whiten(self.response.field - self.field.apply(self.field.field, self.response.mean))

    def training_variance(self) -> Tensor:
        """Return the variance of f at the training points, ``P``."""
        temperature = self.posterior.temperature
        return temperature - temperature**2 * self.precision_diagonal()

    def training_error(self) -> Tensor:
        """Return E (y - f)^2 averaged over the training points."""
        return ((self.field.temperature * self.residuals()).square() + self.training_variance()).mean()

    def observable(self) -> float:
        """Return the mean squared error of a point given the others at a fixed C: its noise is that of predictions."""
        away = self.residuals() / self.precision_diagonal()
        return float((away.square() + self.left_out_variance()).mean())


class Anneal(NamedTuple):
    """What a solve returns.

    Attributes:
        solution: The self-consistent solution over all kept units.
        blocks: That over each of the BLOCKS groups of generations alone.
        generations: The kept units.
        history: One entry for each step.
        seconds: Time taken.
        full_change: Relative change of the watched sum with the closure E2 - m m^T, after one iteration.
        scale: Factor of the readout's variance that the layers below give; 1 without them.
    """

    solution: Solution
    blocks: list[Solution]
    generations: list[Generation]
    history: list[Step]
    seconds: float
    full_change: float
    scale: float


def self_consistent(
    unit: OneUnit,
    pool: Pool,
    prior: Tensor,
    targets: Tensor,
    start: Closure,
    vector: Tensor,
    *,
    full: bool = False,
    iterations: int = 2,
    tolerance: float = 1e-3,
) -> Solution:
    """Iterate closure and response a few times at fixed units, from a start nearby.

    Not more than a few times: a field far from that in which the units were drawn leaves few of them.

    Args:
        unit: The unit.
        pool: Weighted units.
        prior: Covariance of f of one unit under the prior, ``P x P``, whitened by the unit's noise.
        targets: y, whitened likewise.
        start: A closure, whose temperature is kept.
        vector: First a.
        full: Close with E2 - m m^T, the whole covariance, instead of that given ``|v|``.
        iterations: At most so many.
        tolerance: Of the relative change of V.

    Reference: THEORY.md, eqs. (13) and (14).

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.cavity import Closure, OneUnit, self_consistent
        >>> from torch_propkernel.cavity.population import Mover, Pool
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        >>> unit, prior = OneUnit(Identity(), x, width=50.0, precision=1.0), x @ x.mT / 50.0
        >>> drawn = Mover(unit, torch.float64, torch.Generator().manual_seed(0)).draw(5000)   # from the prior
        >>> solution = self_consistent(unit, Pool.of([drawn]), prior, y, Closure.of(prior, 0.5, 50.0), 0 * y)
        >>> solution.change < 0.01, bool((0.5 * solution.residuals() - 1 / 3).abs().max() < 0.02)   # y - f
        (True, True)
    """
    closure, posterior = start, start
    size = torch.linalg.norm(start.values)
    response = solve_response(unit, pool, closure, targets, vector)
    vector = response.field
    strength = unit.strength(pool.features, closure.precision().to(pool.features.dtype)).double()
    rho = pool.control(unit, strength, response.weights * response.tilt.second_moment)
    correction = pool.correction(unit, prior, rho)
    for iteration in range(iterations + 1):
        response = solve_response(unit, pool, closure, targets, vector, correction)
        vector = response.field
        found = moments(unit, pool.features, response.tilt, response.weights)
        found = found._replace(mean=response.mean, second=found.second + correction)
        conditional = found.conditional + correction
        if full:
            conditional = found.second - torch.outer(found.mean, found.mean)
        found = found._replace(conditional=conditional)
        posterior = Closure.of(conditional, closure.temperature, closure.width)
        change = float(torch.linalg.norm(conditional - closure.matrix(closure.values)) / size)
        if change < tolerance or iteration == iterations:
            break
        closure = posterior
    return Solution(closure, posterior, response, found, change, rho, correction, unit.noise)


def anneal(
    unit: OneUnit,
    prior: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    num_units: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    is_accurate: Callable[[Solution, list[Solution]], bool],
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
        is_accurate: Whether the Monte Carlo error, read off the blocks, is small enough; more units are drawn until it
            is, or until the time or the number of steps is up.
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
        >>> solved = anneal(unit, prior, y, 0.5, is_accurate=lambda whole, blocks: True, **options)
        >>> len(solved.generations), solved.history[-1].temperature, solved.solution.response.residual < 1e-3
        (20, 0.5, True)
    """
    begin = time.monotonic()
    prior, targets = unit.noise.whiten_both(prior), unit.noise.whiten(targets)
    mover = Mover(unit, dtype, generator)
    generations = [mover.draw(num_units)]
    covariance = prior
    now = max(temperature, 1.0, 3.0 * unit.width * float(prior.diagonal().mean()))
    field = torch.zeros_like(targets)
    gentle = temperature < 0.05
    fastest, trajectories = (1.25, 8) if gentle else (1.8, 4)
    ratio, history, started = fastest, [], False
    bare, scale = unit, 1.0
    kept: list[Generation] = []
    stride, countdown, done_at_final = 1, 1, 0
    expected_annealing = math.ceil(math.log(now / temperature) / math.log(fastest)) + 2
    last_total = expected_annealing + BURN_IN + _FIRST_STEPS
    steps_wanted = _FIRST_STEPS
    result: tuple[Solution, list[Solution]] | None = None
    while True:
        at_end = now <= temperature
        closure = Closure.of(covariance, now, unit.width)
        pool = Pool.of(generations)
        shares = [0.0]
        for _ in range(40):
            trial = now if at_end or not started else max(temperature, now / ratio)
            response = solve_response(unit, pool, closure.at(trial), targets, field)
            if not math.isfinite(response.residual):
                raise ConvergenceError(
                    f"adaptive theory: expected finite numbers at temperature {trial:.3g}, got a residual of "
                    f"{response.residual}; use more units or rescaled inputs and targets"
                )
            shares = [effective_share(w / w.sum()) for w in response.weights.split(num_units)]
            if at_end or shares[-1] >= _SAFE_SHARE:
                break
            if not started:
                now *= 2.0
            elif ratio <= _SLOWEST:
                break
            else:
                ratio = math.sqrt(ratio)
        if not at_end and shares[-1] > _GOOD_SHARE:
            ratio = min(fastest, ratio**1.3)
        started, now, field = True, trial, response.field
        closure = closure.at(now)

        newest, precision = generations[-1], closure.precision()
        newest_weights = response.weights[-num_units:]
        chosen = resample(newest_weights / newest_weights.sum(), generator)
        weights, features = mover.move(newest.weights[chosen], field, precision, trajectories)
        tilt = unit.tilt(
            unit.strength(features, precision.to(dtype)).double(),
            unit.pull(features, field.to(dtype)).double(),
        )
        generation = Generation(weights, features, tilt.log_weight - response.log_normalizer)
        recent = zip(generations, shares, strict=True)
        generations = [old for old, share in recent if share >= _LEAST_SHARE][-(_MOVING - 1) :] + [generation]

        response = solve_response(unit, Pool.of(generations), closure, targets, field)
        field = response.field
        found = moments(unit, Pool.of(generations).features, response.tilt, response.weights)
        gain = 0.5 if now > temperature else (0.3 if done_at_final < BURN_IN - 10 else 0.15)
        covariance = covariance + gain * (found.conditional - covariance)
        second_moment = float((response.weights * response.tilt.second_moment).sum())
        q = unit.precision * second_moment
        history.append(Step(now, q, min(shares[-1], 1.0), response.residual, mover.acceptance))
        if not math.isfinite(q):
            raise ConvergenceError(
                f"adaptive theory: expected a finite order parameter at temperature {now:.3g}, got {q}; use more units"
            )
        if len(history) > _MOST_ANNEALING and now > temperature:
            raise ConvergenceError(
                f"adaptive theory: the temperature could not be lowered below {now:.3g} (asked for {temperature:.3g}) "
                f"in {len(history)} steps: the units condense; use more units, a larger width or more noise"
            )
        if lower is not None:
            scale *= (lower(bare.precision * second_moment) / scale) ** gain
            mover.unit = unit = bare.scaled(scale)
        if progress is not None:
            progress(min(len(history), last_total), last_total)
        if now > temperature:
            continue
        done_at_final += 1
        if done_at_final <= BURN_IN:
            continue
        countdown -= 1
        if countdown == 0:
            kept.append(generation)
            countdown = stride
        averaged = done_at_final - BURN_IN
        late = time_limit is not None and time.monotonic() - begin > time_limit and len(kept) >= BLOCKS
        if averaged < steps_wanted and not late:
            continue
        closure, known = Closure.of(covariance, now, unit.width), scale * prior
        whole = self_consistent(unit, Pool.of(kept), known, targets, closure, field)
        size = len(kept) // BLOCKS
        groups = [Pool.of(kept[k * size : (k + 1) * size]) for k in range(BLOCKS)]
        blocks = [
            self_consistent(unit, group, known, targets, whole.posterior, whole.response.field, iterations=1)
            for group in groups
        ]
        result = (whole, blocks)
        if is_accurate(whole, blocks) or late or averaged >= _MOST_STEPS:
            break
        steps_wanted, stride = 2 * averaged, 2 * stride
        last_total = len(history) + steps_wanted - averaged
        kept, countdown = kept[1::2], stride
    whole, blocks = result
    full = self_consistent(
        unit, Pool.of(kept), known, targets, whole.posterior, whole.response.field, full=True, iterations=1
    )
    full_change = abs(full.observable() / whole.observable() - 1.0)
    return Anneal(whole, blocks, kept, history, time.monotonic() - begin, full_change, scale)
