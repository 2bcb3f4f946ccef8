"""The one-unit cavity theory: one hidden unit, treated exactly, in the field of all others."""

from .closure import Closure
from .one_unit import OneUnit
from .posterior import CavityPosterior, LeftOut
from .solver import Anneal, Solution, Step, anneal, self_consistent

__all__ = [
    "Anneal",
    "CavityPosterior",
    "Closure",
    "LeftOut",
    "OneUnit",
    "Solution",
    "Step",
    "anneal",
    "self_consistent",
]
