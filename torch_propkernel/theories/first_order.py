"""The 1/N expansion of the posterior: around infinite width, or what the saddle point leaves out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..actions.first_order import FirstOrderTerms, Terms, draw_pre_activations, first_order_terms
from ..activations import Identity
from ..inference.last_layer import last_layer
from ..inference.model_parts import ModelParts
from ..inference.predictor import Predictor
from .base import FittedTheory, Theory
from .fit_order_parameters import fit_parts

ABOUT = ("infinite_width", "saddle_point")


class FirstOrder(Theory):
    r"""The posterior to first order in 1/N: a Gaussian process and the fourth cumulant of the last layer's units.

    .. math:: \log Z(j) = \log Z_{GP}(j) + \frac{1}{8N} \big\{E_w[B^4 - 6 g B^2 + 3 g^2] - \Pi(j)\big\} + O(N^{-2})

    ``about="infinite_width"``: the expansion around q = 1, exact to this order for one hidden layer, any activation
    (also with a nonzero mean) and any data; for identity activations in closed form, for any depth. It is good where
    P/N and the correction are small: alpha below about 0.1, or the wider the colder; it fails without warning beyond,
    so compare ``stats["relative_correction"]`` with one. ``about="saddle_point"``: the saddle point's prediction plus
    what its Gaussian unit leaves out, 3 Pi in place of Pi, at A(q*): an estimate of the saddle's error that lives at
    P/N of order one. It leaves out the shift of q that the same term causes, and the fluctuation of q (:class:`Mixture`
    has that).

    With several layers the last layer's units are exact; of the lower ones only the fluctuation of their scale is kept
    (that of the outer composition), so the order 1/N is incomplete there but for linear networks. Corrected variances
    are cut at zero. ``order_parameters["q"]`` is 1 + (a^T K a - tr A^{-1} K)/N or q*, ``*b x L``; ``readout_norm`` is
    q_L. ``stats`` has ``log_evidence_correction`` (around infinite width: of log p(y)) with its Monte Carlo
    ``standard_error``, and ``relative_correction``, the root mean square change of the fit at the training points over
    the GP's standard deviation there. :meth:`FittedFirstOrder.correction` gives corrections with their errors.

    Units are drawn with a generator of their own. Cost: ``eigh`` of (P + m) points for each call with m points, and
    M P (P + m) for M units.

    Args:
        about: The point of expansion.
        num_units: M. Monte Carlo errors of the corrections fall as 1/sqrt(M) and grow with q and P/N.
        seed: Of the units.

    Raises:
        ValueError: The model's covariance is not its renormalized kernel (in ScaleKernels), batches of models, an
            unknown ``about``.

    Reference: Baglioni et al. (2024), arXiv:2401.11004, have such corrections for linear networks; derived here for any
    activation; THEORY.md, eq. (2b).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import FirstOrder, Mixture
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=1000)
        >>> x = torch.tensor([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5]])
        >>> model = NetworkGP(x, 3 * x[:, 0], gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
        >>> first, exact = FirstOrder().fit(model).predict(x.double()), Mixture().fit(model).predict(x.double())
        >>> bool((first[1] - exact[1]).abs().max() < 3e-5)   # corrections are about 1e-3, the next order 1e-5
        True
    """

    name = "first order in 1/N"

    def __init__(self, about: str = "infinite_width", num_units: int = 16384, seed: int = 0) -> None:
        """Store the options."""
        if about not in ABOUT:
            raise ValueError(f"about: expected one of {ABOUT}, got {about!r}")
        if num_units < 2:
            raise ValueError(f"num_units: expected at least 2, got {num_units}")
        self.about = about
        self.num_units = num_units
        self.seed = seed

    def _fit(self, parts: ModelParts) -> FittedTheory:
        if parts.targets.dim() > 1 or parts.kernel.width.numel() != parts.kernel.width.shape[-1]:
            raise ValueError(f"model: expected one problem, got a batch of shape {tuple(parts.targets.shape[:-1])}")
        last_layer(parts, parts.inputs[..., :1, :])  # refuses models whose units are not known
        width = parts.kernel.width.squeeze(-2)
        if self.about == "saddle_point":
            solution, _ = fit_parts(parts, warn=False)
            q, message = solution.order_parameter.to(width), solution.message
        else:
            q, message = torch.ones_like(width), "The expansion in 1/N around infinite width; nothing was solved."
        fitted = FittedFirstOrder(self, parts, {"q": q}, q[..., -1], message)
        if self.about == "infinite_width":
            weights = fitted.predictor.weights
            fit = parts.residuals() - parts.noise_diagonal() * weights
            trace = (1.0 - parts.noise_diagonal() * fitted.predictor.inverse_diagonal()).sum(-1)
            fitted.order_parameters = {"q": 1.0 + ((weights * fit).sum(-1) - trace) / width}
            fitted.readout_norm = fitted.order_parameters["q"][..., -1]
        terms, error = fitted.correction(parts.inputs)
        spread = fitted.predictor.predict(parts.inputs)[1]
        change = (terms.mean.square() + terms.variance.abs()).mean(-1) / spread.mean(-1)
        fitted.stats = {
            "log_evidence_correction": terms.log_evidence,
            "standard_error": error.log_evidence,
            "relative_correction": change.sqrt(),
        }
        return fitted


class FittedFirstOrder(FittedTheory):
    """The expansion at a model's training data.

    Args:
        theory: What was fitted.
        parts: Pieces of the frozen model.
        order_parameters: ``q`` of the process that is corrected.
        readout_norm: Of the last layer.
        message: In words.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel
        >>> kernel = RenormalizedNNGPKernel(Erf(), width=float("inf"))
        >>> model = NetworkGP(torch.eye(3), torch.ones(3), gpytorch.likelihoods.GaussianLikelihood(), kernel)
        >>> terms, standard_error = FirstOrder().fit(model).correction(torch.eye(3))
        >>> terms.mean.tolist()
        [0.0, 0.0, 0.0]
    """

    theory: FirstOrder

    def __init__(
        self,
        theory: FirstOrder,
        parts: ModelParts,
        order_parameters: dict[str, Tensor],
        readout_norm: Tensor,
        message: str,
    ) -> None:
        """Condition the Gaussian process that is corrected."""
        super().__init__(theory, parts, order_parameters, readout_norm, message)
        self.expansion_point = order_parameters["q"]
        self.predictor = Predictor(parts, self.expansion_point.unsqueeze(-2))

    @torch.no_grad()
    def correction(self, x: Tensor) -> tuple[Terms, Terms]:
        """Return the corrections of means, variances ``m`` and of log p(y) at ``x``, and their Monte Carlo errors.

        Args:
            x: Points as the model's kernel takes them, ``m x d``; in the model's units.
        """
        terms = self._terms(x)
        width = self.parts.kernel.width.squeeze(-2).double()
        inverse, all_layers = 1.0 / width[..., -1], (1.0 / width).sum(-1)
        total = terms.non_gaussian.map(lambda value: value * inverse)
        if self.theory.about == "infinite_width":
            total = Terms(*(a + all_layers * b for a, b in zip(total, terms.gaussian, strict=True)))
        return total, terms.standard_error.map(lambda value: value * inverse)

    def _terms(self, x: Tensor) -> FirstOrderTerms:
        parts, theory = self.parts, self.theory
        joint = torch.cat([parts.inputs, x], dim=-2)
        size = parts.targets.shape[-1]
        with parts.kernel.assigned_order_parameter(self.expansion_point.unsqueeze(-2)):
            covariance = parts.prior(joint).covariance_matrix.double()
        units = None
        if not isinstance(parts.kernel.activation, Identity):
            layer = last_layer(parts, joint)
            h, _ = draw_pre_activations(layer.covariance.double(), theory.num_units, theory.seed)
            lower_and_own = self.expansion_point.prod(-1).double()
            units = (layer.scale.double() * lower_and_own).sqrt() * layer.activation(h)
        return first_order_terms(
            covariance[:size, :size],
            covariance[:size, size:],
            covariance.diagonal()[size:],
            self.predictor.factor.double(),
            parts.residuals().double(),
            units,
        )

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self.predictor.predict(x)
        terms, _ = self.correction(x)
        return mean + terms.mean.to(mean.dtype), (variance + terms.variance.to(mean.dtype)).clamp_min(0.0)

    def _training_error(self) -> Tensor:
        mean, variance = self._predict(self.parts.inputs)
        return ((self.parts.targets - mean).square() + variance).mean(-1)
