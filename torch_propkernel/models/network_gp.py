"""A Gaussian process that is nothing but a mean and a kernel."""

from __future__ import annotations

from typing import Any

from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from gpytorch.models import ExactGP
from torch import Tensor


class NetworkGP(ExactGP):
    """The usual six lines of a GPyTorch model, for networks: an ExactGP of a kernel and a zero mean.

    Nothing here depends on it: every function of the package takes any ExactGP-like model.

    Shapes: inputs ``*b x P x d``, targets ``*b x P``.

    Args:
        train_inputs: Training inputs.
        train_targets: Training targets.
        likelihood: A Gaussian likelihood; its noise is the temperature.
        covar_module: The kernel, usually a :class:`RenormalizedNNGPKernel`.
        mean_module: The mean; zero if None.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), likelihood, RenormalizedNNGPKernel(Identity(), width=4))
        >>> [round(v, 5) for v in model(torch.eye(2)).variance.tolist()]   # |x|^2 / N_0
        [0.5, 0.5]
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
        """Store the modules; ``kwargs`` are for the other base of a subclass."""
        super().__init__(train_inputs, train_targets, likelihood, **kwargs)
        self.mean_module = ZeroMean() if mean_module is None else mean_module
        self.covar_module = covar_module

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Return the prior at x."""
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))
