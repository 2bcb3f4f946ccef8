"""Under automatic mixed precision everything is computed in the dtype of its inputs."""

from __future__ import annotations

import importlib.util

import gpytorch
import pytest
import torch

from torch_propkernel import (
    EffectiveAction,
    Erf,
    FiniteWidthLikelihood,
    FiniteWidthMarginalLogLikelihood,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    StudentTMarginalLogLikelihood,
    StudentTProcessLikelihood,
    fit_order_parameters,
    generalization_error,
    solve_order_parameters,
)
from torch_propkernel.models import NetworkFiniteWidthProcess, NetworkGP, NetworkStudentTProcess

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))  # float32: autocast leaves float64 alone
Y = X[:, 0] + 0.3 * X[:, 1] * X[:, 2]
AT = X[:4] + 0.2
MATRIX = X @ X.T + torch.eye(12)


def kernel(composition="outer"):
    return RenormalizedNNGPKernel(Erf(), [10.0, 20.0], composition, bias_variance=0.1)


def model(process, likelihood):
    made = process(X, Y, likelihood(), kernel())
    made.likelihood.noise = 0.2
    return made


def gp():
    return model(NetworkGP, gpytorch.likelihoods.GaussianLikelihood)


def finite_width():
    return model(NetworkFiniteWidthProcess, FiniteWidthLikelihood)


def student_t():
    return model(NetworkStudentTProcess, StudentTProcessLikelihood)


def value(made, objective):
    return objective(made.likelihood, made)(made(X), Y)


def botorch_samples():
    from torch_propkernel.botorch_support import SingleTaskFiniteWidthGP, SingleTaskStudentTProcess

    base = torch.linspace(-1, 1, 10).reshape(2, 5)
    models = (SingleTaskFiniteWidthGP(X, Y[:, None], 8.0), SingleTaskStudentTProcess(X, Y[:, None]))
    return torch.stack([m.posterior(AT).rsample_from_base_samples(torch.Size([2]), base) for m in models])


CASES = {
    "NNGP": lambda: NNGPKernel(ReLU(), 2)(X).to_dense(),
    "outer": lambda: kernel()(X).to_dense(),
    "nested, cross": lambda: kernel("nested")(X, AT).to_dense(),
    "solver": lambda: solve_order_parameters(MATRIX, Y, width=10.0, temperature=0.2).order_parameter,
    "fit": lambda: fit_order_parameters(gp()).order_parameter,
    "finite width": lambda: finite_width().eval()(AT).covariance_matrix,
    "Student's t": lambda: student_t().eval()(AT).covariance_matrix,
    "conditional": lambda: student_t().eval()(AT).condition([0, 1], AT[:2, 0]).covariance_matrix,
    "evidence of finite width": lambda: value(finite_width(), FiniteWidthMarginalLogLikelihood),
    "evidence of Student's t": lambda: value(student_t(), StudentTMarginalLogLikelihood),
    "action": lambda: value(gp(), EffectiveAction),
    "BoTorch": botorch_samples,
}


@pytest.mark.filterwarnings("ignore:The model inputs are of type torch.float32")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers_under_autocast(name, dtype):
    if name == "BoTorch" and importlib.util.find_spec("botorch") is None:
        pytest.skip("needs BoTorch")
    expected = CASES[name]()
    with torch.autocast("cpu", dtype):
        assert (MATRIX @ MATRIX).dtype == dtype  # autocast is at work
        found = CASES[name]()
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_predictions_by_gpytorch_are_refused():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = NetworkGP(x, x[:, 0], likelihood, RenormalizedNNGPKernel("relu", 10)).eval()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="NetworkGP: expected to run outside"):
        model(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = generalization_error(model, x, x[:, 0])
    assert torch.equal(inside.total, generalization_error(model, x, x[:, 0]).total)
