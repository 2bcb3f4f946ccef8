"""A kernel matrix and targets, reduced once for all widths and temperatures."""

from .spectrum import Spectrum, TridiagonalSpectrum
from .tridiagonal import Tridiagonal

__all__ = ["Spectrum", "Tridiagonal", "TridiagonalSpectrum"]
