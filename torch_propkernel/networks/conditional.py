"""The readout given the hidden weights: Bayesian linear regression on the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ReadoutLaw:
    r"""Posterior of the readout :math:`v` of a network given its hidden weights, and the evidence of the targets.

    .. math::
        Y | v \sim N(\Phi v, T), \quad v \sim N(0, w_L) \quad\Rightarrow\quad
        Y \sim N(0, A),\ A = T 1 + w_L \Phi \Phi^T, \quad v | Y \sim N(G Y,\ w_L (1 - G \Phi)),\ G = w_L \Phi^T A^{-1}

    :math:`\Phi` are the features of the training inputs (1/sqrt(N_L) included), T the temperature, w_L = 1/lambda_L the
    readout variance; each of the D columns of Y is independent of the others given the features.

    Everything goes through one Cholesky factor of the smaller of A (P x P) and T 1 + w_L Phi^T Phi (F x F), without a
    subtraction of large terms in the evidence and its gradient. A batch of features (chains) is factorized in one call.
    Cost: min(P, F) P F. Where the matrix is not positive definite to rounding (T too small) the log likelihood is
    -inf.

    Args:
        features: Phi, ``*b x P x F``.
        targets: Y, ``P x D``.
        temperature: T > 0.
        weight_variance: w_L.

    Attributes:
        mean: E[v | Y], ``*b x F x D``.
        residual: Y - Phi E[v | Y], ``*b x P x D``.
        log_likelihood: log N(Y; 0, A), ``*b``.

    Reference: THEORY.md, section 0; Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), ch. 2.1.

    Example:
        >>> import torch
        >>> from torch_propkernel.networks import ReadoutLaw
        >>> law = ReadoutLaw(torch.ones(1, 1), torch.ones(1, 1), temperature=1.0, weight_variance=1.0)
        >>> law.mean.item(), round(law.predict(torch.ones(1, 1))[1].item(), 6)   # k / (k + T) and k - k^2 / (k + T)
        (0.5, 0.5)
    """

    def __init__(self, features: Tensor, targets: Tensor, temperature: float, weight_variance: float) -> None:
        """Factorize the smaller matrix."""
        num_data, num_features = features.shape[-2:]
        self._features, self._targets = features, targets
        self._temperature, self._variance = temperature, weight_variance
        self._is_small = num_features <= num_data
        rows = features.mT if self._is_small else features
        gram = (weight_variance * rows) @ rows.mT
        gram.diagonal(dim1=-2, dim2=-1).add_(temperature)
        self._factor, info = torch.linalg.cholesky_ex(gram)
        solved = torch.cholesky_solve(rows, self._factor)
        self._gain = weight_variance * (solved if self._is_small else solved.mT)
        self.mean = self._gain @ targets
        self.residual = targets - features @ self.mean
        log_det = 2.0 * self._factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self._is_small:
            log_det = log_det + (num_data - num_features) * math.log(temperature)
        num_outputs = targets.shape[-1]
        quadratic = self.residual.square().sum((-2, -1)) / temperature + self.mean.square().sum((-2, -1)) / (
            weight_variance
        )
        twice = num_outputs * (log_det + num_data * math.log(2.0 * math.pi)) + quadratic
        self.log_likelihood = torch.where(info == 0, -0.5 * twice, -torch.inf)

    def feature_gradient(self) -> Tensor:
        """Return the gradient of -log_likelihood with respect to the features, ``*b x P x F``."""
        scaled = self.residual / self._temperature
        return torch.baddbmm(
            self._gain.mT.reshape(-1, *self._features.shape[-2:]),
            scaled.reshape(-1, *scaled.shape[-2:]),
            self.mean.mT.reshape(-1, *self.mean.mT.shape[-2:]),
            beta=self._targets.shape[-1],
            alpha=-1.0,
        ).reshape(self._features.shape)

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``*b x m x D`` and variance ``*b x m`` (the same for each output) at the features of m inputs."""
        if self._is_small:
            half = torch.linalg.solve_triangular(self._factor, features.mT, upper=False)
            variance = self._temperature * self._variance * half.square().sum(-2)
        else:
            cross = self._variance * self._features @ features.mT
            half = torch.linalg.solve_triangular(self._factor, cross, upper=False)
            variance = self._variance * features.square().sum(-1) - half.square().sum(-2)
        return features @ self.mean, variance.clamp_min(0.0)

    def training_error(self) -> Tensor:
        """Return E sum (Y - Phi v)^2 / P, summed over outputs, ``*b``."""
        spread = self._temperature * (self._features * self._gain.mT).sum((-2, -1))
        num_data, num_outputs = self._targets.shape
        return (self.residual.square().sum((-2, -1)) + num_outputs * spread) / num_data

    def order_parameter(self) -> Tensor:
        """Return E[v^T v] / (w_L F), ``*b x D x D``: the mean over the F features of lambda_L v v^T."""
        num_features, num_outputs = self.mean.shape[-2:]
        trace = num_features - (self._features * self._gain.mT).sum((-2, -1))
        unit = torch.eye(num_outputs, dtype=trace.dtype, device=trace.device)
        return (self.mean.mT @ self.mean / self._variance + trace[..., None, None] * unit) / num_features

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one draw of v | Y for each member of the batch, ``*b x F x D``.

        A draw of (v, noise) from the prior, moved by the gain times the misfit: v + G (Y - Phi v - noise).
        """
        prior = torch.empty_like(self.mean).normal_(generator=generator) * math.sqrt(self._variance)
        noise = torch.empty_like(self.residual).normal_(generator=generator) * math.sqrt(self._temperature)
        return prior + self._gain @ (self._targets - self._features @ prior - noise)
