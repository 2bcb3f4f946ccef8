"""What units of the last hidden layer read: coordinates in the span of the training points, and the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..inference import Problem
from ..inference.last_layer import layer_inputs, pre_activations
from ..networks.row_space import row_space
from ..numerics.safe_math import safe_sqrt


class UnitInputs(ABC):
    r"""Pre-activations of a unit of the last hidden layer as a linear function of standard normal weights.

    .. math:: h(x) = u(x) \cdot w + r(x) \cdot \xi, \qquad w, \xi \sim N(0, 1)

    r is zero at training points: w is what they see of the unit, xi keeps its prior.
    """

    @abstractmethod
    def coordinates(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return u, ``m x k``, and r, ``m x d``, in float64; None where r is zero everywhere.

        Args:
            x: Points.
            joint: Whether r is to be right between the points too, not only at each of them.
        """


class LinearInputs(UnitInputs):
    """Units of a single hidden layer: coordinates in the row space of the training inputs, and a column for the bias.

    Attributes:
        basis: Orthonormal columns that span the training inputs, bias apart, ``d x k``.
    """

    def __init__(self, problem: Problem) -> None:
        """Find the row space."""
        self.problem = problem
        self.basis = row_space(self._scaled(problem.inputs))

    def _scaled(self, x: Tensor) -> Tensor:
        return self.problem.network.scaled_inputs(layer_inputs(self.problem, x)).double()

    def coordinates(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return u and r, which is right between points always."""
        x, bias = self._scaled(x), self.problem.network.bias_variance.double().reshape(())
        inside = x @ self.basis
        outside = None
        if self.basis.shape[0] > self.basis.shape[1]:
            outside = x - inside @ self.basis.mT
        if bool(bias > 0):
            inside = torch.cat([inside, bias.sqrt().expand(len(inside), 1)], -1)
        return inside, outside


class GaussianInputs(UnitInputs):
    r"""Units above wide layers: h is a Gaussian process with the covariance K of the layers below.

    .. math:: u(x) = K_{xX} U \Lambda^{-1/2}, \qquad K_{XX} = U \Lambda U^T, \qquad r r^T = K_{xx'} - u u^T

    Directions of K_XX at the rounding level of the model's dtype belong to r. Cost: one ``eigh`` of ``P x P``; with
    ``joint`` one Cholesky factorization of ``m x m``.
    """

    def __init__(self, problem: Problem) -> None:
        """Decompose the covariance of the training points."""
        self.problem = problem
        values, vectors = torch.linalg.eigh(pre_activations(problem, problem.inputs, problem.inputs).double())
        self._rounding = len(values) * torch.finfo(problem.targets.dtype).eps
        seen = values > self._rounding * values[-1]
        self._whitening = vectors[:, seen] * values[seen].rsqrt()

    def coordinates(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return u and r: ``m x 1`` for single points, ``m x m`` with ``joint``."""
        inside = pre_activations(self.problem, x, self.problem.inputs).double() @ self._whitening
        own = pre_activations(self.problem, x, x, elementwise=not joint).double()
        if not joint:
            return inside, safe_sqrt(own - inside.square().sum(-1)).unsqueeze(-1)
        rest = own - inside @ inside.mT
        jitter = 10.0 * self._rounding * own.diagonal().mean()
        return inside, torch.linalg.cholesky(rest + jitter * torch.eye(len(rest)).to(rest))


def unit_inputs(problem: Problem) -> UnitInputs:
    """Return what the units of a model's last hidden layer read."""
    return LinearInputs(problem) if problem.network.depth == 1 else GaussianInputs(problem)
