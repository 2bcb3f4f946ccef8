"""The table of activations by name, and all of them in one place."""

from __future__ import annotations

from collections.abc import Callable

from .activation import Activation
from .expansion import SiLU, Tanh
from .rectified import Identity, LeakyReLU, RectifiedQuadratic, ReLU, Sign, Square, Step
from .smooth import GELU, Cos, Erf, Exp, Sin

ACTIVATIONS: dict[str, Callable[[], Activation]] = {
    "identity": Identity,
    "erf": Erf,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "rectified_quadratic": RectifiedQuadratic,
    "sign": Sign,
    "step": Step,
    "sin": Sin,
    "cos": Cos,
    "exp": Exp,
    "square": Square,
    "gelu": GELU,
    "tanh": Tanh,
    "silu": SiLU,
}
"""Names of the activations, for command lines and configuration files; constructors take no arguments."""


def get_activation(activation: str | Activation) -> Activation:
    """Return the activation of that name, or the object itself.

    Names are looked up in ``ACTIVATIONS`` and never evaluated; upper and lower case are the same.

    Args:
        activation: a name or an :class:`Activation`.

    Raises:
        ValueError: the name is not known.
        TypeError: it is neither a name nor an activation.

    Example:
        >>> get_activation("erf"), get_activation(Erf()) == Erf()
        (Erf(), True)
    """
    if isinstance(activation, Activation):
        return activation
    known = ", ".join(sorted(ACTIVATIONS))
    if not isinstance(activation, str):
        raise TypeError(f"activation: expected an Activation or one of the names {known}; got {activation!r}")
    if activation.lower() not in ACTIVATIONS:
        raise ValueError(f"activation: expected an Activation or one of the names {known}; got {activation!r}")
    return ACTIVATIONS[activation.lower()]()
