"""Stacked convolutions: against recursions over all positions, wide random networks and fully connected kernels."""

from __future__ import annotations

import math

import pytest
import torch

from torch_propkernel import NNGPKernel
from torch_propkernel.kernels import ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel, Patches, block_kernel
from torch_propkernel.networks import ConvolutionalNetwork

pytestmark = pytest.mark.usefixtures("in_double_precision")

GEOMETRIES = [
    {"image_shape": (2, 9), "kernel_size": [(3,), (2,)], "stride": [2, 1], "padding": [0, 1]},
    {"image_shape": (1, 5, 4), "kernel_size": [(2, 2), (3, 2)], "stride": 1, "padding": [(1, 0), (1, 0)]},
    {"image_shape": (1, 10), "kernel_size": [(3,), (2,), (3,)], "stride": [None, 1, 1], "padding": [1, 1, 0]},
]


def points(number, columns, seed=0):
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(seed))


def torchs_patches(image, patches):
    """Patches of images ``n x c x (spatial)`` by torch's unfold, ``n x B x c x F``."""
    channels = image.shape[1]
    image = image if image.dim() == 4 else image.unsqueeze(-2)
    size, step, margin = (
        v if len(v) == 2 else (none, *v)
        for v, none in ((patches.kernel_size, 1), (patches.stride, 1), (patches.padding, 0))
    )
    return torch.nn.functional.unfold(image, size, stride=step, padding=margin).mT.unflatten(-1, (channels, -1))


def by_positions(kernel, x):
    """K_ab of all pairs of patches, ``B x B x n x n``: layer by layer over all positions of a layer at once."""
    w, b = kernel.weight_variance.flatten().detach(), kernel.bias_variance.flatten().detach()
    first = kernel.stack[0]
    cut = torchs_patches(x.unflatten(-1, first.image_shape), first).flatten(-2)
    C = w[0] * torch.einsum("iak,jbk->abij", cut, cut) / cut.shape[-1] + b[0]
    for layer in range(1, kernel.depth + 1):
        variance = torch.einsum("aaii->ai", C)
        kappa = kernel.activation.dual(variance[:, None, :, None], C, variance[None, :, None, :])
        if layer == kernel.depth:
            return w[layer] * kappa / kernel.num_blocks
        patches = kernel.stack[layer]
        shape = patches.image_shape[1:]
        sites = torchs_patches(torch.arange(1.0, 1 + math.prod(shape)).reshape(1, 1, *shape), patches)[0, :, 0].long()
        padded = torch.zeros(len(kappa) + 1, len(kappa) + 1, *kappa.shape[2:])
        padded[1:, 1:] = kappa
        total = sum(padded[sites[:, t]][:, sites[:, t]] for t in range(sites.shape[-1]))
        C = w[layer] * total / sites.shape[-1] + b[layer]
    return None


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("activation", ["erf", "relu", "identity"])
@pytest.mark.parametrize("tile", [1, 2**22])
def test_the_recursion_over_positions(geometry, activation, tile, monkeypatch):
    monkeypatch.setattr(block_kernel, "_TILE", tile)
    depth = len(geometry["kernel_size"])
    variances = {"weight_variance": [1.5, 0.8, 1.2, 3.0][: depth + 1], "bias_variance": [0.3, 0.0, 0.2][:depth]}
    x, z = points(4, math.prod(geometry["image_shape"])), points(2, math.prod(geometry["image_shape"]), seed=1)
    for readout in ("dense", "pooled"):
        kernel = ConvolutionalNNGPKernel(activation, **geometry, readout=readout, **variances)
        blocks = by_positions(kernel, torch.cat([x, z]))
        expected = torch.einsum("aaij->ij", blocks) if readout == "dense" else blocks.sum((0, 1)) / kernel.num_blocks
        torch.testing.assert_close(kernel(x).to_dense(), expected[:4, :4], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(kernel(x, z).to_dense(), expected[:4, 4:], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(kernel(x, diag=True), expected.diagonal()[:4], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(kernel(x[:2], z, diag=True), expected[:2, 4:].diagonal(), rtol=1e-12, atol=1e-14)
    weights = points(kernel.num_blocks, kernel.num_blocks, seed=2)
    weights = weights + weights.mT
    mixed = torch.einsum("ab,abij->ij", weights, blocks[..., :4, :4])
    torch.testing.assert_close(kernel.weighted(x, x, weights), mixed, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("activation", "readout"), [("erf", "dense"), ("relu", "pooled"), ("gelu", "dense")])
def test_wide_random_networks_have_this_covariance(activation, readout):
    """2,000 networks: the largest of six deviations in standard errors, and 2 % for 50 channels below."""
    geometry = {"image_shape": (1, 4, 4), "kernel_size": [(2, 2), (2, 2)], "stride": [1, 1], "padding": [0, 1]}
    variances = {"weight_variance": [1.5, 1.2, 3.0], "bias_variance": [0.3, 0.1]}
    generator = torch.Generator().manual_seed(3)
    network = ConvolutionalNetwork(
        activation,
        channels=[300, 2],
        batch_shape=(3_000,),
        generator=generator,
        readout=readout,
        **geometry,
        **variances,
    )
    x = points(3, 16)
    with torch.no_grad():
        values = torch.cat([network(x), -network.sample_prior_(generator)(x)])
        products = values.unsqueeze(-1) * values.unsqueeze(-2)
        error = products.std(0) / math.sqrt(len(products))
        matrices = [
            ConvolutionalNNGPKernel(activation, readout=kind, **geometry, **variances)(x).to_dense()
            for kind in ("dense", "pooled")
        ]
    right, wrong = matrices if readout == "dense" else matrices[::-1]
    assert bool(((products.mean(0) - right).abs() < 4.5 * error + 0.02 * right.diagonal().max()).all())
    assert float(((products.mean(0) - wrong) / error).abs().max()) > 10


@pytest.mark.parametrize("activation", ["erf", "gelu", "relu"])
def test_one_position_is_the_fully_connected_kernel(activation):
    variances = {"weight_variance": [1.5, 0.7, 1.1, 3.0], "bias_variance": [0.3, 0.2, 0.1]}
    x = points(5, 12)
    convolution = ConvolutionalNNGPKernel(activation, (2, 3, 2), [(3, 2), (1, 1), (1, 1)], **variances)
    expected = NNGPKernel(activation, depth=3, **variances)(x).to_dense()
    torch.testing.assert_close(convolution(x).to_dense(), expected, rtol=1e-13, atol=0)
    renormalized = ConvolutionalRenormalizedKernel(activation, [30, 20, 7], (2, 3, 2), [(3, 2), 1, 1], **variances)
    renormalized.order_parameter = torch.full((1, 1, 1), 0.6)
    assert renormalized.width.item() == 7 and renormalized.lower_width == (30, 20)
    torch.testing.assert_close(renormalized(x).to_dense(), 0.6 * expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_layers_of_size_one_see_their_own_position(readout):
    """The dense kernel is the mean over positions of fully connected ones; a pool adds pairs of positions."""
    variances = {"weight_variance": [1.5, 0.7, 3.0], "bias_variance": [0.3, 0.2]}
    kernel = ConvolutionalNNGPKernel("erf", (1, 6), [(2,), (1,)], readout=readout, **variances)
    x = points(3, 6)
    rows = x.unflatten(-1, (3, 2)).mT.flatten(1).unflatten(-1, (2, 3)).movedim(-1, 0)  # 3 patches x 3 images x 2
    deep = NNGPKernel("erf", depth=2, **variances)
    pairs = [(a, a) for a in range(3)] if readout == "dense" else [(a, b) for a in range(3) for b in range(3)]
    expected = sum(deep(rows[a], rows[b]).to_dense() for a, b in pairs) / (3 if readout == "dense" else 9)
    torch.testing.assert_close(kernel(x).to_dense(), expected, rtol=1e-12, atol=1e-14)


def test_gradients_and_streaming():
    geometry = {"image_shape": (1, 4), "kernel_size": [(2,), (2,)], "stride": 1, "padding": [0, 1]}
    kernel = ConvolutionalRenormalizedKernel("erf", 9.0, **geometry, bias_variance=[0.2, 0.1], ard_num_dims=4)
    root = points(4, 4, seed=5)
    kernel.order_parameter = torch.eye(4) + 0.1 * root @ root.mT
    x = points(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel(x).to_dense(), (x,))

    def gradients():
        kernel.zero_grad()
        kernel(x.detach()).to_dense().square().sum().backward()
        return {name: p.grad.clone() for name, p in kernel.named_parameters() if p.requires_grad}

    whole = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_kernel, "_TILE", 1)
        streamed = gradients()
    assert "raw_order_parameter" in whole and "blocks.raw_ard_weights" in whole
    for name, value in whole.items():
        torch.testing.assert_close(streamed[name], value, rtol=1e-12, atol=1e-14)


def test_batches_of_kernels():
    bias = torch.tensor([[0.1, 0.2], [0.5, 0.3]])
    kernel = ConvolutionalRenormalizedKernel(
        "relu", 9.0, (1, 4, 4), [(2, 2), (2, 2)], [1, 1], batch_shape=torch.Size([2]), bias_variance=bias
    )
    x = points(5, 16).expand(2, -1, -1)
    whole = kernel(x).to_dense()
    for index in range(2):
        single = ConvolutionalRenormalizedKernel(
            "relu", 9.0, (1, 4, 4), [(2, 2), (2, 2)], [1, 1], bias_variance=bias[index]
        )
        torch.testing.assert_close(single(x[index]).to_dense(), whole[index], rtol=1e-13, atol=0)
        torch.testing.assert_close(kernel(x, diag=True)[index], whole[index].diagonal(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": [(2,), (4,)]}, r"layer 2: kernel_size: expected at most .* size \(3,\), got \(4,\)"),
        ({"kernel_size": [(7,), (1,)]}, r"layer 1: kernel_size: expected at most .* size \(6,\), got \(7,\)"),
        (
            {"kernel_size": [(2,), (1,)], "stride": [1, 1, None]},
            "lists of one length, .*'kernel_size': 2, 'stride': 3",
        ),
        ({"kernel_size": [(2,), (1,)], "padding": [(1,)]}, "lists of one length, .*'padding': 1"),
        ({"kernel_size": [(2,), (1,)], "stride": [0, None]}, "layer 1: stride: expected a whole number >= 1, got 0"),
        ({"kernel_size": [(2,), (1,)], "weight_variance": [1.0, 1.0]}, "weight_variance: expected 1 or 3"),
    ],
)
def test_bad_geometry_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalNNGPKernel("erf", (1, 6), **arguments)
    with pytest.raises(ValueError, match=message):
        ConvolutionalNetwork("erf", (1, 6), [3, 2], **arguments)


def test_a_list_of_numbers_is_one_layer():
    message = r"kernel_size: expected 1 or 1 numbers, got \[2, 1\]; sizes of several layers are a list of sequences"
    with pytest.raises(ValueError, match=message):
        ConvolutionalNNGPKernel("erf", (1, 6), [2, 1])
    assert ConvolutionalNNGPKernel("erf", (1, 6, 6), [2, 1]).stack == (Patches.of((1, 6, 6), (2, 1)),)
    assert len(ConvolutionalNetwork("erf", (1, 6), [3, 2], [2, 1]).stack) == 2


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="lists of one length, .*'kernel_size': 2, 'channels': 3"):
        ConvolutionalRenormalizedKernel("erf", [5, 4, 3], (1, 6), [(2,), (1,)])
    with pytest.raises(ValueError, match=r"width: expected one list for several layers, got shape \(2, 2\)"):
        ConvolutionalRenormalizedKernel("erf", torch.ones(2, 2), (1, 6), [(2,), (1,)])
    with pytest.raises(ValueError, match="'kernel_size': 2, 'channels': 1"):
        ConvolutionalNetwork("erf", (1, 6), 5, [(2,), (1,)])
    with pytest.raises(ValueError, match=r"x: expected 6 columns, an image of shape \(1, 6\) flattened, got 5"):
        ConvolutionalNNGPKernel("erf", (1, 6), [(2,), (1,)])(points(3, 5)).to_dense()


def test_one_size_holds_in_every_layer():
    kernel = ConvolutionalRenormalizedKernel("erf", [5, 4], (1, 8), 3, 1, 1)
    assert kernel.blocks.stack == Patches.of_layers((1, 8), [(3,), (3,)], [1, 1], [1, 1])
    assert ConvolutionalNetwork("erf", (2, 8), [5, 4], 3, 1, 1).stack[1].image_shape == (5, 8)
