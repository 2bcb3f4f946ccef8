"""The report of ``fit``, as text and as plain numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..theories import ErrorEstimate
from ..tuning import HyperparameterFit
from .analysis import Analysis
from .data import Rows, Table, data_record, describe_data
from .network import Network, hyperparameters_record, listed

PARTS = (("bias (y - mean)^2", "mean_bias"), ("variance sigma^2", "mean_variance"), ("total", "mean_total"))
COLUMNS = ("infinite width", "finite width", "free scale (ScaleKernel)")


def report(
    table: Table, rows: Rows, network: Network, fit: HyperparameterFit | None, analysis: Analysis, seed: int
) -> str:
    """Return the whole report."""
    units = (
        f"  T and q are in standardized units (noise of standard deviation "
        f"{math.sqrt(network.temperature) * rows.scale:.3g} in the target's units); errors below are in the target's "
        "units squared"
    )
    blocks = [
        "\n".join([*describe_data(table, rows, seed), units]),
        "\n".join([*network.describe(rows, fit), *_solution(analysis)]),
        _errors(analysis),
        _sweep(analysis),
        f"reliability: {analysis.solution.reliability}",
    ]
    return "\n\n".join(blocks)


def _solution(analysis: Analysis) -> list[str]:
    solution = analysis.solution
    q = solution.order_parameter.tolist()
    return [
        f"order parameter{'s' * (len(q) > 1)}: q = {listed(q, 6)}   (q = 1: infinite width)",
        f"  {solution.result.name}: {solution.message} Minima found: {int(solution.stats['num_minima'])}.",
    ]


def _errors(analysis: Analysis) -> str:
    free = analysis.free_scale
    lines = [
        "squared errors of a network drawn from the posterior, mean over rows",
        f"{'':44s}" + "".join(f"{column:>16s}" for column in COLUMNS[:2]) + f"{COLUMNS[2]:>27s}",
        "from training rows alone (leave-one-out)",
        *_rows(analysis.leave_one_out, free.leave_one_out),
    ]
    if analysis.test is not None and free.test is not None:
        lines += [
            "held-out rows: expected squared error at given targets, formula (4)",
            *_rows(analysis.test, free.test),
            "  Targets of held-out rows are given: the bias there is the measured squared error of the posterior mean.",
        ]
    lines.append(
        f"  free scale r = {free.scale:.5g}: maximum of log p(y | r K, T) = {free.log_evidence:.2f} over one scale "
        "of the infinite width's kernel"
    )
    lines.append("  (scan of log r on the spectrum of K, refined by Brent's search); the width plays no part in it.")
    if free.at_edge:
        lines.append("  r is at the edge of the scan: the evidence has no maximum inside.")
    return "\n".join(lines)


def _rows(error: ErrorEstimate, free: ErrorEstimate) -> list[str]:
    assert error.infinite_width is not None
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
    for index in range(len(sweep.width)):
        values = torch.cat([sweep.width[index], sweep.alpha[index], sweep.order_parameter[index]]).tolist()
        line = "".join(f"{value:10.4g}" for value in values) + f"{float(sweep.leave_one_out.mean_total[index]):16.5g}"
        lines.append(line + (f"{float(sweep.test.mean_total[index]):12.5g}" if sweep.test is not None else ""))
    return "\n".join(lines)


def as_json(
    table: Table, rows: Rows, network: Network, fit: HyperparameterFit | None, analysis: Analysis, seed: int
) -> dict[str, Any]:
    """Return all numbers of the report; the help of the command names the keys."""
    solution, free, sweep = analysis.solution, analysis.free_scale, analysis.sweep
    assert solution.reliability is not None
    return {
        "data": data_record(table, rows, seed),
        "network": network.record(len(rows.y)),
        "hyperparameters": hyperparameters_record(fit),
        "solution": {
            "order_parameter": solution.order_parameter.tolist(),
            "result": solution.result.name,
            "message": solution.message,
            "num_minima": int(solution.stats["num_minima"]),
            "reliable": solution.reliability.reliable,
            "reliability": str(solution.reliability),
            "score": solution.reliability.score,
            "typical_error": solution.reliability.typical_error,
            "large_error": solution.reliability.large_error,
        },
        "leave_one_out": _columns(analysis.leave_one_out, free.leave_one_out),
        "held_out": _columns(analysis.test, free.test),
        "free_scale": {"scale": free.scale, "log_evidence": free.log_evidence, "at_edge": free.at_edge},
        "sweep": None
        if sweep is None
        else {
            "width": sweep.width.tolist(),
            "alpha": sweep.alpha.tolist(),
            "order_parameter": sweep.order_parameter.tolist(),
            "leave_one_out": sweep.leave_one_out.mean_total.tolist(),
            "held_out": None if sweep.test is None else sweep.test.mean_total.tolist(),
        },
    }


def _columns(error: ErrorEstimate | None, free: ErrorEstimate | None) -> dict[str, dict[str, float]] | None:
    if error is None or free is None or error.infinite_width is None:
        return None
    columns = {"infinite_width": error.infinite_width, "finite_width": error, "free_scale": free}
    return {
        name: {part.removeprefix("mean_"): float(getattr(estimate, part)) for _, part in PARTS}
        for name, estimate in columns.items()
    }
