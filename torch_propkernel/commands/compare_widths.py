"""``compare-widths``: what one table says about widths, at fixed prior variances."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from ..theories import WidthComparison, compare_widths, fit_free_scale
from .analysis import DEFAULT_WIDTHS, sweep_widths
from .data import Rows, data_record, describe_data
from .network import hyperparameters_record, listed
from .options import AUTO, UNITS, add_data, add_json, add_network, network_of, new_parser, numbers, read_rows
from .output import Output
from .steps import steps

EPILOG = f"""\
{UNITS} The scale r behind the order parameter is integrated, not fixed
at its saddle; its prior spread is sqrt(2 / N), around one. Variances and temperature are the same for every width; with
--temperature auto they are chosen at --width. The answer may be "no preference". A preference says which prior of r
fits this table: where E[r|y] is far from one, a narrow network is ahead because its scale can move, and a free scale of
the infinite width's kernel, printed below, would do as well. It is no evidence for the width then.

keys of --json:
  data            as for fit
  network         as for fit
  hyperparameters as for fit; null without --temperature auto
  widths          lists, one entry for each width, the last one infinite (null): width (a list over layers each),
                  log_evidence (of the standardized targets), leave_one_out_log_density (mean over rows, in the
                  target's units), leave_one_out_error, mean_scale, deviation_scale
  preference      width (or null), nats (the threshold), spread (largest minus smallest log evidence)
  free_scale      scale, log_evidence (of the standardized targets): the highest of the infinite width's kernel

examples:
  torch-propkernel compare-widths --widths 5,50,500
  torch-propkernel compare-widths data.csv --target price --temperature auto --json widths.json"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = new_parser(
        subparsers,
        "compare-widths",
        "evidence and exact leave-one-out over widths; the answer may be no preference",
        "Compare widths on a table by evidence and exact leave-one-out, with the scale of the kernel integrated.",
        EPILOG,
    )
    add_data(parser, test_fraction=0.0)
    add_network(parser)
    parser.add_argument(
        "--widths",
        type=numbers,
        default=DEFAULT_WIDTHS[::2],
        metavar="N[,N...]",
        help=f"widths of the first layer, other layers in proportion (default: {listed(DEFAULT_WIDTHS[::2])}); --width "
        "and infinite width are always among them",
    )
    parser.add_argument(
        "--nats", type=float, default=3.0, help="log evidence that a preference needs (default: 3, a factor of 20)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the table and write the numbers."""
    output = Output(arguments.json)
    network = network_of(arguments)
    table, rows = read_rows(arguments)
    widths = sweep_widths(network.width, arguments.widths)
    if widths is None:
        raise ValueError("--width: expected a finite layer to compare, got infinite ones only")
    widths = torch.cat([widths, torch.full_like(widths[:1], math.inf)])
    fit = None
    with steps(3) as step:
        if arguments.temperature == AUTO:
            step("temperature")
            network, fit = network.with_temperature(rows)
        step("widths")
        model = network.model(rows.x, rows.y)
        comparison = compare_widths(model, widths)
        step("free scale")
        free = fit_free_scale(model)
    preferred = comparison.preference(arguments.nats)
    spread = float(comparison.log_evidence.max() - comparison.log_evidence.min())
    columns = _columns(comparison, rows)
    lines = [*describe_data(table, rows, arguments.seed), *network.describe(rows, fit), "", *_table(columns), ""]
    if preferred is None:
        lines.append(
            f"no preference: the log evidences differ by {spread:.2f} nats, less than {arguments.nats:g} (--nats)"
        )
    else:
        best = listed(comparison.width[preferred].tolist())
        lines.append(f"preferred width: {best}, {spread:.2f} nats above the worst")
    lines.append(
        f"free scale of the infinite width's kernel: r = {free.scale:.5g}, log evidence {free.log_evidence:.2f}"
    )
    output.say("\n".join(lines))
    output.numbers(
        {
            "data": data_record(table, rows, arguments.seed),
            "network": network.record(len(rows.y)),
            "hyperparameters": hyperparameters_record(fit),
            "widths": columns,
            "preference": {
                "width": None if preferred is None else comparison.width[preferred].tolist(),
                "nats": arguments.nats,
                "spread": spread,
            },
            "free_scale": {"scale": free.scale, "log_evidence": free.log_evidence},
        }
    )
    return 0


def _columns(comparison: WidthComparison, rows: Rows) -> dict[str, Any]:
    """Return the comparison in the target's units."""
    return {
        "width": comparison.width.tolist(),
        "log_evidence": comparison.log_evidence.tolist(),
        "leave_one_out_log_density": (comparison.leave_one_out_log_density - math.log(rows.scale)).tolist(),
        "leave_one_out_error": (comparison.leave_one_out_error * rows.scale**2).tolist(),
        "mean_scale": comparison.mean_scale.tolist(),
        "deviation_scale": comparison.deviation_scale.tolist(),
    }


def _table(columns: dict[str, Any]) -> list[str]:
    heads = ("width", "log evidence", "below best", "LOO log density", "LOO error", "E[r|y]", "deviation")
    lines = ["".join(f"{head:>16s}" for head in heads)]
    best = max(columns["log_evidence"])
    for width, evidence, density, error, mean, deviation in zip(*columns.values(), strict=True):
        numbers_ = (evidence, best - evidence, density, error, mean, deviation)
        name = ",".join(f"{number:g}" for number in width)
        lines.append(f"{name:>16s}" + "".join(f"{number:16.5g}" for number in numbers_))
    lines.append("  LOO: exact leave-one-out, the density of noisy targets, the error of a network without noise")
    return lines
