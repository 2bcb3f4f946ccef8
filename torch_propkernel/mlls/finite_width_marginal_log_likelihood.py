"""The evidence of a finite-width network, integrated over the scale."""

from __future__ import annotations

from typing import Any

from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from ..inference.model_parts import take_apart
from ..mixing import posterior_of_scale
from ..mixing.scale_integral import scale_evidence
from ..models.finite_width_process import FiniteWidthProcess
from ..order_parameters import OrderParameterPrior


class FiniteWidthMarginalLogLikelihood(ExactMarginalLogLikelihood):
    r"""Log evidence of a :class:`FiniteWidthProcess`, divided by the number of data, plus log priors: to be maximized.

    .. math:: \log p(y) = \log \int p(r)\, N(y; m, T + B + r K)\, dr

    K is the covariance at q = 1, B any fixed terms, p(r) the mixing law of the widths (or the model's own). The order
    parameters are integrated, so the kernel's parameter of that name and its prior play no part. At infinite width it
    is the exact GP's.

    Gradients with respect to the hyperparameters are averages over p(r | y), right also for duplicate rows; first
    order only. Accuracy: 1e-10 in log p(y). Cost: one ``eigh`` and O(P) for each of some hundreds of nodes; backward
    two GEMMs and the kernel's.

    Compare widths by it at fixed prior variances only: with a free readout variance infinite width always has the
    higher maximum, since an average over the scale is at most its maximum.

    Args:
        likelihood: The Gaussian likelihood.
        model: The process.

    Raises:
        TypeError: The model is not a FiniteWidthProcess.

    Reference: THEORY.md, section 1.

    Example:
        >>> import gpytorch, math, torch
        >>> from torch_propkernel import FiniteWidthLikelihood, Identity, RenormalizedNNGPKernel
        >>> class Model(FiniteWidthProcess):
        ...     def __init__(self, x, y, likelihood):
        ...         super().__init__(x, y, likelihood)
        ...         self.covar_module = RenormalizedNNGPKernel(Identity(), width=math.inf)
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))
        >>> likelihood = FiniteWidthLikelihood()
        >>> likelihood.noise = 1.0
        >>> x, y = torch.ones(1, 1), torch.ones(1)
        >>> model = Model(x, y, likelihood)
        >>> evidence = FiniteWidthMarginalLogLikelihood(likelihood, model)(model(x), y)
        >>> expected = torch.distributions.Normal(0.0, math.sqrt(2.0)).log_prob(y).item()   # T + k = 2
        >>> abs(evidence.item() - expected) < 1e-5
        True
    """

    def __init__(self, likelihood: Any, model: FiniteWidthProcess) -> None:
        """Check the model."""
        if not isinstance(model, FiniteWidthProcess):
            raise TypeError(f"model: expected a FiniteWidthProcess, got {type(model).__name__}")
        super().__init__(likelihood, model)

    def forward(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Return log p(target) / P plus log priors / P; ``function_dist`` is not evaluated."""
        parts = take_apart(self.model)
        if target.shape != self.model.train_targets.shape:
            raise ValueError(
                f"target: expected the training targets of shape {tuple(self.model.train_targets.shape)}, got "
                f"{tuple(target.shape)}"
            )
        problem, law = parts.scalar_problem(), self.model.mixing
        residuals = problem.residuals + (target - self.model.train_targets).reshape(problem.residuals.shape)
        evidence = scale_evidence(
            problem.kernel_matrix,
            residuals,
            problem.temperature,
            lambda spectrum: posterior_of_scale(spectrum, law, problem.temperature.detach()),
            None if law.is_point_mass else law.log_density,
            base=problem.base,
        )[0]
        evidence = evidence.to(target.dtype)
        for added_loss_term in self.model.added_loss_terms():
            evidence = evidence + added_loss_term.loss(*params)
        for _, module, prior, closure, _ in self.model.named_priors():
            if not isinstance(prior, OrderParameterPrior):
                evidence = evidence + prior.log_prob(closure(module)).sum()
        return evidence / target.shape[-1]
