"""The network of a command: its prior, given or fitted, and the width that is put in afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..models import NetworkGP
from ..tuning.auto import NetworkFit


@dataclass(frozen=True)
class Network:
    """A network's hyperparameters with its width and composition.

    Attributes:
        prior: Prior variances and temperature.
        width: N_1, ..., N_L.
        composition: Name of the composition.
    """

    prior: NetworkFit
    width: tuple[float, ...]
    composition: str = "outer"

    @property
    def temperature(self) -> float:
        """T, in standardized units."""
        return self.prior.temperature

    def at_temperature(self, temperature: float) -> Network:
        """Return the network with another T."""
        return replace(self, prior=replace(self.prior, temperature=temperature))

    def model(self, x: Tensor, y: Tensor) -> NetworkGP:
        """Return the process of the network on training data, in float64."""
        return self.prior.model(x, y, self.width, self.composition)

    def record(self, num_data: int) -> dict[str, Any]:
        """Return the numbers about the network."""
        return {
            "activation": repr(self.prior.activation),
            "width": list(self.width),
            "composition": self.composition,
            **hyperparameters(self.prior),
            "alpha": [num_data / width for width in self.width],
        }

    def describe(self, num_data: int) -> list[str]:
        """Return lines about the network for the reader."""
        layers, prior = len(self.width), self.prior
        alpha = [num_data / width for width in self.width]
        name = f"{prior.activation!r}, {layers} hidden layer{'s' * (layers > 1)} of width {listed(self.width)}"
        composition = f", composition {self.composition}" if layers > 1 else ""
        lines = [
            f"network: {name}, T = {prior.temperature:.4g}, alpha = P/N = {listed(alpha)}{composition}",
            f"  weight variance {listed(prior.weight_variance)}, bias variance {listed(prior.bias_variance)}",
        ]
        if prior.ard_weights is not None:
            lines.append(f"  relative variance of each input's weights (ARD): {listed(prior.ard_weights, 3)}")
        if prior.search is not None:
            subset = f"{prior.rows} random training rows" if prior.rows < num_data else "the training rows"
            lines += [
                f"  fitted by evidence at infinite width on {subset}, then frozen: {', '.join(prior.search.values)}",
                f"  log evidence {prior.search.log_evidence:.2f} (standardized targets); {prior.search.message}",
            ]
        return lines


def hyperparameters(prior: NetworkFit) -> dict[str, Any]:
    """Return temperature and prior variances as plain numbers."""
    return {
        "temperature": prior.temperature,
        "weight_variance": list(prior.weight_variance),
        "bias_variance": list(prior.bias_variance),
        "ard_weights": None if prior.ard_weights is None else list(prior.ard_weights),
    }


def listed(values: Sequence[float], digits: int = 4) -> str:
    """Return numbers separated by commas.

    Example:
        >>> listed((0.5, 100.0))
        '0.5, 100'
    """
    return ", ".join(f"{value:.{digits}g}" for value in values)


def hyperparameters_record(prior: NetworkFit) -> dict[str, Any] | None:
    """Return the numbers about the search by evidence; None if nothing was fitted."""
    search = prior.search
    if search is None:
        return None
    return {
        "values": {name: list(numbers) for name, numbers in search.values.items()},
        "log_evidence": search.log_evidence,
        "rows": prior.rows,
        "converged": search.converged,
        "message": search.message,
        "at_bound": list(search.at_bound),
    }
