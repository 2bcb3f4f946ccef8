"""The units of a model's last hidden layer: their pre-activations' covariance and the scale of the readout."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..activations import Activation
from ..kernels.network_covariance import NetworkCovariance, network_covariance
from ..kernels.recursion import propagate
from .problem import Problem


class LastLayer(NamedTuple):
    """Units phi = sqrt(scale) sigma(h), h ~ N(0, covariance): E phi phi^T is the model's covariance at q = 1.

    The variance of a readout bias is no part of it. ``covariance`` is ``*b x n x n``, ``scale`` broadcasts against
    ``*b x 1 x 1``, ``bias_variance`` against ``*b``.
    """

    activation: Activation
    covariance: Tensor
    scale: Tensor
    bias_variance: Tensor


def last_layer(problem: Problem, x: Tensor) -> LastLayer:
    """Return the last hidden layer of a model at points ``*b x n x d``, in front of the first order parameter.

    Raises:
        TypeError: The model's covariance is not one network's.
    """
    own = covariance_of(problem)
    last = problem.network.layers()[-1]
    scale = last.weight_variance * own.scale[..., None, None]
    return LastLayer(last.activation, pre_activations(problem, x, x), scale, own.bias_variance)


def pre_activations(problem: Problem, x1: Tensor, x2: Tensor, *, elementwise: bool = False) -> Tensor:
    """Return the covariance of the last layer's pre-activations, ``*b x n x m``; elementwise (x1 is x2): ``*b x n``."""
    kernel = problem.network
    read = layer_inputs(problem, x1)
    state = kernel.input_covariance(read, read if x2 is x1 else layer_inputs(problem, x2), elementwise=elementwise)
    for layer in kernel.layers(elementwise=elementwise)[:-1]:
        state = propagate(state, layer, overwrite=True)
    return state.xy


def layer_inputs(problem: Problem, x: Tensor) -> Tensor:
    """Return the columns of x that the kernel reads."""
    columns = covariance_of(problem).columns
    return x if columns is None else x.index_select(-1, columns)


def covariance_of(problem: Problem) -> NetworkCovariance:
    """Return the parts of a model's covariance: the renormalized kernel, a scale, a readout bias.

    Raises:
        TypeError: Another covariance.
    """
    outermost: Any = getattr(problem.model, "covar_module", None)
    return network_covariance(outermost)


def has_known_units(problem: Problem) -> bool:
    """Whether the model's covariance is one network's, so that its hidden units are known."""
    try:
        covariance_of(problem)
    except TypeError:
        return False
    return True
