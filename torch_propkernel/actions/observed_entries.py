"""Which targets of several outputs were observed, and matrices between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .._memory import check_memory

_MATRICES = 6  # of M x M for each problem: K, the noise, A, its factor, and what their gradients need


class ObservedEntries:
    """The M targets among ``P x D`` that are not NaN, output after output.

    Args:
        targets: Y, ``P x D``, NaN where a target is missing.

    Attributes:
        point: Row of each entry, ``M``.
        output: Column of each entry, ``M``.

    Raises:
        ValueError: An output without an observed target.
    """

    def __init__(self, targets: Tensor) -> None:
        """Find the entries."""
        seen = ~targets.isnan().mT
        if not bool(seen.any(-1).all()):
            empty = torch.nonzero(~seen.any(-1)).flatten().tolist()
            raise ValueError(f"targets: expected an observed one of every output, got none of outputs {empty}")
        self.output, self.point = torch.nonzero(seen, as_tuple=True)
        self._of = one_hot(self.output, targets.shape[-1]).to(torch.float64)

    def __len__(self) -> int:
        """M."""
        return len(self.point)

    def check_memory(self, num_problems: int = 1) -> None:
        """Raise before matrices are allocated: about 6 M^2 numbers for each problem that is solved at a time.

        Raises:
            NotEnoughMemoryError: They do not fit.
        """
        check_memory(
            f"{len(self)} observed targets of {self._of.shape[-1]} outputs, of which some are missing",
            8.0 * _MATRICES * num_problems * len(self) ** 2,
            "take fewer training points, or only those of which all outputs were observed",
            self.point.device,
        )

    def points_of(self, output: int) -> Tensor:
        """Return the rows at which an output was observed."""
        return self.point[self.output == output]

    def select(self, values: Tensor) -> Tensor:
        """Return the entries of ``P x D``, ``M``."""
        return values[self.point, self.output]

    def between_points(self, matrix: Tensor) -> Tensor:
        """Return the entries of a matrix between points ``P x P``, ``M x M``."""
        return matrix[self.point][:, self.point]

    def between_outputs(self, matrix: Tensor) -> Tensor:
        """Return the entries of a matrix between outputs ``... x D x D``, ``... x M x M``; differentiable."""
        return self._of @ matrix @ self._of.mT

    def noise(self, covariance: Tensor) -> Tensor:
        """Return the noise, which is independent between points, ``M x M``, from that of one point, ``D x D``."""
        return self.between_outputs(covariance) * (self.point == self.point.unsqueeze(-1))
