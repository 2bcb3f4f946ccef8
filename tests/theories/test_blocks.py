"""Theories of models over blocks: predictions are those of GPyTorch at the order parameter that was solved for."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.kernels import ConstantKernel, ScaleKernel

from torch_propkernel import NetworkGP, NNGPKernel, RenormalizedNNGPKernel
from torch_propkernel.actions import DenseBlocks, solve_block_order_parameters
from torch_propkernel.inference import BlocksProblem, Problem, blocks
from torch_propkernel.kernels import BlockRenormalizedKernel, ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel
from torch_propkernel.theories import FreeScale, Gated, InfiniteWidth, Mixture, SaddlePoint

pytestmark = pytest.mark.usefixtures("in_double_precision")


def problem(readout="dense", wrap=lambda kernel: kernel):
    """Thirty images of one row whose first and last patch decide; three patches."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(38, 12, generator=generator)
    y = 2.0 * torch.tanh(x[:, 0] + x[:, 1]) + x[:, 9] - x[:, 10]
    kernel = ConvolutionalRenormalizedKernel("erf", 8.0, (1, 12), 4, readout=readout, bias_variance=0.2)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.1
    return NetworkGP(x[:30], y[:30], likelihood, wrap(kernel)), x[30:], y[30:]


def host(model, kernel, order_parameter, x):
    """GPyTorch's own posterior with the kernel at an order parameter."""
    kernel.initialize(order_parameter=order_parameter)
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        return model(x), model(model.train_inputs[0])


WRAPS = {
    "alone": lambda kernel: kernel,
    "scaled": lambda kernel: _scaled(kernel),
    "beside a bias": lambda kernel: kernel + ConstantKernel(),
}


def _scaled(kernel):
    made = ScaleKernel(kernel)
    made.outputscale = 1.7
    return made


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_predictions_are_those_of_the_host(name, readout):
    model, x, y = problem(readout, WRAPS[name])
    fitted = SaddlePoint().fit(model)
    kernel = next(m for m in model.modules() if isinstance(m, ConvolutionalRenormalizedKernel))
    assert torch.equal(kernel.order_parameter[0], torch.eye(3 if readout == "dense" else 1))  # it was not changed
    posterior, own = host(model, kernel, fitted.order_parameters["E"], x)
    mean, variance = fitted.predict(x)
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, posterior.variance, rtol=1e-9, atol=1e-9)
    joint = fitted.distribution(x, joint=True).covariance_matrix
    torch.testing.assert_close(joint, posterior.covariance_matrix, rtol=0, atol=1e-9)
    error = fitted.error(x, y)
    torch.testing.assert_close(error.total, (y - posterior.mean).square() + posterior.variance, rtol=1e-8, atol=1e-9)
    training = ((model.train_targets - own.mean).square() + own.variance).mean()
    torch.testing.assert_close(fitted.training_error(), training, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(fitted.order_parameters["Q"], kernel.block_covariance.detach(), rtol=1e-9, atol=1e-9)
    wide, _ = host(model, kernel, torch.eye(len(fitted.order_parameters["E"][0])).unsqueeze(0), x)
    expected = (y - wide.mean).square() + wide.variance
    torch.testing.assert_close(error.infinite_width.total, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(InfiniteWidth().fit(model).error(x, y).total, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", WRAPS)
def test_the_saddle_is_the_minimum_of_the_host_s_objective(name):
    """GPyTorch's own objective at E and beside it, along random directions."""
    model, _, _ = problem(wrap=WRAPS[name])
    fitted = SaddlePoint().fit(model)
    kernel = next(m for m in model.modules() if isinstance(m, ConvolutionalRenormalizedKernel))
    kernel.initialize(order_parameter=fitted.order_parameters["E"])
    # The readout variances' own priors do not move with E.
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()

    def value():
        with torch.no_grad():
            return objective(model(*model.train_inputs), model.train_targets).item()

    best, raw = value(), kernel.raw_order_parameter.detach().clone()
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        step = torch.randn(raw.shape, generator=generator)
        step = 1e-3 * (step + step.mT)
        values = []
        for sign in (1.0, -1.0):
            kernel.initialize(raw_order_parameter=raw + sign * step)
            values.append(best - value())
        assert min(values) > 0 and abs(values[0] - values[1]) < 0.02 * values[0]  # the third order at this step


def test_leaving_out_a_point_is_refitting_without_it():
    model, _, _ = problem()
    fitted = SaddlePoint().fit(model)
    left = fitted.leave_one_out()
    x, y = model.train_inputs[0], model.train_targets
    kept = torch.arange(30) != 4
    other = NetworkGP(x[kept], y[kept], model.likelihood, model.covar_module)
    posterior, _ = host(other, model.covar_module, fitted.order_parameters["E"], x[4:5])
    torch.testing.assert_close(left.mean[4:5], posterior.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left.variance[4:5], posterior.variance, rtol=1e-9, atol=1e-9)


def test_blocks_that_are_computed_again_give_the_same(monkeypatch):
    model, x, _ = problem(wrap=WRAPS["beside a bias"])
    held, _ = BlocksProblem.of_blocks(model).training_blocks()
    assert isinstance(held, DenseBlocks)
    dense = SaddlePoint().fit(model)
    monkeypatch.setattr(blocks, "_DENSE", 0)
    again, _ = BlocksProblem.of_blocks(model).training_blocks()
    assert not isinstance(again, DenseBlocks)
    streamed = SaddlePoint().fit(model)
    torch.testing.assert_close(streamed.order_parameters, dense.order_parameters, rtol=0, atol=1e-8)
    torch.testing.assert_close(streamed.predict(x), dense.predict(x), rtol=1e-7, atol=1e-8)


def test_the_evidence_is_that_of_the_solution_when_it_is_read():
    model, _, _ = problem()
    fitted = pickle.loads(pickle.dumps(SaddlePoint().fit(model)))
    assert fitted.stats["solution"].log_evidence is None
    held, base = BlocksProblem.of_blocks(model).training_blocks()
    known = {"width": model.covar_module.width.flatten(), "temperature": 1.0, "base": base, "evidence": True}
    solution = solve_block_order_parameters(held, fitted.problem.residuals(), **known)
    torch.testing.assert_close(fitted.log_evidence, solution.log_evidence, rtol=1e-10, atol=0)


def test_one_block_is_the_scalar_theory():
    model, x, y = problem()
    inputs, targets = model.train_inputs[0], model.train_targets
    block = NetworkGP(inputs, targets, model.likelihood, BlockRenormalizedKernel([[NNGPKernel("erf")]], 8.0))
    scalar = NetworkGP(inputs, targets, model.likelihood, RenormalizedNNGPKernel("erf", 8.0))
    for theory in (SaddlePoint(), FreeScale(), InfiniteWidth()):
        first, second = theory.fit(block), theory.fit(scalar)
        torch.testing.assert_close(first.error(x, y).total, second.error(x, y).total, rtol=1e-10, atol=0)
        torch.testing.assert_close(first.readout_norm.reshape(()), second.readout_norm.reshape(()), rtol=1e-12, atol=0)
    found = SaddlePoint().fit(block)
    assert found.stats["solution"].result.name == "global_minimum"
    q = SaddlePoint().fit(scalar).order_parameters["q"]
    torch.testing.assert_close(found.order_parameters["Q"].flatten(), q, rtol=1e-13, atol=0)


def test_groups_of_inputs_as_blocks_are_a_sum_of_networks():
    """f = f_1(x_1..4) + f_2(x_5..12): the second group does not matter, and its order parameter falls below one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 12, generator=generator)
    y = 3.0 * x[:, :4].sum(-1).tanh()
    groups = [NNGPKernel("erf", active_dims=list(range(4))), NNGPKernel("erf", active_dims=list(range(4, 12)))]
    kernel = BlockRenormalizedKernel([[groups[0], None], [None, groups[1]]], 10.0)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.05
    model = NetworkGP(x[:40], y[:40], likelihood, kernel)
    fitted = SaddlePoint().fit(model)
    q = fitted.order_parameters["Q"]
    assert abs(q[0, 1]) < 1e-7 and q[0, 0] > 1.5 and q[1, 1] < 0.7
    matrices = torch.zeros(2, 2, 40, 40)
    for index, group in enumerate(groups):
        matrices[index, index] = group(x[:40]).to_dense().detach()
    direct = solve_block_order_parameters(matrices, y[:40], width=10.0, temperature=0.05).order_parameter
    torch.testing.assert_close(fitted.order_parameters["E"], direct, rtol=0, atol=1e-8)
    better = fitted.error(x[40:], y[40:])
    assert better.mean_total < 0.95 * better.infinite_width.mean_total


def test_the_baseline_scales_what_is_renormalized():
    """With a fixed bias beside it: the scale of the kernel alone maximizes the evidence, on a grid."""
    model, x, _ = problem(wrap=WRAPS["beside a bias"])
    fitted = FreeScale().fit(model)
    inputs, y = model.train_inputs[0], model.train_targets
    infinite = ConvolutionalNNGPKernel("erf", (1, 12), 4, bias_variance=0.2)
    bias = model.covar_module.kernels[1]
    with torch.no_grad():
        moving, fixed = infinite(inputs).to_dense(), bias(inputs).to_dense() + 0.1 * torch.eye(30)
        grid = (fitted.order_parameters["r"] * torch.linspace(0.8, 1.2, 41)).tolist()
        values = [
            torch.distributions.MultivariateNormal(torch.zeros(30), fixed + r * moving).log_prob(y).item() for r in grid
        ]
    assert values.index(max(values)) == 20
    assert fitted.log_evidence.item() == pytest.approx(max(values), rel=1e-9)
    assert fitted.predict(x)[0].shape == (8,)


def test_several_theories_share_a_problem():
    model, x, y = problem()
    shared = BlocksProblem.of_blocks(model)
    for theory in (InfiniteWidth(), FreeScale(), SaddlePoint()):
        first, second = theory.fit(shared).error(x, y).total, theory.fit(model).error(x, y).total
        torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_it_pickles():
    model, x, _ = problem()
    fitted = SaddlePoint().fit(model)
    again = pickle.loads(pickle.dumps(fitted))
    assert torch.equal(again.predict(x)[0], fitted.predict(x)[0])


@pytest.mark.parametrize("limit", [2**31, 0])
def test_single_precision(limit, monkeypatch):
    monkeypatch.setattr(blocks, "_DENSE", limit)
    model, x, _ = problem(wrap=WRAPS["beside a bias"])
    expected = SaddlePoint().fit(model)
    single = copy.deepcopy(model).float()
    single.train_inputs, single.train_targets = (model.train_inputs[0].float(),), model.train_targets.float()
    found = SaddlePoint().fit(single)
    assert found.predict(x.float())[0].dtype == torch.float32
    # The matrices are those of inputs that were rounded to 1e-7; A's condition number is about 100.
    torch.testing.assert_close(found.order_parameters["Q"].double(), expected.order_parameters["Q"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.predict(x.float())[0].double(), expected.predict(x)[0], rtol=0, atol=1e-4)


def test_what_does_not_apply_is_refused():
    model, x, y = problem()
    for theory in (Mixture(), Gated()):
        with pytest.raises(ValueError, match="expected a RenormalizedNNGPKernel, got a BlockRenormalizedKernel"):
            theory.fit(model)
    inputs, targets, likelihood = model.train_inputs[0], model.train_targets, model.likelihood
    both = model.covar_module + RenormalizedNNGPKernel("erf", 5.0)
    with pytest.raises(ValueError, match="got a RenormalizedNNGPKernel beside it"):
        SaddlePoint().fit(NetworkGP(inputs, targets, likelihood, both))
    twice = model.covar_module + ConvolutionalRenormalizedKernel("erf", 5.0, (1, 12), 4)
    with pytest.raises(ValueError, match="expected one BlockRenormalizedKernel in its covariance, got 2"):
        SaddlePoint().fit(NetworkGP(inputs, targets, likelihood, twice))
    batch = ConvolutionalRenormalizedKernel("erf", torch.tensor([[5.0], [9.0]]), (1, 12), 4)
    stacked = NetworkGP(inputs.expand(2, -1, -1), targets.expand(2, -1), likelihood, batch)
    with pytest.raises(ValueError, match="expected no batch dimensions for several blocks"):
        SaddlePoint().fit(stacked)
    with pytest.raises(TypeError, match="expected an ExactGP-like model or a BlocksProblem, got Problem"):
        InfiniteWidth().fit(Problem.frozen(model, needs_order_parameters=False))
    squared = model.covar_module * model.covar_module
    with pytest.raises(ValueError, match="affine"):
        SaddlePoint().fit(NetworkGP(inputs, targets, likelihood, squared))
