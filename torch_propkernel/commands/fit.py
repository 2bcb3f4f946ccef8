"""``fit``: order parameters and predicted errors of one network on a table, beside its baselines."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..saving import save
from ..theories import THEORIES, WidthSweep, fit_order_parameters, get_theory
from .analysis import DEFAULT_WIDTHS, Analysis, analyze, evidence_gap, sweep_widths
from .data import Rows, Table
from .network import Network, listed
from .options import (
    UNITS,
    add_data,
    add_json,
    add_network,
    add_plot,
    exit_code,
    is_given,
    network_of,
    new_parser,
    numbers,
    read_rows,
)
from .output import Output
from .report import as_json, report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PREDICTING = sorted(name for name, theory in THEORIES.items() if theory.has_leave_one_out)

EPILOG = f"""\
{UNITS}

the comparison has infinite width at these hyperparameters (where nothing is given this is ScaleKernel(NNGPKernel) with
ARD, tuned by evidence), its kernel with one more free scale, the saddle point and the mixture (the scale integrated) at
the width. Recommended is the theory of the lowest NLPD (mean of -log p(y)), or a simpler one within two standard errors
of it (paired over rows). Intervals are mean +- 1.96 standard deviations with noise.

--save refits the saddle point on all rows, with these hyperparameters and units: predict uses all of them.

keys of --json:
  data            name, target, description, rows, columns, dropped_columns (of the inputs, from 0), dropped_lines,
                  training_rows, held_out_rows, unused_rows, seed, target_mean, target_standard_deviation
  network         activation, width, composition, temperature, weight_variance, bias_variance,
                  ard_weights (null without), alpha
  hyperparameters values, log_evidence (of the standardized targets), rows (fitted on), converged, message, at_bound;
                  null if nothing was fitted
  evidence_gap    nats, temperature, scale: how much higher the evidence at infinite width is with another temperature
                  and the kernel times a scale; null if no temperature or variance is given
  solution        order_parameter, result, message, num_minima, reliable, reliability (a text), score, typical_error
                  and large_error (relative errors of sampled networks with such a score: median, 90th percentile)
  leave_one_out   infinite_width, finite_width, free_scale, each with bias, variance, total
  held_out        the same, or null if nothing is held out
  comparison      a list of theory, rmse, r2, nlpd, coverage_95, seconds (beyond the kernel matrix and its reduction),
                  recommended; null if nothing is held out
  free_scale      scale, log_evidence (of the standardized targets), at_edge
  next            what to do next (a text)
  sweep           lists, one entry for each width: width, alpha, order_parameter (a list over layers each),
                  leave_one_out, held_out (totals); null if every layer is infinite
an infinite width is null.

columns of --predictions, in the target's units: line (of the file), split (training or held-out), target, mean,
standard_deviation (of the network's function), standard_deviation_with_noise. Training rows are predicted from all
others (leave-one-out); those that --max-rows leaves out are not. --theory names the theory.

examples:
  torch-propkernel fit
  torch-propkernel fit data.csv --target price --width 100,50 --save model.propkernel
  torch-propkernel fit export.csv --sep ";" --drop id,date --max-rows 3000"""


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
    add("--save", type=Path, metavar="MODEL", help="write the model, refitted on all rows, for predict")
    add("--predictions", type=Path, metavar="PATH", help="write a CSV file with a prediction for every row")
    add(
        "--theory",
        default="saddle",
        metavar="NAME",
        choices=_PREDICTING,
        help=f"of --predictions: one of {', '.join(_PREDICTING)} (default: saddle)",
    )
    add_plot(parser, "propkernel_fit.png")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fit, print the report, save the plot, the model and the numbers."""
    plot = None if arguments.no_plot else arguments.plot
    output = Output(
        {"DATA.csv": arguments.data},
        {"--json": arguments.json, "--plot": plot, "--save": arguments.save, "--predictions": arguments.predictions},
    )
    sweep_widths(arguments.width, arguments.widths or DEFAULT_WIDTHS)
    table, rows = read_rows(arguments)
    network = network_of(arguments, rows, get_theory(arguments.theory).check)
    analysis = analyze(network, rows, arguments.widths, arguments.theory)
    gap = evidence_gap(analysis, is_given(arguments))
    output.say(report(table, rows, network, analysis, gap, arguments.seed))
    output.numbers(as_json(table, rows, network, analysis, gap, arguments.seed))
    if arguments.predictions is not None:
        _write_predictions(output, arguments.predictions, table, rows, network, analysis)
    if arguments.save is not None:
        _save(output, arguments.save, table, rows, network, analysis)
    if plot is not None:
        if analysis.sweep is None or len(analysis.sweep.width) < 2:
            output.say("\nno plot: it needs at least two finite widths (--widths)")
        else:
            output.figure(plot, partial(_draw, table, network, analysis, analysis.sweep))
    return exit_code(network)


def _save(output: Output, path: Path, table: Table, rows: Rows, network: Network, analysis: Analysis) -> None:
    """Save the process on all rows, in the units of the training rows, to which the hyperparameters belong."""
    model = analysis.model
    if len(rows.saved) > len(rows.train):
        x, y = table.x[rows.saved][:, list(rows.kept)], table.y[rows.saved]
        model = network.model(rows.units.to_model(x), rows.units.targets.to_model(y))
        fit_order_parameters(model, warn=False)
    columns = {
        "inputs": None if table.input_names is None else list(table.input_names),
        "count": table.x.shape[-1],
        "kept": list(rows.kept),
    }
    extra = {"columns": columns, "data": table.name, "target": table.target}
    save(model, path, normalization=rows.units, extra=extra)
    what = "all rows" if len(rows.saved) == len(table.y) else f"{len(rows.saved)} rows (--max-rows)"
    q = listed(model.covar_module.order_parameter.flatten().tolist(), 6)
    output.say(f"\nmodel: {path}, refitted on {what} with the same hyperparameters and units: q = {q}")


def _write_predictions(
    output: Output, path: Path, table: Table, rows: Rows, network: Network, analysis: Analysis
) -> None:
    """Write predictions of all rows in the file's order; those of training rows are leave-one-out."""
    noise = network.temperature * rows.scale**2
    found = []
    for split, indices, error in (
        ("training", rows.train, analysis.predicting.leave_one_out),
        ("held-out", rows.test, analysis.predicting.test),
    ):
        if error is None:
            continue
        spread, noisy = error.variance.sqrt(), (error.variance + noise).sqrt()
        columns = (indices, table.y[indices], error.mean, spread, noisy)
        for index, *values in zip(*(column.tolist() for column in columns), strict=True):
            found.append((table.lines[index], split, *values))
    header = ("line", "split", "target", "mean", "standard_deviation", "standard_deviation_with_noise")
    output.table(path, header, sorted(found), "predictions")


def _draw(table: Table, network: Network, analysis: Analysis, sweep: WidthSweep) -> Figure:
    from ..plotting import plot_sweep
    from ..plotting.style import figure_of

    free = analysis.free_errors
    baseline = {"leave_one_out": float(free.leave_one_out.mean_total)}
    if free.test is not None:
        baseline["test"] = float(free.test.mean_total)
    axes = plot_sweep(sweep, free_scale=baseline, chosen=network.width)
    figure = figure_of(axes[0])
    figure.suptitle(f"{table.name}: {table.target}\n{network.prior.activation!r}, T = {network.temperature:.4g}")
    return figure
