"""The reliability of a solved problem: its score, computed once, and what the score means."""

from __future__ import annotations

import torch
from torch import Tensor

from ..actions.solution import Solution
from ..actions.solve_order_parameters import solve_order_parameters
from ..inference import Problem
from ..inference.last_layer import last_layer
from .assessment import Reliability, assess_reliability
from .unit_response import unit_response

MAX_ROWS = 200
MIN_ROWS = 10
"""Fewer rows say nothing: two of them had a score of 0.02 whatever the targets were."""


@torch.no_grad()
def assess(problem: Problem, solution: Solution) -> Reliability:
    """Return how far the prediction of a solution may be off, from the training data alone.

    Args:
        problem: The problem that was solved.
        solution: Its solution.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import Problem
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> problem = Problem.frozen(NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel))
        >>> from torch_propkernel.theories.solve import solve_problem
        >>> assess(problem, solve_problem(problem)).reliable is None   # three rows say nothing
        True
    """
    kernel, inputs = problem.network, problem.inputs
    score, missing = None, "the solve did not converge"
    if inputs.shape[-2] < MIN_ROWS:
        missing = f"{inputs.shape[-2]} training rows are too few, at least {MIN_ROWS} are needed"
    elif solution.result.successful and bool(problem.layers.finite.any()):
        try:
            score, missing = reliability_score(problem, solution.order_parameter), "not a saddle point of the units"
        except (TypeError, ValueError) as error:
            missing = str(error)
    if kernel.active_dims is not None:
        inputs = inputs.index_select(-1, kernel.active_dims)
    width, q = problem.layers.width, solution.order_parameter
    return assess_reliability(score, kernel.scaled_inputs(inputs), width, q, missing)


@torch.no_grad()
def reliability_score(problem: Problem, order_parameter: Tensor, num_units: int = 4096, seed: int = 0) -> Tensor:
    """Return :func:`unit_response` of a model, ``*b``, from at most 200 training points.

    More points are thinned out evenly and the widths reduced with them, so that alpha = P/N, the temperature and the
    inputs' directions stay; the order parameters are then solved again. The lower layers enter through the variance
    that they give to the last layer's output. A readout bias (a ConstantKernel that is added) is part of the noise.

    Args:
        problem: A live or frozen problem.
        order_parameter: q of the solution, ``*b x L``.
        num_units: Units drawn.
        seed: Of their generator.

    Raises:
        TypeError: A covariance that is not one network's.
        ValueError: Several outputs, or a last layer of infinite width.
    """
    size, rows = problem.targets.shape[-1], problem.inputs.shape[-2]
    width = problem.layers.width
    if size != rows:
        raise ValueError("several outputs for each row")
    if bool(torch.isinf(width[..., -1]).any()):
        raise ValueError("the last hidden layer has infinite width")
    count = min(size, MAX_ROWS)
    kept = torch.linspace(0, size - 1, count, dtype=torch.float64).round().long().to(problem.inputs.device)
    x, targets = problem.inputs.index_select(-2, kept), problem.residuals()[..., kept]
    layer = last_layer(problem, x)
    noise = _noise(problem, kept) + layer.bias_variance[..., None, None]  # a readout bias: noise that all rows share
    variance = layer.covariance.diagonal(dim1=-2, dim2=-1)
    if count < size:
        kernel = layer.scale * layer.activation.dual(variance.unsqueeze(-1), layer.covariance, variance.unsqueeze(-2))
        width = width * (count / size)
        order_parameter = solve_order_parameters(
            kernel, targets, width=width, temperature=1.0, base=noise, throw=False
        ).order_parameter
    q = order_parameter.to(problem.network.raw_order_parameter)
    whole = problem.prior(x, q).variance.mean(-1) - layer.bias_variance
    own = (layer.scale.squeeze(-1) * layer.activation.dual_diag(variance)).mean(-1)
    scale = layer.scale * (whole / (q[..., -1] * own))[..., None, None]
    return unit_response(
        layer.activation,
        layer.covariance,
        scale,
        q[..., -1],
        width[..., -1],
        noise,
        targets,
        num_units=num_units,
        seed=seed,
    )


def _noise(problem: Problem, rows: Tensor) -> Tensor:
    """Noise covariance of the given rows, ``*b x n x n``."""
    if problem.has_dense_noise():
        return problem.noise_covariance(problem.inputs)[..., rows, :][..., rows]
    diagonal = problem.noise_diagonal()
    return torch.diag_embed(
        diagonal[..., rows] if diagonal.shape[-1] > 1 else diagonal.expand(*diagonal.shape[:-1], len(rows))
    )
