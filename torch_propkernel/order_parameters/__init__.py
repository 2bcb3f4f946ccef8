"""Order parameters of the hidden layers, and the prior that the widths dictate."""

from .chain import ScalarChain, StationaryLayers
from .prior import OrderParameterPrior
from .wishart_prior import WishartOrderParameterPrior

__all__ = ["OrderParameterPrior", "ScalarChain", "StationaryLayers", "WishartOrderParameterPrior"]
