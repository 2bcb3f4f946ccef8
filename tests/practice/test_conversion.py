"""Kernels and networks turn into each other without loss, and refuse what the other cannot be."""

import math
import warnings

import gpytorch
import pytest
import torch
from gpytorch.kernels import ConstantKernel, RBFKernel, ScaleKernel

from torch_propkernel import (
    ArcCosineKernel,
    Erf,
    NetworkGP,
    NNGPKernel,
    ReliabilityWarning,
    ReLU,
    RenormalizedNNGPKernel,
    fit_order_parameters,
)
from torch_propkernel.activations import Step, Tanh
from torch_propkernel.kernels import BlockRenormalizedKernel, ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.networks import ConvolutionalNetwork, FeatureNetwork, FiniteNetwork
from torch_propkernel.practice import model_from_network, network_from_model

WEIGHTS, BIASES = [0.3, 1.7, 4.1], [0.6, 0.0]


def network(**kwargs):
    arguments = {"weight_variance": WEIGHTS, "bias_variance": BIASES, "dtype": torch.float64} | kwargs
    return FiniteNetwork(Erf(), 3, [20, 10], **arguments)


def data(columns=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, columns, dtype=torch.float64, generator=generator)
    return x, torch.sin(x.sum(-1))


def assert_same_prior(first, second):
    assert (first.activation, first.width, first.input_dim) == (second.activation, second.width, second.input_dim)
    for name in ("weight_variance", "bias_variance", "readout_bias_variance", "input_scale", "active_dims"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None), name
        if one is not None:
            # the kernel keeps logarithms and softmax weights: a few roundings
            torch.testing.assert_close(one, other, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"readout_bias_variance": 0.7},
        {"input_scale": [0.5, 1.0, 1.5]},
        {"active_dims": [4, 0, 1], "input_scale": [0.2, 0.8, 2.0], "readout_bias_variance": 0.1},
    ],
)
def test_network_to_model_and_back_is_exact(extra, default):
    net, (x, y) = network(**extra), data(5 if "active_dims" in extra else 3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)  # the model is built in the network's dtype, whatever the default is
    try:
        model = model_from_network(net, x, y, temperature=0.1)
    finally:
        torch.set_default_dtype(before)
    assert isinstance(model, NetworkGP)
    assert float(model.likelihood.noise.detach()) == pytest.approx(0.1, rel=1e-14)
    if "active_dims" not in extra:
        assert_same_prior(network_from_model(model), net)
    assert_same_prior(network_from_model(model.covar_module, input_dim=3), net)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("extra", [{}, {"active_dims": [4, 0, 1], "input_scale": [0.2, 0.8, 2.0]}])
def test_several_outputs_are_a_multitask_model(extra, default):
    net, (x, _) = network(num_outputs=2, **extra), data(5 if extra else 3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        model = model_from_network(net, x, x[:, :2], temperature=0.1)
    finally:
        torch.set_default_dtype(before)
    assert isinstance(model, MultitaskNetworkGP)
    back = network_from_model(model) if not extra else network_from_model(model.covar_module)
    assert_same_prior(back, net)
    assert back.num_outputs == 2
    draws = network(num_outputs=2, batch_shape=(5_000,), **extra)
    with torch.no_grad():
        values = draws(x).flatten(1)  # P D, outputs the fast index, as in GPyTorch
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        expected = model.covar_module(x).to_dense()
        # two finite layers add O(1/N_1) = 0.05 of the diagonal to the Monte Carlo error
        assert bool(((products.mean(0) - expected).abs() < 4.5 * error + 0.05 * expected.diagonal().max()).all())


def test_several_outputs_with_what_their_theory_has_not():
    x, _ = data()
    with pytest.raises(NotImplementedError, match="no readout bias"):
        model_from_network(network(num_outputs=2, readout_bias_variance=1.0), x, x[:, :2], 0.1)
    with pytest.raises(NotImplementedError, match="'nested'"):
        model_from_network(network(num_outputs=2), x, x[:, :2], 0.1, composition="nested")
    with pytest.raises(ValueError, match=r"y: expected shape \(8, 2\), got \(8,\)"):
        model_from_network(network(num_outputs=2), x, x[:, 0], 0.1)


def test_kernel_to_network_and_back_gives_the_same_covariance():
    x, y = data()
    kernel = RenormalizedNNGPKernel(
        Tanh(), [7, 9], "nested", weight_variance=WEIGHTS, bias_variance=[0.5, 0.2], ard_num_dims=3
    ).double()
    kernel.ard_weights = [1.0, 2.0, 3.0]
    model = model_from_network(network_from_model(kernel), x, y, 0.2, composition="nested")
    torch.testing.assert_close(model.covar_module(x).to_dense(), kernel(x).to_dense(), rtol=1e-12, atol=1e-13)
    assert model.covar_module.width.tolist() == [[7.0, 9.0]]


def test_networks_prior_is_the_models():
    net, (x, y) = network(batch_shape=(5_000,)), data()
    kernel = model_from_network(net, x, y, 0.1).covar_module
    with torch.no_grad():
        values = net(x)
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        expected = kernel(x).to_dense()
        # two finite layers add O(1/N_1) = 0.05 of the diagonal to the Monte Carlo error
        assert bool(((products.mean(0) - expected).abs() < 4.5 * error + 0.05 * expected.diagonal().max()).all())


def test_input_scale_of_another_mean_goes_into_the_weights():
    x, y = data()
    scale = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    back = network_from_model(model_from_network(network(input_scale=scale), x, y, 0.1))
    torch.testing.assert_close(back.input_scale, scale / 3, rtol=1e-14, atol=0.0)
    assert float(back.weight_variance[0]) == pytest.approx(3 * WEIGHTS[0], rel=1e-14)


def test_the_saddle_point_is_that_of_the_network(make_model):
    net, (x, y) = network(), data()
    precisions = [1 / value for value in WEIGHTS]
    other = make_model(x, y, Erf(), net.width, 0.1, precisions=precisions, biases=BIASES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # three inputs; the prediction itself is not judged here
        solution = fit_order_parameters(model_from_network(net, x, y, 0.1))
        expected = fit_order_parameters(other)
    torch.testing.assert_close(solution.order_parameter, expected.order_parameter, rtol=1e-10, atol=0.0)


def test_infinite_kernels_need_a_width():
    kernel = ArcCosineKernel(order=0, depth=2, weight_variance=WEIGHTS).double()
    assert network_from_model(kernel, 3, width=[5, 4]).activation == Step()
    with pytest.raises(ValueError, match="width: expected 2 whole numbers, got none: ArcCosineKernel has none"):
        network_from_model(kernel, 3)
    with pytest.raises(ValueError, match=r"width: expected 2 numbers, one per hidden layer of the kernel, got 5"):
        network_from_model(kernel, 3, width=5)
    with pytest.raises(ValueError, match="width: expected a whole number >= 1, got inf; .* use NNGPKernel"):
        network_from_model(RenormalizedNNGPKernel(ReLU(), math.inf), 3)


def test_scale_kernels_fold_into_the_readout():
    base = RenormalizedNNGPKernel(Erf(), [20], weight_variance=[1.0, 3.0], active_dims=[2, 0])
    kernel = ScaleKernel(ScaleKernel(base)).double()
    kernel.outputscale, kernel.base_kernel.outputscale = 2.0, 5.0
    net = network_from_model(kernel)
    torch.testing.assert_close(net.weight_variance, torch.tensor([1.0, 30.0], dtype=torch.float64), rtol=1e-6, atol=0)
    assert net.active_dims.tolist() == [2, 0] and net.input_dim == 2
    assert net(data()[0]).shape == (8,)


def test_constants_that_are_added_are_the_readouts_bias():
    def constant(value):
        made = ConstantKernel().double()
        made.constant = torch.tensor([value], dtype=torch.float64)
        return made

    base = RenormalizedNNGPKernel(Erf(), [20], weight_variance=[1.0, 3.0], active_dims=[1, 0]).double()
    inner, twice = ScaleKernel(base + constant(0.5)).double(), ScaleKernel(constant(0.2)).double()
    inner.outputscale, twice.outputscale = 2.0, 3.0
    inner.active_dims = torch.tensor([2, 0])  # columns of columns
    kernel, (x, _) = inner + constant(0.7) + twice, data()
    net = network_from_model(kernel)
    assert float(net.readout_bias_variance) == pytest.approx(2.0 * 0.5 + 0.7 + 3.0 * 0.2, rel=1e-12)
    assert net.active_dims.tolist() == [0, 2]
    assert net.weight_variance.tolist() == pytest.approx([1.0, 6.0], rel=1e-6)  # the kernel was built in float32
    again = model_from_network(net, x, x[:, 0], 0.1).covar_module
    torch.testing.assert_close(again(x).to_dense(), kernel(x).to_dense(), rtol=1e-12, atol=0.0)
    with pytest.raises(TypeError, match="nothing but ConstantKernels added .*, got AdditiveKernel"):
        network_from_model(base + RBFKernel(), 3)
    with pytest.raises(ValueError, match=r"expected a kernel without batch shape, got \(2,\)"):
        network_from_model(base + ConstantKernel(batch_shape=torch.Size([2])), 3)


def test_generator_dtype_and_batch_shape():
    kernel = RenormalizedNNGPKernel(Erf(), 20)
    first, second = (network_from_model(kernel, 3, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.hidden, second.hidden)
    assert first.hidden.dtype == kernel.raw_readout_variance.dtype
    assert network_from_model(kernel.double(), 3, batch_shape=(4,)).hidden.shape == (4, 60)


def test_kernels_that_are_no_network_are_refused():
    kernel = NNGPKernel(Erf())
    with pytest.raises(TypeError, match="got AdditiveKernel: a sum, product or other kernel is not the prior of one"):
        network_from_model(kernel + kernel, 3, width=4)
    with pytest.raises(TypeError, match="got RBFKernel"):
        network_from_model(ScaleKernel(RBFKernel()), 3, width=4)
    with pytest.raises(TypeError, match="expected a kernel or a model, got int"):
        network_from_model(3)
    with pytest.raises(ValueError, match=r"expected a kernel without batch shape, got \(2,\)"):
        network_from_model(NNGPKernel(Erf(), batch_shape=torch.Size([2])), 3, width=4)
    with pytest.raises(ValueError, match="input_dim: expected the number of inputs, got None"):
        network_from_model(kernel, width=4)
    with pytest.raises(ValueError, match="input_dim: expected 3, what the kernel reads, got 5"):
        network_from_model(NNGPKernel(Erf(), ard_num_dims=3), 5, width=4)


def test_models_that_are_more_than_their_kernel_are_refused():
    x, y = data()
    likelihood, kernel = gpytorch.likelihoods.GaussianLikelihood(), RenormalizedNNGPKernel(Erf(), 20)
    mean = gpytorch.means.ConstantMean()
    mean.constant = 1.0
    with pytest.raises(ValueError, match="model: expected a mean of zero, got another"):
        network_from_model(NetworkGP(x, y, likelihood, kernel, mean).double())

    class Doubled(NetworkGP):
        def forward(self, x):
            return super().forward(2 * x)

    with pytest.raises(ValueError, match="model: expected a prior covariance that is covar_module's"):
        network_from_model(Doubled(x, y, likelihood, kernel).double())
    plain = NetworkGP(x, y, likelihood, kernel).double()
    with pytest.raises(ValueError, match="input_dim: expected 3, the columns of the model's inputs, got 4"):
        network_from_model(plain, 4)
    plain.outcome_transform = torch.nn.Identity()
    with pytest.raises(ValueError, match="model: expected none with outcome_transform, got Identity"):
        network_from_model(plain)


def test_networks_without_a_kernel_are_refused():
    x, y = data()

    class Other(FeatureNetwork):
        def _features(self, x, hidden):
            return x

    with pytest.raises(NotImplementedError, match="got Other: there is no renormalized kernel"):
        model_from_network(Other(ReLU(), 3, [(2, 3)], 3), x, y, 0.1)
    with pytest.raises(TypeError, match="expected a FiniteNetwork or ConvolutionalNetwork, got Linear"):
        model_from_network(torch.nn.Linear(3, 1), x, y, 0.1)


@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_a_convolutional_network_has_its_kernel(readout):
    """The model's prior is that of many networks: 20,000 draws, in standard errors."""
    kinds = {"weight_variance": [1.5, 3.0], "bias_variance": 0.3, "readout_bias_variance": 0.4, "dtype": torch.float64}
    made = ConvolutionalNetwork(
        ReLU(), (1, 6), 2, 3, 1, 1, readout, batch_shape=(20_000,), generator=torch.Generator().manual_seed(0), **kinds
    )
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = model_from_network(made, x, x[:, 0], 0.1)
    with torch.no_grad():
        values = made(x)
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        assert float(((products.mean(0) - model.covar_module(x).to_dense()) / error).abs().max()) < 4.5
    assert model.covar_module.kernels[0].width.item() == 2.0 and model.likelihood.noise.item() == pytest.approx(
        0.1, rel=1e-12
    )


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("geometry", "extra"),
    [
        ({"kernel_size": 2}, {"readout_bias_variance": 0.7}),
        ({"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)}, {"input_scale": [0.5, 1.0, 1.5, 1.0] * 6}),
        ({"kernel_size": 3, "stride": 1, "padding": 1, "readout": "pooled"}, {"active_dims": list(range(25, 1, -1))}),
        ({"kernel_size": [2, (2, 1)], "stride": 1, "channels": [400, 3], "bias_variance": [0.3, 0.2]}, {}),
    ],
)
def test_convolutional_networks_to_models_and_back(geometry, extra, default):
    geometry = {"image_shape": (2, 3, 4), "channels": 7, "bias_variance": 0.3} | geometry
    weights = [1.5, 0.8, 3.0] if isinstance(geometry["channels"], list) else [1.5, 3.0]
    net = ConvolutionalNetwork(ReLU(), weight_variance=weights, dtype=torch.float64, **geometry, **extra)
    x, y = data(26 if "active_dims" in extra else 24)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        model = model_from_network(net, x, y, temperature=0.1)
    finally:
        torch.set_default_dtype(before)
    for back in (network_from_model(model), network_from_model(model.covar_module)):
        assert_same_prior(back, net)
        assert (back.stack, back.pooled) == (net.stack, net.pooled)
    kernel, again = model.covar_module, model_from_network(back, x, y, temperature=0.1).covar_module
    torch.testing.assert_close(again(x).to_dense(), kernel(x).to_dense(), rtol=1e-12, atol=1e-13)
    # the network, many times over, has this covariance: in standard errors
    many = network_from_model(model, batch_shape=(5_000,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = many(x[:3])
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        assert float(((products.mean(0) - kernel(x[:3]).to_dense()) / error).abs().max()) < 4.5


def test_convolutional_kernels_that_are_a_network():
    kernel = ConvolutionalRenormalizedKernel("erf", 9.0, (1, 6), 3, weight_variance=[1.5, 2.0]).double()
    kernel.order_parameter = 2.0 * torch.eye(2)  # what the data do to the network is no part of it
    scaled = ScaleKernel(kernel).double()
    scaled.outputscale = 3.0
    net = network_from_model(scaled)
    assert net.weight_variance.tolist() == pytest.approx([1.5, 6.0], rel=1e-6) and net.width == (9,)
    infinite = ConvolutionalNNGPKernel("erf", (1, 6), 3)
    assert network_from_model(infinite, width=4).width == (4,)
    with pytest.raises(ValueError, match="expected 1 whole numbers, got none: ConvolutionalNNGPKernel has none"):
        network_from_model(infinite)
    with pytest.raises(ValueError, match="width: expected a whole number >= 1, got 9.5|channels: expected a whole"):
        network_from_model(ConvolutionalRenormalizedKernel("erf", 9.5, (1, 6), 3))
    with pytest.raises(ValueError, match="input_dim: expected 6, what the kernel reads, got 5"):
        network_from_model(kernel, 5)
    with pytest.raises(TypeError, match="got BlockRenormalizedKernel: a sum, product or other kernel is not"):
        network_from_model(BlockRenormalizedKernel([[NNGPKernel("erf")]], width=4), 3)


def test_bad_data_are_refused():
    x, y = data()
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
            model_from_network(network(), x, y, temperature)
    with pytest.raises(ValueError, match=r"x: expected 3 columns, got shape \(8, 2\)"):
        model_from_network(network(), x[:, :2], y, 0.1)
    with pytest.raises(ValueError, match=r"y: expected shape \(..., 8\), got \(7,\)"):
        model_from_network(network(), x, y[1:], 0.1)
    with pytest.raises(ValueError, match="x: expected finite values"):
        model_from_network(network(), x * math.nan, y, 0.1)
    with pytest.raises(TypeError, match="expected one dtype for all tensors"):
        model_from_network(network(), x.float(), y.float(), 0.1)
    with pytest.raises(ValueError, match=r"input_scale: expected numbers > 0 \(use active_dims instead\)"):
        model_from_network(network(input_scale=[0.0, 1.0, 2.0]), x, y, 0.1)
