"""``compare-widths``: what one table says about widths, at fixed prior variances."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from .._validation import present
from ..inference import Problem
from ..theories import FreeScale, Mixture, WidthSweep, width_sweep
from .analysis import DEFAULT_WIDTHS, sweep_widths
from .data import Rows, data_record, describe_data
from .network import hyperparameters_record, listed
from .options import UNITS, add_data, add_json, add_network, exit_code, network_of, new_parser, numbers, read_rows
from .output import Output
from .steps import steps

EPILOG = f"""\
{UNITS}

the scale r behind the order parameter is integrated, not fixed at its saddle; its prior spread is sqrt(2 / N), around
one. Variances and temperature are the same for every width. The answer may be "no preference". A preference says which
prior of r fits this table: where E[r|y] is far from one, a narrow network is ahead because its scale can move, and a
free scale of the infinite width's kernel, printed below, would do as well. It is no evidence for the width then.

keys of --json:
  data            as for fit
  network         as for fit
  hyperparameters as for fit; null if nothing was fitted
  widths          lists, one entry for each width, the last one infinite (null): width (a list over layers each),
                  log_evidence (of the standardized targets), leave_one_out_log_density (mean over rows, in the
                  target's units), leave_one_out_error, mean_scale, deviation_scale
  preference      width (or null), nats (the threshold), spread (largest minus smallest log evidence),
                  explained_by_free_scale (whether a free scale lifts infinite width by as much)
  free_scale      scale, log_evidence (of the standardized targets): the highest of the infinite width's kernel

examples:
  torch-propkernel compare-widths --widths 5,50,500
  torch-propkernel compare-widths data.csv --target price --temperature 0.1 --json widths.json"""


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
    output = Output({"DATA.csv": arguments.data}, {"--json": arguments.json})
    widths = sweep_widths(arguments.width, arguments.widths)
    if widths is None:
        raise ValueError("--width: expected a finite layer to compare, got infinite ones only")
    widths = torch.cat([widths, torch.full_like(widths[:1], math.inf)])
    table, rows = read_rows(arguments)
    network = network_of(arguments, rows, Mixture().check)
    with steps(2) as step:
        step("widths")
        problem = Problem.frozen(network.model(rows.x, rows.y))
        comparison = width_sweep(problem, widths, theory="mixture")
        step("free scale")
        free = FreeScale().fit(problem)
        scale, evidence = float(free.order_parameters["r"]), float(present(free.log_evidence, "log_evidence"))
    preferred = comparison.preference(arguments.nats)
    evidences = present(comparison.log_evidence, "log_evidence")
    spread = float(evidences.max() - evidences.min())
    # With a free scale infinite width is ahead of itself by so much: then the scale is off, whatever the width.
    explained = evidence - float(evidences[-1]) >= arguments.nats
    columns = _columns(comparison, rows)
    lines = [*describe_data(table, rows, arguments.seed), *network.describe(len(rows.y)), "", *_table(columns), ""]
    if preferred is None:
        lines.append(
            f"no preference: the log evidences differ by {spread:.2f} nats, less than {arguments.nats:g} (--nats)"
        )
    else:
        best = listed(comparison.width[preferred].tolist())
        what = "no evidence for a width" if explained else "preferred width"
        lines.append(f"{what}: {best} has the highest evidence, {spread:.2f} nats above the worst")
    lines.append(f"free scale of the infinite width's kernel: r = {scale:.5g}, log evidence {evidence:.2f}")
    if explained:
        lines.append(
            f"  {evidence - float(evidences[-1]):.2f} nats above infinite width at the prior's scale: the prior "
            "variances are off, and narrow widths are ahead because their scale can move. Have the variances fitted "
            "(--weight-variance auto)."
        )
    output.say("\n".join(lines))
    output.numbers(
        {
            "data": data_record(table, rows, arguments.seed),
            "network": network.record(len(rows.y)),
            "hyperparameters": hyperparameters_record(network.prior),
            "widths": columns,
            "preference": {
                "width": None if preferred is None else comparison.width[preferred].tolist(),
                "nats": arguments.nats,
                "spread": spread,
                "explained_by_free_scale": explained,
            },
            "free_scale": {"scale": scale, "log_evidence": evidence},
        }
    )
    return exit_code(network)


def _columns(comparison: WidthSweep, rows: Rows) -> dict[str, Any]:
    """Return the comparison in the target's units."""
    left_out = rows.in_target_units(comparison.leave_one_out)
    return {
        "width": comparison.width.tolist(),
        "log_evidence": present(comparison.log_evidence, "log_evidence").tolist(),
        "leave_one_out_log_density": present(left_out.log_density, "log_density").mean(-1).tolist(),
        "leave_one_out_error": left_out.mean_total.tolist(),
        "mean_scale": present(comparison.scale, "scale").tolist(),
        "deviation_scale": present(comparison.scale_deviation, "scale_deviation").tolist(),
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
