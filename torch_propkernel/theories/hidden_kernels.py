"""What a fitted network's hidden layers have learned: the posterior means of their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..actions.hidden_response import hidden_kernel_response
from ..activations import Identity
from ..inference import OutputsProblem, Problem
from ..inference.last_layer import covariance_of
from ..kernels.recursion import Layer, dual_covariance, propagate
from ..networks import FiniteNetwork, measure_hidden_kernels
from .base import FittedTheory
from .first_order import FirstOrder
from .infinite_width import InfiniteWidth
from .outputs import FittedOutputs
from .saddle_point import SaddlePoint
from .sampled import Sampled
from .sampled_conditioned import SampledConditioned


@dataclass(frozen=True)
class HiddenKernels:
    """Kernels of the hidden layers at n points, ``L x n x n``, without weight variances.

    Attributes:
        mean: Their posterior means.
        infinite_width: Their values at infinite width, whatever the data.
        standard_error: Monte Carlo error of ``mean``; None where nothing was drawn.
    """

    mean: Tensor
    infinite_width: Tensor
    standard_error: Tensor | None


class _Prior(NamedTuple):
    """Of a network's prior at n points: per layer what goes in, what comes out, and the weights that follow."""

    layers: Sequence[Layer]
    covariances: Sequence[Tensor]  # of pre-activations, C_0, ..., C_{L-1}
    kernels: Tensor  # L x n x n
    weight_variances: list[float]  # w_1, ..., w_L, scales around the kernel in w_L
    widths: list[float]


@torch.no_grad()
def hidden_kernels(
    fitted: FittedTheory, x: Tensor | None = None, *, num_units: int = 16384, seed: int = 0
) -> HiddenKernels:
    r"""Return the posterior means of the kernels of all hidden layers, :math:`\sigma(h^l)^T \sigma(h^l) / N_l`.

    The change from infinite width is what the layers learned of the targets. By what was fitted:

    - ``InfiniteWidth``, ``FirstOrder``: to first order in 1/N around infinite width, which for identity activations is
      :math:`K_l + \sum_{l' \le l} \frac{1}{N_{l'}} K_l G^{-1} (Y Y^T - D G) G^{-1} K_l`, G = K + T (unit variances).
      For other activations the units' fourth moments are drawn. With several layers of them the kernel's own mean over
      the prior is of order 1/N away from infinite width, whatever the data; that part is left out. It is an expansion:
      good where the change is small.
    - ``SaddlePoint``, of one or several outputs: in closed form at the order parameters. Exact in the proportional
      limit for identity activations; one hidden layer of other odd ones is taken as Gaussian units, which misses 20 to
      40 % of the change for erf (others, as relu, are refused: four fifths of it were missed).
    - ``Sampled``: measured in the networks that were drawn, with its Monte Carlo error.

    Shapes: n points; P and D training points and outputs. Cost: a few matrix products of P + n points for each layer,
    with other activations 2 M (P + n)^2 for M units; of the saddle, the joint covariance of all outputs, ``n D x n D``.

    Args:
        fitted: What a theory found at a model's training data.
        x: Points ``n x d``; the training inputs if None.
        num_units: M, for the first order.
        seed: Seed of the units.

    Raises:
        TypeError: Another theory, a covariance that is not one network's.
        ValueError: Batches of models; for the first order targets that are missing or noise that differs between
            outputs; for the saddle an activation that is not odd, several layers of another than the identity, hidden
            biases beyond the first layer, a readout bias, or fewer units than outputs.

    Reference: Zavatone-Veth et al. (2021), arXiv:2106.00651; THEORY.md, section 13.

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> from torch_propkernel.theories import InfiniteWidth, hidden_kernels
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> kernel = MultitaskRenormalizedKernel("identity", width=100, num_tasks=2).double()
        >>> model = MultitaskNetworkGP.with_temperature(x, 3 * torch.ones(1, 2).double(), kernel, temperature=1.0)
        >>> found = hidden_kernels(InfiniteWidth().fit(model))   # K = 1, G = 2: 1 + (18 - 4) / 4 / 100
        >>> round(found.mean.item(), 6), found.infinite_width.item()
        (1.035, 1.0)
    """
    problem = fitted.problem
    if problem.targets.dim() > 1 and not isinstance(problem, OutputsProblem):
        raise ValueError(f"fitted: expected one problem, got a batch of shape {tuple(problem.targets.shape[:-1])}")
    points = problem.inputs if x is None else problem.points(x)
    if isinstance(fitted.theory, SaddlePoint):
        return _at_saddle(fitted, points)
    if isinstance(fitted.theory, Sampled):
        return _measured(fitted, points)
    if type(fitted.theory) in (InfiniteWidth, FirstOrder):
        return _first_order(problem, points, num_units, seed)
    raise TypeError(f"fitted: expected one of InfiniteWidth, FirstOrder, SaddlePoint, Sampled, got {fitted.theory!r}")


def _prior(problem: Problem, x: Tensor) -> _Prior:
    """Return the layers of the network at infinite width, in float64."""
    own = covariance_of(problem)
    columns = problem.model.active_dims if isinstance(problem, OutputsProblem) else own.columns
    read = x if columns is None else x.index_select(-1, columns)
    state = own.kernel.input_covariance(read, read)
    layers, covariances, kernels = own.kernel.layers(), [], []
    for layer in layers:
        covariances.append(state.xy.double())
        kernels.append(dual_covariance(state, layer.activation).xy.double())
        state = propagate(state, layer)
    weights = [float(layer.weight_variance) for layer in layers]
    weights[-1] *= float(own.scale)
    chain = problem.output_chain if isinstance(problem, OutputsProblem) else problem.layers
    return _Prior(layers, covariances, torch.stack(kernels), weights, chain.width.flatten().tolist())


def _columns(problem: Problem) -> Tensor:
    """Return the targets minus the mean, ``P x D``."""
    return torch.atleast_2d(problem.residuals()).mT.double()


def _first_order(problem: Problem, x: Tensor, num_units: int, seed: int) -> HiddenKernels:
    if isinstance(problem, OutputsProblem) and (problem.output_noise is not None or not problem.is_complete):
        raise ValueError(
            "model: expected all targets and one noise for all outputs, got other noise or missing targets"
        )
    size, y = problem.num_data, _columns(problem)
    prior = _prior(problem, torch.cat([problem.inputs, x]))
    factor = torch.linalg.cholesky(problem.add_noise(problem.unit_covariance).double())
    weights = torch.cholesky_solve(y, factor)
    # The derivative of log det G in every entry is the inverse itself: it is not a way to solve here.
    gradient = torch.zeros_like(prior.covariances[0])
    gradient[:size, :size] = weights @ weights.mT - y.shape[-1] * torch.cholesky_inverse(factor)
    groups = torch.stack(
        hidden_kernel_response(
            prior.layers[0].activation,
            prior.covariances,
            prior.weight_variances[:-1],
            prior.widths,
            prior.weight_variances[-1] * gradient,
            num_units,
            seed,
        )
    )[..., size:, size:]
    wide, count = prior.kernels[..., size:, size:], groups.shape[1]
    error = None if count == 1 else groups.std(1) / count**0.5
    return HiddenKernels(wide + groups.mean(1), wide, error)


def _at_saddle(fitted: FittedTheory, x: Tensor) -> HiddenKernels:
    """Units that the readout sees have the posterior's outputs in them, the others keep the law of the layer below."""
    prior = _prior(fitted.problem, x)
    activation = prior.layers[0].activation
    is_linear = isinstance(activation, Identity)
    if not activation.is_odd:
        raise ValueError(f"model: expected an odd activation for the saddle point's hidden kernels, got {activation!r}")
    if len(prior.layers) > 1 and not (is_linear and all(layer.bias_variance is None for layer in prior.layers)):
        raise ValueError("model: expected one hidden layer, or identity activations and no biases beyond the first")
    if bool(covariance_of(fitted.problem).bias_variance != 0):
        raise ValueError("covar_module: expected no ConstantKernel, got a readout bias, which is no part of the units")
    matrices, mean, spread = _outputs(fitted, x)
    number = mean.shape[-1]
    if min(prior.widths) < number:
        raise ValueError(f"width: expected at least {number}, one unit for each output, got {prior.widths}")
    above = torch.eye(number, dtype=torch.float64, device=x.device)
    seen: list[Tensor] = []  # E f Q_l^-1 f^T
    for matrix in matrices.flip(0):
        above = 0.5 * (above @ matrix + matrix @ above)  # they commute
        factor = torch.linalg.cholesky(above)
        whitened = torch.linalg.solve_triangular(factor, mean.mT, upper=False)
        inner = torch.cholesky_solve(spread.permute(1, 3, 0, 2).flatten(1), factor)  # D x (D n n)
        inner = inner.unflatten(-1, (number, *mean.shape[:1] * 2)).diagonal(dim1=0, dim2=1).sum(-1)
        seen.insert(0, whitened.mT @ whitened + inner)
    scales = torch.tensor(prior.weight_variances, dtype=torch.float64, device=x.device).flip(0).cumprod(0).flip(0)
    current, found = scales[0] * prior.kernels[0], []
    for width, own, scale in zip(prior.widths, seen, scales, strict=True):
        current = (1.0 - number / width) * current + own / width
        found.append(current / scale)
    return HiddenKernels(torch.stack(found), prior.kernels, None)


def _outputs(fitted: FittedTheory, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return E_l ``L x D x D``, and the outputs' posterior mean ``n x D`` and covariance ``n x D x n x D``, in float64.

    The mean function is no part of them.
    """
    problem = fitted.problem
    if isinstance(fitted, FittedOutputs):
        matrices = fitted.order_parameters["E"]
        mean, covariance = fitted.conditioned.predict(x)[0], fitted.conditioned.joint_covariance(x)
    else:
        matrices = fitted.order_parameters["q"].reshape(-1, 1, 1)
        mean, covariance = fitted.conditioned.moments(x, joint=True)
    mean = (mean - problem.mean(x)).mT.double()
    return matrices.double(), mean, covariance.double().reshape(*mean.shape, *mean.shape)


def _measured(fitted: FittedTheory, x: Tensor) -> HiddenKernels:
    problem, conditioned = fitted.problem, cast("SampledConditioned", fitted.conditioned)
    network = conditioned.network
    if not isinstance(network, FiniteNetwork):
        raise ValueError(f"fitted: expected a fully connected network, got a {type(network).__name__}")
    draws = conditioned.states.unflatten(0, (cast("Sampled", fitted.theory).num_chains, -1))
    parts = measure_hidden_kernels(network, draws, x.double())
    mean, error = (torch.stack([getattr(part, name) for part in parts]) for name in ("mean", "standard_error"))
    return HiddenKernels(mean, _prior(problem, x).kernels, error)
