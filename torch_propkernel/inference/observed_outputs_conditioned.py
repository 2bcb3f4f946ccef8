"""Several outputs conditioned on their observed targets, where some are missing: one matrix of the observed ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cholesky import safe_cholesky
from .conditioned import Conditioned
from .error_estimate import ErrorEstimate

if TYPE_CHECKING:
    from .outputs import OutputsProblem


class ObservedOutputsConditioned(Conditioned):
    r"""D outputs conditioned on the M targets that were observed, at a matrix Q.

    .. math:: A_{(i, d), (j, e)} = T R_{de}\, \delta_{ij} + Q_{de} K_{ij}, \qquad
              \mathrm{Cov}[f_d(x), y_{je}] = Q_{de}\, K(x, x_j)

    The interface and the shapes are those of :class:`OutputsConditioned`, without leave-one-out. Arithmetic in float64.
    Cost: M^3 / 3 once, then M^2 D m for m test points.

    Args:
        problem: The problem.
        output_covariance: Q, ``D x D``, symmetric positive definite.

    Reference: THEORY.md, section 11, eq. (21c).

    Example:
        >>> import torch
        >>> from torch_propkernel.inference import OutputsProblem
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> y = torch.tensor([[1.0, 1.0], [1.0, float("nan")], [1.0, 1.0]])
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), y, kernel, temperature=0.5)
        >>> posterior = OutputsProblem.of_outputs(model).rotated(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
        >>> bool(posterior.predict(torch.eye(3))[0][1, 1] > 0.3)   # learned from the first output's target
        True
    """

    problem: OutputsProblem

    def __init__(self, problem: OutputsProblem, output_covariance: Tensor) -> None:
        """Factorize A."""
        super().__init__(problem)
        entries = problem.observed
        self.output_covariance = output_covariance.double()
        self.noise = entries.noise(problem.noise_covariance_of_a_point)
        prior = entries.between_points(problem.unit_covariance.double())
        self.factor = safe_cholesky(entries.between_outputs(self.output_covariance) * prior + self.noise)
        y = entries.select(problem.residuals().mT.double()).unsqueeze(-1)
        self.whitened = torch.linalg.solve_triangular(self.factor, y, upper=False)

    def _blocks(self, x: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Return the whitened covariance with the observed targets, ``M x D x m``, and K^L at the test points."""
        if x.dim() != 2:
            raise ValueError(f"x: expected shape (m, d) for several outputs, got {tuple(x.shape)}")
        entries, (_, unit) = self.problem.observed, self.problem.affine_blocks(x, joint)
        cross = unit.cross.double()[entries.point].unsqueeze(1)
        cross = self.output_covariance[entries.output].unsqueeze(-1) * cross
        half = torch.linalg.solve_triangular(self.factor, cross.flatten(1), upper=False)
        return half.reshape(cross.shape), unit.prior.double()

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``D x 1 x m`` and variances ``D x 1 x m`` (joint: covariances ``D x 1 x m x m``)."""
        half, prior = self._blocks(x, joint)
        mean = self.problem.mean(x) + torch.einsum("ndm,n->dm", half, self.whitened.squeeze(-1))
        scale = self.output_covariance.diagonal()
        if joint:
            spread = scale[:, None, None] * prior - torch.einsum("ndm,ndk->dmk", half, half)
        else:
            spread = (scale.unsqueeze(-1) * prior - half.square().sum(0)).clamp_min(0.0)
        return mean.unsqueeze(1).to(x.dtype), spread.unsqueeze(1).to(x.dtype)

    def covariances(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of the outputs at each point, ``m x D x D``."""
        half, prior = self._blocks(x, joint=False)
        taken = torch.einsum("ndm,nem->mde", half, half)
        return (prior[:, None, None] * self.output_covariance - taken).to(x.dtype)

    def joint_covariance(self, x: Tensor) -> Tensor:
        """Return the posterior covariance of all outputs at all points, interleaved, ``m D x m D``."""
        half, prior = self._blocks(x, joint=True)
        half = half.mT.flatten(1)
        return (torch.kron(prior, self.output_covariance) - half.mT @ half).to(x.dtype)

    def log_likelihoods(self) -> Tensor:
        """Return the log density of the observed targets together, ``1``."""
        twice = 2.0 * self.factor.diagonal().log().sum() + self.whitened.square().sum()
        return -0.5 * (twice + len(self.factor) * math.log(2.0 * math.pi)).reshape(1)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Refuse: a point that is left out takes all its observed outputs with it."""
        raise ValueError("left_out_terms: expected one output, or no missing target, got several with missing ones")

    def leave_one_out(self) -> ErrorEstimate:
        """Refuse: points have errors of different outputs.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "leave_one_out: expected all targets to be observed, got "
            f"{int(self.problem.targets.isnan().sum())} missing ones; hold some of the observed ones out instead"
        )

    def training_error(self) -> Tensor:
        """Return the mean of E (y - f)^2 over the observed targets of each output, ``D``."""
        shrunk = torch.linalg.solve_triangular(self.factor, self.noise, upper=False)
        away = (shrunk.mT @ self.whitened).squeeze(-1)
        error = away.square() + self.noise.diagonal() - shrunk.square().sum(0)
        output, number = self.problem.observed.output, self.problem.num_outputs
        total = error.new_zeros(number).index_add(0, output, error)
        mean = (total / torch.bincount(output, minlength=number)).to(self.problem.targets.dtype)
        return self.problem.units.mean_variance(mean)
