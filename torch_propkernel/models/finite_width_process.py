"""The process of a finite-width network, with the scale integrated instead of fixed at the saddle."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.models import ExactGP
from linear_operator import to_linear_operator
from torch import Tensor

from .._validation import check_inputs
from ..actions.outer_action import OuterAction
from ..actions.stationary_points import find_stationary_points, global_minimum
from ..distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
from ..inference.model_parts import check_kind_of_kernel, take_apart
from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..mixing import MixingLaw, ProductGammaMixing, posterior_of_scale
from ..mixing.scale_integral import ScalePosterior
from ..spectra.spectrum import Spectrum
from .rebuilt_fantasies import RebuiltFantasies

FORMS = ("saddle", "mixture", "student_t")


class _Reduced(NamedTuple):
    """What every prediction starts from; A(r) = T B + r K in the basis of the spectrum."""

    spectrum: Spectrum
    posterior: ScalePosterior
    temperature: Tensor
    hyperparameters: list[Tensor]

    def is_current(self, model: torch.nn.Module) -> bool:
        """Whether the model's parameters and buffers are what they were."""
        now = [*model.parameters(), *model.buffers()]
        return len(now) == len(self.hyperparameters) and all(
            a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
            for a, b in zip(now, self.hyperparameters, strict=True)
        )


class FiniteWidthProcess(RebuiltFantasies, ExactGP):
    r"""GP with a renormalized kernel whose scale r = prod_l q_l is integrated over its posterior.

    .. math:: f | r \sim GP(m, B + r K), \quad r \sim \text{mixing law of the widths}, \quad
              p(f_* | y) = \int p(r | y)\, N(f_*; \Gamma(r), \Sigma(r))\, dr

    K is the covariance at q = 1, B any fixed terms beside it, and the noise T of the likelihood is outside of the
    mixture. For one hidden layer the law is Gamma(N/2, rate N/2), for several (outer composition) the product of one
    for each layer. For the identity activation the mixture is the exact posterior of a finite linear network; for
    others it is exact under the Gaussian equivalence of the paper. It differs from the saddle only at widths of about
    ten; what it adds are the tails.

    Use it as an ExactGP: subclass it and write ``forward``, train it with :class:`FiniteWidthMarginalLogLikelihood`.
    The kernel's ``order_parameter`` plays no part: it is integrated. In evaluation mode a call returns the predictive
    of the latent function in one of three forms, ``predictive``:

    - ``"mixture"``: a :class:`ScaleMixtureMultivariateNormal` over the nodes of p(r | y);
    - ``"saddle"``: the normal at the global minimum of the effective action (of the widths' own law only);
    - ``"student_t"``: a :class:`MultivariateStudentT` with the mixture's mean and covariance and
      nu = 4 + 2 E[r|y]^2 / Var[r|y], which is exact at T = 0 with K non-singular. For T > 0 the location depends on r
      too: :meth:`student_t_distance` measures how far it is from the mixture.

    Shapes: as an ExactGP, batches of models and of test points included. Gradients of predictions with respect to x are
    right; those with respect to hyperparameters are not formed. Cost: one ``eigh`` at the first prediction, kept until
    data or hyperparameters change; then for m test points m P^2, and m P for each node (some dozens); the joint mixture
    needs nodes x m x m numbers.

    Args:
        train_inputs: ``P x d``.
        train_targets: ``P``.
        likelihood: A Gaussian likelihood; :class:`FiniteWidthLikelihood` also takes the predictives.
        mixing: Law of the scale in place of the widths' own.
        predictive: Form of the predictive.

    Raises:
        ValueError: An unknown form, a composition that is not one-dimensional.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, result (iii); THEORY.md, eqs. (1), (7), section 1.

    Example:
        >>> import gpytorch, math, torch
        >>> from torch_propkernel import FiniteWidthLikelihood, FiniteWidthProcess, Identity, RenormalizedNNGPKernel
        >>> class Model(FiniteWidthProcess):
        ...     def __init__(self, x, y, likelihood):
        ...         super().__init__(x, y, likelihood)
        ...         self.covar_module = RenormalizedNNGPKernel(Identity(), width=math.inf)
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))
        >>> likelihood = FiniteWidthLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = Model(torch.ones(1, 1), torch.ones(1), likelihood).eval()
        >>> posterior = model(torch.ones(1, 1))
        >>> round(posterior.mean.item(), 5), round(posterior.variance.item(), 5)   # infinite width: k / (k + T)
        (0.5, 0.5)
    """

    def __init__(
        self,
        train_inputs: Any,
        train_targets: Any,
        likelihood: Any,
        *,
        mixing: MixingLaw | None = None,
        predictive: str = "mixture",
    ) -> None:
        """Store the law and the form."""
        super().__init__(train_inputs, train_targets, likelihood)
        if mixing is not None and not isinstance(mixing, MixingLaw):
            raise TypeError(f"mixing: expected a MixingLaw or None, got {type(mixing).__name__}")
        self._own_mixing = mixing
        self._state: _Reduced | None = None
        self.predictive = predictive

    @property
    def predictive(self) -> str:
        """The form of the predictive, "saddle", "mixture" or "student_t"."""
        return self._predictive

    @predictive.setter
    def predictive(self, value: str) -> None:
        if value not in FORMS:
            raise ValueError(f"predictive: expected one of {FORMS}, got {value!r}")
        self._predictive = value

    @property
    def mixing(self) -> MixingLaw:
        """Law of the scale, the one given, or that of the kernel's widths."""
        if self._own_mixing is not None:
            return self._own_mixing
        return ProductGammaMixing(find_renormalized_kernel(self).width.squeeze(-2).to(torch.float64))

    def _clear_cache(self) -> None:
        self._state = None
        super()._clear_cache()

    def set_train_data(self, *args: Any, **kwargs: Any) -> None:
        """Replace the training data."""
        self._state = None
        super().set_train_data(*args, **kwargs)

    def scale_posterior(self) -> ScalePosterior:
        """Return p(r | y) at the present hyperparameters: nodes, weights, log p(y) and its estimated error."""
        return self._reduced().posterior

    @torch.no_grad()
    def _reduced(self) -> _Reduced:
        if self._state is None or not self._state.is_current(self):
            parts = take_apart(self)
            problem = parts.scalar_problem()
            spectrum = Spectrum.from_kernel(
                problem.kernel_matrix, problem.residuals, base=problem.base, eigenvectors=True
            )
            posterior = posterior_of_scale(spectrum, self.mixing, problem.temperature)
            now = [v.detach().clone() for v in (*self.parameters(), *self.buffers())]
            self._state = _Reduced(spectrum, posterior, problem.temperature.double(), now)
        return self._state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what an ExactGP does (training mode) or the predictive of the latent function (evaluation mode)."""
        if self.training:
            return super().__call__(*args, **kwargs)
        if len(args) != 1:
            raise TypeError(f"expected one tensor of inputs, got {len(args)}")
        return self.predict(args[0])

    def predict(self, x: Tensor, form: str | None = None, joint: bool = True) -> Any:
        """Return the predictive of the latent function at ``x``, ``m x d``.

        Args:
            x: Test inputs.
            form: One of the three forms; :attr:`predictive` if None.
            joint: Keep covariances between test points; False needs m instead of m^2 numbers for each node, and gives
                a mixture of marginals (the other two forms are always joint).
        """
        form = self.predictive if form is None else form
        if form not in FORMS:
            raise ValueError(f"form: expected one of {FORMS}, got {form!r}")
        reduced = self._reduced()
        # What depends on the training data is detached, as in GPyTorch: gradients with respect to x are right, those
        # with respect to hyperparameters are not, and are left out.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            if form == "saddle":
                mean, covariance = self._components(x, reduced, self._saddle(reduced).unsqueeze(-1), joint=True)
                return MultivariateNormal(mean.squeeze(-2), to_linear_operator(covariance.squeeze(-3)))
            posterior = reduced.posterior.without_empty_nodes()
            joint = joint or form == "student_t"
            mean, spread = self._components(x, reduced, posterior.scale, joint)
            kind = "covariance" if joint else "variance"
            mixture = ScaleMixtureMultivariateNormal(posterior.log_weights.to(mean.dtype), mean, **{kind: spread})
            if form == "mixture":
                return mixture
            if not bool((posterior.variance > 0).any()):
                return MultivariateNormal(mixture.mean, to_linear_operator(mixture.covariance_matrix))
            df = 4.0 + 2.0 * posterior.mean.square() / posterior.variance
            return MultivariateStudentT(mixture.mean, None, df.to(mean.dtype), covariance=mixture.covariance_matrix)

    def student_t_distance(self, x: Tensor, num_levels: int = 199) -> Tensor:
        """Return how far the Student's t form is from the mixture: largest difference of their cdfs at each point."""
        mixture, student = self.predict(x, "mixture", joint=False), self.predict(x, "student_t")
        levels = torch.linspace(0.0, 1.0, num_levels + 2, dtype=mixture.mean.dtype, device=x.device)[1:-1]
        values = torch.stack([student.icdf(level.expand_as(student.loc)) for level in levels])
        cdfs = torch.stack([mixture.cdf(value) for value in values])
        return (cdfs - levels.unsqueeze(-1)).abs().amax(0)

    def _saddle(self, reduced: _Reduced) -> Tensor:
        if self._own_mixing is not None:
            raise ValueError(
                "predictive: expected 'mixture' or 'student_t' with a law of one's own, got 'saddle', which is that of "
                "the widths"
            )
        width = find_renormalized_kernel(self).width.squeeze(-2)
        action, shape = OuterAction.of(reduced.spectrum, width, reduced.temperature)
        return torch.exp(global_minimum(find_stationary_points(action))[0]).reshape(shape)

    def _components(self, x: Tensor, reduced: _Reduced, scale: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Mean ``*b x n x m`` and covariance (or variance) at x for n scales; k_* = fixed part + r times the other."""
        parts = take_apart(self)
        check_inputs(x, "x")
        check_kind_of_kernel(parts.kernel, x=x)
        if x.shape[-1] != parts.inputs.shape[-1]:
            raise ValueError(f"x: expected {parts.inputs.shape[-1]} columns as in training, got {x.shape[-1]}")
        k, z, vectors = reduced.spectrum.eigenvalues, reduced.spectrum.single, reduced.spectrum.eigenvectors
        assert vectors is not None
        mean, moved, prior = (v.double() for v in parts.blocks(x, 1.0, full=joint))
        moved = vectors.transpose(-1, -2) @ moved
        fixed, fixed_prior = torch.zeros_like(moved), torch.zeros_like(prior)
        if not parts.is_multiplicative():
            _, fixed, fixed_prior = (v.double() for v in parts.blocks(x, 0.0, full=joint))
            fixed = vectors.transpose(-1, -2) @ fixed
        moved, prior = moved - fixed, prior - fixed_prior
        r = scale.unsqueeze(-1)
        spread = 1.0 / (reduced.temperature[..., None, None] + r * k.unsqueeze(-2))
        solved = spread * z.unsqueeze(-2)
        means = mean.unsqueeze(-2) + solved @ fixed + r * (solved @ moved)
        if not joint:
            taken = spread @ fixed.square() + 2.0 * r * (spread @ (fixed * moved)) + r**2 * (spread @ moved.square())
            variance = fixed_prior.unsqueeze(-2) + r * prior.unsqueeze(-2) - taken
            return means.to(x.dtype), variance.clamp_min(0.0).to(x.dtype)
        blocks = []
        for node in range(r.shape[-2]):
            factor, weight = r[..., node, :, None], spread[..., node, :].sqrt().unsqueeze(-1)
            projected = (fixed + factor * moved) * weight
            blocks.append(fixed_prior + factor * prior - projected.transpose(-1, -2) @ projected)
        return means.to(x.dtype), torch.stack(blocks, dim=-3).to(x.dtype)
