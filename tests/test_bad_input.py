"""Bad input gives an error that names what was expected and what came; odd input gives the right result."""

from __future__ import annotations

import math
import warnings

import gpytorch
import pytest
import torch
from bad_input_table import DOCUMENT, EYE, GROUPS, F, Model, X, Y, document, points

from torch_propkernel import (
    Erf,
    ReLU,
    RenormalizedNNGPKernel,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
    training_error,
    width_sweep,
)

# Small odd problems are not where the theory is reliable, and that is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")

CASES = {
    f"{case.what}: {name}": (case, call)
    for cases in GROUPS.values()
    for case in cases
    for name, call in case.calls.items()
}


@pytest.mark.parametrize("name", CASES)
def test_bad_inputs(name):
    case, call = CASES[name]
    with pytest.raises(case.error, match=case.message) as caught:
        call()
    assert caught.type is case.error  # not a subclass that something else has raised


@pytest.mark.skipif("BoTorch models" not in GROUPS, reason="its last group needs BoTorch")
def test_the_table_of_bad_inputs_is_up_to_date():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run: python tests/bad_input_table.py"


def test_a_kernel_that_enters_twice():
    kernel = RenormalizedNNGPKernel(Erf(), 9, bias_variance=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="expected a covariance that is affine in the renormalized kernel"):
            fit_order_parameters(Model(X, Y, gpytorch.kernels.ProductKernel(kernel, kernel)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_mixed_devices():
    with pytest.raises(ValueError, match="expected one device for all tensors"):
        solve_order_parameters(EYE.cuda(), Y, width=10.0, temperature=0.1)


ODD = {
    "one point": (X[:1], Y[:1]),
    "duplicate rows": (torch.cat([X, X, X[:2]]), torch.cat([Y, Y + 0.1, Y[:2]])),
    "zero rows": (torch.cat([X, torch.zeros(3, 3, dtype=F)]), torch.cat([Y, Y[:3]])),
    "all rows zero": (torch.zeros(4, 3, dtype=F), Y[:4]),
    "constant y": (X, torch.ones(6, dtype=F)),
    "y = 0": (X, torch.zeros(6, dtype=F)),
    "rescaled rows": (torch.cat([X, 1e-3 * X, 10 * X]), torch.cat([Y, Y, Y])),
    "one input": (X[:, :1], Y),
    "many more points than units": (points(300), points(300)[:, 0]),
}


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.InputScaleWarning")  # rows that are all zero
@pytest.mark.parametrize("width", [1.0, 10.0, 1e9, math.inf])
@pytest.mark.parametrize("name", ODD)
def test_odd_data_give_the_stationary_point(name, width):
    x, y = ODD[name]
    kernel = RenormalizedNNGPKernel(Erf(), torch.tensor(width, dtype=F), bias_variance=0.2)
    model = Model(x, y, kernel)
    solution = fit_order_parameters(model)
    assert solution.result.name in ("global_minimum", "infinite_width")
    q = solution.order_parameter.item()
    matrix = kernel.at(torch.ones(1))(x).to_dense().detach()
    covariance = q * matrix + model.likelihood.noise.detach() * torch.eye(len(y), dtype=F)
    weights = torch.linalg.solve(covariance, y)
    slope = torch.linalg.solve(covariance, matrix).trace() - weights @ matrix @ weights
    if math.isfinite(width):
        scale = width + len(y)
        assert abs(width * (q - 1) + q * slope.item()) < 1e-9 * scale  # N q dS/dq, by dense algebra
    else:
        assert q == 1.0
    for error in (generalization_error(model, x, y), leave_one_out_error(model)):
        assert torch.isfinite(error.total).all() and (error.variance >= 0).all()
    assert torch.isfinite(training_error(model))
    sweep = width_sweep(model, [width, 7.0])
    assert sweep.order_parameter[0].item() == pytest.approx(q, rel=1e-9)


def test_cold_temperatures_in_a_model():
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    model = Model(points(30, 40), points(30, 40, seed=1)[:, 0], RenormalizedNNGPKernel(ReLU(), 20))
    model.likelihood = likelihood.double()
    likelihood.noise = torch.tensor(1e-10, dtype=F)
    cold = fit_order_parameters(model).order_parameter.item()
    matrix = model.covar_module.at(torch.ones(1))(model.train_inputs[0]).to_dense().detach()
    zero = solve_order_parameters(matrix, model.train_targets, width=20, temperature=0.0).order_parameter.item()
    assert cold == pytest.approx(zero, rel=1e-7)  # differs by T / k_min, about 1e-8


@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")
def test_host_settings_and_wrappers():
    x, y = points(12), points(12)[:, 0]
    expected = fit_order_parameters(Model(x, y)).order_parameter
    with gpytorch.settings.lazily_evaluate_kernels(False):
        eager = Model(x, y)
        assert torch.allclose(fit_order_parameters(eager).order_parameter, expected, rtol=1e-12)
        assert torch.isfinite(generalization_error(eager, x, y).total).all()
    scaled = gpytorch.kernels.ScaleKernel(RenormalizedNNGPKernel(ReLU(), 10, bias_variance=0.1))
    scaled.outputscale = 1.0
    scaled.raw_outputscale.requires_grad_(False)
    assert torch.allclose(fit_order_parameters(Model(x, y, scaled)).order_parameter, expected, rtol=1e-6)
    inducing = gpytorch.kernels.InducingPointKernel(
        RenormalizedNNGPKernel(ReLU(), 10, bias_variance=0.1),
        inducing_points=x.clone(),
        likelihood=gpytorch.likelihoods.GaussianLikelihood(),
    )
    # Nystrom at the data is exact up to GPyTorch's jitter of 1e-4 and more
    assert torch.allclose(fit_order_parameters(Model(x, y, inducing)).order_parameter, expected, rtol=0.02)


def test_multitask_model():
    """One order parameter for all outputs of a MultitaskKernel: K (x) B, against the dense action."""
    x = points(8)
    y = torch.stack([x[:, 0], x[:, 1] - 1], -1)

    class Multitask(gpytorch.models.ExactGP):
        def __init__(self):
            likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2)
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ZeroMean(), num_tasks=2)
            base = RenormalizedNNGPKernel(ReLU(), 10, bias_variance=0.1)
            self.covar_module = gpytorch.kernels.MultitaskKernel(base, num_tasks=2, rank=1)
            self.double()

        def forward(self, x):
            return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = Multitask()
    q = fit_order_parameters(model).order_parameter.item()
    kernel = next(m for m in model.modules() if isinstance(m, RenormalizedNNGPKernel))
    kernel.order_parameter = 1.0
    prior = model.forward(x)
    matrix = prior.covariance_matrix.detach()
    total = model.likelihood(prior).covariance_matrix.detach()
    found = solve_order_parameters(matrix, y.reshape(-1), width=10.0, temperature=1.0, base=total - matrix)
    assert q == pytest.approx(found.order_parameter.item(), rel=1e-9)
