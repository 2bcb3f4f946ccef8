"""A Gaussian process of several outputs that is nothing but means and a multitask kernel."""

from __future__ import annotations

from typing import Any

from gpytorch.constraints import Positive
from gpytorch.distributions import MultitaskMultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import MultitaskGaussianLikelihood
from gpytorch.means import Mean, MultitaskMean, ZeroMean
from torch import Tensor

from .network_gp import NetworkGP


class MultitaskNetworkGP(NetworkGP):
    """:class:`NetworkGP` of several outputs, in GPyTorch's multitask conventions.

    Nothing depends on it: theories take any ExactGP-like model whose ``covar_module`` is the kernel.

    Shapes: inputs ``P x d``, targets ``P x D``, predictions ``m x D``.

    Args:
        train_inputs: Training inputs.
        train_targets: Training targets.
        likelihood: A :class:`gpytorch.likelihoods.MultitaskGaussianLikelihood`; for the theory of a network with one
            temperature with ``has_task_noise=False``, so that its global ``noise`` is T.
        covar_module: A :class:`MultitaskRenormalizedKernel`, or another multitask kernel.
        mean_module: A multitask mean; zero if None.

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), torch.ones(3, 2), kernel, temperature=0.5)
        >>> model.eval()(torch.eye(3)).mean.shape, round(model.likelihood.noise.item(), 5)
        (torch.Size([3, 2]), 0.5)
    """

    def __init__(
        self,
        train_inputs: Any,
        train_targets: Tensor,
        likelihood: Any,
        covar_module: Kernel,
        mean_module: Mean | None = None,
        **kwargs: Any,
    ) -> None:
        """Store the modules."""
        if mean_module is None:
            mean_module = MultitaskMean(ZeroMean(), num_tasks=train_targets.shape[-1])
        super().__init__(train_inputs, train_targets, likelihood, covar_module, mean_module, **kwargs)

    @classmethod
    def with_temperature(cls, x: Tensor, y: Tensor, covar_module: Kernel, temperature: float) -> MultitaskNetworkGP:
        """Return the model whose noise is T for all outputs, without a bound on it."""
        likelihood = MultitaskGaussianLikelihood(y.shape[-1], has_task_noise=False, noise_constraint=Positive())
        likelihood.to(y).noise = y.new_tensor(temperature)
        return cls(x, y, likelihood, covar_module)

    def forward(self, x: Tensor) -> MultitaskMultivariateNormal:
        """Return the prior at x."""
        return MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))
