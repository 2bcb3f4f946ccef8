"""A BoTorch model of a finite network by any theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.utils.types import DEFAULT, _DefaultType
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from ..distributions import ScaleMixtureMultivariateNormal
from ..distributions.normal_given_scale import NormalGivenScale
from ..likelihoods import FiniteWidthLikelihood
from ..models import FiniteNetworkProcess
from ..theories import Theory
from .finite_width_posterior import FiniteWidthPosterior
from .single_task_process import SingleTaskProcess


class SingleTaskFiniteNetworkGP(SingleTaskProcess, FiniteNetworkProcess):
    r"""Single-output finite network for Bayesian optimization: its posterior by any theory, sampled by default.

    .. math:: p(f_* | y) = \frac1S \sum_s N(f_*; \mu_s, \Sigma_s), \qquad w_s \sim p(w | y)

    A :class:`FiniteNetworkProcess`: ``fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))`` fits
    variances and noise by the evidence of the infinite width; the first posterior then draws the networks, which are
    kept, so that acquisition functions cost features and small matrix products. Widths, variances and noise are in
    units of the standardized targets.

    Monte Carlo acquisition functions work, look-ahead ones only with a theory that takes batches of models (not the
    sampled one: fantasies at several values). What assumes a normal posterior or conditions the prior itself is refused
    (analytic acquisition functions, ``loo_cv``, sample paths): :class:`NonGaussianModel` has the list.

    Refused too: batches of models with the sampled network, several outputs (independent ones:
    ``botorch.models.ModelList`` of single-output models), ``train_Yvar``, outcome transforms other than
    ``Standardize``, posterior transforms other than ``ScalarizedPosteriorTransform``, noise per fantasy.

    Shapes: train_X ``n x d``, train_Y ``n x 1``, posterior at ``*b x q x d``: ``*b x q x 1``.
    Accuracy and cost: those of the theory; see :class:`Sampled`.

    Args:
        train_X: Inputs.
        train_Y: Targets with one output dimension.
        width: N_1, ..., N_L of an erf network with biases and ARD; not beside a kernel.
        theory: A name in ``torch_propkernel.theories.THEORIES``, or a :class:`Theory`.
        likelihood: Gaussian noise; BoTorch's log-normal prior by default.
        covar_module: A kernel that holds one :class:`RenormalizedNNGPKernel`, in place of ``width``.
        mean_module: Mean; a trained constant by default.
        outcome_transform: ``Standardize`` (the default) or None.
        input_transform: Any of BoTorch's.

    Raises:
        TypeError: Both a width and a kernel, or none.
        UnsupportedError: What is listed as refused.

    Reference: THEORY.md, section 10.

    Example:
        >>> import torch
        >>> from torch_propkernel.theories import Sampled
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> few = Sampled(num_chains=4, num_draws=4)
        >>> posterior = SingleTaskFiniteNetworkGP(x, torch.sin(3 * x), width=20, theory=few).posterior(x[:2])
        >>> tuple(posterior.mean.shape), posterior.rsample(torch.Size([7])).shape[0]
        ((2, 1), 7)
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        width: float | Sequence[float] | Tensor | None = None,
        *,
        theory: str | Theory = "sampled",
        likelihood: FiniteWidthLikelihood | None = None,
        covar_module: Kernel | None = None,
        mean_module: Mean | None = None,
        outcome_transform: OutcomeTransform | _DefaultType | None = DEFAULT,
        input_transform: InputTransform | None = None,
    ) -> None:
        """Transform the data and set up the process."""
        targets, likelihood, covar_module, outcome_transform = self._prepare_network(
            train_X, train_Y, "erf", width, likelihood, covar_module, outcome_transform, input_transform
        )
        FiniteNetworkProcess.__init__(self, train_X, targets, likelihood, covar_module, theory=theory)
        self._set_modules(train_X, covar_module, mean_module, outcome_transform, input_transform)

    def forward(self, x: Tensor) -> Any:
        """Return the prior of the infinite width, in a form that passes for no normal: its law is the network's."""
        prior = FiniteNetworkProcess.forward(self, self.transform_inputs(x) if self.training else x)
        return NormalGivenScale(prior.mean, prior.lazy_covariance_matrix)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the normal prior of the objective (training mode), else the theory's predictive."""
        found = super().__call__(*args, **kwargs)
        if self.training:
            return MultivariateNormal(found.mean, found.lazy_covariance_matrix)
        return found

    def _latent_posterior(self, X: Tensor, observation_noise: bool | Tensor) -> FiniteWidthPosterior:
        law = self._predictive(X)
        if not isinstance(law, ScaleMixtureMultivariateNormal):
            law = ScaleMixtureMultivariateNormal(
                law.mean.new_zeros(1), law.mean.unsqueeze(-2), law.covariance_matrix.unsqueeze(-3)
            )
        if isinstance(observation_noise, Tensor):
            law = law.add_noise(observation_noise.squeeze(-1))
        elif observation_noise:
            law = law.add_noise(self.likelihood.noise)
        return FiniteWidthPosterior(law)
