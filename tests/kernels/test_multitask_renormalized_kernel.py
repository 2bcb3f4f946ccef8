"""The kernel of several outputs: what it is, that MAP training is the theory, and its life as a GPyTorch kernel."""

from __future__ import annotations

import copy
import math
import pickle

import gpytorch
import pytest
import torch

from torch_propkernel import NNGPKernel, RenormalizedNNGPKernel
from torch_propkernel.actions import solve_matrix_order_parameters
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.order_parameters import OrderParameterPrior, WishartOrderParameterPrior

pytestmark = pytest.mark.usefixtures("in_double_precision")

DOUBLE = torch.float64


def points(number=6, columns=4, seed=0):
    return torch.randn(number, columns, generator=torch.Generator().manual_seed(seed))


def positive(size=2, seed=0, *batch):
    root = torch.randn(*batch, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.eye(size) + root @ root.mT / size


def test_the_covariance_is_interleaved_and_its_diagonal_is_that_of_the_matrix():
    kernel = MultitaskRenormalizedKernel("erf", [20.0, 30.0], num_tasks=2, bias_variance=0.5)
    kernel.order_parameter = positive(2, 1, 2)
    x, z = points(), points(seed=1)
    infinite = NNGPKernel("erf", depth=2, bias_variance=0.5)
    q = kernel.output_covariance
    for a, b in ((x, x), (x, z)):
        expected = torch.kron(infinite(a, b).to_dense(), q)
        torch.testing.assert_close(kernel(a, b).to_dense(), expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(kernel(a, b, diag=True), expected.diagonal(), rtol=1e-13, atol=1e-13)
    assert kernel(x).shape == (12, 12) and kernel.num_outputs_per_input(x, x) == 2


def test_the_product_of_layers_has_the_law_of_the_chain():
    """Q_1 given Q_2 is Wishart with mean Q_2: the average over E_1 is R_2 R_2^T (N + B + 1) / N."""
    kernel = MultitaskRenormalizedKernel("identity", [4.0, 6.0], num_tasks=2)
    upper = positive(2, 3)
    draws = WishartOrderParameterPrior([4.0, 6.0], 2)
    torch.manual_seed(0)
    lower = draws.rsample(torch.Size([4000]))[:, 0]
    total = torch.zeros(2, 2)
    for matrix in lower:
        kernel.order_parameter = torch.stack([matrix, upper])
        total += kernel.output_covariance.detach() / len(lower)
    torch.testing.assert_close(total, upper * 7 / 4, rtol=0.05, atol=0.05)  # 4,000 draws: 2 % each


def test_a_plain_training_loop_solves_the_theory():
    x = points(20, 15)
    y = x[:, :3] + 0.1 * points(20, 3, seed=5)
    kernel = MultitaskRenormalizedKernel("erf", [12.0, 20.0], num_tasks=3)
    model = MultitaskNetworkGP.with_temperature(x, y, kernel, temperature=0.1)
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
        loss = -objective(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    solution = solve_matrix_order_parameters(
        kernel.data_covar_module(x).to_dense().detach(), y, width=[12.0, 20.0], temperature=0.1
    )
    # LBFGS stops where the gradient is 1e-9.
    torch.testing.assert_close(kernel.order_parameter.detach(), solution.order_parameter, rtol=0, atol=1e-5)
    torch.testing.assert_close(kernel.output_covariance.detach(), solution.output_covariance, rtol=0, atol=1e-5)


def test_one_output_is_the_scalar_kernel():
    x = points()
    many = MultitaskRenormalizedKernel("relu", [5.0, 9.0], num_tasks=1)
    one = RenormalizedNNGPKernel("relu", [5.0, 9.0])
    many.order_parameter = torch.tensor([0.7, 1.5]).reshape(2, 1, 1)
    one.order_parameter = torch.tensor([0.7, 1.5])
    torch.testing.assert_close(many(x).to_dense(), one(x).to_dense(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        many.order_parameter_prior.log_prob(many.order_parameter),
        one.order_parameter_prior.log_prob(one.order_parameter).squeeze(0),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("width", [0.5, 3.0, 200.0])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_prior_is_torchs_wishart(width, size):
    prior = WishartOrderParameterPrior(width, size)
    law = torch.distributions.Wishart(torch.tensor(width + size + 1.0), torch.eye(size) / width)
    matrix = positive(size, 4)
    torch.testing.assert_close(prior.log_prob(matrix.unsqueeze(0)), law.log_prob(matrix).reshape(1), rtol=1e-10, atol=0)
    assert prior.log_prob(matrix.unsqueeze(0)) < prior.log_prob(prior.mode)


def test_draws_of_the_prior_have_its_moments():
    torch.manual_seed(0)
    draws = WishartOrderParameterPrior([3.0, 50.0], 2).rsample(torch.Size([20000]))
    freedom, width = torch.tensor([6.0, 53.0]), torch.tensor([3.0, 50.0])
    torch.testing.assert_close(draws.mean(0), (freedom / width)[:, None, None] * torch.eye(2), rtol=0, atol=0.03)
    # Var E_ij = nu (1 + delta_ij) / N^2
    torch.testing.assert_close(draws[..., 0, 1].var(0), freedom / width**2, rtol=0.05, atol=0)
    torch.testing.assert_close(draws[..., 0, 0].var(0), 2 * freedom / width**2, rtol=0.05, atol=0)


def test_the_prior_at_extreme_widths():
    unit = torch.eye(3).unsqueeze(0)
    assert WishartOrderParameterPrior(math.inf, 3).log_prob(2.0 * unit).item() == 0.0
    wide = WishartOrderParameterPrior(1e14, 3).log_prob(unit)  # Gaussian: 6 coordinates of precision N / 2
    # The volume of the off-diagonal coordinates is counted once: they have precision N.
    gauss = 0.5 * (3 * math.log(1e14 / (4 * math.pi)) + 3 * math.log(1e14 / (2 * math.pi)))
    assert wide.item() == pytest.approx(gauss, rel=1e-10)
    one = OrderParameterPrior(1e14).log_prob(torch.ones(1, 1)).item()
    assert WishartOrderParameterPrior(1e14, 1).log_prob(torch.ones(1, 1, 1)).item() == pytest.approx(one, rel=1e-12)
    assert torch.equal(WishartOrderParameterPrior(math.inf, 2).rsample(), torch.eye(2).unsqueeze(0))


def test_batches_are_indexed_and_expanded_with_their_widths():
    kernel = MultitaskRenormalizedKernel("erf", torch.tensor([[10.0], [20.0]]), num_tasks=2)
    kernel.order_parameter = positive(2, 6, 2, 1)
    x = points().expand(2, -1, -1)
    whole = kernel(x).to_dense()
    assert whole.shape == (2, 12, 12)
    for index in range(2):
        single = kernel[index]
        assert single.width.tolist() == [[[10.0], [20.0]][index]]
        torch.testing.assert_close(single(x[index]).to_dense(), whole[index], rtol=1e-13, atol=0)
    expanded = MultitaskRenormalizedKernel("erf", 10.0, num_tasks=2).expand_batch(torch.Size([3]))
    assert expanded.width.shape == (3, 1, 1) and expanded(points().expand(3, -1, -1)).shape == (3, 12, 12)


def test_it_pickles_copies_and_loads():
    kernel = MultitaskRenormalizedKernel("relu", [5.0, 9.0], num_tasks=2)
    kernel.order_parameter = positive(2, 7, 2)
    x = points()
    for other in (pickle.loads(pickle.dumps(kernel)), copy.deepcopy(kernel)):
        assert torch.equal(other(x).to_dense(), kernel(x).to_dense())
    fresh = MultitaskRenormalizedKernel("relu", [6.0, 6.0], num_tasks=2)
    fresh.load_state_dict(kernel.state_dict())
    assert torch.equal(fresh(x).to_dense(), kernel(x).to_dense())
    assert torch.equal(fresh.order_parameter_prior.width, kernel.width)


def test_infinite_layers_do_not_move():
    kernel = MultitaskRenormalizedKernel("erf", [math.inf, math.inf], num_tasks=2)
    kernel.order_parameter = positive(2, 8, 2)
    assert torch.equal(kernel.output_covariance, torch.eye(2))


def test_gradients_of_the_kernel():
    kernel = MultitaskRenormalizedKernel("erf", [5.0, 9.0], num_tasks=2)
    x, raw = points(3, 2), (0.3 * torch.randn(2, 2, 2)).requires_grad_()

    def function(raw):
        return torch.func.functional_call(kernel, {"raw_order_parameter": raw}, (x, x), {}).to_dense()

    torch.autograd.gradcheck(function, (raw,))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_tasks: expected a whole number >= 1, got 0"):
        MultitaskRenormalizedKernel("erf", 5.0, num_tasks=0)
    with pytest.raises(ValueError, match="width"):
        MultitaskRenormalizedKernel("erf", -5.0, num_tasks=2)
    kernel = MultitaskRenormalizedKernel("erf", 5.0, num_tasks=2)
    with pytest.raises(ValueError, match=r"expected shape \(..., 2, 2\), got \(3, 3\)"):
        kernel.order_parameter = torch.eye(3)
    with pytest.raises(ValueError, match="symmetric positive definite"):
        kernel.order_parameter = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
