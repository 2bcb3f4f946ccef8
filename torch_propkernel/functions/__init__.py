"""Pure tensor mathematics: activations and their Gaussian moments, spectra, effective actions."""

from .activations import (
    ACTIVATIONS,
    GELU,
    Activation,
    Cos,
    Erf,
    Exp,
    Identity,
    LeakyReLU,
    Quadrature,
    RectifiedQuadratic,
    ReLU,
    Sign,
    SiLU,
    Sin,
    Square,
    Step,
    Tanh,
    get_activation,
)
from .quadrature import QuadratureWarning
from .spectrum import Spectrum
from .stationary_points import find_stationary_points

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
    "Spectrum",
    "Square",
    "Step",
    "Tanh",
    "find_stationary_points",
    "get_activation",
]
