"""The saddle point of a Gaussian process model, written into its kernel."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from ..actions.solution import Solution
from ..actions.solve_order_parameters import solve_order_parameters
from ..exceptions import PrecisionWarning, ReliabilityWarning
from ..inference import BlocksProblem, OutputsProblem, Problem, StreamedProblem, problem_of
from ..inference.last_layer import has_known_units
from ..inference.model_checks import warn_if_not_identifiable
from ..inference.streamed import streamed_past_memory
from ..reliability import Reliability
from ..reliability.score import assess
from .solve_local import solve_local
from .solve_matrices import solve_blocks, solve_outputs

UNRELIABLE = (
    "the saddle point is likely to be off by more than 5 % here; solution.reliability has the score and what was "
    "measured at such scores. Use theory='auto', which takes the adaptive theory or samples the network where the "
    "saddle point is off"
)

NO_SCORE = (
    "there is no score of the saddle point's reliability for a covariance that is more than one network's (its kernel, "
    "ScaleKernels around it, ConstantKernels added to it): the prediction may be off by 30 % without a sign. Compare "
    "with a free scale and on held-out rows"
)

NO_SCORE_OF_MATRICES = (
    "there is no score of the reliability of matrix order parameters: the prediction may be off without a sign. "
    "Compare with a free scale and on held-out rows, or with theory='sampled'"
)

COARSE = (
    "the kernel matrix is rounded to single precision, which is not small against the temperature: order parameters "
    "and variances may be off by percents. Build the model in double precision (torch.set_default_dtype(torch.float64))"
)
_COARSE = 1e-3  # largest eigenvalue's rounding over T; variances were off by 0.2 % there


@dataclass(frozen=True)
class ModelSolution(Solution):
    """A solution that knows its model: how far the theory's prediction may be off there.

    Attributes:
        reliability: Score of the reliability and what it means.
        reduction: How the kernel matrix was reduced where it was not held, the end of ``message``; else None.
    """

    reliability: Reliability = field(kw_only=True)
    reduction: str | None = field(default=None, kw_only=True)

    @property
    def message(self) -> str:
        """What the outcome means, and how the kernel matrix was reduced where it was not held."""
        own = super().message
        return own if self.reduction is None else f"{own} {self.reduction}"


def fit_order_parameters(
    model: Any, *, throw: bool = True, differentiable: bool = False, warn: bool = True
) -> ModelSolution:
    r"""Solve the order parameters of a model's kernel from its training data, and write them into it.

    The effective action is minimized at fixed hyperparameters: S(q) of THEORY.md, eq. (2), with
    :math:`A = T 1 + \text{(fixed terms)} + K_R(q)`, T the likelihood's noise. One hidden layer and the outer
    composition (also nested where it equals outer) are solved globally, in one dimension; other compositions by
    descents from several starts, and the result then says "local minimum", never "global".

    The model is any ExactGP-like module: ``forward``, ``train_inputs``, ``train_targets``, ``likelihood``, with one
    :class:`RenormalizedNNGPKernel` in its covariance, possibly inside a ScaleKernel, a product, or a sum with other
    kernels, whose covariance stays fixed. A mean is subtracted. Fantasy models keep the q they were given: call this
    again on them to re-solve. BoTorch models standardize their targets by default; q and T are then in standardized
    units.

    Or the model has a :class:`BlockRenormalizedKernel`, in the same places, or a :class:`MultitaskRenormalizedKernel`
    as its ``covar_module``: the matrices E are solved (:func:`solve_block_order_parameters`,
    :func:`solve_matrix_order_parameters`; several starts, "local minimum") and written. There is no score of their
    reliability, which is warned of.

    Cost: one kernel evaluation and about 7 Cholesky factorizations for the one-dimensional problems, which are
    streamed where their matrices do not fit into memory, as :class:`StreamedProblem` says; ``message`` and
    ``stats["quadrature_error"]`` then say so. For the others, BFGS from four starts; from P = 256 on these descend on a
    quarter of the points with widths a quarter as large (``stats["rows"]``), and each different end on all points, by 5
    or 6 gradients of about four factorizations and a kernel pass above the first layer: the time of 65 to 118
    factorizations for two layers and 400 points. Where all points lead further than 0.3 in log q from there, or a
    descent does not converge, four more starts descend on all points: three to four times that. Starts that meet on the
    quarter are not told apart on all points otherwise. A batch takes Newton's method on all points, some times that.

    Args:
        model: The model; its kernel's ``order_parameter`` is set and cached predictions are dropped.
        throw: Raise if the solve did not converge.
        differentiable: Give the returned order parameters implicit gradients with respect to the hyperparameters (and
            training inputs that require them). Needs memory for the kernel's graph.
        warn: Warn where the prediction is likely to be off by more than 5 % or where that is not known, where a free
            scale hides the order parameters, and where single precision is too coarse for the temperature.

    Returns:
        The solution; ``reliability`` holds the score of the reliability and what it means.

    Raises:
        TypeError, ValueError: Not a suitable model, NaN in the data, mixed dtypes or devices, zero or two such kernels.
        ConvergenceError: Not converged, with ``throw=True``; the kernel is left unchanged.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, results (i) and (ii); THEORY.md, sections 1, 4, 11 and 12.

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
    with torch.set_grad_enabled(differentiable):
        problem = problem_of(model, frozen=False)
    if not differentiable:
        problem = streamed_past_memory(problem)
    solution = fit_problem(problem, throw=throw, differentiable=differentiable, warn=warn, stacklevel=4)
    drop_cached_predictions(model)
    return solution


def drop_cached_predictions(model: Any) -> None:
    """Drop what GPyTorch models keep for predictions, without touching any mode."""
    for module in model.modules():
        if hasattr(module, "_clear_cache"):
            module._clear_cache()


def fit_problem(
    problem: Problem, *, throw: bool = True, differentiable: bool = False, warn: bool = True, stacklevel: int = 3
) -> ModelSolution:
    """Solve a live problem, judge the solution and write it into the model's kernel."""
    if warn:
        warn_if_not_identifiable(problem, stacklevel=stacklevel + 1)
    with torch.set_grad_enabled(differentiable):
        found = solve_problem(problem)
    reduction = None
    if isinstance(problem, StreamedProblem) and found.result.successful:
        reduction = problem.describe()
        found = dataclasses.replace(found, stats={**found.stats, "quadrature_error": problem.quadrature_error()})
    solution = ModelSolution(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(Solution)},
        reliability=assess(problem, found),
        reduction=reduction,
    )
    if throw:
        solution.raise_if_failed()
    if solution.result.successful:
        problem.set_order_parameter(solution.order_parameter.detach())
    if warn and _is_coarse(problem):
        warnings.warn(PrecisionWarning(COARSE), stacklevel=stacklevel)
    if warn and solution.reliability.reliable is False:
        warnings.warn(ReliabilityWarning(UNRELIABLE), stacklevel=stacklevel)
    if warn and solution.reliability.reliable is None:
        if isinstance(problem, (OutputsProblem, BlocksProblem)):
            warnings.warn(ReliabilityWarning(NO_SCORE_OF_MATRICES), stacklevel=stacklevel)
        elif not has_known_units(problem):
            warnings.warn(ReliabilityWarning(NO_SCORE), stacklevel=stacklevel)
    return solution


def _is_coarse(problem: Problem) -> bool:
    """Whether the rounding of a kernel matrix in single precision is not small against the temperature."""
    if problem.targets.dtype == torch.float64 or isinstance(problem, BlocksProblem):  # these compute in double
        return False
    if isinstance(problem, OutputsProblem):
        matrix = problem.unit_covariance
        reduced = problem.is_complete and not matrix.requires_grad  # by the solve
        eigenvalues = problem.joint_spectrum.eigenvalues if reduced else torch.linalg.eigvalsh(matrix.detach())
        largest = eigenvalues[..., -1]
        temperature = torch.linalg.eigvalsh(problem.noise_covariance_of_a_point.detach())[..., 0]
    elif problem.network.is_scalar:
        largest, temperature = problem.spectrum().eigenvalues[..., -1], problem.scale_temperature()
    else:
        return False
    return bool((torch.finfo(problem.targets.dtype).eps * largest > _COARSE * temperature).any())


def solve_problem(problem: Problem) -> Solution:
    """Solve at the present hyperparameters and leave the kernel as it is."""
    if isinstance(problem, OutputsProblem):
        return solve_outputs(problem)
    if isinstance(problem, BlocksProblem):
        return solve_blocks(problem)[0]
    if not problem.network.is_scalar:
        return solve_local(problem)
    width = problem.layers.width
    if not torch.is_grad_enabled():
        temperature = problem.scale_temperature()
        return solve_order_parameters(problem.spectrum(), width=width, temperature=temperature, throw=False)
    scalar = problem.scalar()
    return solve_order_parameters(
        scalar.kernel_matrix,
        scalar.residuals,
        width=width,
        temperature=scalar.temperature,
        base=scalar.base,
        throw=False,
    )
