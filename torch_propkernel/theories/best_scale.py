"""The fair baseline: the infinitely wide network with a free scale of its kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..inference.model_parts import ModelParts
from ..inference.predictor import evaluating
from ..spectra.spectrum import Spectrum
from .errors import ErrorEstimate, generalization_error, leave_one_out_error


@dataclass(frozen=True)
class FreeScale:
    """The infinitely wide network with a free overall scale r of its kernel: ScaleKernel(NNGPKernel).

    Attributes:
        scale: r.
        log_evidence: log p(y | r K, T), of the model's own targets.
        at_edge: Whether r is at an end of the interval that was searched, so that there may be no maximum.
        leave_one_out: Errors from the training data alone.
        test: Errors at test points, or None.

    Example:
        >>> one = torch.ones(1)
        >>> FreeScale(4.0, -1.5, False, ErrorEstimate(one, one, one), None).leave_one_out.mean_total.item()
        2.0
    """

    scale: float
    log_evidence: float
    at_edge: bool
    leave_one_out: ErrorEstimate
    test: ErrorEstimate | None


@torch.no_grad()
def fit_free_scale(model: Any, x: Tensor | None = None, y: Tensor | None = None) -> FreeScale:
    r"""Fit one overall scale of the kernel by evidence: the baseline that a fitted order parameter has to face.

    .. math:: r^* = \arg\max_r \log N(y; 0, T B + r K)

    with everything else of the model as it is. A finite-width prediction that this baseline beats is no evidence for
    the width: the order parameter is such a scale, with a prior that the width dictates. The model is not changed.

    Cost: as :func:`fit_order_parameters` and :func:`leave_one_out_error`, plus :func:`generalization_error` with test
    points.

    Args:
        model: An ExactGP-like model with one renormalized kernel, without batch dimensions.
        x: Test inputs, ``m x d``.
        y: Test targets, ``m``, in original units.

    Raises:
        ValueError: A batch of models, T = 0, and as :func:`fit_order_parameters`.

    Reference: THEORY.md, section 7.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, fit_free_scale
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), 3 * torch.ones(1), likelihood, kernel)
        >>> round(fit_free_scale(model).scale, 5)   # T + r k = y^2 with k = 1
        8.0
    """
    with evaluating(model) as parts:
        scale, evidence, at_edge = free_scale_of(parts)
        last = parts.last_order_parameter(scale).squeeze(-2).double()  # every composition is proportional to it
    test = None
    if x is not None and y is not None:
        test = generalization_error(model, x, y, order_parameter=last)
    return FreeScale(scale, evidence, at_edge, leave_one_out_error(model, order_parameter=last), test)


def free_scale_of(parts: ModelParts) -> tuple[float, float, bool]:
    """Return what :func:`best_scale` finds for the pieces of a model."""
    covariance = parts.covariance(1.0)
    fixed = None if parts.is_multiplicative() else parts.covariance(0.0)
    if fixed is None and not parts.has_dense_noise():
        base = parts.noise_diagonal().expand(covariance.shape[:-1])
    else:
        base = parts.noise_covariance(covariance) + (0.0 if fixed is None else fixed)
    spectrum = Spectrum.from_kernel(covariance if fixed is None else covariance - fixed, parts.residuals(), base=base)
    return best_scale(spectrum)


def best_scale(spectrum: Spectrum) -> tuple[float, float, bool]:
    r"""Maximize the evidence of B + r K over r; return r, log p(y | r), and whether r is at an edge of the search.

    .. math:: \log p(y | r) = -\tfrac12 \Big[\log\det B + \sum_i \log(1 + r k_i) + \frac{z_i^2}{1 + r k_i}
              + \log 2 \pi\Big]

    A scan of log r in steps of 0.05, from where r K is a thousandth of the noise in every direction to where each
    z_i^2 that stands above the noise would be matched by r k_i (at most 1e9 times the balance of traces), then Brent's
    bounded search between the neighbors of the best step.

    Args:
        spectrum: Of one kernel matrix, with the noise as its base B.

    Raises:
        ValueError: A batch of spectra.
    """
    if spectrum.batch_shape:
        raise ValueError(f"model: expected no batch dimensions, got batch shape {tuple(spectrum.batch_shape)}")
    k, z2 = spectrum.eigenvalues, spectrum.squares

    def log_evidence(log_scale: Tensor) -> Tensor:
        spread = 1.0 + torch.exp(log_scale).unsqueeze(-1) * k
        return -0.5 * ((spread.log() + z2 / spread + math.log(2.0 * math.pi)).sum(-1) + spectrum.log_det_base)

    low = math.log(1e-3 / float(k.max()))
    above = (z2 > 1.0) & (k > 0)
    needed = float((z2[above] / k[above]).max()) if bool(above.any()) else 0.0
    ceiling = 1e9 * max(float(z2.sum() / k.sum()), 1.0 / float(k.max()))
    high = math.log(min(max(needed, 1e3 * math.exp(low)), ceiling))
    grid = torch.linspace(low, high, max(3, int((high - low) / 0.05) + 1), dtype=torch.float64, device=k.device)
    best = int(torch.cat([log_evidence(part) for part in grid.split(64)]).argmax())
    found = minimize_scalar(
        lambda u: -float(log_evidence(torch.tensor(u, dtype=torch.float64, device=k.device))),
        bounds=(float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return math.exp(found.x), -float(found.fun), best in (0, len(grid) - 1)
