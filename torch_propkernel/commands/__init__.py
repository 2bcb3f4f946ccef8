"""The commands of ``python -m torch_propkernel``, one file each.

A command is a module with ``add_parser(subparsers)``, which declares its arguments and sets ``run``, and
``run(arguments)``, which prints and returns an exit code. What several commands take is declared in ``options``.
"""

from types import ModuleType

from . import compare_widths, fit, predict, sweep

COMMANDS: tuple[ModuleType, ...] = (fit, predict, sweep, compare_widths)
