"""The convolutional network against torch's convolution, against loops and against sums of patch kernels."""

import math

import numpy as np
import pytest
import torch

from torch_propkernel import Erf, ReLU
from torch_propkernel.networks import ConvolutionalNetwork, FiniteNetwork


def network(activation=None, image_shape=(2, 6), channels=3, kernel_size=3, stride=None, **kwargs):
    generator = torch.Generator().manual_seed(0)
    activation = activation or Erf()
    return ConvolutionalNetwork(
        activation, image_shape, channels, kernel_size, stride, dtype=torch.float64, generator=generator, **kwargs
    )


def points(count, dim):
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


GEOMETRIES = [
    ((2, 6), 3, None),
    ((1, 7), 3, 2),
    ((3, 5), 5, None),
    ((1, 4, 6), 2, None),
    ((2, 5, 4), (3, 2), (1, 2)),
    ((1, 5, 5), 2, 2),  # the last row and column are not read
]


@pytest.mark.parametrize(("image_shape", "kernel_size", "stride"), GEOMETRIES)
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_forward_is_torchs_convolution(image_shape, kernel_size, stride, bias):
    net = network(None, image_shape, 3, kernel_size, stride, weight_variance=[2.0, 3.0], bias_variance=bias)
    x = points(4, math.prod(image_shape))
    [(weight, offset)] = net.layers()
    convolve = {2: torch.nn.functional.conv1d, 3: torch.nn.functional.conv2d}[len(image_shape)]
    filters = weight.unflatten(-1, (image_shape[0], *net.patches.kernel_size)) / math.sqrt(weight.shape[-1])
    hidden = torch.erf(convolve(x.unflatten(-1, image_shape), filters, offset, net.patches.stride)).flatten(1)  # (c, b)
    assert hidden.shape[-1] == net.num_features == 3 * net.num_patches
    expected = hidden @ net.readout.squeeze(-1) / math.sqrt(net.num_features)
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-14)


def patch_kernels(net, x, activation):
    """K_ab(x, x') of all pairs of patches by a slow loop, ``B x B x P x P`` (without the readout's variance)."""
    patches = net.patches(x)
    weight, bias = float(net.weight_variance[0]), float(net.bias_variance[0])
    count, kernels = len(x), np.empty((net.num_patches, net.num_patches, len(x), len(x)))

    def covariance(i, a, j, b):
        return weight * float(patches[i, a] @ patches[j, b]) / patches.shape[-1] + bias

    for i, j in np.ndindex(count, count):
        for a, b in np.ndindex(net.num_patches, net.num_patches):
            triple = covariance(i, a, i, a), covariance(i, a, j, b), covariance(j, b, j, b)
            kernels[a, b, i, j] = float(activation.dual(*(torch.tensor(c, dtype=torch.float64) for c in triple)))
    return torch.from_numpy(kernels)


@pytest.mark.parametrize("activation", [Erf(), ReLU()])
@pytest.mark.parametrize(("image_shape", "kernel_size", "stride"), [((2, 6), 3, None), ((1, 3, 4), 2, 1)])
def test_prior_covariance_is_the_mean_patch_kernel(activation, image_shape, kernel_size, stride):
    kwargs = {"weight_variance": [1.5, 3.0], "bias_variance": 0.3, "batch_shape": (40_000,)}
    net = network(activation, image_shape, 2, kernel_size, stride, **kwargs)
    x = points(3, math.prod(image_shape))
    with torch.no_grad():
        values = net(x)
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
    kernels = patch_kernels(net, x, activation)
    expected = 3.0 * kernels.diagonal().sum(-1) / net.num_patches  # diagonal over (a, b)
    assert float(((products.mean(0) - expected) / error).abs().max()) < 4.5


def test_covariance_at_a_fixed_readout_is_the_locally_renormalized_kernel():
    net = network(Erf(), (1, 6), 2, 3, weight_variance=[1.5, 3.0])
    x = points(3, 6)
    hidden = torch.randn(80_000, net.num_hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        values = (net.features(x, hidden) @ net.readout).squeeze(-1)
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        readout = net.readout.reshape(2, net.num_patches)
        order_parameter = readout.T @ readout / 3.0 / 2  # lambda_1 sum_c v_ca v_cb / N_c
    expected = torch.einsum("ab,abij->ij", order_parameter, patch_kernels(net, x, Erf())) * 3.0 / net.num_patches
    assert float(((products.mean(0) - expected) / error).abs().max()) < 4.5
    # the off-diagonal order parameters matter here: without them the test fails
    local = torch.einsum("a,aaij->ij", order_parameter.diagonal(), patch_kernels(net, x, Erf())) * 3.0 / net.num_patches
    assert float(((products.mean(0) - local) / error).abs().max()) > 10


def test_one_patch_is_the_fully_connected_network():
    net = network(None, (2, 5), 4, 5, bias_variance=0.5, batch_shape=(3,))
    dense = FiniteNetwork(Erf(), 10, 4, bias_variance=0.5, batch_shape=(3,), dtype=torch.float64)
    dense.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(points(4, 10)), dense(points(4, 10)), rtol=1e-12, atol=1e-14)


def test_batches_and_gradients():
    net, x = network(batch_shape=(7,), num_outputs=2), points(4, 12)
    assert net(x).shape == (7, 4, 2) and net.readout.shape == (7, 6, 2)
    assert net.width == (3,) and net.depth == 1 and net.num_patches == 2
    single = network()
    assert single.features(x, net.hidden.expand(5, 7, -1)).shape == (5, 7, 4, 6)
    torch.testing.assert_close(single.features(x, net.hidden[2]), net.features(x)[2], rtol=1e-12, atol=1e-14)
    many = torch.stack([x * i for i in range(7)])
    torch.testing.assert_close(net(many)[3], net(many[3])[3], rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda hidden: single.features(x, hidden), (single.hidden,))
    assert "image_shape=(2, 6)" in repr(net)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_shape": (6,)},
            r"image_shape: expected \(channels, length\) or \(channels, rows, columns\), got \(6,\)",
        ),
        ({"image_shape": (1, 0)}, "image_shape: expected a whole number >= 1, got 0"),
        ({"kernel_size": 7}, r"kernel_size: expected at most the padded image's size \(6,\), got \(7,\)"),
        ({"kernel_size": (2, 2)}, r"kernel_size: expected 1 or 1 numbers, got \(2, 2\)"),
        ({"stride": 0}, "stride: expected a whole number >= 1, got 0"),
        ({"channels": math.inf}, "channels: expected a whole number >= 1, got inf"),
        ({"weight_variance": [1.0, 2.0, 3.0]}, "weight_variance: expected 1 or 2 numbers"),
    ],
)
def test_bad_geometry_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match=r"x: expected shape \(..., P, 12\), got \(4, 11\)"):
        network()(points(4, 11))
