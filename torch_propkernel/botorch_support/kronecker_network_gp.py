"""A BoTorch model of one finite-width network with several outputs, at its saddle point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.exceptions import UnsupportedError
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform, Standardize
from botorch.models.utils import validate_input_scaling
from botorch.utils.types import DEFAULT, _DefaultType
from gpytorch.distributions import MultitaskMultivariateNormal
from gpytorch.likelihoods import MultitaskGaussianLikelihood
from gpytorch.means import ConstantMean, MultitaskMean
from torch import Tensor

from ..activations import ReLU
from ..kernels import MultitaskRenormalizedKernel
from ..models import MultitaskNetworkGP
from .single_task_process import default_noise


class KroneckerNetworkGP(MultitaskNetworkGP, GPyTorchModel):
    r"""Several outputs of one network of finite width, observed together, for Bayesian optimization.

    .. math:: \mathrm{Cov}[f_a(x), f_b(x')] = Q_{ab}\, K^L(x, x')

    The block design of BoTorch's ``KroneckerMultiTaskGP`` with a :class:`MultitaskRenormalizedKernel`, whose prior on
    the matrices behind Q the widths dictate: ``fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))``
    solves the saddle point and fits the hyperparameters. ``theories.SaddlePoint().fit(model)`` finds the matrices
    exactly and predicts in the targets' own units. The posterior is normal, a ``GPyTorchPosterior`` of a
    ``MultitaskMultivariateNormal``, so that Monte Carlo acquisition functions work, also multi-objective ones. Widths,
    variances, noise and Q are in units of the standardized targets.

    Refused: fantasies and conditioning on new observations (GPyTorch has none for this structure), batches of models,
    ``output_indices``.

    Shapes: train_X ``n x d``, train_Y ``n x D``, posterior at ``*b x q x d``: ``*b x q x D``. Cost: GPyTorch's, a
    matrix of n D rows (D^3 times that of one output).

    Args:
        train_X: Inputs.
        train_Y: Targets, all outputs at every point.
        width: N_1, ..., N_L of a relu network with biases and ARD; not beside a kernel.
        likelihood: Gaussian noise, the same for all outputs with BoTorch's log-normal prior by default.
        covar_module: A :class:`MultitaskRenormalizedKernel` in place of ``width``.
        outcome_transform: ``Standardize`` (the default), another of BoTorch's, or None.
        input_transform: Any of BoTorch's.

    Raises:
        TypeError: Both a width and a kernel, or none; another kind of transform.
        UnsupportedError: What is listed as refused.

    Reference: THEORY.md, section 11, eq. (20).

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> y = torch.cat([torch.sin(3 * x), torch.cos(3 * x)], -1)
        >>> posterior = KroneckerNetworkGP(x, y, width=20).posterior(x[:2])
        >>> tuple(posterior.mean.shape), posterior.rsample(torch.Size([7])).shape
        ((2, 2), torch.Size([7, 2, 2]))
    """

    _supports_cache_root = False  # BoTorch's cache expects outputs that are independent

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        width: float | Sequence[float] | Tensor | None = None,
        *,
        likelihood: MultitaskGaussianLikelihood | None = None,
        covar_module: MultitaskRenormalizedKernel | None = None,
        outcome_transform: OutcomeTransform | _DefaultType | None = DEFAULT,
        input_transform: InputTransform | None = None,
    ) -> None:
        """Transform the data and set up the process."""
        if (width is None) == (covar_module is None):
            raise TypeError("width, covar_module: expected one of them, got " + ("none" if width is None else "both"))
        self._validate_tensor_args(X=train_X, Y=train_Y)
        if train_X.dim() != 2:
            raise UnsupportedError(f"train_X: expected shape (n, d), got {tuple(train_X.shape)}")
        num_outputs = train_Y.shape[-1]
        with torch.no_grad():
            transformed = self.transform_inputs(X=train_X, input_transform=input_transform)
        if outcome_transform == DEFAULT:
            outcome_transform = Standardize(m=num_outputs)
        if outcome_transform is not None:
            if not isinstance(outcome_transform, OutcomeTransform):
                got = type(outcome_transform).__name__
                raise TypeError(f"outcome_transform: expected an OutcomeTransform or None, got {got}")
            outcome_transform.train()
            train_Y, _ = outcome_transform(Y=train_Y, X=transformed)
        validate_input_scaling(train_X=transformed, train_Y=train_Y)
        if likelihood is None:
            likelihood = MultitaskGaussianLikelihood(num_outputs, has_task_noise=False, **default_noise())
        if width is not None:
            covar_module = MultitaskRenormalizedKernel(
                ReLU(), width, num_outputs, bias_variance=1.0, ard_num_dims=transformed.shape[-1]
            )
        mean = MultitaskMean(ConstantMean(), num_tasks=num_outputs)
        super().__init__(train_X, train_Y, likelihood, covar_module, mean)
        self._num_outputs = num_outputs
        if outcome_transform is not None:
            self.outcome_transform = outcome_transform
        if input_transform is not None:
            self.input_transform = input_transform
        self.to(train_X)

    def forward(self, x: Tensor) -> MultitaskMultivariateNormal:
        """Return the prior at x."""
        return super().forward(self.transform_inputs(x) if self.training else x)

    def posterior(  # type: ignore[override]
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Any:
        """Return the joint posterior of all outputs at q points, on the targets' original scale.

        Args:
            X: ``*b x q x d``.
            output_indices: None.
            observation_noise: Whether to add the likelihood's noise.
            posterior_transform: Any of BoTorch's.

        Raises:
            UnsupportedError: Some outputs alone.
        """
        if output_indices is not None:
            raise UnsupportedError(f"output_indices: expected None, got {output_indices}; take columns of the samples")
        return super().posterior(X, observation_noise=observation_noise, posterior_transform=posterior_transform)

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        """Refuse.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "condition_on_observations: expected one output, got several; make a new model on the joined data"
        )
