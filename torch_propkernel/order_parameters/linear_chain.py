"""Matrix order parameters of stacked linear layers, each Wishart around a linear function of the one above."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics.symmetric import from_coordinates, num_coordinates, to_coordinates


class LinearChain:
    r"""Map from the matrices E_1, ..., E_L of a chain of Wishart laws to its lowest one.

    .. math:: G_L = E_L, \qquad G_l = \Lambda_l\, E_l\, \Lambda_l^T, \qquad
              \Lambda_l \Lambda_l^T = \sum_t B_{lt}^T\, G_{l+1}\, B_{lt} \quad (\Lambda_l \text{ lower triangular})

    With independent :math:`E_l \sim \mathrm{Wishart}(N_l, I / N_l)` these are :math:`G_l | G_{l+1} \sim
    \mathrm{Wishart}(N_l, M_l / N_l)` with the mean :math:`M_l = \sum_t B_{lt}^T G_{l+1} B_{lt}`. The maps B_lt,
    ``r_{l+1} x r_l``, are fixed; the columns of all of them together have rank r_l, so that M_l is positive definite.
    G_1 is linear in E_1. Without maps the chain is one matrix, G_1 = E_1.

    The matrices have different sizes r_l. As one tensor, ``*b x L x r x r`` with r the largest, they stand in the upper
    left corner of each slice; what is outside has no effect, and under the prior it is the identity at every maximum.

    Args:
        maps: B_l for l = 1, ..., L - 1, ``F_l x r_{l+1} x r_l`` each.
        size: r_L.

    Attributes:
        sizes: r_1, ..., r_L.

    Raises:
        ValueError: Maps that do not follow one another.

    Reference: THEORY.md, section 12, eq. (26).

    Example:
        >>> import torch
        >>> chain = LinearChain([torch.ones(2, 1, 1)], size=1)
        >>> round(chain([torch.tensor([[3.0]]), torch.tensor([[5.0]])]).item(), 4)   # 3 (5 + 5)
        30.0
    """

    def __init__(self, maps: Sequence[Tensor], size: int) -> None:
        """Check that the maps follow one another."""
        self.maps = tuple(maps)
        self.sizes = (*(own.shape[-1] for own in self.maps), size)
        rows = tuple(own.shape[-2] for own in self.maps)
        if rows != self.sizes[1:]:
            raise ValueError(f"maps: expected {self.sizes[1:]} rows, the columns of the next ones, got {rows}")

    @property
    def depth(self) -> int:
        """Number L of matrices."""
        return len(self.sizes)

    @property
    def size(self) -> int:
        """The largest of the sizes."""
        return max(self.sizes)

    def __call__(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return G_1, ``*b x r_1 x r_1``, of E_1, ..., E_L, each ``*b x r_l x r_l``."""
        found = matrices[-1]
        for own, maps in zip(reversed(matrices[:-1]), reversed(self.maps), strict=True):
            maps = maps.to(found)
            mean = (maps.mT @ found.unsqueeze(-3) @ maps).sum(-3)
            root = torch.linalg.cholesky_ex(mean)[0]
            found = root @ own @ root.mT
        return found

    def to_coordinates(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return the coordinates of symmetric matrices, one for each layer, one after another, ``*b x C``."""
        return torch.cat([to_coordinates(matrix) for matrix in matrices], -1)

    def from_coordinates(self, coordinates: Tensor) -> list[Tensor]:
        """Return the symmetric matrices of coordinates ``*b x C``, one for each layer."""
        parts = coordinates.split([num_coordinates(size) for size in self.sizes], -1)
        return [from_coordinates(part, size) for part, size in zip(parts, self.sizes, strict=True)]

    def matrices(self, order_parameter: Tensor) -> list[Tensor]:
        """Return E_1, ..., E_L in their own sizes from one tensor, ``*b x L x r x r``."""
        return [order_parameter[..., l, :size, :size] for l, size in enumerate(self.sizes)]

    def tensor(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return E_1, ..., E_L as one tensor, ``*b x L x r x r``, with the identity where they are smaller."""
        whole = torch.eye(self.size, dtype=matrices[0].dtype, device=matrices[0].device)
        slices = []
        for matrix, size in zip(matrices, self.sizes, strict=True):
            own = whole.expand(*matrix.shape[:-2], *whole.shape).clone()
            own[..., :size, :size] = matrix
            slices.append(own)
        return torch.stack(slices, -3)
