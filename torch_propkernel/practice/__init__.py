"""From models to real networks and back: conversion, training runs, measurement, comparison with sampled networks."""

from ..theories import network_from_model
from .compare import NetworkComparison, compare_with_network
from .conversion import model_from_network
from .gibbs import GibbsParameters, gibbs_parameters, linear_default_variances
from .measure import LayerMeasurement, MeasuredOrderParameters, measure_order_parameters

__all__ = [
    "GibbsParameters",
    "LayerMeasurement",
    "MeasuredOrderParameters",
    "NetworkComparison",
    "compare_with_network",
    "gibbs_parameters",
    "linear_default_variances",
    "measure_order_parameters",
    "model_from_network",
    "network_from_model",
]
