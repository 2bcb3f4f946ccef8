"""Bad input gives an error that names what was expected and what came; odd input gives the right result."""

from __future__ import annotations

import math
import warnings

import gpytorch
import pytest
import torch

from torch_propkernel import (
    Erf,
    NotPositiveDefiniteError,
    ReLU,
    RenormalizedNNGPKernel,
    Spectrum,
    expected_accuracy,
    fit_free_scale,
    fit_order_parameters,
    generalization_error,
    leave_one_out_error,
    solve_order_parameters,
    training_error,
    width_sweep,
)

F = torch.float64


class Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, covariance=None, noise=0.1):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = covariance or RenormalizedNNGPKernel(ReLU(), 10, bias_variance=0.1)
        self.double()
        self.likelihood.noise = noise

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def points(n=6, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F)


def bad(value, where, what):
    value = value.clone()
    value[where] = what
    return value


def with_data(model, x, y):
    """Replace the training data, which a model converts with itself when it is moved."""
    model.set_train_data(x, y, strict=False)
    return model


def with_likelihood(model, likelihood):
    """Replace the likelihood, which the constructor of ExactGP would refuse."""
    model.likelihood = likelihood.double()
    return model


X, Y, EYE = points(), points()[:, 0], torch.eye(6, dtype=F)

MODELS = {
    "NaN in x": (
        lambda: Model(bad(X, (1, 1), math.nan), Y),
        ValueError,
        "train_inputs: expected finite values, got 1 NaN",
    ),
    "inf in x": (lambda: Model(bad(X, (1, 1), math.inf), Y), ValueError, "0 NaN and 1 infinite of 18"),
    "NaN in y": (lambda: Model(X, bad(Y, 2, math.nan)), ValueError, "train_targets: expected finite values, got 1 NaN"),
    "y too short": (lambda: Model(X, Y[:4]), ValueError, r"train_targets: expected shape \(..., 6\), got \(4,\)"),
    "no rows": (lambda: Model(X[:0], Y[:0]), ValueError, "train_inputs: expected at least 1 row"),
    "float32 data in a float64 model": (
        lambda: with_data(Model(X, Y), X.float(), Y.float()),
        TypeError,
        "train_inputs: expected dtype torch.float64, the kernel's, got torch.float32",
    ),
    "y of another dtype": (
        lambda: with_data(Model(X, Y), X, Y.float()),
        TypeError,
        "train_targets: expected dtype torch.float64",
    ),
    "integer x": (lambda: Model(torch.ones(6, 3, dtype=torch.long), Y), TypeError, "expected a floating-point tensor"),
    "integer y": (lambda: Model(X, torch.ones(6, dtype=torch.long)), TypeError, "expected a floating-point tensor"),
    "no renormalized kernel": (
        lambda: Model(X, Y, gpytorch.kernels.RBFKernel()),
        ValueError,
        r"expected exactly one RenormalizedNNGPKernel in its covariance, got 0 among the kernels \['RBFKernel'\]",
    ),
    "two renormalized kernels": (
        lambda: Model(X, Y, RenormalizedNNGPKernel(Erf(), 9) + RenormalizedNNGPKernel(Erf(), 9)),
        ValueError,
        "expected exactly one RenormalizedNNGPKernel in its covariance, got 2",
    ),
    "a likelihood that is not Gaussian": (
        lambda: with_likelihood(Model(X, Y), gpytorch.likelihoods.StudentTLikelihood()),
        TypeError,
        "likelihood: expected a Gaussian one, whose noise is the temperature, got StudentTLikelihood",
    ),
    "no model": (lambda: "model", TypeError, "model: expected an ExactGP-like module, got str"),
    "no training data": (
        lambda: RenormalizedNNGPKernel(ReLU(), 10),
        TypeError,
        "model: expected an ExactGP-like model with train_inputs, got RenormalizedNNGPKernel without",
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("call", [fit_order_parameters, leave_one_out_error, training_error], ids=lambda f: f.__name__)
def test_bad_models(name, call):
    build, error, message = MODELS[name]
    with pytest.raises(error, match=message):
        call(build())


def test_a_kernel_that_enters_twice():
    kernel = RenormalizedNNGPKernel(Erf(), 9, bias_variance=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="expected a covariance that is affine in the renormalized kernel"):
            fit_order_parameters(Model(X, Y, gpytorch.kernels.ProductKernel(kernel, kernel)))


POINTS = {
    "1-D x": ((Y, Y), ValueError, r"x: expected shape \(..., P, N_0\), got \(6,\)"),
    "wrong number of columns": ((points(4, 2), Y[:4]), ValueError, "x: expected 3 columns as in training, got 2"),
    "y of another length": ((X, Y[:4]), ValueError, r"y: expected shape \(..., 6\), got \(4,\)"),
    "NaN in x": ((bad(X, (0, 0), math.nan), Y), ValueError, "x: expected finite values"),
    "inf in y": ((X, bad(Y, 0, math.inf)), ValueError, "y: expected finite values"),
    "float32": ((X.float(), Y), TypeError, "x: expected dtype torch.float64"),
    "integers": ((torch.ones(6, 3, dtype=torch.long), Y), TypeError, "x: expected a floating-point tensor"),
    "no tensor": ((X.tolist(), Y), TypeError, "x: expected a torch.Tensor, got list"),
    "no rows": ((X[:0], Y[:0]), ValueError, "x: expected at least 1 row"),
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("call", [generalization_error, expected_accuracy, fit_free_scale], ids=lambda f: f.__name__)
def test_bad_test_points(name, call):
    arguments, error, message = POINTS[name]
    with pytest.raises(error, match=message):
        call(Model(X, Y), *arguments)


MATRICES = {
    "1-D": ((Y, Y), {}, ValueError, r"kernel matrix: expected shape \(..., P, P\) with P >= 1, got \(6,\)"),
    "not square": ((EYE[:4], Y), {}, ValueError, r"got \(4, 6\)"),
    "empty": ((EYE[:0, :0], Y[:0]), {}, ValueError, r"got \(0, 0\)"),
    "y of another length": ((EYE, Y[:3]), {}, ValueError, r"targets: expected shape \(..., 6\), got \(3,\)"),
    "NaN in K": ((bad(EYE, (0, 1), math.nan), Y), {}, ValueError, "kernel matrix: expected finite values"),
    "NaN in y": ((EYE, bad(Y, 0, math.nan)), {}, ValueError, "targets: expected finite values"),
    "mixed dtypes": ((EYE, Y.float()), {}, TypeError, "expected one dtype for all tensors, got kernel_matrix"),
    "integer K": ((torch.eye(6, dtype=torch.long), Y), {}, TypeError, "kernel matrix: expected a floating-point"),
    "no y": ((EYE,), {}, TypeError, "targets: expected a tensor beside a kernel matrix, got None"),
    "indefinite": ((EYE - 2, Y), {}, NotPositiveDefiniteError, "expected positive semi-definite, got a smallest"),
    "width zero": ((EYE, Y), {"width": 0.0}, ValueError, "width: expected positive numbers"),
    "width NaN": ((EYE, Y), {"width": math.nan}, ValueError, "width: expected positive numbers"),
    "temperature negative": ((EYE, Y), {"temperature": -0.1}, ValueError, r"temperature: expected finite numbers >= 0"),
    "temperature NaN": ((EYE, Y), {"temperature": math.nan}, ValueError, "temperature: expected finite numbers >= 0"),
    "T = 0, singular": (
        (torch.ones_like(EYE), Y),
        {"temperature": 0.0},
        NotPositiveDefiniteError,
        "singular to rounding",
    ),
    "base of wrong shape": ((EYE, Y), {"base": EYE[:, :3]}, ValueError, r"base: expected shape .* got \(6, 3\)"),
    "base not positive": ((EYE, Y), {"base": -Y.abs()}, NotPositiveDefiniteError, "base: expected a positive diagonal"),
    "base indefinite": ((EYE, Y), {"base": EYE - 2}, NotPositiveDefiniteError, "base: expected a positive definite"),
    "precision": ((EYE, Y), {"readout_precision": -1.0}, ValueError, "readout_precision: expected a finite number > 0"),
    "spectrum and y": ((Spectrum.from_kernel(EYE, Y), Y), {}, TypeError, "expected None beside a Spectrum"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_bad_matrices(name):
    arguments, options, error, message = MATRICES[name]
    with pytest.raises(error, match=message):
        solve_order_parameters(*arguments, **({"width": 10.0, "temperature": 0.1} | options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_mixed_devices():
    with pytest.raises(ValueError, match="expected one device for all tensors"):
        solve_order_parameters(EYE.cuda(), Y, width=10.0, temperature=0.1)


def test_mixed_devices_without_an_accelerator():
    with pytest.raises(ValueError, match="expected one device for all tensors, got kernel_matrix on meta"):
        solve_order_parameters(EYE.to("meta"), Y, width=10.0, temperature=0.1)


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


@pytest.mark.filterwarnings("ignore::torch_propkernel.ReliabilityWarning")
@pytest.mark.filterwarnings("ignore::torch_propkernel.InputScaleWarning")  # rows that are all zero
@pytest.mark.parametrize("width", [1.0, 10.0, 1e9, math.inf])
@pytest.mark.parametrize("name", ODD)
def test_odd_data_give_the_stationary_point(name, width):
    x, y = ODD[name]
    kernel = RenormalizedNNGPKernel(Erf(), torch.tensor(width, dtype=F), bias_variance=0.2)
    model = Model(x, y, kernel)
    solution = fit_order_parameters(model)
    assert solution.result.name in ("global_minimum", "infinite_width")
    q = solution.order_parameter.item()
    with kernel.assigned_order_parameter(1.0):
        matrix = kernel(x).to_dense().detach()
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
    with model.covar_module.assigned_order_parameter(1.0):
        matrix = model.covar_module(model.train_inputs[0]).to_dense().detach()
    zero = solve_order_parameters(matrix, model.train_targets, width=20, temperature=0.0).order_parameter.item()
    assert cold == pytest.approx(zero, rel=1e-7)  # differs by T / k_min, about 1e-8


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
    with kernel.assigned_order_parameter(1.0):
        prior = model.forward(x)
        matrix = prior.covariance_matrix.detach()
        total = model.likelihood(prior).covariance_matrix.detach()
    found = solve_order_parameters(matrix, y.reshape(-1), width=10.0, temperature=1.0, base=total - matrix)
    assert q == pytest.approx(found.order_parameter.item(), rel=1e-9)
