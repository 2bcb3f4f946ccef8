"""The best predictor of a data set: a network's hyperparameters, width and temperature from training data."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._tasks import map_tasks
from .._validation import positive_number, present
from ..activations import Activation
from ..exceptions import ConvergenceError
from ..inference import Problem
from ..models import NetworkGP
from ..networks.annealing import Annealing, Population
from ..theories import FittedTheory, InfiniteWidth, Sampled, Theory, get_theory
from ..theories.sampled_conditioned import SampledConditioned, network_of
from .auto import NetworkFit, Numbers, fit_network

WIDTH = 50
"""Width of the finite candidate where none is given."""

_RUNGS = tuple(10.0 ** (-0.25 * k) for k in range(2, 15))  # temperatures of unit variance, 0.3 to 3e-4
_INTERPOLATES = 1e-4  # a fitted temperature below it says nothing of the noise
_FIRST_TEMPERATURE = 0.02  # at which hyperparameters are then fitted
_FOLDS = 4
_FEWEST = 8  # rows for a choice between widths
_FOLD_DRAWS = 8
_WORTH = 0.5  # nats for each row: rungs further below the best are not looked at by folds
_HOPELESS = 0.3  # nats for each row: a rung so far below the best of its fold ends the folds' ladders
_ALIKE = 0.02  # nats for each row: rungs that folds do not tell apart
_FALLEN = 0.1  # nats for each row, below the best evidence, after which the ladder ends
_FACTOR = 2.0  # of the readout variance, in one step of its search
_FACTOR_STEPS = 3
_SHARES = {"ladder": 0.45, "folds": 0.85}  # of the time limit, by which a part is to be over


@dataclass(frozen=True)
class Candidate:
    """A predictor that competed.

    Attributes:
        theory: Its name.
        width: N, infinite for the Gaussian process.
        temperature: T.
        readout_factor: c, by which the fitted readout variance is multiplied.
        log_evidence: log p(y) at these hyperparameters, without priors of theirs.
        error: Standard error of ``log_evidence``; zero where it is exact.
        fold_log_density: Mean log density of rows in folds that were held out; None where it was not looked at.
        fold_error: Standard error of its difference to the best candidate, paired over rows; None likewise.
        seconds: Time spent on it.
        chosen: Whether it is the predictor.
    """

    theory: str
    width: float
    temperature: float
    readout_factor: float
    log_evidence: float
    error: float
    fold_log_density: float | None
    fold_error: float | None
    seconds: float
    chosen: bool = False


@dataclass(frozen=True, eq=False)
class NetworkPredictor:
    """A fitted predictor and how it was found.

    Attributes:
        fitted: The theory at the training data: predictions, errors, leave-one-out.
        model: The process with the chosen width, temperature and variances.
        prior: The hyperparameters fitted at infinite width.
        candidates: What competed, the infinite width first.
        message: What was chosen and why.
        seconds: Time of the whole fit.
    """

    fitted: FittedTheory
    model: NetworkGP
    prior: NetworkFit
    candidates: tuple[Candidate, ...]
    message: str
    seconds: float

    def __str__(self) -> str:
        """A table of the candidates and the message."""
        lines = [f"{'theory':>15} {'width':>6} {'T':>9} {'factor':>7} {'log p(y)':>18} {'folds':>15}"]
        for c in self.candidates:
            error = f" +- {c.error:.2g}" if c.error else ""
            folds = "-" if c.fold_log_density is None else f"{c.fold_log_density:.4f}"
            folds += f" +- {c.fold_error:.2g}" if c.fold_error else ""
            evidence = f"{c.log_evidence:.1f}{error}"
            line = f"{c.theory:>15} {c.width:>6g} {c.temperature:>9.3g} {c.readout_factor:>7.3g}"
            lines.append(f"{line} {evidence:>18} {folds:>15}" + (" *" if c.chosen else ""))
        return "\n".join([*lines, self.message])


def fit_predictor(
    x: Tensor,
    y: Tensor,
    activation: str | Activation = "erf",
    depth: int = 1,
    *,
    width: float | None = None,
    temperature: float | None = None,
    weight_variance: Numbers | None = None,
    bias_variance: Numbers | None = None,
    ard_weights: Numbers | None = None,
    theory: str | Theory = "auto",
    time_limit: float | None = None,
    max_rows: int | None = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor | None = None,
) -> NetworkPredictor:
    r"""Fit what is not given of a network to a data set, and choose the predictor: which width, which temperature.

    First ARD weights, variances and T by the evidence of the infinite width (:func:`fit_network`). Then, with
    ``theory="auto"`` or ``"sampled"`` and T or the width free, the network itself:

    1. chains of width 50 (or the given one) cool down a ladder of temperatures, which gives the evidence at each;
    2. four folds do the same on three quarters of the rows, and predict the others at every rung;
    3. folds decide the rung; where they place several within one standard error (paired over rows) and 0.02 nats per
       row of the best, the one of highest evidence wins;
    4. the readout variance is multiplied by powers of two as long as that raises the evidence;
    5. the infinite width competes with its own T. The network is chosen if folds give it the higher mean log density
       and its evidence is not lower by more than twice the error, or if folds prefer it by two standard errors. Both
       favor the infinite width: the sampled evidence is too low on average, folds average over fewer networks and leave
       fewer rows to learn from, and the hyperparameters, which are the best of the infinite width, have seen all rows.

    Where the fitted T is below 1e-4 the infinite width interpolates and says nothing of the noise: the finite network
    then gets hyperparameters that are fitted at T = 0.02. With ``theory="auto"`` and both width and T given, or any
    other theory, that theory is fitted at these hyperparameters.

    Standardize inputs and targets. All arithmetic is in float64. Cost for 400 rows and width 50: about a minute on one
    CPU thread; it grows with the rows.

    Args:
        x: Training inputs, ``P x d``.
        y: Training targets, ``P``.
        activation: A name or an :class:`Activation`.
        depth: Number of hidden layers.
        width: N of every layer; None to let 50 and infinity compete (other theories take 50).
        temperature: T; None to fit it.
        weight_variance: As for :func:`fit_network`.
        bias_variance: Likewise.
        ard_weights: Likewise.
        theory: "auto", a name in ``THEORIES``, or a :class:`Theory`.
        time_limit: Seconds. Folds that do not fit are left out; without any, the network is chosen by evidence
            and only where trusted leave-one-out agrees; the infinite width is chosen where the chains did not arrive.
        max_rows: Rows on which hyperparameters are fitted.
        seed: Of all random numbers.
        progress: Called with (done, total) after each part: hyperparameters, ladder, every fold, draws.
        executor: A ``concurrent.futures.Executor`` that takes descents of the hyperparameters and three of the four
            folds (the first one decides how far they go); None to do them one after the other. Without a time limit
            the numbers are the same.

    Returns:
        The predictor, its model, and the candidates.

    Raises:
        TypeError, ValueError: NaN, wrong shapes, numbers out of range, a theory that does not apply.

    Reference: THEORY.md, section 10.

    Example:
        >>> import torch
        >>> from torch_propkernel.tuning import fit_predictor
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
        >>> y = x[:, 0] + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
        >>> found = fit_predictor(x, y, "identity", bias_variance=0.0, theory="saddle")
        >>> found.fitted.theory, found.model.covar_module.width.item()
        (SaddlePoint(), 50.0)
    """
    started = time.monotonic()
    limit = None if time_limit is None else positive_number("time_limit", time_limit)
    if width is not None and not float(width) > 0:
        raise ValueError(f"width: expected a number > 0 or None, got {width!r}")
    kind = None if theory == "auto" else get_theory(theory)
    given = {"weight_variance": weight_variance, "bias_variance": bias_variance, "ard_weights": ard_weights}
    options: dict[str, Any] = {"max_rows": max_rows, "seed": seed, "executor": executor, **given}

    finite = float(WIDTH if width is None else width)
    if width is None and kind is None and (len(y) < _FEWEST or not bool(y.any())):
        finite = math.inf  # there is nothing that could speak for a finite width

    def check(first: NetworkFit) -> None:
        if kind is not None:
            kind.check(first.model(x, y, finite))

    prior = fit_network(x, y, activation, depth, temperature=temperature, check=check, **options)
    x, y = x.detach().double(), y.detach().double()
    searches = (kind is None and (width is None or temperature is None)) or isinstance(kind, Sampled)
    if math.isinf(finite) or not searches:
        chosen = InfiniteWidth() if math.isinf(finite) and kind is None else get_theory(theory)
        model = prior.model(x, y, finite)
        fitted = chosen.fit(model)
        seconds = time.monotonic() - started
        candidate = _candidate(fitted, finite, prior.temperature, seconds)
        why = "as asked for" if kind is not None or width is not None else "too few rows, or targets that are all zero"
        return NetworkPredictor(fitted, model, prior, (candidate,), f"{chosen.name}: {why}.", seconds)

    sampled = kind if isinstance(kind, Sampled) else Sampled(seed=seed)
    search = _Search(x, y, prior, finite, started, limit, sampled, progress, executor)
    own = prior
    if temperature is None and prior.temperature < _INTERPOLATES:
        own = fit_network(x, y, activation, depth, temperature=_FIRST_TEMPERATURE, **options)
    rescales = weight_variance is None and width is None
    return search.run(own, temperature, competes=width is None and kind is None, rescales=rescales)


class _Search:
    """The choice between the infinitely wide network and the sampled one."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        prior: NetworkFit,
        width: float,
        started: float,
        limit: float | None,
        theory: Sampled,
        progress: Callable[[int, int], None] | None,
        executor: Executor | None = None,
    ) -> None:
        self.x, self.y, self.prior, self.width = x, y, prior, width
        self.started, self.limit, self.theory, self.progress = started, limit, theory, progress
        self.executor = executor
        self.done = 0
        self.step()

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, _FOLDS + 3)

    def deadline(self, share: float) -> float | None:
        return None if self.limit is None else self.started + share * self.limit

    def run(self, own: NetworkFit, temperature: float | None, competes: bool, rescales: bool) -> NetworkPredictor:
        begun = time.monotonic()
        wide_model = self.prior.model(self.x, self.y, math.inf)
        wide = InfiniteWidth().fit(wide_model)
        wide_seconds = time.monotonic() - begun
        begun = time.monotonic()
        problem = Problem.frozen(own.model(self.x, self.y, self.width))
        unit = float(self.y.square().mean()) or 1.0
        rungs = [unit * rung for rung in _RUNGS] if temperature is None else [temperature]
        annealing = self.theory.annealing(problem, self.deadline(_SHARES["ladder"] if competes else 0.9))
        populations: list[Population] = []
        late = ""
        try:
            annealing.ladder(rungs, enough=lambda found: self._keep(populations, found))
        except ConvergenceError as error:
            if not populations and not competes:
                raise
            late = f" The ladder ended early: {error}."
        if not populations:
            return self._wide(wide, wide_model, wide_seconds, [], f"the chains did not arrive.{late}", None)
        self.step()
        asked = competes or len(populations) > 1  # whether folds have something to decide
        folds = self._folds(own, populations) if asked and len(self.y) >= _FEWEST else None
        rung = populations[self._best_rung(populations, folds)]
        annealing.deadline = self.deadline(1.0)
        seen = self._rescaled(annealing, rung) if rescales else []
        population = max([rung, *seen], key=lambda p: p.log_evidence)
        fitted, model = self._drawn(own, annealing, population)
        self.step()
        wins, why = self._judge(wide, population, folds, fitted) if competes else (True, "as asked for")
        seconds = time.monotonic() - begun
        found = [
            Candidate(
                self.theory.name,
                self.width,
                p.temperature,
                p.readout_factor,
                p.log_evidence,
                p.error,
                *self._fold(folds, p),
                seconds if p is population else 0.0,
                wins and p is population,
            )
            for p in [*populations, *seen]
        ]
        if not wins:
            return self._wide(wide, wide_model, wide_seconds, found, f"{why}.{late}", folds)
        message = (
            f"sampled, width {self.width:g}, T = {population.temperature:.3g}, readout variance times "
            f"{population.readout_factor:.3g}: {why}.{late} {fitted.message}"
        )
        first = _candidate(wide, math.inf, self.prior.temperature, wide_seconds, self._fold(folds, None), chosen=False)
        return NetworkPredictor(fitted, model, own, (first, *found), message, time.monotonic() - self.started)

    def _wide(
        self,
        wide: FittedTheory,
        model: NetworkGP,
        seconds: float,
        others: list[Candidate],
        why: str,
        folds: _Folds | None,
    ) -> NetworkPredictor:
        first = _candidate(wide, math.inf, self.prior.temperature, seconds, self._fold(folds, None))
        message = f"infinite_width, T = {self.prior.temperature:.3g}: {why}"
        return NetworkPredictor(wide, model, self.prior, (first, *others), message, time.monotonic() - self.started)

    def _keep(self, populations: list[Population], found: list[Population]) -> bool:
        populations.append(found[-1])
        best = max(p.log_evidence for p in found)
        return found[-1].log_evidence < best - _FALLEN * len(self.y) - 2.0 * found[-1].error

    # Folds --------------------------------------------------------------------------------------------------------

    def _folds(self, own: NetworkFit, populations: list[Population]) -> _Folds | None:
        """Predict every row from three quarters of the others, at each rung worth it and at infinite width."""
        best = max(p.log_evidence for p in populations)
        worth = [p.temperature for p in populations if p.log_evidence > best - _WORTH * len(self.y)]
        deadline = self.deadline(_SHARES["folds"])
        generator = torch.Generator().manual_seed(self.theory.seed)
        order = torch.randperm(len(self.y), generator=generator).to(self.y.device)
        ends = None if deadline is None else time.time() + deadline - time.monotonic()  # also on another machine
        folds = [
            _Fold(self.x, self.y, part, self.prior, own, self.width, self.theory, ends)
            for part in order.tensor_split(_FOLDS)
        ]
        first = folds[0].densities(worth, shortens=True)  # which decides how far the others go
        if first is None:
            return None
        self.step()
        worth = worth[: len(first) - 1]
        tasks = [(fold, worth) for fold in folds[1:]]
        others = map_tasks(_densities_of, tasks, self.executor, lambda *_: self.step())
        whole = [(fold, found) for fold, found in zip(folds, [first, *others], strict=True) if found is not None]
        rows = torch.cat([fold.part for fold, _ in whole]).argsort()  # the order of the rows, out of time without some
        wide, *rungs = torch.cat([found for _, found in whole], -1)[:, rows]
        return _Folds(wide, dict(zip(worth, rungs, strict=True)))

    def _fold(self, folds: _Folds | None, population: Population | None) -> tuple[float | None, float | None]:
        """Mean log density, and the error of its difference to the infinite width."""
        if folds is None:
            return None, None
        if population is None:
            return float(folds.wide.mean()), None
        found = folds.rungs.get(population.temperature)
        if found is None:
            return None, None
        return float(found.mean()), _error(found - folds.wide)

    def _best_rung(self, populations: list[Population], folds: _Folds | None) -> int:
        evidence = torch.tensor([p.log_evidence for p in populations])
        if folds is None:
            return int(evidence.argmax())
        best = max(folds.rungs.values(), key=lambda density: float(density.mean()))
        allowed = torch.tensor(
            [
                (density := folds.rungs.get(p.temperature)) is not None
                and float((best - density).mean()) <= min(_error(best - density), _ALIKE)
                for p in populations
            ]
        )
        return int(torch.where(allowed, evidence, -torch.inf).argmax())

    # The readout's variance and the draws -------------------------------------------------------------------------

    def _rescaled(self, annealing: Annealing, start: Population) -> list[Population]:
        """Climb the evidence in powers of two of the readout variance; return what was seen."""
        with torch.no_grad():
            slope = annealing.law(start.states, start.temperature).scale_gradient()
        mean = float((start.log_weights.exp() * slope).sum())
        seen: list[Population] = []
        if abs(mean) < 2.0 * float(slope.std()) / math.sqrt(len(slope)):
            return seen
        try:
            for step in range(1, _FACTOR_STEPS + 1):
                here = seen[-1] if seen else start
                seen.append(annealing.rescale(here, _FACTOR ** math.copysign(step, mean)))
                if seen[-1].log_evidence < here.log_evidence:
                    break
        except ConvergenceError:  # out of time: what was seen serves
            pass
        return seen

    def _drawn(self, own: NetworkFit, annealing: Annealing, population: Population) -> tuple[FittedTheory, NetworkGP]:
        variances = (*own.weight_variance[:-1], own.weight_variance[-1] * population.readout_factor)
        prior = dataclasses.replace(own, weight_variance=variances, temperature=population.temperature)
        model = prior.model(self.x, self.y, self.width)
        return self.theory.drawn(Problem.frozen(model), annealing, population), model

    def _judge(
        self,
        wide: FittedTheory,
        population: Population,
        folds: _Folds | None,
        fitted: FittedTheory,
    ) -> tuple[bool, str]:
        """Whether the finite network is chosen, and why."""
        gain = population.log_evidence - float(present(wide.log_evidence, "log_evidence"))
        evidence = (
            f"its evidence is {'higher' if gain > 0 else 'lower'} by {abs(gain):.3g} +- {population.error:.2g} nats"
        )
        against = gain < -2.0 * population.error
        density = None if folds is None else folds.rungs.get(population.temperature)
        if folds is None or density is None:
            trusted = getattr(fitted, "left_out_is_trusted", False)
            left, other = (present(f.leave_one_out().log_density, "log_density") for f in (fitted, wide))
            better = trusted and float((left - other).mean()) > 0
            how = "leave-one-out agrees" if better else "leave-one-out does not confirm it"
            return gain > 2.0 * population.error and better, f"{evidence}, {how}, and there was no time for folds"
        difference = density - folds.wide
        mean, error = float(difference.mean()), _error(difference)
        held = f"folds place the network {'above' if mean > 0 else 'below'} the infinite width by {abs(mean):.3g} +- "
        held += f"{error:.2g} nats per row"
        return mean > 0 and (not against or mean > 2.0 * error), f"{evidence}, and {held}"


@dataclass(frozen=True)
class _Fold:
    """Rows that are held out, and what predicts them from the others until the clock says ``ends``."""

    x: Tensor
    y: Tensor
    part: Tensor
    prior: NetworkFit
    own: NetworkFit
    width: float
    theory: Sampled
    ends: float | None

    def densities(self, worth: Sequence[float], shortens: bool = False) -> Tensor | None:
        """Return log densities at infinite width and at the rungs, ``(1 + R) x m``; None where time is over.

        Args:
            worth: Rungs.
            shortens: Whether the ladder ends at a rung without hope.
        """
        left = None if self.ends is None else self.ends - time.time()
        if left is not None and left <= 0:
            return None
        inside = torch.ones(len(self.y), dtype=torch.bool, device=self.y.device)
        inside[self.part] = False
        rows = torch.nonzero(inside).squeeze(-1)
        x, y, test_x, test_y = self.x[rows], self.y[rows], self.x[self.part], self.y[self.part]
        plain = InfiniteWidth().fit(self.prior.model(x, y, math.inf)).error(test_x, test_y)
        found = [present(plain.log_density, "log_density")]
        model = self.own.model(x, y, self.width)
        deadline = None if left is None else time.monotonic() + left
        annealing = self.theory.annealing(Problem.frozen(model), deadline)
        here: Population | None = None
        best = -math.inf
        try:
            for rung in worth:
                here = annealing.run(rung, here)
                model.likelihood.noise = rung
                problem = Problem.frozen(model)
                draws = annealing.draw(here, _FOLD_DRAWS)
                states = annealing.target.complete(draws.states.flatten(0, 1).double(), annealing.generator)
                posterior = SampledConditioned(problem, network_of(problem), states)
                with torch.no_grad():
                    density = present(posterior.error(test_x, test_y).log_density, "log_density")
                found.append(density)
                here = draws.population
                best = max(best, float(density.mean()))
                if shortens and float(density.mean()) < best - _HOPELESS:
                    break
        except ConvergenceError:  # out of time: whole folds serve
            return None
        return torch.stack(found)


def _densities_of(task: tuple[_Fold, Sequence[float]]) -> Tensor | None:
    fold, worth = task
    return fold.densities(worth)


@dataclass(frozen=True)
class _Folds:
    """Log densities of every row when its fold was held out, ``P``: at infinite width, and of the network by T."""

    wide: Tensor
    rungs: dict[float, Tensor]


def _error(difference: Tensor) -> float:
    return float(difference.std() / math.sqrt(len(difference)))


def _candidate(
    fitted: FittedTheory,
    width: float,
    temperature: float,
    seconds: float,
    folds: tuple[float | None, float | None] = (None, None),
    chosen: bool = True,
) -> Candidate:
    evidence = math.nan if fitted.log_evidence is None else float(fitted.log_evidence)
    return Candidate(fitted.theory.name, width, temperature, 1.0, evidence, 0.0, *folds, seconds, chosen)
