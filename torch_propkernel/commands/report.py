"""The report of ``fit``, as text and as plain numbers."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..generalization import ErrorEstimate
from .analysis import Analysis
from .data import Rows, Table
from .network import Network

PARTS = (("bias (y - mean)^2", "mean_bias"), ("variance sigma^2", "mean_variance"), ("total", "mean_total"))
COLUMNS = ("infinite width", "finite width", "free scale (ScaleKernel)")


def report(table: Table, rows: Rows, network: Network, analysis: Analysis, seed: int) -> str:
    """Return the whole report."""
    blocks = [
        _data(table, rows, network, seed),
        _solution(network, rows, analysis),
        _errors(analysis),
        _sweep(analysis),
        f"reliability (a crude note): {analysis.solution.reliability}",
    ]
    return "\n\n".join(blocks)


def _data(table: Table, rows: Rows, network: Network, seed: int) -> str:
    held_out = 0 if rows.test_y is None else len(rows.test_y)
    lines = [f"data: {table.name}, {len(table.y)} rows, {table.x.shape[-1]} inputs; target: {table.target}"]
    lines += [f"  {line}" for line in table.description]
    if rows.dropped:
        lines.append(f"  dropped: input columns {list(rows.dropped)} (from 0), constant on the training rows")
    lines += [
        f"  split: {len(rows.y)} training rows, {held_out} held out at random (seed {seed})",
        f"  standardized on the training rows, inputs and target (mean {rows.shift:.5g}, standard deviation "
        f"{rows.scale:.5g})",
        f"  T and q are in standardized units (noise of standard deviation "
        f"{math.sqrt(network.temperature) * rows.scale:.3g} in the target's units); errors below are in the target's "
        "units squared",
    ]
    return "\n".join(lines)


def _solution(network: Network, rows: Rows, analysis: Analysis) -> str:
    layers = len(network.width)
    alpha = [len(rows.y) / width for width in network.width]
    solution = analysis.solution
    name = f"{network.activation!r}, {layers} hidden layer{'s' * (layers > 1)} of width {_list(network.width)}"
    composition = f", composition {network.composition}" if layers > 1 else ""
    return "\n".join(
        [
            f"network: {name}, T = {network.temperature:g}, alpha = P/N = {_list(alpha)}{composition}",
            f"  weight variance {_list(network.weight_variance)}, bias variance {_list(network.bias_variance)}",
            f"order parameter{'s' * (layers > 1)}: q = {_list(solution.order_parameter.tolist(), 6)}"
            "   (q = 1: infinite width)",
            f"  {solution.result.name}: {solution.message} Minima found: {int(solution.stats['num_minima'])}.",
        ]
    )


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


def _list(values: tuple[float, ...] | list[float], digits: int = 4) -> str:
    return ", ".join(f"{value:.{digits}g}" for value in values)


def as_json(table: Table, rows: Rows, network: Network, analysis: Analysis, seed: int) -> dict[str, Any]:
    """Return all numbers of the report; the help of the command names the keys."""
    solution, free, sweep = analysis.solution, analysis.free_scale, analysis.sweep
    assert solution.reliability is not None
    return {
        "data": {
            "name": table.name,
            "target": table.target,
            "description": list(table.description),
            "rows": len(table.y),
            "columns": table.x.shape[-1],
            "dropped_columns": list(rows.dropped),
            "training_rows": len(rows.y),
            "held_out_rows": 0 if rows.test_y is None else len(rows.test_y),
            "seed": seed,
            "target_mean": rows.shift,
            "target_standard_deviation": rows.scale,
        },
        "network": {
            "activation": repr(network.activation),
            "width": _finite(list(network.width)),
            "composition": network.composition,
            "temperature": network.temperature,
            "weight_variance": list(network.weight_variance),
            "bias_variance": list(network.bias_variance),
            "alpha": [len(rows.y) / width for width in network.width],
        },
        "solution": {
            "order_parameter": solution.order_parameter.tolist(),
            "result": solution.result.name,
            "message": solution.message,
            "num_minima": int(solution.stats["num_minima"]),
            "reliable": solution.reliability.reliable,
            "reliability": solution.reliability.note,
        },
        "leave_one_out": _columns(analysis.leave_one_out, free.leave_one_out),
        "held_out": _columns(analysis.test, free.test),
        "free_scale": {"scale": free.scale, "log_evidence": free.log_evidence, "at_edge": free.at_edge},
        "sweep": None
        if sweep is None
        else {
            "width": _finite(sweep.width.tolist()),
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


def _finite(values: list[Any]) -> list[Any]:
    """Infinite numbers, which JSON does not have, become None."""
    return [_finite(v) if isinstance(v, list) else v if math.isfinite(v) else None for v in values]
