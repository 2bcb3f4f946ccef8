"""The process of a finite-width network, with the scale integrated instead of fixed at the saddle."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.models import ExactGP
from linear_operator import to_linear_operator
from torch import Tensor

from ..actions import solve_order_parameters
from ..distributions import MultivariateStudentT
from ..inference import Problem, SpectralConditioned
from ..mixing import MixingLaw, posterior_of_scale
from ..mixing.law_of_widths import law_of_widths
from ..mixing.scale_integral import REACH, ScalePosterior
from .rebuilt_fantasies import RebuiltFantasies
from .snapshot import Snapshot

THEORIES = ("mixture", "saddle")


class _Reduced(NamedTuple):
    """What every prediction starts from, and the state of the model that it belongs to."""

    problem: Problem
    posterior: ScalePosterior
    state: Snapshot


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
    of the latent function by ``theory``:

    - ``"mixture"``: a :class:`ScaleMixtureMultivariateNormal` over the nodes of p(r | y);
    - ``"saddle"``: the normal at the global minimum of the effective action (of the widths' own law only).

    It is for what needs that: the evidence of the finite width as a differentiable objective, a law of one's own, a
    ``forward`` of one's own. To predict by this or any other theory, take :class:`FiniteNetworkProcess`.

    :meth:`student_t` gives the Student's t predictive with the mixture's moments.

    Shapes: as an ExactGP, batches of models and of test points included. Gradients of predictions with respect to x are
    right; those with respect to hyperparameters are not formed. Cost: one ``eigh`` at the first prediction, kept until
    data or hyperparameters change; then for m test points m P^2, and m P for each node (some dozens); the joint mixture
    needs nodes x m x m numbers.

    Args:
        train_inputs: ``P x d``.
        train_targets: ``P``.
        likelihood: A Gaussian likelihood; :class:`FiniteWidthLikelihood` also takes the predictives.
        mixing: Law of the scale in place of the widths' own.
        theory: "mixture" or "saddle".

    Raises:
        ValueError: An unknown theory, a composition that is not one-dimensional.

    Reference: Pacelli et al. (2023), arXiv:2209.04882, result (iii); THEORY.md, eqs. (1), (7), section 1.

    Example:
        >>> import gpytorch, math, torch
        >>> from torch_propkernel import FiniteWidthLikelihood, FiniteWidthProcess, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
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
        theory: str = "mixture",
    ) -> None:
        """Store the law and the theory."""
        super().__init__(train_inputs, train_targets, likelihood)
        if mixing is not None and not isinstance(mixing, MixingLaw):
            raise TypeError(f"mixing: expected a MixingLaw or None, got {type(mixing).__name__}")
        self._own_mixing = mixing
        self._state: _Reduced | None = None
        self.theory = theory

    @property
    def theory(self) -> str:
        """What a call returns in evaluation mode, "mixture" or "saddle"."""
        return self._theory

    @theory.setter
    def theory(self, value: str) -> None:
        self._theory = _checked_theory(value)

    @property
    def mixing(self) -> MixingLaw:
        """Law of the scale, the one given, or that of the kernel's widths."""
        if self._own_mixing is not None:
            return self._own_mixing
        return law_of_widths(Problem.of(self).layers.width)

    def _clear_cache(self) -> None:
        self._state = None
        super()._clear_cache()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was kept of a prediction."""
        return {**self.__dict__, "_state": None, "prediction_strategy": None}

    def scale_posterior(self) -> ScalePosterior:
        """Return p(r | y) at the present hyperparameters: nodes, weights, log p(y) and its estimated error."""
        return self._reduced().posterior

    @torch.no_grad()
    def _reduced(self) -> _Reduced:
        if self._state is None or not self._state.state.is_current(self):
            problem = Problem.of(self)
            posterior = posterior_of_scale(
                problem.spectrum(eigenvectors=True), self.mixing, problem.scalar().temperature, reach=REACH
            )
            self._state = _Reduced(problem, posterior, Snapshot.of(self))
        return self._state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what an ExactGP does (training mode) or the predictive of the latent function (evaluation mode)."""
        if self.training:
            return super().__call__(*args, **kwargs)
        if len(args) != 1:
            raise TypeError(f"expected one tensor of inputs, got {len(args)}")
        return self.predict(args[0])

    def predict(self, x: Tensor, theory: str | None = None, joint: bool = True) -> Any:
        """Return the predictive of the latent function at ``x``, ``m x d``.

        Args:
            x: Test inputs, as ``forward`` takes them.
            theory: "mixture" or "saddle"; :attr:`theory` if None.
            joint: Keep covariances between test points; False needs m instead of m^2 numbers for each node, and gives
                a distribution of marginals.
        """
        theory = self.theory if theory is None else _checked_theory(theory)
        problem, posterior, _ = self._reduced()
        problem.check_points(x)
        # What depends on the training data is detached, as in GPyTorch: gradients with respect to x are right, those
        # with respect to hyperparameters are not, and are left out.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            if theory == "saddle":
                return SpectralConditioned(problem, self._saddle(problem).unsqueeze(-1)).distribution(x, joint)
            posterior = posterior.for_predictions(REACH)
            return SpectralConditioned(problem, posterior.scale, posterior.log_weights).distribution(x, joint)

    def student_t(self, x: Tensor) -> Any:
        """Return the Student's t predictive at ``x`` with the mixture's mean and covariance.

        nu = 4 + 2 E[r|y]^2 / Var[r|y], which is exact at T = 0 with K non-singular. For T > 0 the location depends on r
        too: :meth:`student_t_distance` measures how far it is from the mixture. A normal at infinite width.
        """
        mixture, posterior = self.predict(x, "mixture"), self._reduced().posterior
        if not bool((posterior.variance > 0).any()):
            return MultivariateNormal(mixture.mean, to_linear_operator(mixture.covariance_matrix))
        df = 4.0 + 2.0 * posterior.mean.square() / posterior.variance
        return MultivariateStudentT(mixture.mean, None, df.to(mixture.mean.dtype), covariance=mixture.covariance_matrix)

    def student_t_distance(self, x: Tensor, num_levels: int = 199) -> Tensor:
        """Return how far the Student's t form is from the mixture: largest difference of their cdfs at each point."""
        mixture, student = self.predict(x, "mixture", joint=False), self.student_t(x)
        levels = torch.linspace(0.0, 1.0, num_levels + 2, dtype=mixture.mean.dtype, device=x.device)[1:-1]
        values = torch.stack([student.icdf(level.expand_as(student.loc)) for level in levels])
        cdfs = torch.stack([mixture.cdf(value) for value in values])
        return (cdfs - levels.unsqueeze(-1)).abs().amax(0)

    def _saddle(self, problem: Problem) -> Tensor:
        if self._own_mixing is not None:
            raise ValueError(
                "theory: expected 'mixture' with a law of one's own, got 'saddle', which is that of the widths"
            )
        temperature = problem.scalar().temperature
        solution = solve_order_parameters(problem.spectrum(), width=problem.layers.width, temperature=temperature)
        return problem.layers.scale(solution.order_parameter)


def _checked_theory(theory: str) -> str:
    if theory not in THEORIES:
        raise ValueError(f"theory: expected one of {THEORIES}, got {theory!r}")
    return theory
