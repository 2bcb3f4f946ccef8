"""Hyperparameters by evidence, and the choice of a network."""

from .baselines import Baseline
from .choose_network import choose_network
from .fit_hyperparameters import fit_hyperparameters
from .hyperparameter_fit import HyperparameterFit
from .network_choice import NetworkChoice

__all__ = ["Baseline", "HyperparameterFit", "NetworkChoice", "choose_network", "fit_hyperparameters"]
