"""Test error, training error, accuracy and leave-one-out error of a model, beside those of the infinite width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._validation import check_targets
from ..inference import Conditioned, ErrorEstimate, Problem
from ..inference.conditioned import check_chunk_size, expected_errors, left_out_errors
from ..inference.streamed import streamed_past_memory
from .base import Theory
from .names import get_theory
from .solve import drop_cached_predictions, fit_problem


def _check_choice(theory: Any, **others: Any) -> None:
    """Refuse what does not go with a theory, which finds its own order parameters."""
    given = [name for name, value in others.items() if value is not None and value is not False]
    if theory is not None and given:
        raise ValueError(f"{', '.join(given)}: expected none beside theory={theory!r}, which fits the model itself")


def _problem(model: Any) -> Problem:
    """Return the live problem of a model, streamed where it does not fit into memory and no graph is kept."""
    problem = Problem.of(model)
    return problem if torch.is_grad_enabled() else streamed_past_memory(problem)


def _both_widths(
    model: Any,
    problem: Problem,
    order_parameter: Tensor | None,
    fit: bool,
    errors: Callable[[list[Conditioned]], list[ErrorEstimate]],
) -> ErrorEstimate:
    """Return errors at the solved, given or present order parameters, and beside them those at q = 1."""
    solution = None
    if fit:
        if order_parameter is not None:
            raise ValueError("order_parameter: expected None with fit=True, got a value")
        solution = fit_problem(problem, differentiable=torch.is_grad_enabled(), stacklevel=5)
        drop_cached_predictions(model)
        order_parameter = solution.order_parameter
    finite, wide = errors([problem.conditioned(order_parameter), problem.infinite_width])
    return dataclasses.replace(finite, infinite_width=wide, solution=solution)


def generalization_error(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    theory: str | Theory | None = None,
    fit: bool = False,
    order_parameter: Tensor | None = None,
    differentiable: bool = False,
    chunk_size: int = 1000,
) -> ErrorEstimate:
    r"""Expected squared error at test points with known targets: bias plus variance.

    .. math:: \langle (y_* - f(x_*))^2 \rangle = (y_* - \Gamma)^2 + \sigma^2, \quad
              \Gamma = k_*^T A^{-1} y, \quad \sigma^2 = k_{**} - k_*^T A^{-1} k_*

    with k the renormalized kernel at the kernel's present order parameters (call :func:`fit_order_parameters` first,
    or give ``fit=True``) and A = K_R + T. The average is over networks of the posterior, not over data: the bias IS
    the measured squared error of the mean at these targets. For a prediction from training data alone use
    :func:`leave_one_out_error`.

    No noise T is added (add it for the error on new noisy targets). Shapes: x ``*b x m x d``, y ``*b x m``.
    Cost: one kernel evaluation and two Cholesky factorizations (q and q = 1), m P^2 for the variances; memory bounded
    by ``chunk_size`` test points at a time. With ``fit=True`` the reduction that solved predicts at both, without a
    factorization, and 2 m P^2. Past memory, where no graph is kept, products with the kernel matrix take its place
    (:class:`StreamedProblem`), and ``message`` says so.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`.
        x: Test inputs.
        y: Test targets, in original units.
        theory: A :class:`Theory` or a name from ``THEORIES``, fitted to the model, which is not changed; None for the
            kernel's present order parameters.
        fit: Solve and set the order parameters first, as :func:`fit_order_parameters` does, from the same kernel
            matrix.
        order_parameter: Use these q (``*b x L``, may carry a graph) instead of the kernel's.
        differentiable: Keep the graph to hyperparameters and inputs.
        chunk_size: Test points at a time.

    Raises:
        TypeError, ValueError: As :func:`fit_order_parameters`; x or y of the wrong shape, kind or not finite.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, eq. (4).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, generalization_error
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> error = generalization_error(model, torch.ones(1, 1), torch.ones(1))   # q = 1: Gamma = 1/2, sigma^2 = 1/2
        >>> round(error.mean_total.item(), 5)
        0.75
    """
    _check_choice(theory, fit=fit, order_parameter=order_parameter, differentiable=differentiable)
    check_chunk_size(chunk_size)
    if theory is not None:
        return get_theory(theory).fit(model).error(x, y, chunk_size)
    with torch.set_grad_enabled(differentiable):
        problem = _problem(model)
        points = problem.points(x)
        check_targets(y, points.shape[-2])
        return _both_widths(
            model, problem, order_parameter, fit, lambda both: expected_errors(both, points, y, chunk_size)
        )


def leave_one_out_error(
    model: Any,
    *,
    theory: str | Theory | None = None,
    fit: bool = False,
    order_parameter: Tensor | None = None,
    differentiable: bool = False,
) -> ErrorEstimate:
    r"""Predicted test error from the training data alone, leaving one point out at a time.

    .. math:: y_i - \mu_{-i} = [A^{-1} y]_i / [A^{-1}]_{ii}, \qquad \sigma^2_{-i} = 1/[A^{-1}]_{ii} - T

    with the order parameters held at those of all training points. The variance is the latent one, without T.
    Cost: one kernel evaluation, and for each of q and q = 1 one Cholesky factorization and one triangular inversion;
    with ``fit=True`` instead of them the orthogonal matrix of the reduction that solved, once: as much together.
    Past memory, where no graph is kept, the errors are those of 256 points drawn at random
    (:class:`StreamedConditioned`), and ``message`` says so.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`.
        theory: A :class:`Theory` or a name from ``THEORIES``, fitted to the model, which is not changed; None for the
            kernel's present order parameters.
        fit: Solve and set the order parameters first, as :func:`fit_order_parameters` does, from the same kernel
            matrix.
        order_parameter: Use these q (``*b x L``) instead of the kernel's.
        differentiable: Keep the graph to hyperparameters and inputs.

    Raises:
        TypeError, ValueError: As :func:`fit_order_parameters`.

    Reference: Rasmussen & Williams (2006), eqs. (5.10)-(5.12); THEORY.md, section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, leave_one_out_error
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> error = leave_one_out_error(model)   # orthogonal points say nothing of each other: y^2, and k = 1/2
        >>> round(error.mean_bias.item(), 4), round(error.mean_variance.item(), 4)
        (1.0, 0.5)
    """
    _check_choice(theory, fit=fit, order_parameter=order_parameter, differentiable=differentiable)
    if theory is not None:
        return get_theory(theory).fit(model).leave_one_out()
    with torch.set_grad_enabled(differentiable):
        problem = _problem(model)
        return _both_widths(model, problem, order_parameter, fit, left_out_errors)


def training_error(
    model: Any,
    *,
    theory: str | Theory | None = None,
    order_parameter: Tensor | None = None,
    differentiable: bool = False,
) -> Tensor:
    r"""Average squared error of posterior networks on the training points, ``*b``.

    .. math:: \frac1P \big[T^2 |A^{-1} y|^2 + T P - T^2 \mathrm{tr} A^{-1}\big]

    For noise variances that differ between points, T stands for each point's own. In original units.
    Cost: one kernel evaluation, one Cholesky factorization, one triangular inversion. Past memory, where no graph is
    kept, the trace is that of a :class:`StreamedProblem`, with a statistical error.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`.
        theory: A :class:`Theory` or a name from ``THEORIES``, fitted to the model, which is not changed; None for the
            kernel's present order parameters.
        order_parameter: Use these q (``*b x L``) instead of the kernel's.
        differentiable: Keep the graph to hyperparameters and inputs.

    Raises:
        TypeError, ValueError: As :func:`fit_order_parameters`; noise that is correlated between points.

    Reference: THEORY.md, section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, training_error
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> round(training_error(model).item(), 5)   # A = 2: 1/4 + 1 - 1/2
        0.75
    """
    _check_choice(theory, order_parameter=order_parameter, differentiable=differentiable)
    if theory is not None:
        return get_theory(theory).fit(model).training_error()
    with torch.set_grad_enabled(differentiable):
        return _problem(model).conditioned(order_parameter).training_error()


def expected_accuracy(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    theory: str | Theory | None = None,
    order_parameter: Tensor | None = None,
    chunk_size: int = 1000,
) -> Tensor:
    r"""Expected share of test points whose label +-1 the sign of a posterior network gets right, ``*b``.

    .. math:: \frac1m \sum_* \Phi(y_* \Gamma / \sigma)

    Cost: as :func:`generalization_error`, at the solved q only.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`, trained on labels +-1.
        x: Test inputs, ``*b x m x d``.
        y: Labels, +1 or -1, ``*b x m``.
        theory: A :class:`Theory` or a name from ``THEORIES``, fitted to the model, which is not changed; None for the
            kernel's present order parameters.
        order_parameter: Use these q (``*b x L``) instead of the kernel's.
        chunk_size: Test points at a time.

    Raises:
        ValueError: A label other than +-1, and as :func:`generalization_error`.

    Reference: THEORY.md, section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, expected_accuracy
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> both = torch.tensor([1.0, -1.0])
        >>> round(expected_accuracy(model, torch.eye(2)[[0, 0]], both).item(), 5)   # right for one, wrong for the other
        0.5
    """
    _check_choice(theory, order_parameter=order_parameter)
    check_chunk_size(chunk_size)
    if theory is not None:
        return get_theory(theory).fit(model).accuracy(x, y, chunk_size)
    with torch.no_grad():
        problem = _problem(model)
        points = problem.points(x)
        check_targets(y, points.shape[-2])
        return problem.conditioned(order_parameter).accuracy(points, y, chunk_size)
