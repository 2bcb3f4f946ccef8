"""First order in 1/N of the posterior of a network: the fourth cumulant of its units under the posterior's field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 2048


def draw_pre_activations(
    covariance: Tensor, count: int, seed: int = 0, direction: Tensor | None = None, spread: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draw h ~ N(0, C) for many units, with the log of their weights if one direction is drawn wider.

    .. math:: h = C^{1/2} [z + (\sqrt\tau - 1) u u^T z], \quad z \sim N(0, 1), \quad
              u \propto C^{1/2} s, \quad \log w = \tfrac12 [\log\tau - (\tau - 1) (u^T z)^2]

    The numbers come from a generator of their own on the CPU in float32, so that they are the same for every dtype and
    device and the global generator is not touched. C may be singular. Shapes: covariance ``*b x n x n`` gives
    ``*b x count x n`` and ``*b x count``. Cost: one ``eigh`` and one GEMM.

    Args:
        covariance: C of the pre-activations of a layer at n points.
        count: Number of units M.
        seed: Seed of the generator.
        direction: s, ``*b x n``, the linear combination s.h to be drawn wider; None for the prior itself.
        spread: tau >= 1, ``*b``, the factor on its variance.

    Reference: THEORY.md, eq. (2b).

    Example:
        >>> import torch
        >>> C = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> h, log_weight = draw_pre_activations(C, 20000, direction=C[0], spread=torch.tensor(2.0))
        >>> weighted = (h.unsqueeze(-1) * h.unsqueeze(-2) * log_weight.exp()[:, None, None]).mean(0)
        >>> bool((weighted - C).abs().max() < 0.05)
        True
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, covariance.shape[-1], generator=generator, dtype=torch.float32).to(covariance)
    log_weight = z.new_zeros((*covariance.shape[:-2], count))
    if direction is not None and spread is not None:
        along = (root.transpose(-1, -2) @ direction.unsqueeze(-1)).squeeze(-1)
        length = along.norm(dim=-1, keepdim=True)
        along = along / torch.where(length > 0, length, 1.0)
        tau = torch.where(length > 0, spread.unsqueeze(-1), 1.0)
        component = (z @ along.unsqueeze(-1)).squeeze(-1)
        z = z + ((tau.sqrt() - 1.0) * component).unsqueeze(-1) * along.unsqueeze(-2)
        log_weight = 0.5 * (tau.log() - (tau - 1.0) * component.square())
    return z @ root.transpose(-1, -2), log_weight


class Terms(NamedTuple):
    """A correction: of the means ``*b x m``, the variances ``*b x m`` and log p(y) ``*b``."""

    mean: Tensor
    variance: Tensor
    log_evidence: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Terms:
        """Apply a function to each of the three."""
        return Terms(*(function(value) for value in self))


@dataclass(frozen=True)
class FirstOrderTerms:
    """The correction of first order times N, in two parts.

    Attributes:
        gaussian: What a Gaussian unit of the same covariance gives: the fluctuation of the scale q.
        non_gaussian: The rest, the fourth cumulant of the units; zero for the identity activation.
        standard_error: Monte Carlo error of ``non_gaussian``.
    """

    gaussian: Terms
    non_gaussian: Terms
    standard_error: Terms


@torch.no_grad()
def first_order_terms(
    kernel_matrix: Tensor, cross: Tensor, prior: Tensor, factor: Tensor, targets: Tensor, units: Tensor | None
) -> FirstOrderTerms:
    r"""Return N times the 1/N correction of the GP's predictions and of its log evidence.

    .. math:: \log Z(j) = \log Z_{GP}(j) + \tfrac{1}{8N} \big\{E_w[B^4 - 6 g B^2 + 3 g^2] - \Pi(j)\big\} + O(N^{-2}),
              \quad B = a^T \phi + j (\phi_* - k_*^T A^{-1} \phi), \quad g = \phi^T A^{-1} \phi

    where a = A^{-1} y, A = noise + K and j is the source of the test point: the first two derivatives at j = 0 are the
    corrections of mean and variance. Pi(j) is the expectation for a pair of independent units; a Gaussian unit gives
    3 Pi in place of the first term, so that 2 Pi/(8N) is the ``gaussian`` part and the rest ``non_gaussian``. Units
    phi carry the readout's 1/sqrt(lambda): E phi phi^T = K. Terms of known expectation are subtracted from the units'
    sums, which cuts their Monte Carlo error by a factor of two to three.

    Shapes: P training and m test points, M units. All in the dtype given; use float64. Cost: 3 P^3 and M P (P + m).

    Args:
        kernel_matrix: K at the training points, ``*b x P x P``.
        cross: k_*, ``*b x P x m``.
        prior: k_**, ``*b x m``.
        factor: Cholesky factor L of A, ``*b x P x P``.
        targets: y minus the prior mean, ``*b x P``.
        units: phi at training and test points, ``*b x M x (P + m)``; None if they are Gaussian.

    Reference: derived for this package; THEORY.md, eq. (2b).

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, dtype=torch.float64)   # K = k_* = k_** = T = 1, y = 2: A = 2, a = 1
        >>> terms = first_order_terms(one, one, one[0], (2 * one).sqrt(), 2 * one[0], None)
        >>> # E f^2 of a scale: Pi(0) = (a^2 - 1/2)^2 - 4 a^2/2 + 2/4 = -5/4; d log p(y) = 2 Pi/8
        >>> round(terms.gaussian.log_evidence.item(), 6)
        -0.3125
    """

    def whiten(value: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, value, upper=False)

    y, k = whiten(targets.unsqueeze(-1)), whiten(cross)
    inner = whiten(whiten(kernel_matrix).transpose(-1, -2))  # L^{-1} K L^{-T}
    ka, left = inner @ y, k - inner @ k  # L^{-1} K a and L^{-1} (k_* - K A^{-1} k_*)
    trace = inner.diagonal(dim1=-2, dim2=-1).sum(-1)
    trace_of_square = inner.square().sum((-2, -1))
    bb, bd = (y * ka).sum((-2, -1)), (y.transpose(-1, -2) @ left).squeeze(-2)  # E B^2 and E B D, D = dB/dj
    dd = prior - k.square().sum(-2) - (k * left).sum(-2)
    over, spread, middle = bb.unsqueeze(-1), trace.unsqueeze(-1), (ka.transpose(-1, -2) @ left).squeeze(-2)
    pair = Terms(
        4.0 * (over - spread) * bd - 8.0 * middle,
        8.0 * bd.square() + 4.0 * (over - spread) * dd - 8.0 * left.square().sum(-2),
        (bb - trace).square() - 4.0 * ka.square().sum((-2, -1)) + 2.0 * trace_of_square,
    )
    gaussian = pair.map(lambda value: value / 4.0)
    if units is None:
        zero = pair.map(torch.zeros_like)
        return FirstOrderTerms(gaussian, zero, zero)

    size = targets.shape[-1]
    sums: list[list[Tensor]] = [[], []]
    for block in units.split(_BLOCK, dim=-2):
        phi = whiten(block[..., :size].transpose(-1, -2))
        b = (y.transpose(-1, -2) @ phi).transpose(-1, -2)  # *b x M x 1
        d = block[..., size:] - phi.transpose(-1, -2) @ k
        square = b.square() - over.unsqueeze(-1)
        g = phi.square().sum(-2).unsqueeze(-1) - spread.unsqueeze(-1)
        residual = d.square() - dd.unsqueeze(-2)
        values = torch.cat(
            [
                (4.0 * (square - 2.0 * over.unsqueeze(-1)) - 12.0 * g) * b * d,
                12.0 * (square - g) * residual,
                square.square() - 6.0 * g * square + 3.0 * g.square(),
            ],
            dim=-1,
        )
        sums[0].append(values.sum(-2))
        sums[1].append(values.square().sum(-2))
    count = units.shape[-2]
    mean, second = (torch.stack(parts).sum(0) / count for parts in sums)
    error = ((second - mean.square()).clamp_min(0.0) / max(count - 1, 1)).sqrt()
    known = Terms(
        12.0 * (over - spread) * bd, 12.0 * (over - spread) * dd, bb.square() - 6.0 * bb * trace + 3.0 * trace.square()
    )
    rest = (
        (sampled + exact - 3.0 * of_pair) / 8.0
        for sampled, exact, of_pair in zip(_split(mean), known, pair, strict=True)
    )
    return FirstOrderTerms(gaussian, Terms(*rest), _split(error / 8.0))


def _split(values: Tensor) -> Terms:
    """Take means, variances and evidence apart, which lie behind each other."""
    points = values.shape[-1] // 2
    return Terms(values[..., :points], values[..., points:-1], values[..., -1])
