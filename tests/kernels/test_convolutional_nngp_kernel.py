"""Kernels of convolutional networks: against loops over patches, random networks and fully connected kernels."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

from torch_propkernel import Erf, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import Sign
from torch_propkernel.kernels import ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel, Patches, block_kernel
from torch_propkernel.networks import ConvolutionalNetwork

pytestmark = pytest.mark.usefixtures("in_double_precision")


def points(number, columns, seed=0):
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(seed))


GEOMETRIES = [
    {"image_shape": (2, 6), "kernel_size": 3},
    {"image_shape": (1, 7), "kernel_size": 3, "stride": 2, "padding": 1},
    {"image_shape": (1, 4, 6), "kernel_size": 2, "padding": (1, 0)},
    {"image_shape": (2, 5, 4), "kernel_size": (3, 2), "stride": (1, 2)},
    {"image_shape": (1, 5, 5), "kernel_size": 2, "stride": 2},  # the last row and column are not read
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_patches_are_those_of_torch_unfold(geometry):
    patches = Patches.of(**geometry)
    shape = patches.image_shape
    x = points(3, patches.num_inputs)
    image = x.unflatten(-1, shape if len(shape) == 3 else (shape[0], 1, shape[1]))
    two = [(1, *v) if len(v) == 1 else v for v in (patches.kernel_size, patches.stride)]
    margin = (0, *patches.padding) if len(patches.padding) == 1 else patches.padding
    expected = torch.nn.functional.unfold(image, two[0], padding=margin, stride=two[1]).mT  # P x B x k
    assert torch.equal(patches(x), expected)
    assert expected.shape[1:] == (patches.num_patches, patches.num_entries)


def by_loops(kernel, x, z, weights):
    """sum_ab W_ab K_ab from the definition, one pair of patches of one pair of images at a time."""
    first, second = kernel.patches(x), kernel.patches(z)
    w_0, w_1 = kernel.weight_variance.flatten().tolist()
    b_0 = float(kernel.bias_variance.flatten()[0])
    size, count = first.shape[-1], kernel.num_blocks
    total = torch.zeros(len(x), len(z))
    for i in range(len(x)):
        for j in range(len(z)):
            for a in range(count):
                for b in range(count):
                    p, q = first[i, a], second[j, b]
                    triple = [w_0 * (u @ v) / size + b_0 for u, v in ((p, p), (p, q), (q, q))]
                    total[i, j] += (
                        weights[a, b] * w_1 / count * kernel.activation.dual(*(t.reshape(1) for t in triple))[0]
                    )
    return total


@pytest.mark.parametrize("geometry", GEOMETRIES[:4])
@pytest.mark.parametrize("readout", ["dense", "pooled"])
@pytest.mark.parametrize("tile", [1, 2**22])
def test_the_covariance_is_the_sum_over_patches(geometry, readout, tile, monkeypatch):
    monkeypatch.setattr(block_kernel, "_TILE", tile)
    kernel = ConvolutionalNNGPKernel("erf", **geometry, readout=readout, weight_variance=[1.5, 3.0], bias_variance=0.3)
    x, z = points(3, kernel.patches.num_inputs), points(2, kernel.patches.num_inputs, seed=1)
    size = kernel.num_blocks
    weights = torch.eye(size) if readout == "dense" else torch.ones(size, size) / size
    for first, second in ((x, x), (x, z)):
        expected = by_loops(kernel, first, second, weights)
        torch.testing.assert_close(kernel(first, second).to_dense(), expected, rtol=1e-12, atol=1e-14)
    diagonal = by_loops(kernel, x, x.flip(0), weights).diagonal()
    torch.testing.assert_close(kernel(x, x.flip(0), diag=True), diagonal, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kernel(x, diag=True), kernel(x).to_dense().diagonal(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("activation", [Erf(), ReLU()])
@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_random_networks_have_this_covariance(activation, readout):
    """40,000 networks with two channels; the largest of six deviations, in standard errors."""
    geometry = {"image_shape": (1, 3, 4), "kernel_size": 2, "stride": 1, "padding": (1, 0), "readout": readout}
    variances = {"weight_variance": [1.5, 3.0], "bias_variance": 0.3}
    network = ConvolutionalNetwork(
        activation,
        channels=2,
        batch_shape=(40_000,),
        generator=torch.Generator().manual_seed(3),
        **geometry,
        **variances,
    )
    x = points(3, 12)
    with torch.no_grad():
        values = network(x)
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        kernel = ConvolutionalNNGPKernel(activation, **geometry, **variances)
        deviation = (products.mean(0) - kernel(x).to_dense()) / error
        # The other readout's kernel is far away: the test can fail.
        other = {**geometry, "readout": "pooled" if readout == "dense" else "dense"}
        wrong = (products.mean(0) - ConvolutionalNNGPKernel(activation, **other, **variances)(x).to_dense()) / error
    assert float(deviation.abs().max()) < 4.5 and float(wrong.abs().max()) > 10


def test_the_law_of_a_finite_network_is_the_mixture_over_the_order_parameter():
    """Fourth moments of linear networks, which the infinite width has 3 k^2: averages over the Wishart law of Q."""
    geometry = {"image_shape": (1, 4), "kernel_size": 2}
    network = ConvolutionalNetwork(
        "identity", channels=3, batch_shape=(200_000,), generator=torch.Generator().manual_seed(3), **geometry
    )
    x = points(1, 4)
    with torch.no_grad():
        fourth = network(x).flatten() ** 4
    kernel = ConvolutionalRenormalizedKernel("identity", 3.0, **geometry)
    generator = torch.Generator().manual_seed(4)
    readout = torch.randn(200_000, 3, 2, generator=generator)  # a readout's Gram matrix: N degrees of freedom
    covariances = readout.mT @ readout / 3.0
    with torch.no_grad():
        blocks = [[kernel.at(_unit(a, b))(x).to_dense().item() for b in range(2)] for a in range(2)]
    expected = 3.0 * torch.einsum("nab,ab->n", covariances, torch.tensor(blocks)) ** 2
    error = math.hypot(fourth.std() / math.sqrt(len(fourth)), expected.std() / math.sqrt(len(expected)))
    assert abs(fourth.mean() - expected.mean()) < 4 * error
    assert abs(fourth.mean() - 3.0 * torch.tensor(blocks).diagonal().sum() ** 2) > 10 * error  # not Gaussian


def _unit(a, b):
    matrix = torch.zeros(1, 2, 2)
    matrix[0, a, b] = 1.0
    return 0.5 * (matrix + matrix.mT)


def test_one_patch_is_the_fully_connected_kernel():
    x = points(5, 6)
    variances = {"weight_variance": [1.5, 3.0], "bias_variance": 0.3}
    convolution = ConvolutionalNNGPKernel("gelu", (2, 3), 3, **variances)
    torch.testing.assert_close(convolution(x).to_dense(), NNGPKernel("gelu", **variances)(x).to_dense())
    renormalized = ConvolutionalRenormalizedKernel("gelu", 7.0, (2, 3), 3, **variances)
    one = RenormalizedNNGPKernel("gelu", 7.0, **variances)
    renormalized.order_parameter, one.order_parameter = torch.full((1, 1, 1), 0.6), 0.6
    torch.testing.assert_close(renormalized(x).to_dense(), one(x).to_dense(), rtol=1e-13, atol=0)


def test_equal_patches_of_one_image_meet_exactly():
    """The sign kernel has a root at coincident rows: dense and elementwise diagonals agree there to rounding."""
    kernel = ConvolutionalNNGPKernel(Sign(), (1, 4, 4), 2)
    x = points(4, 16)
    torch.testing.assert_close(kernel(x).to_dense().diagonal(), torch.ones(4), rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel(x, diag=True), torch.ones(4), rtol=1e-14, atol=0)


def test_permuted_patches_give_a_permuted_covariance():
    """Images whose patches are exchanged, under weights that are exchanged alike."""
    kernel = ConvolutionalRenormalizedKernel("erf", 9.0, (1, 6), 2)
    root = points(3, 3, seed=5)
    kernel.order_parameter = torch.eye(3) + root @ root.mT
    x, order = points(4, 6), torch.tensor([2, 0, 1])
    turned = x.unflatten(-1, (3, 2))[:, order].flatten(1)
    expected = kernel(x).to_dense()
    kernel.order_parameter = kernel.order_parameter.detach()[:, order][:, :, order]
    torch.testing.assert_close(kernel(turned).to_dense(), expected, rtol=1e-9, atol=1e-12)  # expm of logm


def test_relevances_and_gradients():
    kernel = ConvolutionalNNGPKernel("erf", (1, 4), 2, stride=1, ard_num_dims=4, bias_variance=0.2)
    kernel.ard_weights = torch.tensor([1.0, 2.0, 0.5, 0.5])
    plain = ConvolutionalNNGPKernel("erf", (1, 4), 2, stride=1, bias_variance=0.2)
    x = points(3, 4)
    expected = plain(x * kernel.ard_weights.detach().sqrt()).to_dense()
    torch.testing.assert_close(kernel(x).to_dense(), expected, rtol=1e-13, atol=0)
    torch.autograd.gradcheck(lambda x: kernel(x).to_dense(), (x.requires_grad_(),))
    kernel(x).to_dense().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in kernel.parameters() if p.requires_grad)


def test_batches_of_kernels_and_of_images():
    kernel = ConvolutionalRenormalizedKernel(
        "relu", 9.0, (1, 4, 4), 2, batch_shape=torch.Size([2]), bias_variance=torch.tensor([[0.1], [0.5]])
    )
    x = points(5, 16).expand(2, -1, -1)
    whole = kernel(x).to_dense()
    for index in range(2):
        torch.testing.assert_close(kernel[index](x[index]).to_dense(), whole[index], rtol=1e-13, atol=0)
        torch.testing.assert_close(kernel[index](x[index], diag=True), whole[index].diagonal(), rtol=1e-13, atol=0)
    images = points(10, 16).unflatten(0, (2, 5))
    single = ConvolutionalRenormalizedKernel("relu", 9.0, (1, 4, 4), 2)
    torch.testing.assert_close(single(images).to_dense()[1], single(images[1]).to_dense(), rtol=1e-13, atol=0)


def test_a_pool_has_one_number():
    kernel = ConvolutionalRenormalizedKernel("erf", 9.0, (1, 6), 2, readout="pooled")
    kernel.order_parameter = torch.full((1, 1, 1), 2.0)
    x = points(4, 6)
    infinite = ConvolutionalNNGPKernel("erf", (1, 6), 2, readout="pooled")
    torch.testing.assert_close(kernel(x).to_dense(), 2.0 * infinite(x).to_dense(), rtol=1e-12, atol=0)


def test_what_trains():
    names = {name for name, p in ConvolutionalNNGPKernel("erf", (1, 4), 2).named_parameters() if p.requires_grad}
    assert "raw_readout_variance" in names
    kernel = ConvolutionalRenormalizedKernel("erf", 5.0, (1, 4), 2)
    names = {name for name, p in kernel.named_parameters() if p.requires_grad}
    assert names == {"raw_order_parameter", "blocks.raw_hidden_weight_variance"}
    model = gpytorch.kernels.ScaleKernel(kernel)
    assert model(points(3, 4)).shape == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"readout": "mean"}, r"readout: expected one of \('dense', 'pooled'\), got 'mean'"),
        (
            {"image_shape": (4,)},
            r"image_shape: expected \(channels, length\) or \(channels, rows, columns\), got \(4,\)",
        ),
        ({"kernel_size": 5}, r"kernel_size: expected at most the padded image's size \(4,\), got \(5,\)"),
        ({"padding": -1}, "padding: expected a whole number >= 0, got -1"),
        ({"stride": 0}, "stride: expected a whole number >= 1, got 0"),
        ({"bias_variance": -1.0}, "bias_variance"),
    ],
)
def test_bad_geometry_is_refused(arguments, message):
    arguments = {"image_shape": (1, 4), "kernel_size": 2} | arguments
    for build in (
        lambda **kw: ConvolutionalNNGPKernel("erf", **kw),
        lambda **kw: ConvolutionalNetwork("erf", channels=2, **kw),
    ):
        with pytest.raises(ValueError, match=message):
            build(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"x: expected 4 columns, an image of shape \(1, 4\) flattened, got 5"):
        ConvolutionalNNGPKernel("erf", (1, 4), 2)(points(3, 5)).to_dense()
    with pytest.raises(TypeError, match="depth: expected the lists"):
        ConvolutionalNNGPKernel("erf", (1, 4), 2, depth=2)
