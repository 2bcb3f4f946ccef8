"""Views of a model: the same parameters behind other modules, so that nothing of the model is ever changed."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


def twin(module: Module) -> Module:
    """Return a module that shares everything with ``module`` but the table of its submodules.

    What is assigned to the twin does not reach the module: its attributes are its own, its parameters, buffers and
    submodules are those of the module.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> other = twin(layer)
        >>> other.training = False
        >>> layer.training, other.weight is layer.weight
        (True, True)
    """
    made = module.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["_modules"] = dict(module._modules)
    return made


def evaluation_view(model: Module) -> Module:
    """Return the model as it is in evaluation mode: twins of all its modules, which no mode of the model reaches."""
    made: dict[int, Any] = {}

    def visit(module: Any) -> Any:
        if module is None:
            return None
        if id(module) not in made:
            made[id(module)] = new = twin(module)
            new.__dict__["training"] = False
            new.__dict__["_modules"] = {name: visit(child) for name, child in module._modules.items()}
        return made[id(module)]

    return visit(model)


def replaced(model: Any, old: torch.nn.Module, new: torch.nn.Module) -> Any:
    """Return a view of the model with ``new`` wherever ``old`` was; modules without ``old`` inside are shared."""
    made: dict[int, Any] = {id(old): new}

    def visit(module: Any) -> Any:
        if module is None or id(module) in made:
            return made.get(id(module))
        children = {name: visit(child) for name, child in module._modules.items()}
        if all(children[name] is child for name, child in module._modules.items()):
            made[id(module)] = module
        else:
            made[id(module)] = view = twin(module)
            view.__dict__["_modules"] = children
        return made[id(module)]

    return visit(model)
