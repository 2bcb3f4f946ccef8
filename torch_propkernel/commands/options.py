"""Arguments that several commands take, declared and read in one place."""

from __future__ import annotations

import argparse
import csv
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._memory import Cost, check_memory, estimate_fit
from .._validation import as_width
from ..activations import ACTIVATIONS
from ..kernels.compositions import COMPOSITIONS, get_composition
from ..models import NetworkGP
from ..tuning.auto import fit_network
from .data import Rows, Table, load_table, split_and_standardize
from .network import Network
from .steps import steps

AUTO = "auto"

UNITS = """\
inputs and targets are standardized on the training rows; the temperature and the variances are in those units, errors
are reported in the target's own units squared.

hyperparameters that are not given are fitted by evidence at infinite width on at most 1000 random training rows, then
frozen; only then the width is put in and the order parameters are solved. A number that is given is never fitted."""

EXIT_CODES = """\
exit codes: 0 done; 1 a solve or a search did not converge; 2 bad input or arguments, or not enough memory (the message
is on stderr); 130 interrupted. Files that a run reads are never written to, others are replaced in one step."""


SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "space": " "}

PATIENCE = 30.0
"""Seconds that a run may take without being announced."""

SEARCH_ROWS = 1000
"""Rows on which hyperparameters are fitted at most."""


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


def separator(text: str) -> str:
    r"""Return the character between columns.

    Example:
        >>> separator("tab"), separator(";")
        ('\t', ';')
    """
    found = SEPARATORS.get(text.lower(), text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"expected one character or one of {', '.join(SEPARATORS)}, got {text!r}")
    return found


def columns(text: str) -> list[str]:
    """Return comma-separated names or indices; quotes keep the comma in a name.

    Example:
        >>> columns('id,"a, b",3')
        ['id', 'a, b', '3']
    """
    return [column.strip() for column in next(csv.reader([text]), [])]


def numbers_or_auto(text: str) -> tuple[float, ...] | None:
    """Return comma-separated numbers, or None for "auto".

    Example:
        >>> numbers_or_auto("0.1"), numbers_or_auto("auto")
        ((0.1,), None)
    """
    if text.lower() == AUTO:
        return None
    try:
        return numbers(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas or {AUTO}, got {text!r}") from None


def temperature(text: str) -> float | None:
    """Return a number, or None for "auto".

    Example:
        >>> temperature("0.1"), temperature("auto")
        (0.1, None)
    """
    try:
        return None if text.lower() == AUTO else float(text)
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
    add("--max-rows", type=int, metavar="P", help="train on a random P of the training rows where there are more")
    add("--seed", type=int, default=0, help="of the split and of --max-rows (default: 0)")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare how a table is read."""
    add = parser.add_argument
    add(
        "--sep",
        type=separator,
        metavar="S",
        help="what separates columns: a character, or tab or space (default: found out among tab, semicolon, comma and "
        "spaces)",
    )
    add(
        "--drop",
        type=columns,
        action="extend",
        default=[],
        metavar="COL[,COL...]",
        help="leave out columns, whatever they hold: their names, or their indices from 0; may be repeated",
    )
    add(
        "--header",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether the first row holds names (default: auto, it does if none of its cells is a number; a row 0,1,2 "
        "needs yes or no)",
    )
    add("--drop-missing", action="store_true", help="leave out rows with missing values, which are refused otherwise")


def add_network(
    parser: argparse.ArgumentParser, width: tuple[float, ...] | None = (100.0,), activation: str = "relu"
) -> None:
    """Declare the network; without a default width it is chosen."""
    add = parser.add_argument
    names = ", ".join(sorted(ACTIVATIONS))
    add("--activation", default=activation, metavar="NAME", help=f"one of {names} (default: {activation})")
    chosen = "chosen between 50 and infinity" if width is None else f"{width[0]:g}"
    text = f"one for each hidden layer (default: {chosen})"
    add("--width", type=numbers, default=width, metavar="N[,N...]", help=text)
    fitted = "default: auto, fitted by evidence"
    add("--temperature", type=temperature, metavar="T", help=f"variance of the noise ({fitted})")
    add("--weight-variance", type=numbers_or_auto, metavar="W[,W...]", help=f"w_0, ..., w_L ({fitted})")
    add("--bias-variance", type=numbers_or_auto, metavar="B[,B...]", help=f"b_0, ..., b_(L-1) ({fitted})")
    add("--no-ard", action="store_true", help="one variance for the weights of all inputs, none fitted for each (ARD)")
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


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how the table is read, as :func:`torch_propkernel.datasets.csv.read_csv` takes it."""
    return {
        "header": {"auto": None, "yes": True, "no": False}[arguments.header],
        "delimiter": arguments.sep,
        "drop": arguments.drop,
        "drop_missing": arguments.drop_missing,
    }


def read_rows(arguments: argparse.Namespace) -> tuple[Table, Rows]:
    """Read the table and split it, if the machine has the memory for that many rows.

    Raises:
        NotEnoughMemoryError: It has not; --max-rows is named.
    """
    table = load_table(arguments.data, arguments.target, **reading(arguments))
    rows = split_and_standardize(table, arguments.test_fraction, arguments.seed, arguments.max_rows)
    num_rows, num_test = len(rows.train), len(rows.test)
    size = num_rows if getattr(arguments, "save", None) is None else len(rows.saved)
    costs = [estimate_fit(size, num_test)]
    if _is_fitted(arguments):
        # The search holds what its gradients need; both were measured at 3,000 rows.
        costs.append(estimate_fit(min(num_rows, SEARCH_ROWS), matrices=20.0, factorizations=500.0))
    cost = Cost(max(each.num_bytes for each in costs), sum(each.seconds for each in costs))
    what = f"{num_rows} training rows"
    remedy = (
        "--max-rows P trains on a random P of them; in Python fit_order_parameters and SaddlePoint().fit(model) do "
    )
    check_memory(what, cost, f"{remedy}without the matrix, at hyperparameters that are given")
    if cost.seconds > PATIENCE:
        print(f"{what}: each fit needs about {cost} (--max-rows trains on fewer)", file=sys.stderr)
    return table, rows


def _is_fitted(arguments: argparse.Namespace) -> bool:
    """Whether a hyperparameter is left to the evidence."""
    given = (arguments.temperature, arguments.weight_variance, arguments.bias_variance)
    return any(value is None for value in given) or not arguments.no_ard


def is_given(arguments: argparse.Namespace) -> bool:
    """Whether a temperature or a variance is given."""
    given = (arguments.temperature, arguments.weight_variance, arguments.bias_variance)
    return any(value is not None for value in given)


def network_of(arguments: argparse.Namespace, rows: Rows, check: Callable[[NetworkGP], None]) -> Network:
    """Return the network; what is not given of its hyperparameters is fitted to the training rows at infinite width.

    Args:
        arguments: Of the command.
        rows: Standardized data.
        check: Raises if the command does not apply to such a network; called before the search.

    Raises:
        ValueError: A width, variance or temperature that is not positive, a wrong number of variances, another name.
    """
    width, composition = arguments.width, arguments.composition
    as_width(width)
    get_composition(composition)
    with steps(1) as step:
        step("hyperparameters")
        prior = fit_network(
            rows.x,
            rows.y,
            arguments.activation,
            len(width),
            temperature=arguments.temperature,
            weight_variance=arguments.weight_variance,
            bias_variance=arguments.bias_variance,
            ard_weights=1.0 if arguments.no_ard else None,
            max_rows=SEARCH_ROWS,
            seed=arguments.seed,
            check=lambda first: check(first.model(rows.x, rows.y, width, composition)),
        )
    if prior.search is not None and not prior.search.converged:
        print(
            f"hyperparameters: the best values of a search that did not converge: {prior.search.message}",
            file=sys.stderr,
        )
    return Network(prior, width, composition)


def exit_code(network: Network) -> int:
    """Return 1 after a search that did not converge, else 0."""
    return 0 if network.prior.search is None or network.prior.search.converged else 1
