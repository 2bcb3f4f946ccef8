"""The saddle point of compositions in which every order parameter acts by itself: local minima of the action."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..actions.local_minimum import (
    LocalMinimum,
    descend_from_ends,
    implicit_minimum,
    lowest_minimum,
    minimize,
    quasi_newton,
)
from ..actions.outer_action import OuterAction
from ..actions.solution import Solution, SolveResult
from ..actions.solve_order_parameters import solve_order_parameters
from ..inference import Problem
from ..numerics.first_derivatives import first_derivatives_only
from ..numerics.gaussian_terms import log_det_and_square
from ..spectra import Spectrum

_FEW, _PART = 64, 4  # the starts descend on a quarter of the points, where that is 64 or more
_EXACT, _ROUGH = 1e-11, 1e-6  # relative size of a gradient that ends a descent, and on the quarter
_ALIKE = 0.3  # in log q, how far a minimum of the quarter may be from that of all points
_BESIDE = 0.7  # in log q, how far the last two starts are from infinite width


def solve_local(problem: Problem) -> Solution:
    """Return the lowest minimum of the action that descents from four starts reach.

    A single problem of 256 points or more is thinned first (:meth:`Problem.thinned`): the starts descend there, and
    every different end is the start of a descent on all points. Where such a descent leads further than 0.3 in log q
    or does not converge, the thinned problem is not like the whole one, and the four starts descend on all points too.
    """
    width, finite = problem.layers.width, problem.layers.finite
    with torch.no_grad():
        few = _thinned(problem)
        action = _LocalAction(problem.remembering())
        if few is problem:
            runs = paths = _from_starts(problem, action)
        else:
            first = _from_starts(few, _LocalAction(few.remembering()), tolerance=_ROUGH)
            factor = problem.num_data / few.num_data
            ends, paths = descend_from_ends(
                first, lambda run, on: action.descend(run.logs, factor * run.hessian, on, _EXACT)
            )
            runs = [*first, *ends]
            if not _agree(first, paths):
                more = _from_starts(problem, action, ends)
                runs, paths = [*runs, *more], [*ends, *more]
        best, agreeing, num_minima = lowest_minimum(paths)
    value, logs = best.value, action.all_layers(best.logs)
    if torch.is_grad_enabled():
        value, logs, _ = implicit_minimum(_LocalAction(problem), logs, finite)  # layers of infinite width do not move
    result = SolveResult.local_minimum if bool(finite.any()) else SolveResult.infinite_width
    if not bool(best.converged.all()):
        result = SolveResult.not_converged
    stats = {
        "iterations": sum(run.iterations for run in runs),
        "residual": best.gradient.abs().amax(-1) / action.scale,
        "num_minima": num_minima,
        "alpha": problem.num_data / width,
        "starts": len(paths),
        "agreeing_starts": agreeing,
        "rows": few.num_data,
    }
    order_parameter = first_derivatives_only(torch.exp(logs), "order_parameter")
    value = first_derivatives_only(value, "action") / torch.where(finite[..., -1], width[..., -1], 1.0)
    return Solution(order_parameter, value, result, stats=stats)


class _LocalAction:
    """N_L S as a function of log q, ``*b x L``; infinite where the covariance is not positive definite."""

    def __init__(self, problem: Problem) -> None:
        chain = problem.layers
        self.problem, self.finite = problem, chain.finite
        self.residuals = problem.residuals().to(torch.float64)
        self.noise = problem.noise_covariance(problem.targets).to(torch.float64)
        self.batch = torch.broadcast_shapes(
            problem.residuals().shape[:-1], chain.width.shape[:-1], problem.inputs.shape[:-2]
        )
        self.counted = torch.where(chain.finite, chain.width, 0.0)
        self.scale = problem.num_data + self.counted.amax(-1).expand(self.batch)

    def __call__(self, logs: Tensor) -> Tensor:
        q = torch.exp(logs)
        covariance = self.problem.covariance(q.to(self.problem.network.raw_order_parameter.dtype)).to(torch.float64)
        layers = (self.counted * (q - logs)).sum(-1)
        return layers + log_det_and_square(covariance + self.noise, self.residuals)

    @property
    def by_newton(self) -> bool:
        """Whether all layers of all problems descend together; else the layers of finite width of the one problem."""
        return bool(self.batch) or not bool(self.finite.any())

    def free(self, logs: Tensor) -> Tensor:
        """Return the coordinates of a descent."""
        return logs if self.by_newton else logs[self.finite]

    def all_layers(self, free: Tensor) -> Tensor:
        """Return ``*b x L``, zero where the width is infinite, from the coordinates of a descent."""
        return free if self.by_newton else free.new_zeros(self.finite.shape).masked_scatter(self.finite, free)

    def descend(
        self, start: Tensor, curvature: Tensor, earlier: Sequence[LocalMinimum], tolerance: float
    ) -> LocalMinimum:
        """Descend from the coordinates ``start``; ``curvature`` is the first Hessian of a single problem in them."""
        if self.by_newton:
            return minimize(self, start, self.finite, self.scale, earlier=earlier, tolerance=tolerance)
        return quasi_newton(lambda free: self(self.all_layers(free)), start, self.scale, curvature, earlier, tolerance)


def _thinned(problem: Problem) -> Problem:
    count = problem.num_data // _PART
    one_output = problem.num_data == problem.inputs.shape[-2]
    single = problem.inputs.dim() == 2 and problem.targets.dim() == 1 and problem.layers.width.dim() == 1
    return problem.thinned(count) if single and one_output and count >= _FEW else problem


def _agree(few: list[LocalMinimum], whole: list[LocalMinimum]) -> bool:
    """Whether descents on all points converged near where they began, the ends of descents on some of them."""
    return all(
        bool(there.converged) and bool((here.logs - there.logs).abs().max() <= _ALIKE)
        for here, there in zip(few, whole, strict=True)
    )


def _from_starts(
    problem: Problem, action: _LocalAction, earlier: Sequence[LocalMinimum] = (), tolerance: float = _EXACT
) -> list[LocalMinimum]:
    """Descend from the outer composition's solution, from infinite width, and from both sides of it."""
    outer, curvature = _outer_solution(problem)
    if not action.by_newton:
        curvature = curvature[action.finite][:, action.finite]
    zero = torch.zeros(*action.batch, outer.shape[-1], dtype=torch.float64, device=outer.device)
    runs: list[LocalMinimum] = []
    for start in (outer + zero, zero, zero - _BESIDE, zero + _BESIDE):
        runs.append(action.descend(action.free(start), curvature, [*earlier, *runs], tolerance))
    return runs


def _outer_solution(problem: Problem) -> tuple[Tensor, Tensor]:
    r"""Return the log order parameters of the outer composition, and its action's second derivatives there.

    .. math:: N_l q_l \delta_{lm} + \max(g'(u), 0)

    They are positive also where the data's part bends down.
    """
    width, unit = problem.layers.width, problem.unit_covariance
    spectrum = Spectrum.from_kernel(
        unit, problem.residuals().to(unit.dtype), base=problem.noise_covariance(unit), eigenvectors=False
    )
    logs = solve_order_parameters(spectrum, width=width, temperature=1.0, throw=False).order_parameter.log()
    action, shape = OuterAction.of(spectrum, width, 1.0)
    bend = action.data_terms(logs.sum(-1).expand(shape).reshape(-1))[1].reshape(shape).clamp_min(0.0)
    own = torch.where(torch.isfinite(width), width, 1.0) * logs.exp()
    return logs, torch.diag_embed(own) + bend[..., None, None]
