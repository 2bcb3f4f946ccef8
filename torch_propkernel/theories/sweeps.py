"""Theories over widths and over numbers of training points."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._tasks import map_tasks
from .._validation import as_width, check_targets
from ..inference import ErrorEstimate, Problem, StreamedProblem
from ..inference.conditioned import check_chunk_size, expected_errors
from ..inference.model_checks import warn_if_not_identifiable
from ..inference.streamed import streamed_past_memory
from .base import FittedTheory, Theory
from .mixture import Mixture
from .names import get_theory


@dataclass(frozen=True)
class WidthSweep:
    """What a theory says of one data set over widths, from one factorization, at fixed prior variances.

    Attributes:
        width: ``W x L``.
        alpha: P / N_l, ``W x L``.
        order_parameter: q_l, ``W x L``; posterior means where the scale is integrated; None without such.
        num_minima: Number of minima of the action, ``W``; None where nothing was minimized.
        log_evidence: log p(y) of the model's own targets, ``W``; None where the theory has none.
        leave_one_out: Errors from the training data alone, points ``W x P``; with those of the infinite width (``P``).
        test: Errors at the test points, ``W x m``, or None.
        scale: r = prod_l q_l, ``W``; its posterior mean where it is integrated; None without order parameters.
        scale_deviation: Standard deviation of r given y, ``W``; None where r is not integrated.
    """

    width: Tensor
    alpha: Tensor
    order_parameter: Tensor | None
    num_minima: Tensor | None
    log_evidence: Tensor | None
    leave_one_out: ErrorEstimate
    test: ErrorEstimate | None
    scale: Tensor | None = None
    scale_deviation: Tensor | None = None

    def preference(self, nats: float = 3.0) -> int | None:
        """Return the index of the width of highest evidence if it is ahead of the worst by ``nats``, else None.

        A data set is one draw of the scale: "no preference" is the common answer where the prior variances fit. Where
        they do not, narrow widths win because their scale can move; ask a free scale (:class:`FreeScale`) first.
        """
        return None if self.log_evidence is None else preferred(self.log_evidence, nats)


@dataclass(frozen=True)
class LearningCurve:
    """Predicted test error against the number of training points at fixed widths.

    Attributes:
        num_data: ``S``.
        order_parameter: ``S x R x L`` for R random subsets; None for a theory without.
        bias: Mean squared error of the posterior mean on the test points, ``S x R``.
        variance: ``S x R``.
        infinite_width_bias: The same at q = 1, ``S x R``.
        infinite_width_variance: ``S x R``.
    """

    num_data: Tensor
    order_parameter: Tensor | None
    bias: Tensor
    variance: Tensor
    infinite_width_bias: Tensor
    infinite_width_variance: Tensor


def preferred(log_evidence: Tensor, nats: float) -> int | None:
    """Return the index of the highest log evidence if it is ahead of the lowest by ``nats``, else None."""
    spread = float(log_evidence.max() - log_evidence.min())
    return int(log_evidence.argmax()) if spread >= nats else None


@torch.no_grad()
def width_sweep(
    model: Any,
    widths: Sequence[float] | Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    theory: str | Theory = "saddle",
    chunk_size: int = 1000,
    executor: Executor | None = None,
) -> WidthSweep:
    """Fit a theory and predict for many widths; the model is not changed.

    Leave-one-out errors come from the training data alone, test errors from formula (4) of THEORY.md at given targets
    (their bias is the measured squared error). ``theory="saddle"`` solves every width for its global minimum;
    ``"mixture"`` integrates the scale, so that evidences and leave-one-out densities are exact.

    Evidences compare widths at fixed prior variances only. With a free readout variance (or outputscale) infinite width
    always has the higher evidence, since an average over the scale is at most its maximum: ``"mixture"`` warns when one
    trains.

    Cost: for compositions of one dimension one ``eigh``, then P^2 multiplications for each width (and each node of a
    mixture); for others a fit for each width. Past memory one reduction of a :class:`StreamedProblem` serves all
    widths, and the errors of each take solves of their own.

    Args:
        model: An ExactGP-like model with one renormalized kernel, without batch dimensions, or a frozen problem.
        widths: ``W`` numbers (each for all layers) or ``W x L``; ``math.inf`` allowed.
        x: Test inputs, ``m x d``.
        y: Test targets, ``m``, in original units.
        theory: A :class:`Theory` or a name from ``THEORIES``.
        chunk_size: Test points at a time.
        executor: A ``concurrent.futures.Executor`` that takes the fits and leave-one-out errors of the widths, which
            pays where each width has a factorization of its own; None to do them one after the other. The numbers are
            the same. Test errors share the kernel's blocks and stay here. To another process goes the kernel matrix.

    Raises:
        ValueError: A batch of models, a theory that does not apply, and as :func:`fit_order_parameters`.

    Reference: THEORY.md, section 1 ("spectral form").

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, width_sweep
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), 3 * torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> sweep = width_sweep(model, [2.0, 20.0, float("inf")])
        >>> q = sweep.order_parameter.squeeze(-1)
        >>> bool(q[0] > q[1] > q[2]), q[2].item()
        (True, 1.0)
    """
    if (x is None) != (y is None):
        raise ValueError("x, y: expected both test inputs and test targets or neither, got one")
    check_chunk_size(chunk_size)
    theory, problem = get_theory(theory), Problem.frozen(model)
    if theory.has_streaming:
        problem = streamed_past_memory(problem)
    if isinstance(theory, Mixture):  # whose evidences compare widths
        warn_if_not_identifiable(problem, stacklevel=4)
    width = as_width(torch.as_tensor(widths), torch.float64).to(problem.targets.device)
    width = width.unsqueeze(-1) if width.dim() == 1 else width
    width = width.expand(width.shape[0], problem.layers.num_layers)
    if problem.network.is_scalar:
        if not isinstance(problem, StreamedProblem):
            problem.single()
            problem.spectrum(eigenvectors=True)
    elif problem.targets.dim() > 1:
        raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(problem.targets.shape)}")
    fits = map_tasks(_fitted, [(theory, problem.with_width(each)) for each in width], executor)
    fitted = [each for each, _ in fits]
    test = None
    if x is not None and y is not None:
        points = problem.points(x)
        check_targets(y, points.shape[-2])
        posteriors = [*(each.conditioned for each in fitted), problem.infinite_width]
        *errors, wide = expected_errors(posteriors, points, y, chunk_size)
        test = _beside(_stacked(errors), wide)
    left_out = _beside(_stacked([each for _, each in fits]), problem.infinite_width.leave_one_out())
    return WidthSweep(
        width,
        problem.num_data / width,
        _column(fitted, lambda f: f.order_parameters.get("q")),
        _column(fitted, lambda f: f.stats.get("num_minima")),
        _column(fitted, lambda f: f.log_evidence),
        left_out,
        test,
        _column(fitted, _scale),
        _column(fitted, lambda f: f.stats["posterior"].variance.sqrt() if "posterior" in f.stats else None),
    )


def _fitted(task: tuple[Theory, Problem]) -> tuple[FittedTheory, ErrorEstimate]:
    """Return a fitted theory and its leave-one-out errors."""
    theory, problem = task
    with torch.no_grad():
        fitted = theory.fit(problem)
        return fitted, fitted.conditioned.leave_one_out()


def _scale(fitted: FittedTheory) -> Tensor | None:
    values = fitted.order_parameters
    return values["r"] if "r" in values else fitted.problem.layers.scale(values["q"]) if "q" in values else None


def _column(fitted: Sequence[FittedTheory], value: Any) -> Tensor | None:
    return _stacked_or_none([value(each) for each in fitted])


def _stacked_or_none(found: Sequence[Any]) -> Tensor | None:
    return None if any(each is None for each in found) else torch.stack([torch.as_tensor(each) for each in found])


def _stacked(errors: Sequence[ErrorEstimate]) -> ErrorEstimate:
    mean, bias, variance = (torch.stack([getattr(e, name) for e in errors]) for name in ("mean", "bias", "variance"))
    densities = [e.log_density for e in errors if e.log_density is not None]
    return ErrorEstimate(mean, bias, variance, log_density=torch.stack(densities) if densities else None)


def _beside(error: ErrorEstimate, infinite_width: ErrorEstimate) -> ErrorEstimate:
    return ErrorEstimate(error.mean, error.bias, error.variance, infinite_width, log_density=error.log_density)


@torch.no_grad()
def learning_curve(
    model: Any,
    num_data: Sequence[int],
    x: Tensor,
    y: Tensor,
    *,
    theory: str | Theory = "saddle",
    num_repeats: int = 1,
    generator: torch.Generator | None = None,
    chunk_size: int = 1000,
    executor: Executor | None = None,
) -> LearningCurve:
    """Predict the test error against the number of training points, on random subsets of the training set.

    Hyperparameters and widths stay; the theory is fitted to each subset. The model is not changed. Cost: one kernel
    evaluation at the training points, then about 6 Cholesky factorizations of each subset's size and its kernel's
    blocks with ``chunk_size`` test points at a time. Where the matrix of all points does not fit into memory, each
    subset has a kernel evaluation of its own, and is streamed by a theory with ``has_streaming`` if it does not fit
    either.

    Args:
        model: An ExactGP-like model with one renormalized kernel, without batch dimensions.
        num_data: Subset sizes, each from 1 to P.
        x: Test inputs, ``m x d``.
        y: Test targets, ``m``, in original units.
        theory: A :class:`Theory` or a name from ``THEORIES``.
        num_repeats: Number R of random subsets for each size.
        generator: Source of the subsets; a fixed seed 0 if None.
        chunk_size: Test points at a time.
        executor: A ``concurrent.futures.Executor`` that takes the subsets; None to do them one after the other. The
            numbers are the same. To another process goes the kernel matrix of the subset.

    Raises:
        ValueError: A size out of range, and as :func:`width_sweep`.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, figure 3; THEORY.md, eq. (4).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, learning_curve
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=float("inf"))
        >>> x = torch.ones(3, 1)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> curve = learning_curve(NetworkGP(x, torch.ones(3), likelihood, kernel), [1, 3], x[:1], torch.ones(1))
        >>> [round(v, 5) for v in curve.variance.flatten().tolist()]   # posterior variance 1 / (1 + P)
        [0.5, 0.25]
    """
    theory, problem = get_theory(theory), Problem.frozen(model)
    check_chunk_size(chunk_size)
    if problem.targets.dim() > 1 or problem.inputs.dim() > 2:
        raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(problem.targets.shape)}")
    if problem.num_data != problem.inputs.shape[-2]:
        raise ValueError(f"model: expected one output, got {problem.num_data // problem.inputs.shape[-2]} for each row")
    total = problem.num_data
    if not all(1 <= size <= total for size in num_data):
        raise ValueError(f"num_data: expected sizes from 1 to {total}, got {list(num_data)}")
    x = problem.points(x)
    check_targets(y, x.shape[-2])
    generator = generator or torch.Generator().manual_seed(0)
    sizes = [size for size in num_data for _ in range(num_repeats)]
    subsets = [torch.randperm(total, generator=generator)[:size].to(x.device) for size in sizes]
    found = map_tasks(_of_subset, [(theory, problem.with_rows(rows), x, y, chunk_size) for rows in subsets], executor)
    errors = [pair for _, pair in found]
    q = _stacked_or_none([q for q, _ in found])
    shape = (len(num_data), num_repeats)
    bias, variance, wide_bias, wide_variance = (
        torch.stack([getattr(pair[index], name) for pair in errors]).reshape(shape)
        for index in (0, 1)
        for name in ("mean_bias", "mean_variance")
    )
    order_parameter = None if q is None else q.reshape(*shape, -1)
    return LearningCurve(torch.tensor(list(num_data)), order_parameter, bias, variance, wide_bias, wide_variance)


def _of_subset(
    task: tuple[Theory, Problem, Tensor, Tensor, int],
) -> tuple[Tensor | None, list[ErrorEstimate]]:
    """Return q and the errors of a subset, those of the theory and of the infinite width."""
    theory, subset, x, y, chunk_size = task
    with torch.no_grad():
        fitted = theory.fit(subset)
        errors = expected_errors([fitted.conditioned, fitted.problem.infinite_width], x, y, chunk_size)
    return fitted.order_parameters.get("q"), errors
