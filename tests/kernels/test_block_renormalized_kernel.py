"""Kernels over blocks: what they are, that MAP training is the theory, and their life as GPyTorch kernels."""

from __future__ import annotations

import copy
import math
import pickle

import gpytorch
import pytest
import torch
from gpytorch.kernels import RBFKernel

from torch_propkernel import NetworkGP, NNGPKernel, RenormalizedNNGPKernel
from torch_propkernel.actions import solve_block_order_parameters
from torch_propkernel.kernels import BlockKernel, BlockRenormalizedKernel, KernelBlocks, block_kernel

pytestmark = pytest.mark.usefixtures("in_double_precision")


def points(number=6, columns=4, seed=0):
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(seed))


def positive(size=2, seed=0, *batch):
    root = torch.randn(*batch, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.eye(size) + root @ root.mT / size


class Halves(BlockKernel):
    """The erf network over three overlapping halves of the inputs: a kernel that is not symmetric between them."""

    num_blocks = 3

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = NNGPKernel("erf", bias_variance=0.2)
        self.calls = 0

    def covariances(self, pairs, z1, z2, diag, symmetric):
        self.calls += 1
        half = z1.shape[-1] // 2
        parts = [(z1[..., a : a + half], z2[..., b : b + half]) for a, b in pairs]
        return torch.stack(
            [self.inner.forward(first, second, diag=diag) for first, second in parts], -2 if diag else -3
        )


def by_loops(blocks, x, z, weights):
    """sum_ab W_ab K_ab, one pair of blocks and one pair of points at a time."""
    total = torch.zeros(len(x), len(z))
    for a in range(blocks.num_blocks):
        for b in range(blocks.num_blocks):
            for i in range(len(x)):
                for j in range(len(z)):
                    value = blocks.covariances([(a, b)], x[i : i + 1], z[j : j + 1], False, False)
                    total[i, j] += weights[a, b] * value.squeeze()
    return total


@pytest.mark.parametrize("tile", [1, 2**22])
def test_the_covariance_is_the_weighted_sum_and_its_diagonal_that_of_the_matrix(tile, monkeypatch):
    monkeypatch.setattr(block_kernel, "_TILE", tile)
    kernel = BlockRenormalizedKernel(Halves(), width=20.0)
    kernel.order_parameter = positive(3, 1)
    x, z = points(), points(seed=1)
    for a, b in ((x, x), (x, z)):
        found = kernel(a, b).to_dense()
        torch.testing.assert_close(
            found, by_loops(kernel.blocks, a, b, kernel.block_covariance), rtol=1e-12, atol=1e-13
        )
        torch.testing.assert_close(kernel(a, b, diag=True), found.diagonal(), rtol=1e-12, atol=1e-13)
    assert bool((torch.linalg.eigvalsh(kernel(x).to_dense()) > 0).all())


def test_weights_of_zero_cost_nothing_and_tiles_bound_the_number_of_matrices(monkeypatch):
    blocks, x = Halves(), points()
    blocks(x).to_dense()
    assert blocks.calls == 1  # the three diagonal blocks at once, none between blocks
    monkeypatch.setattr(block_kernel, "_TILE", 1)
    with torch.no_grad():
        blocks.weighted(x, x, torch.ones(3, 3))
    assert blocks.calls == 1 + 3 + 3
    assert not blocks.weighted(x, x, torch.zeros(3, 3)).any()


def test_tiles_do_not_change_gradients(monkeypatch):
    def gradients():
        kernel = BlockRenormalizedKernel(Halves(), width=20.0)
        kernel.order_parameter = positive(3, 1)
        x = points().requires_grad_()
        (kernel(x, points(seed=1)).to_dense() * points(6, 6, seed=2)).sum().backward()
        return [x.grad, *(p.grad for p in kernel.parameters() if p.grad is not None)]

    whole = gradients()
    monkeypatch.setattr(block_kernel, "_TILE", 40)
    torch.testing.assert_close(gradients(), whole, rtol=1e-12, atol=1e-14)
    assert len(whole) >= 4


def test_gradients_of_the_kernel():
    kernel = BlockRenormalizedKernel(Halves(), width=5.0)
    raw = (0.3 * torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()

    def function(raw, x):
        return torch.func.functional_call(kernel, {"raw_order_parameter": raw}, (x, x), {}).to_dense()

    torch.autograd.gradcheck(function, (raw, points(3, 4).requires_grad_()))


def test_one_block_is_the_scalar_kernel():
    x = points()
    many = BlockRenormalizedKernel([[NNGPKernel("relu", bias_variance=0.3)]], 9.0)
    one = RenormalizedNNGPKernel("relu", 9.0, bias_variance=0.3)
    many.order_parameter = torch.full((1, 1, 1), 0.7)
    one.order_parameter = torch.tensor([0.7])
    torch.testing.assert_close(many(x).to_dense(), one(x).to_dense(), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        many.order_parameter_prior.log_prob(many.order_parameter),
        one.order_parameter_prior.log_prob(one.order_parameter).squeeze(0),
        rtol=1e-12,
        atol=0,
    )


def test_a_prior_mean_of_any_rank():
    x, mean = points(), torch.ones(3, 3) / 3.0
    pool = BlockRenormalizedKernel(Halves(), 9.0, prior_mean=mean)
    assert pool.order_parameter.shape == (1, 1, 1)
    torch.testing.assert_close(pool.block_covariance, mean, rtol=0, atol=1e-15)
    pool.order_parameter = torch.full((1, 1, 1), 2.0)
    torch.testing.assert_close(pool(x).to_dense(), 2.0 * pool.blocks.weighted(x, x, mean), rtol=1e-13, atol=0)
    full = BlockRenormalizedKernel(Halves(), 9.0, prior_mean=positive(3, 5))
    torch.testing.assert_close(full.block_covariance, positive(3, 5), rtol=1e-13, atol=1e-13)
    assert BlockRenormalizedKernel(Halves(), 9.0, prior_mean=torch.eye(3)).factor is None


def train(model, y, kernel):
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.LBFGS(
        [kernel.raw_order_parameter],
        max_iter=500,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
    )

    def closure():
        optimizer.zero_grad()
        loss = -objective(model(*model.train_inputs), y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("rank", [3, 2])
def test_a_plain_training_loop_solves_the_theory(rank):
    x = points(20, 8)
    y = x[:, 0] * x[:, 1] + x[:, 6]
    root = torch.randn(3, rank, generator=torch.Generator().manual_seed(9))
    kernel = BlockRenormalizedKernel(Halves(), 12.0, prior_mean=None if rank == 3 else root @ root.T)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.1
    train(NetworkGP(x, y, likelihood, kernel), y, kernel)
    factor = torch.eye(3) if rank == 3 else kernel.factor
    pairs = [(a, b) for a in range(3) for b in range(3)]
    with torch.no_grad():
        blocks = kernel.blocks.covariances(pairs, x, x, False, False).unflatten(0, (3, 3))
    turned = torch.einsum("ai,bj,abmn->ijmn", factor, factor, blocks)
    solution = solve_block_order_parameters(turned, y, width=12.0, temperature=0.1)
    # LBFGS stops where the gradient is 1e-9.
    torch.testing.assert_close(kernel.order_parameter.detach(), solution.order_parameter, rtol=0, atol=1e-5)


def test_the_law_of_the_prior_is_a_network_s():
    """Moments of Q = V^T V / N of random readouts V ~ N(0, S): mean S, variance (S_aa S_bb + S_ab^2) / N; with the
    B + 1 additional degrees of freedom of the prior both are larger by the factor 1 + (r + 1) / N."""
    mean = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    kernel = BlockRenormalizedKernel([[RBFKernel(), None], [None, RBFKernel()]], 30.0, prior_mean=mean)
    torch.manual_seed(0)
    draws = kernel.covariance_of_blocks(kernel.order_parameter_prior.rsample(torch.Size([20000])))
    grown = 1.0 + 3.0 / 30.0
    torch.testing.assert_close(draws.mean(0), grown * mean, rtol=0.02, atol=0)  # 20,000 draws: 0.5 %
    variance = (torch.outer(mean.diagonal(), mean.diagonal()) + mean**2) / 30.0
    torch.testing.assert_close(draws.var(0), grown * variance, rtol=0.05, atol=0)


def test_batches_are_indexed_and_expanded_with_their_widths():
    kernel = BlockRenormalizedKernel(Halves(), torch.tensor([[10.0], [20.0]]))
    kernel.order_parameter = positive(3, 6, 2, 1)
    x = points().expand(2, -1, -1)
    whole = kernel(x).to_dense()
    assert whole.shape == (2, 6, 6)
    for index in range(2):
        single = kernel[index]
        assert single.width.tolist() == [[[10.0], [20.0]][index]]
        torch.testing.assert_close(single(x[index]).to_dense(), whole[index], rtol=1e-13, atol=0)
        torch.testing.assert_close(single(x[index], diag=True), whole[index].diagonal(), rtol=1e-13, atol=0)
    expanded = BlockRenormalizedKernel(Halves(), 10.0).expand_batch(torch.Size([3]))
    assert expanded.width.shape == (3, 1, 1) and expanded(points().expand(3, -1, -1)).shape == (3, 6, 6)


def test_batches_of_the_kernels_in_a_table():
    first, second = RBFKernel(batch_shape=torch.Size([2])), NNGPKernel("erf", batch_shape=torch.Size([2]))
    first.lengthscale = torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
    kernel = BlockRenormalizedKernel([[first, None], [None, gpytorch.kernels.ScaleKernel(second)]], 10.0)
    assert kernel.batch_shape == (2,) and kernel.order_parameter.shape == (2, 1, 2, 2)
    x = points().expand(2, -1, -1)
    whole = kernel(x).to_dense()
    for index in range(2):
        torch.testing.assert_close(kernel[index](x[index]).to_dense(), whole[index], rtol=1e-13, atol=0)


def test_it_pickles_copies_and_loads():
    kernel = BlockRenormalizedKernel(Halves(), 5.0, prior_mean=positive(3, 2))
    kernel.order_parameter = positive(3, 7)
    x = points()
    for other in (pickle.loads(pickle.dumps(kernel)), copy.deepcopy(kernel)):
        assert torch.equal(other(x).to_dense(), kernel(x).to_dense())
    fresh = BlockRenormalizedKernel(Halves(), 6.0, prior_mean=positive(3, 3))
    fresh.load_state_dict(kernel.state_dict())
    assert torch.equal(fresh(x).to_dense(), kernel(x).to_dense())
    assert torch.equal(fresh.order_parameter_prior.width, kernel.width)


def test_single_precision_and_columns():
    x = points(5, 9)
    kernel = BlockRenormalizedKernel(Halves(), 5.0, active_dims=[0, 2, 4, 6], prior_mean=positive(3, 2))
    expected = BlockRenormalizedKernel(Halves(), 5.0, prior_mean=positive(3, 2))(x[:, [0, 2, 4, 6]]).to_dense()
    torch.testing.assert_close(kernel(x).to_dense(), expected, rtol=1e-14, atol=0)
    single = kernel.float()(x.float()).to_dense()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-5)


def test_an_infinite_width_does_not_move():
    kernel = BlockRenormalizedKernel(Halves(), math.inf)
    kernel.order_parameter = positive(3, 8)
    assert torch.equal(kernel.block_covariance, torch.eye(3))
    x = points()
    torch.testing.assert_close(kernel(x).to_dense(), kernel.blocks(x).to_dense(), rtol=1e-14, atol=0)


def test_kernels_between_blocks_are_mirrored():
    """K_10(x, z) = K_01(z, x): seen with a kernel that is not symmetric in its arguments."""

    class Lopsided(gpytorch.kernels.Kernel):
        def forward(self, x1, x2, diag=False, **params):
            first, second = x1.sum(-1), x2[..., 0]
            return first * second if diag else first.unsqueeze(-1) * second.unsqueeze(-2)

    blocks = KernelBlocks([[RBFKernel(), Lopsided()], [None, RBFKernel()]])
    x, z = points(), points(seed=1)
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    expected = x.sum(-1, keepdim=True) @ z[:, :1].T + x[:, :1] @ z.sum(-1, keepdim=True).T
    torch.testing.assert_close(blocks.weighted(x, z, weights), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(blocks.weighted(x, z, weights, diag=True), expected.diagonal(), rtol=1e-13, atol=1e-13)


def test_bad_input_is_refused():
    rbf = RBFKernel()
    with pytest.raises(ValueError, match=r"kernels: expected a square table, got rows of \[2, 1\] kernels"):
        KernelBlocks([[rbf, None], [rbf]])
    with pytest.raises(TypeError, match=r"kernels: expected kernels or None, got str at \(0, 1\)"):
        KernelBlocks([[rbf, "rbf"], [None, rbf]])
    with pytest.raises(ValueError, match=r"expected a kernel on the diagonal, got None at \(1, 1\)"):
        KernelBlocks([[rbf, None], [None, None]])
    with pytest.raises(ValueError, match=r"expected at \(1, 0\) None or the kernel at \(0, 1\), got another one"):
        KernelBlocks([[rbf, None], [rbf, rbf]])
    with pytest.raises(TypeError, match="blocks: expected a BlockKernel or a table of kernels, got RBFKernel"):
        BlockRenormalizedKernel(rbf, 5.0)
    with pytest.raises(ValueError, match="width: expected one layer, got 2 numbers"):
        BlockRenormalizedKernel(Halves(), [5.0, 6.0])
    with pytest.raises(ValueError, match="width"):
        BlockRenormalizedKernel(Halves(), -5.0)
    with pytest.raises(ValueError, match=r"prior_mean: expected shape \(3, 3\), got \(2, 2\)"):
        BlockRenormalizedKernel(Halves(), 5.0, prior_mean=torch.eye(2))
    for bad in (torch.diag(torch.tensor([1.0, 1.0, -1.0])), torch.zeros(3, 3), torch.ones(3, 3).triu()):
        with pytest.raises(ValueError, match="prior_mean: expected a symmetric positive semidefinite matrix"):
            BlockRenormalizedKernel(Halves(), 5.0, prior_mean=bad)
    kernel = BlockRenormalizedKernel(Halves(), 5.0)
    with pytest.raises(ValueError, match=r"expected shape \(..., 3, 3\), got \(2, 2\)"):
        kernel.order_parameter = torch.eye(2)
    with pytest.raises(NotImplementedError, match="last_dim_is_batch"):
        kernel(points(), last_dim_is_batch=True).to_dense()
