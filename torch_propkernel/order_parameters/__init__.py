"""Order parameters of the hidden layers, and the prior that the widths dictate."""

from .chain import ScalarChain, StationaryLayers
from .linear_chain import LinearChain
from .prior import OrderParameterPrior
from .wishart_prior import WishartOrderParameterPrior

__all__ = ["LinearChain", "OrderParameterPrior", "ScalarChain", "StationaryLayers", "WishartOrderParameterPrior"]
