"""Stacked linear convolutions, renormalized in every layer: against random networks, and limits that are known."""

from __future__ import annotations

import math

import pytest
import torch

from torch_propkernel.kernels import ConvolutionalNNGPKernel, ConvolutionalRenormalizedKernel
from torch_propkernel.kernels.patch_chain import patch_chain
from torch_propkernel.networks import ConvolutionalNetwork
from torch_propkernel.order_parameters import LinearChain

pytestmark = pytest.mark.usefixtures("in_double_precision")

GEOMETRIES = [
    {"image_shape": (1, 8), "kernel_size": [(2,), (2,)], "stride": [2, 1]},
    {"image_shape": (2, 9), "kernel_size": [(3,), (2,)], "stride": [2, 1], "padding": [0, 1]},
    {"image_shape": (1, 5, 4), "kernel_size": [(2, 2), (2, 2)], "stride": [1, 3]},  # sites that no patch covers
    {"image_shape": (1, 10), "kernel_size": [(3,), (2,), (2,)], "stride": [2, 1, 1], "padding": [0, 1, 0]},
]


def points(number, columns, seed=0):
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(seed))


def positive(size, seed, batch=()):
    root = torch.randn(*batch, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.eye(size) + 0.3 * root @ root.mT


def covariance_of_units(kernel, x):
    """The variance at one point for each entry (a, b) of the lowest matrix, ``r x r``."""
    size = kernel.chain.sizes[0]
    H = torch.zeros(size, size)
    for a in range(size):
        for b in range(size):
            matrix = torch.zeros(size, size)
            matrix[a, b] = 1.0
            H[a, b] = kernel.at_matrix(0.5 * (matrix + matrix.mT))(x).to_dense().squeeze()
    return H


def chained(geometry, readout, **kwargs):
    depth = len(geometry["kernel_size"])
    weights = [1.5, 0.8, 1.2, 3.0][: depth + 1]
    widths = [3.0, 4.0, 2.0][:depth]
    return ConvolutionalRenormalizedKernel(
        "identity", widths, readout=readout, weight_variance=weights, **geometry, **kwargs
    ), weights


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_at_the_identity_it_is_the_infinitely_wide_network(geometry, readout):
    kernel, weights = chained(geometry, readout, bias_variance=[0.3, 0.0, 0.0][: len(geometry["kernel_size"])])
    x = points(4, math.prod(geometry["image_shape"]))
    infinite = ConvolutionalNNGPKernel(
        "identity",
        readout=readout,
        weight_variance=weights,
        bias_variance=kernel.blocks.bias_variance.flatten().detach(),
        **geometry,
    )
    expected = infinite(x).to_dense()
    torch.testing.assert_close(kernel(x).to_dense(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kernel.blocks(x).to_dense(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kernel(x, diag=True), expected.diagonal(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_only_the_last_matrix_is_the_kernel_of_the_last_layer(geometry, readout):
    """Two routes: down the chain to the first layer's patches, and up the recursion to the last layer's."""
    kernel, weights = chained(geometry, readout)
    last = ConvolutionalRenormalizedKernel(
        "identity", 4.0, readout=readout, weight_variance=weights, **geometry
    )  # widths below are infinite
    assert last.chain.depth == 1
    matrix = positive(last.chain.size, seed=3)
    units = [torch.eye(size) for size in kernel.chain.sizes[:-1]]
    kernel.order_parameter = kernel.chain.tensor([*units, matrix])
    last.order_parameter = matrix.unsqueeze(0)
    x = points(4, math.prod(geometry["image_shape"]))
    torch.testing.assert_close(kernel(x).to_dense(), last(x).to_dense(), rtol=1e-9, atol=1e-12)  # expm of logm


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("readout", ["dense", "pooled"])
def test_covariance_at_given_weights_above_the_first_layer(geometry, readout):
    """f = sum over first-layer patches of u_b . h_b: with all upper weights fixed, Q_1 is the Gram matrix of u."""
    depth, columns = len(geometry["kernel_size"]), math.prod(geometry["image_shape"])
    channels = [40, 30, 50][:depth]
    network = ConvolutionalNetwork(
        "identity", channels=channels, readout=readout, generator=torch.Generator().manual_seed(1), **geometry
    )
    kernel = ConvolutionalRenormalizedKernel("identity", channels, readout=readout, **geometry)
    first, B_1 = network.stack[0], network.stack[0].num_patches
    # u: output of the layers above for each unit impulse of (channel, patch) of the first layer
    upper = [w * w.shape[-1] ** -0.5 for w, _ in network.layers()[1:]]
    state = torch.eye(channels[0] * B_1)
    with torch.no_grad():
        for patches, weight in zip(network.stack[1:], upper, strict=True):
            state = (patches(state) @ weight.mT).mT.flatten(-2)
        if readout == "pooled":
            state = state.unflatten(-1, (channels[-1], -1)).mean(-1)
        u = (state @ network.readout).flatten().unflatten(0, (channels[0], B_1)) * network.num_units**-0.5
        Q = u.mT @ u * network.num_patches  # the kernel's blocks carry 1 / B_L
        # the chain of S_l: the mean of Q_1 over the lowest weights above the first layer, at these upper ones
        x = points(3, columns)
        cut = first(x)
        exact = torch.einsum("ab,iak,jbk->ij", Q, cut, cut) / cut.shape[-1] / network.num_patches
        by_blocks = kernel.blocks.weighted(x, x, Q)
    torch.testing.assert_close(by_blocks, exact, rtol=1e-12, atol=1e-14)
    basis, chain = patch_chain(network.stack, readout == "pooled")
    outside = Q - basis @ (basis.mT @ Q @ basis) @ basis.mT
    assert float(outside.abs().max()) < 1e-12 * float(Q.abs().max())  # Q_1 lives on the chain's basis
    assert chain.sizes == kernel.chain.sizes


@pytest.mark.parametrize(("geometry", "readout"), [(GEOMETRIES[0], "dense"), (GEOMETRIES[3], "pooled")])
def test_the_law_of_finite_networks_is_the_mixture_over_the_chain(geometry, readout):
    """Fourth moments of f at one point: 3 K_R^2 averaged over Wishart matrices in every layer, 100,000 networks."""
    kernel, weights = chained(geometry, readout)
    depth = kernel.chain.depth
    widths = [int(n) for n in kernel.width.flatten()]
    generator = torch.Generator().manual_seed(3)
    network = ConvolutionalNetwork(
        "identity", channels=widths, readout=readout, weight_variance=weights, batch_shape=(100_000,),
        generator=generator, **geometry,
    )  # fmt: skip
    x = points(1, math.prod(geometry["image_shape"]))
    with torch.no_grad():
        fourth = network(x).flatten() ** 4
        draws = [
            torch.randn(100_000, n, size, generator=generator)
            for n, size in zip(widths, kernel.chain.sizes, strict=True)
        ]
        # A chain of Gram matrices, singular for few channels: written out with E_l^(1/2) = the draws themselves.
        G = draws[-1].mT @ draws[-1] / widths[-1]
        for level in range(depth - 2, -1, -1):
            B = kernel.chain.maps[level]
            mean = torch.einsum("tac,nab,tbd->ncd", B, G, B)
            values, vectors = torch.linalg.eigh(mean)
            root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
            half = root @ draws[level].mT
            G = half @ half.mT / widths[level]
        H = covariance_of_units(kernel, x)
        expected = 3.0 * torch.einsum("nab,ab->n", G, H) ** 2
    error = math.hypot(fourth.std() / math.sqrt(len(fourth)), expected.std() / math.sqrt(len(expected)))
    assert abs(fourth.mean() - expected.mean()) < 4 * error
    gaussian = 3.0 * float(kernel(x).to_dense().detach()) ** 2
    assert abs(fourth.mean() - gaussian) > 10 * error


def test_a_chain_follows_its_definition():
    """Against the inverse: with roots by another factorization, E = L^-1 G L^-T is similar to Lambda^-1 G Lambda^-T."""
    maps = [torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))]
    chain = LinearChain(maps, 4)
    matrices = [positive(5, 1), positive(4, 2)]
    G = chain(matrices)
    mean = sum(B.T @ matrices[1] @ B for B in maps[0])
    torch.testing.assert_close(
        torch.linalg.eigvals(torch.linalg.solve(mean, G)).real.sort()[0], torch.linalg.eigvalsh(matrices[0]), rtol=1e-9,
        atol=0,
    )  # fmt: skip
    twice = chain([2.0 * matrices[0], matrices[1]])
    torch.testing.assert_close(twice, 2.0 * G, rtol=1e-12, atol=0)
    whole = chain.tensor(matrices)
    assert whole.shape == (2, 5, 5) and whole[1, 4].tolist() == [0, 0, 0, 0, 1]
    for own, back in zip(matrices, chain.matrices(whole), strict=True):
        assert torch.equal(own, back)
    with pytest.raises(ValueError, match=r"maps: expected \(3,\) rows, the columns of the next ones, got \(4,\)"):
        LinearChain(maps, 3)


def test_what_has_no_chain():
    geometry = {"image_shape": (1, 8), "kernel_size": [(2,), (2,)], "stride": [2, 1]}
    with pytest.raises(ValueError, match="bias_variance: expected zeros above the first of several renormalized"):
        ConvolutionalRenormalizedKernel("identity", [5, 4], **geometry, bias_variance=[0.1, 0.1])
    other = ConvolutionalRenormalizedKernel("relu", [5, 4], **geometry)  # the last layer alone
    assert other.chain.depth == 1 and other.lower_width == (5,) and other.width.item() == 4
    own = ConvolutionalRenormalizedKernel("identity", [5, 4], **geometry)
    assert own.chain.sizes == (4, 3) and own.order_parameter.shape == (2, 4, 4)
