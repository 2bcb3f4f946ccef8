"""The saddle point of a network over blocks: one matrix order parameter."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .._validation import (
    as_temperature,
    as_width,
    check_finite,
    check_floating,
    check_positive_definite,
    check_targets,
)
from ..numerics.first_derivatives import first_derivatives_only
from ..numerics.symmetric import from_coordinates, symmetric_log, to_coordinates
from ..order_parameters import ScalarChain
from .block_action import BlockAction, BlockMatrices, DenseBlocks, base_matrix, on_rows
from .local_minimum import LocalMinimum, lowest_minimum, quasi_newton, same_minimum, value_and_gradient
from .matrix_gradients import layers_part, linear_terms, moved_minimum
from .matrix_minimum import MatrixMinimum, directions
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters

_SMALLEST = 1e-3  # of the eigenvalues of E where a descent starts
_NOISE = 0.1
_FEW, _PART = 64, 4  # the starts descend on a quarter of the data, where that is 64 points or more


def solve_block_order_parameters(
    blocks: Tensor | BlockMatrices,
    targets: Tensor,
    *,
    width: float | Tensor,
    temperature: float | Tensor,
    base: Tensor | None = None,
    start: Tensor | None = None,
    evidence: bool = False,
    throw: bool = True,
) -> Solution:
    r"""Minimize the effective action of a network over r blocks, whose order parameter is one r x r matrix.

    .. math:: S(E) = \mathrm{tr}\, E - \log\det E + \frac1N \big[\log\det A + y^T A^{-1} y\big], \qquad
              A = T B + \sum_{ab} E_{ab} K_{ab}

    for Q = E; with a prior mean S = R R^T of Q the blocks are :math:`\sum_{cd} R_{ca} R_{db} K_{cd}` and Q = R E R^T.
    BFGS in log E with the exact gradient (:class:`BlockAction`) and a first Hessian from random probes, from four
    starts: the identity, the multiple of it that solves the problem of one order parameter, where a fixed-point step
    leads from there, and a point beside it without its symmetries; and from ``start``. The lowest minimum is returned;
    the result is "local minimum", since nothing excludes a lower one. One block is :func:`solve_order_parameters`,
    solved globally.

    From P = 256 on the four starts descend on a random quarter of the data, the same in every call, with the whole N,
    and every different end is the start of a descent on all data (``start`` descends on all data only).
    ``stats["rows"]`` is the number of data of the first descents. ``stats["agreeing_starts"]`` says how many of the
    starts came to the lowest minimum in the end, ``stats["num_minima"]`` how many different minima of all data they
    found: starts that meet on the quarter are not told apart on all data, where they might not meet.

    Differentiable: where the blocks, the targets, the temperature, the base or the width requires a gradient,
    ``order_parameter`` carries the implicit one and ``action`` the envelope's, also where eigenvalues meet. First
    derivatives only: a backward pass with ``create_graph=True`` raises ``RuntimeError``. They and the evidence take
    second derivatives: r (r + 1) / 2 times two solves of P right-hand sides and two passes over the blocks.

    A layer of fewer than r units has no density of its own, but this action stays defined: it is minimized, and
    ``stats["narrow"]`` is True.

    Shapes: ``order_parameter`` is ``*p x 1 x r x r`` for ``*p`` problems (widths and temperatures, solved one by one).
    Cost: for each problem some 5 to 10 gradients of all data for each of the different ends, each about four Cholesky
    factorizations and a pass over the blocks, forward and backward; below P = 256 some 10 more for the other starts.

    Args:
        blocks: K_ab, ``r x r x P x P`` with K_ba the transpose of K_ab, or a :class:`BlockMatrices`, which need not
            hold them.
        targets: y with the mean subtracted, ``P``.
        width: N, a number or ``*p x 1``; ``math.inf`` allowed.
        temperature: T > 0, a number or ``*p``.
        base: B, a matrix or a diagonal; the identity if None.
        start: A further start, E, ``r x r``, such as an earlier solution.
        evidence: Compute ``log_evidence`` too (THEORY.md, eq. (21d)); NaN for problems of fewer than r units, whose
            prior has no density.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, dtypes, NaN, more than one layer, non-positive width or temperature.
        NotPositiveDefiniteError: The sum of the diagonal blocks is indefinite, on the part of the data that is taken
            first.
        ConvergenceError: Not converged, with ``throw=True``.

    Reference: Aiudi et al. (2023), arXiv:2307.11807; THEORY.md, section 12, eq. (23).

    Example:
        >>> import torch
        >>> from torch_propkernel import solve_order_parameters
        >>> from torch_propkernel.actions import solve_block_order_parameters
        >>> K, y = torch.eye(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
        >>> two = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
        >>> two[0, 0] = K   # the second block is not there, and keeps its prior
        >>> E = solve_block_order_parameters(two, y, width=5.0, temperature=0.1).order_parameter[0]
        >>> q = solve_order_parameters(K, y, width=5.0, temperature=0.1).order_parameter
        >>> torch.allclose(E, torch.diag(torch.stack([q[0], torch.ones_like(q[0])])), atol=1e-8)
        True
    """
    if isinstance(blocks, Tensor):
        blocks = DenseBlocks.of(check_finite("blocks", check_floating("blocks", blocks)).double())
    with torch.no_grad():
        size = blocks.num_blocks
        unit = torch.eye(size, dtype=torch.float64, device=targets.device)
        whole = blocks(unit).double()
        check_targets(targets, len(whole), "targets")
        if targets.dim() != 1:
            raise ValueError(f"targets: expected shape ({len(whole)},), got {tuple(targets.shape)}")
        y = targets.detach().double()
        widths = as_width(width, torch.float64).to(targets.device)
        if widths.shape[-1] != 1:
            raise ValueError(f"width: expected one layer, got {widths.shape[-1]} numbers")
        cold = as_temperature(temperature, torch.float64, targets.device)
        if not bool((cold > 0).all()):
            raise ValueError(f"temperature: expected > 0 for several blocks, got {cold.tolist()}")
        own = [] if start is None else [check_positive_definite("start", start, size, targets.device)]
        still = base_matrix(base, y)
        rows = torch.arange(len(y), device=y.device) if size == 1 else _some_rows(len(y), y.device)
        part = (rows.unsqueeze(-1), rows)
        scalar = solve_order_parameters(
            whole[part],
            y[rows],
            width=widths,
            temperature=cold,
            base=None if base is None else still[part],
            throw=False,
        )
        shape = scalar.order_parameter.shape[:-1]
        widths, cold = (v.expand(shape).reshape(-1) for v in (widths.squeeze(-1), cold))
        held = DenseBlocks(blocks.matrices.detach()) if isinstance(blocks, DenseBlocks) else blocks
        settings = list(zip(widths.tolist(), cold.tolist(), strict=True))
        actions = [BlockAction(held, T * still, y, N) for N, T in settings]
        if size == 1:
            solution = _of_one_block(scalar)
        else:
            multiples = torch.nan_to_num(scalar.order_parameter.flatten(), nan=1.0)
            first = actions
            if len(rows) < len(y):
                some, quiet, heard = on_rows(held, rows), still[part], y[rows]
                first = [BlockAction(some, T * quiet, heard, N) for N, T in settings]
            triples = zip(actions, first, multiples, strict=True)
            solved = [_solve_one(action, few, q * unit, own) for action, few, q in triples]
            solution = _solution(solved, widths.reshape(shape), size, len(y), starts=4 + len(own))
            solution.stats["rows"] = len(rows)
        if throw:
            solution.raise_if_failed()
        found = solution.order_parameter.reshape(-1, size, size)
        if evidence:
            values = [_Minimum(*problem).log_evidence() for problem in zip(actions, widths, found, strict=True)]
            solution = dataclasses.replace(solution, log_evidence=torch.stack(values).reshape(shape))
    if not torch.is_grad_enabled():
        return solution
    moving = (blocks(unit), targets, width, temperature, base)
    if not any(isinstance(v, Tensor) and v.requires_grad for v in moving):
        return solution
    live_widths = torch.as_tensor(width, dtype=torch.float64, device=y.device).expand(*shape, 1).reshape(-1, 1)
    live_cold = torch.as_tensor(temperature, dtype=torch.float64, device=y.device).expand(shape).reshape(-1)
    still, y = base_matrix(base, y), targets.double()
    moved = [
        _Minimum(action, N, E).moved(BlockAction(blocks, T * still, y, math.inf), live)
        for action, N, E, T, live in zip(actions, widths, found, live_cold, live_widths, strict=True)
    ]
    actions_of, matrices = (torch.stack(column) for column in zip(*moved, strict=True))
    divisor = torch.where(torch.isfinite(widths), live_widths.squeeze(-1), 1.0)
    return dataclasses.replace(
        solution,
        order_parameter=first_derivatives_only(matrices.reshape_as(solution.order_parameter), "order_parameter"),
        action=first_derivatives_only((actions_of / divisor).reshape(shape), "action"),
    )


def block_log_evidence(
    blocks: DenseBlocks, targets: Tensor, order_parameter: Tensor, *, width: Tensor, base: Tensor
) -> Tensor:
    """Return log p(y) by Laplace's method at a minimum E, ``r x r``, of :func:`solve_block_order_parameters` at T = 1.

    Args:
        blocks: The map from E to its covariance.
        targets: y, ``P``.
        order_parameter: E.
        width: N, one number.
        base: Noise and fixed terms, ``P x P``.
    """
    action = BlockAction(blocks, base, targets.double(), float(width))
    return _Minimum(action, width, order_parameter).log_evidence()


class _Minimum:
    """The neighborhood of one problem's minimum."""

    def __init__(self, action: BlockAction, width: Tensor, order_parameter: Tensor) -> None:
        values, self.vectors = torch.linalg.eigh(order_parameter)
        self.action, self.width, self.order_parameter = action, width.reshape(1), order_parameter
        self.u, self.along = values.log(), directions(values.log(), self.vectors)
        _, slope = value_and_gradient(action.data, order_parameter)
        slope = self.vectors.mT @ (0.5 * (slope + slope.mT)) @ self.vectors
        curvature = action.data_curvature(order_parameter, self.along)
        self.layer = values.unsqueeze(0)
        self.around = MatrixMinimum(self.u, self.layer, self.width, slope, curvature)

    def log_evidence(self) -> Tensor:
        excess = self.action(to_coordinates(symmetric_log(self.order_parameter)))
        return self.around.log_evidence(excess, len(self.action.targets))

    def moved(self, live: BlockAction, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return N S and E, ``1 x r x r``, with the derivatives of the tensors in ``live`` and of N."""
        value, gradient = linear_terms(live.data, self.order_parameter)
        chain = ScalarChain(self.width.unsqueeze(0))
        _, order_parameter = moved_minimum(self.around, chain, width, self.u, self.vectors, self.along, gradient)
        return value + layers_part(self.layer, width), order_parameter


def _some_rows(num_data: int, device: torch.device) -> Tensor:
    """Return the data on which the starts descend: a random part, always the same, or all where that is few."""
    number = num_data // _PART
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(0))
    return (order[:number].sort().values if number >= _FEW else torch.arange(num_data)).to(device)


def _solve_one(
    action: BlockAction, few: BlockAction, scalar: Tensor, further: list[Tensor]
) -> tuple[LocalMinimum, Tensor, Tensor]:
    """Descend from four starts and further ones; return the lowest minimum, how many agree, and how many minima.

    Args:
        action: The problem.
        few: The problem of some of the data, on which the four starts descend; the problem itself if not.
        scalar: The multiple of the identity that solves the problem of one order parameter.
        further: Starts that descend on all data.
    """
    zero = torch.zeros(action.num_coordinates, dtype=torch.float64, device=scalar.device)
    if action.width == 0.0:  # nothing moves
        value = action(zero)
        run = LocalMinimum(zero, value, zero, torch.diag(zero), torch.isfinite(value), iterations=0)
        return lowest_minimum([run])
    generator = torch.Generator(device=scalar.device).manual_seed(0)
    shaken = torch.randn(len(zero), generator=generator, dtype=torch.float64, device=scalar.device)
    middle = to_coordinates(symmetric_log(scalar))
    starts = [zero, middle, to_coordinates(symmetric_log(_stepped(few, scalar))), middle + _NOISE * shaken]
    own = [to_coordinates(symmetric_log(matrix)) for matrix in further]
    if few is action:
        runs = paths = _descents(action, starts + own)
    else:
        ends: list[Tensor] = []
        to: list[int] = []
        for run in _descents(few, starts):
            met = [index for index, end in enumerate(ends) if bool(same_minimum(end, run.logs))]
            to.append(met[0] if met else len(ends))
            ends += [] if met else [run.logs]
        runs = _descents(action, own + ends)
        paths = runs[: len(own)] + [runs[len(own) + index] for index in to]
    best, agreeing, minima = lowest_minimum(paths)
    best.iterations = sum(run.iterations for run in runs)
    return best, agreeing, minima


def _descents(action: BlockAction, starts: list[Tensor]) -> list[LocalMinimum]:
    """Descend from each start; each descent knows those before it."""
    curvature, runs = action.sampled_curvature(starts[0]), list[LocalMinimum]()
    for start in starts:
        runs.append(quasi_newton(action, start, action.scale, curvature, runs))
    return runs


def _stepped(action: BlockAction, order_parameter: Tensor) -> Tensor:
    """Return 1 - E^(1/2) G E^(1/2) / N at a multiple E of the identity, G the gradient of the data's part in E.

    It is E where that is stationary. Eigenvalues below a thousandth are raised.
    """
    _, gradient = value_and_gradient(action.data, order_parameter)
    moved = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
    moved = moved - order_parameter[0, 0] * 0.5 * (gradient + gradient.mT) / action.width
    values, vectors = torch.linalg.eigh(moved)
    return (vectors * values.clamp_min(_SMALLEST)) @ vectors.mT


def _of_one_block(scalar: Solution) -> Solution:
    """Return the solution of one block, with its number as a matrix."""
    return dataclasses.replace(
        scalar,
        order_parameter=scalar.order_parameter.unsqueeze(-1).unsqueeze(-1),
        stats=scalar.stats | {"starts": 1, "agreeing_starts": torch.ones_like(scalar.stats["num_minima"])},
    )


def _solution(
    solved: list[tuple[LocalMinimum, Tensor, Tensor]], widths: Tensor, size: int, num_data: int, starts: int
) -> Solution:
    runs, agreeing, minima = (list(column) for column in zip(*solved, strict=True))
    finite = torch.isfinite(widths)
    counted = torch.where(finite, widths, 0.0)

    def gathered(values: list[Tensor]) -> Tensor:
        return torch.stack(values).reshape(widths.shape + values[0].shape)

    order_parameter = torch.matrix_exp(from_coordinates(gathered([run.logs for run in runs]), size)).unsqueeze(-3)
    value = gathered([run.value for run in runs]) + size * counted
    result = SolveResult.local_minimum if bool(finite.any()) else SolveResult.infinite_width
    if not all(bool(run.converged) for run in runs):
        result = SolveResult.not_converged
    stats = {
        "iterations": sum(run.iterations for run in runs),
        "residual": gathered([run.gradient.abs().max() for run in runs]) / (num_data + counted),
        "num_minima": gathered(minima),
        "alpha": num_data / widths.unsqueeze(-1),
        "starts": starts,
        "agreeing_starts": gathered(agreeing),
        "narrow": bool((widths < size).any()),
    }
    return Solution(order_parameter, value / torch.where(finite, widths, 1.0), result, stats=stats)
