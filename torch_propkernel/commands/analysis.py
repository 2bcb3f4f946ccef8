"""What ``fit`` computes: order parameters and errors of one network, of its baselines and of a list of widths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..actions import Solution
from ..models import NetworkGP
from ..theories import (
    ErrorEstimate,
    FreeScale,
    WidthSweep,
    fit_free_scale,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    width_sweep,
)
from .data import Rows
from .network import Network
from .steps import steps

DEFAULT_WIDTHS = (10.0, 15.0, 22.0, 32.0, 46.0, 68.0, 100.0, 150.0, 220.0, 320.0, 460.0, 680.0, 1000.0)


@dataclass(frozen=True)
class Analysis:
    """Results of one fit; errors in the targets' own units squared.

    Attributes:
        model: The network's process, with its order parameters solved.
        solution: Of the network's own widths.
        leave_one_out: Errors from the training rows alone.
        test: Errors at the held-out rows, or None.
        free_scale: The baseline with a free scale.
        sweep: Errors and order parameters of all widths, or None where all widths are infinite.
        one_factorization: Whether the sweep came from one factorization.
    """

    model: NetworkGP
    solution: Solution
    leave_one_out: ErrorEstimate
    test: ErrorEstimate | None
    free_scale: FreeScale
    sweep: WidthSweep | None
    one_factorization: bool


def sweep_widths(width: tuple[float, ...], first: tuple[float, ...]) -> Tensor | None:
    """Return all widths to solve, ``W x L``: the network's own, and those with its first finite layer set to ``first``.

    The finite layers keep their ratios and infinite ones stay infinite. None if all layers are infinite.

    Example:
        >>> sweep_widths((100.0, 50.0), (10.0, 100.0, 200.0))
        tensor([[ 10.,   5.],
                [100.,  50.],
                [200., 100.]], dtype=torch.float64)
    """
    own = torch.tensor(width, dtype=torch.float64)
    finite = torch.isfinite(own)
    if not bool(finite.any()):
        return None
    if not all(math.isfinite(number) and number > 0 for number in first):
        raise ValueError(f"--widths: expected finite numbers > 0, got {list(first)}")
    reference = own[finite][0]
    numbers = sorted({*first, float(reference)})
    return torch.stack([torch.where(finite, own * (number / reference), torch.inf) for number in numbers])


def analyze(network: Network, rows: Rows, widths: tuple[float, ...] | None) -> Analysis:
    """Fit one network and its baselines, and sweep the width.

    Args:
        network: The network.
        rows: Standardized data.
        widths: Of the first finite layer; if None, a grid, or only the network's own where each needs its own fit.
    """
    model = network.model(rows.x, rows.y)
    scalar = model.covar_module.is_scalar
    table = sweep_widths(network.width, widths if widths is not None else DEFAULT_WIDTHS if scalar else ())
    with steps(3 if scalar or table is None else 2 + len(table)) as step:
        step("fit")
        solution, loo, test = _fit(model, rows)
        step("free scale")
        free = fit_free_scale(model, rows.test_x, rows.test_y)
        if table is None:
            sweep = None
        elif scalar:
            step("widths")
            sweep = width_sweep(model, table, rows.test_x, rows.test_y)
        else:
            pieces = []
            for width in table:
                step("width " + ", ".join(f"{number:g}" for number in width.tolist()))
                own = tuple(width.tolist()) == network.width
                fitted = (solution, loo, test) if own else _fit(network.model(rows.x, rows.y, width), rows)
                pieces.append(fitted)
            sweep = _stack(table, len(rows.y), pieces)

    def own_units(error: ErrorEstimate | None) -> ErrorEstimate | None:
        return None if error is None else rows.in_target_units(error)

    if sweep is not None:
        sweep = replace(sweep, leave_one_out=rows.in_target_units(sweep.leave_one_out), test=own_units(sweep.test))
    free = replace(free, leave_one_out=rows.in_target_units(free.leave_one_out), test=own_units(free.test))
    return Analysis(model, solution, rows.in_target_units(loo), own_units(test), free, sweep, scalar)


def _fit(model: NetworkGP, rows: Rows) -> tuple[Solution, ErrorEstimate, ErrorEstimate | None]:
    solution = fit_order_parameters(model, warn=False)  # the report has the note on reliability
    test = None
    if rows.test_x is not None and rows.test_y is not None:
        test = generalization_error(model, rows.test_x, rows.test_y)
    return solution, leave_one_out_error(model), test


def _stack(
    width: Tensor, num_data: int, pieces: list[tuple[Solution, ErrorEstimate, ErrorEstimate | None]]
) -> WidthSweep:
    """Return separate fits as a sweep; they have no Laplace evidence."""
    solutions, errors, tests = zip(*pieces, strict=True)

    def stacked(estimates: tuple[ErrorEstimate, ...]) -> ErrorEstimate:
        return ErrorEstimate(
            torch.stack([estimate.mean for estimate in estimates]),
            torch.stack([estimate.bias for estimate in estimates]),
            torch.stack([estimate.variance for estimate in estimates]),
            estimates[0].infinite_width,
        )

    return WidthSweep(
        width=width,
        alpha=num_data / width,
        order_parameter=torch.stack([solution.order_parameter for solution in solutions]),
        num_minima=torch.stack([torch.as_tensor(solution.stats["num_minima"]) for solution in solutions]),
        log_evidence=torch.full((len(width),), torch.nan, dtype=torch.float64),
        leave_one_out=stacked(errors),
        test=None if tests[0] is None else stacked(tests),
    )
