"""One hidden layer whose activation has a mean: the mean's direction is kept apart from the rest of the kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..actions import SolveResult
from ..actions.two_parameter_action import TwoParameterAction
from ..exceptions import ConvergenceError
from ..inference.model_parts import ModelParts
from ..mixing import GammaMixing
from ..mixing.scale_integral import integrate_scale
from ..spectra.spectrum import Spectrum
from .base import FittedTheory, Theory, bare_kernel, kernel_inputs
from .infinite_width import FittedGaussian, GivenKernel
from .mixture import FittedScaleMixture


def mean_direction(parts: ModelParts, x: Tensor) -> Tensor:
    """Return w = m(C_xx) / sqrt(lambda_1) at the points x, ``*b x m``."""
    kernel = parts.kernel
    x = kernel_inputs(parts, x)
    variance = kernel.input_covariance(x, x, elementwise=True).xx
    return kernel.activation.mean(variance) * kernel.readout_variance.squeeze(-2).sqrt()


def _reduce(parts: ModelParts, theory: Theory) -> tuple[TwoParameterAction, Spectrum, Tensor]:
    """Return the action, the spectrum of K - M and w."""
    kernel = bare_kernel(parts, theory, depth=1)
    width = kernel.width[..., 0, 0].double()
    if not bool((torch.isfinite(width) & (width > 1)).all()):
        raise ValueError(
            f"width: {theory!r} expected a finite number above 1, got {width.tolist()}; InfiniteWidth() is the limit"
        )
    mean = mean_direction(parts, parts.inputs)
    covariance = parts.covariance(1.0) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    one = width.new_ones(())
    temperature = one if parts.temperature is None else parts.temperature.double()
    spectrum = Spectrum.from_kernel(covariance, parts.residuals(), base=parts.noise, eigenvectors=True)
    return TwoParameterAction.from_spectrum(spectrum, mean, width, temperature), spectrum, mean


class TwoParameterSaddle(Theory):
    r"""Saddle point of one hidden layer with the activation's mean kept apart: two order parameters, q and s.

    .. math:: S(q, s) = -q s + \log(1 + s) + \frac1{N_1} [\log\det A + y^T A^{-1} y], \qquad
              A = T 1 + q (K - M) + \frac{M}{1 + s}, \quad M = m m^T/\lambda_1

    minimal in q, maximal in s; m(x) = E sigma(h(x)) is the mean of a hidden unit over the prior, K the NNGP kernel with
    1/lambda_1. Given the readout v the outputs have the mean c m, c = sum_i v_i/sqrt(N_1), and the covariance q (K -
    M): :class:`SaddlePoint` treats both with one scale. For activations without a mean (erf) both theories are equal.
    Any activation, also with biases.

    ``order_parameters``: ``"q"``, ``"s"``, and ``"t"`` = 1/(1 + s), the factor of M. ``readout_norm`` is q, which
    stands for ``lambda_1 |v|^2 / N_1`` with the part along the mean included. ``stats``: ``residual`` (q dS/dq,
    relative to the size of its terms, at most about 1e-10), ``num_minima``, ``gap``, ``curvature``, ``iterations``. The
    maximum over s is unique, the minimum over q the lowest that a scan of the whole interval of stationary points
    finds.

    Cost: one ``eigh``, then O(P) for some hundreds of values of q, and a Cholesky factorization.

    Raises:
        ValueError: More than one hidden layer, a covariance that is more than the kernel, a width that is infinite or
            not above one.
        ConvergenceError: The residual is larger than stated.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, eq. (5).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, ReLU, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import SaddlePoint
        >>> def fit(theory, activation):
        ...     kernel = RenormalizedNNGPKernel(activation, width=10).double()
        ...     x = torch.eye(4, dtype=torch.float64)
        ...     likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        ...     return theory.fit(NetworkGP(x, 3 * x[0] + 1, likelihood, kernel).double()).order_parameters["q"].item()
        >>> abs(fit(TwoParameterSaddle(), Erf()) - fit(SaddlePoint(), Erf())) < 1e-9
        True
        >>> abs(fit(TwoParameterSaddle(), ReLU()) - fit(SaddlePoint(), ReLU())) < 1e-9
        False
    """

    name = "two parameters, saddle"

    def _fit(self, parts: ModelParts) -> FittedTheory:
        action, _, mean = _reduce(parts, self)
        saddle = action.solve()
        q, t = saddle.order_parameter, saddle.mean_scale
        residual = saddle.slope.abs() / (1.0 + q)
        converged = bool((residual <= 1e-10 * (1.0 + saddle.curvature.abs())).all())
        result = SolveResult.global_minimum if converged else SolveResult.not_converged
        if not converged:
            raise ConvergenceError(f"{result.value} (residual {residual.tolist()})")
        stats = {
            "result": result,
            "residual": residual,
            "num_minima": saddle.num_minima,
            "gap": saddle.gap,
            "curvature": saddle.curvature,
            "action": saddle.action,
            "iterations": saddle.iterations,
        }
        scale, mean_scale = (v.to(mean.dtype).unsqueeze(-1) for v in (q, t))

        def blocks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            prior_mean, cross, prior = parts.blocks(x, 1.0)
            here = mean_direction(parts, x)
            extra = mean_scale - scale
            cross = scale.unsqueeze(-1) * cross + extra.unsqueeze(-1) * mean.unsqueeze(-1) * here.unsqueeze(-2)
            return prior_mean, cross, scale * prior + extra * here.square()

        outer = mean.unsqueeze(-1) * mean.unsqueeze(-2)
        covariance = scale.unsqueeze(-1) * (parts.covariance(1.0) - outer) + mean_scale.unsqueeze(-1) * outer
        return FittedGaussian(
            GivenKernel(parts, covariance, blocks),
            self,
            parts,
            {"q": q, "s": 1.0 / t - 1.0, "t": t},
            q,
            result.value,
            stats,
        )


class _FittedTwoParameterMixture(FittedScaleMixture):
    """Nodes of q, each with mean and variance of gamma = sqrt(lambda_1) c given q and y: f ~ N(gamma w, q (K - M))."""

    def __init__(self, projections: Tensor, coefficient: Tensor, coefficient_variance: Tensor, *args: Any) -> None:
        super().__init__(*args)
        self._coefficient, self._coefficient_variance = (v.unsqueeze(-1) for v in (coefficient, coefficient_variance))
        self._projections = projections
        self._solved_mean = self._spread * projections.unsqueeze(-2)

    def _components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks, here = self._blocks(x), mean_direction(self.parts, x).double()
        cross = blocks.cross - self._projections.unsqueeze(-1) * here.unsqueeze(-2)
        mean, variance = self._condition(blocks._replace(cross=cross, prior=blocks.prior - here.square()))
        direction = here.unsqueeze(-2) - self.posterior.scale.unsqueeze(-1) * (self._solved_mean @ cross)
        return mean + self._coefficient * direction, variance + self._coefficient_variance * direction.square()

    def _squared_weights(self) -> Tensor:
        back = self._vectors.transpose(-1, -2)
        solved = self._spread * self.spectrum.single.unsqueeze(-2) - self._coefficient * self._solved_mean
        return (solved @ back).square() + self._coefficient_variance * (self._solved_mean @ back).square()


class TwoParameterMixture(Theory):
    r"""The two order parameters of :class:`TwoParameterSaddle` integrated over their posterior.

    .. math:: f | q, \gamma \sim GP(\gamma w, q (K - M)), \quad \gamma = \sqrt{\lambda_1} c \sim N(0, 1), \quad
              N_1 q = \gamma^2 + \chi^2_{N_1 - 1}, \quad w = m/\sqrt{\lambda_1}

    q = ``lambda_1 |v|^2 / N_1`` contains the part gamma^2/N_1 of v along the mean, so q >= gamma^2/N_1, and the other
    directions are chi-squared with N_1 - 1 degrees of freedom. Equivalently q ~ Gamma(N_1/2, rate N_1/2), and gamma =
    sqrt(N_1 q) x with x independent of q and of density proportional to (1 - x^2)^{(N_1-3)/2}: two nested
    one-dimensional integrals, each controlled in error. Exact under the Gaussian equivalence of the paper; without a
    mean it is :class:`Mixture`.

    ``order_parameters``: posterior means ``"q"`` and ``"c"`` (= gamma/sqrt(lambda_1)) and ``"t"`` = E gamma^2;
    ``readout_norm`` is E[q | y]. ``stats``: ``log_evidence``, its estimated ``error``, ``nodes`` of q.

    Cost: one ``eigh``, then P and about 200 nodes of x for each of some hundreds of nodes of q.

    Raises:
        ValueError: As :class:`TwoParameterSaddle`.
        ConvergenceError: The integrals did not settle.

    Reference: THEORY.md, section 3 and eq. (5).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import Mixture
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4).double()
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> model = NetworkGP(x, x[0] + 3.0, likelihood, kernel).double()
        >>> one, two = (theory.fit(model).readout_norm for theory in (Mixture(), TwoParameterMixture()))
        >>> bool((one - two).abs() < 1e-10)   # the identity has no mean
        True
    """

    name = "two parameters, mixture"

    def _fit(self, parts: ModelParts) -> FittedTheory:
        action, spectrum, _ = _reduce(parts, self)
        law = GammaMixing(action.width)

        def log_density(u: Tensor) -> Tensor:
            prior = law.log_density(u.movedim(-1, 0)).movedim(0, -1)
            return prior + action.mean_moments(u.exp())[0]

        posterior = integrate_scale(spectrum, log_density, law.log_interval(), action.temperature)
        posterior = posterior.without_empty_nodes()
        _, coefficient, variance = action.mean_moments(posterior.scale)
        readout = parts.kernel.readout_variance[..., 0, 0].double()
        values = {
            "q": posterior.mean,
            "c": (posterior.weights * coefficient).sum(-1) * readout.sqrt(),
            "c_squared": (posterior.weights * (coefficient.square() + variance)).sum(-1) * readout,
        }
        stats = {
            "log_evidence": posterior.log_evidence,
            "error": posterior.error,
            "nodes": posterior.log_scale.shape[-1],
        }
        return _FittedTwoParameterMixture(
            action.mean_projections,
            coefficient,
            variance,
            spectrum,
            action.temperature,
            posterior,
            self,
            parts,
            values,
            values["q"],
            "Both order parameters were integrated over their posterior.",
            stats,
        )
