"""The Gaussian field of N - 1 units that are alike, from the covariance of one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Closure(NamedTuple):
    r"""B and C of one unit's covariance V, in V's eigenbasis.

    .. math:: C = (V^{-1} - B)^{-1}, \quad B = (T + (N - 1) C)^{-1}: \qquad
              b = \frac{2}{T + N v + \sqrt{(T - N v)^2 + 4 (N - 1) T v}}, \quad c = \frac{v}{1 - v b}

    b solves T v b^2 - (T + N v) b + 1 = 0, so that v b <= 1/N: nothing is iterated and nothing is clipped.

    Attributes:
        values: Eigenvalues v >= 0 of V, ``P``.
        vectors: Eigenvectors as columns, ``P x P``.
        field: Eigenvalues b of B.
        temperature: T.
        width: N >= 2.

    Reference: THEORY.md, eq. (13).

    Example:
        >>> import torch
        >>> from torch_propkernel.cavity import Closure
        >>> V = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> closure = Closure.of(V, temperature=0.3, width=7)
        >>> C = torch.linalg.inv(torch.linalg.inv(V) - closure.precision())
        >>> torch.allclose(closure.precision(), torch.linalg.inv(0.3 * torch.eye(2).double() + 6 * C))
        True
    """

    values: Tensor
    vectors: Tensor
    field: Tensor
    temperature: float
    width: float

    @classmethod
    def of(cls, covariance: Tensor, temperature: float, width: float) -> Closure:
        """Decompose V, ``P x P``, and solve for B."""
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0.0)
        return cls(values, vectors, _field(values, temperature, width), temperature, width)

    def at(self, temperature: float) -> Closure:
        """Return the closure of the same V at another temperature."""
        return self._replace(field=_field(self.values, temperature, self.width), temperature=temperature)

    def apply(self, factors: Tensor, vector: Tensor) -> Tensor:
        """Return U diag(factors) U^T vector, for ``P`` or ``P x n``."""
        rotated = self.vectors.mT @ vector
        return self.vectors @ (factors * rotated if vector.dim() == 1 else factors.unsqueeze(-1) * rotated)

    def matrix(self, factors: Tensor) -> Tensor:
        """Return U diag(factors) U^T."""
        return (self.vectors * factors) @ self.vectors.mT

    def precision(self) -> Tensor:
        """Return B."""
        return self.matrix(self.field)

    @property
    def covariance_values(self) -> Tensor:
        """Eigenvalues c of C."""
        return self.values / (1.0 - self.values * self.field)

    @property
    def total_values(self) -> Tensor:
        """Eigenvalues of A = T + N C."""
        return self.temperature + self.width * self.covariance_values

    @property
    def response_values(self) -> Tensor:
        """Eigenvalues of (N - T B)^{-1}."""
        return 1.0 / (self.width - self.temperature * self.field)

    @property
    def conditioning_values(self) -> Tensor:
        r"""Eigenvalues of G = (N - 1) B (1 - V B)^{-1}, which conditions one unit's covariance on the data.

        .. math:: N C_{**} - N^2 C_{*X} A^{-1} C_{X*} = N [V_{**} - V_{*X} G V_{X*}]
        """
        return (self.width - 1.0) * self.field / (1.0 - self.values * self.field)


def _field(values: Tensor, temperature: float, width: float) -> Tensor:
    scaled = width * values
    root = ((temperature - scaled).square() + 4.0 * (width - 1.0) * temperature * values).sqrt()
    return 2.0 / (temperature + scaled + root)
