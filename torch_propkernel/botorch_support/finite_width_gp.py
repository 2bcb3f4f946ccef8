"""A BoTorch model of a finite-width network."""

from __future__ import annotations

from collections.abc import Sequence

from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.utils.types import DEFAULT, _DefaultType
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from ..likelihoods import FiniteWidthLikelihood
from ..models import FiniteWidthProcess
from .finite_width_posterior import FiniteWidthPosterior
from .single_task_process import SingleTaskProcess


class SingleTaskFiniteWidthGP(SingleTaskProcess, FiniteWidthProcess):
    r"""Single-output finite-width process for Bayesian optimization.

    .. math:: p(f_* | y) = \int p(r | y)\, N(f_*; \Gamma(r), \Sigma(r))\, dr

    The posterior is the mixture of :class:`FiniteWidthProcess` on the original scale of the targets. Fit it with
    ``fit_gpytorch_mll(FiniteWidthMarginalLogLikelihood(model.likelihood, model))``. Widths, variances, noise and the
    scale r are in units of the standardized targets. For the saddle alone, whose posterior is normal, use BoTorch's
    own ``SingleTaskGP(covar_module=RenormalizedNNGPKernel(...))``.

    Monte Carlo acquisition functions work (base samples have one more entry, for the scale), and so does
    ``batch_cross_validation``. What assumes a normal posterior or conditions the prior itself is refused (analytic
    acquisition functions, ``loo_cv``, sample paths): :class:`NonGaussianModel` has the list.

    Refused too: several outputs (independent ones: ``botorch.models.ModelList`` of single-output models),
    ``train_Yvar``, outcome transforms other than ``Standardize``, posterior transforms other than
    ``ScalarizedPosteriorTransform``, noise per fantasy.

    Shapes: train_X ``*b x n x d``, train_Y ``*b x n x 1``, posterior at ``*b x q x d``: ``*b x q x 1``.
    Accuracy and cost: those of :class:`FiniteWidthProcess`.

    Args:
        train_X: Inputs.
        train_Y: Targets with one output dimension.
        width: N_1, ..., N_L of a relu network with biases and ARD; not beside a kernel.
        likelihood: Gaussian noise; BoTorch's log-normal prior by default.
        covar_module: A kernel that holds one :class:`RenormalizedNNGPKernel`, in place of ``width``.
        mean_module: Mean; a trained constant by default.
        outcome_transform: ``Standardize`` (the default) or None.
        input_transform: Any of BoTorch's.

    Raises:
        TypeError: Both a width and a kernel, or none.
        UnsupportedError: What is listed as refused.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, section 1.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> posterior = SingleTaskFiniteWidthGP(x, torch.sin(3 * x), width=20).posterior(x[:2])
        >>> tuple(posterior.mean.shape), posterior.rsample(torch.Size([7])).shape[0]
        ((2, 1), 7)
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        width: float | Sequence[float] | Tensor | None = None,
        *,
        likelihood: FiniteWidthLikelihood | None = None,
        covar_module: Kernel | None = None,
        mean_module: Mean | None = None,
        outcome_transform: OutcomeTransform | _DefaultType | None = DEFAULT,
        input_transform: InputTransform | None = None,
    ) -> None:
        """Transform the data and set up the process."""
        targets, likelihood, covar_module, outcome_transform = self._prepare_network(
            train_X, train_Y, "relu", width, likelihood, covar_module, outcome_transform, input_transform
        )
        FiniteWidthProcess.__init__(self, train_X, targets, likelihood)
        self._set_modules(train_X, covar_module, mean_module, outcome_transform, input_transform)

    def _latent_posterior(self, X: Tensor, observation_noise: bool | Tensor) -> FiniteWidthPosterior:
        distribution = self.predict(X, "mixture")
        if isinstance(observation_noise, Tensor):
            distribution = distribution.add_noise(observation_noise.squeeze(-1))
        elif observation_noise:
            distribution = self.likelihood(distribution)
        return FiniteWidthPosterior(distribution)
