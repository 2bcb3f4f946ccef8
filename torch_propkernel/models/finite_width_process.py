"""The process of a finite-width network, with the scale integrated instead of fixed at the saddle."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.models import ExactGP
from linear_operator import to_dense
from torch import Tensor

from .._validation import check_inputs
from ..distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
from ..functions.scale_integral import ScalePosterior, integrate_scale
from ..functions.spectrum import Spectrum, global_minimum
from ..functions.stationary_points import find_stationary_points
from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..mixing import MixingLaw, ProductGammaMixing
from .model_parts import check_kind_of_kernel, take_apart

FORMS = ("saddle", "mixture", "student_t")


class FiniteWidthProcess(ExactGP):
    r"""GP with a renormalized kernel whose scale r = prod_l q_l is integrated over its posterior.

    .. math:: f | r \sim GP(m, B + r K), \quad r \sim \text{mixing law of the widths}, \quad
              p(f_* | y) = \int p(r | y)\, N(f_*; \Gamma(r), \Sigma(r))\, dr

    K is the covariance at q = 1, B any fixed terms beside it, and the noise T of the likelihood is outside of the mixture. For
    one hidden layer the law is Gamma(N/2, rate N/2), for several (outer composition) the product of one for each layer. For
    the identity activation the mixture is the exact posterior of a finite linear network; for others it is exact under
    the Gaussian equivalence of the paper. It differs from the saddle only at widths of about ten; what it adds are the tails.

    Use it as an ExactGP: subclass it and write ``forward``. In training mode a call returns the prior at q = 1, for
    :class:`FiniteWidthMarginalLogLikelihood`; in evaluation mode the predictive of the latent function in one of three forms,
    ``predictive``:

    - ``"mixture"``: a :class:`ScaleMixtureMultivariateNormal` over the nodes of p(r | y);
    - ``"saddle"``: the normal at the global minimum of the effective action (of the widths' own law only);
    - ``"student_t"``: a :class:`MultivariateStudentT` with the mixture's mean and covariance and
      nu = 4 + 2 E[r|y]^2 / Var[r|y], which is exact at T = 0 with K non-singular. For T > 0 the location depends on r too:
      :meth:`student_t_distance` measures how far it is from the mixture.

    Shapes: no batch dimensions. Cost: one ``eigh`` at the first prediction, kept until the model is trained again; then for m
    test points m P^2, and m P for each node (some dozens); the joint mixture needs nodes x m x m numbers.

    Args:
        train_inputs: ``P x d``.
        train_targets: ``P``.
        likelihood: A Gaussian likelihood; :class:`FiniteWidthLikelihood` also takes the predictives.
        mixing: Law of the scale in place of the widths' own.
        predictive: Form of the predictive.

    Raises:
        ValueError: An unknown form, a composition that is not one-dimensional, batch dimensions.

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
        self._state: tuple[Spectrum, ScalePosterior] | None = None
        self.predictive = predictive

    @property
    def predictive(self) -> str:
        """Form of the predictive: "saddle", "mixture" or "student_t"."""
        return self._predictive

    @predictive.setter
    def predictive(self, value: str) -> None:
        if value not in FORMS:
            raise ValueError(f"predictive: expected one of {FORMS}, got {value!r}")
        self._predictive = value

    @property
    def mixing(self) -> MixingLaw:
        """Law of the scale: the one given, or that of the kernel's widths."""
        if self._own_mixing is not None:
            return self._own_mixing
        return ProductGammaMixing(find_renormalized_kernel(self).width.squeeze(-2).to(torch.float64))

    def _clear_cache(self) -> None:
        self._state = None
        super()._clear_cache()

    def train(self, mode: bool = True) -> FiniteWidthProcess:
        """Set the mode; what was computed for predictions is dropped on the way to training."""
        if mode:
            self._state = None
        return super().train(mode)

    def set_train_data(self, *args: Any, **kwargs: Any) -> None:
        """Replace the training data."""
        self._state = None
        super().set_train_data(*args, **kwargs)

    def scale_posterior(self) -> ScalePosterior:
        """Return p(r | y) at the present hyperparameters: nodes, weights, log p(y) and its estimated error."""
        return self._reduced()[1]

    @torch.no_grad()
    def _reduced(self) -> tuple[Spectrum, ScalePosterior]:
        if self._state is None:
            parts = take_apart(self)
            problem = parts.scalar_problem()
            if problem.residuals.dim() != 1 or problem.kernel_matrix.dim() != 2:
                raise ValueError(f"model: expected no batch dimensions, got targets {tuple(parts.targets.shape)}")
            spectrum = Spectrum.from_kernel(
                problem.kernel_matrix, problem.residuals, base=problem.base, eigenvectors=True
            )
            state = spectrum, posterior_of_scale(spectrum, self.mixing, problem.temperature)
            if self.training:
                return state
            self._state = state
        return self._state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the prior at q = 1 (training mode) or the predictive of the latent function (evaluation mode)."""
        if self.training:
            with find_renormalized_kernel(self).assigned_order_parameter(1.0):
                prior = super().__call__(*args, **kwargs)
                return type(prior)(prior.mean, to_dense(prior.lazy_covariance_matrix))
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
        spectrum, posterior = self._reduced()
        with torch.no_grad():
            if form == "saddle":
                scale = self._saddle(spectrum)
                mean, covariance = self._components(x, spectrum, scale.reshape(1), joint=True)
                return MultivariateNormal(mean[0], covariance[0])
            posterior = posterior.without_empty_nodes()
            joint = joint or form == "student_t"
            mean, spread = self._components(x, spectrum, posterior.scale, joint)
            kind = "covariance" if joint else "variance"
            mixture = ScaleMixtureMultivariateNormal(posterior.log_weights.to(mean.dtype), mean, **{kind: spread})
            if form == "mixture":
                return mixture
            if float(posterior.variance) == 0.0:
                return MultivariateNormal(mixture.mean, mixture.covariance_matrix)
            df = 4.0 + 2.0 * posterior.mean.square() / posterior.variance
            return MultivariateStudentT(mixture.mean, None, df.to(mean.dtype), covariance=mixture.covariance_matrix)

    def student_t_distance(self, x: Tensor, num_levels: int = 199) -> Tensor:
        """Return how far the Student's t form is from the mixture at each point: largest difference of their cdfs, ``m``."""
        mixture, student = self.predict(x, "mixture", joint=False), self.predict(x, "student_t")
        levels = torch.linspace(0.0, 1.0, num_levels + 2, dtype=mixture.mean.dtype, device=x.device)[1:-1]
        values = torch.stack([student.icdf(level.expand_as(student.loc)) for level in levels])
        cdfs = torch.stack([mixture.cdf(value) for value in values])
        return (cdfs - levels.unsqueeze(-1)).abs().amax(0)

    def _saddle(self, spectrum: Spectrum) -> Tensor:
        if self._own_mixing is not None:
            raise ValueError(
                "predictive: expected 'mixture' or 'student_t' with a law of one's own, got 'saddle', which is that of the "
                "widths"
            )
        parts = take_apart(self)
        temperature = parts.temperature if parts.temperature is not None and parts.is_multiplicative() else 1.0
        action, _ = spectrum.problems(parts.kernel.width.squeeze(-2), temperature)
        points = find_stationary_points(action)
        return torch.exp(global_minimum(points.u, points.action, points.curvature)[0])

    def _components(self, x: Tensor, spectrum: Spectrum, scale: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Mean and covariance (or variance) at x for every scale; k_* = fixed part + r times the renormalized one."""
        parts = take_apart(self)
        check_inputs(x, "x")
        check_kind_of_kernel(parts.kernel, x=x)
        if x.dim() != 2 or x.shape[-1] != parts.inputs.shape[-1]:
            raise ValueError(f"x: expected shape (m, {parts.inputs.shape[-1]}), got {tuple(x.shape)}")
        temperature = parts.temperature if parts.temperature is not None and parts.is_multiplicative() else 1.0
        mean, cross, prior = (v.double() for v in parts.blocks(x, 1.0, full=joint))
        vectors = spectrum.eigenvectors
        assert vectors is not None
        moved = vectors.transpose(-1, -2) @ cross
        r = scale.reshape(-1, 1)
        spread = 1.0 / (temperature + r * spectrum.eigenvalues)
        solved = spread * spectrum.projections
        if parts.is_multiplicative():
            fixed, fixed_prior = torch.zeros_like(moved), torch.zeros_like(prior)
        else:
            _, fixed, fixed_prior = (v.double() for v in parts.blocks(x, 0.0, full=joint))
            fixed = vectors.transpose(-1, -2) @ fixed
        moved, prior = moved - fixed, prior - fixed_prior
        means = mean + solved @ fixed + r * (solved @ moved)
        if not joint:
            taken = spread @ fixed.square() + 2.0 * r * (spread @ (fixed * moved)) + r**2 * (spread @ moved.square())
            return means.to(x.dtype), (fixed_prior + r * prior - taken).clamp_min(0.0).to(x.dtype)
        cube = r.unsqueeze(-1)
        blocks = []
        for node, weight in zip(cube, spread, strict=True):
            projected = (fixed + node * moved) * weight.sqrt().unsqueeze(-1)
            blocks.append(fixed_prior + node * prior - projected.transpose(-1, -2) @ projected)
        return means.to(x.dtype), torch.stack(blocks).to(x.dtype)


def posterior_of_scale(spectrum: Spectrum, law: MixingLaw, temperature: Tensor) -> ScalePosterior:
    """Return p(r | y) for a mixing law; one node for a point mass (infinite width)."""
    low, high = law.log_interval()
    if law.is_point_mass:
        shape = torch.broadcast_shapes(low.shape, spectrum.batch_shape)
        action, _ = spectrum.problems(torch.full((*shape, 1), torch.inf, dtype=torch.float64), temperature)
        u = low.to(torch.float64).expand(shape)
        twice = action.data_action(u.reshape(-1)).reshape(shape) + spectrum.log_det_base
        evidence = -0.5 * (twice + spectrum.num_data * torch.log(twice.new_tensor(2.0 * torch.pi)))
        zero = torch.zeros_like(evidence)
        return ScalePosterior(u.unsqueeze(-1), zero.unsqueeze(-1), evidence, zero)
    return integrate_scale(spectrum, law.log_density, (low, high), temperature)
