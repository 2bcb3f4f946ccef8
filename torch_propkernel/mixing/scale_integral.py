"""Integrals over the scale of a mixture of Gaussian processes, from one spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..actions.outer_action import OuterAction
from ..exceptions import ConvergenceError
from ..spectra.spectrum import Spectrum

_DEPTH = 60.0
"""Nats below the maximum at which the integrand is cut: e^-60 of the integral, far below rounding."""

_COARSE_STEP = 0.1
_FIRST_NODES = 65
_MAX_NODES = 2**15 + 1


@dataclass(frozen=True)
class ScalePosterior:
    """Posterior of the scale, p(r | y), as nodes and weights in u = log r.

    Attributes:
        log_scale: u, ``*p x n``.
        log_weights: Normalized log weights of the nodes, ``*p x n``; -inf where a node carries nothing.
        log_evidence: log p(y), ``*p``.
        error: Estimated error of log p(y), ``*p``: the change at the last halving of the step.

    Example:
        >>> log_scale = torch.tensor([0.0, math.log(3.0)])
        >>> ScalePosterior(log_scale, torch.log(torch.tensor([0.5, 0.5])), torch.zeros(()), torch.zeros(())).mean.item()
        2.0
    """

    log_scale: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    error: Tensor

    @property
    def scale(self) -> Tensor:
        """Nodes r, ``*p x n``."""
        return torch.exp(self.log_scale)

    @property
    def weights(self) -> Tensor:
        """Normalized weights, ``*p x n``."""
        return torch.exp(self.log_weights)

    @property
    def mean(self) -> Tensor:
        """E[r | y], ``*p``."""
        return (self.weights * self.scale).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Var[r | y], ``*p``."""
        return (self.weights * (self.scale - self.mean.unsqueeze(-1)).square()).sum(-1)

    def without_empty_nodes(self, mass: float = 1e-15) -> ScalePosterior:
        """Drop nodes whose weight is below ``mass`` in every problem; predictions need no others."""
        kept = (self.log_weights > math.log(mass)).reshape(-1, self.log_weights.shape[-1]).any(0)
        weights = self.log_weights[..., kept]
        return ScalePosterior(
            self.log_scale[..., kept],
            weights - torch.logsumexp(weights, -1, keepdim=True),
            self.log_evidence,
            self.error,
        )


@torch.no_grad()
def integrate_scale(
    spectrum: Spectrum,
    log_density: Callable[[Tensor], Tensor],
    interval: tuple[Tensor, Tensor],
    temperature: float | Tensor,
    *,
    tolerance: float = 1e-11,
    throw: bool = True,
) -> ScalePosterior:
    r"""Integrate the likelihood over the mixing law of the scale, :math:`p(y) = \int p(u) N(y; 0, T B + e^u K)\, du`.

    The region where the integrand is above e^-60 of its maximum is found by zooming in from a coarse grid; the
    trapezoidal rule on it, doubled until the integral settles, converges exponentially for these analytic integrands.

    Cost: O(P) for each node, some hundreds of nodes for each problem.

    Args:
        spectrum: Of K and y (and B).
        log_density: Log density of u = log r at ``*p x n``.
        interval: u_low, u_high outside of which the prior mass is negligible, broadcastable to ``*p``.
        temperature: T, ``*p``; positive, or zero for a non-singular K.
        tolerance: On the change of log p(y) at the last doubling.
        throw: Raise if the tolerance is not reached.

    Raises:
        ConvergenceError: The tolerance was not reached, with ``throw=True``.

    Reference: THEORY.md, section 1 ("beyond the saddle").

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> spectrum = Spectrum.from_eigenvalues(one, one)
        >>> gaussian = lambda u: -0.5 * (u / 1e-3) ** 2 - math.log(1e-3) - 0.5 * math.log(2 * math.pi)   # r close to 1
        >>> found = integrate_scale(spectrum, gaussian, (torch.tensor(-0.01), torch.tensor(0.01)), 1.0)
        >>> exact = -0.5 * (math.log(2) + 0.5 + math.log(2 * math.pi))   # log N(1; 0, T + k) with T = k = 1
        >>> abs(found.log_evidence.item() - exact) < 1e-6
        True
    """
    shape = torch.broadcast_shapes(*(end.shape for end in interval), spectrum.batch_shape)
    action, shape = OuterAction.of(spectrum, torch.ones(*shape, 1, dtype=torch.float64), temperature)
    ends = [end.to(spectrum.eigenvalues).expand(shape).reshape(-1) for end in interval]
    constant = spectrum.num_data * math.log(2.0 * math.pi) + spectrum.log_det_base.expand(shape).reshape(-1, 1)
    constant = spectrum.num_outputs * constant

    def integrand(u: Tensor) -> Tensor:
        nodes = u.shape[-1]
        owner = torch.arange(action.num_problems, device=u.device).repeat_interleave(nodes)
        data = action.select(owner).data_action(u.reshape(-1)).reshape(u.shape)
        prior = log_density(u.reshape(*shape, nodes)).reshape(u.shape)
        return torch.nan_to_num(prior - 0.5 * (data + constant), nan=-torch.inf, posinf=torch.inf)

    low, high = _support(integrand, ends[0], ends[1], action)
    nodes, previous = _FIRST_NODES, None
    while True:
        u = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * torch.linspace(
            0, 1, nodes, dtype=low.dtype, device=low.device
        )
        value = integrand(u)
        log_evidence = torch.logsumexp(value, -1) + ((high - low) / (nodes - 1)).log()
        if previous is not None:
            error = (log_evidence - previous).abs()
            if bool((error <= tolerance * (1.0 + 1e-2 * log_evidence.abs())).all()):
                break
            if nodes >= _MAX_NODES:
                if throw:
                    raise ConvergenceError(
                        f"integral over the scale: expected a change below {tolerance:.1e} at the last doubling, got "
                        f"{float(error.max()):.1e} with {nodes} nodes"
                    )
                break
        previous, nodes = log_evidence, 2 * nodes - 1
    weights = value - torch.logsumexp(value, -1, keepdim=True)
    return ScalePosterior(
        u.reshape(*shape, nodes), weights.reshape(*shape, nodes), log_evidence.reshape(shape), error.reshape(shape)
    )


def _support(
    integrand: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, action: OuterAction
) -> tuple[Tensor, Tensor]:
    """Interval of u that holds all that is above e^-60 of the integrand's maximum, for each problem."""
    # The likelihood can pull the posterior beyond the prior's bulk, at most to where it has its own maximum.
    reach = action.squared_projections.sum(-1) / action.eigenvalues.sum(-1).clamp_min(1e-300)
    if not action.zero_temperature:
        k, z2 = action.eigenvalues, action.squared_projections
        needed = torch.where(k > 0, z2 / torch.where(k > 0, k, 1.0), 0.0).amax(-1)
        reach = torch.maximum(reach, needed)
    high = torch.maximum(high, reach.clamp(1e-300, 1e300).log().expand_as(high) + 1.0)
    if action.zero_temperature:
        label = (action.squared_projections / action.eigenvalues).amin(-1)
        low = torch.minimum(low, label.clamp_min(1e-300).log().expand_as(low) - 1.0)
    count = int(((high - low).max() / _COARSE_STEP).clamp(64, 4096)) + 1
    for _ in range(12):
        step = (high - low) / (count - 1)
        u = low.unsqueeze(-1) + step.unsqueeze(-1) * torch.arange(count, dtype=low.dtype, device=low.device)
        value = integrand(u)
        rise = value.diff(dim=-1)
        # Inside a cell a concave function lies below the chords of both neighbors, extended; a peak may hide there.
        left = torch.nn.functional.pad(value[:, 1:-1] + rise[:, :-1], (1, 0), value=torch.inf)
        right = torch.nn.functional.pad(value[:, 1:-1] - rise[:, 1:], (0, 1), value=torch.inf)
        hidden = torch.minimum(left, right).nan_to_num(-torch.inf, posinf=-torch.inf)
        highest = torch.maximum(torch.maximum(value[:, 1:], value[:, :-1]), hidden)
        floor = value.amax(-1, keepdim=True) - _DEPTH
        cells, inside = highest >= floor, value >= floor
        first = cells.to(torch.int8).argmax(-1)
        last = count - 1 - cells.flip(-1).to(torch.int8).argmax(-1)  # grid point at the right end of the last cell
        new_low = torch.where(first > 0, low + first * step, low)
        new_high = torch.where(last < count - 1, low + last * step, high)
        # An end that is still inside the region has to move out.
        new_low = torch.where(inside[:, 0], low - (high - low) * 0.5, new_low)
        new_high = torch.where(inside[:, -1], high + (high - low) * 0.5, new_high)
        settled = bool(((new_high - new_low) > 0.6 * (high - low)).all()) and not bool(
            (inside[:, 0] | inside[:, -1]).any()
        )
        low, high = new_low, new_high
        if settled:
            break
        count = 129
    return low, high


class _ScaleEvidence(torch.autograd.Function):
    """log p(y) with its gradient from the posterior of the scale; nothing passes through the eigendecomposition."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel_matrix: Tensor,
        targets: Tensor,
        temperature: Tensor,
        base: Tensor | None,
        spectrum: Spectrum,
        posterior: ScalePosterior,
    ) -> Tensor:
        ctx.save_for_backward(kernel_matrix, targets, temperature, base)
        ctx.spectrum, ctx.posterior = spectrum, posterior
        return posterior.log_evidence.to(targets.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kernel_matrix, targets, temperature, base = ctx.saved_tensors
        spectrum, posterior = ctx.spectrum, ctx.posterior
        k, z, vectors = spectrum.eigenvalues, spectrum.single, spectrum.eigenvectors
        gradient = gradient.to(k.dtype)
        weights = posterior.weights.unsqueeze(-1)
        spread = 1.0 / (temperature.to(k.dtype)[..., None, None] + posterior.scale.unsqueeze(-1) * k.unsqueeze(-2))
        solved = z.unsqueeze(-2) * spread

        def pull_back(factor: Tensor) -> Tensor:
            """1/2 E[factor (alpha alpha^T - A^{-1})] in the original basis, alpha = A^{-1} y."""
            outer = (weights * factor * solved).transpose(-1, -2) @ solved
            outer.diagonal(dim1=-2, dim2=-1).sub_((weights * factor * spread).sum(-2))
            return 0.5 * gradient[..., None, None] * (vectors @ outer @ vectors.transpose(-1, -2))

        def like(value: Tensor, reference: Tensor) -> Tensor:
            return value.sum_to_size(reference.shape).to(reference.dtype)

        scale = posterior.scale.unsqueeze(-1)
        grads: list[Tensor | None] = [None, None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = like(pull_back(scale), kernel_matrix)
        if ctx.needs_input_grad[1]:
            mean = (vectors @ (weights * solved).sum(-2).unsqueeze(-1)).squeeze(-1)
            grads[1] = like(-gradient.unsqueeze(-1) * mean, targets)
        if ctx.needs_input_grad[2]:
            per_node = (solved.square() - spread).sum(-1)
            grads[2] = like(0.5 * gradient * (posterior.weights * per_node).sum(-1), temperature)
        if base is not None and ctx.needs_input_grad[3]:
            pulled = pull_back(temperature.to(k.dtype)[..., None, None] * torch.ones_like(scale))
            dense = base.dim() >= 2 and base.shape[-2:] == kernel_matrix.shape[-2:]
            grads[3] = like(pulled if dense else pulled.diagonal(dim1=-2, dim2=-1), base)
        return (*grads, None, None)


def scale_evidence(
    kernel_matrix: Tensor,
    targets: Tensor,
    temperature: Tensor,
    integrate: Callable[[Spectrum], ScalePosterior],
    log_density: Callable[[Tensor], Tensor] | None = None,
    *,
    base: Tensor | None = None,
) -> tuple[Tensor, ScalePosterior]:
    r"""Return log p(y), differentiable, and the posterior of the scale.

    .. math:: \log p(y) = \log \int p(u)\, N(y; 0, T B + e^u K)\, du

    First derivatives with respect to K, y, T, B and whatever ``log_density`` depends on; they are averages over
    p(r | y) and right for duplicate rows and a singular K. Cost: one ``eigh``; backward two GEMMs.

    Args:
        kernel_matrix: K, ``*b x P x P``.
        targets: y minus its mean, ``*b x P``.
        temperature: T, ``*b``.
        integrate: Makes the posterior of the scale from the spectrum, as :func:`integrate_scale` does.
        log_density: Log density of u = log r, for gradients with respect to the law's parameters.
        base: B, a matrix or a diagonal; the identity if None.

    Reference: THEORY.md, section 1.

    Example:
        >>> k = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        >>> y, one = torch.ones(1, dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> zero = torch.zeros(1, dtype=torch.float64)   # all weight on r = 1
        >>> value, _ = scale_evidence(k, y, one, lambda spectrum: ScalePosterior(zero, zero, 0.0 * one, 0.0 * one))
        >>> torch.autograd.grad(value, k)[0].item()   # d/dk log N(1; 0, 1 + k) = ((y / (1 + k))^2 - 1 / (1 + k)) / 2
        -0.125
    """
    spectrum = Spectrum.from_kernel(kernel_matrix, targets, base=base, eigenvectors=True)
    posterior = integrate(spectrum)
    value = _ScaleEvidence.apply(kernel_matrix, targets, temperature, base, spectrum, posterior)
    if log_density is not None and torch.is_grad_enabled():
        score = (posterior.weights * log_density(posterior.log_scale).nan_to_num(neginf=0.0)).sum(-1)
        if score.requires_grad:  # the law's own parameters: a term that is zero in value
            value = value + (score - score.detach()).to(value.dtype)
    return value, posterior
