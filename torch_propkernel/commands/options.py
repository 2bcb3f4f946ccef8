"""Arguments that several commands take, declared and read in one place."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from ..activations import ACTIVATIONS, get_activation
from ..kernels.compositions import COMPOSITIONS
from .data import Rows, Table, load_table, split_and_standardize
from .network import Network

AUTO = "auto"

UNITS = """\
inputs and targets are standardized on the training rows; the temperature and the variances are in those units, errors
are reported in the target's own units squared."""

EXIT_CODES = """\
exit codes: 0 done; 1 a solve or a search did not converge; 2 bad input or arguments (the message is on stderr)."""


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


def temperature(text: str) -> float | str:
    """Return a number, or "auto".

    Example:
        >>> temperature("0.1"), temperature("auto")
        (0.1, 'auto')
    """
    if text.lower() == AUTO:
        return AUTO
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or {AUTO}, got {text!r}") from None


def new_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, text: str, epilog: str
) -> argparse.ArgumentParser:
    """Return the parser of one command; the exit codes are added to its help."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(text, 100),
        epilog=f"{epilog}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_data(parser: argparse.ArgumentParser, test_fraction: float = 0.25) -> None:
    """Declare the table and its split."""
    add = parser.add_argument
    add("data", nargs="?", type=Path, metavar="DATA.csv", help="numeric table; the shipped yacht data if left out")
    add("--target", metavar="COL", help="target column: its name, or its index from 0 (default: the last one)")
    add_reading(parser)
    add(
        "--test-fraction",
        type=float,
        default=test_fraction,
        metavar="F",
        help=f"share of rows to hold out (default: {test_fraction:g})",
    )
    add("--seed", type=int, default=0, help="of the split (default: 0)")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare how a table is read."""
    parser.add_argument(
        "--header",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the first row holds names (default: auto, it does if none of its cells is a number)",
    )
    parser.add_argument(
        "--drop-missing", action="store_true", help="leave out rows with missing values, which are refused otherwise"
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Declare the network."""
    add = parser.add_argument
    add("--activation", default="relu", metavar="NAME", help=f"one of {', '.join(sorted(ACTIVATIONS))} (default: relu)")
    add("--width", type=numbers, default=(100.0,), metavar="N[,N...]", help="one for each hidden layer (default: 100)")
    add(
        "--temperature",
        type=temperature,
        default=0.01,
        metavar="T",
        help="variance of the noise (default: 0.01), or auto: T and the ratios of bias to weight variances are chosen "
        "by evidence on the training rows",
    )
    add("--weight-variance", type=numbers, default=(1.0,), metavar="W[,W...]", help="w_0, ..., w_L (default: 1)")
    add("--bias-variance", type=numbers, default=(1.0,), metavar="B[,B...]", help="b_0, ..., b_(L-1) (default: 1)")
    names = ", ".join(sorted(COMPOSITIONS))
    add("--composition", default="outer", metavar="NAME", help=f"one of {names}; they differ for several layers")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare the file of numbers."""
    text = "write the numbers too; - writes them to stdout and nothing else there"
    parser.add_argument("--json", type=Path, metavar="PATH", help=text)


def add_plot(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare the plot."""
    parser.add_argument("--plot", type=Path, default=Path(name), metavar="PATH", help=f"(default: {name})")
    parser.add_argument("--no-plot", action="store_true", help="save no plot")


def header_of(arguments: argparse.Namespace) -> bool | None:
    """Return whether the table has a header, None for auto."""
    return {"auto": None, "yes": True, "no": False}[arguments.header]


def read_rows(arguments: argparse.Namespace) -> tuple[Table, Rows]:
    """Read the table and split it."""
    table = load_table(arguments.data, arguments.target, header_of(arguments), arguments.drop_missing)
    return table, split_and_standardize(table, arguments.test_fraction, arguments.seed)


def network_of(arguments: argparse.Namespace) -> Network:
    """Return the network; a temperature that is to be chosen starts at 0.01."""
    return Network(
        get_activation(arguments.activation),
        arguments.width,
        0.01 if arguments.temperature == AUTO else arguments.temperature,
        arguments.weight_variance,
        arguments.bias_variance,
        arguments.composition,
    )
