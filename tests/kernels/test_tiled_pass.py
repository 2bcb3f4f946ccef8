"""The kernel tile by tile: the numbers and gradients of the whole matrix, with one matrix of memory and one product."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torch_propkernel import Erf, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import GELU, Identity, Sin, Tanh
from torch_propkernel.kernels import Outer, tiled_pass


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard_points() -> torch.Tensor:
    """11 rows, with coincident and opposite ones: not a multiple of the tiles' sides."""
    base = points(7, 3)
    return torch.cat([base, base[:2], -base[2:4]])


def made(composition: str, activation=None, **kwargs):
    activation = activation or Erf()
    if composition == "infinite width":
        return NNGPKernel(activation, 3, bias_variance=[0.1, 0.2, 0.0], **kwargs).double()
    kernel = RenormalizedNNGPKernel(activation, [10, 20, 30], composition, bias_variance=[0.1, 0.0, 0.3], **kwargs)
    kernel.order_parameter = torch.tensor([0.7, 1.2, 1.5])
    return kernel.double()


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 4 x 4 entries, fewer in batches."""
    monkeypatch.setattr(tiled_pass, "block_elements", lambda device: 20)


def value_and_gradients(kernel, x1, x2=None):
    """Kernel matrix, and gradients of a weighted sum of it that is not symmetric."""
    x1 = x1.clone().requires_grad_()
    x2 = x1 if x2 is None else x2.clone().requires_grad_()
    value = kernel(x1, x2).to_dense()
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape).sin()
    variables = [x1, *([] if x2 is x1 else [x2]), *(p for p in kernel.parameters() if p.requires_grad)]
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), variables)]


@pytest.mark.parametrize("composition", ["infinite width", "outer", "nested", "linear_part"])
@pytest.mark.parametrize("activation", [Erf(), ReLU(), GELU(), Sin()], ids=repr)
@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_are_parts_of_the_whole(composition, activation, symmetric, monkeypatch):
    kernel = made(composition, activation, ard_num_dims=3)
    sets = (hard_points(),) if symmetric else (hard_points(), points(6, 3, seed=1))
    whole = value_and_gradients(kernel, *sets)  # one tile: recorded operation by operation
    monkeypatch.setattr(tiled_pass, "block_elements", lambda device: 20)
    for by_tiles, expected in zip(value_and_gradients(kernel, *sets), whole, strict=True):
        torch.testing.assert_close(by_tiles, expected, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(kernel(*sets).to_dense(), whole[0], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("composition", ["infinite width", "nested", "linear_part"])
@pytest.mark.usefixtures("small_tiles")
def test_first_and_second_derivatives_are_those_of_finite_differences(composition):
    kernel = made(composition, ard_num_dims=3)
    x = points(5, 3).requires_grad_()
    names = [name for name, parameter in kernel.named_parameters() if parameter.requires_grad]
    parameters = [getattr(kernel, name) for name in names]

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = kernel

        def forward(self, x):
            return self.kernel.forward(x, x)

    dense = Dense()

    def function(x, *values):
        return torch.func.functional_call(dense, {f"kernel.{n}": v for n, v in zip(names, values, strict=True)}, (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters), atol=1e-7)
    assert torch.autograd.gradgradcheck(function, (x, *parameters), atol=1e-6)


@pytest.mark.parametrize("batch", [(), (2,), (3, 2)])
@pytest.mark.parametrize("data_batch", [(), (2,), (3, 1)])
@pytest.mark.parametrize("ard", [None, 3])
def test_batches(batch, data_batch, ard, monkeypatch):
    kernel = NNGPKernel(Erf(), 2, bias_variance=0.1, batch_shape=torch.Size(batch), ard_num_dims=ard).double()
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.3 * points(*parameter.shape)
    sets = points(*data_batch, 6, 3), points(5, 3, seed=1)
    for chosen in (sets, sets[:1]):
        monkeypatch.undo()
        whole = value_and_gradients(kernel, *chosen)
        monkeypatch.setattr(tiled_pass, "block_elements", lambda device: 20)
        for by_tiles, expected in zip(value_and_gradients(kernel, *chosen), whole, strict=True):
            torch.testing.assert_close(by_tiles, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("small_tiles")
def test_single_precision_and_mixed():
    kernel, x = made("infinite width"), hard_points()
    exact = kernel(x).to_dense()
    assert torch.allclose(kernel(x.float()).to_dense(), exact, rtol=1e-6)  # of float32 inputs, in float64
    single = value_and_gradients(kernel.float(), x.float())
    assert all(t.dtype == torch.float32 for t in single)
    torch.testing.assert_close(single[0].double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.usefixtures("small_tiles")
def test_one_matrix_is_kept_at_any_depth(depth):
    kernel, x, kept = NNGPKernel(ReLU(), depth, bias_variance=0.1).double(), points(40, 3), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        kernel.forward(x, x)
    assert sum(shape.numel() >= 40 * 20 for shape in kept) == 1


@pytest.mark.parametrize(("ard", "backward"), [(None, 0.0), (5, 1.0)])  # for the gradient of the inputs
def test_products_of_the_size_of_the_inputs(ard, backward, monkeypatch):
    n, d = 64, 5
    monkeypatch.setattr(tiled_pass, "block_elements", lambda device: 16)
    kernel = NNGPKernel(Erf(), 2, bias_variance=0.1, ard_num_dims=ard).double()
    with FlopCounterMode(display=False) as counter:
        kernel.forward(x := points(n, d), x).sum().backward()
    one, side = 2 * n * n * d, 4
    forward = 0.5 * (1 + 0.5 * side / n)  # three quarters of the tiles on the diagonal
    assert counter.get_total_flops() == one * (forward + backward * (1 + side / n))  # all of them


@pytest.mark.parametrize("composition", ["infinite width", "linear_part"])
@pytest.mark.parametrize("activation", [Erf(), ReLU(), Identity()], ids=repr)  # relu: a first layer without gradients
@pytest.mark.usefixtures("small_tiles")
def test_backward_leaves_what_was_kept(composition, activation):
    kernel = made(composition, activation)
    parameters = [p for p in kernel.parameters() if p.requires_grad]
    value = kernel(hard_points()).to_dense().sin().sum()
    first, second = (torch.autograd.grad(value, parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("small_tiles")
def test_what_a_rule_ignores_has_no_gradient():
    class Constant(Outer):
        def covariance(self, state, layers, order_parameters):
            return torch.ones_like(state.xy) * layers[-1].weight_variance

    kernel = RenormalizedNNGPKernel(Erf(), [10, 10], Constant()).double()
    value = kernel(points(9, 3)).to_dense()
    assert torch.equal(value, torch.ones(9, 9, dtype=torch.float64))
    value.sum().backward()
    assert kernel.raw_order_parameter.grad is None or not kernel.raw_order_parameter.grad.any()


def test_activations_with_moments_of_rows_are_never_cut(monkeypatch):
    calls = []
    monkeypatch.setattr(tiled_pass, "block_elements", lambda device: 20)
    monkeypatch.setattr(Tanh, "dual", lambda self, *c, out=None: calls.append(c[1].shape) or Erf().dual(*c))
    NNGPKernel(Tanh()).double()(points(9, 3)).to_dense()
    assert calls == [(9, 9)]


@pytest.mark.usefixtures("small_tiles")
def test_threads_share_a_kernel():
    kernel, sets = made("nested"), [points(9, 3, seed=seed) for seed in range(8)]
    expected = [value_and_gradients(kernel, x) for x in sets]
    with ThreadPoolExecutor(4) as pool:
        for found, known in zip(pool.map(lambda x: value_and_gradients(kernel, x), sets), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, known, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("small_tiles")
def test_cuda():
    kernel, x = made("nested", ard_num_dims=3), hard_points()
    expected = value_and_gradients(kernel, x)
    for found, known in zip(value_and_gradients(kernel.cuda(), x.cuda()), expected, strict=True):
        torch.testing.assert_close(found.cpu(), known, rtol=1e-10, atol=1e-12)
