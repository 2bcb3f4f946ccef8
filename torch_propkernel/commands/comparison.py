"""Theories of one problem beside each other on held-out rows, and which of them to use."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._validation import present
from ..distributions import ScaleMixtureMultivariateNormal
from ..inference import ErrorEstimate
from ..theories import FittedTheory

SIMPLEST_FIRST = ("infinite_width", "free_scale", "saddle", "mixture", "adaptive", "sampled")
_CHUNK = 1000


@dataclass(frozen=True)
class Compared:
    """What one theory reaches on held-out rows, in the target's units.

    Attributes:
        theory: Its name.
        rmse: Root of the mean squared error of the posterior mean.
        r2: Share of the held-out targets' variance that the mean explains; NaN if they are all equal.
        nlpd: Mean over rows of -log p(y), for targets with noise.
        coverage_95: Share of targets between the quantiles at 2.5 and 97.5 % of the predictive with noise.
        seconds: Time to fit and to predict, beyond the kernel matrix and its reduction, which all theories share.
        recommended: Whether it is the one to use, by the held-out rows.
        chosen: Whether it was chosen from the training rows alone; never, where a theory was named.
    """

    theory: str
    rmse: float
    r2: float
    nlpd: float
    coverage_95: float
    seconds: float
    recommended: bool
    chosen: bool = False


@contextmanager
def timed(seconds: dict[str, float], theory: str) -> Iterator[None]:
    """Add the time of a block to a theory's.

    Example:
        >>> seconds = {}
        >>> with timed(seconds, "saddle"):
        ...     pass
        >>> 0.0 <= seconds["saddle"] < 1.0
        True
    """
    begun = time.perf_counter()
    yield
    seconds[theory] = seconds.get(theory, 0.0) + time.perf_counter() - begun


def compare(
    errors: Mapping[str, ErrorEstimate],
    y: Tensor,
    coverage: Mapping[str, float],
    seconds: Mapping[str, float],
    chosen: str | None = None,
) -> tuple[Compared, ...]:
    """Return the scores of all theories on the same rows.

    Args:
        errors: Of each theory, by name, in the target's units.
        y: Held-out targets.
        coverage: Of each theory.
        seconds: Of each theory.
        chosen: Name of the one that was chosen from the training rows alone.
    """
    losses = {name: -present(error.log_density, "log_density") for name, error in errors.items()}
    recommended = recommend(losses, chosen)
    spread = float((y - y.mean()).square().sum())
    rows = []
    for name, error in errors.items():
        rows.append(
            Compared(
                name,
                math.sqrt(float(error.mean_bias)),
                1.0 - float(error.bias.sum()) / spread if spread > 0 else math.nan,
                float(losses[name].mean()),
                coverage[name],
                seconds[name],
                name == recommended,
                name == chosen,
            )
        )
    return tuple(rows)


@torch.no_grad()
def coverage_95(fitted: FittedTheory, x: Tensor, y: Tensor) -> float:
    """Return the share of targets between the quantiles at 2.5 and 97.5 % of the predictive with noise.

    Args:
        fitted: The theory.
        x: Inputs, ``m x d``.
        y: Targets in the model's units, ``m``.
    """
    inside = []
    for rows, targets in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
        law = as_mixture(fitted.distribution(rows)).add_noise(fitted.problem.noise_diagonal())
        level = law.cdf(targets)
        inside.append((level >= 0.025) & (level <= 0.975))
    return float(torch.cat(inside).double().mean())


def as_mixture(law: Any) -> ScaleMixtureMultivariateNormal:
    """Return the marginals of a predictive; a normal is a mixture of one component.

    Example:
        >>> from gpytorch.distributions import MultivariateNormal
        >>> round(as_mixture(MultivariateNormal(torch.zeros(1), torch.eye(1))).icdf(0.975).item(), 4)
        1.96
    """
    if isinstance(law, ScaleMixtureMultivariateNormal):
        return law
    one = law.mean.new_zeros(1)
    return ScaleMixtureMultivariateNormal(one, law.mean.unsqueeze(0), variance=law.variance.unsqueeze(0))


def recommend(losses: Mapping[str, Tensor], chosen: str | None = None) -> str:
    """Return the simplest theory that is within two standard errors of the best, and that no simpler one beats.

    The one that was chosen from other rows comes first: it is recommended where it is within two standard errors.

    Losses are compared by their means, standard errors are those of differences paired over rows.

    Args:
        losses: -log p(y) at each row, by the name of the theory.
        chosen: The theory that was chosen from other rows, if one was.

    Example:
        >>> import torch
        >>> worse = torch.tensor([1.0, 1.2, 1.1, 1.1])
        >>> recommend({"infinite_width": worse, "saddle": worse - 0.5}), recommend({"mixture": worse, "saddle": worse})
        ('saddle', 'saddle')
    """
    names = sorted(losses, key=lambda name: SIMPLEST_FIRST.index(name) if name in SIMPLEST_FIRST else 3.5)
    means = [float(losses[name].mean()) for name in names]
    best = losses[names[means.index(min(means))]]
    for index, name in enumerate(names):
        gap = losses[name] - best
        near = len(gap) < 2 or means[index] - min(means) <= 2.0 * float(gap.std()) / math.sqrt(len(gap))
        simplest = chosen is None and means[index] == min(means[: index + 1])
        if near and (simplest or name == chosen):
            return name
    if chosen is not None:
        return recommend(losses)
    raise ValueError("losses: expected numbers, got NaN")
