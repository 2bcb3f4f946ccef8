"""The posterior of the scale under a mixing law."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..actions.outer_action import OuterAction
from ..spectra.spectrum import Spectrum
from .mixing_law import MixingLaw
from .scale_integral import ScalePosterior, integrate_scale


def posterior_of_scale(
    spectrum: Spectrum,
    law: MixingLaw,
    temperature: float | Tensor,
    *,
    interval: tuple[Tensor, Tensor] | None = None,
    reach: float = 0.0,
) -> ScalePosterior:
    r"""Return p(r | y) and log p(y) for a mixing law of the scale; one node for a point mass (infinite width).

    .. math:: p(r | y) \propto p(r)\, N(y; 0, T B + r K)

    Args:
        spectrum: Spectrum of K and y (and B).
        law: The mixing law.
        temperature: T; zero only for a non-singular K.
        interval: What ``law.log_interval()`` returns, where it is known; it takes longer than the integral.
        reach: Standard deviations up to which predictive densities of the mixture have to be right
            (``integrate_scale``); 0 for log p(y) and moments of r alone.

    Raises:
        ConvergenceError: The integral did not reach 1e-11 in log p(y).

    Reference: THEORY.md, section 1.

    Example:
        >>> from torch_propkernel.mixing import GammaMixing
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> posterior = posterior_of_scale(Spectrum.from_eigenvalues(one, 3 * one), GammaMixing(10.0), 0.1)
        >>> bool(posterior.mean > 1.2)   # a target of three standard deviations asks for a larger scale
        True
    """
    law = law.to(torch.float64)
    low, high = law.log_interval() if interval is None else interval
    fixed = law.point_masses
    if not bool(fixed.any()):
        return integrate_scale(spectrum, law.log_density_at_nodes, (low, high), temperature, reach=reach)
    at_point = _at_one_node(spectrum, low, temperature)
    if law.is_point_mass:
        return at_point

    def log_density(u: Tensor) -> Tensor:
        normal = -0.5 * (u - low.unsqueeze(-1)).square()
        return torch.where(fixed.unsqueeze(-1), normal, law.log_density_at_nodes(u))

    # A normal law stands in for a point mass among laws with a density, until the one node takes its place.
    low, high = torch.where(fixed, low - 1.0, low), torch.where(fixed, high + 1.0, high)
    found = integrate_scale(spectrum, log_density, (low, high), temperature, reach=reach)
    first = torch.zeros_like(found.log_weights)
    first[..., 1:] = -torch.inf
    node = fixed.unsqueeze(-1)
    return ScalePosterior(
        torch.where(node, at_point.log_scale, found.log_scale),
        torch.where(node, first, found.log_weights),
        torch.where(fixed, at_point.log_evidence, found.log_evidence),
        torch.where(fixed, 0.0, found.error),
    )


def _at_one_node(spectrum: Spectrum, u: Tensor, temperature: float | Tensor) -> ScalePosterior:
    """Return what is known of r = e^u."""
    shape = torch.broadcast_shapes(u.shape, spectrum.batch_shape)
    action, shape = OuterAction.of(spectrum, torch.full((*shape, 1), torch.inf, dtype=torch.float64), temperature)
    u = u.to(torch.float64).expand(shape)
    constant = spectrum.log_det_base + spectrum.num_data * math.log(2.0 * math.pi)
    evidence = -0.5 * (action.data_action(u.reshape(-1)).reshape(shape) + spectrum.num_outputs * constant)
    zero = torch.zeros_like(evidence)
    return ScalePosterior(u.unsqueeze(-1), zero.unsqueeze(-1), evidence, zero)
