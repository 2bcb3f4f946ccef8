"""The pieces of a Gaussian process model that a solve needs: A(q) = noise + fixed + K(q), targets, inputs."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.kernels import Kernel, ProductKernel, ScaleKernel
from gpytorch.likelihoods import _GaussianLikelihoodBase
from linear_operator import to_dense
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from .._validation import check_inputs, check_targets
from ..exceptions import IdentifiabilityWarning
from ..kernels import RenormalizedNNGPKernel
from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..likelihoods import StudentTProcessLikelihood


@dataclass(frozen=True)
class ScalarProblem:
    """A(r) = T B + r K of a model whose order parameters enter through their product r alone.

    Attributes:
        kernel_matrix: K, the part proportional to r, ``*b x P x P``.
        base: B, a matrix or a diagonal, or None for the identity.
        temperature: T, ``*b``; one where B holds the noise.
        residuals: Targets minus mean, ``*b x P``.
    """

    kernel_matrix: Tensor
    base: Tensor | None
    temperature: Tensor
    residuals: Tensor


@dataclass(frozen=True)
class ModelParts:
    """An ExactGP-like model taken apart.

    Attributes:
        model: The model.
        kernel: Its one renormalized kernel.
        inputs: Training inputs as the model's ``forward`` takes them, ``*b x P x d``.
        targets: Training targets, flattened to ``*b x P`` (``P D`` for a multitask model).
        temperature: T as ``*b`` where the noise is T times the identity, else None.
        noise: Noise covariance ``*b x P x P`` or its diagonal ``*b x P``, where it is not; else None.
    """

    model: Any
    kernel: RenormalizedNNGPKernel
    inputs: Tensor
    targets: Tensor
    temperature: Tensor | None
    noise: Tensor | None

    def prior(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Return the model's prior at ``x``, with the order parameters that the kernel has now."""
        return self.model.forward(x)

    def residuals(self) -> Tensor:
        """Return y minus the model's mean, ``*b x P``."""
        return self.targets - self.prior(self.inputs).loc

    def covariance(self, order_parameter: float | Tensor | None = None, rows: int | None = None) -> Tensor:
        """Return the dense prior covariance of the training points (of the first ``rows`` ones), without noise.

        ``order_parameter=0`` gives the part that no order parameter touches.
        """
        x = self.inputs if rows is None else self.inputs[..., :rows, :]
        if order_parameter is None:
            return to_dense(self.prior(x).lazy_covariance_matrix)
        if not isinstance(order_parameter, Tensor):
            order_parameter = self.last_order_parameter(order_parameter)
        with self.kernel.assigned_order_parameter(order_parameter):
            return to_dense(self.prior(x).lazy_covariance_matrix)

    def last_order_parameter(self, value: float) -> Tensor:
        """Return order parameters that are one but for the last layer's, to which every composition is proportional."""
        order_parameter = torch.ones_like(self.kernel.raw_order_parameter)
        order_parameter[..., -1] = value
        return order_parameter

    def blocks(self, x: Tensor, order_parameter: float, full: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return prior mean at x ``*b x m``, covariance with the training points, and prior variance (or covariance).

        ``order_parameter`` is the last layer's, the others are one; zero gives the part that none of them touches.
        """
        inputs = self.inputs
        size = self.targets.shape[-1]
        batch = torch.broadcast_shapes(inputs.shape[:-2], x.shape[:-2])
        joint_inputs = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (inputs, x)], dim=-2)
        with self.kernel.assigned_order_parameter(self.last_order_parameter(order_parameter)):
            joint = self.prior(joint_inputs)
            covariance = joint.lazy_covariance_matrix
            own = covariance[..., size:, size:]
            prior = to_dense(own) if full else own.diagonal(dim1=-2, dim2=-1)
            return joint.loc[..., size:], to_dense(covariance[..., :size, size:]), prior

    def noise_covariance(self, like: Tensor) -> Tensor:
        """Return the noise as a dense matrix ``*b x P x P``."""
        if self.temperature is not None:
            return self.temperature[..., None, None] * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        assert self.noise is not None
        return self.noise if self.has_dense_noise() else torch.diag_embed(self.noise)

    def noise_diagonal(self) -> Tensor:
        """Return the noise variances of the training points, broadcastable to ``*b x P``."""
        if self.temperature is not None:
            return self.temperature.unsqueeze(-1)
        assert self.noise is not None
        return self.noise.diagonal(dim1=-2, dim2=-1) if self.has_dense_noise() else self.noise

    def has_dense_noise(self) -> bool:
        """Whether the noise is correlated between points."""
        size = self.targets.shape[-1]
        return self.noise is not None and self.noise.dim() >= 2 and self.noise.shape[-2:] == (size, size)

    def scalar_problem(self) -> ScalarProblem:
        """Split the covariance into a fixed part and one proportional to r, with one or two evaluations of the prior.

        Raises:
            ValueError: The order parameters enter other than through their product.
        """
        if not self.kernel.is_scalar:
            raise ValueError(
                "composition: expected one in which only the product of the order parameters enters ('outer', or one "
                f"hidden layer), got {self.kernel.composition!r}; use fit_order_parameters for each width instead"
            )
        covariance, residuals = self.covariance(1.0), self.residuals()
        one = covariance.new_ones(())
        if not self.is_multiplicative():
            check_affine(self)
            fixed = self.covariance(0.0)
            if bool((fixed != 0).any()):
                return ScalarProblem(covariance - fixed, fixed + self.noise_covariance(fixed), one, residuals)
        if self.temperature is not None:
            return ScalarProblem(covariance, None, self.temperature, residuals)
        return ScalarProblem(covariance, self.noise, one, residuals)

    def is_multiplicative(self) -> bool:
        """Whether the whole covariance is known to be proportional to the renormalized kernel."""
        return _is_multiplicative(getattr(self.model, "covar_module", None), self.kernel)


def _is_multiplicative(module: Any, kernel: Kernel) -> bool:
    if module is kernel:
        return True
    if isinstance(module, ScaleKernel):
        return _is_multiplicative(module.base_kernel, kernel)
    if isinstance(module, ProductKernel):
        return sum(_is_multiplicative(k, kernel) for k in module.kernels) == 1
    return False


def take_apart(model: Any) -> ModelParts:
    """Check a model and its training data, and return its pieces. Nothing is computed on P x P matrices."""
    kernel = find_renormalized_kernel(model)
    for attribute in ("train_inputs", "train_targets", "likelihood"):
        if getattr(model, attribute, None) is None:
            raise TypeError(
                f"model: expected an ExactGP-like model with {attribute}, got {type(model).__name__} without"
            )
    gaussian = isinstance(model.likelihood, _GaussianLikelihoodBase)
    if not gaussian or isinstance(model.likelihood, StudentTProcessLikelihood):
        got = type(model.likelihood).__name__
        raise TypeError(f"likelihood: expected a Gaussian one, whose noise is the temperature, got {got}")
    if len(model.train_inputs) != 1:
        raise ValueError(f"model: expected one tensor of training inputs, got {len(model.train_inputs)}")
    inputs = check_inputs(model.train_inputs[0], "train_inputs")
    targets = model.train_targets
    check_kind_of_kernel(kernel, train_inputs=inputs, train_targets=targets)
    with torch.no_grad():  # (D,) for a multitask model, whose covariance has the row index slow
        outputs = model.forward(inputs[..., :1, :]).event_shape[1:]
    if len(outputs):
        targets = targets.reshape(*targets.shape[:-2], -1)
    check_targets(targets, math.prod(outputs) * inputs.shape[-2], "train_targets")
    temperature, noise = _noise(model)
    return ModelParts(model, kernel, inputs, targets, temperature, noise)


def check_kind_of_kernel(kernel: RenormalizedNNGPKernel, **tensors: Tensor) -> None:
    """Raise if a named tensor's dtype or device is not the kernel's."""
    parameter = kernel.raw_order_parameter
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got dtype {value.dtype}; convert it first")
        if value.dtype != parameter.dtype:
            raise TypeError(
                f"{name}: expected dtype {parameter.dtype}, the kernel's, got {value.dtype}; use model.to({name}.dtype)"
            )
        if value.device != parameter.device:
            raise ValueError(f"{name}: expected device {parameter.device}, the kernel's, got {value.device}")


def _noise(model: Any) -> tuple[Tensor | None, Tensor | None]:
    """Read T of a homoskedastic likelihood, or what any other one adds to a prior of the training points' shape."""
    if isinstance(model.likelihood, gpytorch.likelihoods.GaussianLikelihood):
        return model.likelihood.noise.squeeze(-1), None
    prior = model.forward(*model.train_inputs)
    nothing = DiagLinearOperator(torch.zeros_like(prior.loc))
    dense = model.likelihood(type(prior)(prior.mean, nothing), *model.train_inputs).covariance_matrix
    diagonal = dense.diagonal(dim1=-2, dim2=-1)
    return None, diagonal if torch.equal(dense, torch.diag_embed(diagonal)) else dense


def check_affine(parts: ModelParts) -> None:
    """Raise unless the covariance of a few rows is affine in the renormalized kernel."""
    with torch.no_grad():
        zero, one, two = (parts.covariance(q, rows=4) for q in (0.0, 1.0, 2.0))
    if not torch.allclose(two - one, one - zero, rtol=1e-4, atol=1e-6 * float(one.abs().max())):
        raise ValueError(
            "model: expected a covariance that is affine in the renormalized kernel (sums, products with other "
            "kernels, ScaleKernel), got one that is not; does the same kernel occur twice?"
        )


def warn_if_not_identifiable(parts: ModelParts) -> None:
    """Warn where an overall scale trains beside the order parameters."""
    free = []
    if parts.kernel.raw_readout_variance.requires_grad:
        free.append("the kernel's readout variance")
    for module in parts.model.modules():
        if isinstance(module, ScaleKernel) and module.raw_outputscale.requires_grad:
            inside = any(m is parts.kernel for m in module.modules())
            if inside:
                free.append("an outputscale around the kernel")
    if free:
        warnings.warn(
            f"{' and '.join(free)} trains beside the order parameters, but only the product of both enters the data: "
            "trained together without a prior on the scale, q sits at one and the model is an infinitely wide network "
            "with a free scale. Fix it with requires_grad_(False) to read q as a prediction.",
            IdentifiabilityWarning,
            stacklevel=4,
        )
