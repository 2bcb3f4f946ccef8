"""Saving a model to one file and loading it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import torch
from gpytorch.models import ExactGP
from torch import Tensor

from .._validation import check_inputs, check_targets
from ..inference import Normalization
from ..models import MultitaskNetworkGP
from . import classes  # noqa: F401 (fills the registry)
from .archive import SavedModelError, read_archive, write_archive
from .encoding import Decoder, Encoder
from .registry import allowed_names, entry_of


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What :func:`load` returns.

    Attributes:
        model: The model, in evaluation mode.
        normalization: The normalization that was saved.
        versions: Versions of the packages that saved it, for instance ``versions["torch"]``.
        extra: The extra entries that were saved.
    """

    model: Any
    normalization: Normalization | None
    versions: dict[str, str]
    extra: dict[str, Any]


class NoTrainingData(Sequence[Any]):
    """Stands for the training data of a model that was saved without them; whoever reads it is told so."""

    def _refuse(self) -> NoReturn:
        raise SavedModelError(
            "model: expected training data, got a model that was saved without; give them with load(path, x=x, "
            "y=y) or model.set_train_data(x, y, strict=False)"
        )

    def __len__(self) -> int:
        self._refuse()

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse()

    def __iter__(self) -> Iterator[Tensor]:
        self._refuse()


def save(
    model: Any,
    path: str | os.PathLike[str],
    *,
    training_data: bool = True,
    normalization: Normalization | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    r"""Save a model with its kernel, likelihood, order parameters and training data to one file that holds no code.

    The file is a zip of a JSON text and ``.npy`` arrays with a SHA-256 of it all: no pickle. It names classes and
    their arguments, so only classes that this package knows can be in it: :class:`NetworkGP`,
    :class:`MultitaskNetworkGP`, :class:`FiniteNetworkProcess` (with the networks that were drawn),
    :class:`NetworkFiniteWidthProcess`, :class:`NetworkStudentTProcess`; all theories, kernels, compositions, mixing
    laws and likelihoods of the package and its activations except a :class:`Quadrature` of your own function; of
    GPyTorch the scale, additive, product, constant, linear, polynomial, periodic, RBF, RQ and Matern kernels, the
    Gaussian likelihoods of one and of several outputs, the zero, constant and multitask means, the interval constraints
    and the priors of one variable. Everything else is refused here, before a file is touched, with its place in the
    model. What is written was read back first and found equal.

    Parameters, buffers and data keep their dtype and every bit: on the same machine, with the same versions and number
    of threads, a loaded model predicts the same bits. Tensors are stored from wherever they are and loaded on the CPU.
    What is not stored: caches of predictions, gradients, hooks, the training mode, attributes that you added.

    Writing is atomic: a file beside the target is filled, flushed to the disk and renamed, so that a crash leaves the
    old file or the new one. A symbolic link stays a link: the file that it points to is replaced.
    Cost: memory for twice the data.

    Args:
        model: The model.
        path: Where; an existing file is replaced.
        training_data: Whether to store training inputs and targets. Without them the file discloses no row, but the
            model predicts only after :func:`load` was given data again.
        normalization: Map from your units to the model's.
        extra: Anything made of numbers, texts, tensors, lists and dicts.

    Raises:
        SavedModelError: An object that cannot be saved; the message names it and what can.
        OSError: The file cannot be written.

    Example:
        >>> import gpytorch, pathlib, tempfile, torch
        >>> from torch_propkernel import NetworkGP, ReLU, RenormalizedNNGPKernel
        >>> kernel = RenormalizedNNGPKernel(ReLU(), width=50)
        >>> model = NetworkGP(torch.eye(3), torch.ones(3), gpytorch.likelihoods.GaussianLikelihood(), kernel).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.zip")
        ...     save(model, path, extra={"note": "identity"})
        ...     loaded = load(path)
        >>> x = torch.ones(1, 3)
        >>> torch.equal(loaded.model(x).mean, model(x).mean), loaded.extra["note"]
        (True, 'identity')
    """
    if normalization is not None and not isinstance(normalization, Normalization):
        raise SavedModelError(f"normalization: expected a Normalization or None, got {type(normalization).__name__}")
    if extra is not None and not isinstance(extra, dict):
        raise SavedModelError(f"extra: expected a dict or None, got {type(extra).__name__}")
    if not isinstance(model, ExactGP):
        raise SavedModelError(f"model: expected one of {', '.join(allowed_names(ExactGP))}, got {type(model).__name__}")
    data = _data(model) if training_data else None
    text, tensors = _encode({"model": model, "data": data, "normalization": normalization, "extra": extra or {}})
    try:
        again, same = _encode(_decode(text, tensors))
    except Exception as error:
        raise SavedModelError(f"model: expected one that can be built again, got {error!r}") from error
    if again != text or not all(_equal(a, b) for a, b in zip(tensors, same, strict=True)):
        raise SavedModelError("model: expected one that its description determines, got one that is built differently")
    write_archive(path, {"versions": _versions(), **text}, tensors)


def load(path: str | os.PathLike[str], *, x: Tensor | None = None, y: Tensor | None = None) -> SavedModel:
    """Load a model that :func:`save` wrote.

    Nothing in the file is executed, whoever made it: only classes of :func:`save`'s list are built, from numbers and
    texts. The checksum finds damage, not malice: a stranger's file may hold any model, of any size.

    Args:
        path: The file.
        x: Training inputs ``P x d`` in the model's units, in place of those in the file or where it has none.
        y: Training targets ``P``, or ``P x D`` of a model of several outputs (NaN where one is missing).

    Returns:
        The model in evaluation mode and what was saved with it. Without training data the model's parts can be looked
        at, and predicting raises.

    Raises:
        SavedModelError: A truncated, damaged or foreign file, one of a newer format, one that describes no model.
        FileNotFoundError: No such file.
        TypeError, ValueError: Inputs or targets that do not fit the model.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.zip")
        ...     _ = path.write_bytes(b"something else")
        ...     try:
        ...         load(path)
        ...     except SavedModelError as error:
        ...         "got another kind of file" in str(error)
        True
    """
    text, tensors = read_archive(path)
    try:
        content = _decode(text, tensors)
        model, data, versions = content["model"], content["data"], dict(text["versions"])
        entry = entry_of(model)
        if entry is None or not entry.has_data:
            raise TypeError(f"a {type(model).__name__} in the place of the model")
        if data is None:
            model.train_inputs = model.train_targets = NoTrainingData()
        else:
            model.train_inputs, model.train_targets = tuple(data["inputs"]), data["targets"]
        saved = SavedModel(model.eval(), content["normalization"], versions, content["extra"])
    except SavedModelError as error:
        raise SavedModelError(f"{path}: {error}") from error
    except Exception as error:
        raise SavedModelError(f"{path}: expected the description of a model, got {error!r}") from error
    if (x is None) != (y is None):
        raise ValueError("x, y: expected both training inputs and targets or neither, got one")
    if x is not None and y is not None:
        several = isinstance(model, MultitaskNetworkGP)
        check_targets(torch.where(y.isnan(), 0.0, y).mT if several else y, check_inputs(x).shape[-2])
        if several and y.shape[-1:] != (model.likelihood.num_tasks,):
            raise ValueError(f"y: expected {model.likelihood.num_tasks} columns, got shape {tuple(y.shape)}")
        dtype = next(model.parameters()).dtype
        for name, value in (("x", x), ("y", y)):
            if value.dtype != dtype:
                raise TypeError(f"{name}: expected dtype {dtype}, the model's, got {value.dtype}")
        model.set_train_data(x, y, strict=False)
    return saved


def _data(model: ExactGP) -> dict[str, Any] | None:
    if model.train_inputs is None or isinstance(model.train_inputs, NoTrainingData):
        return None
    return {"inputs": list(model.train_inputs), "targets": model.train_targets}


def _encode(content: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    encoder = Encoder()
    return {name: encoder.value(value, name) for name, value in content.items()}, encoder.tensors


def _decode(text: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    decoder = Decoder(tensors)
    return {name: decoder.value(text[name]) for name in ("model", "data", "normalization", "extra")}


def _equal(a: Tensor, b: Tensor) -> bool:
    # equal_nan: targets may be missing
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch_propkernel", "torch", "gpytorch", "linear_operator", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that is not installed
            found[name] = "unknown"
    return found
