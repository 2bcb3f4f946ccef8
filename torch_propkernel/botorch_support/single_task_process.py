"""What the BoTorch models of processes with a random scale share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform, ScalarizedPosteriorTransform
from botorch.exceptions import UnsupportedError
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.model import FantasizeMixin
from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform, Standardize
from botorch.models.utils import gpt_posterior_settings, validate_input_scaling
from botorch.models.utils.gpytorch_modules import MIN_INFERRED_NOISE_LEVEL
from botorch.utils.types import DEFAULT, _DefaultType
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.means import ConstantMean, Mean
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from .._validation import present
from ..distributions.normal_given_scale import NormalGivenScale
from ..kernels import RenormalizedNNGPKernel
from ..likelihoods import FiniteWidthLikelihood
from ..numerics.autocast import outside_autocast
from .latent_scale_posterior import LatentScalePosterior
from .non_gaussian import NonGaussianModel


class SingleTaskProcess(NonGaussianModel, GPyTorchModel, FantasizeMixin):
    """One output, BoTorch's transforms, a posterior that is not normal; mixed into an ExactGP-like process.

    A subclass calls :meth:`_prepare_data` (that of a network :meth:`_prepare_network`) before the process's constructor
    and :meth:`_set_modules` after it, and defines :meth:`_latent_posterior`.

    Refused: several outputs (independent ones: ``botorch.models.ModelList`` of single-output models), ``train_Yvar``,
    outcome transforms other than ``Standardize``, posterior transforms other than ``ScalarizedPosteriorTransform``
    (they would make a normal of the posterior), noise per fantasy.
    """

    _num_outputs = 1

    def _prepare_data(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        outcome_transform: OutcomeTransform | _DefaultType | None,
        input_transform: InputTransform | None,
        check_nans_only: bool,
    ) -> tuple[Tensor, Tensor, OutcomeTransform | None]:
        """Return transformed inputs and targets, and the outcome transform."""
        self._validate_tensor_args(X=train_X, Y=train_Y)
        if train_Y.shape[-1] != 1:
            raise UnsupportedError(
                f"train_Y: expected one output, got shape {tuple(train_Y.shape)}; several independent outputs are a "
                "botorch.models.ModelList of single-output models"
            )
        if outcome_transform == DEFAULT:
            outcome_transform = Standardize(m=1, batch_shape=train_X.shape[:-2])
        if outcome_transform is not None and not isinstance(outcome_transform, Standardize):
            raise UnsupportedError(
                f"outcome_transform: expected Standardize or None, got {type(outcome_transform).__name__}; only an "
                "affine transform keeps the kind of the posterior, transform the targets beforehand"
            )
        with torch.no_grad():
            transformed = self.transform_inputs(X=train_X, input_transform=input_transform)
        if outcome_transform is not None:
            outcome_transform.train()
            train_Y, _ = outcome_transform(Y=train_Y, X=transformed)
        validate_input_scaling(train_X=transformed, train_Y=train_Y, check_nans_only=check_nans_only)
        return transformed, train_Y.squeeze(-1), outcome_transform

    def _prepare_network(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        activation: str,
        width: float | Sequence[float] | Tensor | None,
        likelihood: FiniteWidthLikelihood | None,
        covar_module: Kernel | None,
        outcome_transform: OutcomeTransform | _DefaultType | None,
        input_transform: InputTransform | None,
    ) -> tuple[Tensor, FiniteWidthLikelihood, Kernel, OutcomeTransform | None]:
        """Return targets, likelihood, kernel and outcome transform of a network, by default those of its width."""
        if (width is None) == (covar_module is None):
            raise TypeError("width, covar_module: expected one of them, got " + ("none" if width is None else "both"))
        transformed, targets, outcome_transform = self._prepare_data(
            train_X, train_Y, outcome_transform, input_transform, check_nans_only=True
        )
        batch_shape = train_X.shape[:-2]
        if likelihood is None:
            likelihood = FiniteWidthLikelihood(**default_noise(), batch_shape=batch_shape)
        if covar_module is None:
            covar_module = RenormalizedNNGPKernel(
                activation,
                present(width, "width"),
                bias_variance=1.0,
                ard_num_dims=transformed.shape[-1],
                batch_shape=batch_shape,
            )
        return targets, likelihood, covar_module, outcome_transform

    def _set_modules(
        self,
        train_X: Tensor,
        covar_module: Kernel,
        mean_module: Mean | None,
        outcome_transform: OutcomeTransform | None,
        input_transform: InputTransform | None,
    ) -> None:
        """Store kernel, mean and transforms."""
        self.mean_module = ConstantMean(batch_shape=train_X.shape[:-2]) if mean_module is None else mean_module
        self.covar_module = covar_module
        if outcome_transform is not None:
            self.outcome_transform = outcome_transform
        if input_transform is not None:
            self.input_transform = input_transform
        self.to(train_X)

    def forward(self, x: Tensor) -> NormalGivenScale:
        """Return the prior at scale one, which is no MultivariateNormal: its law is the process's, see there."""
        if self.training:
            x = self.transform_inputs(x)
        return NormalGivenScale(self.mean_module(x), self.covar_module(x))

    def condition_on_observations(self, X: Tensor, Y: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the process on the joined data, with the same hyperparameters and the same transforms."""
        self.eval()  # in training mode the outcome transform would standardize the new targets by themselves
        return super().condition_on_observations(X, Y, **kwargs)

    @abstractmethod
    def _latent_posterior(self, X: Tensor, observation_noise: bool | Tensor) -> LatentScalePosterior:
        """Return the posterior at transformed inputs, in the units of the transformed targets."""

    @outside_autocast
    def posterior(  # type: ignore[override]
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> LatentScalePosterior:
        """Return the joint posterior at q points, on the targets' original scale.

        Args:
            X: ``*b x q x d``.
            output_indices: None or [0].
            observation_noise: Whether to add the likelihood's noise; a tensor ``*b x q x 1`` replaces it, in the units
                of the standardized targets.
            posterior_transform: A ``ScalarizedPosteriorTransform`` or None.
        """
        if output_indices is not None and list(output_indices) != [0]:
            raise UnsupportedError(f"output_indices: expected None or [0] (one output), got {output_indices}")
        if posterior_transform is not None and not isinstance(posterior_transform, ScalarizedPosteriorTransform):
            raise UnsupportedError(
                "posterior_transform: expected a ScalarizedPosteriorTransform or None, got "
                f"{type(posterior_transform).__name__}; for Monte Carlo acquisition functions use an objective instead"
            )
        self.eval()
        X = self.transform_inputs(X)
        with gpt_posterior_settings():
            posterior = self._latent_posterior(X, observation_noise)
        outcome_transform: Any = getattr(self, "outcome_transform", None)
        if outcome_transform is not None:
            means, deviations, _ = outcome_transform._get_per_input_means_stdvs(X=X, include_stdvs_sq=False)
            posterior = posterior.affine(means.squeeze(-1), deviations.squeeze(-1))
        if posterior_transform is not None:
            weights: Any = posterior_transform.weights
            offset: Any = posterior_transform.offset
            if weights.shape != (1,):
                raise UnsupportedError(f"posterior_transform: expected 1 weight, got shape {tuple(weights.shape)}")
            posterior = posterior.affine(torch.as_tensor(offset).to(X), weights.to(X))
        return posterior


def default_noise() -> dict[str, Any]:
    """BoTorch's prior and constraint of an inferred noise."""
    prior = LogNormalPrior(loc=-4.0, scale=1.0)
    constraint = GreaterThan(MIN_INFERRED_NOISE_LEVEL, transform=None, initial_value=prior.mode)
    return {"noise_prior": prior, "noise_constraint": constraint}
