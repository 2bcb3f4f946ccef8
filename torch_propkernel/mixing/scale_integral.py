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

REACH = 30.0
"""Standard deviations from the mean up to which nodes serve predictive densities."""
_FARTHEST = 5.0 / 3.0  # times that at the mean scale: a mixture's standard deviation is larger
_NOISES = 0.0, 10.0
"""What does not go with the scale, noise and fixed terms, over what does at the mean scale, in densities far away."""
_FEWEST = 65  # nodes
_DENSITY = 1e-4  # change of the log of a predictive density at the last halving of the step


@dataclass(frozen=True)
class ScalePosterior:
    """Posterior of the scale, p(r | y), as nodes and weights in u = log r.

    Attributes:
        log_scale: u, ``*p x n``.
        log_weights: Normalized log weights of the nodes, ``*p x n``; -inf where a node carries nothing.
        log_evidence: log p(y), ``*p``.
        error: Estimated error of log p(y), ``*p``: the change at the last halving of the step.
        predictive_error: Change of the log of predictive densities that fewer nodes make, ``*p``; None for all nodes.
    """

    log_scale: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    error: Tensor
    predictive_error: Tensor | None = None

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

    def for_predictions(self, reach: float = 0.0, tolerance: float = 1e-7, mass: float = 1e-20) -> ScalePosterior:
        """Return fewer nodes by which a process predicts as by all.

        Every second node goes, and again, while that changes the log of no density by more than ``tolerance``: those of
        :func:`integrate_scale`, up to ``reach`` standard deviations. The change is ``predictive_error``. Then go nodes
        whose weight in all of these is below ``mass``; a point that is left out can lift one by many nats.

        Args:
            reach: As it was for the integral.
            tolerance: On the log of densities.
            mass: Smallest weight that counts.
        """
        u, values, shift = self.log_scale, self.log_weights, self.log_scale - self.mean.log().unsqueeze(-1)
        error = torch.zeros_like(self.log_evidence)
        while u.shape[-1] > 2:
            change = error + _density_change(values, shift, reach)
            if not bool((change <= tolerance).all()):
                break
            error, (u, values, shift) = change, (v[..., ::2] for v in (u, values, shift))
        weights = torch.stack([values, *_densities(values, shift, _FARTHEST * reach)]).log_softmax(-1)
        counted = torch.nonzero((weights > math.log(mass)).reshape(-1, u.shape[-1]).any(0)).squeeze(-1)
        kept = slice(int(counted[0]), int(counted[-1]) + 1)  # densities between these see the nodes between
        return ScalePosterior(
            u[..., kept], values[..., kept].log_softmax(-1), self.log_evidence, self.error, predictive_error=error
        )


def lifted(log_values: Tensor, shift: Tensor, z: float, noise: float) -> Tensor:
    """Return what a normal density makes of log values at u, z deviations away at a shift of zero.

    Its variance is proportional to e^shift + noise.
    """
    variance = (torch.exp(shift) + noise) / (1.0 + noise)
    return log_values - 0.5 * (variance.log() + z**2 / variance)


def _densities(log_values: Tensor, shift: Tensor, reach: float) -> list[Tensor]:
    """Return log values near the mean, where small scales are lifted most, and far away with different noise."""
    near = lifted(log_values, shift, 0.0, 1e-3)  # without any noise a density may diverge there
    return [near, *(lifted(log_values, shift, z * reach, noise) for z in (0.3, 1.0) for noise in _NOISES)]


def _density_change(log_values: Tensor, shift: Tensor, reach: float) -> Tensor:
    """Return the largest change of the log of densities when every second node is left out."""
    return _change(torch.stack([log_values, *_densities(log_values, shift, reach)])).amax(0)


@torch.no_grad()
def integrate_scale(
    spectrum: Spectrum,
    log_density: Callable[[Tensor], Tensor],
    interval: tuple[Tensor, Tensor],
    temperature: float | Tensor,
    *,
    tolerance: float = 1e-11,
    reach: float = 0.0,
    throw: bool = True,
) -> ScalePosterior:
    r"""Integrate the likelihood over the mixing law of the scale, :math:`p(y) = \int p(u) N(y; 0, T B + e^u K)\, du`.

    By :func:`find_support` and :func:`integrate_log`, which converges exponentially for these analytic integrands.

    Nodes and weights are also the mixture by which a process predicts, and far from its mean a normal density lifts
    nodes of large r: at z standard deviations by up to z^2 / 2. With ``reach`` the nodes go as far as z = ``reach``
    needs, where the variance is proportional to r, or to r and noise up to ten times larger at the mean scale,
    and the step serves densities there: halving it changes their logarithm by less than 1e-4, and the rule's error is
    about the square.

    Cost: O(P) for each node, some hundreds of nodes for each problem.

    Args:
        spectrum: Spectrum of K and y (and B).
        log_density: Log density of u = log r at ``*p x n``.
        interval: u_low, u_high outside of which the prior mass is negligible, broadcastable to ``*p``.
        temperature: T, ``*p``; positive, or zero for a non-singular K.
        tolerance: On the change of log p(y) at the last doubling.
        reach: Standard deviations up to which predictive densities have to be right; 0 for log p(y) alone.
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
    error = None
    if reach:
        center = _log_mean(integrand, low, high).unsqueeze(-1)
        for noise in _NOISES:

            def far(u: Tensor, noise: float = noise) -> Tensor:
                return lifted(integrand(u), u - center, _FARTHEST * reach, noise)

            high = torch.maximum(high, find_support(far, low, high)[1])

        def error(u: Tensor, values: Tensor) -> Tensor:
            """The change of log p(y), or that of densities where it is larger beside its own tolerance."""
            return torch.maximum(_change(values), _density_change(values, u - center, reach) * (tolerance / _DENSITY))

    found = integrate_log(integrand, low, high, tolerance=tolerance, fewest=_FEWEST, error=error)
    if throw and not bool(found.converged.all()):
        raise ConvergenceError(
            f"integral over the scale: expected a change below {tolerance:.1e} at the last doubling, got "
            f"{float(found.error.max()):.1e} with {found.nodes.shape[-1]} nodes"
        )
    nodes, weights = (v.reshape(*shape, -1) for v in (found.nodes, found.log_weights))
    return ScalePosterior(nodes, weights, found.log_integral.reshape(shape), _change(weights))


def _log_mean(log_integrand: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the log of the mean of r, roughly."""
    u = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * torch.linspace(0.0, 1.0, _FEWEST).to(low)
    return torch.logsumexp(torch.log_softmax(log_integrand(u).nan_to_num(nan=-torch.inf), -1) + u, -1)


def _change(log_values: Tensor) -> Tensor:
    """Return the change of the log of an integral when every second node is left out; zero where there is one node."""
    total = torch.logsumexp(log_values, -1)
    change = (total - torch.logsumexp(log_values[..., ::2], -1) - math.log(2.0)).abs()
    return torch.where(torch.isfinite(log_values).sum(-1) > 1, change, 0.0)


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
