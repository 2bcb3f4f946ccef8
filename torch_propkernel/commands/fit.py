"""``fit``: order parameters and predicted errors of one network on a table, beside its baselines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..functions import ACTIVATIONS, get_activation
from ..kernels.compositions import COMPOSITIONS
from .analysis import DEFAULT_WIDTHS, Analysis, analyze
from .data import Table, load_table, split_and_standardize
from .network import Network
from .report import as_json, report

EPILOG = """\
inputs and targets are standardized on the training rows; the temperature and the variances are in those units, errors
are reported in the target's own units squared. The free scale is that of ScaleKernel(NNGPKernel) with the highest
evidence.

keys of --json:
  data            name, target, description, rows, columns, dropped_columns (of the inputs, from 0), training_rows,
                  held_out_rows, seed, target_mean, target_standard_deviation
  network         activation, width, composition, temperature, weight_variance, bias_variance, alpha
  solution        order_parameter, result, message, num_minima, reliable, reliability
  leave_one_out   infinite_width, finite_width, free_scale, each with bias, variance, total
  held_out        the same, or null if nothing is held out
  free_scale      scale, log_evidence (of the standardized targets), at_edge
  sweep           lists, one entry for each width: width, alpha, order_parameter (a list over layers each),
                  leave_one_out, held_out (totals); null if every layer is infinite
an infinite width is null."""


def numbers(text: str) -> tuple[float, ...]:
    """Return comma-separated numbers.

    Example:
        >>> numbers("100, 50")
        (100.0, 50.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "fit",
        help="solve the order parameters of a network on a table and report its predicted errors",
        description="Solve the order parameters of a Bayesian network of finite width on a table, and report the "
        "errors it predicts beside those of the infinite width and of a free kernel scale.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", nargs="?", type=Path, metavar="DATA.csv", help="numeric table; the shipped yacht data if left out")
    add("--target", metavar="COL", help="target column: its name, or its index from 0 (default: the last one)")
    add("--activation", default="relu", metavar="NAME", help=f"one of {', '.join(sorted(ACTIVATIONS))} (default: relu)")
    add("--width", type=numbers, default=(100.0,), metavar="N[,N...]", help="one for each hidden layer (default: 100)")
    add("--temperature", type=float, default=0.01, metavar="T", help="variance of the noise (default: 0.01)")
    add("--weight-variance", type=numbers, default=(1.0,), metavar="W[,W...]", help="w_0, ..., w_L (default: 1)")
    add("--bias-variance", type=numbers, default=(1.0,), metavar="B[,B...]", help="b_0, ..., b_(L-1) (default: 1)")
    names = ", ".join(sorted(COMPOSITIONS))
    add("--composition", default="outer", metavar="NAME", help=f"one of {names}; they differ for several layers")
    add("--test-fraction", type=float, default=0.25, metavar="F", help="share of rows to hold out (default: 0.25)")
    add("--seed", type=int, default=0, help="of the split (default: 0)")
    add(
        "--widths",
        type=numbers,
        metavar="N[,N...]",
        help="widths of the first layer to sweep, other layers in proportion (default: "
        f"{len(DEFAULT_WIDTHS)} from {min(DEFAULT_WIDTHS):g} to {max(DEFAULT_WIDTHS):g}); --width is always among them",
    )
    add("--plot", type=Path, default=Path("propkernel_fit.png"), metavar="PATH", help="(default: propkernel_fit.png)")
    add("--no-plot", action="store_true", help="save no plot")
    add("--json", type=Path, metavar="PATH", help="write the numbers too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fit, print the report, save the plot and the numbers."""
    outputs = [None if arguments.no_plot else arguments.plot, arguments.json]
    for path in outputs:
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: expected a folder {path.parent} that exists")
    network = Network(
        get_activation(arguments.activation),
        arguments.width,
        arguments.temperature,
        arguments.weight_variance,
        arguments.bias_variance,
        arguments.composition,
    )
    table = load_table(arguments.data, arguments.target)
    rows = split_and_standardize(table, arguments.test_fraction, arguments.seed)
    analysis = analyze(network, rows, arguments.widths)
    print(report(table, rows, network, analysis, arguments.seed))
    if arguments.json is not None:
        text = json.dumps(as_json(table, rows, network, analysis, arguments.seed), indent=1, allow_nan=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
        print(f"\nnumbers: {arguments.json}")
    if not arguments.no_plot:
        save_plot(arguments.plot, table, network, analysis)
    return 0


def save_plot(path: Path, table: Table, network: Network, analysis: Analysis) -> None:
    """Save the plot of the sweep, or say why there is none."""
    if analysis.sweep is None or len(analysis.sweep.width) < 2:
        print("\nno plot: it needs at least two finite widths (--widths)")
        return
    from ..plotting import plot_sweep

    free = analysis.free_scale
    baseline = {"leave_one_out": float(free.leave_one_out.mean_total)}
    if free.test is not None:
        baseline["test"] = float(free.test.mean_total)
    try:
        axes = plot_sweep(analysis.sweep, free_scale=baseline, chosen=network.width)
    except ImportError as error:
        print(f"\nno plot: {error}", file=sys.stderr)
        return
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    figure.suptitle(f"{table.name}: {table.target}\n{network.activation!r}, T = {network.temperature:g}")
    figure.savefig(path, dpi=150)
    print(f"\nplot: {path}")
