"""The units of a model's last hidden layer: their pre-activations' covariance and the scale of the readout."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpytorch.kernels import Kernel, ScaleKernel
from torch import Tensor

from ..activations import Activation
from ..kernels.recursion import propagate
from .problem import Problem


class LastLayer(NamedTuple):
    """Units phi = sqrt(scale) sigma(h), h ~ N(0, covariance): E phi phi^T is the model's covariance at q = 1.

    ``covariance`` is ``*b x n x n``, ``scale`` broadcasts against ``*b x 1 x 1``.
    """

    activation: Activation
    covariance: Tensor
    scale: Tensor


def last_layer(problem: Problem, x: Tensor) -> LastLayer:
    """Return the last hidden layer of a model at points ``*b x n x d``, in front of the first order parameter.

    Raises:
        ValueError: The model's covariance is not its renormalized kernel alone, possibly in ScaleKernels.
    """
    kernel = problem.network
    outermost: Any = getattr(problem.model, "covar_module", None)
    scale = _scale(outermost, kernel)
    last = kernel.layers()[-1]
    weight = last.weight_variance
    return LastLayer(last.activation, pre_activations(problem, x, x), weight if scale is None else weight * scale)


def pre_activations(problem: Problem, x1: Tensor, x2: Tensor, *, elementwise: bool = False) -> Tensor:
    """Return the covariance of the last layer's pre-activations, ``*b x n x m``; elementwise (x1 is x2): ``*b x n``."""
    kernel = problem.network
    read = layer_inputs(problem, x1)
    state = kernel.input_covariance(read, read if x2 is x1 else layer_inputs(problem, x2), elementwise=elementwise)
    for layer in kernel.layers(elementwise=elementwise)[:-1]:
        state = propagate(state, layer, overwrite=True)
    return state.xy


def layer_inputs(problem: Problem, x: Tensor) -> Tensor:
    """Return the columns of x that the kernel reads; a ScaleKernel takes over those of the kernel inside."""
    columns = problem.model.covar_module.active_dims
    return x if columns is None else x.index_select(-1, columns)


def has_known_units(problem: Problem) -> bool:
    """Whether the model's covariance is its renormalized kernel alone, so that its hidden units are known."""
    try:
        _scale(getattr(problem.model, "covar_module", None), problem.network)
    except ValueError:
        return False
    return True


def _scale(module: Any, kernel: Kernel) -> Tensor | None:
    """Product of the output scales around the kernel, ``*b x 1 x 1``, or None."""
    if module is kernel:
        return None
    if isinstance(module, ScaleKernel):
        inner, own = _scale(module.base_kernel, kernel), module.outputscale[..., None, None]
        return own if inner is None else inner * own
    raise ValueError(
        "model: expected a covariance that is the renormalized kernel itself, possibly in ScaleKernels, so that its "
        f"hidden units are known; got {type(module).__name__}"
    )
