"""Integrals over the scale of a mixture of Gaussian processes, from one spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..actions.outer_action import OuterAction
from ..exceptions import ConvergenceError
from ..numerics.log_quadrature import find_support, integrate_log
from ..spectra.spectrum import Spectrum


@dataclass(frozen=True)
class ScalePosterior:
    """Posterior of the scale, p(r | y), as nodes and weights in u = log r.

    Attributes:
        log_scale: u, ``*p x n``.
        log_weights: Normalized log weights of the nodes, ``*p x n``; -inf where a node carries nothing.
        log_evidence: log p(y), ``*p``.
        error: Estimated error of log p(y), ``*p``: the change at the last halving of the step.
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

    By :func:`find_support` and :func:`integrate_log`, which converges exponentially for these analytic integrands.

    Cost: O(P) for each node, some hundreds of nodes for each problem.

    Args:
        spectrum: Spectrum of K and y (and B).
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
    low, high = (end.to(spectrum.eigenvalues).expand(shape).reshape(-1) for end in interval)
    constant = spectrum.num_data * math.log(2.0 * math.pi) + spectrum.log_det_base.expand(shape).reshape(-1, 1)
    constant = spectrum.num_outputs * constant

    def integrand(u: Tensor) -> Tensor:
        nodes = u.shape[-1]
        owner = torch.arange(action.num_problems, device=u.device).repeat_interleave(nodes)
        data = action.select(owner).data_action(u.reshape(-1)).reshape(u.shape)
        prior = log_density(u.reshape(*shape, nodes)).reshape(u.shape)
        return prior - 0.5 * (data + constant)

    low, high = find_support(integrand, *_guess(low, high, action))
    found = integrate_log(integrand, low, high, tolerance=tolerance)
    if throw and not bool(found.converged.all()):
        raise ConvergenceError(
            f"integral over the scale: expected a change below {tolerance:.1e} at the last doubling, got "
            f"{float(found.error.max()):.1e} with {found.nodes.shape[-1]} nodes"
        )
    nodes, weights = (v.reshape(*shape, -1) for v in (found.nodes, found.log_weights))
    return ScalePosterior(nodes, weights, found.log_integral.reshape(shape), found.error.reshape(shape))


def _guess(low: Tensor, high: Tensor, action: OuterAction) -> tuple[Tensor, Tensor]:
    """Widen the prior's interval to where the likelihood has its maxima: it can pull the posterior that far."""
    k, z2 = action.eigenvalues, action.squared_projections
    reach = z2.sum(-1) / k.sum(-1).clamp_min(1e-300)
    if not action.zero_temperature:
        reach = torch.maximum(reach, torch.where(k > 0, z2 / torch.where(k > 0, k, 1.0), 0.0).amax(-1))
    high = torch.maximum(high, reach.clamp(1e-300, 1e300).log().expand_as(high) + 1.0)
    if action.zero_temperature:
        low = torch.minimum(low, (z2 / k).amin(-1).clamp_min(1e-300).log().expand_as(low) - 1.0)
    return low, high
