"""The readout given the hidden weights: Bayesian linear regression on the features."""

from __future__ import annotations

import copy
import math
from functools import cached_property

import torch
from torch import Tensor


class ReadoutLaw:
    r"""Posterior of the readout :math:`v` of a network given its hidden weights, and the evidence of the targets.

    .. math::
        Y | v \sim N(\Phi v, T), \quad v \sim N(0, w_L) \quad\Rightarrow\quad
        Y \sim N(0, A),\ A = T 1 + w_L \Phi \Phi^T, \quad v | Y \sim N(G Y,\ w_L (1 - G \Phi)),\ G = w_L \Phi^T A^{-1}

    :math:`\Phi` are the features of the training inputs (1/sqrt(N_L) included), T the temperature, w_L = 1/lambda_L the
    readout variance; each of the D columns of Y is independent of the others given the features. With a bias of the
    readout the last feature is its 1, and the last entry of v has the bias's variance.

    Everything goes through one Cholesky factor of the smaller of A (P x P) and M = T 1 + w_L Phi^T Phi (F x F), without
    a subtraction of large terms in the evidence and its gradient. A batch of features (chains) is factorized in one
    call. Arithmetic is in float64 whatever the features are: M is ill-conditioned at low T. Cost: min(P, F) P F. Where
    the matrix is not positive definite to rounding (T too small) the log likelihood is -inf.

    Args:
        features: Phi, ``*b x P x F``.
        targets: Y, ``P x D``.
        temperature: T > 0.
        weight_variance: w_L.
        bias_variance: That of the last entry of v if it is a bias; zero without one.

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

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        temperature: float,
        weight_variance: float,
        bias_variance: float = 0.0,
    ) -> None:
        """Factorize the smaller matrix."""
        num_data, num_features = features.shape[-2:]
        self._bias_scale = math.sqrt(bias_variance / weight_variance)
        self._dtype = features.dtype
        self._given = self._scaled(features)
        features, targets = self._given.double(), targets.double()
        self._features, self._targets = features, targets
        self._temperature, self._variance = temperature, weight_variance
        self._is_small = num_features <= num_data
        rows = features.mT if self._is_small else features
        gram = (rows @ rows.mT).mul_(weight_variance)
        gram.diagonal(dim1=-2, dim2=-1).add_(temperature)
        factor, info = torch.linalg.cholesky_ex(gram)
        failed = (info > 0)[..., None, None]
        self._factor = torch.where(failed, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), factor)
        mean = self._gained(targets)
        residual = targets - features @ mean
        log_det = 2.0 * self._factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self._is_small:
            log_det = log_det + (num_data - num_features) * math.log(temperature)
        quadratic = residual.square().sum((-2, -1)) / temperature + mean.square().sum((-2, -1)) / weight_variance
        twice = targets.shape[-1] * (log_det + num_data * math.log(2.0 * math.pi)) + quadratic
        self._mean, self._residual = mean, residual
        self.mean, self.residual = self._scaled(mean.mT).mT.to(self._dtype), residual.to(self._dtype)
        self.log_likelihood = torch.where(info == 0, -0.5 * twice, -torch.inf).to(self._dtype)

    def _scaled(self, features: Tensor) -> Tensor:
        """Return features with the bias's times the ratio of deviations, so that all of v have the variance w_L.

        The same factor takes v and gradients back: that is its transpose.
        """
        if self._bias_scale == 0.0:
            return features
        return torch.cat([features[..., :-1], self._bias_scale * features[..., -1:]], dim=-1)

    def _gained(self, targets: Tensor) -> Tensor:
        """Return G times columns ``*b x P x D``."""
        if self._is_small:
            return torch.cholesky_solve(self._variance * (self._features.mT @ targets), self._factor)
        solved = torch.cholesky_solve(targets.expand(*self._features.shape[:-1], targets.shape[-1]), self._factor)
        return self._variance * (self._features.mT @ solved)

    @cached_property
    def _inverse(self) -> Tensor:
        """Inverse of the factorized matrix; its condition number is at most 1 + w_L |Phi|^2 / T."""
        return torch.cholesky_inverse(self._factor)

    def where(self, chosen: Tensor, other: ReadoutLaw) -> ReadoutLaw:
        """Return the law that is this one for the chosen members ``b`` of the batch and the other one for the rest."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.shape[:1] == chosen.shape and name != "_targets":
                shape = chosen.reshape(-1, *[1] * (value.dim() - 1))
                made.__dict__[name] = torch.where(shape, value, getattr(other, name))
        return made

    def feature_gradient(self) -> Tensor:
        """Return the gradient of -log_likelihood with respect to the features, ``*b x P x F``, in their dtype."""
        inverse, features = (self._variance * self._inverse).to(self._dtype), self._given
        scaled, mean = (self._residual / self._temperature).to(self._dtype), self._mean.mT.to(self._dtype)
        left, right = (features, inverse) if self._is_small else (inverse, features)
        if features.dim() == 2:
            return self._scaled(self._targets.shape[-1] * (left @ right) - scaled @ mean)
        outputs = float(self._targets.shape[-1])
        flat = (t.reshape(-1, *t.shape[-2:]) for t in (left, right))
        gradient = torch.bmm(*flat) if outputs == 1.0 else torch.bmm(*flat).mul_(outputs)
        flat = (t.reshape(-1, *t.shape[-2:]) for t in (scaled, mean))
        return self._scaled(gradient.baddbmm_(*flat, alpha=-1.0).reshape(self._features.shape))

    def temperature_gradient(self) -> Tensor:
        r"""Return the derivative of log_likelihood with respect to log T, ``*b``.

        .. math:: -\tfrac12 \big[ D\, T\, \mathrm{tr} A^{-1} - T |A^{-1} Y|^2 \big]
        """
        outputs, misfit = self._targets.shape[-1], self._residual.square().sum((-2, -1)) / self._temperature
        return (0.5 * (misfit - outputs * (len(self._targets) - self._trace()))).to(self._dtype)

    def scale_gradient(self) -> Tensor:
        r"""Return the derivative of log_likelihood with respect to log w_L, ``*b``; a bias keeps its variance.

        .. math:: -\tfrac12 \big[ D\, \mathrm{tr} G \Phi - |E v|^2 / w_L \big]
        """
        mean, trace = self._of_weights()
        power = mean.square().sum((-2, -1)) / self._variance
        return (0.5 * (power - self._targets.shape[-1] * trace)).to(self._dtype)

    def _trace(self) -> Tensor:
        """Trace of G Phi: the number of features that the data determine."""
        free = self._temperature * self._inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
        return self._factor.shape[-1] - free

    def _of_weights(self) -> tuple[Tensor, Tensor]:
        """Return E[v | Y] and the trace of G Phi without the bias."""
        if self._bias_scale == 0.0:
            return self._mean, self._trace()
        if self._is_small:
            own = 1.0 - self._temperature * self._inverse[..., -1, -1]
        else:
            half = torch.linalg.solve_triangular(self._factor, self._features[..., -1:], upper=False)
            own = self._variance * half.square().sum((-2, -1))
        return self._mean[..., :-1, :], self._trace() - own

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``*b x m x D`` and variance ``*b x m`` (the same for each output) at the features of m inputs."""
        features = self._scaled(features.double())
        if self._is_small:
            half = torch.linalg.solve_triangular(self._factor, features.mT, upper=False)
            variance = self._temperature * self._variance * half.square().sum(-2)
        else:
            cross = self._variance * self._features @ features.mT
            half = torch.linalg.solve_triangular(self._factor, cross, upper=False)
            variance = self._variance * features.square().sum(-1) - half.square().sum(-2)
        return (features @ self._mean).to(self._dtype), variance.clamp_min(0.0).to(self._dtype)

    def covariance(self, features: Tensor) -> Tensor:
        """Return the covariance of f between m inputs, ``*b x m x m`` (the same for each output)."""
        features = self._scaled(features.double())
        if self._is_small:
            half = torch.linalg.solve_triangular(self._factor, features.mT, upper=False)
            return (self._temperature * self._variance * (half.mT @ half)).to(self._dtype)
        half = torch.linalg.solve_triangular(self._factor, self._variance * self._features @ features.mT, upper=False)
        return (self._variance * (features @ features.mT) - half.mT @ half).to(self._dtype)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} Y, ``*b x P x D``, and the diagonal of A^{-1}, ``*b x P``."""
        if self._is_small:
            half = torch.linalg.solve_triangular(self._factor, self._features.mT, upper=False)
            free = 1.0 - self._variance * half.square().sum(-2)  # positive up to rounding
            precision = free.clamp_min(torch.finfo(free.dtype).eps) / self._temperature
        else:
            precision = self._inverse.diagonal(dim1=-2, dim2=-1)
        return (self._residual / self._temperature).to(self._dtype), precision.to(self._dtype)

    def training_error(self) -> Tensor:
        """Return E sum (Y - Phi v)^2 / P, summed over outputs, ``*b``."""
        num_data, num_outputs = self._targets.shape
        spread = self._temperature * self._trace()
        return ((self._residual.square().sum((-2, -1)) + num_outputs * spread) / num_data).to(self._dtype)

    def order_parameter(self) -> Tensor:
        """Return E[v^T v] / (w_L F), ``*b x D x D``: the mean over F features of lambda_L v v^T, without the bias."""
        mean, trace = self._of_weights()
        num_features, num_outputs = mean.shape[-2:]
        unit = torch.eye(num_outputs, dtype=trace.dtype, device=trace.device)
        order = (mean.mT @ mean / self._variance + (num_features - trace)[..., None, None] * unit) / num_features
        return order.to(self._dtype)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one draw of v | Y for each member of the batch, ``*b x F x D``.

        A draw of (v, noise) from the prior, moved by the gain times the misfit: v + G (Y - Phi v - noise).
        """
        prior = torch.empty_like(self._mean).normal_(generator=generator) * math.sqrt(self._variance)
        noise = torch.empty_like(self._residual).normal_(generator=generator) * math.sqrt(self._temperature)
        drawn = prior + self._gained(self._targets - self._features @ prior - noise)
        return self._scaled(drawn.mT).mT.to(self._dtype)
