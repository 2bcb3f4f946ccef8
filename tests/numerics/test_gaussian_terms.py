"""log det A + y^T A^{-1} y against an LU factorization, and its derivatives against differences."""

import pytest
import torch

from torch_propkernel.numerics.gaussian_terms import cholesky_, log_det_and_square, terms_and_slope_


def covariances(*shape):
    draws = torch.randn(*shape, shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return draws @ draws.mT + torch.eye(shape[-1], dtype=torch.float64)


@pytest.mark.parametrize(("batch", "of_targets"), [((), ()), ((3,), ()), ((), (2,)), ((2, 1), (3,))])
def test_value(batch, of_targets):
    covariance, targets = covariances(*batch, 5), covariances(*of_targets, 5)[..., 0]
    expected = torch.linalg.slogdet(covariance).logabsdet
    expected = expected + (targets * torch.linalg.solve(covariance, targets.unsqueeze(-1)).squeeze(-1)).sum(-1)
    torch.testing.assert_close(log_det_and_square(covariance, targets), expected, rtol=1e-12, atol=1e-12)


def test_first_and_second_derivatives():
    covariance, targets = covariances(2, 4).requires_grad_(), covariances(4)[0].requires_grad_()

    def function(covariance, targets):  # a difference in one entry of A leaves it symmetric
        return log_det_and_square(0.5 * (covariance + covariance.mT), targets)

    assert torch.autograd.gradcheck(function, (covariance, targets))
    assert torch.autograd.gradgradcheck(function, (covariance, targets))


@pytest.mark.parametrize("diagonal", [[1.0, -1.0, 2.0], [1.0, 0.0, 2.0]])
def test_not_positive_definite_is_infinite_and_leaves_the_others_alone(diagonal):
    covariance = torch.stack([torch.diag(torch.tensor(diagonal)), torch.eye(3)]).requires_grad_()
    value = log_det_and_square(covariance, torch.ones(3))
    assert value.tolist() == [torch.inf, 3.0]
    (gradient,) = torch.autograd.grad(value.sum(), covariance)
    torch.testing.assert_close(gradient[1], torch.eye(3) - torch.ones(3, 3))


def test_value_and_derivative_of_one_matrix_in_its_own_memory():
    root = torch.randn(6, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    covariance, targets = root @ root.mT, root[:, 0]
    memory = covariance.clone()
    value = terms_and_slope_(memory, targets)
    weights = torch.linalg.inv(covariance) @ targets
    expected = torch.linalg.slogdet(covariance).logabsdet + targets @ weights
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(memory, torch.linalg.inv(covariance) - weights.outer(weights), rtol=1e-10, atol=1e-12)
    memory = covariance.clone()
    factor, info = cholesky_(memory)
    assert factor.data_ptr() == memory.data_ptr() and info == 0 and float(factor.triu(1).abs().max()) == 0
    torch.testing.assert_close(factor @ factor.mT, covariance, rtol=1e-12, atol=1e-12)
    assert terms_and_slope_(-covariance, targets) == torch.inf
