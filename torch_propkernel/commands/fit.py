"""``fit``: order parameters and predicted errors of one network on a table, beside its baselines."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .._validation import present
from ..models import FiniteNetworkProcess
from ..saving import save
from ..theories import THEORIES, Theory, WidthSweep, fit_order_parameters, get_theory
from ..tuning.predictor import WIDTH, NetworkPredictor, fit_predictor
from .analysis import DEFAULT_WIDTHS, Analysis, analyze, evidence_gap, sweep_widths
from .data import Rows, Table
from .network import Network, listed
from .options import (
    AUTO,
    SEARCH_ROWS,
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
from .steps import steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PREDICTING = sorted({AUTO, *(name for name, theory in THEORIES.items() if theory.has_leave_one_out)})
DEFAULT_THEORY = AUTO
_TIME_LIMIT = 120.0
_SHARE = 0.8  # of the time limit, for the choice; the rest is the adaptive theory's

EPILOG = f"""\
{UNITS}

--theory auto takes the best predictor that the training rows alone point to: infinite width, or the network itself,
whose weights are sampled, at the temperature that its own evidence and four folds prefer; it says which and why. A
theory that is named is fitted at the hyperparameters and the width (50 if none is given), which takes seconds.

the comparison has infinite width at these hyperparameters (where nothing is given this is ScaleKernel(NNGPKernel) with
ARD, tuned by evidence), its kernel with one more free scale, the saddle point and the mixture (the scale integrated) at
the width, with auto also the adaptive theory and the sampled network. Recommended is the theory of the lowest NLPD
(mean of -log p(y)), or within two standard errors of it (paired over rows) the one that auto chose, else a simpler one.
Intervals are between the quantiles at 2.5 and 97.5 %, with noise.

--save refits the theory on all rows, with these hyperparameters and units: predict uses all of them.

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
                  recommended (by the held-out rows), chosen (by auto); null if nothing is held out
  choice          theory, width (null: infinite), temperature, readout_factor, message, seconds, candidates (a list, as
                  Candidate of torch_propkernel.tuning); null if a theory was named
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
    add_network(parser, width=None, activation="erf")
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
        default=DEFAULT_THEORY,
        metavar="NAME",
        choices=_PREDICTING,
        help=f"of --predictions and --save: one of {', '.join(_PREDICTING)} (default: {DEFAULT_THEORY})",
    )
    add(
        "--time-limit",
        type=float,
        default=_TIME_LIMIT,
        metavar="SECONDS",
        help=f"for sampling and the adaptive theory (default: {_TIME_LIMIT:g}); what does not fit is left out",
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
    if not arguments.time_limit > 0:
        raise ValueError(f"--time-limit: expected a number of seconds > 0, got {arguments.time_limit:g}")
    searches = arguments.theory in (AUTO, "sampled") and len(set(arguments.width or (WIDTH,))) == 1
    sweep_widths(arguments.width or (float(WIDTH),), arguments.widths or DEFAULT_WIDTHS)
    table, rows = read_rows(arguments)
    if searches:
        begun = time.monotonic()
        predictor = _predictor(arguments, rows)
        depth = len(arguments.width or (WIDTH,))
        network = Network(predictor.prior, arguments.width or (float(WIDTH),) * depth, arguments.composition)
        left = arguments.time_limit - (time.monotonic() - begun)
        analysis = analyze(network, rows, arguments.widths, predictor=predictor, seconds_left=left)
    else:
        theory = _theory(arguments)
        arguments.width = arguments.width or (float(WIDTH),)
        network = network_of(arguments, rows, theory.check)
        analysis = analyze(network, rows, arguments.widths, theory)
    gap = evidence_gap(analysis, is_given(arguments))
    output.say(report(table, rows, network, analysis, gap, arguments.seed))
    output.numbers(as_json(table, rows, network, analysis, gap, arguments.seed))
    if arguments.predictions is not None:
        _write_predictions(output, arguments.predictions, table, rows, analysis)
    if arguments.save is not None:
        _save(output, arguments.save, table, rows, network, analysis)
    if plot is not None:
        if analysis.sweep is None or len(analysis.sweep.width) < 2:
            output.say("\nno plot: it needs at least two finite widths (--widths)")
        else:
            output.figure(plot, partial(_draw, table, network, analysis, analysis.sweep))
    return exit_code(network)


def _theory(arguments: argparse.Namespace) -> Theory:
    """Return the theory that was named; one that takes a seed and a time limit gets them."""
    theory = get_theory(arguments.theory)
    options = {"seed": arguments.seed, "time_limit": arguments.time_limit}
    return type(theory)(**{name: value for name, value in options.items() if name in vars(theory)})


def _predictor(arguments: argparse.Namespace, rows: Rows) -> NetworkPredictor:
    """Choose from the training rows, within a share of the time."""
    width = arguments.width
    with steps(7) as step:
        return fit_predictor(
            rows.x,
            rows.y,
            arguments.activation,
            1 if width is None else len(width),
            width=None if width is None else width[0],
            temperature=arguments.temperature,
            weight_variance=arguments.weight_variance,
            bias_variance=arguments.bias_variance,
            ard_weights=1.0 if arguments.no_ard else None,
            theory=AUTO if arguments.theory == AUTO else _theory(arguments),
            time_limit=_SHARE * arguments.time_limit,
            max_rows=SEARCH_ROWS,
            seed=arguments.seed,
            progress=lambda done, of: step(f"choice, {done} of {of}"),
        )


def _save(output: Output, path: Path, table: Table, rows: Rows, network: Network, analysis: Analysis) -> None:
    """Save the theory's process on all rows, in the units of the training rows, which the hyperparameters belong to."""
    x, y = table.x[rows.saved][:, list(rows.kept)], table.y[rows.saved]
    x, y = rows.units.to_model(x), rows.units.targets.to_model(y)
    more, wanted = len(rows.saved) > len(rows.train), analysis.wanted
    if wanted.theory.name == "saddle":
        model = analysis.model
        if more:
            model = network.model(x, y)
            fit_order_parameters(model, warn=False)
        q = listed(model.covar_module.order_parameter.flatten().tolist(), 6)
    else:
        model = FiniteNetworkProcess.from_fitted(wanted)
        if more:
            model.set_train_data(x, y, strict=False)
        q = listed(model.fitted.order_parameters.get("q", wanted.readout_norm).flatten().tolist(), 6)
    columns = {
        "inputs": None if table.input_names is None else list(table.input_names),
        "count": table.x.shape[-1],
        "kept": list(rows.kept),
    }
    extra = {"columns": columns, "data": table.name, "target": table.target}
    save(model, path, normalization=rows.units, extra=extra)
    what = "all rows" if len(rows.saved) == len(table.y) else f"{len(rows.saved)} rows (--max-rows)"
    output.say(
        f"\nmodel: {path}, {wanted.theory.name} refitted on {what} with the same hyperparameters and units: q = {q}"
    )


def _write_predictions(output: Output, path: Path, table: Table, rows: Rows, analysis: Analysis) -> None:
    """Write predictions of all rows in the file's order; those of training rows are leave-one-out."""
    noise = float(present(analysis.wanted.problem.temperature, "temperature")) * rows.scale**2
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
