"""The affine maps between a user's units and a model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import check_floating


@dataclass(frozen=True, eq=False)
class Normalization:
    r"""Means and scales of inputs and targets, kept beside a model so that it can be asked in the user's units.

    .. math:: x_\text{model} = (x - m_x) / s_x, \qquad y_\text{model} = (y - m_y) / s_y

    Shapes: of inputs ``d`` or a number, of targets a number.

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
        >>> units = Normalization.of(x, y)
        >>> units.to_model(x).flatten().tolist(), units.mean_of_targets(torch.ones(1)).tolist()
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

    def to_model(self, x: Tensor) -> Tensor:
        """Return inputs in the model's units."""
        return (x - self.input_mean) / self.input_scale

    def targets_to_model(self, y: Tensor) -> Tensor:
        """Return targets in the model's units."""
        return (y - self.target_mean) / self.target_scale

    def mean_of_targets(self, mean: Tensor) -> Tensor:
        """Return means or quantiles of targets in the user's units."""
        return self.target_mean + self.target_scale * mean

    def deviation_of_targets(self, deviation: Tensor) -> Tensor:
        """Return standard deviations of targets in the user's units."""
        return self.target_scale * deviation
