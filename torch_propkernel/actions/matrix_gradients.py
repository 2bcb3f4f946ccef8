"""Derivatives of matrix order parameters and of their action with respect to what the problem is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..numerics.symmetric import relative_eigh, to_coordinates
from ..order_parameters import ScalarChain
from .matrix_minimum import MatrixMinimum


def linear_terms(data: Callable[[Tensor], Tensor], order_parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Return D = log det A + y^T A^{-1} y and dD/dQ, ``D x D``, as functions of what A and y are made of.

    Args:
        data: D as a function of Q.
        order_parameter: Q.
    """
    point = order_parameter.detach().requires_grad_(True)
    value = data(point)
    (gradient,) = torch.autograd.grad(value, point, create_graph=True)
    return value, 0.5 * (gradient + gradient.mT)


def output_terms(
    kernel_matrix: Tensor, targets: Tensor, noise: Tensor, u: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return D and dD/dQ of D outputs without missing targets, right to first order in K, Y and the noise.

    With :math:`B^T \mathrm{noise}\, B = 1` and :math:`B^T Q B = \mathrm{diag}(\rho)` fixed at their present values, and
    :math:`\eta = B^T \mathrm{noise}\, B` as it changes,

    .. math:: A_d = \eta_{dd} + \rho_d K, \qquad
              \alpha_d = A_d^{-1} \Big[(Y B)_d - \sum_{e \ne d} \eta_{de}\, \alpha_e\Big], \qquad
              B^T \frac{dD}{dQ} B = \delta_{de}\, \mathrm{tr} A_d^{-1} K - \alpha_d^T K \alpha_e
              - [d \ne e]\, \eta_{de}\, \mathrm{tr} A_d^{-1} A_e^{-1} K

    Cost: D factorizations of P rows, memory 3 D P^2; D P^2 further numbers for each pair where the noise moves.

    Args:
        kernel_matrix: K, ``P x P``.
        targets: Y, ``P x D``.
        noise: Noise covariance of a point, ``D x D``.
        u: log of the eigenvalues of Q, ``D``.
        vectors: Its eigenvectors, ``D x D``.
    """
    with torch.no_grad():
        scale, mix = relative_eigh(u.exp(), vectors, torch.linalg.cholesky(noise))
        constant = -2.0 * len(targets) * torch.linalg.slogdet(mix).logabsdet
    turned = mix.mT @ noise @ mix
    own = turned.diagonal()
    mixed = turned - torch.diag(own)
    mixed = mixed - mixed.detach()  # zero but for its derivatives
    unit = torch.eye(len(targets), dtype=targets.dtype, device=targets.device)
    factor = torch.linalg.cholesky(own[:, None, None] * unit + scale[:, None, None] * kernel_matrix)
    y = (targets @ mix).mT.unsqueeze(-1)  # D x P x 1
    first = torch.cholesky_solve(y, factor)
    pulled = torch.tensordot(mixed, first.detach(), 1)
    weights = torch.cholesky_solve(y - pulled, factor).squeeze(-1)
    value = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum() + (y * first).sum() + constant
    value = value - (first.detach() * pulled).sum()
    ratio = torch.cholesky_solve(kernel_matrix.expand_as(factor), factor)
    gradient = torch.diag(ratio.diagonal(dim1=-2, dim2=-1).sum(-1)) - weights @ kernel_matrix @ weights.mT
    if mixed.requires_grad:
        with torch.no_grad():
            inverse = torch.cholesky_inverse(factor)
            met = inverse.flatten(1) @ ratio.mT.flatten(1).mT
        gradient = gradient - mixed * met
    return value, mix @ gradient @ mix.mT


def layers_part(order_parameter: Tensor, width: Tensor) -> Tensor:
    """Return sum_l N_l (tr E_l - log det E_l) of one problem from eigenvalues ``L x D``; infinite layers give zero."""
    finite = torch.isfinite(width)
    return (torch.where(finite, width, 0.0) * (order_parameter - order_parameter.log()).sum(-1)).sum()


def moved_minimum(
    minimum: MatrixMinimum,
    chain: ScalarChain,
    width: Tensor,
    u: Tensor,
    vectors: Tensor,
    along: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return Q, ``D x D``, and the layers' E_l, ``L x D x D``, of one problem with their implicit derivatives.

    .. math:: dQ = \sum_p \partial_p Q\, dY_p, \qquad dY = -[s^{-1} + H]^{-1} d(\text{gradient in } Y)

    and the E_l, which commute with Q, follow by the divided differences of e_l(rho) (Daleckii and Krein).

    Args:
        minimum: The second derivatives.
        chain: The layers of each eigenvalue, widths ``1 x L``.
        width: N_l with their graph, ``L``.
        u: log of the eigenvalues of Q, ``D``.
        vectors: Its eigenvectors, ``D x D``.
        along: Directions of the coordinates Y, ``C x D x D``.
        gradient: dD/dQ with its graph, ``D x D``.
    """
    layers = chain.at_log_scale(u)
    pull, own = chain.moved(u, torch.zeros_like(u), width)
    slope = (gradient * along).sum((-2, -1)) + to_coordinates(torch.diag(pull))
    shift = minimum.shift(slope - slope.detach())
    change = vectors.mT @ torch.tensordot(shift, along, 1) @ vectors  # of Q, in its eigenbasis
    covariance = vectors @ (torch.diag(u.exp()) + change) @ vectors.mT
    scale, e = u.exp(), layers.order_parameter.mT  # L x D
    steps = (u.unsqueeze(-1) - u.unsqueeze(-2)).abs()
    far = scale.unsqueeze(-1) - scale.unsqueeze(-2)
    number = torch.where(chain.finite, chain.width, 1.0).mT  # L x 1
    rate = torch.where(chain.finite.mT, layers.stiffness / (number * scale), 0.0)
    near = 0.5 * (rate.unsqueeze(-1) + rate.unsqueeze(-2))
    close = steps < 1e-5  # where the mean of both derivatives is right to the square of the distance
    differences = (e.unsqueeze(-1) - e.unsqueeze(-2)) / torch.where(close, torch.ones_like(far), far)
    table = torch.where(close, near, differences)
    order_parameter = vectors @ (torch.diag_embed(own.mT) + table * change) @ vectors.mT
    return covariance, order_parameter
