"""The matrices that stacked convolutions put between the order parameters of their layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..order_parameters import LinearChain
from .patches import Patches


def patch_chain(stack: Sequence[Patches], pooled: bool) -> tuple[Tensor, LinearChain]:
    r"""Return the chain of order parameters of stacked linear convolutions, and where its lowest matrix acts.

    .. math:: Q_l = U_l G_l U_l^T, \qquad S_l = \frac{1}{F_{l+1}} \sum_t A_t^T\, Q_{l+1}\, A_t, \qquad
              B_{lt} = F_{l+1}^{-1/2}\, U_{l+1}^T A_t U_l

    (A_t)_{ps} = 1 where place t of patch p of layer l + 1 is patch s of layer l; U_l, ``B_l x r_l``, has orthonormal
    columns that span the range of S_l, the identity where that is everything, and :math:`1/\sqrt{B}` for a pool.

    Args:
        stack: Patches of the layers.
        pooled: Whether the readout reads the mean over the patches of the last layer.

    Returns:
        U_1, ``B_1 x r_1``, and the chain, in float64.
    """
    number = stack[-1].num_patches
    basis = torch.eye(number, dtype=torch.float64)
    if pooled:
        basis = torch.full((number, 1), number**-0.5, dtype=torch.float64)
    maps, size = [], basis.shape[-1]
    for patches, below in zip(stack[:0:-1], stack[-2::-1], strict=True):
        meets = one_hot(patches.sites + 1, below.num_patches + 1)[
            ..., 1:
        ].double()  # B_{l+1} x F x B_l, none in padding
        lifted = basis.mT @ meets.movedim(1, 0) * meets.shape[1] ** -0.5
        basis = _range((lifted.mT @ lifted).sum(0))
        maps.append(lifted @ basis)
    return basis, LinearChain(maps[::-1], size)


def _range(matrix: Tensor) -> Tensor:
    """Return orthonormal columns that span a positive semidefinite matrix; the identity where it is not singular."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return torch.eye(len(values), dtype=values.dtype) if bool(kept.all()) else vectors[:, kept]
