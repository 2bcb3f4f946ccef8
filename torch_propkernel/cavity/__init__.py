"""The one-unit cavity theory: one hidden unit, treated exactly, in the field of all others."""

from .closure import Closure
from .one_unit import Moments, OneUnit, Tilt
from .population import Generation, Pool
from .posterior import CavityPosterior, LeftOut
from .response import Response
from .shared_noise import SharedNoise
from .solver import Anneal, Solution, Step, anneal, self_consistent

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
