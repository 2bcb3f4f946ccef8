"""Laws of the scale r of a process sqrt(r) GP(0, K): all that tells one elliptical process from another."""

from .gamma_mixing import GammaMixing
from .inverse_gamma_mixing import InverseGammaMixing
from .log_normal_mixing import LogNormalMixing
from .mixing_law import MixingLaw
from .point_mass import PointMass
from .posterior_of_scale import posterior_of_scale
from .product_gamma_mixing import ProductGammaMixing

__all__ = [
    "GammaMixing",
    "InverseGammaMixing",
    "LogNormalMixing",
    "MixingLaw",
    "PointMass",
    "ProductGammaMixing",
    "posterior_of_scale",
]
