"""The log evidence of a model as a differentiable function of its hyperparameters."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

from ..inference.model_parts import take_apart
from ..kernels import RenormalizedNNGPKernel
from ..mixing import MixingLaw, posterior_of_scale
from ..mixing.law_of_widths import law_of_widths
from ..mixing.scale_integral import scale_evidence
from ..order_parameters import OrderParameterPrior
from ..theories.fit_order_parameters import solve_parts

EVIDENCES = ("mixture", "saddle")


def finite_kernel(model: torch.nn.Module) -> RenormalizedNNGPKernel | None:
    """Return the model's renormalized kernel if one of its widths is finite, else None: the model is then a GP."""
    kernels = [m for m in model.modules() if isinstance(m, RenormalizedNNGPKernel)]
    return next((kernel for kernel in kernels if bool(torch.isfinite(kernel.width).any())), None)


def log_evidence(model: Any, evidence: str) -> Tensor:
    r"""Return log p(y) of a model in training mode, with gradients with respect to its hyperparameters.

    - ``"mixture"``: integrated over the scale, with the law of the widths or the model's own
      (:class:`FiniteWidthMarginalLogLikelihood` is the same);
    - ``"saddle"``: :math:`\log N(y; 0, A(q^*)) + \sum_l \tfrac{N_l}{2}(\log q_l^* - q_l^* + 1)`, which is
      :math:`-\tfrac{N_L}{2} S(q^*)` and a constant, q* solved here. S is stationary in q: its gradient at fixed q* is
      the whole one (THEORY.md, section 1);
    - a model without a finite width: what its likelihood says of the training targets, by a Cholesky factorization.
    """
    kernel = finite_kernel(model)
    if kernel is None:
        return _log_likelihood(model)
    if evidence == "mixture":
        problem = take_apart(model).scalar_problem()
        law = getattr(model, "mixing", None)
        if not isinstance(law, MixingLaw):
            law = law_of_widths(kernel.width.squeeze(-2).to(torch.float64))
        temperature = problem.temperature.detach()
        return scale_evidence(
            problem.kernel_matrix,
            problem.residuals,
            problem.temperature,
            lambda spectrum: posterior_of_scale(spectrum, law, temperature),
            base=problem.base,
        )[0]
    with torch.no_grad():
        solution = solve_parts(take_apart(model))[0].raise_if_failed()
    q, width = solution.order_parameter, kernel.width.squeeze(-2)
    finite = torch.isfinite(width)
    with kernel.assigned_order_parameter(q.unsqueeze(-2)):
        likelihood = _log_likelihood(model)
    return likelihood + torch.where(finite, 0.5 * torch.where(finite, width, 0.0) * (q.log() - q + 1.0), 0.0).sum()


def _log_likelihood(model: Any) -> Tensor:
    with gpytorch.settings.fast_computations(log_prob=False):
        return model.likelihood(model.forward(*model.train_inputs), *model.train_inputs).log_prob(model.train_targets)


def log_prior(model: torch.nn.Module) -> Tensor | float:
    """Return the summed log densities of the model's priors but that of the order parameters."""
    terms = [
        prior.log_prob(closure(module)).sum()
        for _, module, prior, closure, _ in model.named_priors()  # type: ignore[operator]
        if not isinstance(prior, OrderParameterPrior)
    ]
    return torch.stack(terms).sum() if terms else 0.0
