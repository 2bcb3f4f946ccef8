"""Around a minimum over blocks: Gaussian fluctuations, and how the minimum moves with the problem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics.symmetric import (
    exponential_curvature,
    exponential_differences,
    exponential_jacobian,
    to_coordinates,
)
from ..order_parameters import LinearChain
from .block_action import BlockAction
from .block_matrices import BlockMatrices
from .local_minimum import value_and_gradient
from .matrix_gradients import linear_terms


class BlockMinimum:
    r"""Exact second derivatives of a :class:`BlockAction` at a minimum, in the coordinates of all X_l.

    .. math:: J^T D'' J + \frac{d^2}{dX^2} \Big[\sum_l N_l\, (\mathrm{tr}\, e^{X_l} - \mathrm{tr}\, X_l)
              + \mathrm{tr}\, D'\, G_1\Big]

    with D' and D'' the derivatives of the data's part in G_1, held fixed, and J that of G_1. Cost: that of
    :meth:`BlockAction.data_curvature`; the layers above the first add small matrices alone.

    Args:
        action: The problem.
        coordinates: The minimum, ``C``.

    Attributes:
        hessian: The second derivatives, ``C x C``; of layers of infinite width those of the identity.

    Reference: THEORY.md, section 12, eqs. (23) and (26).
    """

    def __init__(self, action: BlockAction, coordinates: Tensor) -> None:
        """Compute the second derivatives."""
        self.action, self.coordinates = action, torch.where(action.free, coordinates, 0.0)
        self.order_parameters = action.order_parameters(coordinates)
        self.lowest = action.chain(self.order_parameters)
        self.along = action.directions(self.coordinates, self.order_parameters)
        _, slope = value_and_gradient(action.data, self.lowest)
        hessian = self.along @ action.data_curvature(self.lowest) @ self.along.mT + self._of_layers(
            0.5 * (slope + slope.mT)
        )
        both = action.free.unsqueeze(-1) & action.free
        self.hessian = torch.where(both, 0.5 * (hessian + hessian.mT), torch.eye(len(hessian)).to(hessian))

    def _of_layers(self, slope: Tensor) -> Tensor:
        """Return second derivatives of the layers' part and of tr D' G_1, ``C x C``."""
        chain = self.action.chain

        def linear(flat: Tensor) -> Tensor:
            return (slope * chain(chain.from_coordinates(flat))).sum()

        flat = chain.to_coordinates(self.order_parameters)
        _, pulled = value_and_gradient(linear, flat)
        frames = [torch.linalg.eigh(log) for log in chain.from_coordinates(self.coordinates)]
        weights = [
            N * torch.eye(len(slope)).to(slope) + slope
            for N, slope in zip(self.action.width, chain.from_coordinates(pulled), strict=True)
        ]
        pairs = zip(frames, weights, strict=True)
        own = torch.block_diag(*(exponential_curvature(u, vectors, M) for (u, vectors), M in pairs))
        if chain.depth == 1:  # G_1 is linear in E_1
            return own
        turned = torch.block_diag(*(exponential_jacobian(*frame) for frame in frames))
        bent: Tensor = torch.autograd.functional.hessian(linear, flat)
        return own + turned @ bent @ turned

    def log_evidence(self) -> Tensor:
        """Return log p(y) by Laplace's method; NaN off a minimum, and where a layer has fewer than r_l units.

        In X the invariant measure has the density prod_{a < b} sinh(d) / d, d half the difference of two eigenvalues.
        """
        action = self.action
        number = action.by_coordinate(torch.where(action.finite, action.widths, 1.0))
        value = action(self.coordinates) + len(action.targets) * math.log(2.0 * math.pi)
        value = value + torch.logdet(self.hessian) - number.log().sum()
        density = torch.zeros_like(value)
        for log in action.chain.from_coordinates(self.coordinates):
            u = torch.linalg.eigvalsh(log)
            middle = 0.5 * (u.unsqueeze(-1) + u.unsqueeze(-2))
            density = density + (exponential_differences(u).log() - middle).tril(-1).sum()
        narrow = (action.widths < action.widths.new_tensor(action.chain.sizes)).any()
        return torch.where(narrow, torch.nan, density - 0.5 * value)

    def moved(self, live: BlockAction) -> tuple[Tensor, Tensor]:
        """Return N_L S and E_1, ..., E_L as one tensor, with the derivatives of what ``live`` is made of.

        The value has the envelope's derivative, the matrices that of the implicit function theorem; first derivatives.

        Args:
            live: The problem with its graph.
        """
        value, slope = linear_terms(live.data, self.lowest)
        chain = self.action.chain
        logs = chain.from_coordinates(self.coordinates)
        layers = zip(self.order_parameters, logs, strict=True)
        value = value + (live.width * torch.stack([(E - X).diagonal().sum() for E, X in layers])).sum()
        units = [E - torch.eye(len(E)).to(E) for E in self.order_parameters]
        pull = live.by_coordinate(live.width) * chain.to_coordinates(units)
        change = self.along @ to_coordinates(slope) + pull
        moved = self.coordinates - torch.linalg.solve(self.hessian, change - change.detach())
        return value, chain.tensor(self.action.order_parameters(moved))


def block_log_evidence(
    blocks: BlockMatrices, targets: Tensor, chain: LinearChain, order_parameter: Tensor, *, width: Tensor, base: Tensor
) -> Tensor:
    """Return log p(y) by Laplace's method at a minimum E_1, ..., E_L, with the noise in ``base``.

    Args:
        blocks: The map from G_1 to its covariance.
        targets: y, ``P``.
        chain: The map from the E_l to G_1.
        order_parameter: E_l, ``L x r x r``.
        width: N_l, ``L``.
        base: Noise and fixed terms, ``P x P``.
    """
    action = BlockAction(blocks, base, targets.double(), width, chain)
    return BlockMinimum(action, action.logs(chain.matrices(order_parameter))).log_evidence()
