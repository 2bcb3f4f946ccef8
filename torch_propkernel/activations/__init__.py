"""Activations and their Gaussian moments: closed forms, expansions, and the table of their names."""

from .activation import Activation
from .expansion import Quadrature, SiLU, Tanh
from .names import ACTIVATIONS, get_activation
from .quadrature import QuadratureWarning
from .rectified import Identity, LeakyReLU, RectifiedQuadratic, ReLU, Sign, Square, Step
from .smooth import GELU, Cos, Erf, Exp, Sin

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Cos",
    "Erf",
    "Exp",
    "GELU",
    "Identity",
    "LeakyReLU",
    "Quadrature",
    "QuadratureWarning",
    "ReLU",
    "RectifiedQuadratic",
    "SiLU",
    "Sign",
    "Sin",
    "Square",
    "Step",
    "Tanh",
    "get_activation",
]
