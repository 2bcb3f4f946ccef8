"""The effective action of several outputs, whose order parameters are matrices, in the logarithm of their product."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..numerics.symmetric import (
    exponential_differences,
    from_coordinates,
    num_coordinates,
    quadratic_form,
    relative_eigh,
    second_exponential_differences,
    to_coordinates,
)
from ..order_parameters import ScalarChain
from ..spectra.spectrum import Spectrum
from .outer_action import OuterAction
from .stationary_points import find_stationary_points, global_minimum


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

    Noise of covariance T R, R = C C^T, replaces z by :math:`z\, C^{-T}` and Q in the data term by
    :math:`C^{-1} Q\, C^{-T}`, whose eigenvalues and eigenvectors then stand for rho and V there.

    Calling the object gives values ``n`` at coordinates ``n x D (D + 1) / 2`` of X (its entries on and below the
    diagonal, those off it times the root of two), differentiable once. Cost: P D^2 for each problem; no
    matrix of P D rows is formed.

    Args:
        spectrum: Of K with D outputs, without batch dimensions.
        width: N_1, ..., N_L of n problems, ``n x L``.
        temperature: T > 0, ``n``.
        output_noise: R, ``D x D``, positive definite; the identity if None.

    Reference: THEORY.md, section 11, eqs. (20), (21) and (21b).

    Example:
        >>> import math, torch
        >>> from torch_propkernel.spectra import Spectrum
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> spectrum = Spectrum.from_kernel(one, torch.ones(1, 2, dtype=torch.float64), num_outputs=2)
        >>> action = OutputAction(spectrum, 10 * one, one[0])
        >>> value = action(torch.zeros(1, 3, dtype=torch.float64))   # Q = 1: two outputs with T + k = 2 and y = 1
        >>> bool(abs(value - 2 * (math.log(2) + 0.5)) < 1e-12)
        True
    """

    num_missing = 0

    def __init__(
        self, spectrum: Spectrum, width: Tensor, temperature: Tensor, output_noise: Tensor | None = None
    ) -> None:
        """Store the problems."""
        self.eigenvalues, self.projections = spectrum.eigenvalues, spectrum.projections
        self.counts = spectrum.counts
        self.chain = ScalarChain(width.unsqueeze(-2))
        self.temperature = temperature
        self.num_data, self.num_outputs = spectrum.num_data, spectrum.num_outputs
        self.output_noise = output_noise
        self.root = None if output_noise is None else torch.linalg.cholesky(output_noise)

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
        if self.output_noise is not None:  # of the rotated outputs by themselves: exact where Q and R commute
            temperature = temperature * (vectors * (self.output_noise @ vectors)).sum(-2).flatten()
        values, counts = (None if v is None else v.unsqueeze(0) for v in (self.eigenvalues, self.counts))
        return OuterAction(values, turned, ScalarChain(width), temperature, counts)  # type: ignore[arg-type]

    def label_matrix(self, temperature: Tensor) -> Tensor:
        """Return sum_i z_i z_i^T / (T + k_i) at temperatures ``n``, ``n x D x D``."""
        weighted = self.projections / (temperature[:, None, None] + self.eigenvalues.unsqueeze(-1))
        return weighted.mT @ self.projections

    def starts(self) -> list[Tensor]:
        """Return coordinates ``n x D (D + 1) / 2`` from which a minimum is searched.

        Rotated to the eigenvectors of the label matrices, or not at all, the outputs are one-dimensional problems,
        each solved globally; and the identity.
        """
        unit = torch.eye(self.num_outputs, dtype=torch.float64, device=self.temperature.device)
        unit = unit.expand(len(self.temperature), *unit.shape)
        labels = self.projections.mT @ self.projections
        rotations = [
            torch.linalg.eigh(self.label_matrix(self.temperature)).eigenvectors,
            torch.linalg.eigh(labels).eigenvectors.expand_as(unit),
            unit,
        ]
        rotations = rotations if self.num_outputs > 1 else rotations[-1:]
        u = global_minimum(find_stationary_points(self.repeated(len(rotations)).rotated(torch.cat(rotations))))[0]
        vectors, u = torch.stack(rotations), torch.nan_to_num(u).reshape(len(rotations), len(unit), 1, -1)
        starts = to_coordinates((vectors * u) @ vectors.mT)
        return [*starts, torch.zeros_like(starts[0])]

    def repeated(self, times: int) -> OutputAction:
        """Return the problems several times over."""
        made = copy.copy(self)
        made.chain, made.temperature = ScalarChain(self.chain.width.repeat(times, 1, 1)), self.temperature.repeat(times)
        return made

    def hessian(self, coordinates: Tensor) -> Tensor:
        r"""Return second derivatives in the coordinates, ``n x C x C``, C = D (D + 1) / 2.

        With S = V^T dX V, second divided differences Phi_acb, t_d = T + rho_d k and the n_i of the spectrum,

        .. math:: d^2 (N_L S) = \sum_{ac} \Big[\frac{\mu_a - \mu_c}{u_a - u_c} - \Phi_{ac}^2 \sum_i n_i
                  \frac{k_i^2}{t_a t_c}\Big] S_{ac}^2 + 2 \sum_{abc} \Big[\Phi_{ca} \Phi_{cb} \sum_i k_i^2
                  \frac{w_{ia} w_{ib}}{t_c} + G_{ab} \Phi_{acb}\Big] S_{ca} S_{cb}

        (for noise that is the same for all outputs). Cost: P D^3 and D^6 / 4 for each problem.
        """
        size = self.num_outputs
        unit = torch.eye(num_coordinates(size), dtype=coordinates.dtype, device=coordinates.device)
        u, vectors = torch.linalg.eigh(from_coordinates(coordinates, size))
        layers, first = self.chain.at_log_scale(u), exponential_differences(u)
        gap = u.unsqueeze(-1) - u.unsqueeze(-2)
        rise = layers.pull.unsqueeze(-1) - layers.pull.unsqueeze(-2)
        mean = 0.5 * (layers.stiffness.unsqueeze(-1) + layers.stiffness.unsqueeze(-2))
        near = gap.abs() < 1e-6
        stiffness = torch.where(near, mean, rise / torch.where(near, 1.0, gap))
        slope = self.data_term(u, vectors)[1]
        bent = 2.0 * slope.unsqueeze(-3) * second_exponential_differences(u)  # c x a x b
        turn = vectors.unsqueeze(-3)
        along = turn.mT @ from_coordinates(unit, size) @ turn
        moved = turn @ (first.unsqueeze(-3) * along) @ turn.mT
        return quadratic_form(along, bent + torch.diag_embed(stiffness)) + self.data_curvature(u, vectors, moved)

    def value_and_gradient(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return values ``n`` and gradients ``n x D x D`` in X of shape ``n x D x D``."""
        u, vectors = torch.linalg.eigh(matrix)
        layers = self.chain.at_log_scale(u)
        data, slope = self.data_term(u, vectors)
        inner = exponential_differences(u) * slope + torch.diag_embed(layers.pull)
        value = self.chain.action(layers.log_order_parameter).sum(-1) + data
        return value, vectors @ inner @ vectors.mT

    def _relative(self, u: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues and vectors of Q relative to the noise, ``n x D`` and ``n x D x D``."""
        return (u.exp(), vectors) if self.root is None else relative_eigh(u.exp(), vectors, self.root)

    def data_term(self, u: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logdet A + vec(Y)^T A^{-1} vec(Y), ``n``, and V^T (its gradient in Q) V, ``n x D x D``.

        Args:
            u: Eigenvalues of X, ``n x D``.
            vectors: V, ``n x D x D``.
        """
        scale, mix = self._relative(u, vectors)
        turned = self.projections @ mix
        k = self.eigenvalues.unsqueeze(-1)
        spread = self.temperature[:, None, None] + k * scale.unsqueeze(-2)
        counts = torch.ones_like(k) if self.counts is None else self.counts.unsqueeze(-1)
        data = (counts * spread.log() + turned.square() / spread).sum((-2, -1))
        slope = (counts * k / spread).sum(-2)
        pulled = turned * k.sqrt() / spread
        inner = torch.diag_embed(slope) - pulled.mT @ pulled
        if self.root is not None:
            back = vectors.mT @ mix
            inner = back @ inner @ back.mT
            data = data + 2.0 * self.num_data * self.root.diagonal().log().sum()
        return data, inner

    def data_curvature(self, u: Tensor, vectors: Tensor, along: Tensor) -> Tensor:
        r"""Return second derivatives of logdet A + vec(Y)^T A^{-1} vec(Y) in Q along symmetric matrices, ``n x C x C``.

        .. math:: D''[S, S'] = -\sum_{ab} S_{ab} S'_{ab} \sum_i \frac{n_i k_i^2}{\tau_{ia} \tau_{ib}}
                  + 2 \sum_{abc} S_{ab} S'_{ac} \sum_i \frac{k_i^2 w_{ib} w_{ic}}{\tau_{ia}}, \qquad
                  \tau_{ia} = T + \rho_a k_i

        with S turned to the eigenbasis. Cost: P D^3 + C^2 D^2.

        Args:
            u: Eigenvalues of X, ``n x D``.
            vectors: V, ``n x D x D``.
            along: Directions, ``n x C x D x D``.
        """
        scale, mix = self._relative(u, vectors)
        k = self.eigenvalues.unsqueeze(-1)
        share = k / (self.temperature[:, None, None] + k * scale.unsqueeze(-2))  # n x P x D
        counted = share if self.counts is None else self.counts.unsqueeze(-1) * share
        # k w w^T with w = (z V) / tau: the root of k stands with each of the two.
        heard = (self.projections @ mix) * k.sqrt() / (self.temperature[:, None, None] + k * scale.unsqueeze(-2))
        met = torch.einsum("nia,nib,nic->nabc", share, heard, heard)
        turned = mix.mT.unsqueeze(-3) @ along @ mix.unsqueeze(-3)
        return quadratic_form(turned, 2.0 * met - torch.diag_embed(counted.mT @ share))

    @property
    def num_observed(self) -> int:
        """Number of targets that are not missing."""
        return self.num_data * self.num_outputs - self.num_missing


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
