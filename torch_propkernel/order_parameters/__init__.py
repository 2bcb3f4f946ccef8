"""Order parameters of the hidden layers, and the prior that the widths dictate."""

from .chain import ScalarChain, StationaryLayers
from .prior import OrderParameterPrior

__all__ = ["OrderParameterPrior", "ScalarChain", "StationaryLayers"]
