"""``fit``: order parameters and predicted errors of one network on a table, beside its baselines."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..saving import save
from .analysis import DEFAULT_WIDTHS, Analysis, analyze
from .data import Rows, Table
from .network import Network
from .options import AUTO, UNITS, add_data, add_json, add_network, add_plot, network_of, new_parser, numbers, read_rows
from .output import Output
from .report import as_json, report
from .steps import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPILOG = f"""\
{UNITS} The free scale is that of ScaleKernel(NNGPKernel) with the highest
evidence. --save writes the process at the solved order parameters with its training rows, for predict.

keys of --json:
  data            name, target, description, rows, columns, dropped_columns (of the inputs, from 0), dropped_lines,
                  training_rows, held_out_rows, seed, target_mean, target_standard_deviation
  network         activation, width, composition, temperature, weight_variance, bias_variance, alpha
  hyperparameters values, log_evidence (of the standardized targets), message, at_bound; null without
                  --temperature auto
  solution        order_parameter, result, message, num_minima, reliable, reliability (a text), score, typical_error
                  and large_error (relative errors of sampled networks with such a score: median, 90th percentile)
  leave_one_out   infinite_width, finite_width, free_scale, each with bias, variance, total
  held_out        the same, or null if nothing is held out
  free_scale      scale, log_evidence (of the standardized targets), at_edge
  sweep           lists, one entry for each width: width, alpha, order_parameter (a list over layers each),
                  leave_one_out, held_out (totals); null if every layer is infinite
an infinite width is null.

columns of --predictions, in the target's units: line (of the file), split (training or held-out), target, mean,
standard_deviation (of the network's function), standard_deviation_with_noise. Training rows are predicted from all
others (leave-one-out).

examples:
  torch-propkernel fit
  torch-propkernel fit data.csv --target price --width 100,50 --temperature auto --save model.propkernel"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = new_parser(
        subparsers,
        "fit",
        "solve the order parameters of a network on a table and report its predicted errors",
        "Solve the order parameters of a Bayesian network of finite width on a table, and report the errors it "
        "predicts beside those of the infinite width and of a free kernel scale.",
        EPILOG,
    )
    add_data(parser)
    add_network(parser)
    add = parser.add_argument
    add(
        "--widths",
        type=numbers,
        metavar="N[,N...]",
        help="widths of the first layer to sweep, other layers in proportion (default: "
        f"{len(DEFAULT_WIDTHS)} from {min(DEFAULT_WIDTHS):g} to {max(DEFAULT_WIDTHS):g}); --width is always among them",
    )
    add("--save", type=Path, metavar="MODEL", help="write the fitted model, for predict")
    add("--predictions", type=Path, metavar="PATH", help="write a CSV file with a prediction for every row")
    add_plot(parser, "propkernel_fit.png")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fit, print the report, save the plot, the model and the numbers."""
    plot = None if arguments.no_plot else arguments.plot
    output = Output(arguments.json, plot, arguments.save, arguments.predictions)
    network = network_of(arguments)
    table, rows = read_rows(arguments)
    fit = None
    if arguments.temperature == AUTO:
        with steps(1) as step:
            step("temperature")
            network, fit = network.with_temperature(rows)
    analysis = analyze(network, rows, arguments.widths)
    output.say(report(table, rows, network, fit, analysis, arguments.seed))
    output.numbers(as_json(table, rows, network, fit, analysis, arguments.seed))
    if arguments.predictions is not None:
        _write_predictions(output, arguments.predictions, table, rows, network, analysis)
    if arguments.save is not None:
        columns = {
            "inputs": None if table.input_names is None else list(table.input_names),
            "count": table.x.shape[-1],
            "kept": list(rows.kept),
        }
        save(
            analysis.model,
            arguments.save,
            normalization=rows.units,
            extra={"columns": columns, "data": table.name, "target": table.target},
        )
        output.say(f"\nmodel: {arguments.save}")
    if plot is not None:
        if analysis.sweep is None or len(analysis.sweep.width) < 2:
            output.say("\nno plot: it needs at least two finite widths (--widths)")
        else:
            output.figure(plot, partial(_draw, table, network, analysis))
    return 0


def _write_predictions(
    output: Output, path: Path, table: Table, rows: Rows, network: Network, analysis: Analysis
) -> None:
    """Write predictions of all rows in the file's order; those of training rows are leave-one-out."""
    noise = network.temperature * rows.scale**2
    found = []
    for split, indices, error in (
        ("training", rows.train, analysis.leave_one_out),
        ("held-out", rows.test, analysis.test),
    ):
        if error is None:
            continue
        spread, noisy = error.variance.sqrt(), (error.variance + noise).sqrt()
        columns = (indices, table.y[indices], error.mean, spread, noisy)
        for index, *values in zip(*(column.tolist() for column in columns), strict=True):
            found.append((table.lines[index], split, *values))
    header = ("line", "split", "target", "mean", "standard_deviation", "standard_deviation_with_noise")
    output.table(path, header, sorted(found), "predictions")


def _draw(table: Table, network: Network, analysis: Analysis) -> Figure:
    from ..plotting import plot_sweep

    assert analysis.sweep is not None
    free = analysis.free_scale
    baseline = {"leave_one_out": float(free.leave_one_out.mean_total)}
    if free.test is not None:
        baseline["test"] = float(free.test.mean_total)
    axes = plot_sweep(analysis.sweep, free_scale=baseline, chosen=network.width)
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    figure.suptitle(f"{table.name}: {table.target}\n{network.activation!r}, T = {network.temperature:.4g}")
    return figure
