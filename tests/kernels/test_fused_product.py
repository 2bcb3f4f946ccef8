"""The Triton kernel of a product, run by Triton's interpreter, beside tiles of float64; and compiled for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from gpytorch.kernels import ConstantKernel, RBFKernel, ScaleKernel

from torch_propkernel import NNGPKernel, RenormalizedNNGPKernel
from torch_propkernel.activations import LeakyReLU
from torch_propkernel.kernels import FusedProduct

ROUNDING = 2e-6  # entries of float32 through a few layers, over the largest one; 2.4e-7 was the worst at depth 3


def points(number, dimension, seed=0):
    return torch.randn(number, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kernel(activation="relu", depth=1, bias=0.2, **options):
    weights = torch.linspace(0.7, 1.6, depth + 1).tolist()
    return NNGPKernel(activation, depth, weight_variance=weights, bias_variance=bias, **options).double()


def matrix(module, x1, x2):
    return module(x1, x2).to_dense().detach()


@pytest.mark.usefixtures("triton_interpreter")
class TestProducts:
    @pytest.mark.parametrize("depth", [1, 2, 3])
    @pytest.mark.parametrize("activation", ["erf", "relu", LeakyReLU(0.3)], ids=str)
    def test_entries_are_those_of_the_kernel(self, activation, depth):
        """With V = 1 the product is the matrix; coincident, opposite, zero, tiny and large rows among the points."""
        x1, x2 = points(70, 37), points(45, 37, seed=1)
        x2[:4], x2[4], x2[5] = x1[:4], -x1[4], 1e-4 * x1[5]
        x1[6], x2[7], x1[8] = 0.0, 0.0, 30.0 * x1[8]
        for bias in (0.0, 0.3):
            module = kernel(activation, depth, bias)
            truth = matrix(module, x1, x2)
            found = FusedProduct(module)(x1, x2, torch.eye(45))
            size = (truth.abs().amax(1, keepdim=True) * truth.abs().amax()).sqrt()  # large rows have large rounding
            assert ((found - truth).abs() <= ROUNDING * size).all()
            assert found.dtype == torch.float64

    @pytest.mark.parametrize(("n", "m", "d", "c"), [(1, 1, 1, 1), (64, 32, 16, 16), (65, 33, 17, 3), (5, 130, 3, 140)])
    def test_ragged_sizes(self, n, m, d, c):
        x1, x2, vectors = points(n, d), points(m, d, seed=1), points(m, c, seed=2)
        module = kernel("erf", 2)
        truth = matrix(module, x1, x2) @ vectors
        bound = ROUNDING * matrix(module, x1, x2).abs().max() * vectors.abs().sum(0)
        assert ((FusedProduct(module)(x1, x2, vectors) - truth).abs() <= bound).all()

    def test_the_product_with_a_symmetric_matrix_is_its_own_transpose(self):
        x, vectors, others = points(90, 4), points(90, 3, seed=1), points(90, 3, seed=2)
        product = FusedProduct(kernel())
        one, other = (others * product(x, x, vectors)).sum(0), (vectors * product(x, x, others)).sum(0)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)  # of sums of 90^2 products of size one

    def test_sums_over_many_columns_keep_their_digits(self, monkeypatch):
        """Terms that cancel, in one share of the columns: K = c at x = 0 with a bias, V = 1e4, then -1e4, then 0.3.

        A plain float32 sum of 3e6 is off by a tenth at every block of columns, beside 90 that are left of it.
        """
        from torch_propkernel.kernels import triton_product

        monkeypatch.setattr(triton_product, "_PROGRAMS", 1)
        x = torch.zeros(3 * 1024, 1, dtype=torch.float64)
        vectors = torch.tensor([1.0e4, -1.0e4, 0.3], dtype=torch.float64).repeat_interleave(1024).unsqueeze(-1)
        module = kernel("erf", bias=0.5).eval()  # in training it warns of inputs without scale
        entry = matrix(module, x[:1], x[:1]).item()
        found = FusedProduct(module)(x[:1], x, vectors)
        # float32 entries and numbers are off by 6e-8 each, which cancels between the large terms.
        assert abs(found.item() / (1024 * 0.3 * entry) - 1) < 3e-7

    def test_what_stands_around_the_kernel(self):
        x1, x2, vectors = points(20, 5), points(30, 5, seed=1), points(30, 2, seed=2)
        inner = RenormalizedNNGPKernel("erf", [20, 30], "nested", bias_variance=0.1, ard_num_dims=3).double()
        inner.active_dims = torch.tensor([0, 2, 4])
        inner.ard_weights = torch.tensor([0.5, 1.5, 1.0])
        inner.order_parameter = torch.tensor([0.7, 1.9])
        scaled = ScaleKernel(inner).double()
        scaled.outputscale = 2.5
        constant = ConstantKernel().double()
        constant.constant = constant.constant.new_tensor([0.4])
        module = scaled + constant
        truth = matrix(module, x1, x2) @ vectors
        torch.testing.assert_close(FusedProduct(module)(x1, x2, vectors), truth, rtol=0, atol=1e-4)
        assert (truth.abs().amax() > 10) and not torch.allclose(truth, matrix(inner, x1, x2) @ vectors, atol=1e-2)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("module", "words"),
        [
            (NNGPKernel("sin"), "got Sin"),
            (RBFKernel(), "got RBFKernel"),
            (RenormalizedNNGPKernel("erf", [3, 3], "linear_part"), "infinite width"),
            (NNGPKernel("erf", batch_shape=torch.Size([2])), r"no batch dimensions, got \(2,\)"),
        ],
    )
    def test_kernels(self, module, words):
        with pytest.raises(ValueError, match=words):
            FusedProduct(module)

    def test_devices(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="Triton, which is not installed|a CUDA device, got cpu"):
            FusedProduct(kernel())(points(2, 2), points(2, 2), torch.ones(2, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
class TestOnACard:
    # IEEE products are as accurate as on a processor, three TensorFloat-32 ones about so; one has 10 bits.
    @pytest.mark.parametrize(("precision", "tolerance"), [("highest", ROUNDING), ("high", 1e-5), ("medium", 5e-3)])
    @pytest.mark.parametrize("activation", ["erf", "relu"])
    def test_entries_are_those_of_the_kernel(self, activation, precision, tolerance):
        pytest.importorskip("triton")
        x, vectors, module = points(1000, 37), torch.eye(1000, 150), kernel(activation, 2)
        truth = matrix(module, x, x)[:, :150]
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(precision)
            found = FusedProduct(module.to("cuda"))(x.cuda(), x.cuda(), vectors.cuda())
        finally:
            torch.set_float32_matmul_precision(before)
        assert (found.cpu() - truth).abs().max() < tolerance * truth.abs().max()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from torch_propkernel.kernels.triton_gradient import _gradient_kernel
from torch_propkernel.kernels.triton_product import _product_kernel

types = {"out": "*fp64", "sums": "*fp64", "points": "*fp64", "slope": "fp32"}
types.update(dict.fromkeys(("n", "m", "dimension", "count", "share"), "i32"))
forward = dict(ROWS=64, COLUMNS=32, INPUTS=16)
backward = dict(ROWS=64, COLUMNS=16, STEP=16, INPUTS=64, KINDS=8)
ones = dict(m=1, dimension=1, count=1)  # the compiler takes a one as a constant
for kernel, precision, erf, options in (
    (_product_kernel, "ieee", False, dict(forward, VECTORS=128)),
    (_product_kernel, "tf32x3", True, dict(forward, VECTORS=16, **ones)),
    (_gradient_kernel, "ieee", False, dict(backward, SAME=True, POINTS=True)),
    (_gradient_kernel, "tf32x3", True, dict(backward, SAME=False, POINTS=False, **ones)),
):
    constants = dict(options, DEPTH=2, ERF=erf, PRECISION=precision)
    signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8, "enable_fp_fusion": True})
    # Both sums of the compensation stay what they are: the last dot is not merged with the first of them.
    print(precision, made.asm["ttir"].count("tt.dot "), len(made.asm["cubin"]) > 0)
"""


def test_compiles_for_a_gpu(tmp_path):
    """The interpreter knows nothing of layouts and registers: the compiler for sm_80 needs no GPU either."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.update(TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path))
    run = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["ieee 2 True", "tf32x3 2 True", "ieee 3 True", "tf32x3 2 True"]
