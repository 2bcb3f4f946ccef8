"""`fit_order_parameters` of kernels with matrices: the model then predicts the theory, with gradients if wanted."""

from __future__ import annotations

import copy
import math

import gpytorch
import pytest
import torch
from gpytorch.kernels import ConstantKernel, ScaleKernel

from torch_propkernel import NetworkGP, NNGPKernel, RenormalizedNNGPKernel, fit_order_parameters
from torch_propkernel.exceptions import IdentifiabilityWarning, PrecisionWarning, ReliabilityWarning
from torch_propkernel.kernels import (
    BlockRenormalizedKernel,
    ConvolutionalRenormalizedKernel,
    MultitaskRenormalizedKernel,
)
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.theories import SaddlePoint

pytestmark = pytest.mark.usefixtures("in_double_precision")


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(width=(6.0, 9.0), missing=False, likelihood=None):
    x, y = points(15, 5), 2.0 * points(15, 2, seed=1)
    if missing:
        y[2, 1] = math.nan
    kernel = MultitaskRenormalizedKernel("erf", list(width), 2, bias_variance=0.3)
    if likelihood is None:
        return MultitaskNetworkGP.with_temperature(x, y, kernel, 0.1)
    return MultitaskNetworkGP(x, y, likelihood, kernel)


def blocks(width=6.0, bias=False):
    x = points(15, 12)
    kernel = ConvolutionalRenormalizedKernel("erf", width, (1, 12), 6, bias_variance=0.3)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.1
    return NetworkGP(x, 2.0 * points(15, seed=1), likelihood, kernel + ConstantKernel() if bias else kernel)


def chain():
    """Two linear convolutions, each with a matrix of its own."""
    model = blocks()
    sizes = {"image_shape": (1, 12), "kernel_size": [(4,), (2,)], "stride": [4, 1], "bias_variance": [0.3, 0.0]}
    model.covar_module = ConvolutionalRenormalizedKernel("identity", [6.0, 9.0], **sizes)
    return model


MODELS = {"chain": chain, "outputs": outputs, "blocks": blocks, "blocks beside a bias": lambda: blocks(bias=True)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_predicts_the_theory_afterwards(name, training):
    model = MODELS[name]()
    model.train(training)
    x = points(4, model.train_inputs[0].shape[-1], seed=7)
    if not training:
        with torch.no_grad():
            model(x)  # caches, which must be dropped
    fitted = SaddlePoint().fit(model)
    solution = fit_order_parameters(model, warn=False)
    assert model.training is training and solution.result.name == "local_minimum"
    torch.testing.assert_close(solution.order_parameter, fitted.order_parameters["E"], rtol=0, atol=0)
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        posterior = model(x)
    mean, variance = fitted.predict(x)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.variance, variance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("missing", [False, True])
def test_gradients_reach_the_hyperparameters_of_outputs(missing):
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(2, rank=1)
    check_gradients(outputs(missing=missing, likelihood=likelihood))


@pytest.mark.parametrize("streamed", [False, True])
def test_gradients_reach_the_hyperparameters_of_blocks(streamed, monkeypatch):
    if streamed:
        monkeypatch.setattr("torch_propkernel.inference.blocks._DENSE", 0)
    check_gradients(blocks(bias=True))


def test_gradients_reach_the_hyperparameters_of_a_chain():
    check_gradients(chain(), number=2)


def check_gradients(model, number=3):
    """Against differences of the solve, along a random direction for each parameter."""
    solution = fit_order_parameters(model, differentiable=True, warn=False)
    weights = points(*solution.order_parameter.shape, seed=3)
    total = (solution.order_parameter * weights).sum() + solution.action.sum()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and "raw_order_parameter" not in n]
    assert len(named) >= number
    gradients = torch.autograd.grad(total, [p for _, p in named])
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        direction, values = points(*parameter.shape, seed=5), []
        start = parameter.detach().clone()
        for shift in (-1e-3, 1e-3):
            with torch.no_grad():
                parameter.copy_(start + shift * direction)
            found = fit_order_parameters(model, warn=False)
            values.append((found.order_parameter * weights).sum() + found.action.sum())
        with torch.no_grad():
            parameter.copy_(start)
        # The third derivative times the square of the step.
        expected = (values[1] - values[0]) / 2e-3
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_matrices_of_one_row_are_the_scalar_theory():
    x, y = points(15, 5), 2.0 * points(15, seed=1)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.1
    scalar = NetworkGP(x, y, likelihood, RenormalizedNNGPKernel("erf", 6.0))
    block = NetworkGP(x, y, likelihood, BlockRenormalizedKernel([[NNGPKernel("erf")]], 6.0))
    one = MultitaskRenormalizedKernel("erf", 6.0, 1)
    output = MultitaskNetworkGP.with_temperature(x, y.unsqueeze(-1), one, 0.1)
    q = fit_order_parameters(scalar, warn=False).order_parameter
    evidence = SaddlePoint().fit(scalar).log_evidence
    for model in (block, output):
        found = fit_order_parameters(model, warn=False)
        torch.testing.assert_close(found.order_parameter.flatten(), q, rtol=1e-10, atol=0)
        assert found.result.name == "global_minimum"
        fitted = SaddlePoint().fit(model)
        torch.testing.assert_close(fitted.log_evidence.reshape(()), evidence, rtol=1e-10, atol=0)


def test_what_is_known_of_the_reliability():
    for model, why in ((outputs(), "answers all outputs at once"), (blocks(), "reads all blocks at once")):
        found = SaddlePoint().fit(model).reliability
        assert found.reliable is None and found.score is None and why in found.note
        assert found.alpha == pytest.approx(15 / 6) and found.participation_ratio > 2 and found.largest_correction > 0.1
        with pytest.warns(ReliabilityWarning, match="no score of the reliability of matrix order parameters"):
            assert fit_order_parameters(model).reliability.note == found.note
    for model in (outputs(width=[math.inf]), blocks(width=math.inf)):
        assert fit_order_parameters(model).reliability.reliable  # nothing to correct, and no warning


def test_a_layer_narrower_than_the_matrices_has_no_evidence():
    assert SaddlePoint().fit(outputs(width=[1.0])).log_evidence is None
    assert SaddlePoint().fit(blocks(width=1.0)).log_evidence is None
    for model in (blocks(), chain(), outputs()):
        assert SaddlePoint().fit(model).log_evidence.shape == ()


def test_blocks_that_do_not_fit_have_no_evidence(monkeypatch):
    monkeypatch.setattr("torch_propkernel.inference.blocks._DENSE", 0)
    assert SaddlePoint().fit(blocks()).log_evidence is None


def test_a_free_scale_beside_matrices_is_warned_of():
    model = blocks()
    model.covar_module = ScaleKernel(model.covar_module)
    with (
        pytest.warns(IdentifiabilityWarning, match="an outputscale around the kernel trains"),
        pytest.warns(ReliabilityWarning),
    ):
        fit_order_parameters(model)
    table = [[ScaleKernel(NNGPKernel("erf")), None], [None, NNGPKernel("erf")]]
    model.covar_module = BlockRenormalizedKernel(table, 6.0)
    with (
        pytest.warns(IdentifiabilityWarning, match="inside the kernel and the kernel's readout variance trains"),
        pytest.warns(ReliabilityWarning),
    ):
        fit_order_parameters(model)


def test_single_precision_that_is_too_coarse_is_warned_of():
    model = copy.deepcopy(outputs()).float()
    model.train_inputs, model.train_targets = (model.train_inputs[0].float(),), model.train_targets.float()
    model.likelihood.noise = torch.tensor(1e-5)
    with pytest.warns(PrecisionWarning), pytest.warns(ReliabilityWarning):
        fit_order_parameters(model)


def test_models_that_it_cannot_take_are_refused():
    model = blocks()
    twice = model.covar_module + ConvolutionalRenormalizedKernel("erf", 5.0, (1, 12), 6)
    with pytest.raises(ValueError, match="expected one BlockRenormalizedKernel in its covariance, got 2"):
        fit_order_parameters(NetworkGP(model.train_inputs[0], model.train_targets, model.likelihood, twice))
    several = outputs()
    several.covar_module = ScaleKernel(several.covar_module)
    with pytest.raises(ValueError, match="expected the MultitaskRenormalizedKernel itself, got ScaleKernel"):
        fit_order_parameters(several)
