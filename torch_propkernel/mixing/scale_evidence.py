"""The evidence of a mixture over the scale, with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..spectra.spectrum import Spectrum
from .scale_integral import ScalePosterior


class _ScaleEvidence(torch.autograd.Function):
    """log p(y) with its gradient from the posterior of the scale; nothing passes through the eigendecomposition."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel_matrix: Tensor,
        targets: Tensor,
        temperature: Tensor,
        base: Tensor | None,
        spectrum: Spectrum,
        posterior: ScalePosterior,
    ) -> Tensor:
        ctx.save_for_backward(kernel_matrix, targets, temperature, base)
        ctx.spectrum, ctx.posterior = spectrum, posterior
        return posterior.log_evidence.to(targets.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kernel_matrix, targets, temperature, base = ctx.saved_tensors
        spectrum, posterior = ctx.spectrum, ctx.posterior
        k, z, vectors = spectrum.eigenvalues, spectrum.single, spectrum.eigenvectors
        gradient = gradient.to(k.dtype)
        weights = posterior.weights.unsqueeze(-1)
        spread = 1.0 / (temperature.to(k.dtype)[..., None, None] + posterior.scale.unsqueeze(-1) * k.unsqueeze(-2))
        solved = z.unsqueeze(-2) * spread

        def pull_back(factor: Tensor) -> Tensor:
            """1/2 E[factor (alpha alpha^T - A^{-1})] in the original basis, alpha = A^{-1} y."""
            outer = (weights * factor * solved).transpose(-1, -2) @ solved
            outer.diagonal(dim1=-2, dim2=-1).sub_((weights * factor * spread).sum(-2))
            return 0.5 * gradient[..., None, None] * (vectors @ outer @ vectors.transpose(-1, -2))

        def like(value: Tensor, reference: Tensor) -> Tensor:
            return value.sum_to_size(reference.shape).to(reference.dtype)

        scale = posterior.scale.unsqueeze(-1)
        grads: list[Tensor | None] = [None, None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = like(pull_back(scale), kernel_matrix)
        if ctx.needs_input_grad[1]:
            mean = (vectors @ (weights * solved).sum(-2).unsqueeze(-1)).squeeze(-1)
            grads[1] = like(-gradient.unsqueeze(-1) * mean, targets)
        if ctx.needs_input_grad[2]:
            per_node = (solved.square() - spread).sum(-1)
            grads[2] = like(0.5 * gradient * (posterior.weights * per_node).sum(-1), temperature)
        if base is not None and ctx.needs_input_grad[3]:
            pulled = pull_back(temperature.to(k.dtype)[..., None, None] * torch.ones_like(scale))
            dense = base.dim() >= 2 and base.shape[-2:] == kernel_matrix.shape[-2:]
            grads[3] = like(pulled if dense else pulled.diagonal(dim1=-2, dim2=-1), base)
        return (*grads, None, None)


def scale_evidence(
    kernel_matrix: Tensor,
    targets: Tensor,
    temperature: Tensor,
    integrate: Callable[[Spectrum], ScalePosterior],
    log_density: Callable[[Tensor], Tensor] | None = None,
    *,
    base: Tensor | None = None,
) -> tuple[Tensor, ScalePosterior]:
    r"""Return log p(y), differentiable, and the posterior of the scale.

    .. math:: \log p(y) = \log \int p(u)\, N(y; 0, T B + e^u K)\, du

    First derivatives with respect to K, y, T, B and whatever ``log_density`` depends on; they are averages over
    p(r | y) and right for duplicate rows and a singular K. Cost: one ``eigh``; backward two GEMMs.

    Args:
        kernel_matrix: K, ``*b x P x P``.
        targets: y minus its mean, ``*b x P``.
        temperature: T, ``*b``.
        integrate: Makes the posterior of the scale from the spectrum, as :func:`posterior_of_scale` does.
        log_density: Log density of u = log r, for gradients with respect to the law's parameters.
        base: B, a matrix or a diagonal; the identity if None.

    Reference: THEORY.md, section 1.

    Example:
        >>> k = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
        >>> y, one = torch.ones(1, dtype=torch.float64), torch.ones((), dtype=torch.float64)
        >>> zero = torch.zeros(1, dtype=torch.float64)   # all weight on r = 1
        >>> value, _ = scale_evidence(k, y, one, lambda spectrum: ScalePosterior(zero, zero, 0.0 * one, 0.0 * one))
        >>> torch.autograd.grad(value, k)[0].item()   # d/dk log N(1; 0, 1 + k) = ((y / (1 + k))^2 - 1 / (1 + k)) / 2
        -0.125
    """
    spectrum = Spectrum.from_kernel(kernel_matrix, targets, base=base, eigenvectors=True)
    posterior = integrate(spectrum)
    value = _ScaleEvidence.apply(kernel_matrix, targets, temperature, base, spectrum, posterior)
    if log_density is not None and torch.is_grad_enabled():
        score = (posterior.weights * log_density(posterior.log_scale).nan_to_num(neginf=0.0)).sum(-1)
        if score.requires_grad:  # the law's own parameters: a term that is zero in value
            value = value + (score - score.detach()).to(value.dtype)
    return value, posterior
