"""The baseline that every order parameter has to face."""

from __future__ import annotations

import torch

from ..inference.model_parts import ModelParts
from ..inference.predictor import Predictor
from .base import FittedTheory, Theory
from .best_scale import free_scale_of
from .infinite_width import FittedGaussian


class FreeScaleBaseline(Theory):
    r"""No theory of the network: the infinitely wide one with a free scale of its kernel, ScaleKernel(NNGPKernel).

    .. math:: f \sim GP(0, r K^L), \qquad r = \arg\max_r \log N(y; 0, T 1 + r K^L)

    What an order parameter without the prior of the width would be; a theory that this beats says nothing about the
    width. ``order_parameters["r"]`` and ``readout_norm`` are the scale, ``stats`` has ``log_evidence`` and ``at_edge``,
    as :func:`fit_free_scale`. No batch of models. Cost: one reduction of the kernel and one Cholesky factorization.

    Raises:
        ValueError: A batch of models, T = 0.

    Reference: THEORY.md, section 7.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.ones(1, 1), 3 * torch.ones(1), likelihood, kernel)
        >>> round(FreeScaleBaseline().fit(model).order_parameters["r"].item(), 5)   # T + r k = y^2 with k = 1
        8.0
    """

    name = "free scale"

    def _fit(self, parts: ModelParts) -> FittedTheory:
        scale, log_evidence, at_edge = free_scale_of(parts)
        predictor = Predictor(parts, parts.last_order_parameter(scale))
        r = torch.tensor(scale, dtype=parts.targets.dtype, device=parts.targets.device)
        message = f"The evidence is largest at r = {scale:.5g}" + (", an edge of the search." if at_edge else ".")
        stats = {"log_evidence": log_evidence, "at_edge": at_edge}
        return FittedGaussian(predictor, self, parts, {"r": r}, r, message, stats)
