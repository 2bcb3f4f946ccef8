"""A BoTorch model with a Student's t posterior."""

from __future__ import annotations

from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.utils.types import DEFAULT, _DefaultType
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from ..likelihoods import StudentTProcessLikelihood
from ..models import StudentTProcess
from .single_task_process import SingleTaskProcess, default_noise
from .student_t_posterior import StudentTPosterior


class SingleTaskStudentTProcess(SingleTaskProcess, StudentTProcess):
    r"""Single-output Student's t process for Bayesian optimization: BoTorch's ``SingleTaskGP`` with an unknown scale.

    .. math:: f_* \mid y \sim t_{\nu + n}(\text{the GP's mean},\ \text{its covariance times } (\nu + b - 2)/
              (\nu + n - 2))

    with b the squared, standardized residuals of the n data (:class:`StudentTProcess`); :math:`\nu` is the likelihood's
    ``deg_free``. The posterior is on the original scale of the targets, a Student's t with the same degrees of freedom.
    Fit it with ``fit_gpytorch_mll(StudentTMarginalLogLikelihood(model.likelihood, model))``. The mean is a GP's, and it
    is not robust to outliers. Priors, constraints and kernel are those of ``SingleTaskGP`` unless given; noise and
    order parameters are in units of the standardized targets.

    Monte Carlo acquisition functions work (base samples have one more entry, for the scale), and so does
    ``batch_cross_validation``. What assumes a normal posterior or conditions the prior itself is refused (analytic
    acquisition functions, ``loo_cv``, sample paths): :class:`NonGaussianModel` has the list.

    Refused too: several outputs (independent ones: ``botorch.models.ModelList`` of single-output models),
    ``train_Yvar``, outcome transforms other than ``Standardize`` (the exponential of a Student's t has no moments),
    posterior transforms other than ``ScalarizedPosteriorTransform`` (they would make a normal of the posterior), noise
    per fantasy.

    Shapes: train_X ``*b x n x d``, train_Y ``*b x n x 1``, posterior at ``*b x q x d``: ``*b x q x 1``.
    Accuracy and cost: those of :class:`StudentTProcess`.

    Args:
        train_X: Inputs; the unit cube is best.
        train_Y: Targets with one output dimension.
        likelihood: Noise and degrees of freedom; BoTorch's log-normal noise prior by default.
        covar_module: Kernel, without noise; any GPyTorch kernel.
        mean_module: Mean; a trained constant by default.
        outcome_transform: ``Standardize`` (the default) or None.
        input_transform: Any of BoTorch's.

    Raises:
        UnsupportedError: What is listed as refused.
        TypeError, ValueError: As :class:`StudentTProcess`; BoTorch's own errors for shapes.

    Reference: Shah, Wilson & Ghahramani (2014), arXiv:1402.4306; THEORY.md, section 2.

    Example:
        >>> import torch
        >>> x = torch.linspace(0, 1, 6, dtype=torch.float64).unsqueeze(-1)
        >>> model = SingleTaskStudentTProcess(x, torch.sin(6 * x))
        >>> posterior = model.posterior(x[:2])
        >>> posterior.df.item() == model.likelihood.deg_free.item() + 6, tuple(posterior.mean.shape)
        (True, (2, 1))
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        likelihood: StudentTProcessLikelihood | None = None,
        covar_module: Kernel | None = None,
        mean_module: Mean | None = None,
        outcome_transform: OutcomeTransform | _DefaultType | None = DEFAULT,
        input_transform: InputTransform | None = None,
    ) -> None:
        """Transform the data and set up the process."""
        transformed, targets, outcome_transform = self._prepare_data(
            train_X, train_Y, outcome_transform, input_transform, check_nans_only=covar_module is not None
        )
        batch_shape = train_X.shape[:-2]
        if likelihood is None:
            likelihood = StudentTProcessLikelihood(**default_noise(), batch_shape=batch_shape)
        StudentTProcess.__init__(self, train_X, targets, likelihood)
        if covar_module is None:
            covar_module = get_covar_module_with_dim_scaled_prior(
                ard_num_dims=transformed.shape[-1], batch_shape=batch_shape
            )
        self._set_modules(train_X, covar_module, mean_module, outcome_transform, input_transform)

    def _latent_posterior(self, X: Tensor, observation_noise: bool | Tensor) -> StudentTPosterior:
        distribution = self(X)
        if observation_noise is not False:
            # It is multiplied by the scale, as the likelihood's is.
            noise = {"noise": observation_noise.squeeze(-1)} if isinstance(observation_noise, Tensor) else {}
            distribution = self.likelihood(distribution, X, **noise)
        return StudentTPosterior(distribution)
