"""Cholesky factors of covariance matrices, with jitter where rounding needs it and an error that says what to do."""

from __future__ import annotations

from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.errors import NotPSDError
from torch import Tensor

from ..exceptions import NotPositiveDefiniteError


def safe_cholesky(covariance: Tensor) -> Tensor:
    """Return the lower factor of ``*b x P x P``; GPyTorch's jitter is added, with its warning, where it fails without.

    Raises:
        NotPositiveDefiniteError: It fails with jitter too: the noise is below the rounding of the kernel.
    """
    try:
        return psd_safe_cholesky(covariance)
    except NotPSDError as error:
        diagonal = covariance.detach().diagonal(dim1=-2, dim2=-1)
        raise NotPositiveDefiniteError(
            "covariance: expected a positive definite matrix, got one that is not to rounding, with diagonal entries "
            f"up to {float(diagonal.max()):.3g}; scale the inputs down, or use float64 or a larger noise"
        ) from error
