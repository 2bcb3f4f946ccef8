"""Hyperparameters by evidence, and the choice of a network."""

from .auto import NetworkFit, fit_network
from .baselines import TunedBaseline
from .choose_network import choose_network
from .fit_hyperparameters import fit_hyperparameters
from .hyperparameter_fit import HyperparameterFit
from .network_choice import NetworkChoice
from .predictor import Candidate, NetworkPredictor, fit_predictor

__all__ = [
    "Candidate",
    "HyperparameterFit",
    "NetworkChoice",
    "NetworkFit",
    "NetworkPredictor",
    "TunedBaseline",
    "choose_network",
    "fit_hyperparameters",
    "fit_network",
    "fit_predictor",
]
