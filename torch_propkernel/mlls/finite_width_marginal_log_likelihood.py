"""The evidence of a finite-width network, integrated over the scale."""

from __future__ import annotations

from typing import Any

from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from ..inference import Problem
from ..mixing import posterior_of_scale
from ..mixing.scale_evidence import scale_evidence
from ..models.finite_width_process import FiniteWidthProcess
from ..numerics.autocast import outside_autocast
from ..order_parameters import OrderParameterPrior
from .other_terms import add_other_terms


class FiniteWidthMarginalLogLikelihood(ExactMarginalLogLikelihood):
    r"""Log evidence of a :class:`FiniteWidthProcess`, divided by the number of data, plus log priors: to be maximized.

    .. math:: \log p(y) = \log \int p(r)\, N(y; m, T + B + r K)\, dr

    K is the covariance at q = 1, B any fixed terms, p(r) the mixing law of the widths (or the model's own). The order
    parameters are integrated, so the kernel's parameter of that name and its prior play no part. At infinite width it
    is the exact GP's.

    Gradients with respect to the hyperparameters are averages over p(r | y), right also for duplicate rows; first
    order only. Accuracy: 1e-10 in log p(y). Cost: one ``eigh`` and O(P) for each of some hundreds of nodes; backward
    two GEMMs and the kernel's.

    Shapes: targets ``*b x P``, result ``*b``: the value of each element of a batch of models is the one it has alone,
    its own priors included.

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
        >>> from torch_propkernel import FiniteWidthLikelihood, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
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

    @outside_autocast
    def forward(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Return log p(target) / P plus log priors / P, ``*b``; ``function_dist`` is not evaluated."""
        parts = Problem.of(self.model)
        if target.shape != self.model.train_targets.shape:
            raise ValueError(
                f"target: expected the training targets of shape {tuple(self.model.train_targets.shape)}, got "
                f"{tuple(target.shape)}"
            )
        problem, law = parts.scalar(), self.model.mixing
        residuals = problem.residuals + (target - self.model.train_targets).reshape(parts.targets.shape)
        evidence = scale_evidence(
            problem.kernel_matrix,
            residuals,
            problem.temperature,
            lambda spectrum: posterior_of_scale(spectrum, law, problem.temperature.detach()),
            None if law.is_point_mass else law.log_density_at_nodes,
            base=problem.base,
        )[0]
        evidence = add_other_terms(evidence.to(target.dtype), self.model, params, leave_out=(OrderParameterPrior,))
        return evidence / parts.targets.shape[-1]
