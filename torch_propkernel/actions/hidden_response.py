"""How the kernels of hidden layers answer to the data, to first order in 1/N."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..activations import Activation, Identity
from .first_order import draw_pre_activations

_GROUPS = 8
"""Groups of units, by whose differences the Monte Carlo error is known."""


@torch.no_grad()
def hidden_kernel_response(
    activation: Activation,
    covariances: Sequence[Tensor],
    weight_variances: Sequence[float],
    widths: Sequence[float],
    gradient: Tensor,
    num_units: int = 16384,
    seed: int = 0,
) -> list[Tensor]:
    r"""Return by how much the data move the mean of each hidden kernel, to first order in the inverse widths.

    .. math:: \langle \hat K_l \rangle - E \hat K_l = \mathrm{cov}(\hat K_l, \log p(y | \hat K_L)) = J_l\,
              \mathrm{w}_{l-1} (\langle \hat K_{l-1} \rangle - E \hat K_{l-1}) + \frac{1}{2 N_l}
              \mathrm{cov}_h(\phi \phi^T, \phi^T M_l \phi), \quad \phi = \sigma(h),\ h \sim N(0, C_{l-1})

    :math:`\hat K_l = \sigma(h^l)^T \sigma(h^l) / N_l` is the kernel of a network's layer, J_l the derivative of the
    dual at C_{l-1}, and M_L = ``gradient``, that of 2 log p(y), is carried down through the same derivatives to M_l. A
    layer of identity units gives :math:`C_{l-1} M_l C_{l-1} / N_l`; of others, the covariance is a sum over units that
    are drawn.

    Shapes: n points, L layers. Cost: for each layer one ``eigh`` of n points and 2 M n^2 for M units.

    Args:
        activation: The activation sigma of all layers.
        covariances: C_0, ..., C_{L-1}, the pre-activations' at infinite width, ``n x n`` each.
        weight_variances: w_1, ..., w_{L-1}, with C_l = w_l K_l + b_l.
        widths: N_1, ..., N_L, infinite ones too.
        gradient: M_L, ``n x n``, symmetric.
        num_units: M, units drawn in each layer.
        seed: Seed of the units.

    Returns:
        For each layer ``G x n x n``: the answers by each of eight groups of units, whose mean is the result; G = 1
        where it is exact.

    Reference: Zavatone-Veth et al. (2021), arXiv:2106.00651; derived here for any activation; THEORY.md, eq. (27).

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> hidden_kernel_response(Identity(), [2 * one], [], [10.0], 3 * one)[0].item()   # 2 * 3 * 2 / 10
        1.2
    """
    gradients = [gradient]
    for covariance, weight in zip(reversed(covariances[1:]), reversed(weight_variances), strict=True):
        gradients.insert(0, weight * _pulled_back(activation, covariance, gradients[0]))
    responses: list[Tensor] = []
    for index, (covariance, width) in enumerate(zip(covariances, widths, strict=True)):
        own = _of_units(activation, covariance, gradients[index], num_units, seed + index) / width
        if responses:
            own = own + _pushed_forward(activation, covariance, weight_variances[index - 1] * responses[-1])
        responses.append(own)
    return responses


def _of_units(activation: Activation, covariance: Tensor, gradient: Tensor, num_units: int, seed: int) -> Tensor:
    """Return cov(phi phi^T, phi^T M phi) / 2 over the units of one layer, ``G x n x n``."""
    if isinstance(activation, Identity):
        return (covariance @ gradient @ covariance).unsqueeze(0)
    found = []
    for group in range(_GROUPS):
        h, _ = draw_pre_activations(covariance, -(-num_units // _GROUPS), seed * _GROUPS + group)
        phi = activation(h)
        form = ((phi @ gradient) * phi).sum(-1)
        found.append(phi.mT @ ((form - form.mean()).unsqueeze(-1) * phi) / (2.0 * (len(phi) - 1)))
    return torch.stack(found)


def _partials(activation: Activation, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives of the dual of a matrix in the variances of rows, the entries, those of columns."""
    row = covariance.diagonal().unsqueeze(-1)
    return activation.dual_partials(row, covariance, row.mT)


def _pushed_forward(activation: Activation, covariance: Tensor, change: Tensor) -> Tensor:
    """Return the change of the dual ``... x n x n`` for a change of the covariance."""
    of_rows, of_entries, of_columns = _partials(activation, covariance)
    variances = change.diagonal(dim1=-2, dim2=-1)
    return of_rows * variances.unsqueeze(-1) + of_entries * change + of_columns * variances.unsqueeze(-2)


def _pulled_back(activation: Activation, covariance: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient ``n x n`` in the covariance for one in its dual: the transpose of :func:`_pushed_forward`."""
    of_rows, of_entries, of_columns = _partials(activation, covariance)
    variances = (of_rows * gradient).sum(-1) + (of_columns * gradient).sum(-2)
    return of_entries * gradient + torch.diag_embed(variances)
