"""A theory at the training data of a model with several outputs."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from linear_operator.operators import BlockDiagLinearOperator, DenseLinearOperator
from torch import Tensor

from ..inference import ErrorEstimate, OutputsConditioned, OutputsProblem
from .base import FittedTheory

_DRAWS = 1000


class FittedOutputs(FittedTheory):
    """:class:`FittedTheory` of D outputs: predictions are ``m x D`` as in GPyTorch, errors by output, ``D x m``.

    ``order_parameters["E"]`` has E_1, ..., E_L, ``L x D x D``, and ``order_parameters["Q"]`` their product, the
    covariance of the outputs; ``readout_norm`` is E_L, the posterior mean of the readout's Gram matrix.

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> from torch_propkernel.models import MultitaskNetworkGP
        >>> from torch_propkernel.theories import SaddlePoint
        >>> kernel = MultitaskRenormalizedKernel("identity", width=4, num_tasks=2)
        >>> model = MultitaskNetworkGP.with_temperature(torch.eye(3), torch.ones(3, 2), kernel, temperature=0.5)
        >>> fitted = SaddlePoint().fit(model)
        >>> bool(fitted.correlations(torch.eye(3))[0, 0, 1] > 0.01)   # the targets are alike, so are the outputs
        True
        >>> fitted.error(torch.eye(3), torch.ones(3, 2)).mean_total.shape   # one number for each output
        torch.Size([2])
    """

    problem: OutputsProblem
    conditioned: OutputsConditioned

    @torch.no_grad()
    def predict(self, x: Tensor, chunk_size: int = 1000) -> tuple[Tensor, Tensor]:
        """Return posterior means and variances of the outputs, without the noise T, ``m x D`` each."""
        mean, variance = super().predict(x, chunk_size)
        return mean.mT, variance.mT

    def distribution(self, x: Tensor, joint: bool = False) -> MultitaskMultivariateNormal:
        """Return the posterior of all outputs at x; with ``joint`` points are correlated too.

        Args:
            x: Test inputs, ``m x d``.
            joint: Keep covariances between test points; outputs at one point are always correlated.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            x = self.problem.points(x)
            mean = self.conditioned.predict(x)[0].mT
            if joint:
                covariance: Any = DenseLinearOperator(self.conditioned.joint_covariance(x))
            else:
                covariance = BlockDiagLinearOperator(DenseLinearOperator(self.conditioned.covariances(x)))
            return MultitaskMultivariateNormal(mean, covariance)

    @torch.no_grad()
    def correlations(self, x: Tensor) -> Tensor:
        """Return the posterior correlations of the outputs at each point, ``m x D x D``; zero at infinite width."""
        covariance = self.conditioned.covariances(self.problem.points(x))
        deviation = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
        return covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))

    @torch.no_grad()
    def error(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> ErrorEstimate:
        """Return the expected squared errors ``D x m`` at test points with known targets ``m x D``."""
        if y.dim() != 2 or y.shape[-1] != self.problem.num_outputs:
            raise ValueError(f"y: expected shape (m, {self.problem.num_outputs}), got {tuple(y.shape)}")
        return super().error(x, y.mT, chunk_size)

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the expected share of points whose largest output is that of their class, for one posterior network.

        The probability of each point is the mean over draws of its outputs from the posterior, 1,000 of them.

        Args:
            x: Test inputs, ``m x d``.
            y: Classes, whole numbers from 0 to D - 1, ``m``.
            chunk_size: Test points at a time.
        """
        x = self.problem.points(x)
        classes = y.to(torch.long)
        if y.dim() != 1 or bool((classes != y).any()) or not bool(((y >= 0) & (y < self.problem.num_outputs)).all()):
            raise ValueError(f"y: expected m classes from 0 to {self.problem.num_outputs - 1}, got {tuple(y.shape)}")
        generator = torch.Generator(device=x.device).manual_seed(0)
        right = x.new_zeros(())
        for rows, labels in zip(x.split(chunk_size), classes.split(chunk_size), strict=True):
            mean = self.conditioned.predict(rows)[0].mT
            values, vectors = torch.linalg.eigh(self.conditioned.covariances(rows))
            half = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
            noise = torch.randn(_DRAWS, *mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            drawn = mean + (half @ noise.unsqueeze(-1)).squeeze(-1)
            right = right + (drawn.argmax(-1) == labels).to(x.dtype).mean(0).sum()
        return right / len(x)


def fit_at(
    theory: Any, problem: OutputsProblem, order_parameter: Tensor, message: str, stats: dict[str, Any]
) -> FittedOutputs:
    """Return a theory's fit at order parameters ``L x D x D`` that commute."""
    covariance = order_parameter[0]
    for matrix in order_parameter[1:]:
        covariance = covariance @ matrix
    covariance = 0.5 * (covariance + covariance.mT)
    values = {"E": order_parameter, "Q": covariance}
    conditioned = problem.rotated(covariance)
    return FittedOutputs(theory, problem, conditioned, values, order_parameter[-1], message, stats)
