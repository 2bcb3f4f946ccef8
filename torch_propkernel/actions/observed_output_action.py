"""The effective action of several outputs of which some targets are missing: on a matrix of the observed ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics.gaussian_terms import log_det_and_square
from ..numerics.symmetric import to_coordinates
from ..order_parameters import ScalarChain
from ..spectra.spectrum import Spectrum
from .observed_entries import ObservedEntries
from .outer_action import OuterAction
from .output_action import OutputAction
from .stationary_points import find_stationary_points, global_minimum


class ObservedOutputAction(OutputAction):
    r"""Many saddle-point problems of D outputs at once, in X = log Q, with A of the observed targets alone.

    .. math:: A_{(i, d), (j, e)} = T R_{de}\, \delta_{ij} + Q_{de} K_{ij}, \qquad (i, d), (j, e) \text{ observed}

    Nothing separates here: a matrix of M rows is factorized, M the number of observed targets (P D less the missing
    ones). Memory: about 6 M^2 numbers for each problem, checked before they are allocated. Cost: about M^3
    multiplications for a gradient.

    Args:
        kernel_matrix: K, ``P x P``, in float64.
        targets: Y, ``P x D``, NaN where a target is missing.
        width: N_1, ..., N_L of n problems, ``n x L``.
        temperature: T > 0, ``n``.
        output_noise: R, ``D x D``; the identity if None.

    Raises:
        ValueError: An output without an observed target.
        NotEnoughMemoryError: The matrices do not fit.

    Reference: THEORY.md, section 11, eqs. (20) and (21c).

    Example:
        >>> import math, torch
        >>> one, nan = torch.ones(1, 1, dtype=torch.float64), float("nan")
        >>> kernel = torch.eye(2, dtype=torch.float64)
        >>> targets = torch.tensor([[1.0, nan], [nan, 1.0]], dtype=torch.float64)
        >>> action = ObservedOutputAction(kernel, targets, 10 * one, one[0])
        >>> value = action(torch.zeros(1, 3, dtype=torch.float64))   # Q = 1: two targets with T + k = 2 and y = 1
        >>> bool(abs(value - 2 * (math.log(2) + 0.5)) < 1e-12)
        True
    """

    def __init__(
        self,
        kernel_matrix: Tensor,
        targets: Tensor,
        width: Tensor,
        temperature: Tensor,
        output_noise: Tensor | None = None,
    ) -> None:
        """Select what is observed."""
        self.kernel_matrix, self.targets = kernel_matrix, targets
        self.chain = ScalarChain(width.unsqueeze(-2))
        self.temperature = temperature
        self.num_outputs = targets.shape[-1]
        unit = torch.eye(self.num_outputs, dtype=torch.float64, device=targets.device)
        covariance = unit if output_noise is None else output_noise
        self.noise_variances = covariance.diagonal()
        self.num_data = len(targets)
        self.entries = ObservedEntries(targets)
        self.entries.check_memory(len(temperature))
        self.num_missing = targets.numel() - len(self.entries)
        self.observed_kernel = self.entries.between_points(kernel_matrix)
        self.noise = self.entries.noise(covariance)

    def data_term(self, u: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logdet A + y^T A^{-1} y of the observed targets, and V^T (its gradient in Q) V."""
        matrix = (vectors * u.exp().unsqueeze(-2)) @ vectors.mT
        with torch.enable_grad():
            matrix.requires_grad_(True)
            covariance = self.entries.between_outputs(matrix) * self.observed_kernel
            noisy = covariance + self.temperature[:, None, None] * self.noise
            data = log_det_and_square(noisy, self.entries.select(self.targets))
            (slope,) = torch.autograd.grad(data.sum(), matrix)
        return data.detach(), vectors.mT @ (0.5 * (slope + slope.mT)) @ vectors

    def starts(self) -> list[Tensor]:
        """Return coordinates ``n x D (D + 1) / 2``: each output by itself, solved globally, and the identity."""
        width, diagonal = self.chain.width.squeeze(-2), []
        for output in range(self.num_outputs):
            rows = self.entries.points_of(output)
            temperature = self.temperature * self.noise_variances[output]
            spectrum = Spectrum.from_kernel(self.kernel_matrix[rows][:, rows], self.targets[rows, output])
            points = find_stationary_points(OuterAction.of(spectrum, width, temperature)[0])
            diagonal.append(torch.nan_to_num(global_minimum(points)[0]))
        start = to_coordinates(torch.diag_embed(torch.stack(diagonal, -1)))
        return [start, torch.zeros_like(start)]
