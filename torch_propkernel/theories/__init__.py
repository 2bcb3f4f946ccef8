"""Theories of finite Bayesian networks under one interface: fit a model, predict, compare."""

from .base import FittedTheory, Theory
from .first_order import FirstOrder, FittedFirstOrder
from .free_scale import FreeScaleBaseline
from .gated import Gated
from .infinite_width import InfiniteWidth
from .mixture import Mixture
from .saddle_point import SaddlePoint
from .two_parameter import TwoParameterMixture, TwoParameterSaddle

__all__ = [
    "FirstOrder",
    "FittedFirstOrder",
    "FittedTheory",
    "FreeScaleBaseline",
    "Gated",
    "InfiniteWidth",
    "Mixture",
    "SaddlePoint",
    "Theory",
    "TwoParameterMixture",
    "TwoParameterSaddle",
]
