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
from .first_order import FirstOrderTerms, Terms, draw_pre_activations, first_order_terms
from .quadrature import QuadratureWarning
from .spectrum import Spectrum
from .stationary_points import find_stationary_points
from .unit_response import unit_response

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Cos",
    "Erf",
    "Exp",
    "FirstOrderTerms",
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
    "Terms",
    "draw_pre_activations",
    "find_stationary_points",
    "first_order_terms",
    "get_activation",
    "unit_response",
]
