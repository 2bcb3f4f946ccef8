"""The saddle point of the effective action, with the kernel's own composition."""

from __future__ import annotations

from ..inference.model_parts import ModelParts
from ..inference.predictor import Predictor
from .base import FittedTheory, Theory
from .fit_order_parameters import fit_parts
from .infinite_width import FittedGaussian


class SaddlePoint(Theory):
    r"""One order parameter for each hidden layer at the minimum of the effective action: the paper's theory.

    .. math:: S(q) = \sum_l \frac{N_l}{N_L} (q_l - \log q_l) + \frac1{N_L} [\log\det A + y^T A^{-1} y], \quad
              A = T 1 + K_R(q)

    K_R is the one of the kernel's ``composition``. ``order_parameters["q"]`` has q_1, ..., q_L, ``*b x L``;
    ``readout_norm`` is q_L. What :func:`fit_order_parameters` does, behind the interface of all theories; ``stats``
    and ``message`` are its solution's, ``stats["solution"]`` is the whole of it. Its warning about unreliable regimes
    is not repeated here: look at ``stats["solution"].reliability``.

    Raises:
        ConvergenceError: The solve did not converge.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, results (i) and (ii); THEORY.md, eqs. (2), (6), (7), (8), (8b).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel, fit_order_parameters
        >>> kernel = RenormalizedNNGPKernel(Erf(), width=10)
        >>> model = NetworkGP(torch.eye(3), torch.ones(3), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> fitted = SaddlePoint().fit(model)
        >>> kernel.order_parameter.item()   # the model is not changed
        1.0
        >>> torch.equal(fitted.order_parameters["q"], fit_order_parameters(model, warn=False).order_parameter)
        True
    """

    name = "saddle point"

    def _fit(self, parts: ModelParts) -> FittedTheory:
        solution, problem = fit_parts(parts, warn=False)
        covariance = None
        if problem is not None and parts.is_multiplicative():
            scale = solution.order_parameter.prod(-1).to(problem.kernel_matrix.dtype)
            covariance = scale[..., None, None] * problem.kernel_matrix
        q = solution.order_parameter
        predictor = Predictor(parts, q.unsqueeze(-2), covariance)
        stats = solution.stats | {"solution": solution}
        return FittedGaussian(predictor, self, parts, {"q": q}, q[..., -1], solution.message, stats)
