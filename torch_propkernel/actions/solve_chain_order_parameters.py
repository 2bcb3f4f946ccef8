"""The saddle point of stacked linear layers over blocks: a chain of matrix order parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._validation import as_width, check_targets, positive_number
from ..numerics.first_derivatives import first_derivatives_only
from ..numerics.gaussian_terms import log_det_and_square
from ..numerics.symmetric import (
    exponential_differences,
    from_coordinates,
    num_coordinates,
    symmetric_log,
    to_coordinates,
)
from ..order_parameters import LinearChain
from .block_action import BlockMatrices, DenseBlocks, base_matrix
from .local_minimum import implicit_minimum, lowest_minimum, quasi_newton, value_and_gradient
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters

_SMALLEST = 1e-3  # of the eigenvalues of E where a descent starts
_NOISE = 0.1


class ChainAction:
    r"""The saddle-point problem of a chain of matrices E_l, in X_l = log E_l.

    .. math:: \sum_l N_l\, [\mathrm{tr}\, e^{X_l} - \mathrm{tr}\, X_l - r_l] + \log\det A + y^T A^{-1} y, \qquad
              A = \mathrm{base} + \sum_{ab} (G_1)_{ab} K_{ab}

    G_1 is the chain's lowest matrix at E_1, ..., E_L. Calling the object gives the value at the coordinates of all X_l,
    one after another, differentiable; infinite where A is not positive definite. :class:`BlockAction` is that of one
    layer.

    Args:
        blocks: The map from G_1 to its covariance.
        chain: The map from the E_l to G_1.
        base: Noise, and what else does not move, ``P x P``.
        targets: y with the mean subtracted, ``P``.
        width: N_1, ..., N_L; a layer of infinite width keeps E_l = 1.

    Reference: THEORY.md, section 12, eq. (26).

    Example:
        >>> import torch
        >>> from torch_propkernel.actions import ChainAction, DenseBlocks
        >>> from torch_propkernel.order_parameters import LinearChain
        >>> unit = torch.ones(1, 1, dtype=torch.float64)
        >>> blocks, chain = DenseBlocks.of(unit.reshape(1, 1, 1, 1)), LinearChain([unit.reshape(1, 1, 1)], size=1)
        >>> action = ChainAction(blocks, chain, unit, 0.0 * unit[0], torch.tensor([3.0, 5.0]))
        >>> round(action(torch.zeros(2, dtype=torch.float64)).item(), 5)   # log(1 + 1)
        0.69315
    """

    def __init__(self, blocks: BlockMatrices, chain: LinearChain, base: Tensor, targets: Tensor, width: Tensor) -> None:
        """Store the problem."""
        self.blocks, self.chain, self.base, self.targets = blocks, chain, base, targets
        self.widths, self.finite = width, torch.isfinite(width)
        self.width = torch.where(self.finite, width, 0.0)
        self._numbers = [num_coordinates(size) for size in chain.sizes]

    def by_coordinate(self, values: Tensor) -> Tensor:
        """Return a value of each layer, ``L``, once for each of its coordinates."""
        return values.repeat_interleave(torch.tensor(self._numbers, device=values.device))

    def matrices(self, coordinates: Tensor) -> list[Tensor]:
        """Return the symmetric matrices of coordinates, one for each layer."""
        parts = zip(coordinates.split(self._numbers), self.chain.sizes, strict=True)
        return [from_coordinates(part, size) for part, size in parts]

    def logs(self, coordinates: Tensor) -> list[Tensor]:
        """Return X_1, ..., X_L, zero in layers of infinite width."""
        return self.matrices(torch.where(self.by_coordinate(self.finite), coordinates, 0.0))

    def __call__(self, coordinates: Tensor) -> Tensor:
        """Return the value at the coordinates of all X_l."""
        logs = self.logs(coordinates)
        order_parameters = [torch.matrix_exp(log) for log in logs]
        excess = [(E - X).diagonal().sum() - len(E) for E, X in zip(order_parameters, logs, strict=True)]
        return (self.width * torch.stack(excess)).sum() + self.data(order_parameters)

    def log_evidence(self, coordinates: Tensor, value: Tensor, hessian: Tensor) -> Tensor:
        """Return log p(y) by Laplace's method; NaN off a minimum, and where a layer has fewer than r_l units.

        In X the invariant measure has the density prod_{a < b} sinh(d) / d, d half the difference of two eigenvalues.

        Args:
            coordinates: The minimum.
            value: The action there.
            hessian: Its second derivatives, the identity where the width is infinite.
        """
        number = self.by_coordinate(torch.where(self.finite, self.widths, 1.0))
        value = value + len(self.targets) * math.log(2.0 * math.pi) + torch.logdet(hessian) - number.log().sum()
        density = torch.zeros_like(value)
        for log in self.logs(coordinates):
            u = torch.linalg.eigvalsh(log)
            middle = 0.5 * (u.unsqueeze(-1) + u.unsqueeze(-2))
            density = density + (exponential_differences(u).log() - middle).tril(-1).sum()
        narrow = (self.widths < self.widths.new_tensor(self.chain.sizes)).any()
        return torch.where(narrow, torch.nan, density - 0.5 * value)

    def data(self, order_parameters: Sequence[Tensor]) -> Tensor:
        """Return log det A + y^T A^{-1} y at E_1, ..., E_L."""
        return log_det_and_square(self.base + self.blocks(self.chain(order_parameters)).to(self.base), self.targets)


def solve_chain_order_parameters(
    blocks: BlockMatrices,
    targets: Tensor,
    chain: LinearChain,
    *,
    width: Sequence[float] | Tensor,
    temperature: float = 1.0,
    base: Tensor | None = None,
    evidence: bool = False,
    throw: bool = True,
) -> Solution:
    r"""Minimize the effective action of stacked linear layers over blocks: one matrix order parameter for each layer.

    .. math:: S = \sum_l \frac{N_l}{N_L} [\mathrm{tr}\, E_l - \log\det E_l]
                  + \frac{1}{N_L} [\log\det A + y^T A^{-1} y], \qquad A = T B + \sum_{ab} (G_1)_{ab} K_{ab}

    with G_1 the lowest matrix of the chain (:class:`LinearChain`). BFGS in the logarithms of all E_l with the exact
    gradient, from four starts, as :func:`solve_block_order_parameters`, which is the chain of one layer: the identity,
    the multiples of it that solve the problem of one number for each layer, where a fixed-point step leads from there,
    and a point beside it. The lowest minimum is returned; nothing excludes a lower one.

    Differentiable as :func:`solve_block_order_parameters`, in what the blocks, the targets, the base and the width are
    made of. That and the evidence take one more gradient of the gradient for each unknown.

    Shapes: ``order_parameter`` is ``L x r x r`` with r the largest size, as :meth:`LinearChain.tensor` lays it out.
    Cost: 100 to 400 gradients, each a few Cholesky factorizations and a pass over the blocks; the number of unknowns is
    the sum of the r_l (r_l + 1) / 2, whose square is the memory and whose cube the time of a step.

    Args:
        blocks: The map from G_1, ``r_1 x r_1``, to a covariance, ``P x P``.
        targets: y with the mean subtracted, ``P``.
        chain: The map from the E_l to G_1.
        width: N_1, ..., N_L; ``math.inf`` allowed.
        temperature: T > 0.
        base: B, a matrix or a diagonal; the identity if None.
        evidence: Compute ``log_evidence`` too, from the exact second derivatives in all E_l (THEORY.md, section 12);
            NaN where a layer has fewer than r_l units, whose prior has no density.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, NaN, another number of widths, T that is not positive.
        NotPositiveDefiniteError: The covariance at infinite width is indefinite.
        ConvergenceError: Not converged, with ``throw=True``.

    Reference: THEORY.md, section 12, eq. (26).

    Example:
        >>> import torch
        >>> from torch_propkernel import solve_order_parameters
        >>> from torch_propkernel.actions import DenseBlocks, solve_chain_order_parameters
        >>> from torch_propkernel.order_parameters import LinearChain
        >>> K, y = torch.eye(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
        >>> blocks, chain = DenseBlocks.of(K[None, None]), LinearChain([torch.ones(1, 1, 1)], size=1)
        >>> found = solve_chain_order_parameters(blocks, y, chain, width=[5.0, 8.0], temperature=0.1)
        >>> q = solve_order_parameters(K, y, width=[5.0, 8.0], temperature=0.1).order_parameter
        >>> torch.allclose(found.order_parameter.flatten(), q, rtol=1e-6)   # two linear layers
        True
    """
    with torch.no_grad():
        held = DenseBlocks(blocks.matrices.detach()) if isinstance(blocks, DenseBlocks) else blocks
        still = None if base is None else base.detach()
        solution, logs, action = _minimize(held, targets.detach(), chain, width, temperature, still)
    if throw:
        solution.raise_if_failed()
    live = ChainAction(
        blocks,
        chain,
        temperature * base_matrix(base, targets),
        targets.double(),
        width.to(targets.device, torch.float64) if isinstance(width, Tensor) else action.widths,
    )
    free = action.by_coordinate(action.finite)
    if not (evidence or (torch.is_grad_enabled() and live(logs).requires_grad)):
        return solution
    value, moved, hessian = implicit_minimum(live, logs, free)
    if evidence:
        log_evidence = action.log_evidence(logs, value.detach(), hessian)
        solution = dataclasses.replace(solution, log_evidence=log_evidence)
    if not (torch.is_grad_enabled() and value.requires_grad):
        return solution
    order_parameter = chain.tensor([torch.matrix_exp(log) for log in live.logs(moved)])
    sizes = live.width.new_tensor(chain.sizes)
    value = (value + (live.width * sizes).sum()) / (live.width[-1] if bool(live.finite[-1]) else 1.0)
    return dataclasses.replace(
        solution,
        order_parameter=first_derivatives_only(order_parameter, "order_parameter"),
        action=first_derivatives_only(value, "action"),
    )


def chain_log_evidence(
    blocks: DenseBlocks, targets: Tensor, chain: LinearChain, order_parameter: Tensor, *, width: Tensor, base: Tensor
) -> Tensor:
    """Return log p(y) by Laplace's method at a minimum E_1, ..., E_L of :func:`solve_chain_order_parameters`.

    Args:
        blocks: The map from G_1 to its covariance.
        targets: y, ``P``.
        chain: The map from the E_l to G_1.
        order_parameter: E_l, ``L x r x r``.
        width: N_l, ``L``.
        base: Noise and fixed terms, ``P x P``.
    """
    action = ChainAction(blocks, chain, base, targets.double(), width)
    logs = torch.cat([to_coordinates(symmetric_log(matrix)) for matrix in chain.matrices(order_parameter)])
    value, _, hessian = implicit_minimum(action, logs, action.by_coordinate(action.finite))
    return action.log_evidence(logs, value.detach(), hessian)


def _minimize(
    blocks: BlockMatrices,
    targets: Tensor,
    chain: LinearChain,
    width: Sequence[float] | Tensor,
    temperature: float,
    base: Tensor | None,
) -> tuple[Solution, Tensor, ChainAction]:
    """Return the solution, the coordinates of its logarithms, and the action."""
    units = [torch.eye(size, dtype=torch.float64, device=targets.device) for size in chain.sizes]
    whole = blocks(chain(units)).double()
    check_targets(targets, len(whole), "targets")
    if targets.dim() != 1:
        raise ValueError(f"targets: expected shape ({len(whole)},), got {tuple(targets.shape)}")
    widths = as_width(width, torch.float64).to(targets.device)
    if widths.shape != (chain.depth,):
        raise ValueError(f"width: expected {chain.depth} numbers, one for each layer, got shape {tuple(widths.shape)}")
    temperature, y = positive_number("temperature", temperature), targets.double()
    scalar = solve_order_parameters(whole, y, width=widths, temperature=temperature, base=base, throw=False)
    multiples = torch.nan_to_num(scalar.order_parameter, nan=1.0)
    action = ChainAction(blocks, chain, temperature * base_matrix(base, y), y, widths)
    total = y.new_tensor(len(y)) + action.width.sum()
    curvature = action.by_coordinate(torch.where(action.finite, widths, 1.0))
    free = action.by_coordinate(action.finite)
    starts = [torch.where(free, start, 0.0) for start in _starts(action, multiples)]
    runs = [quasi_newton(action, start, total, curvature) for start in starts]
    best, agreeing, minima = lowest_minimum(runs)
    finite, sizes = action.finite, widths.new_tensor(chain.sizes)
    result = SolveResult.local_minimum if bool(finite.any()) else SolveResult.infinite_width
    if not bool(best.converged):
        result = SolveResult.not_converged
    stats = {
        "iterations": sum(run.iterations for run in runs),
        "residual": best.gradient.abs().max() / total,
        "num_minima": minima,
        "alpha": len(y) / widths,
        "starts": len(runs),
        "agreeing_starts": agreeing,
        "narrow": bool((widths < sizes).any()),
    }
    value = best.value + (action.width * sizes).sum()
    order_parameter = chain.tensor([torch.matrix_exp(log) for log in action.logs(best.logs)])
    solution = Solution(order_parameter, value / (widths[-1] if bool(finite[-1]) else 1.0), result, stats=stats)
    return solution, best.logs, action


def _starts(action: ChainAction, multiples: Tensor) -> list[Tensor]:
    """Return the four starts; multiples of the identity, ``L``, are the second."""
    sizes = zip(multiples, action.chain.sizes, strict=True)
    scaled = [q * torch.eye(size, dtype=q.dtype, device=q.device) for q, size in sizes]
    flat = torch.cat([to_coordinates(matrix) for matrix in scaled])
    middle = torch.cat([to_coordinates(symmetric_log(matrix)) for matrix in scaled])
    _, gradient = value_and_gradient(lambda x: action.data(action.matrices(x)), flat)
    stepped = []
    for E, slope, width in zip(scaled, action.matrices(gradient), action.width, strict=True):
        values, vectors = torch.linalg.eigh(torch.eye(len(E)).to(E) - E @ slope / width.clamp_min(1.0))
        stepped.append(to_coordinates((vectors * values.clamp_min(_SMALLEST).log()) @ vectors.mT))
    generator = torch.Generator(device=flat.device).manual_seed(0)
    shaken = torch.randn(len(flat), generator=generator, dtype=flat.dtype, device=flat.device)
    return [torch.zeros_like(middle), middle, torch.cat(stepped), middle + _NOISE * shaken]
