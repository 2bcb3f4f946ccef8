"""Evidence and leave-one-out of many temperatures, scales and widths from one table over the log of r / T."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from ..inference.conditioned import left_out, spectral_left_out_terms
from ..mixing.tabulated_density import TabulatedDensity
from ..spectra.spectrum import Spectrum

_DEPTH = 60.0  # nats below the maximum at which an integrand is no longer looked at
_TOLERANCE = 1e-7  # change of the evidence at the last halving, about the square root of its error
_LARGEST_TABLE = 2**18
_BLOCK = 2**20  # entries of a table over the spectrum, in a core's cache


class GridOfNetworks(NamedTuple):
    """Log evidence, log p(y_i | y_-i) and mean error, each in the shape variances x temperatures x widths (``x P``)."""

    log_evidence: Tensor
    pointwise: Tensor
    error: Tensor


def evaluate_grid(
    spectrum: Spectrum, priors: list[TabulatedDensity | None], variances: Tensor, temperatures: Tensor
) -> GridOfNetworks:
    r"""Integrate the scale of every network that shares a kernel matrix up to a factor.

    .. math:: \log N(y; 0, T + v r K) = -\tfrac12 \Big[P \log 2 \pi T + \sum_i \log(1 + \rho k_i)
              + \frac1T \sum_i \frac{z_i^2}{1 + \rho k_i}\Big], \qquad \rho = v r / T

    The two sums depend on T, the readout variance v and the scale r through rho alone, and so do, up to a factor 1/T,
    both terms of leave-one-out. They are tabulated once on a lattice of log rho, whose points are the trapezoidal
    rule's nodes of every network. The step is halved until no evidence changes by more than 1e-7; the rule converges
    exponentially, so that the error is about the square of that.

    Cost: O(P) for each point of the lattice (some thousands), and 4 P^2 for those that carry weight, once for all
    networks; then O(P) for each network and node.

    Args:
        spectrum: Of K and y, with eigenvectors, without batch dimensions.
        priors: Density of log r for each width; None for r = 1.
        variances: v > 0.
        temperatures: T > 0.

    Raises:
        ConvergenceError: The step would have to be smaller than 2^18 points allow.
    """
    shape = len(variances), len(temperatures), len(priors)
    evidence = torch.empty(shape, dtype=torch.float64, device=variances.device)
    finite = [index for index, prior in enumerate(priors) if prior is not None]
    infinite = [index for index, prior in enumerate(priors) if prior is None]
    at_one = (variances.unsqueeze(-1) / temperatures).log()
    pointwise = evidence.new_empty(*shape, spectrum.num_data)
    error = torch.empty_like(evidence)
    for index in infinite:
        evidence[..., index] = _log_likelihood(*_sums(spectrum, at_one), temperatures, spectrum.num_data)
        for i, j in torch.cartesian_prod(*(torch.arange(size) for size in shape[:2])).tolist():
            terms = _left_out_terms(spectrum, at_one[i, j : j + 1])
            pointwise[i, j, index], error[i, j, index] = _left_out(terms, temperatures[j], None)
    if finite:
        densities = [prior for prior in priors if prior is not None]
        lattice, log_weights, found = _settled_lattice(spectrum, densities, at_one, temperatures)
        evidence[..., finite] = found
        terms = _left_out_terms(spectrum, lattice)
        for i, j, k in torch.cartesian_prod(*(torch.arange(size) for size in found.shape)).tolist():
            weights = log_weights[i, j, k]
            kept = torch.isfinite(weights)
            network = i, j, finite[k]
            pointwise[network], error[network] = _left_out(
                tuple(term[kept] for term in terms), temperatures[j], weights[kept]
            )
    return GridOfNetworks(evidence, pointwise, error)


def _settled_lattice(
    spectrum: Spectrum, priors: list[TabulatedDensity], at_one: Tensor, temperatures: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the points that carry weight, ``G``, log weights ``v x T x w x G`` and log evidences ``v x T x w``."""
    ends = torch.stack([torch.stack(prior.interval) for prior in priors]).to(at_one)
    low, high = float(at_one.min() + ends.min()), float(at_one.max() + ends.max())
    step = 0.1
    while True:
        count = math.ceil((high - low) / step) + 1
        if count > _LARGEST_TABLE:
            raise ConvergenceError(
                f"integral over the scale: expected a change below {_TOLERANCE:.1e} at the last halving with at most "
                f"{_LARGEST_TABLE} points, got a lattice of {count}"
            )
        lattice = low + step * torch.arange(count, dtype=at_one.dtype, device=at_one.device)
        likelihood = _log_likelihood(*_sums(spectrum, lattice), temperatures.unsqueeze(-1), spectrum.num_data)
        u = lattice - at_one.unsqueeze(-1)
        values = torch.stack([prior(u) for prior in priors], 2).nan_to_num(nan=-torch.inf)
        values = values + likelihood.unsqueeze(-2)
        floor = values.amax(-1, keepdim=True) - _DEPTH
        room = 0.5 * (high - low)
        if bool((values[..., :1] > floor).any()):
            low -= room  # the likelihood pulls some scale beyond its prior's interval
        elif bool((values[..., -1:] > floor).any()):
            high += room
        else:
            total = torch.logsumexp(values, -1) + math.log(step)
            coarse = torch.logsumexp(values[..., ::2], -1) + math.log(2.0 * step)
            if bool(((total - coarse).abs() <= _TOLERANCE * (1.0 + 1e-2 * total.abs())).all()):
                break
            step *= 0.5
    log_weights = torch.log_softmax(values, -1)
    log_weights = torch.where(log_weights > math.log(1e-20), log_weights, -torch.inf)
    kept = torch.isfinite(log_weights).flatten(0, -2).any(0)
    return lattice[kept], log_weights[..., kept], total


def _sums(spectrum: Spectrum, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_i log(1 + rho k_i) and sum_i z_i^2 / (1 + rho k_i) in the shape of log rho."""
    log_det, label = [], []
    for part in log_ratio.flatten().split(max(1, _BLOCK // spectrum.num_data)):
        filled = part.exp().unsqueeze(-1) * spectrum.eigenvalues
        log_det.append(filled.log1p().sum(-1))
        label.append((1.0 + filled).reciprocal_() @ spectrum.squares)
    return torch.cat(log_det).reshape(log_ratio.shape), torch.cat(label).reshape(log_ratio.shape)


def _log_likelihood(log_det: Tensor, label: Tensor, temperature: Tensor, size: int) -> Tensor:
    return -0.5 * (size * (2.0 * math.pi * temperature).log() + log_det + label / temperature)


def _left_out_terms(spectrum: Spectrum, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return T A^{-1} y and T times the diagonal of A^{-1}, ``G x P`` each."""
    return spectral_left_out_terms(spectrum, 1.0 / (1.0 + log_ratio.exp().unsqueeze(-1) * spectrum.eigenvalues))


def _left_out(terms: tuple[Tensor, ...], temperature: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return log p(y_i | y_-i), ``P``, and the mean error of one network from what its nodes have."""
    weights, precision = (term / temperature for term in terms)
    away, variance, density = left_out(weights, precision, temperature.unsqueeze(-1), log_weights)
    return density, (away.square() + variance).mean()
