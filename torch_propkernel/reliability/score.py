"""The reliability of a solved problem: its score, computed once, and what the score means."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..actions.solution import Solution
from ..inference import BlocksProblem, OutputsProblem, Problem
from ..inference.last_layer import last_layer
from ..order_parameters import ScalarChain
from ..spectra import Spectrum
from .assessment import Reliability, assess_reliability
from .unit_response import unit_response

MAX_ROWS = 200
"""As many as the cases have on which the score was calibrated: with 120 of 201 rows it was half of that with 200."""
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
    if isinstance(problem, (OutputsProblem, BlocksProblem)):
        return _without_score(problem, solution)
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
    if kernel.ard_num_dims is not None:  # one factor on all columns would change no ratio
        inputs = kernel.scaled_inputs(inputs)
    return assess_reliability(score, inputs, width, q, missing)


def _without_score(problem: OutputsProblem | BlocksProblem, solution: Solution) -> Reliability:
    """Return what is known of matrices: directions of the inputs, P/N, and how far E is from the identity."""
    kernel, inputs = problem.solved_kernel, problem.inputs
    if kernel.active_dims is not None:
        inputs = inputs.index_select(-1, kernel.active_dims)
    if isinstance(problem, OutputsProblem):
        inputs = problem.outputs.data_covar_module.scaled_inputs(inputs)
        what = "a hidden unit answers all outputs at once, which was measured for one output only"
    else:
        what = "a hidden unit reads all blocks at once, which was measured for fully connected networks only"
    eigenvalues = torch.linalg.eigvalsh(solution.order_parameter)
    return assess_reliability(None, inputs, kernel.width, eigenvalues, what)


@torch.no_grad()
def reliability_score(problem: Problem, order_parameter: Tensor, num_units: int = 4096, seed: int = 0) -> Tensor:
    """Return :func:`unit_response` of a model, ``*b``, from at most 200 training points.

    More than 200 points are thinned out evenly and the widths reduced with them, so that alpha = P/N, the
    temperature and the inputs' directions stay; the targets are then rescaled, by a factor near one, so that the order
    parameter of the last layer stays stationary. The lower layers enter through the variance that they give to the last
    layer's output. A readout bias (a ConstantKernel that is added) is part of the noise.

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
    variance = layer.covariance.diagonal(dim1=-2, dim2=-1)
    width, q = width[..., -1] * (count / size), order_parameter.to(problem.network.raw_order_parameter)
    lower = ScalarChain.scale(q[..., :-1])  # what the layers below the last one do to the kernel
    if not problem.network.is_scalar:
        whole = problem.prior(x, q).variance.mean(-1) - layer.bias_variance
        own = (layer.scale.squeeze(-1) * layer.activation.dual_diag(variance)).mean(-1)
        lower = whole / (q[..., -1] * own)
    scale, q = lower[..., None, None] * layer.scale, q[..., -1]
    kernel = scale * layer.activation.dual(variance.unsqueeze(-1), layer.covariance, variance.unsqueeze(-2))
    noise = _noise(problem, kept, layer.bias_variance)
    spectrum = Spectrum.from_kernel(kernel, targets, base=noise, eigenvectors=True)
    if count < size:
        spectrum = _at_saddle_point(spectrum, q, width)
    return unit_response(
        layer.activation, layer.covariance, scale, kernel, spectrum, q, width, num_units=num_units, seed=seed
    )


def _at_saddle_point(spectrum: Spectrum, order_parameter: Tensor, width: Tensor) -> Spectrum:
    """Return the spectrum with the targets rescaled so that q, ``*b``, is stationary: N (q - 1) + tr = power."""
    q = order_parameter.unsqueeze(-1)
    spread = 1.0 + q * spectrum.eigenvalues
    share = q * spectrum.eigenvalues / spread
    wanted = width * (order_parameter - 1.0) + share.sum(-1)
    power = (share * spectrum.squares / spread).sum(-1)
    factor = (wanted / power).clamp_min(1e-6).sqrt()
    return dataclasses.replace(spectrum, projections=factor[..., None, None] * spectrum.projections)


def _noise(problem: Problem, rows: Tensor, bias_variance: Tensor) -> Tensor:
    """Noise of the given rows, a readout bias included, which all share: ``*b x n x n``, or ``*b x n`` if diagonal."""
    if problem.has_dense_noise():
        return problem.noise_covariance(problem.inputs)[..., rows, :][..., rows] + bias_variance[..., None, None]
    noise = problem.noise_diagonal()
    noise = noise[..., rows] if noise.shape[-1] > 1 else noise.expand(*noise.shape[:-1], len(rows))
    shared = bool((bias_variance != 0).any())
    return torch.diag_embed(noise) + bias_variance[..., None, None] if shared else noise
