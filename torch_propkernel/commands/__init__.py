"""The commands of ``python -m torch_propkernel``, one file each.

A command is a module with ``add_parser(subparsers)``, which declares its arguments and sets ``run``, and
``run(arguments)``, which prints and returns an exit code.
"""

from types import ModuleType

from . import fit

COMMANDS: tuple[ModuleType, ...] = (fit,)
