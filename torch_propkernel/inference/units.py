"""The affine maps between a user's units and a model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import check_floating


@dataclass(frozen=True)
class Units:
    r"""The targets' units: y = shift + scale * (y of the model).

    Shapes: numbers, or tensors that broadcast against ``*b x m`` (a last dimension of one), so that each element of a
    batch, and each output of a BoTorch model, has its own.

    Attributes:
        shift: Of the model's zero.
        scale: Of the model's one, positive.

    Example:
        >>> units = Units(10.0, 2.0)
        >>> units.value(1.0), units.variance(1.0)
        (12.0, 4.0)
    """

    shift: Tensor | float = 0.0
    scale: Tensor | float = 1.0

    @classmethod
    def of(cls, model: Any) -> Units:
        """Read a BoTorch ``Standardize`` outcome transform; the identity without one.

        Raises:
            ValueError: Another outcome transform, which has no variance in original units.
        """
        transform = getattr(model, "outcome_transform", None)
        if transform is None:
            return cls()
        if not (hasattr(transform, "means") and hasattr(transform, "stdvs")):
            raise ValueError(
                f"outcome_transform: expected Standardize or None, got {type(transform).__name__}, in which squared "
                "errors have no closed form"
            )
        # *b x 1 x m for m outputs, which are the last batch dimension of a model with several: *b x m x 1.
        means, deviations = transform.means, transform.stdvs
        if means.shape[-1] == 1:
            return cls(means.squeeze(-1), deviations.squeeze(-1))
        return cls(means.transpose(-1, -2), deviations.transpose(-1, -2))

    def value(self, value: Any) -> Any:
        """Return values, means or quantiles in the user's units."""
        return self.shift + self.scale * value

    def to_model(self, value: Any) -> Any:
        """Return targets in the model's units."""
        return (value - self.shift) / self.scale

    def deviation(self, deviation: Any) -> Any:
        """Return differences or standard deviations in the user's units."""
        return self.scale * deviation

    def variance(self, variance: Any) -> Any:
        """Return squared errors or variances in the user's units."""
        return self.scale**2 * variance

    def log_density(self, log_density: Any) -> Any:
        """Return log densities of targets in the user's units."""
        return log_density - torch.as_tensor(self.scale).log()

    def mean_variance(self, variance: Tensor) -> Tensor:
        """Return averages over points of squared errors, ``*b``, in the user's units."""
        return self.variance(variance.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Normalization:
    r"""Means and scales of inputs and targets, kept beside a model so that it can be asked in the user's units.

    .. math:: x_\text{model} = (x - m_x) / s_x, \qquad y_\text{model} = (y - m_y) / s_y

    Shapes: of inputs ``d`` or a number, of targets a number, or ``D`` for targets ``P x D``.

    Args:
        input_mean: m_x.
        input_scale: s_x, positive.
        target_mean: m_y.
        target_scale: s_y, positive.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: A scale that is not positive and finite, a mean that is not finite.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([10.0, 30.0])
        >>> normalization = Normalization.of(x, y)
        >>> normalization.to_model(x).flatten().tolist(), normalization.targets.value(torch.ones(1)).tolist()
        ([-1.0, 1.0], [30.0])
    """

    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            good = torch.isfinite(check_floating(name, value)) & ((value > 0) | (not name.endswith("scale")))
            if not bool(good.all()):
                kind = "finite numbers > 0" if name.endswith("scale") else "finite numbers"
                raise ValueError(f"{name}: expected {kind}, got {value.tolist()}")

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Normalization:
        """Return means and standard deviations (of the rows given, not of a population behind them)."""
        return cls(x.mean(0), x.std(0, correction=0), y.mean(), y.std(correction=0))

    @classmethod
    def of_varying(cls, x: Tensor, y: Tensor, correction: int = 1) -> Normalization:
        """Return means and deviations of a population, with a scale of one where all rows are equal up to rounding."""
        scales = []
        for values in (x, y):
            scale = values.std(0, correction=correction)
            scales.append(torch.where(scale > 1e-12 * values.abs().amax(0), scale, torch.ones_like(scale)))
        return cls(x.mean(0), scales[0], y.mean(0), scales[1])

    @property
    def targets(self) -> Units:
        """The targets' units."""
        return Units(self.target_mean, self.target_scale)

    def to_model(self, x: Tensor) -> Tensor:
        """Return inputs in the model's units."""
        return (x - self.input_mean) / self.input_scale
