"""What a problem asks of a model before it is solved: its dtype, its noise, how its kernel enters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, ProductKernel, ScaleKernel
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from ..exceptions import IdentifiabilityWarning
from ..kernels import RenormalizedNNGPKernel

if TYPE_CHECKING:
    from .problem import Problem


def is_multiplicative(module: Any, kernel: Kernel) -> bool:
    """Return whether a covariance is the kernel times what does not contain it."""
    if module is kernel:
        return True
    if isinstance(module, ScaleKernel):
        return is_multiplicative(module.base_kernel, kernel)
    if isinstance(module, ProductKernel):
        return sum(is_multiplicative(k, kernel) for k in module.kernels) == 1
    return False


def check_kind_of_model(model: Any, kernel: RenormalizedNNGPKernel | None, **tensors: Tensor) -> None:
    """Raise if a named tensor's dtype or device is not the kernel's (the model's first parameter's without one)."""
    parameter = next(iter(model.parameters()), None) if kernel is None else kernel.raw_order_parameter
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got dtype {value.dtype}; convert it first")
        if parameter is None:
            continue
        if value.dtype != parameter.dtype:
            raise TypeError(
                f"{name}: expected dtype {parameter.dtype}, the kernel's, got {value.dtype}; use model.to({name}.dtype)"
            )
        if value.device != parameter.device:
            raise ValueError(f"{name}: expected device {parameter.device}, the kernel's, got {value.device}")


def noise_of(model: Any, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Read T of a homoskedastic likelihood, or what any other one adds to a prior of the training points' shape."""
    if isinstance(model.likelihood, gpytorch.likelihoods.GaussianLikelihood):
        return model.likelihood.noise.squeeze(-1), None
    prior = model.forward(inputs)
    nothing = DiagLinearOperator(torch.zeros_like(prior.loc))
    dense = model.likelihood(type(prior)(prior.mean, nothing), inputs).covariance_matrix
    diagonal = dense.diagonal(dim1=-2, dim2=-1)
    return None, diagonal if torch.equal(dense, torch.diag_embed(diagonal)) else dense


def check_affine(problem: Problem) -> None:
    """Raise unless the covariance of a few rows is affine in the renormalized kernel, and depends on it."""
    with torch.no_grad():
        zero, one, two = (problem.covariance(problem.at_scale(q), rows=4) for q in (0.0, 1.0, 2.0))
    if not torch.allclose(two - one, one - zero, rtol=1e-4, atol=1e-6 * float(one.abs().max())):
        raise ValueError(
            "model: expected a covariance that is affine in the renormalized kernel (sums, products with other "
            "kernels, ScaleKernel), got one that is not; does the same kernel occur twice?"
        )
    if bool((two == one).all()) and bool((one != 0).any()):
        raise ValueError(
            "model: expected a forward that reads the renormalized kernel from the model's submodules, got one whose "
            "covariance does not change with the order parameters; is the kernel held in a closure or a list?"
        )


def warn_if_not_identifiable(problem: Problem, stacklevel: int = 4) -> None:
    """Warn where an overall scale trains beside the order parameters."""
    model, kernel, free = problem.whole_model, problem.solved_kernel, []
    for module in kernel.modules():
        readout = getattr(module, "raw_readout_variance", None)
        if readout is not None and readout.requires_grad:
            free.append("the kernel's readout variance")
        if isinstance(module, ScaleKernel) and module.raw_outputscale.requires_grad:
            free.append("an outputscale inside the kernel")
    for module in model.modules():
        if isinstance(module, ScaleKernel) and module.raw_outputscale.requires_grad:
            inside = any(m is kernel for m in module.modules())
            if inside:
                free.append("an outputscale around the kernel")
    if free:
        warnings.warn(
            f"{' and '.join(dict.fromkeys(free))} trains beside the order parameters, but only the product of both "
            "enters the data: trained together without a prior on the scale, q sits at one and the model is an "
            "infinitely wide network with a free scale. Fix it with requires_grad_(False) to read q as a prediction.",
            IdentifiabilityWarning,
            stacklevel=stacklevel,
        )
