"""The effective action of a network over blocks, whose order parameters are matrices, in their logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..numerics.gaussian_terms import cholesky_, log_det_and_square, terms_and_slope_
from ..numerics.symmetric import (
    exponential_differences,
    exponential_jacobian,
    from_coordinates,
    num_coordinates,
    symmetric_basis,
    symmetric_log,
    to_coordinates,
)
from ..order_parameters import LinearChain
from .block_matrices import BlockMatrices, DenseBlocks, times
from .matrix_minimum import covariance_curvature

_PROBES = 11  # with the targets a multiple of four, for which products are fastest
_COLUMNS = 16  # of a matrix, with which products are at least taken
_LEAST = 0.05  # of N: what an estimated second derivative is at least


class BlockAction:
    r"""The saddle-point problem of a chain of matrices E_l over blocks, in X_l = log E_l.

    .. math:: \sum_l N_l\, [\mathrm{tr}\, e^{X_l} - \mathrm{tr}\, X_l - r_l] + \log\det A + y^T A^{-1} y, \qquad
              A = \mathrm{base} + \sum_{ab} (G_1)_{ab} K_{ab}

    G_1 is the chain's lowest matrix at E_1, ..., E_L; of one layer it is E_1. Calling the object gives the value at the
    coordinates of all X_l, one after another, differentiable; infinite where A is not positive definite. The gradient
    is exact, also where eigenvalues of X_l meet: that of the data's part in G_1 is
    :math:`\mathrm{tr}(A^{-1} K_{ab}) - \alpha^T K_{ab}\, \alpha`, :math:`\alpha = A^{-1} y`. Cost: one Cholesky
    factorization and twice as much for the inverse, and two passes over the blocks, for all sums and for all traces.
    Where the blocks are held that needs one P x P matrix, which the object keeps: one thread at a time calls it.

    Args:
        blocks: The map from G_1 to its covariance.
        base: Noise, and what else does not move, ``P x P``.
        targets: y with the mean subtracted, ``P``.
        width: N_1, ..., N_L, or one number; a layer of infinite width keeps E_l = 1.
        chain: The map from the E_l to G_1; one layer if None.

    Reference: THEORY.md, section 12, eqs. (23) and (26).

    Example:
        >>> import torch
        >>> from torch_propkernel.actions import BlockAction, DenseBlocks
        >>> from torch_propkernel.order_parameters import LinearChain
        >>> unit = torch.ones(1, 1, dtype=torch.float64)
        >>> blocks, chain = DenseBlocks.of(unit.reshape(1, 1, 1, 1)), LinearChain([unit.reshape(1, 1, 1)], size=1)
        >>> action = BlockAction(blocks, unit, 0.0 * unit[0], torch.tensor([3.0, 5.0]), chain)
        >>> round(action(torch.zeros(2, dtype=torch.float64)).item(), 5)   # log(1 + 1)
        0.69315
    """

    def __init__(
        self,
        blocks: BlockMatrices,
        base: Tensor,
        targets: Tensor,
        width: float | Tensor,
        chain: LinearChain | None = None,
    ) -> None:
        """Store the problem."""
        self.blocks, self.base, self.targets = blocks, base, targets
        self.chain = LinearChain([], blocks.num_blocks) if chain is None else chain
        self.widths = torch.as_tensor(width, dtype=base.dtype, device=base.device).reshape(-1)
        self.finite = torch.isfinite(self.widths)
        self.width = torch.where(self.finite, self.widths, 0.0)

    @property
    def scale(self) -> Tensor:
        """The size of the terms of the gradient, against which a residual is judged."""
        return len(self.targets) + self.width.sum()

    @property
    def free(self) -> Tensor:
        """Which coordinates move, ``C``."""
        return self.by_coordinate(self.finite)

    def by_coordinate(self, values: Tensor) -> Tensor:
        """Return a value of each layer, ``L``, once for each of its coordinates."""
        numbers = [num_coordinates(size) for size in self.chain.sizes]
        return values.repeat_interleave(torch.tensor(numbers, device=values.device))

    def logs(self, order_parameters: Sequence[Tensor]) -> Tensor:
        """Return the coordinates of all X_l at E_1, ..., E_L, zero in layers of infinite width."""
        logs = [symmetric_log(E) for E in order_parameters]
        return torch.where(self.free, self.chain.to_coordinates(logs), 0.0)

    def order_parameters(self, coordinates: Tensor) -> list[Tensor]:
        """Return E_1, ..., E_L at the coordinates of all X_l, ``*b x C``."""
        return [torch.matrix_exp(log) for log in self.chain.from_coordinates(torch.where(self.free, coordinates, 0.0))]

    def __call__(self, coordinates: Tensor) -> Tensor:
        """Return the value at the coordinates of all X_l, ``C``."""
        order_parameters = self.order_parameters(coordinates)
        return (self.width * self.excess(coordinates, order_parameters)).sum() + self.data(self.chain(order_parameters))

    def excess(self, coordinates: Tensor, order_parameters: Sequence[Tensor]) -> Tensor:
        """Return tr E_l - tr X_l - r_l, ``L``."""
        pairs = zip(order_parameters, self.chain.from_coordinates(coordinates), strict=True)
        return torch.stack([(E - X).diagonal().sum() - len(E) for E, X in pairs])

    def data(self, matrix: Tensor) -> Tensor:
        """Return log det A + y^T A^{-1} y at G_1, ``r x r``; infinite where A is not positive definite."""
        held = self.held
        if held is None or any(v.requires_grad for v in (held, self.base, self.targets)):
            return log_det_and_square(self.base + self.blocks(matrix).to(self.base), self.targets)
        value: Tensor = _HeldData.apply(matrix, held, self)  # type: ignore[no-untyped-call]
        return value

    @property
    def held(self) -> Tensor | None:
        """The matrices of blocks that are in memory, in the dtype of the problem; None of others."""
        blocks = self.blocks
        return blocks.matrices if isinstance(blocks, DenseBlocks) and blocks.matrices.dtype == self.base.dtype else None

    @cached_property
    def memory(self) -> Tensor:
        """``P x P`` numbers in which A, its factor and its inverse follow one another."""
        return torch.empty_like(self.base, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def covariance(self, matrix: Tensor) -> Tensor:
        """Return A at G_1, which may be overwritten; in ``memory`` where the blocks are held."""
        held = self.held
        if held is None:
            return self.base + self.blocks(matrix).to(self.base)
        coordinates = to_coordinates(matrix)
        torch.addmv(self.base.flatten(), held.flatten(1).mT, coordinates, out=self.memory.view(-1))
        return self.memory

    def sampled_curvature(self, coordinates: Tensor) -> Tensor:
        r"""Return an estimate of the second derivatives in X at a minimum, ``C x C``, positive definite anywhere.

        .. math:: N_l\, \langle S_p, S_q \rangle - \overline{(F_p z)^T F_q z} + 2\, (F_p \beta)^T F_q \beta, \qquad
                  F_p = L^{-1} \frac{\partial A}{\partial X_p} L^{-T}, \quad A = L L^T, \quad \beta = L^{-1} y

        with S_p the directions in the matrices Y of eq. (21d). The mean is over 11 random vectors z, always the same,
        in the place of the trace of F_p F_q: the error was 1 to 9 % of the largest second derivative of one layer. In a
        chain the second derivatives of G_1 in the E_l are left out, too. Cost: one factorization, one product of each
        block with 12 vectors, and 12 solves with the triangular L for each coordinate.

        Args:
            coordinates: X.
        """
        number = self.by_coordinate(torch.where(self.finite, self.width, 1.0))
        order_parameters = self.order_parameters(coordinates)
        factor, info = cholesky_(self.covariance(self.chain(order_parameters)))
        if bool(info > 0):  # outside the domain, where no descent starts
            return torch.diag(number)
        own = torch.block_diag(*(_own_directions(log) for log in self.chain.from_coordinates(coordinates)))
        along = self.directions(coordinates, order_parameters)
        generator = torch.Generator(device=factor.device).manual_seed(0)
        probes = torch.randn(len(factor), _PROBES, generator=generator, dtype=factor.dtype, device=factor.device)
        half = torch.linalg.solve_triangular(factor, self.targets.unsqueeze(-1), upper=False)
        pulled = _pulled(self.blocks, factor, torch.cat([probes, half], -1))
        heard, data = pulled[..., :-1].flatten(1), pulled[..., -1]
        curved = along @ (2.0 * data @ data.mT - heard @ heard.mT / _PROBES) @ along.mT
        root = number.sqrt()
        values, axes = torch.linalg.eigh(own + curved / root / root.unsqueeze(-1))
        return root.unsqueeze(-1) * ((axes * values.clamp_min(_LEAST)) @ axes.mT) * root

    @torch.no_grad()
    def data_curvature(self, matrix: Tensor) -> Tensor:
        r"""Return second derivatives of :meth:`data` in the coordinates of G_1, ``C_1 x C_1``, C_1 = r_1 (r_1 + 1) / 2.

        Those of :meth:`sampled_curvature` with all unit vectors in the place of random ones. As the F_p are symmetric,
        of some of their columns only the rows above the end of these are computed. Cost: P^3 operations, two thirds of
        them products, for each coordinate. Blocks that are not held are computed twice for each coordinate, beside two
        solves.
        """
        held, size = self.held, len(self.targets)
        if held is None:
            basis = symmetric_basis(len(matrix), matrix)
            return covariance_curvature(self.blocks, self.base, self.targets, matrix, basis)
        factor, _ = cholesky_(self.covariance(matrix))
        half = torch.linalg.solve_triangular(factor, self.targets.unsqueeze(-1), upper=False)
        data = _pulled(self.blocks, factor, half).squeeze(-1)
        curvature, step = 2.0 * data @ data.mT, max(_COLUMNS, size // len(held))
        for start in range(0, size, step):
            end = min(start + step, size)
            units = torch.eye(end, dtype=factor.dtype, device=factor.device)[:, start:]
            heard = _pulled(DenseBlocks(held[:, :end, :end]), factor[:end, :end], units)
            rows = heard[:, :start].flatten(1)  # these stand below the diagonal, too
            square = heard[:, start:].flatten(1)
            curvature = curvature - 2.0 * rows @ rows.mT - square @ square.mT
        return curvature

    def directions(self, coordinates: Tensor, order_parameters: Sequence[Tensor]) -> Tensor:
        """Return the derivatives of the coordinates of G_1 in those of all X_l, ``C x r_1 (r_1 + 1) / 2``."""
        turned = torch.block_diag(
            *(exponential_jacobian(*torch.linalg.eigh(X)) for X in self.chain.from_coordinates(coordinates))
        )
        if self.chain.depth == 1:
            return turned * self.free.unsqueeze(-1)

        def lowest(flat: Tensor) -> Tensor:
            return to_coordinates(self.chain(self.chain.from_coordinates(flat)))

        (rates,) = torch.autograd.functional.jacobian(lowest, (self.chain.to_coordinates(order_parameters),))
        return (turned @ rates.mT) * self.free.unsqueeze(-1)


def _pulled(blocks: BlockMatrices, factor: Tensor, vectors: Tensor) -> Tensor:
    """Return F_p = L^{-1} H_p L^{-T} times vectors ``P x m`` for the coordinates p of G_1, ``C_1 x P x m``."""
    back = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
    moved = times(blocks, back).movedim(0, 1)  # P x C_1 x m
    pulled = torch.linalg.solve_triangular(factor, moved.flatten(1), upper=False)
    return pulled.unflatten(1, moved.shape[1:]).movedim(1, 0)


class _HeldData(torch.autograd.Function):
    """The data's part of a :class:`BlockAction` with its gradient in G_1, from one factorization in one place."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, held: Tensor, action: BlockAction) -> Tensor:
        value = terms_and_slope_(action.covariance(matrix), action.targets)
        gradient = torch.where(torch.isfinite(value), held.flatten(1) @ action.memory.view(-1), 0.0)
        ctx.save_for_backward(matrix, from_coordinates(gradient, len(matrix)))
        ctx.action = action
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        matrix, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # this derivative is to be differentiated again
            action = ctx.action
            value = log_det_and_square(action.base + action.blocks(matrix), action.targets)
            (gradient,) = torch.autograd.grad(value, matrix, create_graph=True)
        return grad * gradient, None, None


def _own_directions(log: Tensor) -> Tensor:
    """Return the inner products of the directions S_p of eq. (21d) at X, ``C x C``."""
    u, vectors = torch.linalg.eigh(log)
    turned = vectors.mT @ symmetric_basis(len(u), u) @ vectors
    middle = 0.5 * (u.unsqueeze(-1) + u.unsqueeze(-2))
    own = (exponential_differences(u) * (-middle).exp() * turned).flatten(-2)
    return own @ own.mT
