"""Around a minimum in matrix order parameters: Gaussian fluctuations, and how the minimum moves with the problem."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..numerics.symmetric import symmetric_basis


def directions(u: Tensor, vectors: Tensor) -> Tensor:
    r"""Return the directions dQ/dY_p of the coordinates of a minimum, ``n x C x D x D``.

    .. math:: Q(Y) = V \rho^{1/2}\, e^Y \rho^{1/2}\, V^T, \qquad Y = \sum_p Y_p B_p

    with B_p the orthonormal basis of the symmetric matrices. In them the invariant measure, dQ over the determinant of
    Q to the power (D + 1) / 2, is flat at Y = 0.

    Args:
        u: log rho, ``n x D``.
        vectors: V, ``n x D x D``.
    """
    half = (0.5 * u).exp()
    scaled = symmetric_basis(u.shape[-1], u) * (half.unsqueeze(-1) * half.unsqueeze(-2)).unsqueeze(-3)
    turn = vectors.unsqueeze(-3)
    return turn @ scaled @ turn.mT


def layer_softness(order_parameter: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the softness s of Q = Q_1 under the chain of Wishart laws, and the logarithms of its pivots, ``n x C``.

    Around matrices that commute the chain Q_1, ..., Q_L separates into the pairs (a, b) of eigenvectors,

    .. math:: \sum_l N_l \big[\tfrac{e_{al} + e_{bl}}{2} (Y_l^2 + Y_{l+1}^2) - 2 \sqrt{e_{al} e_{bl}}\, Y_l Y_{l+1}\big]

    (half of it, Y_{L+1} = 0). The layers above the first are eliminated; 1/s is the stiffness that is left, and the sum
    of the logarithms is the log determinant of all layers against that at infinite temperature, where e = 1. A layer of
    infinite width adds nothing. D = 1: s = sum_l 1 / (N_l e_l).

    Args:
        order_parameter: Eigenvalues e_l of the layers, ``n x L x D``.
        width: N_l, ``n x L``.
    """
    row, column = torch.tril_indices(*[order_parameter.shape[-1]] * 2, device=order_parameter.device)
    first, second = order_parameter[..., row], order_parameter[..., column]
    finite = torch.isfinite(width).unsqueeze(-1)
    number = torch.where(finite, width.unsqueeze(-1), 1.0)
    mean, apart = 0.5 * (first + second), torch.where(finite, number * (0.5 * (first - second)).square(), 0.0)
    own = torch.where(finite, 1.0 / number, 0.0)
    softness = logs = torch.zeros_like(first[..., 0, :])
    for layer in reversed(range(width.shape[-1])):
        pivot = apart[..., layer, :] * softness + mean[..., layer, :]
        softness = (mean[..., layer, :] * softness + own[..., layer, :]) / pivot
        logs = logs + pivot.log()
    return softness, logs


class MatrixMinimum:
    r"""Second derivatives of N_L S at minima of n problems, in the coordinates of :func:`directions`.

    .. math:: N_L\, d^2 S = dY^T [s^{-1} + H]\, dY, \qquad
              H_{pq} = D''[\partial_p Q, \partial_q Q] + \tfrac12 \mathrm{tr}\, G (B_p B_q + B_q B_p)

    D is the data's part, log det A + y^T A^{-1} y, G = rho^{1/2} V^T (dD/dQ) V rho^{1/2}, and s the layers'
    (:func:`layer_softness`).

    Args:
        u: log rho, ``n x D``.
        order_parameter: Eigenvalues of the layers, ``n x L x D``.
        width: N_l, ``n x L``.
        slope: V^T (dD/dQ) V, ``n x D x D``.
        curvature: D'' along the directions, ``n x C x C``.

    Reference: THEORY.md, section 11, eq. (21d).
    """

    def __init__(self, u: Tensor, order_parameter: Tensor, width: Tensor, slope: Tensor, curvature: Tensor) -> None:
        """Put both parts together."""
        half, basis = (0.5 * u).exp(), symmetric_basis(u.shape[-1], u)
        pulled = (slope * half.unsqueeze(-1) * half.unsqueeze(-2)).unsqueeze(-3) @ basis  # n x C x D x D
        bent = pulled.flatten(-2) @ basis.flatten(-2).mT
        self.softness, self.pivots = layer_softness(order_parameter, width)
        self._narrow = (width < u.shape[-1]).any(-1)
        root = self.softness.sqrt()
        unit = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        curved = curvature + 0.5 * (bent + bent.mT)
        self._inner = unit + root.unsqueeze(-1) * (0.5 * (curved + curved.mT)) * root.unsqueeze(-2)

    def log_fluctuations(self) -> Tensor:
        """Return the log determinant of the second derivatives against that without data, ``n``; NaN off a minimum."""
        return self.pivots.sum(-1) + torch.logdet(self._inner)

    def log_evidence(self, excess: Tensor, num_targets: int) -> Tensor:
        """Return log p(y) by Laplace's method, ``n``; NaN off a minimum, and where a layer has fewer than D units.

        Args:
            excess: N_L S less what it is at E = 1 without data, ``n``.
            num_targets: Number of all targets.
        """
        value = -0.5 * (excess + num_targets * math.log(2.0 * math.pi) + self.log_fluctuations())
        return torch.where(self._narrow, torch.nan, value)

    def of(self, index: int) -> MatrixMinimum:
        """Return one of the problems, without batch dimension."""
        made = MatrixMinimum.__new__(MatrixMinimum)
        made.softness, made.pivots, made._narrow, made._inner = (
            v[index] for v in (self.softness, self.pivots, self._narrow, self._inner)
        )
        return made

    def shift(self, gradient: Tensor) -> Tensor:
        """Return the Y, ``n x C``, to which a minimum moves where the gradient in Y changes by a small one."""
        root = self.softness.sqrt()
        return -root * torch.linalg.solve(self._inner, root * gradient)


def covariance_curvature(
    covariances: Callable[[Tensor], Tensor], base: Tensor, targets: Tensor, order_parameter: Tensor, along: Tensor
) -> Tensor:
    r"""Return second derivatives of log det A + y^T A^{-1} y, A = base + M(E), along C symmetric matrices, ``C x C``.

    .. math:: D''[p, q] = -\langle A^{-1} M_p A^{-1} - b_p \alpha^T - \alpha b_p^T, M_q \rangle, \qquad
              b_p = A^{-1} M_p \alpha

    with M_p = M(E_p) and alpha = A^{-1} y. Cost: for each direction two solves of P right-hand sides and two passes
    over the blocks, of which none is held.

    Args:
        covariances: M, linear.
        base: Noise, and what else does not move, ``P x P``.
        targets: y, ``P``.
        order_parameter: E, ``D x D``.
        along: E_p, ``C x D x D``.
    """
    factor = torch.linalg.cholesky(base + covariances(order_parameter).to(base))
    weights = torch.cholesky_solve(targets.unsqueeze(-1), factor)
    rows = []
    for direction in along:
        inner = torch.cholesky_solve(covariances(direction).to(base), factor)
        bent = inner @ weights @ weights.mT
        pulled = bent + bent.mT - torch.cholesky_solve(inner.mT, factor)
        with torch.enable_grad():
            point = order_parameter.detach().requires_grad_(True)
            (row,) = torch.autograd.grad((covariances(point).to(base) * pulled).sum(), point)
        rows.append((row * along).sum((-2, -1)))
    return torch.stack(rows)
