"""The one-unit cavity theory: one hidden unit, treated exactly, in the field of all others."""

from .closure import Closure
from .one_unit import Moments, OneUnit, Tilt
from .population import Generation, Pool
from .posterior import CavityPosterior, LeftOut
from .response import Response
from .self_consistency import Solution, self_consistent
from .shared_noise import SharedNoise
from .solver import Anneal, Step, anneal

__all__ = [
    "Anneal",
    "CavityPosterior",
    "Closure",
    "Generation",
    "LeftOut",
    "Moments",
    "OneUnit",
    "Pool",
    "Response",
    "SharedNoise",
    "Solution",
    "Step",
    "Tilt",
    "anneal",
    "self_consistent",
]
