"""What ``fit`` computes: order parameters and errors of one network, theories beside it, and a list of widths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._validation import present
from ..inference import ErrorEstimate, Problem
from ..models import NetworkGP
from ..theories import Adaptive, FittedTheory, Sampled, Theory, WidthSweep, get_theory, width_sweep
from ..tuning import NetworkPredictor
from .comparison import Compared, compare, coverage_95, timed
from .data import Rows
from .network import Network
from .steps import steps

BESIDE = ("infinite_width", "free_scale", "saddle", "mixture")
"""What stands beside every network: each costs milliseconds."""

ADAPTIVE_UNITS = 200
ADAPTIVE_SECONDS = 2.5e-4
"""Of the adaptive theory with so many units, times the square of the training rows: measured at 231."""

DEFAULT_WIDTHS = (10.0, 15.0, 22.0, 32.0, 46.0, 68.0, 100.0, 150.0, 220.0, 320.0, 460.0, 680.0, 1000.0)


@dataclass(frozen=True)
class Errors:
    """Errors of one theory, in the targets' own units squared.

    Attributes:
        leave_one_out: From the training rows alone.
        test: At the held-out rows, or None.
    """

    leave_one_out: ErrorEstimate
    test: ErrorEstimate | None


@dataclass(frozen=True)
class Analysis:
    """Results of one fit.

    Attributes:
        model: The network's process, with its order parameters solved.
        saddle: The saddle point of the network's own widths.
        errors: Of the network.
        free_scale: The baseline with a free scale.
        free_errors: Of the baseline.
        infinite_width: The infinitely wide network with the same hyperparameters.
        comparison: Theories on the held-out rows, or None if nothing is held out.
        predicting: Errors of the theory whose predictions the user wants.
        wanted: That theory.
        predictor: How it was chosen from the training rows alone; None where a theory was named.
        left_out: Names of theories that were left out for lack of time.
        sweep: Errors and order parameters of all widths, or None where all widths are infinite.
        one_factorization: Whether the sweep came from one factorization.
    """

    model: NetworkGP
    saddle: FittedTheory
    errors: Errors
    free_scale: FittedTheory
    free_errors: Errors
    infinite_width: FittedTheory
    comparison: tuple[Compared, ...] | None
    predicting: Errors
    sweep: WidthSweep | None
    one_factorization: bool
    wanted: FittedTheory
    predictor: NetworkPredictor | None = None
    left_out: tuple[str, ...] = ()


def sweep_widths(width: tuple[float, ...], first: tuple[float, ...]) -> Tensor | None:
    """Return all widths to solve, ``W x L``: the network's own, and those with its first finite layer set to ``first``.

    The finite layers keep their ratios and infinite ones stay infinite. None if all layers are infinite.

    Example:
        >>> sweep_widths((100.0, 50.0), (10.0, 100.0, 200.0))
        tensor([[ 10.,   5.],
                [100.,  50.],
                [200., 100.]], dtype=torch.float64)
    """
    own = torch.tensor(width, dtype=torch.float64)
    finite = torch.isfinite(own)
    if not bool(finite.any()):
        return None
    if not all(math.isfinite(number) and number > 0 for number in first):
        raise ValueError(f"--widths: expected finite numbers > 0, got {list(first)}")
    reference = own[finite][0]
    numbers = sorted({*first, float(reference)})
    return torch.stack([torch.where(finite, own * (number / reference), torch.inf) for number in numbers])


def analyze(
    network: Network,
    rows: Rows,
    widths: tuple[float, ...] | None,
    theory: Theory | None = None,
    predictor: NetworkPredictor | None = None,
    seconds_left: float | None = None,
) -> Analysis:
    """Fit one network by several theories, and sweep the width, from one kernel matrix and one reduction.

    Args:
        network: The network.
        rows: Standardized data.
        widths: Of the first finite layer; if None, a grid, or only the network's own where each needs its own fit.
        theory: The one whose predictions the user wants; the predictor's, or the saddle point, if None.
        predictor: What was chosen from the training rows; the adaptive theory then stands beside it.
        seconds_left: For the adaptive theory beside a predictor, which is left out where it takes longer.
    """
    model = network.model(rows.x, rows.y)
    problem = Problem.frozen(model)
    scalar = problem.network.is_scalar
    table = sweep_widths(network.width, widths if widths is not None else DEFAULT_WIDTHS if scalar else ())
    theories = {name: get_theory(name) for name in BESIDE if name != "mixture" or scalar}
    fitted, errors, seconds, left_out = dict[str, FittedTheory](), dict[str, Errors](), dict[str, float](), []
    known = {} if predictor is None else {predictor.fitted.theory.name: predictor.fitted}
    if predictor is None:
        theories |= {theory.name: theory} if theory is not None else {}
    elif len(network.width) == 1 and table is not None and "adaptive" not in known:
        if seconds_left is None or seconds_left >= ADAPTIVE_SECONDS * len(rows.y) ** 2:
            theories["adaptive"] = Adaptive(num_units=ADAPTIVE_UNITS, time_limit=1.0)  # once, whatever its error
        else:
            left_out.append("adaptive")
    with steps(len(theories) + 1 + (table is not None)) as step, torch.no_grad():
        if scalar:
            problem.spectrum(eigenvectors=True)  # answers everything below
        for name, each in theories.items():
            step(name)
            with timed(seconds, name):
                fitted[name] = each.fit(problem)
                test = _held_out(fitted[name], rows)
            errors[name] = Errors(rows.in_target_units(fitted[name].leave_one_out()), test)
        name = "saddle" if theory is None else theory.name
        if predictor is not None:
            name, sampled = predictor.fitted.theory.name, _sampled(predictor, network, rows)
            known |= {} if sampled is None else {"sampled": sampled}
            for other, found in known.items():
                if other not in fitted:
                    step(other)
                    fitted[other] = found
                    seconds[other] = sum(one.seconds for one in predictor.candidates if one.theory == other)
                    with timed(seconds, other):
                        test = _held_out(found, rows)
                    errors[other] = Errors(rows.in_target_units(found.leave_one_out()), test)
        wanted = fitted[name] if predictor is None else predictor.fitted
        model.covar_module.initialize(order_parameter=fitted["saddle"].order_parameters["q"].unsqueeze(-2))
        comparison = None
        if rows.test_x is not None and rows.test_y is not None:
            held_out = {name: present(error.test, "test") for name, error in errors.items()}
            coverage = {name: coverage_95(each, rows.test_x, rows.test_y) for name, each in fitted.items()}
            chosen = None if predictor is None else name
            comparison = compare(held_out, rows.units.targets.value(rows.test_y), coverage, seconds, chosen)
        sweep = None
        if table is not None:
            step("widths")
            sweep = width_sweep(problem, table, rows.test_x, rows.test_y)
            test = None if sweep.test is None else rows.in_target_units(sweep.test)
            sweep = replace(sweep, leave_one_out=rows.in_target_units(sweep.leave_one_out), test=test)
    return Analysis(
        model,
        fitted["saddle"],
        errors["saddle"],
        fitted["free_scale"],
        errors["free_scale"],
        fitted["infinite_width"],
        comparison,
        errors[name],
        sweep,
        scalar,
        wanted,
        predictor,
        tuple(left_out),
    )


def _sampled(predictor: NetworkPredictor, network: Network, rows: Rows) -> FittedTheory | None:
    """Return the sampled network, also where the infinite width was chosen, at the temperature of highest evidence."""
    if isinstance(predictor.fitted.theory, Sampled):
        return predictor.fitted
    arrived = [one for one in predictor.candidates if one.theory == "sampled"]
    if not arrived:
        return None
    best = max(arrived, key=lambda one: one.log_evidence)
    return Sampled().fit(network.at_temperature(best.temperature).model(rows.x, rows.y))


def _held_out(fitted: FittedTheory, rows: Rows) -> ErrorEstimate | None:
    if rows.test_x is None or rows.test_y is None:
        return None
    return rows.in_target_units(fitted.error(rows.test_x, rows.test_y))


@dataclass(frozen=True)
class Gap:
    """How far given hyperparameters are from the evidence's maximum over noise and scale, at infinite width.

    Attributes:
        nats: By how much the evidence is higher there.
        temperature: T there.
        scale: Factor on the kernel there.
    """

    nats: float
    temperature: float
    scale: float


def evidence_gap(analysis: Analysis, given: bool) -> Gap | None:
    """Maximize the evidence over T and a factor on the kernel, from the spectrum that is there; None if none was given.

    It costs O(P) for each of some hundreds of pairs: a scan of both logarithms, refined by L-BFGS-B.
    """
    problem = analysis.saddle.problem
    if not given or not problem.network.is_scalar:
        return None
    from scipy.optimize import minimize

    spectrum, temperature = problem.spectrum(), float(problem.scalar().temperature)
    k, z2 = spectrum.eigenvalues, spectrum.squares

    def cost(log_scale: float, log_temperature: float) -> float:
        spread = math.exp(log_temperature) + math.exp(log_scale) * k
        return 0.5 * float((spread.log() + z2 / spread).sum())

    size = math.log(float(z2.mean()))
    scales = [size - math.log(float(k.mean())) + step for step in range(-6, 15, 2)]
    temperatures = [size + step for step in range(-12, 2, 2)]
    start = min(((s, t) for s in scales for t in temperatures), key=lambda pair: cost(*pair))
    bounds = [(start[0] - 4.0, start[0] + 4.0), (size - 14.0, size + 2.0)]
    found = minimize(lambda u: cost(*u), start, method="L-BFGS-B", bounds=bounds)
    nats = cost(0.0, math.log(temperature)) - float(found.fun)
    return Gap(nats, math.exp(found.x[1]), math.exp(found.x[0]))
