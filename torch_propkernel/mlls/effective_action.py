"""The effective action as a loss for training loops."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..numerics.autocast import outside_autocast


class EffectiveAction(ExactMarginalLogLikelihood):
    r"""The effective action S of a model, to be minimized: a loss, in the scale of the paper.

    .. math:: S(q) = \sum_l \frac{N_l}{N_L}(q_l - \log q_l) + \frac{1}{N_L}\big[\log\det A + y^T A^{-1} y\big]

    N_l are the widths, q_l the order parameters of the model's renormalized kernel, A = K_R(q) + T. Up to a constant S
    is -2 / N_L times the sum of the log likelihood and the log prior of q. GPyTorch's ``ExactMarginalLogLikelihood``,
    which is maximized and divided by the number of data, has the same optimum. Other priors of the model (on
    hyperparameters) are not part of S and not included.

    Infinite layers contribute nothing; with N_L infinite the divisor is one. The log probability is computed by an
    exact Cholesky factorization for any number of points (GPyTorch's default turns stochastic above 800).

    Shapes: targets ``*b x P``, result ``*b``; each element of a batch of models has the action that it has alone.

    Args:
        likelihood: The Gaussian likelihood, whose noise is the temperature.
        model: An ExactGP with one :class:`RenormalizedNNGPKernel`.

    Raises:
        ValueError: No renormalized kernel in the model, or several.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, eqs. (2) and (7).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import EffectiveAction, NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> likelihood.noise = 1.0
        >>> action = EffectiveAction(likelihood, model)(model(torch.ones(1, 1)), torch.ones(1))
        >>> expected = 1 + (torch.tensor(2.0).log() + 0.5) / 4   # q = 1, A = 2
        >>> bool((action - expected).abs() < 1e-6)
        True
    """

    def __init__(self, likelihood: Any, model: Any) -> None:
        """Find the model's renormalized kernel."""
        super().__init__(likelihood, model)
        find_renormalized_kernel(model)

    @outside_autocast
    def forward(self, function_dist: MultivariateNormal, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        """Return S, in the batch shape of the model, from the model's prior output in training mode."""
        kernel = find_renormalized_kernel(self.model)
        marginal = self.likelihood(function_dist, *params, **kwargs)
        with gpytorch.settings.fast_computations(log_prob=False):
            data = -2.0 * marginal.log_prob(target)
        data = data - marginal.event_shape.numel() * torch.log(data.new_tensor(2.0 * torch.pi))
        width, q = kernel.width.squeeze(-2), kernel.order_parameter.squeeze(-2)
        finite = torch.isfinite(width)
        layers = torch.where(finite, torch.where(finite, width, 0.0) * (q - q.log()), 0.0).sum(-1)
        return (layers + data) / torch.where(finite[..., -1], width[..., -1], 1.0)
