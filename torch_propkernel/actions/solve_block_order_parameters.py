"""The saddle point of a network over blocks: one matrix order parameter, or a chain of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
from ..order_parameters import LinearChain
from .block_action import BlockAction
from .block_descents import NUM_STARTS, lowest_over_blocks, some_rows
from .block_matrices import BlockMatrices, DenseBlocks, base_matrix, on_rows
from .block_minimum import BlockMinimum
from .local_minimum import LocalMinimum
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters


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
    second derivatives: P^3 operations for each of the r (r + 1) / 2 coordinates.

    A layer of fewer than r units has no density of its own, but this action stays defined: it is minimized, and
    ``stats["narrow"]`` is True.

    Shapes: ``order_parameter`` is ``*p x 1 x r x r`` for ``*p`` problems (widths and temperatures, solved one by one).
    Cost: for each problem some 5 to 10 gradients of all data for each of the different ends, each about three Cholesky
    factorizations and two passes over the blocks; below P = 256 some 10 more for the other starts.

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
    held = _as_matrices(blocks)
    own = None if start is None else check_positive_definite("start", start, held.num_blocks, targets.device)
    return solve_chain_order_parameters(
        held,
        targets,
        LinearChain([], held.num_blocks),
        width=width,
        temperature=temperature,
        base=base,
        start=None if own is None else own.unsqueeze(0),
        evidence=evidence,
        throw=throw,
    )


def solve_chain_order_parameters(
    blocks: Tensor | BlockMatrices,
    targets: Tensor,
    chain: LinearChain,
    *,
    width: float | Sequence[float] | Tensor,
    temperature: float | Tensor = 1.0,
    base: Tensor | None = None,
    start: Tensor | None = None,
    evidence: bool = False,
    throw: bool = True,
) -> Solution:
    r"""Minimize the effective action of stacked linear layers over blocks: one matrix order parameter for each layer.

    .. math:: S = \sum_l \frac{N_l}{N_L} [\mathrm{tr}\, E_l - \log\det E_l]
                  + \frac{1}{N_L} [\log\det A + y^T A^{-1} y], \qquad A = T B + \sum_{ab} (G_1)_{ab} K_{ab}

    with G_1 the lowest matrix of the chain (:class:`LinearChain`). BFGS in the logarithms of all E_l with the exact
    gradient, from the four starts of :func:`solve_block_order_parameters`, which is the chain of one layer, first on
    part of the data as there: the identity, the multiples of it that solve the problem of one number for each layer,
    where a fixed-point step leads from there, and a point beside it; and from ``start``. The lowest minimum is
    returned; nothing excludes a lower one. Matrices that are all of one number are solved globally.

    Differentiable as :func:`solve_block_order_parameters`, in what the blocks, the targets, the base, the temperature
    and the width are made of. That and the evidence take second derivatives as there, for each of the r_1 (r_1 + 1) / 2
    coordinates of G_1, however many layers there are.

    Shapes: ``order_parameter`` is ``*p x L x r x r`` for ``*p`` problems (widths and temperatures, solved one by one)
    with r the largest size, as :meth:`LinearChain.tensor` lays it out.
    Cost: as there, with more steps; the number of unknowns is the sum of the r_l (r_l + 1) / 2, whose square is the
    memory and whose cube the time of a step.

    Args:
        blocks: The map from G_1, ``r_1 x r_1``, to a covariance, ``P x P``, or the blocks K_ab themselves.
        targets: y with the mean subtracted, ``P``.
        chain: The map from the E_l to G_1.
        width: N_1, ..., N_L, ``*p x L``; ``math.inf`` allowed.
        temperature: T > 0, a number or ``*p``.
        base: B, a matrix or a diagonal; the identity if None.
        start: A further start, E_l, ``L x r x r``, such as an earlier solution.
        evidence: Compute ``log_evidence`` too, from the exact second derivatives in all E_l (THEORY.md, section 12);
            NaN where a layer has fewer than r_l units, whose prior has no density.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, NaN, another number of widths, T that is not positive.
        NotPositiveDefiniteError: The covariance at infinite width is indefinite, on the part of the data that is taken
            first.
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
    blocks = _as_matrices(blocks)
    with torch.no_grad():
        units = [torch.eye(size, dtype=torch.float64, device=targets.device) for size in chain.sizes]
        whole = blocks(chain(units)).double()
        check_targets(targets, len(whole), "targets")
        if targets.dim() != 1:
            raise ValueError(f"targets: expected shape ({len(whole)},), got {tuple(targets.shape)}")
        widths = as_width(width, torch.float64).to(targets.device)
        if widths.shape[-1] != chain.depth:
            raise ValueError(
                f"width: expected shape (..., {chain.depth}), a number for each layer, got {tuple(widths.shape)}"
            )
        cold = as_temperature(temperature, torch.float64, targets.device)
        if not bool((cold > 0).all()):
            raise ValueError(f"temperature: expected > 0 for matrices, got {cold.tolist()}")
        own = None if start is None else _checked_start(start, chain, targets.device)
        y, still = targets.detach().double(), base_matrix(None if base is None else base.detach(), targets)
        rows = torch.arange(len(y), device=y.device) if chain.size == 1 else some_rows(len(y), y.device)
        part = (rows.unsqueeze(-1), rows)
        some_base = None if base is None else still[part]
        scalar = solve_order_parameters(
            whole[part], y[rows], width=widths, temperature=cold, base=some_base, throw=False
        )
        del whole
        shape = scalar.action.shape
        widths = widths.expand(*shape, chain.depth).reshape(-1, chain.depth)
        problems = list(zip(widths, cold.expand(shape).reshape(-1), strict=True))
        held = DenseBlocks(blocks.matrices.detach()) if isinstance(blocks, DenseBlocks) else blocks
        if chain.size == 1:
            solution = _of_numbers(scalar)
        else:
            some = held if len(rows) == len(y) else on_rows(held, rows)
            multiples = torch.nan_to_num(scalar.order_parameter.reshape(-1, chain.depth), nan=1.0)
            solved = []
            for (N, T), q in zip(problems, multiples, strict=True):
                few = action = BlockAction(held, T * still, y, N, chain)
                if some is not held:
                    few = BlockAction(some, T * still[part], y[rows], N, chain)
                solved.append(lowest_over_blocks(action, few, q, [] if own is None else [action.logs(own)]))
            solution = _solution(chain, widths, solved, shape, len(y), NUM_STARTS + (own is not None))
            solution.stats["rows"] = len(rows)
        if throw:
            solution.raise_if_failed()
    moving = (blocks(chain(units)) if torch.is_grad_enabled() else None, targets, width, temperature, base)
    differentiable = torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in moving)
    if not (evidence or differentiable):
        return solution
    live_widths = torch.as_tensor(width, dtype=torch.float64, device=y.device).expand(*shape, chain.depth)
    live_cold = torch.as_tensor(temperature, dtype=torch.float64, device=y.device).expand(shape)
    live_base, live_targets = base_matrix(base, targets), targets.double()
    live = zip(live_widths.reshape(-1, chain.depth), live_cold.reshape(-1), strict=True)
    found = solution.order_parameter.detach().reshape(-1, chain.depth, chain.size, chain.size)
    evidences, moved = [], []
    for (N, T), (live_N, live_T), own in zip(problems, live, found, strict=True):  # each holds matrices of P x P
        with torch.no_grad():
            action = BlockAction(held, T * still, y, N, chain)
            minimum = BlockMinimum(action, action.logs(chain.matrices(own)))
            evidences += [minimum.log_evidence()] if evidence else []
        if differentiable:
            moved.append(minimum.moved(BlockAction(blocks, live_T * live_base, live_targets, live_N, chain)))
    if evidence:
        solution = dataclasses.replace(solution, log_evidence=torch.stack(evidences).reshape(shape))
    return _with_gradients(solution, moved, live_widths[..., -1]) if differentiable else solution


def _with_gradients(solution: Solution, moved: list[tuple[Tensor, Tensor]], last: Tensor) -> Solution:
    """Give the E_l their implicit gradients and S, in units of the last width ``*b``, the envelope's."""
    values, matrices = (torch.stack(column) for column in zip(*moved, strict=True))
    value = values.reshape(last.shape) / torch.where(torch.isfinite(last), last, 1.0)
    return dataclasses.replace(
        solution,
        order_parameter=first_derivatives_only(matrices.reshape_as(solution.order_parameter), "order_parameter"),
        action=first_derivatives_only(value, "action"),
    )


def _as_matrices(blocks: Tensor | BlockMatrices) -> BlockMatrices:
    """Return the map from a matrix to a covariance, in float64 if it is given as a tensor."""
    if isinstance(blocks, Tensor):
        return DenseBlocks.of(check_finite("blocks", check_floating("blocks", blocks)).double())
    return blocks


def _checked_start(start: Tensor, chain: LinearChain, device: torch.device) -> list[Tensor]:
    """Return E_1, ..., E_L of a start that was given as one tensor."""
    expected = (chain.depth, chain.size, chain.size)
    if tuple(start.shape) != expected:
        raise ValueError(f"start: expected shape {expected}, got {tuple(start.shape)}")
    pairs = zip(chain.matrices(start.detach()), chain.sizes, strict=True)
    return [check_positive_definite("start", matrix, size, device) for matrix, size in pairs]


def _of_numbers(scalar: Solution) -> Solution:
    """Return the solution of a chain of 1 x 1 matrices."""
    return dataclasses.replace(
        scalar,
        order_parameter=scalar.order_parameter.unsqueeze(-1).unsqueeze(-1),
        stats=scalar.stats | {"starts": 1, "agreeing_starts": torch.ones_like(scalar.stats["num_minima"])},
    )


def _solution(
    chain: LinearChain,
    widths: Tensor,
    solved: list[tuple[LocalMinimum, Tensor, Tensor]],
    shape: torch.Size,
    num_data: int,
    starts: int,
) -> Solution:
    """Return the lowest minima of n problems as one solution."""
    runs, agreeing, minima = (list(column) for column in zip(*solved, strict=True))
    counted, sizes = torch.where(torch.isfinite(widths), widths, 0.0), widths.new_tensor(chain.sizes)

    def gathered(values: list[Tensor]) -> Tensor:
        return torch.stack(values).reshape(shape + values[0].shape)

    logs = chain.from_coordinates(gathered([run.logs for run in runs]))
    value = gathered([run.value for run in runs]) + (counted @ sizes).reshape(shape)
    last = widths[:, -1].reshape(shape)
    result = SolveResult.local_minimum if bool(counted.any()) else SolveResult.infinite_width
    if not all(bool(run.converged) for run in runs):
        result = SolveResult.not_converged
    stats = {
        "iterations": sum(run.iterations for run in runs),
        "residual": gathered([run.gradient.abs().max() for run in runs]) / (num_data + counted.sum(-1).reshape(shape)),
        "num_minima": gathered(minima),
        "alpha": (num_data / widths).reshape(*shape, -1),
        "starts": starts,
        "agreeing_starts": gathered(agreeing),
        "narrow": bool((widths < sizes).any()),
    }
    order_parameter = chain.tensor([torch.matrix_exp(log) for log in logs])
    return Solution(order_parameter, value / torch.where(torch.isfinite(last), last, 1.0), result, stats=stats)
