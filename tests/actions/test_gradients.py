"""Implicit differentiation of the order parameters, and of what is computed from them."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from torch.autograd import gradcheck

from torch_propkernel import (
    Erf,
    ReLU,
    RenormalizedNNGPKernel,
    Spectrum,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
)

T = torch.float64


def points(n: int = 8, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=T)


def labels(n: int = 8, seed: int = 1) -> torch.Tensor:
    return 2.0 * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=T)


ROWS = {
    "full rank": points(),
    "rank deficient": points(8, 3),
    "duplicate rows": torch.cat([points(5), points(5)[:3]]),
    "zero row": torch.cat([points(7), torch.zeros(1, 5, dtype=T)]),
}


@pytest.mark.parametrize("width", [4.0, [4.0, 9.0], [4.0, float("inf"), 30.0]], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_gradients_of_q_and_action(rows, width):
    x = ROWS[rows].clone().requires_grad_(True)
    y, temperature = labels().requires_grad_(True), torch.tensor(0.3, dtype=T, requires_grad=True)

    def solve(x, y, temperature):
        solution = solve_order_parameters(x @ x.T, y, width=width, temperature=temperature)
        return solution.order_parameter, solution.action

    assert gradcheck(solve, (x, y, temperature), atol=1e-7)


def test_gradients_with_a_fixed_term():
    x, other = points().requires_grad_(True), points(seed=5).requires_grad_(True)
    diagonal = torch.linspace(0.1, 1.0, 8, dtype=T).requires_grad_(True)

    def dense(x, other):
        base = other @ other.T + 0.2 * torch.eye(8, dtype=T)
        return solve_order_parameters(x @ x.T, labels(), width=5.0, temperature=1.0, base=base).order_parameter

    def diagonal_only(x, diagonal):
        return solve_order_parameters(x @ x.T, labels(), width=5.0, temperature=1.0, base=diagonal).order_parameter

    assert gradcheck(dense, (x, other), atol=1e-7)
    assert gradcheck(diagonal_only, (x, diagonal), atol=1e-7)


def test_gradients_at_zero_temperature():
    x = points().requires_grad_(True)
    y = labels().requires_grad_(True)

    def function(x, y):
        return solve_order_parameters(x @ x.T + torch.eye(8, dtype=T), y, width=5.0, temperature=0.0).order_parameter

    assert gradcheck(function, (x, y), atol=1e-7)


def test_batches_of_problems_have_their_own_gradients():
    x = torch.stack([points(), points(seed=3)]).requires_grad_(True)
    y = torch.stack([labels(), labels(seed=4)])
    width = torch.tensor([[3.0, 5.0], [7.0, 4.0]], dtype=T)

    def solve(x):
        return solve_order_parameters(x @ x.mT, y, width=width, temperature=0.2).order_parameter

    assert gradcheck(solve, (x,), atol=1e-7)


def test_the_spectrum_is_no_way_around():
    kernel_matrix = (points() @ points().T).requires_grad_(True)
    spectrum = Spectrum.from_kernel(kernel_matrix, labels())
    assert not spectrum.eigenvalues.requires_grad and not spectrum.projections.requires_grad


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, composition, activation, inducing=None):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood().double())
        self.covar_module = RenormalizedNNGPKernel(activation, [4, 9], composition, bias_variance=0.2).double()
        self.likelihood.noise = 0.2

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))


def finite_differences(function, parameter, step):
    """Fourth-order differences of a scalar function of one parameter tensor."""
    gradient = torch.zeros_like(parameter)
    for index in range(parameter.numel()):
        values = []
        for shift in (-2, -1, 1, 2):
            with torch.no_grad():
                parameter.view(-1)[index] += shift * step
            values.append(function())
            with torch.no_grad():
                parameter.view(-1)[index] -= shift * step
        gradient.view(-1)[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return gradient


@pytest.mark.parametrize("composition", ["outer", "nested", "linear_part"])
@pytest.mark.parametrize("quantity", ["order_parameter", "test error", "leave-one-out error"])
def test_gradients_through_a_model(composition, quantity):
    x, y, test_x, test_y = points(10), labels(10), points(4, seed=7), labels(4, seed=8)
    model = Model(x, y, composition, Erf())

    def value(differentiable):
        solution = fit_order_parameters(model, differentiable=differentiable, warn=False)
        q = solution.order_parameter
        if quantity == "order_parameter":
            return q.sum()
        if quantity == "test error":
            error = generalization_error(model, test_x, test_y, order_parameter=q, differentiable=differentiable)
        else:
            error = leave_one_out_error(model, order_parameter=q, differentiable=differentiable)
        return error.mean_total

    parameters = [model.covar_module.raw_hidden_weight_variance, model.covar_module.raw_bias_variance,
                  model.likelihood.noise_covar.raw_noise]  # fmt: skip
    gradients = torch.autograd.grad(value(True), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = finite_differences(lambda: value(False).detach(), parameter, 1e-3)
        # truncation 1e-12, the solver's 1e-10 over the step of 1e-3
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7), (quantity, parameter.shape)


def test_gradients_with_respect_to_training_inputs():
    x = torch.cat([points(6), points(6)[:2]])
    test_x, test_y = points(3, seed=7), labels(3, seed=8)

    def error(x):
        model = Model(x, labels(), "outer", ReLU())
        return generalization_error(model, test_x, test_y, fit=True, differentiable=True).mean_total

    # coincident relu rows: a kink of third order under finite differences of 1e-6
    assert gradcheck(error, (x.requires_grad_(True),), atol=1e-5)


def test_no_graph_unless_asked_for():
    model = Model(points(), labels(), "outer", ReLU())
    assert not fit_order_parameters(model).order_parameter.requires_grad
    assert not generalization_error(model, points(3), labels(3)).total.requires_grad
