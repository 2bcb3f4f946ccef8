"""The saddle point of stacked linear convolutions: against one position, a training loop, finite widths."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import ConstantKernel

from torch_propkernel import ConvergenceError, NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.actions import DenseBlocks, solve_chain_order_parameters
from torch_propkernel.kernels import ConvolutionalRenormalizedKernel
from torch_propkernel.order_parameters import LinearChain
from torch_propkernel.practice import model_from_network, network_from_model
from torch_propkernel.theories import FreeScale, InfiniteWidth, SaddlePoint

pytestmark = pytest.mark.usefixtures("in_double_precision")

GEOMETRY = {"image_shape": (1, 8), "kernel_size": [(2,), (2,)], "stride": [2, 1]}


def data(number=25, columns=8):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, columns, generator=generator)
    y = 2.0 * x[:, 0] + x[:, 1] + 0.3 * torch.randn(number, generator=generator)
    return x, y


def model_of(kernel, x, y, noise=0.1):
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = noise
    return NetworkGP(x, y, likelihood, kernel)


@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_one_position_is_the_fully_connected_network(readout):
    x, y = data()
    weights = [1.5, 0.8, 3.0]
    kernel = ConvolutionalRenormalizedKernel(
        "identity", [9.0, 12.0], (1, 8), [(8,), (1,)], readout=readout, weight_variance=weights
    )
    dense = RenormalizedNNGPKernel("identity", [9.0, 12.0], weight_variance=weights)
    found, expected = (SaddlePoint().fit(model_of(own, x, y)) for own in (kernel, dense))
    assert found.stats["starts"] == 1  # numbers, solved globally
    torch.testing.assert_close(found.order_parameters["E"].flatten(), expected.order_parameters["q"], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.readout_norm, expected.readout_norm, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.predict(x[:3] + 0.1), expected.predict(x[:3] + 0.1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("readout", ["dense", "pooled"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_training_loop_stands_still_at_the_solution(readout, bias):
    """GPyTorch's own objective with the Wishart priors of all layers has no gradient there, padded entries too."""
    x, y = data()
    kernel = ConvolutionalRenormalizedKernel("identity", [6.0, 9.0], readout=readout, padding=[0, 1], **GEOMETRY)
    whole = kernel + ConstantKernel() if bias else kernel
    model = model_of(whole, x, y)
    fitted = SaddlePoint().fit(model)
    assert fitted.stats["agreeing_starts"] == fitted.stats["starts"] == (1 if readout == "pooled" else 4)
    kernel.order_parameter = fitted.order_parameters["E"]
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model.train())

    def gradient():
        kernel.zero_grad()
        objective(model(x), y).backward()
        return kernel.raw_order_parameter.grad.abs().max()

    assert float(gradient()) < 1e-7
    with torch.no_grad():
        kernel.raw_order_parameter.add_(0.1 * torch.eye(kernel.chain.size))
    assert float(gradient()) > 1e-3


def test_wide_layers_below_are_the_last_layer_alone():
    x, y = data()
    last = SaddlePoint().fit(model_of(ConvolutionalRenormalizedKernel("identity", 9.0, **GEOMETRY), x, y))
    errors = []
    for width in (1e3, 1e4):
        wide = SaddlePoint().fit(model_of(ConvolutionalRenormalizedKernel("identity", [width, 9.0], **GEOMETRY), x, y))
        errors.append(float((wide.predict(x + 0.1)[0] - last.predict(x + 0.1)[0]).abs().max()))
    assert errors[1] < 2e-3 and errors[0] / errors[1] == pytest.approx(10, rel=0.1)  # one over the width
    three = {"image_shape": (1, 8), "kernel_size": [(2,), (2,), (2,)], "stride": [2, 1, 1]}
    kernel = ConvolutionalRenormalizedKernel("identity", [math.inf, 7.0, 9.0], **three)
    found = SaddlePoint().fit(model_of(kernel, x, y)).order_parameters["E"]
    assert torch.equal(found[0], torch.eye(4)) and float((found[1] - torch.eye(4)).abs().max()) > 0.1


def test_other_theories_take_the_chain():
    x, y = data()
    model = model_of(ConvolutionalRenormalizedKernel("identity", [6.0, 9.0], **GEOMETRY), x, y)
    infinite, free = InfiniteWidth().fit(model), FreeScale().fit(model)
    expected = model.covar_module.blocks(x).to_dense() + 0.1 * torch.eye(25)
    mean = model.covar_module.blocks(x + 0.1, x).to_dense() @ torch.linalg.solve(expected, y)
    torch.testing.assert_close(infinite.predict(x + 0.1)[0], mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(free.order_parameters["r"], free.readout_norm)
    scaled = free.readout_norm * (expected - 0.1 * torch.eye(25)) + 0.1 * torch.eye(25)
    mean = free.readout_norm * model.covar_module.blocks(x + 0.1, x).to_dense() @ torch.linalg.solve(scaled, y)
    torch.testing.assert_close(free.predict(x + 0.1)[0], mean, rtol=1e-7, atol=1e-9)


def test_networks_and_back():
    x, y = data()
    model = model_of(ConvolutionalRenormalizedKernel("identity", [6.0, 9.0], **GEOMETRY), x, y)
    network = network_from_model(model)
    assert network.width == (6, 9) and len(network.stack) == 2
    again = model_from_network(network, x, y, 0.1)
    assert again.covar_module.chain.sizes == model.covar_module.chain.sizes == (4, 3)
    torch.testing.assert_close(again.covar_module(x).to_dense(), model.covar_module(x).to_dense(), rtol=1e-12, atol=0)


def sampled_case(name):
    """A case of a network whose posterior was sampled, and its arrays."""
    folder = Path(__file__).resolve().parents[1] / "data" / "convolution"
    (case,) = [case for case in json.loads((folder / "finite_networks.json").read_text()) if case["id"] == name]
    with np.load(folder / case["arrays"]) as arrays:
        return case, [torch.as_tensor(arrays[name].astype(float)) for name in ("X", "y", "Xt", "yt")]


@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_the_mixture_over_the_chain_is_the_sampled_network(readout):
    """Linear networks at any width: Wishart matrices weighted by the likelihood give the sampled error, to 1.5 %.

    Matrices from standard normal numbers, moved by steps that leave those invariant (Crank and Nicolson) and accepted
    by the likelihood of the training targets; 15,000 steps leave half a percent of Monte Carlo error.
    """
    case, (x, y, test_x, test_y) = sampled_case(f"convolution_stacked_{readout}")
    geometry = {name: case[name] for name in ("image_shape", "kernel_size", "stride")}
    kernel = ConvolutionalRenormalizedKernel("identity", case["widths"], readout=readout, **geometry)
    chain, size, count = kernel.chain, kernel.chain.sizes[0], len(x)
    generator, step = torch.Generator().manual_seed(5), 0.4
    points, unit = torch.cat([x, test_x]), torch.eye(size)
    with torch.no_grad():
        pairs = [0.5 * (a.outer(b) + b.outer(a)) for a in unit for b in unit]
        H = torch.stack([kernel.at_matrix(pair)(points).to_dense().flatten() for pair in pairs])

        def at(normals):
            G = chain([z.T @ z / n for z, n in zip(normals, case["widths"], strict=True)])
            K = (G.flatten() @ H).unflatten(0, (2 * count, 2 * count))
            root = torch.linalg.cholesky(K[:count, :count] + case["temperature"] * torch.eye(count))
            half = torch.linalg.solve_triangular(root, torch.cat([y[:, None], K[:count, count:]], 1), upper=False)
            return float(-root.diagonal().log().sum() - 0.5 * half[:, 0].square().sum()), K, half

        normals = [torch.randn(n, own, generator=generator) for n, own in zip(case["widths"], chain.sizes, strict=True)]
        state, errors = at(normals), []
        for number in range(15_000):
            moved = [math.sqrt(1 - step**2) * z + step * torch.randn(z.shape, generator=generator) for z in normals]
            trial = at(moved)
            if torch.rand((), generator=generator).log() < trial[0] - state[0]:
                normals, state = moved, trial
            if number >= 2_000 and number % 10 == 0:
                _, K, half = state
                variance = K[count:, count:].diagonal() - half[:, 1:].square().sum(0)
                errors.append(((test_y - half[:, 1:].T @ half[:, 0]).square() + variance).mean())
    assert float(torch.stack(errors).mean()) == pytest.approx(case["measured"]["mse"]["mean"], rel=0.015)


def test_bad_problems_are_refused():
    blocks, y = DenseBlocks.of(torch.eye(3)[None, None]), torch.ones(3)
    chain = LinearChain([torch.ones(1, 1, 1)], 1)
    with pytest.raises(ValueError, match=r"width: expected shape \(..., 2\), a number for each layer, got \(1,\)"):
        solve_chain_order_parameters(blocks, y, chain, width=[3.0])
    with pytest.raises(ValueError, match="temperature: expected > 0 for matrices, got 0"):
        solve_chain_order_parameters(blocks, y, chain, width=[3.0, 3.0], temperature=0.0)
    with pytest.raises(ValueError, match=r"targets: expected shape \(..., 3\), got \(2,\)"):
        solve_chain_order_parameters(blocks, y[:2], chain, width=[3.0, 3.0])
    huge = DenseBlocks.of(-5.0 * torch.eye(3)[None, None])
    with pytest.raises((ConvergenceError, ValueError, ArithmeticError)):
        solve_chain_order_parameters(huge, y, chain, width=[3.0, 3.0], temperature=0.1)
