"""Predicted errors against width and against the number of training points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import check_targets
from ..actions.evidence import laplace_evidence
from ..actions.solve_order_parameters import solve_order_parameters
from ..inference.model_parts import ModelParts, ScalarProblem
from ..inference.predictor import Units, evaluating, prepare_points
from ..spectra.spectrum import Spectrum
from .errors import ErrorEstimate


@dataclass(frozen=True)
class WidthSweep:
    """Solved order parameters and predicted errors for a list of widths, from one factorization.

    Attributes:
        width: ``W x L``.
        alpha: P / N_l, ``W x L``.
        order_parameter: ``W x L``.
        num_minima: Number of minima of the action, ``W``.
        log_evidence: Laplace's log p(y), ``W``; comparable at fixed prior variances only.
        leave_one_out: Errors from the training data alone, points ``W x P``; with those of the infinite width (``P``).
        test: Errors at the test points, ``W x m``, or None.

    Example:
        >>> one = torch.ones(1, 1)
        >>> error = ErrorEstimate(one, one, one)
        >>> sweep = WidthSweep(50 * one, 0.1 * one, one, one, one, error, None)   # as :func:`width_sweep` makes it
        >>> sweep.leave_one_out.mean_total.tolist()
        [2.0]
    """

    width: Tensor
    alpha: Tensor
    order_parameter: Tensor
    num_minima: Tensor
    log_evidence: Tensor
    leave_one_out: ErrorEstimate
    test: ErrorEstimate | None


@dataclass(frozen=True)
class LearningCurve:
    """Predicted test error against the number of training points at fixed widths.

    Attributes:
        num_data: ``S``.
        order_parameter: ``S x R x L`` for R random subsets.
        bias: Mean squared error of the posterior mean on the test points, ``S x R``.
        variance: ``S x R``.
        infinite_width_bias: The same at q = 1, ``S x R``.
        infinite_width_variance: ``S x R``.

    Example:
        >>> one = torch.ones(1, 1)
        >>> curve = LearningCurve(torch.tensor([5]), one, one, one, one, 2 * one)   # as :func:`learning_curve` makes it
        >>> (curve.bias + curve.variance).item(), (curve.infinite_width_bias + curve.infinite_width_variance).item()
        (2.0, 3.0)
    """

    num_data: Tensor
    order_parameter: Tensor
    bias: Tensor
    variance: Tensor
    infinite_width_bias: Tensor
    infinite_width_variance: Tensor


def _scalar_problem(parts: ModelParts) -> ScalarProblem:
    """The one-dimensional problem of a single model (no batch)."""
    problem = parts.scalar_problem()
    if problem.residuals.dim() != 1 or problem.kernel_matrix.dim() != 2:
        raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(parts.targets.shape)}")
    return problem


@torch.no_grad()
def width_sweep(
    model: Any,
    widths: Sequence[float] | Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
    chunk_size: int = 1000,
) -> WidthSweep:
    """Solve and predict for many widths with one eigendecomposition; the model is not changed.

    Every width is solved for its global minimum; leave-one-out errors come from the training data alone, test errors
    from formula (4) of THEORY.md at given targets (their bias is the measured squared error).

    Cost: one ``eigh``, then P^2 multiplications for each width (leave-one-out) and P m for each width and test points.

    Args:
        model: An ExactGP-like model with one renormalized kernel, without batch dimensions.
        widths: ``W`` numbers (each for all layers) or ``W x L``; ``math.inf`` allowed.
        x: Test inputs, ``m x d``.
        y: Test targets, ``m``, in original units.
        chunk_size: Test points at a time.

    Raises:
        ValueError: A composition that is not one-dimensional, a batch of models, and as :func:`fit_order_parameters`.

    Reference: THEORY.md, section 1 ("spectral form").

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, width_sweep
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), 3 * torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> sweep = width_sweep(model, [2.0, 20.0, float("inf")])
        >>> q = sweep.order_parameter.squeeze(-1)
        >>> bool(q[0] > q[1] > q[2]), q[2].item()
        (True, 1.0)
    """
    if (x is None) != (y is None):
        raise ValueError("x, y: expected both test inputs and test targets or neither, got one")
    with evaluating(model) as parts:
        problem = _scalar_problem(parts)
        spectrum = Spectrum.from_kernel(problem.kernel_matrix, problem.residuals, base=problem.base, eigenvectors=True)
        width = torch.as_tensor(widths, dtype=torch.float64, device=spectrum.eigenvalues.device)
        width = width.unsqueeze(-1) if width.dim() == 1 else width
        width = width.expand(width.shape[0], parts.kernel.depth)
        temperature = problem.temperature.to(torch.float64)
        solution = solve_order_parameters(spectrum, width=width, temperature=temperature)
        q = solution.order_parameter
        scale = torch.cat([q.prod(-1), q.new_ones(1)])  # the last one is the infinite width
        spread = 1.0 / (temperature + scale.unsqueeze(-1) * spectrum.eigenvalues)
        vectors, units = spectrum.eigenvectors, Units.of(model)
        assert vectors is not None
        weights = (spectrum.single * spread) @ vectors.transpose(-1, -2)
        precision = spread @ vectors.square().transpose(-1, -2)
        deviation = weights / precision
        targets = parts.targets.to(torch.float64)
        left_out = _with_infinite_width(
            units.shift + units.scale * (targets - deviation),
            (units.scale * deviation).square(),
            (1.0 / precision - parts.noise_diagonal()).clamp_min(0.0) * units.scale**2,
        )
        test = None
        if x is not None and y is not None:
            x = prepare_points(parts, x)
            check_targets(y, x.shape[-2])
            pieces = [_predict_all(parts, spectrum, rows, scale, spread, weights) for rows in x.split(chunk_size)]
            mean, variance = (torch.cat(columns, -1) for columns in zip(*pieces, strict=True))
            mean = units.shift + units.scale * mean
            test = _with_infinite_width(mean, (y - mean).square(), variance * units.scale**2)
        return WidthSweep(
            width,
            spectrum.num_data / width,
            q,
            solution.stats["num_minima"],
            laplace_evidence(spectrum, width, temperature),
            left_out,
            test,
        )


def _with_infinite_width(mean: Tensor, bias: Tensor, variance: Tensor) -> ErrorEstimate:
    infinite = ErrorEstimate(mean[-1], bias[-1], variance[-1])
    return ErrorEstimate(mean[:-1], bias[:-1], variance[:-1], infinite)


def _predict_all(
    parts: ModelParts, spectrum: Spectrum, x: Tensor, scale: Tensor, spread: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance at x for every scale r; k_* = fixed part + r times the renormalized one."""
    mean, cross, prior = (v.double() for v in parts.blocks(x, 1.0))
    fixed, fixed_prior = 0.0 * cross, 0.0 * prior
    if not parts.is_multiplicative():
        _, fixed, fixed_prior = (v.double() for v in parts.blocks(x, 0.0))
    cross, prior = cross - fixed, prior - fixed_prior
    vectors = spectrum.eigenvectors
    assert vectors is not None
    moved, fixed_moved = vectors.transpose(-1, -2) @ cross, vectors.transpose(-1, -2) @ fixed
    r = scale.unsqueeze(-1)
    means = mean + weights @ fixed + r * (weights @ cross)
    taken = (
        spread @ fixed_moved.square() + 2.0 * r * (spread @ (fixed_moved * moved)) + r**2 * (spread @ moved.square())
    )
    return means, (fixed_prior + r * prior - taken).clamp_min(0.0)


@torch.no_grad()
def learning_curve(
    model: Any,
    num_data: Sequence[int],
    x: Tensor,
    y: Tensor,
    *,
    num_repeats: int = 1,
    generator: torch.Generator | None = None,
) -> LearningCurve:
    """Predict the test error against the number of training points, on random subsets of the training set.

    Hyperparameters and widths stay; the order parameters are solved for each subset. The model is not changed.
    Cost: one kernel evaluation, then about 8 Cholesky factorizations of each subset's size. The covariance with all
    test points is held: P x m.

    Args:
        model: An ExactGP-like model with one renormalized kernel, without batch dimensions.
        num_data: Subset sizes, each from 1 to P.
        x: Test inputs, ``m x d``.
        y: Test targets, ``m``, in original units.
        num_repeats: Number R of random subsets for each size.
        generator: Source of the subsets; a fixed seed 0 if None.

    Raises:
        ValueError: A size out of range, and as :func:`width_sweep`.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, figure 3; THEORY.md, eq. (4).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, learning_curve
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=float("inf"))
        >>> x = torch.ones(3, 1)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> curve = learning_curve(NetworkGP(x, torch.ones(3), likelihood, kernel), [1, 3], x[:1], torch.ones(1))
        >>> [round(v, 5) for v in curve.variance.flatten().tolist()]   # posterior variance 1 / (1 + P)
        [0.5, 0.25]
    """
    with evaluating(model) as parts:
        problem, units = _scalar_problem(parts), Units.of(model)
        total = parts.targets.shape[-1]
        if not all(1 <= size <= total for size in num_data):
            raise ValueError(f"num_data: expected sizes from 1 to {total}, got {list(num_data)}")
        x = prepare_points(parts, x)
        check_targets(y, x.shape[-2])
        mean, cross, prior = (v.double() for v in parts.blocks(x, 1.0))
        fixed, fixed_prior = 0 * cross, 0 * prior
        if not parts.is_multiplicative():
            _, fixed, fixed_prior = (v.double() for v in parts.blocks(x, 0.0))
        generator = generator or torch.Generator().manual_seed(0)
        width = parts.kernel.width.squeeze(-2).to(torch.float64)
        columns: list[tuple[Tensor, ...]] = []
        for size in num_data:
            for _ in range(num_repeats):
                rows = torch.randperm(total, generator=generator)[:size].to(cross.device)
                kernel_matrix = problem.kernel_matrix[rows][:, rows].double()
                base = problem.base
                if base is not None:
                    base = (base[rows] if base.dim() == 1 else base[rows][:, rows]).double()
                residuals = problem.residuals[rows].double()
                temperature = problem.temperature.double()
                q = solve_order_parameters(
                    kernel_matrix, residuals, width=width, temperature=temperature, base=base
                ).order_parameter
                values = [q]
                for scale in (q.prod(), q.new_ones(())):
                    noise = torch.ones_like(residuals) if base is None else base
                    noise = torch.diag(noise) if noise.dim() == 1 else noise
                    factor = torch.linalg.cholesky(temperature * noise + scale * kernel_matrix)
                    # k_* = fixed + r * renormalized part; cross holds their sum at r = 1.
                    now = fixed[rows] + scale * (cross[rows] - fixed[rows])
                    half = torch.linalg.solve_triangular(factor, now, upper=False)
                    label = torch.linalg.solve_triangular(factor, residuals.unsqueeze(-1), upper=False)
                    prediction = units.shift + units.scale * (mean + (half * label).sum(0))
                    spread = fixed_prior + scale * (prior - fixed_prior) - half.square().sum(0)
                    values += [(y - prediction).square().mean(), (spread.clamp_min(0.0) * units.scale**2).mean()]
                columns.append(tuple(values))
        shape = (len(num_data), num_repeats)
        q, bias, variance, wide_bias, wide_variance = (torch.stack(c) for c in zip(*columns, strict=True))
        return LearningCurve(
            torch.tensor(list(num_data)),
            q.reshape(*shape, -1),
            bias.reshape(shape),
            variance.reshape(shape),
            wide_bias.reshape(shape),
            wide_variance.reshape(shape),
        )
