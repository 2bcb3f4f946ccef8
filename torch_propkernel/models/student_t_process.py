"""A Student's t process that is written like a GPyTorch ExactGP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch import settings
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.models import ExactGP
from torch import Tensor

from .._validation import check_finite, check_floating, check_inputs, check_same_kind, check_targets
from ..distributions.normal_given_scale import at_unit_scale
from ..inference.cholesky import safe_cholesky
from ..likelihoods import LatentStudentT, StudentTProcessLikelihood
from ..numerics.autocast import outside_autocast
from .rebuilt_fantasies import RebuiltFantasies
from .snapshot import Snapshot


class StudentTProcess(RebuiltFantasies, ExactGP):
    r"""Exact Student's t process regression: a GP whose overall scale is unknown and inferred with the function.

    .. math:: y \sim t_\nu(m, K + \sigma^2 I), \qquad f_* \mid y \sim t_{\nu + n}\Big(m_* + k_*^T A^{-1} (y - m),\
              \frac{\nu + b - 2}{\nu + n - 2}\,(k_{**} - k_*^T A^{-1} k_*)\Big)

    The second argument is the COVARIANCE (not the scale matrix); :math:`A = K + \sigma^2 I` (the noise is inside the
    scale), :math:`b = (y - m)^T A^{-1} (y - m)`, n the number of data, :math:`\nu > 2` the likelihood's ``deg_free``.

    What it does, plainly: the predicted mean is exactly the GP's with the same hyperparameters. Only the spread reacts
    to the data: it is wider than the GP's where the data vary more than the prior says (b > n), narrower where they
    vary less. It is NOT robust to outliers: all data share one scale, so an outlier widens the spread everywhere and
    pulls the mean as it does for a GP.

    Subclass it and write ``forward(x)`` returning the prior MultivariateNormal (mean and covariance of f), as for
    ExactGP; train with :class:`StudentTMarginalLogLikelihood`. In training mode a call returns that prior; in
    evaluation mode, and under ``gpytorch.settings.prior_mode``, a :class:`MultivariateStudentT` of the latent function.
    ``likelihood(model(x))`` is the distribution of new observations.

    Not included: several tasks, heteroskedastic noise, missing targets, GPyTorch's approximate solvers (all is dense
    Cholesky algebra, whatever the settings). Order parameters and hyperparameters are not refitted in fantasies. Train
    order parameters with the objective above: :func:`fit_order_parameters`, which is Gaussian, refuses it.

    Shapes: inputs ``*b x n x d`` (or ``n``), targets ``*b x n``; predictions ``*b x m``. Accuracy: exact to rounding.
    Cost: n^3 for the first prediction, then n^2 m; the factorization is kept until data or hyperparameters change. As
    in GPyTorch it is detached from the hyperparameters unless ``settings.detach_test_caches(False)``.

    Args:
        train_inputs: A tensor or a sequence of tensors; None for a prior only.
        train_targets: Targets.
        likelihood: A :class:`StudentTProcessLikelihood`.

    Raises:
        TypeError: Another likelihood; tensors that are not floating-point or of different dtype; several tasks.
        ValueError: Wrong shapes, NaN or infinite entries.

    Reference: Shah, Wilson & Ghahramani (2014), arXiv:1402.4306; Tracey & Wolpert (2018), arXiv:1801.06147; THEORY.md,
    section 2.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel.likelihoods import StudentTProcessLikelihood
        >>> class Model(StudentTProcess):
        ...     covar_module = gpytorch.kernels.LinearKernel()
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(x.new_zeros(len(x)), self.covar_module(x))
        >>> likelihood = StudentTProcessLikelihood()
        >>> likelihood.noise, likelihood.deg_free = 1.0, 4.0
        >>> model = Model(torch.ones(1, 1), torch.tensor([3.0]), likelihood).eval()
        >>> model.covar_module.variance = 1.0
        >>> f = model(torch.ones(1, 1))       # A = 2, b = 9/2: (4 + 4.5 - 2) / (4 + 1 - 2) times the GP's 1 - 1/2
        >>> bool((f.mean - 1.5).abs() < 1e-6), bool((f.variance - 6.5 / 3 * 0.5).abs() < 1e-6)
        (True, True)
    """

    prediction_strategy: Any

    def __init__(
        self,
        train_inputs: Tensor | Sequence[Tensor] | None,
        train_targets: Tensor | None,
        likelihood: StudentTProcessLikelihood,
    ) -> None:
        """Check and store the data."""
        if not isinstance(likelihood, StudentTProcessLikelihood):
            raise TypeError(f"likelihood: expected a StudentTProcessLikelihood, got {type(likelihood).__name__}")
        super().__init__(train_inputs, train_targets, likelihood)
        _check_data(self.train_inputs, self.train_targets)

    def set_train_data(self, inputs: Any = None, targets: Tensor | None = None, strict: bool = True) -> None:
        """Replace the training data, checked as in the constructor; hyperparameters stay."""
        if inputs is not None:
            inputs = _columns((inputs,) if isinstance(inputs, Tensor) else inputs)
        _check_data(inputs, targets)
        super().set_train_data(inputs, targets, strict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the factorization: tensors with a graph neither pickle nor copy."""
        return {**self.__dict__, "prediction_strategy": None}

    @outside_autocast
    def __call__(self, *args: Tensor, **kwargs: Any) -> MultivariateNormal | LatentStudentT:
        """Return the prior (training and prior mode) or the posterior at ``args``."""
        if self.training:
            return super().__call__(*args, **kwargs)
        inputs = _columns(args)
        for x in inputs:
            check_inputs(x)
        if settings.prior_mode.on() or self.train_inputs is None or self.train_targets is None:
            prior = self._prior(*inputs, **kwargs)
            df = self.likelihood.deg_free.squeeze(-1)
            return LatentStudentT(prior.mean, prior.lazy_covariance_matrix.to_dense(), df, torch.ones_like(df))
        return self._posterior(inputs, **kwargs)

    def _prior(self, *inputs: Tensor, **kwargs: Any) -> MultivariateNormal:
        prior = at_unit_scale(super(ExactGP, self).__call__(*inputs, **kwargs))
        if not isinstance(prior, MultivariateNormal) or isinstance(prior, MultitaskMultivariateNormal):
            raise TypeError(f"forward: expected a MultivariateNormal of one output, got {type(prior).__name__}")
        return prior

    def _posterior(self, inputs: tuple[Tensor, ...], **kwargs: Any) -> LatentStudentT:
        known = self._conditioned(**kwargs)
        n = known.num_data
        joint = self._prior(*(_join(old, new) for old, new in zip(self.train_inputs, inputs, strict=True)), **kwargs)
        covariance = joint.lazy_covariance_matrix
        cross = torch.linalg.solve_triangular(known.cholesky, covariance[..., :n, n:].to_dense(), upper=False)
        mean = joint.mean[..., n:] + (cross.mT @ known.residual.unsqueeze(-1)).squeeze(-1)
        shrunk = covariance[..., n:, n:].to_dense() - cross.mT @ cross
        df = self.likelihood.deg_free.squeeze(-1)
        # E[r | y] = (nu + b - 2) / (nu + n - 2), without cancellation at a huge nu.
        mean_scale = 1.0 + (known.residual.square().sum(-1) - n) / (df + (n - 2))
        return LatentStudentT(mean, mean_scale[..., None, None] * shrunk, df + n, mean_scale)

    def _conditioned(self, **kwargs: Any) -> _Conditioned:
        """Factorize A, or take the stored factorization if nothing has changed."""
        tensors, stored = [*self.train_inputs, self.train_targets], self.prediction_strategy
        # Gradients of fantasized data are always kept.
        detach = settings.detach_test_caches.on() and not any(t.requires_grad for t in tensors)
        if detach and isinstance(stored, _Conditioned) and stored.state.is_current(self):
            return stored
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            prior = self._prior(*self.train_inputs, **kwargs)
            check_targets(self.train_targets, prior.event_shape[0], "train_targets")
            cholesky = safe_cholesky(self.likelihood.noisy_covariance(prior))
            error = (self.train_targets - prior.mean).unsqueeze(-1)
            residual = torch.linalg.solve_triangular(cholesky, error, upper=False).squeeze(-1)
        found = _Conditioned(cholesky, residual, Snapshot.of(self))
        if detach:
            self.prediction_strategy = found
        return found


@dataclass(frozen=True, eq=False)
class _Conditioned:
    """What depends on the training data only: Cholesky factor L of A and L^{-1} (y - m)."""

    cholesky: Tensor
    residual: Tensor
    state: Snapshot

    @property
    def num_data(self) -> int:
        return int(self.cholesky.shape[-1])


def _columns(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs of one dimension are a single column, as everywhere in GPyTorch."""
    return tuple(x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() == 1 else x for x in inputs)


def _join(old: Tensor, new: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(old.shape[:-2], new.shape[:-2])
    if old.shape[-1] != new.shape[-1]:
        raise ValueError(f"x: expected {old.shape[-1]} columns as in training, got {new.shape[-1]}")
    check_same_kind(train_inputs=old, x=new)
    return torch.cat([old.expand(*batch, *old.shape[-2:]), new.expand(*batch, *new.shape[-2:])], dim=-2)


def _check_data(inputs: Sequence[Tensor] | None, targets: Tensor | None) -> None:
    for x in inputs or ():
        check_inputs(x, "train_inputs")
    if targets is not None:
        check_floating("train_targets", targets)
        check_finite("train_targets", targets)
    if targets is not None and inputs:
        check_targets(targets, inputs[0].shape[-2], "train_targets")
        check_same_kind(train_inputs=inputs[0], train_targets=targets)
