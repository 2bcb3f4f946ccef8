"""A kernel matrix and targets, reduced once for all widths and temperatures."""

from .spectrum import Spectrum

__all__ = ["Spectrum"]
