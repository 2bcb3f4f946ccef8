"""The effective action of several outputs, whose order parameters are matrices, in the logarithm of their product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..numerics.symmetric import exponential_differences, from_coordinates
from ..order_parameters import ScalarChain
from ..spectra.spectrum import Spectrum
from .outer_action import OuterAction


class OutputAction:
    r"""Many saddle-point problems of D outputs at once, in X = log Q.

    .. math:: N_L S(X) = \sum_{d,l} N_l (e_{dl} - \log e_{dl} - 1)
              + \sum_{i,d} \Big[n_i \log(T + \rho_d k_i) + \frac{(z_i V)_d^2}{T + \rho_d k_i}\Big], \qquad
              X = V\, \mathrm{diag}(\log \rho)\, V^T

    Q = S_1 is the matrix that multiplies K; its layers are eliminated one eigenvalue after the other: they commute with
    Q, and :math:`\rho_d = \prod_l e_{dl}` with N_l (e_dl - 1) equal for all l, so that depth costs nothing. With
    :math:`G = \mathrm{diag}_d \sum_i \frac{n_i k_i}{T + \rho_d k_i} - \sum_i k_i\, w_i w_i^T`,
    :math:`w_{id} = (z_i V)_d / (T + \rho_d k_i)`, and the divided differences Phi of the exponential,

    .. math:: N_L \frac{dS}{dX} = V [\mathrm{diag}(\mu) + \Phi * G] V^T

    Calling the object gives values ``n`` at coordinates ``n x D (D + 1) / 2`` of X
    (:func:`torch_propkernel.numerics.symmetric.to_coordinates`), differentiable once. Cost: P D^2 for each problem; no
    matrix of P D rows is formed.

    Args:
        spectrum: Of K with D outputs, without batch dimensions.
        width: N_1, ..., N_L of n problems, ``n x L``.
        temperature: T > 0, ``n``.

    Reference: THEORY.md, section 11, eqs. (20) and (21).

    Example:
        >>> import torch
        >>> from torch_propkernel import Spectrum
        >>> from torch_propkernel.actions import OutputAction
        >>> K, one = torch.eye(2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> action = OutputAction(Spectrum.from_kernel(K, 0.0 * K, num_outputs=2), 5.0 * one, one[0])
        >>> round(action(torch.zeros(1, 3, dtype=torch.float64)).item(), 5)   # Q = 1: four times log(1 + 1)
        2.77259
    """

    def __init__(self, spectrum: Spectrum, width: Tensor, temperature: Tensor) -> None:
        """Store the problems."""
        self.eigenvalues, self.projections = spectrum.eigenvalues, spectrum.projections
        self.counts = spectrum.counts
        self.chain = ScalarChain(width.unsqueeze(-2))
        self.temperature = temperature
        self.num_data = spectrum.num_data

    @property
    def num_outputs(self) -> int:
        """Number D of outputs."""
        return self.projections.shape[-1]

    def __call__(self, coordinates: Tensor) -> Tensor:
        """Return N_L S - D sum_l N_l, ``n``."""
        matrix = from_coordinates(coordinates, self.num_outputs)
        return _Value.apply(matrix, self)  # type: ignore[no-untyped-call]

    def scale(self) -> Tensor:
        """Return the size of the terms of the gradient, ``n``, against which a residual is judged."""
        width = self.chain.width.squeeze(-2)
        return self.num_data * self.num_outputs + torch.where(torch.isfinite(width), width, 0.0).amax(-1)

    def rotated(self, vectors: Tensor) -> OuterAction:
        """Return the D one-dimensional problems of each of n problems at given eigenvectors ``n x D x D`` of Q."""
        turned = (self.projections @ vectors).square().mT.flatten(0, 1)
        width = self.chain.width.squeeze(-2).repeat_interleave(self.num_outputs, 0)
        temperature = self.temperature.repeat_interleave(self.num_outputs, 0)
        values, counts = (None if v is None else v.expand(len(turned), -1) for v in (self.eigenvalues, self.counts))
        return OuterAction(values, turned, ScalarChain(width), temperature, counts)  # type: ignore[arg-type]

    def label_matrix(self, temperature: Tensor) -> Tensor:
        """Return sum_i z_i z_i^T / (T + k_i) at temperatures ``n``, ``n x D x D``."""
        weighted = self.projections / (temperature[:, None, None] + self.eigenvalues.unsqueeze(-1))
        return weighted.mT @ self.projections

    def value_and_gradient(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return values ``n`` and gradients ``n x D x D`` in X of shape ``n x D x D``."""
        u, vectors = torch.linalg.eigh(matrix)
        layers = self.chain.at_log_scale(u)
        turned = self.projections @ vectors
        k = self.eigenvalues.unsqueeze(-1)
        spread = self.temperature[:, None, None] + k * torch.exp(u).unsqueeze(-2)
        counts = torch.ones_like(k) if self.counts is None else self.counts.unsqueeze(-1)
        data = (counts * spread.log() + turned.square() / spread).sum((-2, -1))
        slope = (counts * k / spread).sum(-2)
        pulled = turned * k.sqrt() / spread
        inner = torch.diag_embed(slope) - pulled.mT @ pulled
        inner = exponential_differences(u) * inner + torch.diag_embed(layers.pull)
        value = self.chain.action(layers.log_order_parameter).sum(-1) + data
        return value, vectors @ inner @ vectors.mT


class _Value(torch.autograd.Function):
    """Values of an :class:`OutputAction` with their closed gradient: eigenvectors have none where eigenvalues meet."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, action: OutputAction) -> Tensor:
        value, gradient = action.value_and_gradient(matrix)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad[..., None, None] * gradient, None
