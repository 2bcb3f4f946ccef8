"""The saddle point of a network over blocks: one matrix order parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from .._validation import as_temperature, as_width, check_finite, check_floating, check_targets
from ..numerics.symmetric import from_coordinates, symmetric_log, to_coordinates
from .block_action import BlockAction, BlockMatrices, DenseBlocks
from .local_minimum import LocalMinimum, lowest_minimum, quasi_newton, value_and_gradient
from .solution import Solution, SolveResult
from .solve_order_parameters import solve_order_parameters

_SMALLEST = 1e-3  # of the eigenvalues of E where a descent starts
_NOISE = 0.1


@torch.no_grad()
def solve_block_order_parameters(
    blocks: Tensor | BlockMatrices,
    targets: Tensor,
    *,
    width: float | Tensor,
    temperature: float | Tensor,
    base: Tensor | None = None,
    throw: bool = True,
) -> Solution:
    r"""Minimize the effective action of a network over r blocks, whose order parameter is one r x r matrix.

    .. math:: S(E) = \mathrm{tr}\, E - \log\det E + \frac1N \big[\log\det A + y^T A^{-1} y\big], \qquad
              A = T B + \sum_{ab} E_{ab} K_{ab}

    for Q = E; with a prior mean S = R R^T of Q the blocks are :math:`\sum_{cd} R_{ca} R_{db} K_{cd}` and Q = R E R^T.
    BFGS in log E with the exact gradient (:class:`BlockAction`), from four starts: the identity, the multiple of it
    that solves the problem of one order parameter, where a fixed-point step leads from there, and a point beside it
    without its symmetries. The lowest minimum is returned; the result is "local minimum", since nothing excludes a
    lower one, and ``stats["agreeing_starts"]`` says how many starts ended there. One block is
    :func:`solve_order_parameters`, solved globally.

    A layer of fewer than r units has no density of its own, but this action stays defined: it is minimized, and
    ``stats["narrow"]`` is True.

    Shapes: ``order_parameter`` is ``*p x 1 x r x r`` for ``*p`` problems (widths and temperatures, solved one by one).
    Cost: for each problem some 25 to 75 gradients for four to sixteen blocks, each about four Cholesky factorizations
    and a pass over the blocks, forward and backward.

    Args:
        blocks: K_ab, ``r x r x P x P`` with K_ba the transpose of K_ab, or a :class:`BlockMatrices`, which need not
            hold them.
        targets: y with the mean subtracted, ``P``.
        width: N, a number or ``*p x 1``; ``math.inf`` allowed.
        temperature: T > 0, a number or ``*p``.
        base: B, a matrix or a diagonal; the identity if None.
        throw: Raise if the solve did not converge.

    Raises:
        TypeError, ValueError: Bad shapes, dtypes, NaN, more than one layer, non-positive width or temperature.
        NotPositiveDefiniteError: The sum of the diagonal blocks is indefinite.
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
    size = blocks.num_blocks
    unit = torch.eye(size, dtype=torch.float64, device=targets.device)
    whole = blocks(unit).double()
    check_targets(targets, len(whole), "targets")
    if targets.dim() != 1:
        raise ValueError(f"targets: expected shape ({len(whole)},), got {tuple(targets.shape)}")
    targets = targets.double()
    widths = as_width(width, torch.float64).to(targets.device)
    if widths.shape[-1] != 1:
        raise ValueError(f"width: expected one layer, got {widths.shape[-1]} numbers")
    temperature = as_temperature(temperature, torch.float64, targets.device)
    if not bool((temperature > 0).all()):
        raise ValueError(f"temperature: expected > 0 for several blocks, got {temperature.tolist()}")
    still = torch.eye(len(whole), dtype=torch.float64, device=targets.device)
    if base is not None:
        still = (base if base.dim() == 2 else torch.diag_embed(base)).double()
    scalar = solve_order_parameters(whole, targets, width=widths, temperature=temperature, base=base, throw=False)
    if size == 1:
        found = Solution(
            scalar.order_parameter.unsqueeze(-1).unsqueeze(-1),
            scalar.action,
            scalar.result,
            scalar.stationary_points,
            scalar.stationary_actions,
            scalar.stats | {"starts": 1, "agreeing_starts": torch.ones_like(scalar.stats["num_minima"])},
        )
        return found.raise_if_failed() if throw else found
    shape = scalar.order_parameter.shape[:-1]
    problems = zip(
        *(v.expand(shape).reshape(-1).tolist() for v in (widths.squeeze(-1), temperature)),
        scalar.order_parameter.reshape(-1),
        strict=True,
    )
    solved = [
        _solve_one(BlockAction(blocks, T * still, targets, N), torch.nan_to_num(q, nan=1.0) * unit)
        for N, T, q in problems
    ]
    runs, agreeing, minima = (list(column) for column in zip(*solved, strict=True))
    return _solution(runs, agreeing, minima, widths.expand(*shape, 1), size, len(targets), throw)


def _solve_one(action: BlockAction, scalar: Tensor) -> tuple[LocalMinimum, Tensor, Tensor]:
    """Descend from all starts; return the lowest minimum, how many ended there, and the number of distinct ones."""
    zero = torch.zeros(action.num_coordinates, dtype=torch.float64, device=scalar.device)
    if action.width == 0.0:  # nothing moves
        value = action(zero)
        run = LocalMinimum(zero, value, zero, torch.diag(zero), torch.isfinite(value), iterations=0)
        return lowest_minimum([run])
    generator = torch.Generator(device=scalar.device).manual_seed(0)
    shaken = torch.randn(len(zero), generator=generator, dtype=torch.float64, device=scalar.device)
    middle = to_coordinates(symmetric_log(scalar))
    starts = [zero, middle, to_coordinates(symmetric_log(_stepped(action, scalar))), middle + _NOISE * shaken]
    runs: list[LocalMinimum] = []
    for start in starts:
        runs.append(quasi_newton(action, start, action.scale, action.width, runs))
    best, agreeing, minima = lowest_minimum(runs)
    best.iterations = sum(run.iterations for run in runs)
    return best, agreeing, minima


def _stepped(action: BlockAction, order_parameter: Tensor) -> Tensor:
    """Return 1 - E^(1/2) G E^(1/2) / N at a multiple E of the identity, G the gradient of the data's part in E.

    It is E where that is stationary. Eigenvalues below a thousandth are raised.
    """
    _, gradient = value_and_gradient(action.data, order_parameter)
    moved = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
    moved = moved - order_parameter[0, 0] * 0.5 * (gradient + gradient.mT) / action.width
    values, vectors = torch.linalg.eigh(moved)
    return (vectors * values.clamp_min(_SMALLEST)) @ vectors.mT


def _solution(
    runs: list[LocalMinimum],
    agreeing: list[Tensor],
    minima: list[Tensor],
    widths: Tensor,
    size: int,
    num_data: int,
    throw: bool,
) -> Solution:
    shape = widths.shape[:-1]
    finite = torch.isfinite(widths.squeeze(-1))
    counted = torch.where(finite, widths.squeeze(-1), 0.0)

    def gathered(values: list[Tensor]) -> Tensor:
        return torch.stack(values).reshape(shape + values[0].shape)

    order_parameter = torch.matrix_exp(from_coordinates(gathered([run.logs for run in runs]), size)).unsqueeze(-3)
    value = gathered([run.value for run in runs]) + size * counted
    result = SolveResult.local_minimum if bool(finite.any()) else SolveResult.infinite_width
    if not all(bool(run.converged) for run in runs):
        result = SolveResult.not_converged
    residual = gathered([run.gradient.abs().max() for run in runs]) / (num_data + counted)
    stats = {
        "iterations": sum(run.iterations for run in runs),
        "residual": residual,
        "num_minima": gathered(minima),
        "alpha": num_data / widths,
        "starts": 4,
        "agreeing_starts": gathered(agreeing),
        "narrow": bool((widths < size).any()),
    }
    solution = Solution(order_parameter, value / torch.where(finite, widths.squeeze(-1), 1.0), result, stats=stats)
    return solution.raise_if_failed() if throw else solution
