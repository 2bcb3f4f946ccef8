"""What a kept prediction depends on: hyperparameters by value, training data by identity and version."""

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
    few numbers. Training inputs and targets are compared by identity and by the counter of changes in place.
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
            and all(new is old and new._version == version for new, (old, version) in zip(data, self.data, strict=True))
            and all(
                a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
                for a, b in zip(now, self.values, strict=True)
            )
        )


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
