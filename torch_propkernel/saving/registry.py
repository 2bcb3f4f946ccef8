"""Which classes can be saved, and how each is built again: by arguments of its constructor and its own state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gpytorch
import torch
from gpytorch.utils.transforms import inv_sigmoid, inv_softplus


@dataclass(frozen=True)
class Entry:
    """How objects of one class are described and built.

    Whatever a module holds as parameters, buffers and constraints is stored as it is and put back after construction;
    an entry names the rest.

    Attributes:
        cls: The class; subclasses are not meant.
        arguments: Arguments of the constructor that are attributes of the object with the same name.
        computed: Further arguments, from the object.
        positional: Attribute that holds the constructor's positional arguments.
        priors: Registered name of each prior, and the argument that takes it; None if other arguments imply the prior.
        children: Submodules that are set after construction.
        held: Names of the submodules that an argument of another name holds, from the object.
        values: Plain attributes that are set after construction.
        has_data: Whether it is a model with training data, which is stored beside it.
        renamed: Arguments of earlier versions, and what they are called now.
    """

    cls: type
    arguments: tuple[str, ...] = ()
    computed: Callable[[Any], dict[str, Any]] | None = None
    positional: str | None = None
    priors: Mapping[str, str | None] = field(default_factory=dict)
    children: tuple[str, ...] = ()
    held: Callable[[Any], Iterable[str]] | None = None
    values: tuple[str, ...] = ()
    has_data: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Top-level package and class."""
        return f"{self.cls.__module__.split('.')[0]}.{self.cls.__name__}"


RETIRED = {
    "torch_propkernel.Linearized": 'composition="nested", whose first order it was, or "linear_part"',
    "torch_propkernel.GeneralizedInverseGaussianMixing": (
        "another law of torch_propkernel.mixing, or posterior_of_scale(spectrum, GammaMixing(width), 0.0) where it "
        "stood for the posterior at T = 0"
    ),
}
"""Classes that files of 0.1.0 may hold and later versions do not have, and what replaces each."""

_BY_CLASS: dict[type, Entry] = {}
_BY_NAME: dict[str, Entry] = {}

# The maps of constraints; a name stands for each in a file.
FUNCTIONS: dict[str, Any] = {
    "softplus": gpytorch.constraints.constraints.softplus,
    "inv_softplus": inv_softplus,
    "functional.softplus": torch.nn.functional.softplus,
    "sigmoid": torch.sigmoid,
    "inv_sigmoid": inv_sigmoid,
    "exp": torch.exp,
    "log": torch.log,
}


def register(*entries: Entry) -> None:
    """Allow objects of these classes to be saved and loaded."""
    for entry in entries:
        _BY_CLASS[entry.cls] = entry
        _BY_NAME[entry.name] = entry


def entry_of(value: Any) -> Entry | None:
    """Return the entry of an object's own class."""
    return _BY_CLASS.get(type(value))


def entry_named(name: Any) -> Entry | None:
    """Return the entry of that name."""
    return _BY_NAME.get(name) if isinstance(name, str) else None


def allowed_names(kind: type) -> list[str]:
    """Return the names of the registered public classes that are of one kind, sorted."""
    found = (name for name, entry in _BY_NAME.items() if issubclass(entry.cls, kind))
    return sorted(name for name in found if "._" not in name)


def name_of_function(value: Any) -> str | None:
    """Return the name of a constraint's map, or None."""
    if type(value) is torch.nn.Softplus:  # a module, which a deep copy of a model copies too
        return "softplus" if (value.beta, value.threshold) == (1.0, 20.0) else None
    return next((name for name, function in FUNCTIONS.items() if value is function), None)
