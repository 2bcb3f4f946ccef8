"""Hyperparameters by evidence, and the choice of a network."""

from .auto import NetworkFit, fit_network
from .baselines import TunedBaseline
from .choose_network import choose_network
from .fit_hyperparameters import fit_hyperparameters
from .hyperparameter_fit import HyperparameterFit
from .network_choice import NetworkChoice

__all__ = [
    "HyperparameterFit",
    "NetworkChoice",
    "NetworkFit",
    "TunedBaseline",
    "choose_network",
    "fit_hyperparameters",
    "fit_network",
]
