"""The latent function of a Student's t process at some points."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from linear_operator.operators import LinearOperator
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from ..distributions.indexing import split_index
from ..distributions.multivariate_student_t import MultivariateStudentT


class LatentStudentT(MultivariateStudentT):
    r"""A Student's t of latent values that knows the expected scale, by which noise inside the scale is multiplied.

    .. math:: f \mid r \sim N(m, r \Sigma), \qquad \mathrm{Cov} f = E[r]\, \Sigma

    E[r] is one a priori and (nu + b - 2) / (nu + n - 2) after n data. :class:`StudentTProcess` returns it;
    :class:`StudentTProcessLikelihood` needs it. Indexing and expanding keep E[r].

    Shapes: loc ``*b x n``, covariance ``*b x n x n``, df and mean_scale broadcastable to ``*b``.

    Args:
        loc: Mean.
        covariance: Covariance matrix (not the scale matrix), a tensor or a linear operator.
        df: Degrees of freedom.
        mean_scale: E[r].

    Attributes:
        mean_scale: E[r], ``*b``.

    Reference: THEORY.md, section 2.

    Example:
        >>> f = LatentStudentT(torch.zeros(3), torch.eye(3), torch.tensor(5.0), torch.tensor(2.0))
        >>> f[..., :2].mean_scale.item(), tuple(f[..., :2].event_shape)
        (2.0, (2,))
    """

    def __init__(self, loc: Tensor, covariance: Tensor | LinearOperator, df: Tensor, mean_scale: Tensor) -> None:
        """Store E[r] beside the distribution."""
        super().__init__(loc, None, df, covariance=covariance)
        self.mean_scale = mean_scale.expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LatentStudentT:
        """Return the distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return LatentStudentT(
            self.loc.expand(*shape, -1),
            self.lazy_covariance_matrix,
            self.df.expand(shape),
            self.mean_scale.expand(shape),
        )

    def __getitem__(self, index: Any) -> LatentStudentT:
        """Return the distribution of some points or batch elements."""
        found = super().__getitem__(index)
        rest, _ = split_index(index, len(self.batch_shape))
        return LatentStudentT(found.loc, found.lazy_covariance_matrix, found.df, self.mean_scale[rest])

    @cached_property
    def _root(self) -> Tensor:
        # A posterior covariance is a difference: it is positive semi-definite up to the rounding of the prior's.
        root = safe_root(self._dense_scale)
        return root.expand(*self.batch_shape, *root.shape[-2:])


def safe_root(matrix: Tensor) -> Tensor:
    """Cholesky factor; jitter, where rounding makes it necessary, is relative to the largest variance and reported."""
    largest = matrix.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(matrix.dtype).tiny)[..., None, None]
    return psd_safe_cholesky(matrix / largest, max_tries=5) * largest.sqrt()
