"""``sweep``: predicted errors over widths and temperatures, and over the number of training rows."""

from __future__ import annotations

import argparse
from functools import partial

import torch

from .._validation import positive_number, present
from ..models import NetworkGP
from ..theories import LearningCurve, learning_curve, width_sweep
from .analysis import DEFAULT_WIDTHS, sweep_widths
from .network import listed
from .options import (
    UNITS,
    add_data,
    add_json,
    add_network,
    add_plot,
    exit_code,
    network_of,
    new_parser,
    numbers,
    read_rows,
)
from .output import Output
from .steps import steps
from .sweep_report import draw, make_map, record, report

DEFAULT_TEMPERATURES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
FRACTIONS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

EPILOG = f"""\
{UNITS}

every width and temperature of the map is solved for its global minimum, with the other hyperparameters as they are; the
last column of the map is the infinite width. The learning curve takes random subsets of the training rows at --width
and at the network's temperature and predicts the held-out rows; it needs some.

keys of --json:
  data            as for fit
  network         as for fit: the one of the learning curve
  hyperparameters as for fit; null if nothing was fitted
  map             width (a list over layers each), temperature, and tables with one row for each temperature:
                  leave_one_out, held_out (totals, null if nothing is held out), order_parameter (a list over layers
                  each), infinite_width (leave_one_out, held_out: one number for each temperature)
  lowest          width, temperature, leave_one_out of the lowest leave-one-out error (a width of null is infinite)
  learning_curve  num_data, order_parameter, bias, variance, infinite_width_bias, infinite_width_variance, with one
                  list over the subsets for each number of rows; null if nothing is held out

examples:
  torch-propkernel sweep --widths 20,100,500 --temperatures 0.01,0.1
  torch-propkernel sweep data.csv --target price --activation erf --sizes 10,20 --repeats 3 --json - --no-plot"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = new_parser(
        subparsers,
        "sweep",
        "map predicted errors over widths and temperatures, and over the number of training rows",
        "Map the predicted errors of networks over width and temperature, and draw the learning curve of one of them.",
        EPILOG,
    )
    add_data(parser)
    add_network(parser)
    add = parser.add_argument
    add(
        "--widths",
        type=numbers,
        default=DEFAULT_WIDTHS[::2],
        metavar="N[,N...]",
        help=f"widths of the first layer, other layers in proportion (default: {listed(DEFAULT_WIDTHS[::2])}); --width "
        "is always among them",
    )
    add(
        "--temperatures",
        type=numbers,
        default=DEFAULT_TEMPERATURES,
        metavar="T[,T...]",
        help=f"(default: {listed(DEFAULT_TEMPERATURES)})",
    )
    add(
        "--sizes",
        type=numbers,
        metavar="P[,P...]",
        help=f"numbers of training rows of the learning curve (default: {listed(FRACTIONS)} of them)",
    )
    add("--repeats", type=int, default=5, metavar="R", help="random subsets for each size (default: 5)")
    add_plot(parser, "propkernel_sweep.png")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Sweep, print the tables, save the plot and the numbers."""
    plot = None if arguments.no_plot else arguments.plot
    output = Output({"DATA.csv": arguments.data}, {"--json": arguments.json, "--plot": plot})
    widths = sweep_widths(arguments.width, arguments.widths)
    if widths is None:
        raise ValueError("--width: expected a finite layer to sweep, got infinite ones only")
    table, rows = read_rows(arguments)
    sizes = _sizes(arguments.sizes, len(rows.train))
    if arguments.repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, got {arguments.repeats}")
    for temperature in arguments.temperatures:
        positive_number("temperature", temperature)
    network = network_of(arguments, rows, _check)
    curve = None
    with steps(len(arguments.temperatures) + (len(sizes) if rows.test_x is not None else 0)) as step:
        found = []
        for temperature in arguments.temperatures:
            step(f"T = {temperature:g}")
            model = network.at_temperature(temperature).model(rows.x, rows.y)
            found.append(width_sweep(model, widths, rows.test_x, rows.test_y))
        if rows.test_x is not None and rows.test_y is not None:
            model = network.model(rows.x, rows.y)
            generator = torch.Generator().manual_seed(arguments.seed)
            curves = []
            for size in sizes:
                step(f"{size} rows")
                curves.append(
                    learning_curve(
                        model, [size], rows.test_x, rows.test_y, num_repeats=arguments.repeats, generator=generator
                    )
                )
            curve = _joined(curves, rows.scale**2)
    result = make_map(widths, arguments.temperatures, found, rows)
    output.say(report(table, rows, network, result, curve, arguments.seed))
    output.numbers(record(table, rows, network, result, curve, arguments.seed))
    if plot is not None:
        output.figure(plot, partial(draw, table, network, result, curve))
    return exit_code(network)


def _sizes(given: tuple[float, ...] | None, total: int) -> list[int]:
    if given is None:
        return sorted({max(2, round(fraction * total)) for fraction in FRACTIONS})
    if not all(size == int(size) and 1 <= size <= total for size in given):
        raise ValueError(f"--sizes: expected whole numbers from 1 to {total}, the training rows, got {listed(given)}")
    return sorted({int(size) for size in given})


def _joined(curves: list[LearningCurve], square: float) -> LearningCurve:
    """Join the curves of single sizes, in the target's units."""
    names = ("bias", "variance", "infinite_width_bias", "infinite_width_variance")
    return LearningCurve(
        torch.cat([curve.num_data for curve in curves]),
        torch.cat([present(curve.order_parameter, "order_parameter") for curve in curves]),
        *(square * torch.cat([getattr(curve, name) for curve in curves]) for name in names),
    )


def _check(model: NetworkGP) -> None:
    if not model.covar_module.is_scalar:
        raise ValueError(
            "--composition: expected one in which only the product of the order parameters enters (outer), got "
            f"{model.covar_module.composition.name}: a map would need minutes for each of its points; use fit with "
            "--widths"
        )
