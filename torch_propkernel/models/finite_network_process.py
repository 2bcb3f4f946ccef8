"""A GPyTorch model that predicts what a theory of the finite network says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from gpytorch import settings
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import Mean
from linear_operator import to_linear_operator
from torch import Tensor

from .._views import replaced
from ..distributions import ScaleMixtureMultivariateNormal
from ..inference import Problem
from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..likelihoods import FiniteWidthLikelihood
from ..numerics.autocast import outside_autocast
from ..theories import FittedTheory, Theory, get_theory
from .network_gp import NetworkGP
from .rebuilt_fantasies import RebuiltFantasies
from .snapshot import Snapshot, fingerprint

_LARGEST = 2**26
"""Numbers that the covariances of all components may have: 512 MiB in float64."""


class FiniteNetworkProcess(RebuiltFantasies, NetworkGP):
    r"""The posterior of a Bayesian network of finite width, by any theory, as an ExactGP.

    .. math:: \text{training: } y \sim N(m, T 1 + K_\infty), \qquad
              \text{evaluation: } f_* | y \sim \text{theory at width } N

    In training mode it is the infinitely wide network (the kernel at q = 1), so that
    ``gpytorch.mlls.ExactMarginalLogLikelihood`` and any optimizer fit variances, ARD weights and noise by the evidence.
    In evaluation mode a call returns the predictive of the latent function by ``theory``, at the kernel's width: a
    MultivariateNormal, or a :class:`ScaleMixtureMultivariateNormal` (of the networks that were drawn, with the default
    ``"sampled"``), which has ``mean``, ``variance``, ``covariance_matrix``, ``icdf``, ``log_prob`` and ``rsample``. A
    GPyTorch script gains the finite network by this class in the place of its own.

    The theory is fitted at the first prediction, in float64 whatever the model's dtype is, and kept until
    hyperparameters or data change; copies, pickles and, for ``"sampled"``, files of :func:`torch_propkernel.save` keep
    it too. Other theories are fitted again after loading, which gives the same. A fantasy model is the process on the
    joined data, fitted anew when it predicts: theories without batches refuse several fantasies at once. The kernel's
    order parameter plays no part: it is set to one and frozen. A plain GaussianLikelihood becomes a
    :class:`FiniteWidthLikelihood`, which is one that adds its noise to mixtures too.

    :class:`FiniteWidthProcess` stays beside it for what it alone has: evidence of the finite width as a differentiable
    objective, mixing laws of one's own, and forward methods of one's own.

    Shapes: as an ExactGP; the default theory takes no batch of models, but batches of test points. Gradients of
    predictions with respect to x are right; those with respect to hyperparameters are not formed. Accuracy and cost:
    those of the theory; see :class:`Sampled`. Covariances between test points are kept where those of all components
    fit into 512 MiB (370 points with the default theory); beyond that the distribution is one of marginals, and what is
    joint is refused.

    Args:
        train_inputs: ``P x d``.
        train_targets: ``P``.
        likelihood: A Gaussian likelihood; its noise is the temperature.
        covar_module: A kernel that holds one :class:`RenormalizedNNGPKernel`, whose width counts.
        mean_module: The mean; zero if None.
        theory: A name in ``torch_propkernel.theories.THEORIES``, or a :class:`Theory`.

    Raises:
        TypeError, ValueError: No renormalized kernel, an unknown theory; at the first prediction, a model to which the
            theory does not apply.

    Reference: THEORY.md, sections 1, 9 and 10.

    Example:
        >>> import torch
        >>> from torch_propkernel import FiniteNetworkProcess, FiniteWidthLikelihood, RenormalizedNNGPKernel
        >>> x = torch.linspace(-1, 1, 8).unsqueeze(-1)
        >>> kernel = RenormalizedNNGPKernel("erf", width=5, bias_variance=1.0)
        >>> model = FiniteNetworkProcess(x, x[:, 0], FiniteWidthLikelihood(), kernel).eval()
        >>> latent, noisy = model(x[:2]), model.likelihood(model(x[:2]))
        >>> torch.allclose(noisy.variance - latent.variance, model.likelihood.noise)
        True
        >>> latent.num_nodes, model.fitted.theory.name   # networks that were drawn
        (480, 'sampled')
    """

    _fit: FittedTheory | None
    _fitted_at: Snapshot | None
    _record: dict[str, Any] | None

    def __init__(
        self,
        train_inputs: Any,
        train_targets: Any,
        likelihood: Any,
        covar_module: Kernel,
        mean_module: Mean | None = None,
        *,
        theory: str | Theory = "sampled",
    ) -> None:
        """Store the modules and the theory."""
        if type(likelihood) is GaussianLikelihood:
            likelihood.__class__ = FiniteWidthLikelihood
        super().__init__(train_inputs, train_targets, likelihood, covar_module, mean_module)
        kernel = find_renormalized_kernel(self)
        kernel.initialize(order_parameter=1.0)
        kernel.raw_order_parameter.requires_grad_(False)
        self.theory = theory

    @property
    def theory(self) -> Theory:
        """The theory of evaluation mode; it may be set to another one, or to a name."""
        return self._theory

    @theory.setter
    def theory(self, value: str | Theory) -> None:
        self._theory = get_theory(value)
        self._fit = self._fitted_at = self._record = None

    @property
    @outside_autocast
    def fitted(self) -> FittedTheory:
        """The theory at the present data and hyperparameters, in float64, with errors, leave-one-out and evidence.

        Raises:
            TypeError, ValueError: The theory does not apply to the model.
            ConvergenceError: The solve failed.
        """
        found = self._present_fit()
        if found is None:
            problem, record = self._problem(), self._record
            if record is not None and record["fingerprint"] == fingerprint(self):
                found = record["theory"].restored(problem, record["fit"])
            else:
                found = self.theory.fit(problem)
            self._keep(found)
        return found

    @classmethod
    def from_fitted(cls, fitted: FittedTheory) -> FiniteNetworkProcess:
        """Return the process of a fitted theory, which it keeps, in evaluation mode.

        Args:
            fitted: Of a model with a mean and a kernel, such as :class:`NetworkGP`; ``predictor.fitted`` of
                :func:`torch_propkernel.tuning.fit_predictor`.
        """
        own = copy.deepcopy(fitted.problem.model)
        made = cls(
            own.train_inputs, own.train_targets, own.likelihood, own.covar_module, own.mean_module, theory=fitted.theory
        )
        made.eval()._keep(fitted)
        return made

    @property
    def kept_fit(self) -> dict[str, Any] | None:
        """What a file keeps of the fit; None before a prediction, and where a theory is fitted again instead."""
        fit = self._present_fit()
        record = None if fit is None else fit.record()
        if fit is None or record is None:
            return self._record
        return {"fingerprint": fingerprint(self), "theory": fit.theory, "fit": record}

    @kept_fit.setter
    def kept_fit(self, value: dict[str, Any] | None) -> None:
        self._record = value

    def _present_fit(self) -> FittedTheory | None:
        """The fit if it belongs to the present data and hyperparameters."""
        return self._fit if self._fitted_at is not None and self._fitted_at.is_current(self) else None

    def _keep(self, fit: FittedTheory) -> None:
        self._fit, self._fitted_at, self._record = fit, Snapshot.of(self), None

    def _problem(self) -> Problem:
        """The present problem in float64."""
        model = copy.deepcopy(self).double()
        model._record = None
        return Problem.frozen(model)

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Return the prior at x; in training mode with the kernel at q = 1."""
        if not self.training:
            return super().forward(x)
        kernel = find_renormalized_kernel(self)
        wide = replaced(self, kernel, kernel.at(torch.ones_like(kernel.order_parameter.squeeze(-2))))
        return MultivariateNormal(self.mean_module(x), wide.covar_module(x))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the prior (training mode) or the theory's predictive of the latent function (evaluation mode)."""
        if self.training or settings.prior_mode.on() or self.train_inputs is None:
            return super().__call__(*args, **kwargs)
        if len(args) != 1:
            raise TypeError(f"expected one tensor of inputs, got {len(args)}")
        return self._predictive(args[0].unsqueeze(-1) if args[0].dim() == 1 else args[0])

    def _predictive(self, x: Tensor) -> Any:
        """Return the distribution of f at inputs as ``forward`` takes them, in the dtype of x."""
        posterior = self.fitted.conditioned
        size = x.shape[:-2].numel() * x.shape[-2] ** 2
        if posterior.log_weights is not None:
            size *= posterior.log_weights.shape[-1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            wide = posterior.problem.check_points(x.double())
            return _as_dtype(posterior.distribution(wide, joint=size <= _LARGEST), x.dtype)

    def get_fantasy_model(self, inputs: Any, targets: Tensor, **kwargs: Any) -> Any:
        """Return the process on the joined data, with the same hyperparameters; the theory is fitted anew.

        Raises:
            ValueError: Several fantasies at once, for a theory that takes no batch of models.
        """
        made = super().get_fantasy_model(inputs, targets, **kwargs)
        self.theory.check(made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Keep a fit that is current; what it depends on is known by identity, which a copy does not keep."""
        return {**super().__getstate__(), "_fit": self._present_fit(), "_fitted_at": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state whose fit is current."""
        super().__setstate__(state)
        if self._fit is not None:
            self._fitted_at = Snapshot.of(self)


def _as_dtype(law: Any, dtype: torch.dtype) -> Any:
    """Return a distribution in another dtype."""
    if law.mean.dtype == dtype:
        return law
    if isinstance(law, ScaleMixtureMultivariateNormal):
        return law.to(dtype)
    return MultivariateNormal(law.mean.to(dtype), to_linear_operator(law.covariance_matrix.to(dtype)))
