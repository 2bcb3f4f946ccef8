"""The posterior of the scale under a mixing law."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..actions.outer_action import OuterAction
from ..spectra.spectrum import Spectrum
from .mixing_law import MixingLaw
from .scale_integral import ScalePosterior, integrate_scale


def posterior_of_scale(spectrum: Spectrum, law: MixingLaw, temperature: float | Tensor) -> ScalePosterior:
    r"""Return p(r | y) and log p(y) for a mixing law of the scale; one node for a point mass (infinite width).

    .. math:: p(r | y) \propto p(r)\, N(y; 0, T B + r K)

    Args:
        spectrum: Of K and y (and B).
        law: The mixing law.
        temperature: T; zero only for a non-singular K.

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
    low, high = law.log_interval()
    if law.is_point_mass:
        shape = torch.broadcast_shapes(low.shape, spectrum.batch_shape)
        action, _ = OuterAction.of(spectrum, torch.full((*shape, 1), torch.inf, dtype=torch.float64), temperature)
        u = low.to(torch.float64).expand(shape)
        constant = spectrum.log_det_base + spectrum.num_data * math.log(2.0 * math.pi)
        evidence = -0.5 * (action.data_action(u.reshape(-1)).reshape(shape) + spectrum.num_outputs * constant)
        zero = torch.zeros_like(evidence)
        return ScalePosterior(u.unsqueeze(-1), zero.unsqueeze(-1), evidence, zero)
    # A batch of laws broadcasts over trailing dimensions: the nodes go first.
    return integrate_scale(
        spectrum, lambda u: law.log_density(u.movedim(-1, 0)).movedim(0, -1), (low, high), temperature
    )
