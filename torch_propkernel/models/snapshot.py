"""What a kept prediction depends on: hyperparameters and training data, by value."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State of a model at one moment, to tell later whether it has changed.

    Parameters and buffers are compared by value, since GPyTorch's setters write into them without a trace: they are a
    few numbers. Training inputs and targets are the same if they are the same tensors and were not changed in place, or
    others with the same values: a BoTorch model with an input transform makes its inputs anew whenever it turns from
    training to evaluation.
    """

    values: list[Tensor]
    data: list[tuple[Tensor, int]]

    @classmethod
    def of(cls, model: Any) -> Snapshot:
        """Take the state of a model."""
        values = [v.detach().clone() for v in (*model.parameters(), *model.buffers())]
        return cls(values, [(tensor, tensor._version) for tensor in _data(model)])

    def is_current(self, model: Any) -> bool:
        """Whether hyperparameters and data are what they were."""
        now, data = [*model.parameters(), *model.buffers()], _data(model)
        return (
            len(now) == len(self.values)
            and len(data) == len(self.data)
            and all(
                old._version == version and (new is old or _are_equal(new, old))
                for new, (old, version) in zip(data, self.data, strict=True)
            )
            and all(_are_equal(a, b) for a, b in zip(now, self.values, strict=True))
        )


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def fingerprint(model: Any) -> str:
    """Return a SHA-256 of hyperparameters and data, which a copy in a file has too.

    Example:
        >>> import gpytorch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> likelihood, kernel = gpytorch.likelihoods.GaussianLikelihood(), RenormalizedNNGPKernel("relu", width=5)
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), likelihood, kernel)
        >>> before = fingerprint(model)
        >>> likelihood.noise = 0.5
        >>> len(before), fingerprint(model) == before
        (64, False)
    """
    digest = hashlib.sha256()
    for tensor in (*model.parameters(), *model.buffers(), *_data(model)):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _data(model: Any) -> list[Tensor]:
    data = [*(model.train_inputs or ()), model.train_targets]
    return [tensor for tensor in data if tensor is not None]
