"""Command line: ``python -m torch_propkernel COMMAND``, also installed as ``torch-propkernel``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import ConvergenceError, __version__
from .commands import COMMANDS
from .commands.options import EXIT_CODES


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="torch-propkernel",
        description="Predicted errors of finite-width Bayesian networks, beside those of the infinite width.",
        epilog=f"torch-propkernel COMMAND --help has examples. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"torch_propkernel {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done; 1: a solve or a search did not converge; 2: bad input or arguments, or not enough memory; 130: interrupted.
    The message is on stderr.

    Args:
        argv: The arguments; those of the process if None.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or its message
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return int(arguments.run(arguments))
    except (ValueError, TypeError, OSError, MemoryError, ConvergenceError) as error:
        print(f"torch-propkernel {arguments.command}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ConvergenceError) else 2
    except KeyboardInterrupt:
        print(f"torch-propkernel {arguments.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
