"""Where the lowest minimum over blocks is searched: descents from several starts, first on part of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from .block_action import BlockAction
from .local_minimum import LocalMinimum, lowest_minimum, quasi_newton, same_minimum, value_and_gradient

NUM_STARTS = 4
_SMALLEST = 1e-3  # of the eigenvalues of E where a descent starts
_NOISE = 0.1
_FEW, _PART = 64, 4  # the starts descend on a quarter of the data, where that is 64 points or more


def some_rows(num_data: int, device: torch.device) -> Tensor:
    """Return the data on which the starts descend: a random part, always the same, or all where that is few."""
    number = num_data // _PART
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(0))
    return (order[:number].sort().values if number >= _FEW else torch.arange(num_data)).to(device)


def lowest_over_blocks(
    action: BlockAction, few: BlockAction, multiples: Tensor, further: list[Tensor]
) -> tuple[LocalMinimum, Tensor, Tensor]:
    """Descend from four starts and further ones; return the lowest minimum, how many agree, and how many minima.

    Args:
        action: The problem.
        few: The problem of some of the data, on which the four starts descend; the problem itself if not.
        multiples: The multiples of the identity that solve the problem of one number for each layer, ``L``.
        further: Coordinates of starts that descend on all data.
    """
    if not bool(action.finite.any()):  # nothing moves
        zero = torch.zeros(len(action.free), dtype=torch.float64, device=multiples.device)
        value = action(zero)
        run = LocalMinimum(zero, value, zero, torch.diag(zero), torch.isfinite(value), iterations=0)
        return lowest_minimum([run])
    starts = _starts(few, multiples)
    if few is action:
        runs = paths = _descents(action, starts + further)
    else:
        ends: list[Tensor] = []
        to: list[int] = []
        for run in _descents(few, starts):
            met = [index for index, end in enumerate(ends) if bool(same_minimum(end, run.logs))]
            to.append(met[0] if met else len(ends))
            ends += [] if met else [run.logs]
        runs = _descents(action, further + ends)
        paths = runs[: len(further)] + [runs[len(further) + index] for index in to]
    best, agreeing, minima = lowest_minimum(paths)
    best.iterations = sum(run.iterations for run in runs)
    return best, agreeing, minima


def _descents(action: BlockAction, starts: list[Tensor]) -> list[LocalMinimum]:
    """Descend from each start; each descent knows those before it."""
    curvature, runs = action.sampled_curvature(starts[0]), list[LocalMinimum]()
    for start in starts:
        runs.append(quasi_newton(action, start, action.scale, curvature, runs))
    return runs


def _starts(action: BlockAction, multiples: Tensor) -> list[Tensor]:
    """Return the four starts; multiples of the identity, ``L``, are the second."""
    sizes = zip(multiples, action.chain.sizes, strict=True)
    scaled = [q * torch.eye(size, dtype=q.dtype, device=q.device) for q, size in sizes]
    middle = action.logs(scaled)
    generator = torch.Generator(device=middle.device).manual_seed(0)
    shaken = torch.randn(len(middle), generator=generator, dtype=middle.dtype, device=middle.device)
    return [
        torch.zeros_like(middle),
        middle,
        action.logs(_stepped(action, scaled)),
        torch.where(action.free, middle + _NOISE * shaken, 0.0),
    ]


def _stepped(action: BlockAction, order_parameters: list[Tensor]) -> list[Tensor]:
    """Return 1 - E^(1/2) G E^(1/2) / N of each layer at multiples E of the identity, G the data's gradient in E.

    It is E where that is stationary. Eigenvalues below a thousandth are raised.
    """
    chain = action.chain
    flat = chain.to_coordinates(order_parameters)
    _, gradient = value_and_gradient(lambda x: action.data(chain(chain.from_coordinates(x))), flat)
    moved = []
    for E, slope, width in zip(order_parameters, chain.from_coordinates(gradient), action.widths, strict=True):
        values, vectors = torch.linalg.eigh(torch.eye(len(E)).to(E) - E @ slope / width)
        moved.append((vectors * values.clamp_min(_SMALLEST)) @ vectors.mT)
    return moved
