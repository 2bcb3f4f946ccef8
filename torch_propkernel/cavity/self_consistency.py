"""A field and the moments of the weighted units in it, which determine each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .closure import Closure
from .one_unit import Moments, OneUnit, moments
from .population import Pool
from .response import Response, solve_response
from .shared_noise import SharedNoise


class Solution(NamedTuple):
    """A self-consistent field, and the moments of the weighted units in it.

    Attributes:
        field: B and C of the field in which the units are.
        posterior: Those of the units' own V in this field, which differ by ``change``.
        response: a, and the units' weights.
        moments: m, E2 and V over the units.
        change: Relative difference of V between the last two iterations at fixed units.
        rho: Coefficient of the control variate, see :meth:`Pool.control`.
        correction: Delta, which is part of the moments, ``P x P``.
        noise: In whose coordinates all of these are; the methods return what is true of the points themselves.
    """

    field: Closure
    posterior: Closure
    response: Response
    moments: Moments
    change: float
    rho: float
    correction: Tensor
    noise: SharedNoise

    def left_out_variance(self) -> Tensor:
        """Return the variance of f at each training point given the others at a fixed C, ``P``."""
        return 1.0 / self.precision_diagonal() - self.posterior.temperature

    def precision_diagonal(self) -> Tensor:
        """Return the diagonal of A^{-1}, ``P``."""
        vectors = self.noise.whiten(self.posterior.vectors.mT).mT
        return vectors.square() @ (1.0 / self.posterior.total_values)

    def residuals(self) -> Tensor:
        """Return A^{-1} (y - N mu) = a - B m, which is (y - E f) / T, ``P``."""
        return self.noise.whiten(self.response.field - self.field.apply(self.field.field, self.response.mean))

    def training_variance(self) -> Tensor:
        """Return the variance of f at the training points, ``P``."""
        temperature = self.posterior.temperature
        return temperature - temperature**2 * self.precision_diagonal()

    def training_error(self) -> Tensor:
        """Return E (y - f)^2 averaged over the training points."""
        return ((self.field.temperature * self.residuals()).square() + self.training_variance()).mean()

    def observable(self) -> float:
        """Return the mean squared error of a point given the others at a fixed C: its noise is that of predictions."""
        away = self.residuals() / self.precision_diagonal()
        return float((away.square() + self.left_out_variance()).mean())


def self_consistent(
    unit: OneUnit,
    pool: Pool,
    prior: Tensor,
    targets: Tensor,
    start: Closure,
    vector: Tensor,
    *,
    full: bool = False,
    iterations: int = 2,
    tolerance: float = 1e-3,
) -> Solution:
    """Iterate closure and response a few times at fixed units, from a start nearby.

    Not more than a few times: a field far from that in which the units were drawn leaves few of them.

    Args:
        unit: The unit.
        pool: Weighted units.
        prior: Covariance of f of one unit under the prior, ``P x P``, whitened by the unit's noise.
        targets: y, whitened likewise.
        start: A closure, whose temperature is kept.
        vector: First a.
        full: Close with E2 - m m^T, the whole covariance, instead of that given ``|v|``.
        iterations: At most so many.
        tolerance: Of the relative change of V.

    Reference: THEORY.md, eqs. (13) and (14).

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.cavity import Closure, OneUnit, self_consistent
        >>> from torch_propkernel.cavity.population import Mover, Pool
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        >>> unit, prior = OneUnit(Identity(), x, width=50.0, precision=1.0), x @ x.mT / 50.0
        >>> drawn = Mover(unit, torch.float64, torch.Generator().manual_seed(0)).draw(5000)   # from the prior
        >>> solution = self_consistent(unit, Pool.of([drawn]), prior, y, Closure.of(prior, 0.5, 50.0), 0 * y)
        >>> solution.change < 0.01, bool((0.5 * solution.residuals() - 1 / 3).abs().max() < 0.02)   # y - f
        (True, True)
    """
    closure, posterior = start, start
    size = torch.linalg.norm(start.values)
    strength = unit.strength(pool.features, closure.precision())
    response = solve_response(unit, pool, closure, targets, strength, vector)
    vector = response.field
    rho = pool.control(unit, strength, response.weights * response.tilt.second_moment)
    correction = pool.correction(unit, prior, rho)
    for iteration in range(iterations + 1):
        response = solve_response(unit, pool, closure, targets, strength, vector, correction, tolerance=1e-4)
        vector = response.field
        found = moments(unit, pool.features, response.tilt, response.weights)
        found = found._replace(mean=response.mean, second=found.second + correction)
        conditional = found.conditional + correction
        if full:
            conditional = found.second - torch.outer(found.mean, found.mean)
        found = found._replace(conditional=conditional)
        posterior = Closure.of(conditional, closure.temperature, closure.width)
        change = float(torch.linalg.norm(conditional - closure.matrix(closure.values)) / size)
        if change < tolerance or iteration == iterations:
            break
        closure = posterior
        strength = unit.strength(pool.features, closure.precision())
    return Solution(closure, posterior, response, found, change, rho, correction, unit.noise)
