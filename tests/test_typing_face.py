"""Code as users write it, checked by `mypy --strict` (.ci/run) and run by pytest: types reach the user's side."""

from __future__ import annotations

import torch
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor
from typing_extensions import assert_type

from torch_propkernel import (
    Erf,
    NetworkGP,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    Spectrum,
    fit_order_parameters,
    generalization_error,
    learning_curve,
    leave_one_out_error,
    solve_order_parameters,
    training_error,
    width_sweep,
)
from torch_propkernel.actions import Solution
from torch_propkernel.activations import Activation
from torch_propkernel.datasets import load_yacht
from torch_propkernel.inference import ErrorEstimate
from torch_propkernel.kernels import Composition, Outer
from torch_propkernel.mixing import GammaMixing, MixingLaw
from torch_propkernel.theories import FittedTheory, FreeScale, LearningCurve, ModelSolution, WidthSweep


def some_model(width: float | list[float] = 20, points: int = 15) -> NetworkGP:
    x, y = load_yacht()
    likelihood = GaussianLikelihood()
    return NetworkGP(x[:points].float(), y[:points].float(), likelihood, RenormalizedNNGPKernel(ReLU(), width=width))


def test_fit_and_predict() -> None:
    model = some_model()
    solution = assert_type(fit_order_parameters(model, warn=False), ModelSolution)
    assert_type(solution.order_parameter, Tensor)
    assert_type(solution.message, str)
    errors = assert_type(leave_one_out_error(model), ErrorEstimate)
    assert_type(errors.total, Tensor)
    x, y = assert_type(load_yacht(), tuple[Tensor, Tensor])
    assert_type(generalization_error(model, x[20:25].float(), y[20:25].float()), ErrorEstimate)
    assert_type(training_error(model), Tensor)
    assert_type(FreeScale().fit(model), FittedTheory)


def test_kernels_and_activations() -> None:
    kernel = RenormalizedNNGPKernel(Erf(), width=[50, 80], composition="linear_part", bias_variance=[0.1, 0.2])
    assert_type(kernel.width, Tensor)
    assert_type(kernel.order_parameter, Tensor)
    compositions: list[str | Composition] = ["outer", Outer()]
    assert [RenormalizedNNGPKernel(Erf(), 10, c).composition == Outer() for c in compositions] == [True, True]
    activations: list[Activation] = [Erf(), ReLU()]
    diagonal = [assert_type(a.dual_diag(torch.ones(2)), Tensor) for a in activations]
    assert NNGPKernel(activations[0], depth=2, weight_variance=2.0).depth == 2 and len(diagonal) == 2


def test_plain_matrices_and_curves() -> None:
    matrix, y = torch.eye(5), torch.ones(5)
    assert_type(solve_order_parameters(matrix, y, width=10, temperature=0.1), Solution)
    assert_type(Spectrum.from_kernel(matrix, y), Spectrum)
    assert_type(width_sweep(some_model(), [10.0, 50.0]), WidthSweep)
    x, targets = load_yacht()
    curve = learning_curve(some_model(), [5, 10], x[20:30].float(), targets[20:30].float())
    assert_type(curve, LearningCurve)


def test_laws() -> None:
    law: MixingLaw = GammaMixing(20.0)
    assert_type(law.mean, Tensor)
    lower, upper = law.log_interval()
    assert assert_type(lower, Tensor) < assert_type(upper, Tensor)
