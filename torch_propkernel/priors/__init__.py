"""Priors that a width dictates."""

from .order_parameter_prior import OrderParameterPrior

__all__ = ["OrderParameterPrior"]
