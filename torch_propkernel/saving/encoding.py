"""Objects as JSON, with their tensors set aside, and back."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from gpytorch.means import Mean
from gpytorch.models import GP
from gpytorch.priors import Prior
from torch import Tensor

from ..activations import Activation
from ..kernels import Composition
from ..mixing import MixingLaw
from ..theories import Theory
from .archive import SavedModelError
from .registry import FUNCTIONS, RETIRED, Entry, allowed_names, entry_named, entry_of, name_of_function

_KINDS = (GP, Kernel, Likelihood, Mean, Prior, Interval, Activation, Composition, MixingLaw, Theory)
_DTYPES = {getattr(torch, name) for name in "float64 float32 float16 int64 int32 int16 int8 uint8 bool".split()}
_HOSTS = ("gpytorch", "botorch", "torch_propkernel")


class Encoder:
    """Turns objects into JSON and collects their tensors.

    Attributes:
        tensors: The tensors, in the order of their numbers.
    """

    def __init__(self) -> None:
        """Begin without tensors."""
        self.tensors: list[Tensor] = []
        self._modules: dict[int, int] = {}
        self._parameters: set[int] = set()

    def value(self, value: Any, path: str) -> Any:
        """Return ``value`` as JSON.

        Args:
            value: Numbers, texts, tensors, containers of these, and objects of registered classes.
            path: Where it is in the model, for messages.

        Raises:
            SavedModelError: Something else.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, path)}
        for kind, name in ((torch.Size, "size"), (tuple, "tuple"), (list, "list"), (torch.nn.ModuleList, "list")):
            if type(value) is kind:
                return {name: [self.value(item, f"{path}[{i}]") for i, item in enumerate(value)]}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.value(item, f"{path}[{key!r}]") for key, item in value.items()}}
        function = name_of_function(value)
        if function is not None:
            return {"function": function}
        entry = entry_of(value)
        if entry is None:
            raise SavedModelError(_refusal(value, path))
        return self._object(value, entry, path)

    def _tensor(self, value: Tensor, path: str) -> int:
        if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
            raise SavedModelError(f"{path}: expected a plain tensor, got {type(value).__name__} of {value.layout}")
        if value.dtype not in _DTYPES:
            raise SavedModelError(f"{path}: expected a dtype that NumPy has, got {value.dtype}")
        self.tensors.append(value.detach())
        return len(self.tensors) - 1

    def _object(self, value: Any, entry: Entry, path: str) -> dict[str, Any]:
        if isinstance(value, torch.nn.Module):
            if id(value) in self._modules:
                return {"same": self._modules[id(value)]}
            self._modules[id(value)] = len(self._modules)
        arguments = {name: getattr(value, name) for name in entry.arguments}
        arguments |= entry.computed(value) if entry.computed is not None else {}
        positional = [] if entry.positional is None else list(getattr(value, entry.positional))
        record: dict[str, Any] = {"class": entry.name}
        # The order is that of the decoder, so that "same" refers to what was built before.
        record["positional"] = [
            self.value(item, f"{path}.{entry.positional}[{i}]") for i, item in enumerate(positional)
        ]
        record["arguments"] = {name: self.value(item, f"{path}.{name}") for name, item in arguments.items()}
        if isinstance(value, torch.nn.Module):
            record |= self._state(value, entry, path, arguments)
        record["values"] = {name: self.value(getattr(value, name), f"{path}.{name}") for name in entry.values}
        return record

    def _state(self, module: Any, entry: Entry, path: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Everything that a module holds by itself."""
        constraints, priors = getattr(module, "_constraints", {}), getattr(module, "_priors", {})
        record: dict[str, Any] = {"priors": {}, "constraints": {}, "children": {}, "parameters": {}, "buffers": {}}
        for name, (prior, closure, setter) in priors.items():
            parameter = _parameter_of(closure)
            host = all(f is None or getattr(f, "__module__", "").split(".")[0] in _HOSTS for f in (closure, setter))
            if parameter is None and not (host and name in entry.priors):
                raise SavedModelError(
                    f"{path}.{name}: expected a prior that was given to the constructor of {entry.name} or registered "
                    f"with the name of a parameter, got one with functions of its own ({closure!r})"
                )
            record["priors"][name] = {"of": parameter, "prior": self.value(prior, f"{path}.{name}")}
        for name, constraint in constraints.items():
            record["constraints"][name] = self.value(constraint, f"{path}.{name}")
        for name in entry.children:
            record["children"][name] = self.value(getattr(module, name), f"{path}.{name}")
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in self._parameters:
                raise SavedModelError(f"{path}.{name}: expected a parameter of one module, got one that two share")
            self._parameters.add(id(parameter))
            tensor = self.value(parameter, f"{path}.{name}")
            record["parameters"][name] = [tensor, parameter is not None and parameter.requires_grad]
        for name, buffer in module._buffers.items():
            record["buffers"][name] = self.value(buffer, f"{path}.{name}")
        known = {*priors, *constraints, *entry.children, entry.positional, "distance_module"}
        known |= {"_transform", "_inv_transform"} if isinstance(module, Interval) else set(arguments)
        known |= set(() if entry.held is None else entry.held(module))
        for name, child in module._modules.items():
            if child is not None and name not in known:
                raise SavedModelError(f"{path}.{name}: expected no further submodule, got {type(child).__name__}")
        return record


def _parameter_of(closure: Any) -> str | None:
    """Return the parameter's name if the prior was registered with one."""
    if getattr(closure, "__module__", None) != "gpytorch.module" or not inspect.isfunction(closure):
        return None
    name = inspect.getclosurevars(closure).nonlocals.get("param")
    return name if isinstance(name, str) else None


def _refusal(value: Any, path: str) -> str:
    """Say what would have been allowed in the object's place."""
    kind = next((kind for kind in _KINDS if isinstance(value, kind)), None)
    got = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind is None:
        what = "numbers, texts, tensors, lists, dicts, or objects of the package and of GPyTorch"
        return f"{path}: expected {what}, got {got}: {value!r:.200}"
    hint = {
        GP: "; put your mean and kernel into one of these",
        Activation: "; a file holds no code, so that an activation made of your own function cannot be in it",
        Composition: "; a file holds no code of your own",
        MixingLaw: "; a file holds no code of your own",
        Theory: "; a file holds no code of your own",
    }.get(kind, "")
    return f"{path}: expected one of {', '.join(allowed_names(kind))}, got {got}{hint}"


class Decoder:
    """Builds what an :class:`Encoder` described; only registered classes are ever called.

    Args:
        tensors: The tensors.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        """Store the tensors."""
        self._tensors = tensors
        self._modules: dict[int, Any] = {}
        self._count = 0

    def value(self, code: Any) -> Any:
        """Return the object that ``code`` describes.

        Raises:
            SavedModelError: An unknown class; other errors where the description makes no sense.
        """
        if not isinstance(code, dict):
            return code
        if "class" in code:
            return self._object(code)
        ((kind, inner),) = code.items()
        if kind == "tensor":
            return self._tensors[inner]
        if kind == "same":
            return self._modules[inner]
        if kind == "dict":
            return {name: self.value(item) for name, item in inner.items()}
        if kind == "function":
            return FUNCTIONS[inner]
        if kind == "float":
            return float(inner)
        return {"size": torch.Size, "tuple": tuple, "list": list}[kind](self.value(item) for item in inner)

    def _object(self, code: dict[str, Any]) -> Any:
        name = code["class"]
        entry = entry_named(name)
        if entry is None and isinstance(name, str) and name in RETIRED:
            raise SavedModelError(
                f"expected a class that this version has, got {name!r}, which was removed in 0.2.0; build the model "
                f"again with {RETIRED[name]}"
            )
        if entry is None:
            raise SavedModelError(
                f"expected a class that can be loaded, got {name!r}: it is of a newer torch_propkernel, or of "
                "an optional part that has to be imported first"
            )
        number = self._count
        self._count += issubclass(entry.cls, torch.nn.Module)
        positional = [self.value(item) for item in code["positional"]]
        arguments = {entry.renamed.get(name, name): self.value(item) for name, item in code["arguments"].items()}
        priors = {name: (item["of"], self.value(item["prior"])) for name, item in code.get("priors", {}).items()}
        for name, (parameter, prior) in priors.items():
            if parameter is None and entry.priors[name] is not None:
                arguments[entry.priors[name]] = prior
        if entry.has_data:
            arguments |= {"train_inputs": None, "train_targets": None}
        value = entry.cls(*positional, **arguments)
        if isinstance(value, torch.nn.Module):
            self._modules[number] = value
            self._restore(value, entry, code, priors)
        for name in entry.values:
            setattr(value, name, self.value(code["values"][name]))
        return value

    def _restore(
        self, module: Any, entry: Entry, code: dict[str, Any], priors: dict[str, tuple[str | None, Any]]
    ) -> None:
        """Put back what the module holds by itself; its names must be those of the file."""
        for name, (parameter, prior) in priors.items():
            if parameter is not None:
                module.register_prior(name, prior, parameter)
        for name, item in code["constraints"].items():
            module.register_constraint(name.removesuffix("_constraint"), self.value(item))
        for name in entry.children:
            setattr(module, name, self.value(code["children"][name]))
        for attribute, names in (
            ("_priors", priors),
            ("_constraints", code["constraints"]),
            ("_parameters", code["parameters"]),
            ("_buffers", code["buffers"]),
        ):
            here = set(getattr(module, attribute, {}))
            if here != set(names):
                raise SavedModelError(
                    f"{type(module).__name__}: expected the {attribute[1:]} {sorted(names)} of the file, got "
                    f"{sorted(here)} in the installed version"
                )
        for name, (item, trains) in code["parameters"].items():
            tensor = self.value(item)
            module._parameters[name] = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=trains)
        for name, item in code["buffers"].items():
            module._buffers[name] = self.value(item)
