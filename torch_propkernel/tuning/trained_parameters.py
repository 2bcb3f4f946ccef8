"""The hyperparameters of a model under the names by which a fit trains them, each in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Raw parameters behind each name; of "scale" the first kind that a model has, since an outputscale and a readout
# variance inside of it are one product.
ROLES: dict[str, tuple[str, ...]] = {
    "temperature": ("raw_noise",),
    "bias_ratio": ("raw_bias_variance",),
    "weight_variance": ("raw_hidden_weight_variance",),
    "scale": ("raw_outputscale", "raw_readout_variance"),
    "ard": ("raw_ard_weights",),
    "lengthscale": ("raw_lengthscale",),
    "mean": ("raw_constant",),
    "deg_free": ("raw_deg_free",),
}
_BOXES = {
    "bias_ratio": (1e-4, 1e3),
    "weight_variance": (1e-4, 1e4),
    "scale": (1e-5, 1e5),
    "lengthscale": (1e-4, 1e4),
    "deg_free": (2.01, 1e4),
}
_MARGIN = 1e-3  # relative distance that a box keeps from a constraint, where the raw parameter is infinite


@dataclass(frozen=True)
class TrainedParameter:
    """One raw parameter of a module, its name in a fit, and its box.

    Attributes:
        name: A key of ``ROLES``.
        path: Dotted path of the raw parameter in the model.
        module: The module that owns it.
        low: Smallest raw values, flattened; minus infinity without a bound.
        high: Largest raw values, flattened.
    """

    name: str
    path: str
    module: Any
    low: Tensor
    high: Tensor

    @property
    def raw(self) -> Tensor:
        """The raw parameter."""
        return getattr(self.module, self.path.rpartition(".")[-1])

    @property
    def values(self) -> Tensor:
        """What a user reads, flattened: the constrained values; for "bias_ratio" b_l / w_l, zero without a bias."""
        value = getattr(self.module, self.path.rpartition(".")[-1].removeprefix("raw_"))
        return (value / self.module.hidden_weight_variance if self.name == "bias_ratio" else value).detach().flatten()

    def raw_of(self, value: Tensor) -> Tensor:
        """Return the raw values, flattened, of values in the user's units, clipped to the box."""
        if self.name == "bias_ratio":
            value = value * self.module.hidden_weight_variance.detach().flatten()
        constraint = self.module.constraint_for_parameter_name(self.path.rpartition(".")[-1])
        value = torch.minimum(value, constraint.upper_bound * (1.0 - _MARGIN))
        raw = constraint.inverse_transform(value.expand(self.raw.numel()).reshape(self.raw.shape)).flatten()
        return torch.minimum(torch.maximum(raw, self.low), self.high)

    def bounds_met(self) -> list[str]:
        """Return "lower" or "upper" for each end of the box at which an entry of the parameter is."""
        raw = self.raw.detach().flatten()
        return [
            end
            for end, bound in (("lower", self.low), ("upper", self.high))
            if bool((torch.isfinite(bound) & ((raw - bound).abs() <= 1e-6 * (1.0 + bound.abs()))).any())
        ]


def find_trained_parameters(
    model: torch.nn.Module, train: Sequence[str], temperature_bounds: tuple[float, float]
) -> list[TrainedParameter]:
    """Return the model's parameters behind the names, in that order.

    Raises:
        TypeError, ValueError: A name that is unknown, or that the model has no parameter for; "bias_ratio" is the
            exception: a network without biases has nothing to train there.
    """
    if isinstance(train, str):
        raise TypeError(f"train: expected a sequence of names such as ('temperature',), got {train!r}")
    if not train or len(set(train)) < len(train) or not set(train) <= set(ROLES):
        raise ValueError(f"train: expected different names among {list(ROLES)}, got {list(train)}")
    boxes = {**_BOXES, "temperature": temperature_bounds}
    found: list[TrainedParameter] = []
    for name in train:
        matches: list[TrainedParameter] = []
        for raw in ROLES[name]:
            matches = matches or [
                TrainedParameter(name, f"{prefix}.{raw}".lstrip("."), module, *_box(module, raw, name, boxes.get(name)))
                for prefix, module in model.named_modules()
                if raw in module._parameters and (name != "bias_ratio" or bool((module.bias_variance > 0).any()))
            ]
        if not matches and name != "bias_ratio":
            raise ValueError(f"train: expected a model with a parameter for {name!r} ({' or '.join(ROLES[name])})")
        found += matches
    if not found:
        raise ValueError(f"train: expected something to train, got {list(train)} for a network without biases")
    return found


def _box(module: Any, raw: str, name: str, box: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Raw ends of a box, flattened, kept inside of the parameter's constraint."""
    reference = getattr(module, raw).detach()
    if box is None:
        return tuple(torch.full_like(reference, end).flatten() for end in (-torch.inf, torch.inf))  # type: ignore[return-value]
    unit = module.hidden_weight_variance.detach() if name == "bias_ratio" else torch.ones_like(reference)
    constraint = module.constraint_for_parameter_name(raw)
    low = torch.maximum(box[0] * unit, constraint.lower_bound.to(reference) * (1.0 + _MARGIN))
    high = torch.minimum(box[1] * unit, constraint.upper_bound.to(reference) * (1.0 - _MARGIN))
    if not bool((low < high).all()):
        raise ValueError(
            f"{name}: expected a constraint that overlaps with {box[0]:.3g} to {box[1]:.3g}, got {constraint}"
        )
    return constraint.inverse_transform(low).flatten(), constraint.inverse_transform(high).flatten()
