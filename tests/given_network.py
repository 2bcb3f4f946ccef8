"""A network whose hyperparameters are all given, in Python and on the command line."""

from __future__ import annotations

from torch_propkernel.commands.network import Network
from torch_propkernel.tuning.auto import NetworkFit

GIVEN = ("--temperature", "0.01", "--weight-variance", "1", "--bias-variance", "1", "--no-ard")


def given_network(activation, width, temperature, bias_variance=1.0, composition="outer"):
    """Return a network with prior variances of one."""
    depth = len(width)
    prior = NetworkFit(activation, (1.0,) * (depth + 1), (bias_variance,) * depth, None, temperature)
    return Network(prior, width, composition)
