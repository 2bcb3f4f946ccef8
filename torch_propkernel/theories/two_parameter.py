"""One hidden layer whose activation has a mean: the mean's direction is kept apart from the rest of the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..actions import SolveResult
from ..actions.two_parameter_action import TwoParameterAction
from ..exceptions import ConvergenceError
from ..inference import Blocks, DenseConditioned, Problem
from ..spectra import Spectrum
from .base import FittedTheory, Theory, bare_kernel, kernel_inputs


def mean_direction(problem: Problem, x: Tensor) -> Tensor:
    """Return w = m(C_xx) / sqrt(lambda_1) at the points x, ``*b x m``."""
    kernel = problem.network
    x = kernel_inputs(problem, x)
    variance = kernel.input_covariance(x, x, elementwise=True).xx
    return kernel.activation.mean(variance) * kernel.readout_variance.squeeze(-2).sqrt()


def _reduce(problem: Problem) -> tuple[TwoParameterAction, Tensor]:
    """Return the action and w."""
    width = problem.network.width[..., 0, 0].double()
    mean = mean_direction(problem, problem.inputs)
    covariance = problem.unit_covariance - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    one = width.new_ones(())
    temperature = one if problem.temperature is None else problem.temperature.double()
    spectrum = Spectrum.from_kernel(covariance, problem.residuals(), base=problem.noise, eigenvectors=True)
    return TwoParameterAction.from_spectrum(spectrum, mean, width, temperature), mean


@dataclass(frozen=True)
class _Node:
    """f ~ N(0, q (K - M) + t M): K renormalized by q, the direction w of the mean by t."""

    problem: Problem
    scale: Tensor
    mean_scale: Tensor
    mean: Tensor

    def residuals(self) -> Tensor:
        return self.problem.residuals()

    def covariance(self) -> Tensor:
        outer = self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)
        q, t = self.scale.unsqueeze(-1), self.mean_scale.unsqueeze(-1)
        return q * (self.problem.unit_covariance - outer) + t * outer

    def blocks(self, x: Tensor, joint: bool) -> Blocks:
        _, unit = self.problem.affine_blocks(x, joint)
        here, extra = mean_direction(self.problem, x), self.mean_scale - self.scale
        outer = self.mean.unsqueeze(-1) * here.unsqueeze(-2)
        cross = self.scale.unsqueeze(-1) * unit.cross + extra.unsqueeze(-1) * outer
        if joint:
            own = here.unsqueeze(-1) * here.unsqueeze(-2)
            return Blocks(unit.mean, cross, self.scale.unsqueeze(-1) * unit.prior + extra.unsqueeze(-1) * own)
        return Blocks(unit.mean, cross, self.scale * unit.prior + extra * here.square())


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
        >>> from torch_propkernel.theories import SaddlePoint, TwoParameterSaddle
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

    name = "two_parameter"

    def _check(self, problem: Problem) -> None:
        width = bare_kernel(problem, self, depth=1).width[..., 0, 0].double()
        if not bool((torch.isfinite(width) & (width > 1)).all()):
            raise ValueError(
                f"width: {self!r} expected a finite number above 1, got {width.tolist()}; InfiniteWidth() is the limit"
            )

    def _fit(self, problem: Problem) -> FittedTheory:
        action, mean = _reduce(problem)
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
        node = _Node(problem, scale, mean_scale, mean)
        values = {"q": q, "s": 1.0 / t - 1.0, "t": t}
        return FittedTheory(self, problem, DenseConditioned(problem, [node]), values, q, result.value, stats)
