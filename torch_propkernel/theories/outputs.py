"""A theory at the training data of a model with several outputs."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from linear_operator.operators import BlockDiagLinearOperator, DenseLinearOperator
from torch import Tensor
from torch.nn.functional import one_hot

from .._validation import check_targets
from ..inference import ErrorEstimate, ObservedOutputsConditioned, OutputsConditioned, OutputsProblem
from ..inference.conditioned import check_chunk_size
from .base import FittedTheory

DRAWS = 1024
"""Networks that are drawn for the shares of classes."""

_NUMBERS = 10**7  # drawn at a time


class FittedOutputs(FittedTheory):
    """:class:`FittedTheory` of D outputs: predictions are ``m x D`` as in GPyTorch, errors by output, ``D x m``.

    ``order_parameters["E"]`` has E_1, ..., E_L, ``L x D x D``, and ``order_parameters["Q"]`` their product, the
    covariance of the outputs; ``readout_norm`` is E_L, the posterior mean of the readout's Gram matrix. Where targets
    are missing, there is no leave-one-out, and training errors are those of the observed ones.

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
    conditioned: OutputsConditioned | ObservedOutputsConditioned

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
    def class_probabilities(self, x: Tensor) -> Tensor:
        """Return for each point the share of posterior networks whose largest output is each of the D, ``m x D``.

        Of 1,024 quasi-random draws of the outputs, the same at every point, with half a draw added to each output, so
        that none is zero: the standard error is below 0.01. The noise is left out.

        Args:
            x: Test inputs, ``m x d``.

        Example:
            >>> import torch
            >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
            >>> from torch_propkernel.models import MultitaskNetworkGP
            >>> from torch_propkernel.theories import SaddlePoint
            >>> x, kernel = torch.eye(3), MultitaskRenormalizedKernel("identity", width=50, num_tasks=3)
            >>> model = MultitaskNetworkGP.with_temperature(x, 2 * torch.eye(3) - 1, kernel, temperature=0.01)
            >>> SaddlePoint().fit(model).class_probabilities(x).argmax(-1).tolist()
            [0, 1, 2]
        """
        count, number = DRAWS * self._shares(x), self.problem.num_outputs
        return (count + 0.5) / (DRAWS + 0.5 * number)

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the expected share of points whose largest output is that of their class, for one posterior network.

        By the draws of :meth:`class_probabilities`.

        Args:
            x: Test inputs, ``m x d``.
            y: Classes, whole numbers from 0 to D - 1, ``m``.
            chunk_size: Test points at a time, at most.
        """
        check_chunk_size(chunk_size)
        classes = y.to(torch.long)
        if y.dim() != 1 or bool((classes != y).any()) or not bool(((y >= 0) & (y < self.problem.num_outputs)).all()):
            raise ValueError(f"y: expected m classes from 0 to {self.problem.num_outputs - 1}, got {tuple(y.shape)}")
        check_targets(y.to(x.dtype), len(x))
        return self._shares(x, chunk_size).gather(-1, classes.unsqueeze(-1)).mean()

    def _shares(self, x: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the shares of draws in which each output is the largest, ``m x D``."""
        x, number = self.problem.points(x), self.problem.num_outputs
        normal, shares = standard_normals(number, x), []
        for rows in x.split(chunk_of_classes(chunk_size, number)):
            mean = self.conditioned.predict(rows)[0].mT
            values, vectors = torch.linalg.eigh(self.conditioned.covariances(rows))
            root = (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT
            largest = (mean.unsqueeze(-2) + normal @ root).argmax(-1)
            shares.append(one_hot(largest, number).to(x.dtype).mean(-2))
        return torch.cat(shares)


def standard_normals(number: int, like: Tensor) -> Tensor:
    """Return quasi-random normal numbers, ``DRAWS x number``, always the same."""
    uniform = torch.quasirandom.SobolEngine(number, scramble=True, seed=0).draw(DRAWS, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp_min(torch.finfo(torch.float64).eps)).to(like)


def chunk_of_classes(chunk_size: int, number: int) -> int:
    """Return how many test points are drawn at a time."""
    return min(chunk_size, max(1, _NUMBERS // (DRAWS * number)))


def fit_at(
    theory: Any,
    problem: OutputsProblem,
    order_parameter: Tensor,
    message: str,
    stats: dict[str, Any],
    log_evidence: Tensor | None = None,
    kind: type[FittedOutputs] = FittedOutputs,
) -> FittedOutputs:
    """Return a theory's fit at order parameters ``L x D x D`` that commute."""
    covariance = order_parameter[0]
    for matrix in order_parameter[1:]:
        covariance = covariance @ matrix
    covariance = 0.5 * (covariance + covariance.mT)
    values = {"E": order_parameter, "Q": covariance}
    conditioned = problem.rotated(covariance)
    return kind(theory, problem, conditioned, values, order_parameter[-1], message, stats, log_evidence)
