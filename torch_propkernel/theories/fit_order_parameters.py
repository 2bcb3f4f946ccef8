"""The saddle point of a Gaussian process model, written into its kernel."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor

from ..actions.local_minimum import lowest_minimum, minimize
from ..actions.solution import Solution, SolveResult
from ..actions.solve_order_parameters import solve_order_parameters
from ..exceptions import ReliabilityWarning
from ..inference.model_parts import ModelParts, ScalarProblem, take_apart, warn_if_not_identifiable
from ..reliability import assess_reliability
from ..reliability.score import reliability_score


def fit_order_parameters(
    model: Any, *, throw: bool = True, differentiable: bool = False, warn: bool = True
) -> Solution:
    r"""Solve the order parameters of a model's renormalized kernel from its training data, and write them into it.

    The effective action is minimized at fixed hyperparameters: S(q) of THEORY.md, eq. (2), with
    :math:`A = T 1 + \text{(fixed terms)} + K_R(q)`, T the likelihood's noise. One hidden layer and the outer
    composition (also nested where it equals outer) are solved globally, in one dimension; other compositions by
    Newton's method from several starts, and the result then says "local minimum", never "global".

    The model is any ExactGP-like module: ``forward``, ``train_inputs``, ``train_targets``, ``likelihood``, with one
    :class:`RenormalizedNNGPKernel` in its covariance, possibly inside a ScaleKernel, a product, or a sum with other
    kernels, whose covariance stays fixed. A mean is subtracted. Fantasy models keep the q they were given: call this
    again on them to re-solve. BoTorch models standardize their targets by default; q and T are then in standardized
    units.

    Cost: one kernel evaluation and about 7 Cholesky factorizations for the one-dimensional problems. For the others,
    Newton's method from four starts took 1000 to 1800 of them for two layers and 400 to 1125 points.

    Args:
        model: The model; its kernel's ``order_parameter`` is set and cached predictions are dropped.
        throw: Raise if the solve did not converge.
        differentiable: Give the returned order parameters implicit gradients with respect to the hyperparameters (and
            training inputs that require them). Needs memory for the kernel's graph.
        warn: Warn where the prediction is likely to be off by more than 5 %, and where a free scale hides q.

    Returns:
        The solution; ``reliability`` holds the score of the reliability and what it means.

    Raises:
        TypeError, ValueError: Not a suitable model, NaN in the data, mixed dtypes or devices, zero or two such kernels.
        ConvergenceError: Not converged, with ``throw=True``; the kernel is left unchanged.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, results (i) and (ii); THEORY.md, sections 1 and 4.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Erf, RenormalizedNNGPKernel, fit_order_parameters
        >>> kernel = RenormalizedNNGPKernel(Erf(), width=20)
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 80, generator=generator, dtype=torch.float64)
        >>> model = NetworkGP(x, x[:, 0].sign() * 2, gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
        >>> solution = fit_order_parameters(model)
        >>> solution.result.name, bool((model.covar_module.order_parameter > 1.2).all())
        ('global_minimum', True)
    """
    return fit_parts(take_apart(model), throw=throw, differentiable=differentiable, warn=warn)[0]


def fit_parts(
    parts: ModelParts, *, throw: bool = True, differentiable: bool = False, warn: bool = True
) -> tuple[Solution, ScalarProblem | None]:
    """Do what :func:`fit_order_parameters` does, and return the one-dimensional problem too, if it was one."""
    model = parts.model
    if warn:
        warn_if_not_identifiable(parts)
    was_training = model.training
    with torch.set_grad_enabled(differentiable):
        solution, problem = solve_parts(parts)
    solution = _describe(parts, solution)
    if throw:
        solution.raise_if_failed()
    if solution.result.successful:
        parts.kernel.initialize(order_parameter=solution.order_parameter.detach().unsqueeze(-2))
        model.train()
        model.train(was_training)
    if warn and solution.reliability is not None and not solution.reliability.reliable:
        warnings.warn(solution.reliability.note, ReliabilityWarning, stacklevel=3)
    return solution, problem


def solve_parts(parts: ModelParts) -> tuple[Solution, ScalarProblem | None]:
    """Solve at the present hyperparameters and leave the kernel as it is; also the problem, if one-dimensional."""
    if not parts.kernel.is_scalar:
        return _solve_local(parts), None
    problem = parts.scalar_problem()
    solution = solve_order_parameters(
        problem.kernel_matrix,
        problem.residuals,
        width=parts.kernel.width.squeeze(-2),
        temperature=problem.temperature,
        base=problem.base,
        throw=False,
    )
    return solution, problem


def _describe(parts: ModelParts, solution: Solution) -> Solution:
    """Add what only the model knows: how far its hidden units are from Gaussian ones."""
    kernel, inputs = parts.kernel, parts.inputs
    score, missing = None, "the solve did not converge"
    with torch.no_grad():
        if solution.result.successful and bool(torch.isfinite(kernel.width).any()):
            try:
                score, missing = reliability_score(parts, solution.order_parameter), "not a saddle point of the units"
            except ValueError as error:
                missing = str(error)
        if kernel.active_dims is not None:
            inputs = inputs.index_select(-1, kernel.active_dims)
        scaled = kernel.scaled_inputs(inputs)
        scaled = (scaled / scaled.abs().amax().clamp_min(1e-30)).float()  # a ratio to a few digits, at half the cost
        note = assess_reliability(score, scaled, kernel.width, solution.order_parameter, missing)
        stats = solution.stats | {"participation_ratio": note.participation_ratio}
    return dataclasses.replace(solution, reliability=note, stats=stats)


def _solve_local(parts: ModelParts) -> Solution:
    """Several dimensions: descend from the outer composition's solution, from infinite width, and from around it."""
    kernel = parts.kernel
    width = kernel.width.squeeze(-2).to(torch.float64)
    finite = torch.isfinite(width)
    counted = torch.where(finite, width, 0.0)
    divisor = torch.where(finite[..., -1], width[..., -1], 1.0)
    differentiable = torch.is_grad_enabled()

    def total_action(logs: Tensor) -> Tensor:
        """N_L S as a function of log q; infinite where the covariance is not positive definite."""
        order_parameter = torch.exp(logs).to(kernel.raw_order_parameter.dtype).unsqueeze(-2)
        covariance = parts.covariance(order_parameter).to(torch.float64)
        factor, info = torch.linalg.cholesky_ex(covariance + parts.noise_covariance(covariance).to(torch.float64))
        half = torch.linalg.solve_triangular(factor, residuals.unsqueeze(-1), upper=False)
        data = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + half.square().sum((-2, -1))
        value = (counted * (torch.exp(logs) - logs)).sum(-1) + data
        return torch.where(info > 0, torch.inf, value)

    with torch.no_grad():
        residuals = parts.residuals().to(torch.float64)
        batch = torch.broadcast_shapes(residuals.shape[:-1], width.shape[:-1], parts.inputs.shape[:-2])
        unit = parts.covariance(1.0)
        noise = parts.noise_covariance(unit)
        outer = solve_order_parameters(
            unit, residuals.to(unit.dtype), width=width, temperature=1.0, base=noise, throw=False
        ).order_parameter.log()
        shape = (*batch, width.shape[-1])
        zero = torch.zeros(shape, dtype=torch.float64, device=residuals.device)
        starts = [outer.to(zero).expand(shape), zero, zero - 0.7, zero + 0.7]
        scale = residuals.shape[-1] + counted.amax(-1).expand(batch)
        runs = [minimize(total_action, start, finite, scale) for start in starts]
    best, agreeing, num_minima = lowest_minimum(runs)
    order_parameter, value = torch.exp(best.logs), best.value
    if differentiable:
        residuals = parts.residuals().to(torch.float64)
        logs = best.logs.clone().requires_grad_(True)
        value = total_action(logs)
        (gradient,) = torch.autograd.grad(value.sum(), logs, create_graph=True)
        rows = [torch.autograd.grad(gradient[..., i].sum(), logs, retain_graph=True)[0] for i in range(logs.shape[-1])]
        # Layers of infinite width do not move: their rows and columns are those of the identity.
        both = finite.unsqueeze(-1) & finite.unsqueeze(-2)
        unit = torch.eye(logs.shape[-1], dtype=logs.dtype, device=logs.device)
        hessian = torch.where(both, torch.stack(rows, -2), unit)
        change = torch.linalg.solve(hessian, torch.where(finite, gradient - gradient.detach(), 0.0))
        order_parameter = torch.exp(best.logs) * (1.0 - change)
    ok = bool(best.converged.all())
    stats = {
        "iterations": sum(run.iterations for run in runs),
        "residual": best.gradient.abs().amax(-1) / scale,
        "num_minima": num_minima,
        "alpha": residuals.shape[-1] / width,
        "starts": len(runs),
        "agreeing_starts": agreeing,
    }
    result = SolveResult.local_minimum if ok else SolveResult.not_converged
    return Solution(order_parameter, value / divisor, result, stats=stats)
