"""The Gaussian process of an infinitely wide network."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inference import BlocksProblem, OutputsProblem, Problem
from .base import FittedTheory, Theory
from .outputs import fit_at


class InfiniteWidth(Theory):
    r"""The network of infinite width: the GP with the NNGP kernel, q = 1.

    .. math:: f \sim GP(0, K^L)

    With the same hyperparameters as the finite network, nothing is fitted. A model without a renormalized kernel, such
    as one with :class:`NNGPKernel` or any other kernel, is taken as the GP that it is. See :class:`FittedTheory` for
    shapes and units. Cost: one kernel evaluation and one Cholesky factorization.

    Reference: THEORY.md, section 0 and eq. (4) at q = 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel, generalization_error
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> model = NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), RenormalizedNNGPKernel(Erf(), width=10))
        >>> fitted = InfiniteWidth().fit(model)
        >>> torch.allclose(fitted.error(x, y).total, generalization_error(model, x, y).infinite_width.total)
        True
    """

    name = "infinite_width"
    needs_order_parameters = False
    has_outputs = True
    has_blocks = True
    has_streaming = True

    def _fit(self, problem: Problem) -> FittedTheory:
        message = "Infinite width: the order parameters are one, there is nothing to solve."
        if isinstance(problem, OutputsProblem):
            unit = torch.ones_like(problem.outputs.order_parameter).diagonal(dim1=-2, dim2=-1)
            fitted = fit_at(self, problem, torch.diag_embed(unit), message, {})
            fitted.log_evidence = fitted.conditioned.log_likelihoods().squeeze(-1)
            return fitted
        conditioned = problem.infinite_width
        kernel = problem.kernel
        values: dict[str, Tensor] = {}
        one = torch.ones_like(problem.targets[..., 0])
        if kernel is not None:
            values["q"] = torch.ones_like(kernel.width.squeeze(-2))
            one = values["q"][..., -1]
        if isinstance(problem, BlocksProblem):
            values = problem.values(problem.at_scale(1.0))
        evidence = conditioned.log_likelihoods().squeeze(-1)
        return FittedTheory(self, problem, conditioned, values, one, message, log_evidence=evidence)
