"""RenormalizedNNGPKernel: the three compositions of THEORY.md section 4 against the slow recursions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import (
    COMPOSITIONS,
    DUALS,
    hidden_kernels,
    input_covariance,
    leaky_relu,
    nngp,
    renormalized_kernel,
)

from torch_propkernel import Erf, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import GELU, Identity, LeakyReLU, Sin, Tanh

ACTIVATIONS = {
    "erf": Erf(),
    "relu": ReLU(),
    "leaky_relu": LeakyReLU(0.1),
    "identity": Identity(),
    "sin": Sin(),
    "gelu": GELU(),
}
PRECISIONS = (0.7, 1.3, 2.0, 0.9)
BIASES = (0.2, 0.1, 0.3)
ORDER_PARAMETERS = (1.25, 0.8, 1.7)


@pytest.fixture(autouse=True)
def _double_precision():
    """Construction in float64: float32 would round the variances before `.double()`."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(activation, depth, composition, precisions, biases, q, width=10.0, **options):
    kernel = RenormalizedNNGPKernel(
        activation,
        [width] * depth,
        composition=composition,
        weight_variance=[1 / v for v in precisions],
        bias_variance=list(biases),
        **options,
    ).double()
    kernel.initialize(order_parameter=torch.tensor([list(q)], dtype=torch.float64))
    return kernel


def dense(kernel, X1, X2=None) -> np.ndarray:
    X1 = torch.as_tensor(X1)
    with torch.no_grad():
        return kernel(X1, X1 if X2 is None else torch.as_tensor(X2)).to_dense().numpy()


def rows(rng, count=9, N0=5):
    X = rng.normal(size=(count, N0))
    X[3] = X[1]  # duplicate
    X[4] = -X[1]  # antipode
    X[5] = 3 * X[2]  # parallel
    return X


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_nngp_recursion(rng, name, depth, biased):
    X1, X2 = rows(rng, 7), rows(rng, 6)
    X2[0] = X1[0]
    precisions = PRECISIONS[: depth + 1]
    biases = BIASES[:depth] if biased else (0.0,) * depth
    kernel = NNGPKernel(
        ACTIVATIONS[name], depth, weight_variance=[1 / v for v in precisions], bias_variance=list(biases)
    ).double()
    expected = nngp(X1, X2, DUALS[name], precisions, biases)
    np.testing.assert_allclose(dense(kernel, X1, X2), expected, rtol=1e-10, atol=1e-12)


def test_tanh_by_quadrature(rng):
    X = rng.normal(size=(3, 5))
    kernel = NNGPKernel(Tanh(), 1).double()
    # Gauss-Hermite quadrature of tanh (poles at i pi/2) converges slowly; the package controls its error, not to 1e-10
    np.testing.assert_allclose(dense(kernel, X), nngp(X, X, DUALS["tanh"], (1.0, 1.0)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["erf", "relu", "leaky_relu", "identity"])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_compositions(rng, name, composition, depth, biased):
    """Whole blocks, also between different sets of rows: train, test and cross blocks come from one joint truth."""
    X = rows(rng, 12)
    precisions, q = PRECISIONS[: depth + 1], ORDER_PARAMETERS[:depth]
    biases = BIASES[:depth] if biased else (0.0,) * depth
    C = input_covariance(X, X, precisions, biases)
    expected = renormalized_kernel(C, DUALS[name], precisions, biases, composition)(q)
    kernel = build(ACTIVATIONS[name], depth, composition, precisions, biases, q)
    tolerance = dict(rtol=1e-10, atol=1e-12)  # the antipode's zero needs an absolute one
    np.testing.assert_allclose(dense(kernel, X), expected, **tolerance)
    np.testing.assert_allclose(dense(kernel, X[:7], X[7:]), expected[:7, 7:], **tolerance)
    np.testing.assert_allclose(dense(kernel, X[7:], X[:7]), expected[7:, :7], **tolerance)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_diagonal_is_elementwise(rng, composition, depth):
    X1, X2 = torch.as_tensor(rng.normal(size=(6, 5))), torch.as_tensor(rng.normal(size=(6, 5)))
    kernel = build(Erf(), depth, composition, PRECISIONS[: depth + 1], BIASES[:depth], ORDER_PARAMETERS[:depth])
    with torch.no_grad():
        torch.testing.assert_close(
            kernel(X1, X2, diag=True), kernel(X1, X2).to_dense().diagonal(), rtol=1e-12, atol=1e-14
        )
        torch.testing.assert_close(kernel(X1, diag=True), kernel(X1).to_dense().diagonal(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_unit_order_parameters_are_infinite_width(rng, composition):
    X = rows(rng)
    kernel = build(Erf(), 3, composition, PRECISIONS, BIASES, (2.0, 3.0, 4.0))
    kernel.initialize(order_parameter=1.0)
    assert kernel.order_parameter.shape == (1, 3)
    expected = nngp(X, X, DUALS["erf"], PRECISIONS, BIASES)
    np.testing.assert_allclose(dense(kernel, X), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "identity", "leaky_relu"])
def test_nested_is_outer_for_homogeneous_activations_only(rng, name):
    X, q = rng.normal(size=(8, 5)), (1.7, 0.4)
    precisions, none = PRECISIONS[:3], (0.0, 0.0)
    nested, outer = (dense(build(ACTIVATIONS[name], 2, c, precisions, none, q), X) for c in ("nested", "outer"))
    np.testing.assert_allclose(nested, outer, rtol=1e-10, atol=1e-12)
    nested, outer = (dense(build(Erf(), 2, c, precisions, none, q), X) for c in ("nested", "outer"))
    assert np.max(np.abs(nested / outer - 1)) > 0.01
    nested, outer = (dense(build(ReLU(), 2, c, precisions, (0.0, 0.5), q), X) for c in ("nested", "outer"))
    assert np.max(np.abs(nested / outer - 1)) > 0.01


def test_linear_part_leaves_the_hidden_bias_alone(rng):
    """The deviation K_R^1 - K^1 = (q_1 - 1) kappa(K^0)/lambda_1 does not contain b_1."""
    X, q = rng.normal(size=(8, 5)), (1.7, 0.6)
    precisions, biases = PRECISIONS[:3], (0.2, 0.4)
    C = input_covariance(X, X, precisions, biases)
    _, K1, K2 = hidden_kernels(C, DUALS["erf"], precisions, biases)
    D = DUALS["erf"].slope(np.diagonal(K1))
    expected = q[1] * (K2 + (q[0] - 1) * D[:, None] * (K1 - 0.4) * D / precisions[2])
    kernel = build(Erf(), 2, "linear_part", precisions, biases, q)
    np.testing.assert_allclose(dense(kernel, X), expected, rtol=1e-10, atol=1e-12)


def test_readout_is_linear_in_the_last_order_parameter(rng):
    X = rng.normal(size=(8, 5))
    for composition in COMPOSITIONS:
        one = dense(build(Erf(), 2, composition, PRECISIONS[:3], BIASES[:2], (1.2, 1.0)), X)
        two = dense(build(Erf(), 2, composition, PRECISIONS[:3], BIASES[:2], (1.2, 2.5)), X)
        np.testing.assert_allclose(two, 2.5 * one, rtol=1e-10)


def test_leaky_relu_slope(rng):
    X = rows(rng)
    kernel = NNGPKernel(LeakyReLU(0.35), 2).double()
    expected = nngp(X, X, leaky_relu(0.35), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(dense(kernel, X), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_batches(rng, composition):
    X = torch.as_tensor(rng.normal(size=(6, 5)))
    kernel = RenormalizedNNGPKernel(Erf(), [10.0, 20.0], composition=composition, batch_shape=torch.Size([2])).double()
    assert kernel.order_parameter.shape == (2, 1, 2)
    assert kernel.width.shape == (2, 1, 2)
    q = torch.tensor([[[1.2, 0.9]], [[0.8, 1.5]]], dtype=torch.float64)
    kernel.order_parameter = q
    out = dense(kernel, X.expand(2, 6, 5))
    C = input_covariance(X.numpy(), X.numpy(), (1.0, 1.0, 1.0))
    truth = renormalized_kernel(C, DUALS["erf"], (1.0, 1.0, 1.0), None, composition)
    for i in range(2):
        np.testing.assert_allclose(out[i], truth(q[i, 0].numpy()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_gradients_in_the_order_parameters(rng, composition):
    X = torch.as_tensor(rows(rng, 6))
    kernel = build(Erf(), 2, composition, PRECISIONS[:3], BIASES[:2], (1.2, 0.9))
    raw = kernel.raw_order_parameter.detach().clone().requires_grad_()

    def value(parameter):
        return torch.func.functional_call(kernel, {"raw_order_parameter": parameter}, (X, X)).to_dense()

    assert torch.autograd.gradcheck(value, (raw,), atol=1e-7)


def test_refuses_unknown_compositions():
    with pytest.raises(ValueError):
        RenormalizedNNGPKernel(Erf(), 10, composition="inner")


@pytest.mark.parametrize("width", [0, -1, [10, 0], float("nan")])
def test_refuses_widths(width):
    with pytest.raises((ValueError, RuntimeError)):
        RenormalizedNNGPKernel(Erf(), width)
