"""Two relu layers: the first one's mean activation gates the units of the second."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..actions import SolveResult, solve_order_parameters
from ..actions.gated_action import GatedPrior, gate_moments
from ..actions.local_minimum import lowest_minimum, minimize
from ..activations import ReLU
from ..exceptions import ConvergenceError
from ..inference import Blocks, DenseConditioned, Problem
from ..kernels.recursion import dual_covariance
from ..numerics.gaussian_terms import log_det_and_square
from .base import FittedTheory, Theory, bare_kernel, kernel_inputs

_RESOLVED = 1e-8
"""Largest derivative left in I(A, B), and largest error of its quadrature, that count as resolved."""


class Gated(Theory):
    r"""Saddle point of two relu layers whose second one is gated by the mean activation of the first.

    The mean activation of layer 1 acts on each unit i of layer 2 as a random bias, sigma(g_i a + z), with g_i ~ N(0,
    1) and a = 1/sqrt(pi - 1): slope Phi_i = Phi(g_i a), residual variance R_i. Only the part of a unit that is linear
    in layer 1's fluctuations feels the order parameter q_1. With A = sum_i v_i^2 Phi_i^2/N_2, B = sum_i v_i^2 R_i/N_2,

    .. math:: K_R = q_1 A \tilde K + \frac{B}{B_0} \frac{\kappa(K^1) - E[\Phi^2] \tilde K}{\lambda_2}, \qquad
              \tilde K = (\kappa(C) - m m^T)/\lambda_1, \qquad B_0 = E[R]/\lambda_2

    and the action, a minimum in q_1, A, B,

    .. math:: N_1 (q_1 - \log q_1) + 2 N_2 I(A, B) + \log\det(T 1 + K_R) + y^T (T 1 + K_R)^{-1} y,

    with I the large-deviation function of A and B over the prior (``GatedPrior``). Prior values of q_1, A, B give
    the NNGP kernel. Measured against sampled networks with N_0 >= 200: 0.2 to 1.7 %, where one order parameter for each
    layer is off by 3 to 5 %.

    Two hidden layers, relu, no biases; the kernel's composition plays no part. ``order_parameters``: ``"q1"``,
    ``"A"``, ``"B"``, and the fields ``"a"`` and ``"b"`` conjugate to A and B (either may be negative). ``readout_norm``
    is the predicted ``lambda_2 |v|^2 / N_2``, an average over the tilted law of g. ``stats``: ``residual`` (largest
    derivative of the action in the logarithms, relative to P + min N_l), ``gap`` (smallest bracket of I; near zero
    single units carry much of the readout and the theory ends), ``quadrature_error`` (of I), ``iterations``,
    ``starts``, ``agreeing_starts``, ``num_minima`` (distinct ones that the starts found).

    Cost: Newton's method from three starts, each iteration up to four Cholesky factorizations with gradients.

    Raises:
        TypeError: An activation other than relu.
        ValueError: Not two hidden layers, biases, a covariance that is more than the kernel.
        ConvergenceError: No start converged to a saddle that the quadrature resolves.

    Reference: derived for this package; THEORY.md, eq. (8c).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, ReLU, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import InfiniteWidth
        >>> x = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> def model(width):
        ...     kernel = RenormalizedNNGPKernel(ReLU(), width=[width, width]).double()
        ...     return NetworkGP(x, 3 * x[:, 0], gpytorch.likelihoods.GaussianLikelihood().double(), kernel).double()
        >>> wide, infinite = (theory.fit(model(1e9)).predict(x)[0] for theory in (Gated(), InfiniteWidth()))
        >>> torch.allclose(wide, infinite, rtol=1e-6)
        True
        >>> bool(Gated().fit(model(10)).readout_norm > 1.0)   # large targets ask for a larger readout
        True
    """

    name = "gated"

    def _check(self, problem: Problem) -> None:
        kernel = bare_kernel(problem, self, depth=2)
        if not isinstance(kernel.activation, ReLU):
            raise TypeError(f"activation: {self!r} expected ReLU(), got {kernel.activation!r}")
        if bool((kernel.bias_variance != 0).any()):
            raise ValueError(f"bias_variance: {self!r} expected zero, got {kernel.bias_variance.flatten().tolist()}")

    def _fit(self, problem: Problem) -> FittedTheory:
        kernel = problem.network
        width = kernel.width.squeeze(-2).double()
        precision = 1.0 / kernel.readout_variance[..., 0, 0].double()
        prior = GatedPrior(gate_moments(device=width.device), precision)
        residuals, whole = problem.residuals().double(), problem.unit_covariance.double()
        linear = _linear_part(problem, prior, problem.inputs, problem.inputs).double()
        rest, noise = whole - linear, problem.noise_covariance(whole).double()

        finite = torch.isfinite(width)
        counted = torch.where(finite, width, 0.0)
        free = torch.stack([finite[..., 0], finite[..., 1], finite[..., 1]], -1)
        batch = torch.broadcast_shapes(whole.shape[:-2], residuals.shape[:-1], width.shape[:-1])
        A_0, B_0 = prior.mean

        def total_action(logs: Tensor) -> Tensor:
            """Action less N_1 at (log q_1, log A/A_0, log B/B_0); infinite out of reach."""
            rate = prior.rate(A_0 * logs[..., 1].exp(), B_0 * logs[..., 2].exp())
            covariance = noise + _combine(logs, linear, rest)
            data = log_det_and_square(covariance, residuals)
            layers = counted[..., 0] * (torch.expm1(logs[..., 0]) - logs[..., 0]) + 2.0 * counted[..., 1] * rate.value
            return torch.where(rate.gradient > _RESOLVED, torch.inf, layers + data)

        outer = solve_order_parameters(whole, residuals, width=width, temperature=1.0, base=noise, throw=False)
        first, last = outer.order_parameter.log().expand(*batch, 2).unbind(-1)
        zero = torch.zeros(*batch, 3, dtype=torch.float64, device=width.device)
        starts = [torch.stack([first, last, last], -1), zero, zero + 0.5 * (first + last).unsqueeze(-1)]
        smallest = torch.where(finite, width, torch.inf).amin(-1)  # the softest direction is to be resolved
        scale = (residuals.shape[-1] + torch.where(torch.isfinite(smallest), smallest, 0.0)).expand(batch)
        runs = [minimize(total_action, start, free, scale) for start in starts]
        best, agreeing, num_minima = lowest_minimum(runs)
        if not bool(best.converged.all()):
            residual = (best.gradient.abs().amax(-1) / scale).tolist()
            raise ConvergenceError(
                f"{self!r}: no start converged (residual {residual}); there is no saddle point where a single unit "
                "would carry the readout: small widths, loud labels, low temperature"
            )
        q_1, A, B = best.logs[..., 0].exp(), A_0 * best.logs[..., 1].exp(), B_0 * best.logs[..., 2].exp()
        rate = prior.rate(A, B)
        coarse = dataclasses.replace(prior, moments=gate_moments(257, width.device)).rate(A, B)
        quadrature_error = torch.where(finite[..., 1], (rate.value - coarse.value).abs(), 0.0)
        if bool((quadrature_error > _RESOLVED).any()):
            raise ConvergenceError(
                f"{self!r}: expected a quadrature error of I(A, B) below {_RESOLVED}, got {quadrature_error.tolist()}: "
                "single units carry too much of the readout for this theory"
            )
        fields = torch.stack([rate.slope_field, rate.residual_field], -1)
        stats = {
            "result": SolveResult.local_minimum,
            "residual": best.gradient.abs().amax(-1) / scale,
            "gap": rate.gap,
            "quadrature_error": quadrature_error,
            "iterations": sum(run.iterations for run in runs),
            "starts": len(runs),
            "agreeing_starts": agreeing,
            "num_minima": num_minima,
        }
        values = {"q1": q_1, "A": A, "B": B, "a": rate.slope_field, "b": rate.residual_field}
        message = SolveResult.local_minimum.value
        conditioned = DenseConditioned(problem, [_Node(problem, prior, best.logs)])
        return FittedTheory(self, problem, conditioned, values, prior.readout_norm(fields), message, stats)


@dataclasses.dataclass(frozen=True)
class _Node:
    """f ~ N(0, K_R) with the gated kernel at given logarithms of q_1, A / A_0, B / B_0."""

    problem: Problem
    prior: GatedPrior
    logs: Tensor

    def residuals(self) -> Tensor:
        return self.problem.residuals()

    def covariance(self) -> Tensor:
        whole, inputs = self.problem.unit_covariance.double(), self.problem.inputs
        linear = _linear_part(self.problem, self.prior, inputs, inputs).double()
        return _combine(self.logs, linear, whole - linear).to(self.problem.targets.dtype)

    def blocks(self, x: Tensor, joint: bool) -> Blocks:
        mean, cross, prior = self.problem.affine_blocks(x, joint)[1]
        logs = self.logs.to(cross.dtype)
        part = _linear_part(self.problem, self.prior, self.problem.inputs, x)
        own = _linear_part(self.problem, self.prior, x, x if joint else None)
        return Blocks(mean, _combine(logs, part, cross - part), _combine(logs, own, prior - own))


def _linear_part(problem: Problem, prior: GatedPrior, x1: Tensor, x2: Tensor | None) -> Tensor:
    """Return E[Phi^2] Kt / lambda_2 between two sets of points, ``*b x n x m``, or its diagonal at x1, ``*b x n``."""
    kernel = problem.network
    x1 = kernel_inputs(problem, x1)
    elementwise = x2 is None
    other = x1 if x2 is None or x2 is problem.inputs else kernel_inputs(problem, x2)
    state = kernel.input_covariance(x1, other, elementwise=elementwise)
    kappa = dual_covariance(state, kernel.activation).xy
    mean, other_mean = (kernel.activation.mean(c) for c in (state.xx, state.yy))
    scale = prior.moments.prior_slope.to(x1.dtype) * kernel.weight_variance[..., 1:].prod(-1)
    return (scale if elementwise else scale.unsqueeze(-1)) * (kappa - mean * other_mean)


def _combine(logs: Tensor, linear: Tensor, rest: Tensor) -> Tensor:
    """Return K_R = q_1 (A/A_0) linear + (B/B_0) rest; both are ``*b x n x m`` or ``*b x n``."""
    shape = (*logs.shape[:-1], *[1] * (linear.dim() - logs.dim() + 1))
    first, second = (logs[..., 0] + logs[..., 1]).exp(), logs[..., 2].exp()
    return first.reshape(shape) * linear + second.reshape(shape) * rest
