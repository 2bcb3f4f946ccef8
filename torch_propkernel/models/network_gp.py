"""A Gaussian process that is nothing but a mean and a kernel."""

from __future__ import annotations

from typing import Any

from gpytorch import settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean, ZeroMean
from gpytorch.models import ExactGP
from torch import Tensor

from .._memory import check_memory
from ..numerics.autocast import refuse_autocast
from .snapshot import Snapshot

_LARGE = 4000  # training targets from which the memory is looked at


class NetworkGP(ExactGP):
    """The usual six lines of a GPyTorch model, for networks: an ExactGP of a kernel and a zero mean.

    Nothing here depends on it: every function of the package takes any ExactGP-like model. In evaluation mode GPyTorch
    keeps what it computed from the training data; this class drops it when a hyperparameter, an order parameter, the
    noise or the data have changed, so that predictions are never stale.

    Shapes: inputs ``*b x P x d``, targets ``*b x P``.

    Raises:
        RuntimeError: A prediction under ``torch.autocast``, whose products would not be positive definite.
        NotEnoughMemoryError: A prediction by GPyTorch whose matrix of the training points does not fit; theories stream
            it (``InfiniteWidth().fit(model).predict(x)``).

    Args:
        train_inputs: Training inputs.
        train_targets: Training targets.
        likelihood: A Gaussian likelihood; its noise is the temperature.
        covar_module: The kernel, usually a :class:`RenormalizedNNGPKernel`.
        mean_module: The mean; zero if None.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> model = NetworkGP(torch.eye(2), torch.ones(2), likelihood, RenormalizedNNGPKernel(Identity(), width=4))
        >>> [round(v, 5) for v in model(torch.eye(2)).variance.tolist()]   # |x|^2 / N_0
        [0.5, 0.5]
    """

    _predicted_at: Snapshot | None = None

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the prior (training mode) or the posterior (evaluation mode) at the inputs given."""
        if not self.training:
            if super().__call__.__func__ is ExactGP.__call__:  # whose products are formed later, when they are read
                refuse_autocast("NetworkGP")
                self._check_memory()
            if self._predicted_at is None or not self._predicted_at.is_current(self):
                self._clear_cache()
            self._predicted_at = Snapshot.of(self)
        return super().__call__(*args, **kwargs)

    def _check_memory(self) -> None:
        """Refuse a prediction whose matrix of P x P, which GPyTorch holds, does not fit."""
        y = self.train_targets
        if not isinstance(y, Tensor) or y.dim() != 1 or len(y) < _LARGE:
            return
        if settings.prior_mode.on() or self.prediction_strategy:
            return
        remedy = (
            "predict by a theory that does without: SaddlePoint().fit(model).predict(x), or InfiniteWidth, FreeScale, "
            "Mixture"
        )
        check_memory(
            f"GPyTorch's prediction from {len(y)} training targets",
            y.element_size() * float(len(y)) ** 2,
            remedy,
            y.device,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was kept of a prediction: tensors with a graph neither pickle nor copy."""
        return {**self.__dict__, "_predicted_at": None, "prediction_strategy": None}
