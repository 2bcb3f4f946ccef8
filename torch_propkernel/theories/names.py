"""The table of theories by name."""

from __future__ import annotations

from .adaptive import Adaptive
from .auto import Auto
from .base import Theory
from .first_order import CorrectedSaddle, FirstOrder
from .free_scale import FreeScale
from .gated import Gated
from .infinite_width import InfiniteWidth
from .mixture import Mixture
from .saddle_point import SaddlePoint
from .sampled import Sampled
from .two_parameter import TwoParameterSaddle

THEORIES: dict[str, type[Theory]] = {
    theory.name: theory
    for theory in (
        InfiniteWidth,
        FreeScale,
        SaddlePoint,
        Mixture,
        Gated,
        TwoParameterSaddle,
        CorrectedSaddle,
        FirstOrder,
        Sampled,
        Auto,
        Adaptive,
    )
}
"""Names of the theories, for the argument ``theory``, the estimators and the command line."""


def get_theory(theory: str | Theory) -> Theory:
    """Return the theory of that name, or the object itself.

    Args:
        theory: A key of ``THEORIES`` or a :class:`Theory`.

    Raises:
        ValueError: The name is not known.
        TypeError: It is neither a name nor a theory.

    Example:
        >>> get_theory("saddle"), get_theory(Mixture())
        (SaddlePoint(), Mixture())
    """
    if isinstance(theory, Theory):
        return theory
    known = ", ".join(THEORIES)
    if not isinstance(theory, str):
        raise TypeError(f"theory: expected a Theory or one of the names {known}; got {theory!r}")
    if theory not in THEORIES:
        raise ValueError(f"theory: expected a Theory or one of the names {known}; got {theory!r}")
    return THEORIES[theory]()
