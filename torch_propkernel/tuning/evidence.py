"""The log evidence of a model as a differentiable function of its hyperparameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from ..distributions.normal_given_scale import at_unit_scale
from ..inference import Problem
from ..inference.host_evaluation import to_dense
from ..kernels import RenormalizedNNGPKernel
from ..mixing import MixingLaw, posterior_of_scale
from ..mixing.law_of_widths import law_of_widths
from ..mixing.scale_evidence import scale_evidence
from ..numerics.gaussian_terms import log_det_and_square
from ..order_parameters import OrderParameterPrior
from ..theories.solve import solve_problem

THEORIES = ("mixture", "saddle", "infinite_width")


def finite_kernel(model: torch.nn.Module) -> RenormalizedNNGPKernel | None:
    """Return the model's renormalized kernel if one of its widths is finite, else None: the model is then a GP."""
    kernels = [m for m in model.modules() if isinstance(m, RenormalizedNNGPKernel)]
    return next((kernel for kernel in kernels if bool(torch.isfinite(kernel.width).any())), None)


class ScalePrior(NamedTuple):
    """The law of a model's scale in float64, and the interval that holds its mass: found once for many evidences."""

    law: MixingLaw
    interval: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, model: Any) -> ScalePrior:
        """Take the model's own law, or that of its widths."""
        law = getattr(model, "mixing", None)
        if not isinstance(law, MixingLaw):
            law = law_of_widths(Problem.of(model).layers.width)
        law = law.to(torch.float64)
        return cls(law, law.log_interval())


def log_evidence(model: Any, theory: str, prior: ScalePrior | None = None) -> Tensor:
    r"""Return log p(y) of a model in training mode, with gradients with respect to its hyperparameters.

    - ``"mixture"``: integrated over the scale, with the law of the widths or the model's own
      (:class:`FiniteWidthMarginalLogLikelihood` is the same);
    - ``"saddle"``: :math:`\log N(y; 0, A(q^*)) + \sum_l \tfrac{N_l}{2}(\log q_l^* - q_l^* + 1)`, which is
      :math:`-\tfrac{N_L}{2} S(q^*)` and a constant, q* solved here. S is stationary in q: its gradient at fixed q* is
      the whole one (THEORY.md, section 1);
    - ``"infinite_width"``: :math:`\log N(y; 0, A(1))`;
    - a model without a finite width: what its likelihood says of the training targets, by a Cholesky factorization,
      added up over the rows of targets of shape (D, P).

    Args:
        model: The model.
        theory: One of ``THEORIES``.
        prior: Of the mixture's scale, where it is known: what trains does not change it.
    """
    if finite_kernel(model) is None:
        return _log_likelihood(model)
    problem = Problem.of(model)
    if theory == "mixture":
        scalar = problem.scalar()
        law, interval = ScalePrior.of(model) if prior is None else prior
        temperature = scalar.temperature.detach()
        return scale_evidence(
            scalar.kernel_matrix,
            scalar.residuals,
            scalar.temperature,
            lambda spectrum: posterior_of_scale(spectrum, law, temperature, interval=interval),
            base=scalar.base,
        )[0]
    if theory == "infinite_width":
        return _log_normal(problem.add_noise(problem.covariance(problem.at_scale(1.0))), problem.residuals())
    with torch.no_grad():
        q = solve_problem(Problem.of(model)).raise_if_failed().order_parameter
    likelihood = _log_normal(problem.add_noise(problem.covariance(q)), problem.residuals())
    return likelihood - 0.5 * problem.layers.action(q.log())


def _log_normal(covariance: Tensor, residuals: Tensor) -> Tensor:
    """Return log N(y - m; 0, A) with its closed gradient; GPyTorch's smallest jitter is added where A needs it."""
    terms = log_det_and_square(covariance, residuals)
    if not bool(torch.isfinite(terms)):
        jitter = gpytorch.settings.cholesky_jitter.value(covariance.dtype)
        terms = log_det_and_square(covariance + torch.diag_embed(torch.full_like(residuals, jitter)), residuals)
    return -0.5 * (terms + residuals.shape[-1] * math.log(2.0 * math.pi))


def _log_likelihood(model: Any) -> Tensor:
    targets = model.train_targets
    prior = at_unit_scale(model.forward(*model.train_inputs))
    noisy = model.likelihood(prior, *model.train_inputs)
    if targets.dim() == 1 and type(noisy) is MultivariateNormal:  # as most: threads then switch no global setting
        return _log_normal(to_dense(noisy.lazy_covariance_matrix), targets - noisy.loc)
    with gpytorch.settings.fast_computations(log_prob=False):
        if targets.dim() == 1:
            return noisy.log_prob(targets)
        # Targets that share a covariance share its factorization.
        residuals = (targets - noisy.loc).transpose(-1, -2)
        quadratic, log_det = noisy.lazy_covariance_matrix.inv_quad_logdet(residuals, logdet=True)
        rows, size = targets.shape
        return -0.5 * (quadratic + rows * (log_det + size * math.log(2.0 * math.pi)))


def log_prior(model: torch.nn.Module) -> Tensor | float:
    """Return the summed log densities of the model's priors but that of the order parameters."""
    terms = [
        prior.log_prob(closure(module)).sum()
        for _, module, prior, closure, _ in model.named_priors()  # type: ignore[operator]
        if not isinstance(prior, OrderParameterPrior)
    ]
    return torch.stack(terms).sum() if terms else 0.0
