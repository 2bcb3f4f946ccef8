"""Local minima of the effective action over several order parameters, by safeguarded Newton steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_MAX_ITERATIONS = 100
_MAX_QUASI_NEWTON = 1000
_MAX_MISSES = 3
_MAX_STEP = 1.0
_MAX_HALVINGS = 30
_DIFFERENCE = 1e-5
_NEAR = 1e-3
_REACH, _ALIKE = 0.5, 0.1
"""In log q, over which every term of the action bends little, and of the gradient."""
_ROUNDING = 1e3
"""Rounding of the matrices limits the gradient: a bound that is looser by this still places q to 1e-8."""
_FALLING, _PLACED = 0.05, 1e-9
"""A last step is not evaluated where the gradient falls by this, and the next step would be so small."""
_NOISE = 64.0
"""Rounding of an action, in units of its last digit: sums over the points leave about ten."""


@dataclass
class LocalMinimum:
    """End of one descent: log order parameters ``*b x L``, action, gradient, Hessian, and whether each converged."""

    logs: Tensor
    value: Tensor
    gradient: Tensor
    hessian: Tensor
    converged: Tensor
    iterations: int


def value_and_gradient(function: Callable[[Tensor], Tensor], logs: Tensor) -> tuple[Tensor, Tensor]:
    """Return value ``*b`` and exact gradient ``*b x L`` of a batched function."""
    with torch.enable_grad():
        logs = logs.detach().requires_grad_(True)
        value = function(logs)
        (gradient,) = torch.autograd.grad(value.sum(), logs)
    return value.detach(), gradient


def hessian_by_differences(function: Callable[[Tensor], Tensor], logs: Tensor, gradient: Tensor) -> Tensor:
    """Return the Hessian ``*b x L x L`` from forward differences of exact gradients, to about 1e-5 relative.

    One gradient for each layer is several times cheaper than differentiating twice through the factorization, and
    Newton's method needs no better: it converges linearly at the rate of the Hessian's error.
    """
    rows = []
    for index in range(logs.shape[-1]):
        shift = torch.zeros_like(logs)
        shift[..., index] = _DIFFERENCE
        rows.append((value_and_gradient(function, logs + shift)[1] - gradient) / _DIFFERENCE)
    hessian = torch.stack(rows, -2)
    return 0.5 * (hessian + hessian.transpose(-1, -2))


def implicit_minimum(function: Callable[[Tensor], Tensor], logs: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a minimum's value ``*b`` and position ``*b x L`` with their derivatives, and the exact Hessian there.

    The value has the envelope's derivative, the position that of the implicit function theorem, with respect to all
    that has a graph in the function. First derivatives only.

    Args:
        function: Maps points ``*b x L`` to values ``*b``, twice differentiable.
        logs: The minimum, ``*b x L``.
        free: Which components move, broadcastable to ``*b x L``; in the Hessian the others are those of the identity.
    """
    with torch.enable_grad():
        point = logs.detach().clone().requires_grad_(True)
        value = function(point)
        (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=True)
        entries = range(logs.shape[-1])
        rows = [torch.autograd.grad(gradient[..., i].sum(), point, retain_graph=True)[0] for i in entries]
    both = (free.unsqueeze(-1) & free.unsqueeze(-2)).expand(*logs.shape, logs.shape[-1])
    unit = torch.eye(logs.shape[-1], dtype=logs.dtype, device=logs.device)
    hessian = torch.where(both, torch.stack(rows, -2), unit).detach()
    change = torch.where(free, gradient - gradient.detach(), 0.0)
    return value, logs.detach() - torch.linalg.solve(hessian, change), hessian


def minimize(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    free: Tensor,
    scale: Tensor,
    tolerance: float = 1e-11,
    earlier: Sequence[LocalMinimum] = (),
    hessian_of: Callable[[Tensor], Tensor] | None = None,
) -> LocalMinimum:
    """Descend from ``start`` to a local minimum for each batch element.

    Newton directions from the Hessian with its eigenvalues made positive, steps of at most one in log q, halved until
    the value drops; where its decrease would be rounding, full steps for as long as the gradient falls. A value of
    infinity marks a point outside the domain. The first step takes the Hessian of the last of the earlier descents, and
    one that comes within a thousandth of an earlier minimum goes there at once. A step costs one gradient, and those of
    the Hessian where it was far, and is decided by one reading of the device.

    Args:
        function: Maps log order parameters ``*b x L`` to values ``*b``.
        start: First point, ``*b x L``.
        free: Which components move, broadcastable to ``*b x L``.
        scale: Size of the terms of the gradient, ``*b``; converged where |gradient| <= tolerance * scale.
        tolerance: Relative tolerance.
        earlier: Descents from other starts.
        hessian_of: Second derivatives ``*b x L x L`` at a point; from differences of gradients if None.
    """
    pinned = torch.diag_embed(torch.where(free, 0.0, 1.0).to(start).expand_as(start))
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    unit = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)

    def at(logs: Tensor, hessian: Tensor) -> _Point:
        met = torch.zeros(logs.shape[:-1], dtype=torch.bool, device=logs.device)
        for run in earlier:
            there = run.converged & ((logs - run.logs).abs() <= _NEAR).all(-1)
            logs = torch.where(there.unsqueeze(-1), run.logs, logs)
            hessian = torch.where(there[..., None, None], run.hessian, hessian)
            met = met | there
        value, gradient = value_and_gradient(function, logs)
        return _Point(logs, value, torch.where(free, gradient, 0.0), hessian, met)

    def goes_on(point: _Point) -> Tensor:
        return point.is_usable() & (point.steepness() > tolerance * scale)

    is_known = bool(earlier) and bool(earlier[-1].converged.all())
    point = at(torch.where(free, start, 0.0), earlier[-1].hessian if is_known else pinned)
    iterations, is_far, moving = 0, not is_known, goes_on(point)
    is_moving = bool(moving.any())
    while True:
        # Closer than this the last Hessian serves: each step still gains three digits.
        if is_far:
            exact = None if hessian_of is None else hessian_of(point.logs)
            hessian = hessian_by_differences(function, point.logs, point.gradient) if exact is None else exact
            point = point._replace(hessian=torch.where(both.expand_as(hessian), hessian, 0.0) + pinned)
        if not is_moving or iterations == _MAX_ITERATIONS:
            break
        iterations += 1
        moving = moving & torch.isfinite(point.hessian).all(-1).all(-1)
        eigenvalues, vectors = torch.linalg.eigh(torch.where(moving[..., None, None], point.hessian, unit))
        bent = eigenvalues.abs().clamp_min(1e-8 * scale.unsqueeze(-1))
        projected = (vectors.transpose(-1, -2) @ torch.nan_to_num(point.gradient).unsqueeze(-1)).squeeze(-1)
        direction = -(vectors @ (projected / bent).unsqueeze(-1)).squeeze(-1)
        direction = direction * (_MAX_STEP / direction.abs().amax(-1, keepdim=True).clamp_min(_MAX_STEP))
        eps = torch.finfo(point.value.dtype).eps
        # What a step would gain is rounding of the value: full steps, as long as they lower the gradient.
        flat = -(point.gradient * direction).sum(-1) <= _NOISE * eps * torch.maximum(point.value.abs(), scale)
        length = moving.to(point.logs)
        for _ in range(_MAX_HALVINGS):
            trial = at(point.logs + length.unsqueeze(-1) * direction, point.hessian)
            lower = trial.value <= point.value + 4.0 * eps * point.value.abs()
            taken = moving & (torch.where(flat, trial.steepness() < point.steepness(), lower) | trial.met)
            halved = moving & ~taken & ~flat
            step = torch.where(taken, length, 0.0).unsqueeze(-1) * direction
            reached = trial.where(taken, point)
            still = taken & goes_on(reached)
            # All that the program reads from the device in one step.
            is_far = (step.abs().max() > _NEAR) & ~reached.met.all()
            is_halved, is_moving, is_far = torch.stack([halved.any(), still.any(), is_far]).tolist()
            if not is_halved:
                break
            length = torch.where(halved, 0.5 * length, length)
        point, moving = reached, still
    # A value that is not finite has no usable derivatives: such a start has failed.
    usable = point.is_usable() & torch.isfinite(point.hessian).all(-1).all(-1)
    positive = torch.linalg.eigvalsh(torch.nan_to_num(point.hessian)).amin(-1) > 0
    converged = usable & positive & (point.steepness() <= _ROUNDING * tolerance * scale)
    value = torch.where(usable, point.value, torch.inf)
    return LocalMinimum(point.logs, value, point.gradient, point.hessian, converged, iterations)


class _Point(NamedTuple):
    """Log order parameters of a descent, their action and its derivatives, and whether an earlier minimum is there."""

    logs: Tensor
    value: Tensor
    gradient: Tensor
    hessian: Tensor
    met: Tensor

    def is_usable(self) -> Tensor:
        return torch.isfinite(self.value) & torch.isfinite(self.gradient).all(-1)

    def steepness(self) -> Tensor:
        return self.gradient.abs().amax(-1)

    def where(self, condition: Tensor, other: _Point) -> _Point:
        """Return this point for the problems of a condition ``*b``, another one for all others."""

        def pick(mine: Tensor, others: Tensor) -> Tensor:
            return torch.where(condition[(..., *[None] * (mine.dim() - condition.dim()))], mine, others)

        return _Point(*map(pick, self, other))


def quasi_newton(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    scale: Tensor,
    curvature: float | Tensor,
    earlier: Sequence[LocalMinimum] = (),
    tolerance: float = 1e-11,
) -> LocalMinimum:
    """Descend from ``start`` to a local minimum by BFGS: for many variables, one problem at a time.

    The Hessian starts at that of the last minimum that was found, else at ``curvature``, and learns from every step
    that curves upward; steps are at most one in every variable, and halved until the value drops. A descent ends at a
    minimum found before where it comes within a thousandth of it, or within a half with the gradient that the quadratic
    form of that minimum has there, to a tenth. The last step, after which the gradient or what is left to go is small
    enough if both fall as in the step before, is not evaluated: value and gradient are those before it. Cost: one
    gradient for each other step.

    Args:
        function: Maps a point ``C`` to a value; infinity marks a point outside the domain.
        start: First point, ``C``.
        scale: Size of the terms of the gradient; converged where |gradient| <= tolerance * scale.
        curvature: First guess of the second derivatives: a positive number for all or for each component, or a positive
            definite matrix.
        earlier: Descents from other starts.
        tolerance: Relative tolerance.
    """
    x, fresh = start, torch.as_tensor(curvature, dtype=start.dtype, device=start.device)
    if fresh.dim() < 2:
        fresh = fresh * torch.eye(len(start), dtype=start.dtype, device=start.device)
    value, gradient = value_and_gradient(function, x)
    size, bound = float(gradient.abs().max()), tolerance * float(scale)
    known = [run for run in earlier if bool(run.converged)]
    hessian, iterations, misses, rate, placed = known[-1].hessian if known else fresh, 0, 0, 1.0, False
    while size > bound and iterations < _MAX_QUASI_NEWTON:
        for run in known:
            away = x - run.logs
            distance, unlike = away.abs().max(), (gradient - run.hessian @ away).norm() / gradient.norm()
            if bool((distance <= _NEAR) | (distance <= _REACH) & (unlike <= _ALIKE)):
                return dataclasses.replace(run, iterations=iterations)
        iterations += 1
        direction = -torch.linalg.solve(hessian, gradient)
        direction = direction * (_MAX_STEP / direction.abs().max().clamp_min(_MAX_STEP))
        near, descent = size <= _ROUNDING * bound, -float(direction @ gradient)
        # What a step would gain is rounding of the value: full steps, as long as they lower the gradient.
        flat = near or descent <= _NOISE * torch.finfo(value.dtype).eps * max(float(value.abs()), float(scale))
        left = rate * float(direction.abs().max())  # what a step leaves if steps go on to shrink as the last one
        if near and rate * size <= bound or rate <= _FALLING and left <= _PLACED:
            x, placed = x + direction, True
            break
        length = 1.0
        for _ in range(_MAX_HALVINGS):
            new_value, new_gradient = value_and_gradient(function, x + length * direction)
            if flat or bool(new_value <= value - 1e-4 * length * descent):
                break
            length *= 0.5
        else:
            if hessian is fresh:
                break
            hessian = fresh  # what was learned far from here misleads
            continue
        new_size = float(new_gradient.abs().max())
        misses += int(flat and not new_size < size)
        if misses > _MAX_MISSES:
            break
        step, change, rate = length * direction, new_gradient - gradient, new_size / size
        x, value, gradient, size = x + step, new_value, new_gradient, new_size
        curved = step @ change
        if bool(curved > 1e-10 * step.norm() * change.norm()):
            pushed = hessian @ step
            hessian = hessian - pushed.outer(pushed) / (step @ pushed) + change.outer(change) / curved
    small = (gradient.abs().max() <= _ROUNDING * bound) | placed
    converged = torch.isfinite(value) & small
    return LocalMinimum(x, value, gradient, hessian, converged, iterations)


def same_minimum(first: Tensor, second: Tensor) -> Tensor:
    """Return whether descents that end at ``*b x L`` ended at the same minimum, ``*b``."""
    return ((first - second).abs() <= 1e-5).all(-1)


def lowest_minimum(runs: list[LocalMinimum]) -> tuple[LocalMinimum, Tensor, Tensor]:
    """Pick the lowest converged run for each batch element; count the starts that agree and the distinct minima."""
    values = torch.stack([torch.where(run.converged, run.value, torch.inf) for run in runs])
    pick = values.argmin(0)

    def chosen(name: str) -> Tensor:
        stacked = torch.stack([getattr(run, name) for run in runs])
        index = pick.reshape(1, *pick.shape, *[1] * (stacked.dim() - 1 - pick.dim())).expand(1, *stacked.shape[1:])
        return stacked.gather(0, index).squeeze(0)

    best = LocalMinimum(
        chosen("logs"), chosen("value"), chosen("gradient"), chosen("hessian"), chosen("converged"), iterations=0
    )
    logs = torch.stack([run.logs for run in runs])
    converged = torch.stack([run.converged for run in runs])
    near = same_minimum(logs, best.logs) & converged
    distinct = torch.zeros_like(pick)
    for index in range(len(runs)):
        earlier = same_minimum(logs[:index], logs[index]) & converged[:index]
        distinct = distinct + (converged[index] & ~earlier.any(0)).long()
    return best, near.sum(0), distinct
