"""Exact conditioning of a model on its training data at given order parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from linear_operator import to_dense
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from .._validation import check_inputs
from .model_parts import ModelParts, check_kind_of_kernel, take_apart


@contextmanager
def evaluating(model: Any) -> Iterator[ModelParts]:
    """Take a model apart in evaluation mode (where BoTorch models hold transformed inputs) and restore its mode."""
    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    try:
        yield take_apart(model)
    finally:
        if was_training:
            model.train()


@dataclass(frozen=True)
class Units:
    """Affine map from the model's targets to the user's: y = shift + scale * model's y."""

    shift: Tensor | float
    scale: Tensor | float

    @classmethod
    def of(cls, model: Any) -> Units:
        """Read a BoTorch ``Standardize`` outcome transform; the identity without one.

        Raises:
            ValueError: Another outcome transform, which has no variance in original units.
        """
        transform = getattr(model, "outcome_transform", None)
        if transform is None:
            return cls(0.0, 1.0)
        if not (hasattr(transform, "means") and hasattr(transform, "stdvs")):
            raise ValueError(
                f"outcome_transform: expected Standardize or None, got {type(transform).__name__}, in which squared "
                "errors have no closed form"
            )
        return cls(transform.means.squeeze(-1), transform.stdvs.squeeze(-1))


class Predictor:
    """Posterior of the latent function at fixed order parameters: one Cholesky factorization of A.

    Args:
        parts: The model's pieces.
        order_parameter: q, a number or ``*b x 1 x L``; the kernel's own if None.
        covariance: Training covariance at these order parameters if it is at hand; overwritten where no graph needs it.
    """

    def __init__(
        self, parts: ModelParts, order_parameter: float | Tensor | None = None, covariance: Tensor | None = None
    ) -> None:
        """Factor A = noise + K and whiten the residuals."""
        self.parts = parts
        self.order_parameter = parts.kernel.order_parameter if order_parameter is None else order_parameter
        if covariance is None:
            covariance = self._with_order_parameter(lambda: parts.covariance())
        covariance = self._add_noise(covariance)
        self.factor = psd_safe_cholesky(covariance)
        self.whitened = torch.linalg.solve_triangular(self.factor, parts.residuals().unsqueeze(-1), upper=False)

    def _with_order_parameter(self, function: Any) -> Any:
        with self.parts.kernel.assigned_order_parameter(self.order_parameter):
            return function()

    def _add_noise(self, covariance: Tensor) -> Tensor:
        parts = self.parts
        if parts.has_dense_noise():
            return covariance + parts.noise_covariance(covariance)
        noise = parts.noise_diagonal()
        if torch.is_grad_enabled() and (covariance.requires_grad or noise.requires_grad):
            return covariance + torch.diag_embed(noise.expand(covariance.shape[:-1]))
        covariance = covariance.expand(
            torch.broadcast_shapes(covariance.shape[:-1], noise.shape) + covariance.shape[-1:]
        )
        covariance = covariance.contiguous()
        covariance.diagonal(dim1=-2, dim2=-1).add_(noise)
        return covariance

    @property
    def weights(self) -> Tensor:
        """A^{-1} (y - mean), ``*b x P``."""
        return torch.linalg.solve_triangular(self.factor.transpose(-1, -2), self.whitened, upper=True).squeeze(-1)

    def inverse_diagonal(self, block: int = 512) -> Tensor:
        """Return the diagonal of A^{-1}, ``*b x P``, from column blocks of L^{-1}: P^3 / 3 multiplications."""
        size = self.factor.shape[-1]
        columns = []
        for start in range(0, size, block):
            corner = self.factor[..., start:, start:]
            unit = torch.eye(size - start, min(block, size - start), dtype=corner.dtype, device=corner.device)
            columns.append(
                torch.linalg.solve_triangular(corner, unit.expand(*corner.shape[:-2], *unit.shape), upper=False)
            )
        return torch.cat([c.square().sum(-2) for c in columns], -1)

    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, ``*b``.

        Raises:
            ValueError: Noise that is correlated between points.
        """
        if self.parts.has_dense_noise():
            raise ValueError("likelihood: expected noise that is independent between points, got a full covariance")
        noise = self.parts.noise_diagonal()
        bias = (noise * self.weights).square()
        variance = noise - noise.square() * self.inverse_diagonal()
        return (bias + variance).mean(-1)

    def blocks(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return prior mean at ``x``, covariance with the training points ``*b x P x m``, and prior variance.

        ``joint`` gives the prior covariance ``*b x m x m`` in place of the variance.
        """
        inputs = self.parts.inputs
        batch = torch.broadcast_shapes(inputs.shape[:-2], x.shape[:-2])
        joint_inputs = torch.cat([inputs.expand(*batch, *inputs.shape[-2:]), x.expand(*batch, *x.shape[-2:])], dim=-2)
        size = self.factor.shape[-1]

        def blocks() -> tuple[Tensor, Tensor, Tensor]:
            prior = self.parts.prior(joint_inputs)
            covariance = prior.lazy_covariance_matrix
            own = covariance[..., size:, size:]
            return (
                prior.loc[..., size:],
                to_dense(covariance[..., :size, size:]),
                to_dense(own) if joint else own.diagonal(dim1=-2, dim2=-1),
            )

        return self._with_order_parameter(blocks)

    def predict(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean ``*b x m`` and latent variance ``*b x m`` (or, joint, covariance ``*b x m x m``) at ``x``."""
        mean, cross, variance = self.blocks(x, joint)
        half = torch.linalg.solve_triangular(self.factor, cross, upper=False)
        mean = mean + (half.transpose(-1, -2) @ self.whitened).squeeze(-1)
        if joint:
            return mean, variance - half.transpose(-1, -2) @ half
        return mean, (variance - half.square().sum(-2)).clamp_min(0.0)

    def predict_in_chunks(self, x: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance at many points in bounded memory."""
        pieces = [self.predict(rows) for rows in x.split(chunk_size, dim=-2)]
        mean, variance = (torch.cat(columns, -1) for columns in zip(*pieces, strict=True))
        return mean, variance


def prepare_points(parts: ModelParts, x: Tensor) -> Tensor:
    """Check test inputs against the model and apply BoTorch's input transform."""
    check_inputs(x, "x")
    check_kind_of_kernel(parts.kernel, x=x)
    if x.shape[-1] != parts.inputs.shape[-1]:
        raise ValueError(f"x: expected {parts.inputs.shape[-1]} columns as in training, got {x.shape[-1]}")
    transform = getattr(parts.model, "transform_inputs", None)
    return x if transform is None else transform(x)
