"""The report of ``fit``, as text and as plain numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from .._validation import present
from ..inference import ErrorEstimate
from ..theories import FittedTheory
from .analysis import Analysis, Gap
from .data import Rows, Table, data_record, describe_data
from .network import Network, hyperparameters_record, listed
from .options import AUTO

PARTS = (("bias (y - mean)^2", "mean_bias"), ("variance sigma^2", "mean_variance"), ("total", "mean_total"))
COLUMNS = ("infinite width", "finite width", "free scale (ScaleKernel)")


FAR = 3.0
"""Nats by which the evidence must be higher elsewhere before given hyperparameters are called far from the best."""


def report(table: Table, rows: Rows, network: Network, analysis: Analysis, gap: Gap | None, seed: int) -> str:
    """Return the whole report."""
    units = (
        f"  T and q are in standardized units (noise of standard deviation "
        f"{math.sqrt(network.temperature) * rows.scale:.3g} in the target's units); errors below are in the target's "
        "units squared"
    )
    blocks = [
        "\n".join([*describe_data(table, rows, seed), units]),
        "\n".join([*network.describe(len(rows.y)), *_gap(gap), *_solution(analysis)]),
        _errors(analysis),
        *_comparison(table, network, analysis),
        *_choice(analysis),
        _sweep(analysis),
        f"reliability: {analysis.saddle.reliability}",
        f"what to do next: {what_next(network, analysis, gap)}",
    ]
    return "\n\n".join(blocks)


def _gap(gap: Gap | None) -> list[str]:
    if gap is None:
        return []
    return [
        f"  the evidence would be {gap.nats:.2f} nats higher with T = {gap.temperature:.4g} and the kernel times "
        f"{gap.scale:.4g}"
    ]


def _comparison(table: Table, network: Network, analysis: Analysis) -> list[str]:
    if analysis.comparison is None:
        return []
    lines = [
        f"theories on the held-out rows: predictions of the target ({table.target}) in its own units",
        f"{'':18s}{'RMSE':>12s}{'R^2':>10s}{'NLPD':>12s}{'95 % covers':>13s}{'seconds':>10s}",
    ]
    for row in analysis.comparison:
        numbers = f"{row.rmse:12.5g}{row.r2:10.4f}{row.nlpd:12.5g}{100 * row.coverage_95:11.1f} %{row.seconds:10.3f}"
        marks = ["recommended"] * row.recommended + ["chosen by auto"] * row.chosen
        lines.append(f"  {row.theory:16s}{numbers}" + f"   <- {', '.join(marks)}" * bool(marks))
    lines += [f"  {name} was left out for lack of time (--time-limit)." for name in analysis.left_out]
    search = network.prior.search
    if search is not None and "scale" in search.values:
        with_ard = " with ARD" if network.prior.ard_weights is not None else ""
        lines.append(f"  infinite_width is ScaleKernel(NNGPKernel){with_ard}: its scale was fitted by evidence.")
    lines.append(
        "  Recommended: what auto chose or else the simplest, within two standard errors (paired over rows) of the "
        "lowest NLPD."
    )
    return ["\n".join(lines)]


def _choice(analysis: Analysis) -> list[str]:
    predictor = analysis.predictor
    if predictor is None:
        return []
    return [f"choice from the training rows alone, in {predictor.seconds:.0f} s ({AUTO}): {predictor.message}"]


def what_next(network: Network, analysis: Analysis, gap: Gap | None) -> str:
    """Return one to three sentences of advice."""
    advice = []
    if gap is not None and gap.nats >= FAR:
        advice.append(
            "Leave the given temperature and variances out to have them fitted: another noise and scale alone lift "
            f"the evidence by {gap.nats:.1f} nats."
        )
    if analysis.comparison is None:
        advice.append("Hold rows out (--test-fraction) to compare the theories.")
    else:
        wide = next(row for row in analysis.comparison if row.theory == "infinite_width")
        chosen = next(row for row in analysis.comparison if row.recommended)
        gain = f"higher than infinite width's by {wide.nlpd - chosen.nlpd:.2g} a row"
        if wide.nlpd < chosen.nlpd:
            gain = f"lower than infinite width's by {chosen.nlpd - wide.nlpd:.2g} a row, within two standard errors"
        if chosen.chosen:
            why = "the training rows chose it, and the held-out rows do not contradict"
            why += "" if chosen.theory == "infinite_width" else f": its log density there is {gain}"
        elif chosen.theory in ("infinite_width", "free_scale"):
            why = "on these rows the finite width predicts no better"
        else:
            why = f"on these rows its log density is {gain}"
        advice.append(f"Use {chosen.theory} (--theory {chosen.theory} writes its --predictions): {why}.")
    reliability = analysis.saddle.reliability
    if analysis.predictor is None and reliability is not None and reliability.reliable is False:
        advice.append(
            "If the finite width matters to you, sample the network (compare_with_network): the theory is not reliable "
            "here."
        )
    return " ".join(advice)


def _solution(analysis: Analysis) -> list[str]:
    solution = analysis.saddle.stats["solution"]
    q = solution.order_parameter.tolist()
    return [
        f"order parameter{'s' * (len(q) > 1)}: q = {listed(q, 6)}   (q = 1: infinite width)",
        f"  {solution.result.name}: {solution.message} Minima found: {int(solution.stats['num_minima'])}.",
    ]


def _errors(analysis: Analysis) -> str:
    own, free, scale = analysis.errors, analysis.free_errors, analysis.free_scale
    lines = [
        "squared errors of a network drawn from the posterior, mean over rows",
        f"{'':44s}" + "".join(f"{column:>16s}" for column in COLUMNS[:2]) + f"{COLUMNS[2]:>27s}",
        "from training rows alone (leave-one-out)",
        *_rows(own.leave_one_out, free.leave_one_out),
    ]
    if own.test is not None and free.test is not None:
        lines += [
            "held-out rows: expected squared error at given targets, formula (4)",
            *_rows(own.test, free.test),
            "  Targets of held-out rows are given: the bias there is the measured squared error of the posterior mean.",
        ]
    lines.append(
        f"  free scale r = {float(scale.order_parameters['r']):.5g}: maximum of log p(y | r K, T) = "
        f"{_evidence(scale):.2f} over one scale "
        "of the infinite width's kernel"
    )
    lines.append("  (scan of log r on the spectrum of K, refined by Brent's search); the width plays no part in it.")
    if scale.stats["at_edge"]:
        lines.append("  r is at the edge of the scan: the evidence has no maximum inside.")
    return "\n".join(lines)


def _evidence(fitted: FittedTheory) -> float:
    return math.nan if fitted.log_evidence is None else float(fitted.log_evidence)


def _rows(error: ErrorEstimate, free: ErrorEstimate) -> list[str]:
    lines = []
    for label, name in PARTS:
        values = [float(getattr(estimate, name)) for estimate in (error.infinite_width, error, free)]
        lines.append(f"  {label:42s}{values[0]:16.5g}{values[1]:16.5g}{values[2]:27.5g}")
    return lines


def _sweep(analysis: Analysis) -> str:
    sweep = analysis.sweep
    if sweep is None:
        return "widths: every layer is infinite, there is nothing to sweep"
    how = (
        "all from one factorization"
        if analysis.one_factorization
        else ("a fit for each width, and only for the given ones: this composition is not one-dimensional")
    )
    layers = sweep.width.shape[-1]
    numbered = [f"_{index + 1}" for index in range(layers)] if layers > 1 else [""]
    heads = [f"{name}{number}" for name in ("width", "alpha", "q") for number in numbered]
    lines = [
        f"q and total error against width ({how})",
        "".join(f"{head:>10s}" for head in heads)
        + f"{'leave-one-out':>16s}"
        + f"{'held-out':>12s}" * (sweep.test is not None),
    ]
    q = present(sweep.order_parameter, "order_parameter")
    for index in range(len(sweep.width)):
        values = torch.cat([sweep.width[index], sweep.alpha[index], q[index]]).tolist()
        line = "".join(f"{value:10.4g}" for value in values) + f"{float(sweep.leave_one_out.mean_total[index]):16.5g}"
        lines.append(line + (f"{float(sweep.test.mean_total[index]):12.5g}" if sweep.test is not None else ""))
    return "\n".join(lines)


def as_json(
    table: Table, rows: Rows, network: Network, analysis: Analysis, gap: Gap | None, seed: int
) -> dict[str, Any]:
    """Return all numbers of the report; the help of the command names the keys."""
    solution, reliability = analysis.saddle.stats["solution"], analysis.saddle.reliability
    free, sweep = analysis.free_scale, analysis.sweep
    return {
        "data": data_record(table, rows, seed),
        "network": network.record(len(rows.y)),
        "hyperparameters": hyperparameters_record(network.prior),
        "evidence_gap": None if gap is None else dataclasses.asdict(gap),
        "solution": {
            "order_parameter": solution.order_parameter.tolist(),
            "result": solution.result.name,
            "message": solution.message,
            "num_minima": int(solution.stats["num_minima"]),
            "reliable": reliability.reliable if reliability else None,
            "reliability": str(reliability) if reliability else None,
            "score": reliability.score if reliability else None,
            "typical_error": reliability.typical_error if reliability else None,
            "large_error": reliability.large_error if reliability else None,
        },
        "leave_one_out": _columns(analysis.errors.leave_one_out, analysis.free_errors.leave_one_out),
        "held_out": _columns(analysis.errors.test, analysis.free_errors.test),
        "comparison": None if analysis.comparison is None else [dataclasses.asdict(row) for row in analysis.comparison],
        "choice": _choice_record(analysis),
        "next": what_next(network, analysis, gap),
        "free_scale": {
            "scale": float(free.order_parameters["r"]),
            "log_evidence": _evidence(free),
            "at_edge": free.stats["at_edge"],
        },
        "sweep": None
        if sweep is None
        else {
            "width": sweep.width.tolist(),
            "alpha": sweep.alpha.tolist(),
            "order_parameter": present(sweep.order_parameter, "order_parameter").tolist(),
            "leave_one_out": sweep.leave_one_out.mean_total.tolist(),
            "held_out": None if sweep.test is None else sweep.test.mean_total.tolist(),
        },
    }


def _choice_record(analysis: Analysis) -> dict[str, Any] | None:
    predictor = analysis.predictor
    if predictor is None:
        return None
    chosen = next(one for one in predictor.candidates if one.chosen)
    return {
        "theory": chosen.theory,
        "width": chosen.width,
        "temperature": chosen.temperature,
        "readout_factor": chosen.readout_factor,
        "message": predictor.message,
        "seconds": predictor.seconds,
        "candidates": [dataclasses.asdict(one) for one in predictor.candidates],
    }


def _columns(error: ErrorEstimate | None, free: ErrorEstimate | None) -> dict[str, dict[str, float]] | None:
    if error is None or free is None or error.infinite_width is None:
        return None
    columns = {"infinite_width": error.infinite_width, "finite_width": error, "free_scale": free}
    return {
        name: {part.removeprefix("mean_"): float(getattr(estimate, part)) for _, part in PARTS}
        for name, estimate in columns.items()
    }
