"""The noise of points that share a bias, and the coordinates in which it is white."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class SharedNoise(NamedTuple):
    r"""Noise of P points, each with its own of variance T, all with one bias of the readout of variance v_b.

    .. math:: T + v_b 1 1^T = T R^2, \qquad R = 1 + (\rho - 1) \frac{1 1^T}{P}, \qquad
              \rho = \sqrt{1 + P v_b / T}

    To the hidden units a bias is noise that all points share. In the coordinates R^{-1} y it is white with the variance
    T, and the theory is the one without a bias: targets and features are whitened, where the mean over the points is
    divided by rho. Covariances become R^{-1} C R^{-1}, precisions R B R.

    Attributes:
        temperature: T.
        bias_variance: v_b; zero without a bias, when nothing is changed.
        size: P.

    Reference: THEORY.md, section 9.

    Example:
        >>> import torch
        >>> from torch_propkernel.cavity import SharedNoise
        >>> noise = SharedNoise(temperature=0.5, bias_variance=2.0, size=3)
        >>> covariance = 0.5 * torch.eye(3) + 2.0
        >>> torch.allclose(noise.whiten(noise.whiten(covariance).mT), 0.5 * torch.eye(3), atol=1e-6)
        True
    """

    temperature: float = 1.0
    bias_variance: float = 0.0
    size: int = 1

    @property
    def stretch(self) -> float:
        """Return rho, the determinant of R."""
        return math.sqrt(1.0 + self.size * self.bias_variance / self.temperature)

    def whiten(self, values: Tensor) -> Tensor:
        """Return R^{-1} along the last dimension, ``... x P``."""
        return self._stretched(values, 1.0 / self.stretch)

    def restore(self, values: Tensor) -> Tensor:
        """Return R along the last dimension, ``... x P``."""
        return self._stretched(values, self.stretch)

    def whiten_both(self, matrix: Tensor) -> Tensor:
        """Return R^{-1} M R^{-1} of a symmetric matrix: a covariance whitened, or a precision restored."""
        return self.whiten(self.whiten(matrix).mT)

    def restore_both(self, matrix: Tensor) -> Tensor:
        """Return R M R of a symmetric matrix: a covariance restored."""
        return self.restore(self.restore(matrix).mT)

    def _stretched(self, values: Tensor, factor: float) -> Tensor:
        return values if self.bias_variance == 0.0 else values + (factor - 1.0) * values.mean(-1, keepdim=True)
