"""Derivatives of fused products, by Triton's interpreter, beside those of the dense kernel in float64 by autograd."""

from __future__ import annotations

import pytest
import torch
from gpytorch.kernels import ConstantKernel, ScaleKernel

from torch_propkernel import NNGPKernel, RenormalizedNNGPKernel
from torch_propkernel.activations import LeakyReLU
from torch_propkernel.kernels import FusedProduct

# Of the norm of a gradient: entries are right to 2e-7 of the largest one, and gradients that are one number are sums in
# which more or less cancels (4e-7 was the worst here). V and G are positive, so that it is not nearly everything.
ROUNDING = 2e-6


def weights(number, columns, seed):
    return points(number, columns, seed).abs()


def points(number, dimension, seed=0):
    return torch.randn(number, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernel(activation, depth, inputs, bias=0.2):
    variances = torch.linspace(0.7, 1.6, depth + 1).tolist()
    made = NNGPKernel(activation, depth, weight_variance=variances, bias_variance=bias, ard_num_dims=inputs).double()
    return made.requires_grad_()  # also what is an overall scale for relu


def gradients(product, leaves, outer):
    return torch.autograd.grad((product * outer).sum(), leaves)


def check(module, x1, x2, vectors, tolerance=ROUNDING):
    """Compare all gradients with those of the dense kernel; x2 may be x1."""
    outer = weights(len(x1), vectors.shape[1], seed=9).to(x1.device)
    leaves = [x1.requires_grad_(), vectors.requires_grad_(), *(p for p in module.parameters() if p.requires_grad)]
    leaves += [] if x1 is x2 else [x2.requires_grad_()]
    found = gradients(FusedProduct(module)(x1, x2, vectors), leaves, outer)
    truth = gradients(module(x1, x2).to_dense() @ vectors, leaves, outer)
    for one, other in zip(found, truth, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.linalg.vector_norm(one - other) <= tolerance * torch.linalg.vector_norm(other)


@pytest.mark.usefixtures("triton_interpreter")
class TestAgainstTheDenseKernel:
    @pytest.mark.parametrize("same", [True, False], ids=["symmetric", "cross"])
    @pytest.mark.parametrize("depth", [1, 2, 3])
    @pytest.mark.parametrize("activation", ["erf", "relu", LeakyReLU(0.3)], ids=str)
    def test_inputs_vectors_and_hyperparameters(self, activation, depth, same):
        x = points(70, 5)
        check(kernel(activation, depth, 5), x, x if same else points(45, 5, seed=1), weights(70 if same else 45, 3, 2))

    @pytest.mark.parametrize("activation", ["erf", "relu", LeakyReLU(1.0)], ids=str)
    @pytest.mark.parametrize("same", [True, False], ids=["symmetric", "cross"])
    def test_coincident_opposite_zero_tiny_and_large_points(self, activation, same):
        x, z = points(40, 6), points(30, 6, seed=1)
        x[1], x[2], x[3], x[4], x[5] = x[0], -x[0], 0.0, 1e-4 * x[6], 30.0 * x[6]
        z[:6] = x[:6]
        z[7] = 0.0
        # Large points of both signs cancel in the one number that belongs to the scale of the inputs.
        check(kernel(activation, 2, 6, bias=0.0), x, x if same else z, weights(40 if same else 30, 2, 3), 1e-5)

    def test_diagonal_entries_are_differentiated_at_coincident_points(self):
        """Rounding of c_ii would be 1e-3 of the angle: the derivative of a trace is that of the variances."""
        x = points(50, 20)
        module = kernel("relu", 2, 20)
        leaves = [x.requires_grad_(), *module.parameters()]
        found = gradients(FusedProduct(module)(x, x, torch.eye(50)), leaves, torch.eye(50))
        truth = gradients(module(x, diag=True), leaves, torch.ones(50))
        for one, other in zip(found, truth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * other.abs().max().item())

    @pytest.mark.parametrize("n, m, d, c", [(1, 1, 1, 1), (64, 16, 16, 16), (65, 33, 70, 3), (5, 130, 3, 140)])
    def test_ragged_sizes(self, n, m, d, c):
        check(kernel("erf", 2, d), points(n, d), points(m, d, seed=1), weights(m, c, seed=2))

    def test_several_shares_of_the_columns_add_up(self, monkeypatch):
        from torch_propkernel.kernels import triton_product

        module, x = kernel("relu", 1, 3), points(70, 3)
        for programs in (1, 6):
            monkeypatch.setattr(triton_product, "_PROGRAMS", programs)
            check(module, x, x, weights(70, 2, seed=1))

    def test_what_stands_around_the_kernel(self):
        inner = RenormalizedNNGPKernel("erf", [20, 30], "nested", bias_variance=0.1, ard_num_dims=3).double()
        inner.active_dims = torch.tensor([0, 2, 4])
        inner.ard_weights = torch.tensor([0.5, 1.5, 1.0])
        inner.order_parameter = torch.tensor([0.7, 1.9])
        module = (ScaleKernel(inner) + ConstantKernel()).double()
        x = points(30, 5)
        check(module, x, x, weights(30, 2, seed=2))
        check(module, x.detach(), points(20, 5, seed=1), weights(20, 2, seed=2))

    def test_sums_over_many_columns_keep_their_digits(self, monkeypatch):
        """Terms of 1e4, -1e4 and 0.3, 256 of each one after the other, in one share of the columns.

        A plain float32 sum of 2.6e6 is off by a tenth at every block of columns, beside 77 that are left of it.
        """
        from torch_propkernel.kernels import triton_product

        monkeypatch.setattr(triton_product, "_PROGRAMS", 1)
        x = torch.full((1, 1), 0.5, dtype=torch.float64)
        many = torch.ones(3 * 256, 1, dtype=torch.float64)
        vectors = torch.tensor([1.0e4, -1.0e4, 0.3], dtype=torch.float64).repeat_interleave(256).unsqueeze(-1)
        module = kernel("erf", 1, None, bias=0.5).eval()  # in training it warns of inputs of small scale
        leaves = [x.requires_grad_(), *module.parameters()]
        found = gradients(FusedProduct(module)(x, many, vectors), leaves, torch.ones(1, 1))
        truth = gradients(module(x, many[:1]).to_dense() * vectors.sum(), leaves, torch.ones(1, 1))
        for one, other in zip(found, truth, strict=True):
            # float32 numbers are off by 6e-8 each, which cancels between the large terms.
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("triton_interpreter")
class TestWhatIsAskedFor:
    @pytest.mark.parametrize("asked", [0, 1, 2])
    def test_one_argument_alone(self, asked):
        """Of points, other points and vectors."""
        module = kernel("relu", 2, 4).requires_grad_(False)
        arguments = [points(20, 4), points(15, 4, seed=1), weights(15, 2, seed=2)]
        arguments[asked].requires_grad_()
        outer = weights(20, 2, seed=3)
        x1, x2, vectors = arguments
        (found,) = gradients(FusedProduct(module)(x1, x2, vectors), [arguments[asked]], outer)
        (truth,) = gradients(module(x1, x2).to_dense() @ vectors, [arguments[asked]], outer)
        assert torch.linalg.vector_norm(found - truth) <= ROUNDING * torch.linalg.vector_norm(truth)

    def test_a_product_follows_the_parameters_and_can_be_differentiated_twice_over(self):
        """Two steps of a descent with one product: values and gradients are those of the parameters of the moment."""
        module, x, vectors = kernel("erf", 1, None), points(20, 4), points(20, 2, seed=1)
        product = FusedProduct(module)
        for value in (1.0, 3.0):
            module.readout_variance = value
            found = gradients(product(x, x, vectors), [module.raw_readout_variance], vectors)
            truth = gradients(module(x, x).to_dense() @ vectors, [module.raw_readout_variance], vectors)
            torch.testing.assert_close(found, truth, rtol=ROUNDING, atol=0)

    def test_second_derivatives_are_refused(self):
        module, x, vectors = kernel("erf", 1, None), points(5, 4), points(5, 2, seed=1)
        product = FusedProduct(module)(x, x, vectors).sum()
        with pytest.raises(RuntimeError, match=r"FusedProduct: expected first derivatives only.*got create_graph=True"):
            torch.autograd.grad(product, list(module.parameters()), create_graph=True)

    def test_nothing_is_kept_where_nothing_is_asked_for(self):
        module, x, vectors = kernel("erf", 1, None), points(5, 4), points(5, 2, seed=1)
        with torch.no_grad():
            assert not FusedProduct(module)(x, x, vectors).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("same", [True, False], ids=["symmetric", "cross"])
@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_on_a_card(activation, same):
    pytest.importorskip("triton")
    x = points(1000, 37).cuda()
    z = x if same else points(700, 37, seed=1).cuda()
    check(kernel(activation, 2, 37).cuda(), x, z, weights(len(z), 5, seed=2).cuda())
