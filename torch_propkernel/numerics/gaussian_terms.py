"""The two terms of a Gaussian's log density that depend on its covariance, with their closed gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def log_det_and_square(covariance: Tensor, targets: Tensor) -> Tensor:
    r"""Return log det A + y^T A^{-1} y, ``*b``; infinite where A is not positive definite, without a useful gradient.

    .. math:: \frac{\partial}{\partial A} = A^{-1} - \alpha \alpha^T, \qquad
              \frac{\partial}{\partial y} = 2 \alpha, \qquad \alpha = A^{-1} y

    The trace of A^{-1} with a derivative of A needs all of A^{-1}, which is formed from the Cholesky factor: one
    factorization for the value and about two more for the gradient, where the graph of the factorization takes eight.
    It is differentiable any number of times.

    Args:
        covariance: A, ``*b x P x P``, symmetric; its lower triangle is read.
        targets: y, ``*b x P``.

    Example:
        >>> import torch
        >>> A, y = torch.full((1, 1), 2.0, requires_grad=True), torch.full((1,), 4.0)
        >>> value = log_det_and_square(A, y)   # log 2 + 16 / 2
        >>> torch.autograd.grad(value, A)[0].item()   # 1/2 - (4/2)^2
        -3.5
    """
    batch = torch.broadcast_shapes(covariance.shape[:-2], targets.shape[:-1])
    size = targets.shape[-1]
    covariance, targets = covariance.expand(*batch, size, size), targets.expand(*batch, size)
    value: Tensor = _Terms.apply(covariance, targets)
    return value


@torch.no_grad()
def cholesky_(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor L of a symmetric contiguous matrix, in its memory, and the info of ``cholesky_ex``."""
    columns = matrix.mT  # LAPACK works on columns
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, out=(columns, info))
    return columns, info


@torch.no_grad()
def terms_and_slope_(matrix: Tensor, targets: Tensor) -> Tensor:
    """Return log det A + y^T A^{-1} y of one matrix; its memory then holds A^{-1} - alpha alpha^T, the derivative in A.

    Not a number of another matrix is written: factor, inverse and derivative follow one another in the same place. The
    value is infinite where A is not positive definite, and the memory then of no use.

    Args:
        matrix: A, ``P x P``, symmetric, contiguous; overwritten.
        targets: y, ``P``.
    """
    columns, info = cholesky_(matrix)
    half = torch.linalg.solve_triangular(columns, targets.unsqueeze(-1), upper=False)
    if bool(info > 0):
        return half.new_tensor(torch.inf)
    value = _sum_of_terms(columns, half)
    weights = torch.linalg.solve_triangular(columns.mT, half, upper=True).squeeze(-1)
    torch.cholesky_inverse(columns, out=columns)
    columns.addr_(weights, weights, alpha=-1.0)
    return value


def _sum_of_terms(factor: Tensor, half: Tensor) -> Tensor:
    """Return the value from the Cholesky factor L, ``*b x P x P``, and L^{-1} y, ``*b x P x 1``."""
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + half.square().sum((-2, -1))


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, covariance: Tensor, targets: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(covariance)
        failed = (info > 0)[..., None]  # those get the identity; a mask as an index would wait for the device
        factor.masked_fill_(failed[..., None], 0.0).diagonal(dim1=-2, dim2=-1).masked_fill_(failed, 1.0)
        half = torch.linalg.solve_triangular(factor, targets.unsqueeze(-1), upper=False)
        value = _sum_of_terms(factor, half)
        ctx.save_for_backward(covariance, targets, factor)
        return torch.where(info > 0, torch.inf, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        covariance, targets, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # this derivative is to be differentiated again
            factor = torch.linalg.cholesky_ex(covariance).L
        weights = torch.cholesky_solve(targets.unsqueeze(-1), factor)
        inverse, each = torch.cholesky_inverse(factor), grad[..., None, None]
        if torch.is_grad_enabled():
            slope = each * torch.addcmul(inverse, weights, weights.mT, value=-1.0)
        else:
            slope = inverse.addcmul_(weights, weights.mT, value=-1.0).mul_(each)
        # LAPACK writes columns: the transpose, which is the same matrix, is read in rows as other matrices are.
        return slope.mT, 2.0 * each.squeeze(-1) * weights.squeeze(-1)
