"""Theories against the sampled posterior of the real network, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._tasks import map_tasks
from .._validation import check_targets, present
from ..inference import ErrorEstimate, OutputsProblem, Problem, Units, problem_of
from ..networks.sample_posterior import MonteCarloEstimate, SampledPosterior, sample_posterior
from ..theories import (
    CorrectedSaddle,
    FittedTheory,
    FreeScale,
    Gated,
    InfiniteWidth,
    Mixture,
    SaddlePoint,
    Theory,
    TwoParameterSaddle,
    get_theory,
)
from ..theories.from_model import network_from_model

QUANTITIES = ("test_error", "bias", "variance", "training_error", "order_parameter")
"""What is compared: errors in the targets' squared units, and lambda_L |v|^2 / N_L, which the theories call q."""

DEFAULT_THEORIES: tuple[Theory, ...] = (
    InfiniteWidth(),
    FreeScale(),
    SaddlePoint(),
    Mixture(),
    TwoParameterSaddle(),
    Gated(),
    CorrectedSaddle(),
)


@dataclass(frozen=True)
class NetworkComparison:
    """Measured values of a sampled network, and what theories predict for them.

    Attributes:
        measured: By quantity (``QUANTITIES``), with standard errors, R-hat and effective sample sizes.
        predicted: By theory, then by quantity.
        skipped: Default theories that do not apply to this network, with the reason.
        sampled: The whole result of the sampler, in the model's units.
        fitted: The fitted theories.
        outputs: For a model of several outputs the comparison of each of them, without the training error; the values
            above are then sums over outputs, of the order parameter the mean.

    Example:
        >>> value = MonteCarloEstimate(torch.tensor(2.0), torch.tensor(0.1), torch.tensor(900.0), torch.tensor(1.0))
        >>> comparison = NetworkComparison({"bias": value}, {"saddle": {"bias": 2.2}})
        >>> round(comparison.z_score("saddle", "bias"), 6), round(comparison.error("saddle", "bias"), 6)
        (2.0, 0.1)
    """

    measured: dict[str, MonteCarloEstimate]
    predicted: dict[str, dict[str, float]]
    skipped: dict[str, str] = field(default_factory=dict)
    sampled: SampledPosterior | None = None
    fitted: dict[str, FittedTheory] = field(default_factory=dict)
    outputs: tuple[NetworkComparison, ...] = ()

    def z_score(self, theory: str, quantity: str) -> float:
        """Return (predicted - measured) / standard error of the measured value."""
        measured = self.measured[quantity]
        return (self.predicted[theory][quantity] - float(measured.mean)) / float(measured.standard_error)

    def error(self, theory: str, quantity: str) -> float:
        """Return (predicted - measured) / measured."""
        measured = float(self.measured[quantity].mean)
        return (self.predicted[theory][quantity] - measured) / measured

    def __str__(self) -> str:
        """Return a table: measured values, then each theory's prediction, relative error and z-score."""
        rows = [["", *(name.replace("_", " ") for name in self.measured)]]
        values = self.measured.values()
        rows.append(["sampled network", *(f"{float(v.mean):.5g} +- {float(v.standard_error):.2g}" for v in values)])
        for theory, predicted in self.predicted.items():
            cells = [
                f"{predicted[name]:.5g} ({100 * self.error(theory, name):+.1f} %, z {self.z_score(theory, name):+.1f})"
                for name in self.measured
            ]
            rows.append([theory, *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(n) for c, n in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        if self.sampled is not None:
            lines.append(f"sampler: {self.sampled.message}")
        lines += [f"not applicable: {theory} ({reason})" for theory, reason in self.skipped.items()]
        for number, output in enumerate(self.outputs):
            lines += ["", f"output {number}", str(output)]
        return "\n".join(lines)


def compare_with_network(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    theories: Sequence[str | Theory] | None = None,
    sampler: Any = None,
    num_chains: int = 8,
    num_samples: int = 1000,
    warmup: int = 500,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor | None = None,
) -> NetworkComparison:
    r"""Sample the posterior of the finite network that a model describes and compare it with theories of it.

    The network has the widths, prior variances and temperature of the model's renormalized kernel and likelihood
    (:func:`network_from_model`; a ConstantKernel that is added is its readout's bias); its posterior is sampled
    exactly, up to the Monte Carlo errors that are reported. For test points with known targets the table has the
    expected squared error of a posterior network, its bias and variance (formula (4)), the average training error, and
    :math:`\lambda_L |v|^2 / N_L`, which theories predict to be q. Always among the default theories: infinite width,
    and the fair baseline of a free scale.

    The reported z-scores are those of the sampler's standard errors alone: with enough samples every approximate theory
    is rejected, and the relative error is what matters.

    Shapes: x is ``m x d``, y is ``m``, or ``m x D`` for a :class:`MultitaskNetworkGP`; no batch of models. Errors are
    in the targets' original units (BoTorch's ``Standardize``), the order parameter in the model's. Cost: that of
    :func:`sample_posterior`, minutes for hundreds of points and units.

    Args:
        model: An ExactGP-like model with one RenormalizedNNGPKernel, MultitaskRenormalizedKernel or
            ConvolutionalRenormalizedKernel and finite whole widths, with zero or other mean.
        x: Test inputs.
        y: Test targets, in original units.
        theories: What to compare, objects or names; all that apply if None. One that is given and does not apply
            raises.
        sampler: As for :func:`sample_posterior`.
        num_chains: As for :func:`sample_posterior`.
        num_samples: As for :func:`sample_posterior`.
        warmup: As for :func:`sample_posterior`.
        seed: As for :func:`sample_posterior`.
        progress: As for :func:`sample_posterior`.
        executor: A ``concurrent.futures.Executor`` that takes the fits of the theories; None to do them one after the
            other. The numbers are the same. The chains are one batch and stay here.

    Raises:
        TypeError, ValueError: Not a suitable model (infinite or fractional widths, another kernel beside it, noise that
            is not one temperature), missing targets, or bad data.
        ConvergenceError: The sampler diverged. A run that is only too short warns and says so.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, section 7.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.practice import compare_with_network
        >>> x = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        >>> likelihood.noise = 0.1
        >>> model = NetworkGP(x[:8], x[:8, 0], likelihood, RenormalizedNNGPKernel(Erf(), width=20).double())
        >>> comparison = compare_with_network(model, x[8:], x[8:, 0], num_samples=500, warmup=200)
        >>> abs(comparison.error("saddle", "order_parameter")) < 0.05
        True
    """
    problem = problem_of(model)
    several = isinstance(problem, OutputsProblem)
    network = network_from_model(getattr(model, "covar_module", model), input_dim=problem.inputs.shape[-1])
    if problem.temperature is None or problem.temperature.numel() != 1:
        raise ValueError("likelihood: expected one homoskedastic temperature, got another noise model or a batch")
    check_targets(problem.targets, problem.num_data, "train_targets")
    units = problem.units
    if several and isinstance(units.scale, Tensor):
        raise ValueError("outcome_transform: expected none for several outputs, got Standardize")
    points = problem.points(x)
    check_targets(y.mT if several else y, points.shape[-2])
    with torch.no_grad():
        residuals = units.to_model(y.mT if several else y) - problem.mean(points)
        train_residuals = problem.residuals()
    if several:
        residuals, train_residuals = residuals.mT, train_residuals.mT
    inputs, temperature = problem.inputs, problem.temperature.item()
    fitted, skipped = _fit_all(problem, theories, executor)
    sampled = sample_posterior(
        network,
        inputs,
        train_residuals,
        temperature,
        test_x=points,
        test_y=residuals,
        sampler=sampler,
        num_chains=num_chains,
        num_samples=num_samples,
        warmup=warmup,
        seed=seed,
        progress=progress,
    )
    errors = {name: (theory.error(x, y), theory) for name, theory in fitted.items()}
    predicted = {name: _predicted(*both) for name, both in errors.items()}
    measured = _in_units({name: getattr(sampled, name) for name in QUANTITIES}, units)
    outputs = []
    for a in range(network.num_outputs or 0):
        own = {name: getattr(sampled, f"{name}_by_output")[a] for name in ("test_error", "bias", "variance")}
        own["order_parameter"] = present(sampled.order_parameter_matrix, "order_parameter_matrix")[a, a]
        outputs.append(NetworkComparison(own, {name: _predicted(*both, output=a) for name, both in errors.items()}))
    return NetworkComparison(measured, predicted, skipped, sampled, fitted, tuple(outputs))


def _predicted(error: ErrorEstimate, theory: FittedTheory, output: int | None = None) -> dict[str, float]:
    """Return what a theory predicts of one output, or the sums over all, as numbers."""
    values = {"test_error": error.mean_total, "bias": error.mean_bias, "variance": error.mean_variance}
    gram = theory.readout_norm.diagonal() if theory.readout_norm.dim() == 2 else theory.readout_norm
    if output is not None:
        return {name: value[output].item() for name, value in {**values, "order_parameter": gram}.items()}
    values["training_error"] = theory.training_error()
    return {name: value.sum().item() for name, value in values.items()} | {"order_parameter": gram.mean().item()}


def _in_units(measured: dict[str, MonteCarloEstimate], units: Units) -> dict[str, MonteCarloEstimate]:
    """Return squared errors in the user's units."""
    factor = float(torch.as_tensor(units.scale)) ** 2
    return {
        name: value
        if name == "order_parameter"
        else dataclasses.replace(value, mean=factor * value.mean, standard_error=factor * value.standard_error)
        for name, value in measured.items()
    }


def _fit_all(
    problem: Problem, theories: Sequence[str | Theory] | None, executor: Executor | None
) -> tuple[dict[str, FittedTheory], dict[str, str]]:
    """Fit the given theories, or all default ones that apply."""
    chosen = DEFAULT_THEORIES if theories is None else [get_theory(theory) for theory in theories]
    found = map_tasks(_fit, [(theory, problem, theories is None) for theory in chosen], executor)
    names = [theory.name for theory in chosen]
    labels = [theory.name if names.count(theory.name) == 1 else repr(theory) for theory in chosen]
    fitted = {label: each for label, each in zip(labels, found, strict=True) if not isinstance(each, str)}
    return fitted, {label: each for label, each in zip(labels, found, strict=True) if isinstance(each, str)}


def _fit(task: tuple[Theory, Problem, bool]) -> FittedTheory | str:
    """Return a fitted theory; where that may be, the reason why it does not apply."""
    theory, problem, may_be_skipped = task
    try:
        return theory.fit(problem)
    except (TypeError, ValueError) as reason:
        if not may_be_skipped:
            raise
        return str(reason)
