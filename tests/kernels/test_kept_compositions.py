"""What a composition keeps for many order parameters: matrices against loops over rows, and derivatives in q."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import DUALS, input_covariance, renormalized_kernel

from torch_propkernel import Erf, NNGPKernel, ReLU
from torch_propkernel.activations import Quadrature
from torch_propkernel.kernels import upper_layers
from torch_propkernel.kernels.compositions import get_composition

PRECISIONS, BIASES = [1.5, 0.7, 2.0, 1.2], [0.3, 0.1, 0.2]


def kept(activation, composition, x):
    kernel = NNGPKernel(activation, 3, bias_variance=1.0).double()
    kernel.weight_variance = 1 / torch.tensor(PRECISIONS, dtype=torch.float64)
    kernel.bias_variance = torch.tensor(BIASES, dtype=torch.float64)
    x = torch.as_tensor(x)
    with torch.no_grad():
        return get_composition(composition).prepared(kernel.input_covariance(x, x, elementwise=False), kernel.layers())


@pytest.mark.parametrize("elements", [4, 60, 10**6])
@pytest.mark.parametrize("composition", ["nested", "linear_part"])
@pytest.mark.parametrize(
    "activation, name",
    [(Erf(), "erf"), (ReLU(), "relu"), (Quadrature(torch.erf), "erf")],
)
def test_matrix_and_its_derivatives(monkeypatch, activation, name, composition, elements):
    """Derivatives of sum(G K_R) against differences of the kernel of loops; tiles of 2 and 7 points, and one tile."""
    monkeypatch.setattr(upper_layers, "block_elements", lambda device: elements)
    rng = np.random.default_rng(0)
    x, G = rng.normal(size=(13, 4)), rng.normal(size=(13, 13))
    x[3], x[5] = 0.0, x[4]  # a zero row, and two that coincide
    C = input_covariance(x, x, PRECISIONS, BIASES)
    reference = renormalized_kernel(C, DUALS[name], PRECISIONS, BIASES, composition)
    covariance = kept(activation, composition, x)
    for q in (np.array([1.0, 1.0, 1.0]), np.array([0.2, 3.0, 1.5])):
        leaf = torch.tensor(q, requires_grad=True)
        found = covariance([leaf[l : l + 1, None] for l in range(3)])
        np.testing.assert_allclose(found.detach().numpy(), reference(q), rtol=1e-10, atol=1e-13)
        (gradient,) = torch.autograd.grad(found, leaf, torch.as_tensor(G))
        step = 1e-5  # central differences: about step^2 and rounding / step
        for l, unit in enumerate(np.eye(3)):
            difference = np.sum(G * (reference(q + step * unit) - reference(q - step * unit))) / (2 * step)
            assert gradient[l].item() == pytest.approx(difference, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("composition", ["nested", "linear_part"])
def test_a_batch_of_order_parameters(composition):
    """Each element of a batch has the matrix and the derivatives that it has alone."""
    x = np.random.default_rng(0).normal(size=(7, 4))
    covariance = kept(Erf(), composition, x)
    q = torch.tensor([[0.2, 3.0, 1.5], [2.0, 0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    G = torch.randn(2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = covariance([q[:, l : l + 1, None] for l in range(3)])
    (gradient,) = torch.autograd.grad(together, q, G)
    for index in range(2):
        leaf = q[index].detach().requires_grad_(True)
        alone = covariance([leaf[l : l + 1, None] for l in range(3)])
        torch.testing.assert_close(alone, together[index], rtol=1e-13, atol=0)
        (own,) = torch.autograd.grad(alone, leaf, G[index])
        torch.testing.assert_close(own, gradient[index], rtol=1e-11, atol=0)


def test_second_derivatives_are_refused():
    q = torch.ones(3, dtype=torch.float64, requires_grad=True)
    matrix = kept(Erf(), "nested", np.eye(4))([q[l : l + 1, None] for l in range(3)])
    with pytest.raises(RuntimeError, match="expected first derivatives only"):
        torch.autograd.grad(matrix.sum(), q, create_graph=True)
