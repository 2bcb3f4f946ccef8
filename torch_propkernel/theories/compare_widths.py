"""Evidence and leave-one-out curves over widths, with the scale integrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inference.left_out import leave_one_out_mixture, preferred
from ..inference.model_parts import warn_if_not_identifiable
from ..inference.predictor import Units, evaluating
from ..mixing import posterior_of_scale
from ..mixing.law_of_widths import law_of_widths
from ..spectra.spectrum import Spectrum


@dataclass(frozen=True)
class WidthComparison:
    """What one data set says about widths, at fixed prior variances.

    Attributes:
        width: ``W x L``.
        log_evidence: log p(y) integrated over the scale, ``W``, of the model's own targets.
        leave_one_out_log_density: Mean over points of ``log p(y_i | y_-i)``, noise included, ``W``.
        leave_one_out_error: Mean over points of the expected squared error of a network drawn from the posterior of the
            other points, without noise, in original units, ``W``.
        mean_scale: E[r | y], ``W``.
        deviation_scale: Standard deviation of r given y, ``W``.

    Example:
        >>> one = torch.ones(2)
        >>> comparison = WidthComparison(one[:, None], torch.tensor([1.0, 1.5]), one, one, one, one)
        >>> comparison.preference(), comparison.preference(nats=0.1)
        (None, 1)
    """

    width: Tensor
    log_evidence: Tensor
    leave_one_out_log_density: Tensor
    leave_one_out_error: Tensor
    mean_scale: Tensor
    deviation_scale: Tensor

    def preference(self, nats: float = 3.0) -> int | None:
        """Return the index of the width of highest evidence if it is ahead of the worst by ``nats``, else None.

        A data set is one draw of the scale: "no preference" is the common answer where the prior variances fit.
        """
        return preferred(self.log_evidence, nats)


@torch.no_grad()
def compare_widths(model: Any, widths: Sequence[float] | Tensor) -> WidthComparison:
    r"""Return evidence and exact leave-one-out curves over widths from one factorization; the model is not changed.

    .. math:: p(y_i | y_{-i}) = \Big[\int p(r | y) / p(y_i | y_{-i}, r)\, dr\Big]^{-1}

    with :math:`p(y_i | y_{-i}, r)` normal, from :math:`[A^{-1} y]_i` and :math:`[A^{-1}]_{ii}`; the posterior of the
    scale given the other points is p(r | y) reweighted by the same factor, so nothing is held fixed when a point is
    left out.

    At fixed prior variances only. With a free readout variance (or outputscale) infinite width always has the higher
    evidence, since an average over the scale is at most its maximum: this warns when one trains. One data set is one
    draw of the scale, whose prior spread is sqrt(2 / N): with ``mean_scale`` near one, differences are a few nats.
    Where it is far from one, narrow widths win by many, since their scale can move: a sign of wrong prior variances
    more than of a good width; :func:`fit_free_scale` tells.

    Cost: one ``eigh``; for each width some dozens of nodes, P^2 multiplications each.

    Args:
        model: An ExactGP-like model with one renormalized kernel, without batch dimensions.
        widths: ``W`` numbers (each for all layers) or ``W x L``; ``math.inf`` allowed.

    Raises:
        ValueError: A batch of models, a composition that is not one-dimensional, and as :func:`fit_order_parameters`.

    Reference: THEORY.md, section 1.

    Example:
        >>> import gpytorch, math, torch
        >>> from torch_propkernel import NetworkGP, Identity, RenormalizedNNGPKernel, compare_widths
        >>> kernel = RenormalizedNNGPKernel(Identity(), width=4)
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, kernel)
        >>> curves = compare_widths(model, [1.0, 1e9, math.inf])
        >>> bool((curves.log_evidence[1] - curves.log_evidence[2]).abs() < 1e-6)
        True
    """
    with evaluating(model) as parts:
        warn_if_not_identifiable(parts)
        problem, units = parts.scalar_problem(), Units.of(model)
        if problem.residuals.dim() != 1 or problem.kernel_matrix.dim() != 2:
            raise ValueError(f"model: expected no batch dimensions, got targets of shape {tuple(parts.targets.shape)}")
        spectrum = Spectrum.from_kernel(problem.kernel_matrix, problem.residuals, base=problem.base, eigenvectors=True)
        width = torch.as_tensor(widths, dtype=torch.float64, device=spectrum.eigenvalues.device)
        width = width.unsqueeze(-1) if width.dim() == 1 else width
        width = width.expand(width.shape[0], parts.kernel.depth)
        temperature, noise = problem.temperature.to(torch.float64), parts.noise_diagonal().to(torch.float64)
        rows = []
        for each in width:
            posterior = posterior_of_scale(spectrum, law_of_widths(each), temperature)
            density, error = leave_one_out_mixture(spectrum, posterior, temperature, noise)
            row = (posterior.log_evidence, density.mean(), error.mean(), posterior.mean, posterior.variance.sqrt())
            rows.append(row)
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
        columns[2] = columns[2] * (units.scale**2 if isinstance(units.scale, float) else units.scale.squeeze() ** 2)
        return WidthComparison(width, *columns)
