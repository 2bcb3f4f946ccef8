"""Several outputs conditioned on all their targets: rotated, the outputs are independent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..numerics.symmetric import relative_eigh
from ..spectra import Spectrum, TridiagonalSpectrum
from .conditioned import Conditioned, SpectralConditioned
from .error_estimate import ErrorEstimate
from .tridiagonal_conditioned import TridiagonalConditioned

if TYPE_CHECKING:
    from .outputs import OutputsProblem


class OutputsConditioned(Conditioned):
    r"""D outputs conditioned on the data at a matrix Q, from one reduction of K and one of Q.

    .. math:: Q B = R B\, \mathrm{diag}(\rho),\ B^T R B = 1: \qquad \text{the rotated outputs } (f B)_d
              \sim GP(0, \rho_d K) \text{ with targets } (Y B)_d \text{ and noise } T \text{ are independent}

    and :math:`f = (f B) (R B)^T`; R is the noise of a point in units of T, the identity where all outputs have the same
    (B is then orthogonal). No matrix of D P rows is formed. Shapes: outputs stand in the batch, ``D x m``. Cost: that
    of D nodes of :class:`TridiagonalConditioned`; with eigenvectors away from the CPU.

    Args:
        problem: The problem.
        output_covariance: Q, ``D x D``, symmetric positive definite.

    Reference: THEORY.md, section 11, eq. (21b).

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import OutputsProblem
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), torch.ones(3, 2), kernel, temperature=0.5)
        >>> Q = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> OutputsProblem.of_outputs(model).rotated(Q).covariances(torch.eye(3)).shape   # of outputs, for each point
        torch.Size([3, 2, 2])
    """

    problem: OutputsProblem

    def __init__(self, problem: OutputsProblem, output_covariance: Tensor) -> None:
        """Rotate the targets."""
        super().__init__(problem)
        scale, rotate = torch.linalg.eigh(output_covariance.double())
        self.mix, self.log_det_rotation = rotate, 0.0
        if problem.output_noise is not None:
            root = torch.linalg.cholesky(problem.output_noise)
            scale, rotate = relative_eigh(scale, rotate, root)
            self.mix, self.log_det_rotation = problem.output_noise @ rotate, float(root.diagonal().log().sum())
        spectrum, temperature = problem.joint_spectrum, problem.noise_scale
        self.inner: Conditioned
        if isinstance(spectrum, TridiagonalSpectrum):
            turned = spectrum.rotated @ rotate
            self.inner = TridiagonalConditioned(problem, spectrum, scale, temperature=temperature, rotated=turned)
            return
        turned = Spectrum(
            spectrum.eigenvalues.expand(len(scale), -1),
            (spectrum.projections @ rotate).mT.unsqueeze(-1),
            spectrum.eigenvectors,
            spectrum.log_det_base.expand(len(scale)),
        )
        self.inner = SpectralConditioned(problem, scale.unsqueeze(-1), spectrum=turned, temperature=temperature)

    def _back(self, values: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and variances of the outputs from those of the rotated ones, ``D x ...`` each."""
        mix = self.mix.to(values.dtype)
        return torch.tensordot(mix, values, dims=1), torch.tensordot(mix.square(), spreads, dims=1)

    def _rotated_moments(self, x: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Return means ``D x m`` and (co)variances of the rotated outputs, without the prior's mean."""
        if x.dim() != 2:
            raise ValueError(f"x: expected shape (m, d) for several outputs, got {tuple(x.shape)}")
        means, spreads = self.inner.moments(x, joint)
        return means.flatten(0, -2), spreads.flatten(0, -3 if joint else -2)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``D x 1 x m`` and variances ``D x 1 x m`` (joint: covariances ``D x 1 x m x m``)."""
        values, variances = self._back(*self._rotated_moments(x, joint))
        return (self.problem.mean(x) + values).unsqueeze(1), variances.unsqueeze(1)

    def covariances(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of the outputs at each point, ``m x D x D``."""
        spreads = self._rotated_moments(x, joint=False)[1]
        mix = self.mix.to(spreads.dtype)
        return (mix * spreads.mT.unsqueeze(-2)) @ mix.mT

    def joint_covariance(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of all outputs at all points, interleaved, ``m D x m D``."""
        spreads = self._rotated_moments(x, joint=True)[1]
        mix = self.mix.to(spreads.dtype)
        size = x.shape[-2] * len(mix)
        return torch.einsum("ad,dij,bd->iajb", mix, spreads, mix).reshape(size, size)

    def log_likelihoods(self) -> Tensor:
        """Return log N(Y; m, A) of all outputs together, ``1``."""
        return self.inner.log_likelihoods().sum().unsqueeze(0) - self.problem.num_data * self.log_det_rotation

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Refuse: the terms of single outputs are those of the rotated ones, ``inner``."""
        raise ValueError("left_out_terms: expected one output; use leave_one_out, which rotates back")

    def leave_one_out(self) -> ErrorEstimate:
        """Return errors at each training point given the others, all its outputs left out, ``D x P``."""
        weights, precision = (v.flatten(0, -2) for v in self.inner.left_out_terms())
        noise = self.problem.noise_scale.to(precision.dtype)
        away, variance = self._back(weights / precision, (1.0 / precision - noise).clamp_min(0.0))
        noisy = variance + self.problem.noise_diagonal().to(precision.dtype)
        log_density = -0.5 * (away.square() / noisy + (2.0 * torch.pi * noisy).log())
        targets, units = self.problem.targets.to(away.dtype), self.problem.units
        return ErrorEstimate(
            units.value(targets - away),
            units.deviation(away).square(),
            units.variance(variance),
            log_density=units.log_density(log_density),
        )

    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, ``D``."""
        weights, precision = (v.flatten(0, -2) for v in self.inner.left_out_terms())
        noise = self.problem.noise_scale.to(precision.dtype)
        away, variance = self._back(noise * weights, noise - noise.square() * precision)
        error = (away.square() + variance).mean(-1).to(self.problem.targets.dtype)
        return self.problem.units.mean_variance(error)
