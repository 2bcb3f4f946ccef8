"""The fair baseline: the infinitely wide network with a free scale of its kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..inference import Conditioned, DenseConditioned, KernelNode, OutputsProblem, Problem
from ..spectra import Spectrum
from .base import FittedTheory, Theory
from .outputs import FittedOutputs


class FreeScale(Theory):
    r"""No theory of the network: the infinitely wide one with a free scale of its kernel, ScaleKernel(NNGPKernel).

    .. math:: f \sim GP(0, r K^L), \qquad r = \arg\max_r \log N(y; 0, T B + r K^L)

    with everything else of the model as it is: the baseline that a fitted order parameter has to face. A finite-width
    prediction that it beats is no evidence for the width, since the order parameter is such a scale with a prior that
    the width dictates. ``order_parameters["r"]`` and ``readout_norm`` are the scale, ``stats["at_edge"]`` says whether
    it is at an end of the interval that was searched, so that there may be no maximum. Of a
    :class:`BlockRenormalizedKernel` it is the scale at E = 1; models without a renormalized kernel have the scale of
    their whole covariance fitted. Several outputs have a scale each, ``r`` and ``at_edge`` are ``D``: every scale is
    that of its own output's targets and noise, and the outputs are independent but for correlated noise. No batch of
    models. Cost: one reduction of the kernel and one Cholesky factorization.

    Raises:
        ValueError: A batch of models, T = 0.

    Reference: THEORY.md, section 7.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> model = NetworkGP(torch.ones(1, 1), 3 * torch.ones(1), likelihood, kernel)
        >>> round(FreeScale().fit(model).order_parameters["r"].item(), 5)   # T + r k = y^2 with k = 1
        8.0
    """

    name = "free_scale"
    needs_order_parameters = False
    has_outputs = True
    has_blocks = True

    def _fit(self, problem: Problem) -> FittedTheory:
        if isinstance(problem, OutputsProblem):
            return self._fit_outputs(problem)
        spectrum = _relative_to_noise(problem)
        scale, log_evidence, at_edge = _best_scale(spectrum)
        r = torch.tensor(scale, dtype=problem.targets.dtype, device=problem.targets.device)
        message = f"The evidence is largest at r = {scale:.5g}" + (", an edge of the search." if at_edge else ".")
        conditioned: Conditioned
        if problem.kernel is not None and not problem.kernel.is_scalar:
            conditioned = DenseConditioned(problem, [KernelNode(problem, problem.at_scale(scale))])
        elif problem.kernel is not None:
            conditioned = problem.conditioned(problem.at_scale(scale))
        else:
            conditioned = problem.conditioned_at_scales(r.double().unsqueeze(-1))
        evidence = torch.tensor(log_evidence, dtype=torch.float64, device=r.device)
        return FittedTheory(self, problem, conditioned, {"r": r}, r, message, {"at_edge": at_edge}, evidence)

    def _fit_outputs(self, problem: OutputsProblem) -> FittedTheory:
        noise = problem.noise_covariance_of_a_point.diagonal()
        found = [_best_scale(_in_units(problem.spectrum_of(d), noise[d])) for d in range(problem.num_outputs)]
        scales, _, at_edge = zip(*found, strict=True)
        r = noise.new_tensor(scales)
        conditioned = problem.rotated(torch.diag(r))
        evidence = conditioned.log_likelihoods().squeeze(-1)
        edges = [output for output, edge in enumerate(at_edge) if edge]
        message = f"The evidence of each output is largest at r = {', '.join(f'{scale:.5g}' for scale in scales)}"
        message += f", for the outputs {edges} an edge of the search." if edges else "."
        r = r.to(problem.targets)
        stats = {"at_edge": torch.tensor(at_edge)}
        return FittedOutputs(self, problem, conditioned, {"r": r}, torch.diag(r), message, stats, evidence)


def _relative_to_noise(problem: Problem) -> Spectrum:
    """Return the spectrum with noise and fixed terms as its base, whatever the composition."""
    if problem.targets.dim() > 1 or problem.inputs.dim() > 2:
        raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(problem.targets.shape)}")
    if problem.kernel is None or problem.kernel.is_scalar:
        spectrum, temperature = problem.spectrum(), problem.scalar().temperature.double()
        if spectrum.batch_shape:
            raise ValueError(f"model: expected no batch dimensions, got batch shape {tuple(spectrum.batch_shape)}")
        return _in_units(spectrum, temperature)
    unit = problem.unit_covariance
    return Spectrum.from_kernel(unit, problem.residuals(), base=problem.noise_covariance(unit))


def _in_units(spectrum: Spectrum, temperature: Tensor) -> Spectrum:
    """Return the spectrum with the noise T B as its base."""
    if not bool(temperature > 0):
        raise ValueError(f"likelihood: expected noise above zero, got {temperature.tolist()}")
    return Spectrum(
        spectrum.eigenvalues / temperature,
        spectrum.projections / temperature.sqrt(),
        None,
        spectrum.log_det_base + spectrum.num_data * temperature.log(),
    )


def _best_scale(spectrum: Spectrum) -> tuple[float, float, bool]:
    r"""Maximize the evidence of B + r K over r; return r, log p(y | r), and whether r is at an edge of the search.

    .. math:: \log p(y | r) = -\tfrac12 \Big[\log\det B + \sum_i \log(1 + r k_i) + \frac{z_i^2}{1 + r k_i}
              + \log 2 \pi\Big]

    A scan of log r in steps of 0.05, from where r K is a thousandth of the noise in every direction to where each
    z_i^2 that stands above the noise would be matched by r k_i (at most 1e9 times the balance of traces), then Brent's
    bounded search between the neighbors of the best step.
    """
    from scipy.optimize import minimize_scalar  # a tenth of a second of import time, for this alone

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
