"""Test error, training error, accuracy and leave-one-out error of a model, beside those of the infinite width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import check_targets
from ..actions.solution import Solution
from ..inference.model_parts import ModelParts
from ..inference.predictor import Predictor, Units, evaluating, prepare_points
from .fit_order_parameters import fit_parts


@dataclass(frozen=True)
class ErrorEstimate:
    """Expected squared errors of a network drawn from the posterior, split into bias and variance.

    All in the targets' original units, without the noise T.

    Attributes:
        mean: Posterior mean Gamma for each point, ``*b x m``.
        bias: (y - Gamma)^2 for each point: the measured squared error of the mean, no prediction.
        variance: sigma^2 for each point.
        infinite_width: The same at q = 1 with the same hyperparameters, not refitted; None in that object itself.
        solution: What the solver returned, if the call was asked to fit.

    Example:
        >>> import torch
        >>> error = ErrorEstimate(torch.zeros(2), torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))
        >>> error.mean_total.item()
        2.5
    """

    mean: Tensor
    bias: Tensor
    variance: Tensor
    infinite_width: ErrorEstimate | None = None
    solution: Solution | None = None

    @property
    def total(self) -> Tensor:
        """Bias plus variance for each point."""
        return self.bias + self.variance

    @property
    def mean_bias(self) -> Tensor:
        """Bias averaged over the points, ``*b``."""
        return self.bias.mean(-1)

    @property
    def mean_variance(self) -> Tensor:
        """Variance averaged over the points, ``*b``."""
        return self.variance.mean(-1)

    @property
    def mean_total(self) -> Tensor:
        """Total averaged over the points, ``*b``."""
        return self.total.mean(-1)

    def __str__(self) -> str:
        """One line, with the infinite-width value beside it."""
        text = f"error {_show(self.mean_total)} = bias {_show(self.mean_bias)} + variance {_show(self.mean_variance)}"
        if self.infinite_width is not None:
            text += f" (infinite width: {_show(self.infinite_width.mean_total)})"
        return text


def _show(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.numel() == 1 else str([f"{v:.6g}" for v in value.flatten().tolist()])


def _both_widths(
    parts: ModelParts, order_parameter: Tensor | None, fit: bool, function: Callable[[Predictor], ErrorEstimate]
) -> ErrorEstimate:
    """Apply ``function`` to the predictor at the solved q and at q = 1; one kernel evaluation serves all if it can."""
    kernel, solution, problem = parts.kernel, None, None
    if fit:
        if order_parameter is not None:
            raise ValueError("order_parameter: expected None with fit=True, got a value")
        solution, problem = fit_parts(parts, differentiable=torch.is_grad_enabled())
        order_parameter = solution.order_parameter
    q = kernel.order_parameter if order_parameter is None else order_parameter.unsqueeze(-2)
    if kernel.is_scalar and parts.is_multiplicative():
        unit = parts.covariance(1.0) if problem is None else problem.kernel_matrix
        scale = q.to(unit.dtype).prod(-1).unsqueeze(-1)
        finite = function(Predictor(parts, q, unit * scale))
        infinite = function(Predictor(parts, 1.0, unit))
    else:
        finite, infinite = function(Predictor(parts, q)), function(Predictor(parts, 1.0))
    return dataclasses.replace(finite, infinite_width=infinite, solution=solution)


def generalization_error(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
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
    by ``chunk_size`` test points at a time.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`.
        x: Test inputs.
        y: Test targets, in original units.
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
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, generalization_error
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> error = generalization_error(model, torch.ones(1, 1), torch.ones(1))   # q = 1: Gamma = 1/2, sigma^2 = 1/2
        >>> round(error.mean_total.item(), 5)
        0.75
    """
    with evaluating(model) as parts, torch.set_grad_enabled(differentiable):
        x = prepare_points(parts, x)
        check_targets(y, x.shape[-2])
        units = Units.of(model)

        def errors(predictor: Predictor) -> ErrorEstimate:
            mean, variance = predictor.predict_in_chunks(x, chunk_size)
            mean = units.shift + units.scale * mean
            return ErrorEstimate(mean, (y - mean).square(), variance * units.scale**2)

        return _both_widths(parts, order_parameter, fit, errors)


def leave_one_out_error(
    model: Any, *, fit: bool = False, order_parameter: Tensor | None = None, differentiable: bool = False
) -> ErrorEstimate:
    r"""Predicted test error from the training data alone, leaving one point out at a time.

    .. math:: y_i - \mu_{-i} = [A^{-1} y]_i / [A^{-1}]_{ii}, \qquad \sigma^2_{-i} = 1/[A^{-1}]_{ii} - T

    with the order parameters held at those of all training points. The variance is the latent one, without T.
    Cost: one kernel evaluation, and for each of q and q = 1 one Cholesky factorization and one triangular inversion.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`.
        fit: Solve and set the order parameters first, as :func:`fit_order_parameters` does, from the same kernel
            matrix.
        order_parameter: Use these q (``*b x L``) instead of the kernel's.
        differentiable: Keep the graph to hyperparameters and inputs.

    Raises:
        TypeError, ValueError: As :func:`fit_order_parameters`.

    Reference: Rasmussen & Williams (2006), eqs. (5.10)-(5.12); THEORY.md, section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, leave_one_out_error
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> error = leave_one_out_error(model)   # orthogonal points say nothing of each other: y^2, and k = 1/2
        >>> round(error.mean_bias.item(), 4), round(error.mean_variance.item(), 4)
        (1.0, 0.5)
    """
    with evaluating(model) as parts, torch.set_grad_enabled(differentiable):
        units = Units.of(model)

        def errors(predictor: Predictor) -> ErrorEstimate:
            precision = predictor.inverse_diagonal()
            deviation = predictor.weights / precision
            variance = (1.0 / precision - parts.noise_diagonal()).clamp_min(0.0)
            mean = units.shift + units.scale * (parts.targets - deviation)
            return ErrorEstimate(mean, (units.scale * deviation).square(), variance * units.scale**2)

        return _both_widths(parts, order_parameter, fit, errors)


def training_error(model: Any, *, order_parameter: Tensor | None = None, differentiable: bool = False) -> Tensor:
    r"""Average squared error of posterior networks on the training points, ``*b``.

    .. math:: \frac1P \big[T^2 |A^{-1} y|^2 + T P - T^2 \mathrm{tr} A^{-1}\big]

    For noise variances that differ between points, T stands for each point's own. In original units.
    Cost: one kernel evaluation, one Cholesky factorization, one triangular inversion.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`.
        order_parameter: Use these q (``*b x L``) instead of the kernel's.
        differentiable: Keep the graph to hyperparameters and inputs.

    Raises:
        TypeError, ValueError: As :func:`fit_order_parameters`; noise that is correlated between points.

    Reference: THEORY.md, section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, training_error
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> round(training_error(model).item(), 5)   # A = 2: 1/4 + 1 - 1/2
        0.75
    """
    with evaluating(model) as parts, torch.set_grad_enabled(differentiable):
        q = None if order_parameter is None else order_parameter.unsqueeze(-2)
        return Predictor(parts, q).training_error() * Units.of(model).scale ** 2


def expected_accuracy(
    model: Any, x: Tensor, y: Tensor, *, order_parameter: Tensor | None = None, chunk_size: int = 1000
) -> Tensor:
    r"""Expected share of test points whose label +-1 the sign of a posterior network gets right, ``*b``.

    .. math:: \frac1m \sum_* \Phi(y_* \Gamma / \sigma)

    Cost: as :func:`generalization_error`, at the solved q only.

    Args:
        model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`, trained on labels +-1.
        x: Test inputs, ``*b x m x d``.
        y: Labels, +1 or -1, ``*b x m``.
        order_parameter: Use these q (``*b x L``) instead of the kernel's.
        chunk_size: Test points at a time.

    Raises:
        ValueError: A label other than +-1, and as :func:`generalization_error`.

    Reference: THEORY.md, section 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, expected_accuracy
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> both = torch.tensor([1.0, -1.0])
        >>> round(expected_accuracy(model, torch.eye(2)[[0, 0]], both).item(), 5)   # right for one, wrong for the other
        0.5
    """
    with evaluating(model) as parts, torch.no_grad():
        x = prepare_points(parts, x)
        check_targets(y, x.shape[-2])
        if not bool((y.abs() == 1).all()):
            raise ValueError(
                f"y: expected labels +1 and -1, got values from {float(y.min()):.3g} to {float(y.max()):.3g}"
            )
        units = Units.of(model)
        q = None if order_parameter is None else order_parameter.unsqueeze(-2)
        mean, variance = Predictor(parts, q).predict_in_chunks(x, chunk_size)
        margin = y * (units.shift + units.scale * mean)
        deviation = variance.sqrt() * units.scale
        # A point without spread is right, wrong, or (at zero) a coin toss.
        certain = 0.5 * (1.0 + torch.sign(margin))
        spread = deviation > 0
        chance = torch.special.ndtr(margin / torch.where(spread, deviation, torch.ones_like(deviation)))
        return torch.where(spread, chance, certain).mean(-1)
