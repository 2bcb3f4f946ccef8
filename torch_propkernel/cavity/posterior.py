"""What a solved cavity theory says: predictions, points left out, evidence, and what the units have learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .one_unit import NUM_BINS, RARE, OneUnit, Tilt, bin_factor, bin_terms, weighted_gram
from .population import Pool, effective_share
from .self_consistency import Solution
from .solver import Anneal

_CHUNK = 4_000_000  # features at a time
_COVERED = 0.25  # effective share of the units under the prior


class LeftOut(NamedTuple):
    """Each training point given the others, ``P`` each.

    Attributes:
        mean: Posterior mean of f.
        variance: Posterior variance of f.
        effective_share: Effective share of the re-weighted units.
    """

    mean: Tensor
    variance: Tensor
    effective_share: Tensor


class CavityPosterior:
    """The solution as a process: weighted units in the field (a, B), conditioned on the data.

    f is the network's whole output, with the bias of its readout where there is one.

    Args:
        unit: The unit, as :func:`anneal` took it.
        targets: y, ``P``.
        solved: What :func:`anneal` returned.
        seed: Of the weights orthogonal to the training inputs, drawn anew and alike in every prediction.

    Reference: THEORY.md, eqs. (15) to (17).

    Example:
        >>> import torch
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.cavity import CavityPosterior, OneUnit, anneal
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        >>> unit, prior = OneUnit(Identity(), x, width=50.0, precision=1.0), x @ x.mT / 50.0
        >>> options = {"num_units": 200, "generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
        >>> solved = anneal(unit, prior, y, 0.5, tolerance=1.0, **options)
        >>> posterior = CavityPosterior(unit, y, solved, seed=0)
        >>> mean, variance = posterior.predict(x, None, prior, prior.diagonal(), joint=False)
        >>> bool((mean - 2 / 3).abs().max() < 0.02), bool((variance - 1 / 3).abs().max() < 0.02)   # near N = inf
        (True, True)
    """

    def __init__(self, unit: OneUnit, targets: Tensor, solved: Anneal, seed: int) -> None:
        """Keep the units without their features."""
        self.scale, self.unit, self.targets, self.seed = solved.scale, unit.scaled(solved.scale), targets, seed
        self.solution: Solution = solved.solution
        self.weights = torch.cat([generation.weights for generation in solved.generations])
        self.log_base = torch.cat([generation.log_base for generation in solved.generations])
        features = Pool.of(solved.generations).features
        share, tilt = self.solution.response.weights, self.solution.response.tilt
        self._bins = bin_factor(unit, features, tilt, share)
        self._chance, _, self._first = bin_terms(tilt, share)
        self._prior_share = Pool(features[:, :0], self.log_base).prior_weights()[0]

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict(
        self, inside: Tensor, outside: Tensor | None, cross: Tensor, own: Tensor, joint: bool
    ) -> tuple[Tensor, Tensor]:
        r"""Return mean ``m`` and variance ``m`` (joint: covariance ``m x m``) of f at new points.

        .. math:: E f = N m_*, \qquad \mathrm{Cov} f = N [V_{**} - V_{*X} G V_{X*}], \qquad
                  G = (N - 1) B (1 - V B)^{-1}

        The same numbers as N C_** - N^2 C_*X A^{-1} C_X*, without its cancellation. A bias adds the terms of its own
        covariance :math:`v_b` with A^{-1}, and its covariance with the units, :math:`-v_b N V_{*X} B 1`.

        Args:
            inside: Coordinates of the points in the row space (and the bias column), ``m x k``.
            outside: What the row space lacks of them, ``m x d``, with prior scales multiplied in; None if nothing. Its
                weights keep their prior.
            cross: Prior covariance of f of one unit with the training points, ``P x m``, as ``prior`` of
                :func:`anneal`.
            own: Prior variance of f of one unit at the points, ``m`` (joint: covariance ``m x m``).
            joint: Return the covariance.
        """
        unit, solution = self.unit, self.solution
        size, width = len(inside), unit.width
        cross, own = self.scale * unit.noise.whiten(cross.mT).mT, self.scale * own
        weights, tilt = solution.response.weights, solution.response.tilt
        first = weights * tilt.mean / math.sqrt(width)
        second = weights * tilt.second_moment / width
        known = self._prior_share / (unit.precision * width)
        scale = torch.where(self._chance > RARE, (width * self._chance.clamp_min(RARE)).rsqrt(), 0.0)
        binned = (weights.unsqueeze(-1) * self._first) * scale
        rho = solution.rho
        mean, bins = inside.new_zeros(size), inside.new_zeros(NUM_BINS + 1, size)
        shared, variance = inside.new_zeros(len(self.targets), size), torch.zeros_like(own)
        for rows, seen, new in self._chunks(inside, outside):
            moment = second[rows] - rho * known[rows]  # of units, less the prior's part, which is known exactly
            mean = mean + first[rows] @ new
            bins = bins + binned[rows].mT @ new
            shared = shared + seen.mT @ (moment.unsqueeze(-1) * new)
            variance = variance + ((new.mT * moment) @ new if joint else moment @ new.square())
            mean = mean - rho * known[rows] @ ((seen @ solution.response.field).unsqueeze(-1) * new)
        mean = mean + rho * (solution.response.field @ cross)
        shared = shared + rho * cross - self._bins.mT @ bins
        variance = variance + rho * own - (bins.mT @ bins if joint else bins.square().sum(0))
        closure, bias = solution.posterior, unit.noise.bias_variance
        rotated = closure.vectors.mT @ shared
        taken = closure.conditioning_values.unsqueeze(-1) * rotated
        mean = width * mean + bias * solution.residuals().sum()
        ones = bias / unit.noise.stretch * closure.vectors.sum(0)  # of the bias with the whitened data
        both = width * rotated.mT @ (closure.field * ones)
        own_bias = bias - (ones.square() / closure.total_values).sum()
        if joint:
            covariance = width * (variance - rotated.mT @ taken)
            return mean, covariance - both - both.unsqueeze(-1) + own_bias
        return mean, (width * (variance - (rotated * taken).sum(0)) - 2.0 * both + own_bias).clamp_min(0.0)

    def _chunks(self, inside: Tensor, outside: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows of units with their features at the training points and at new points, in float64."""
        generator = torch.Generator(device=self.weights.device).manual_seed(self.seed)
        size = max(1, _CHUNK // (len(inside) + len(self.targets)))
        for start in range(0, len(self.weights), size):
            rows = slice(start, min(start + size, len(self.weights)))
            weights = self.weights[rows].to(inside.dtype)
            hidden = weights @ inside.mT
            if outside is not None:
                shape = (len(weights), outside.shape[-1])
                drawn = torch.randn(shape, generator=generator, dtype=inside.dtype, device=inside.device)
                hidden = hidden + drawn @ outside.mT
            yield rows, self.unit.features(weights), self.unit.activation(hidden)

    # Training data --------------------------------------------------------------------------------------------------

    def log_evidence(self) -> float:
        r"""Return log p(y).

        .. math:: \log N(y; N \bar\mu, A) + N [\log Z_1 - \log Z_G]

        Z_G is Z_1 of a Gaussian unit with mean mu_bar = m - C (a - B m) and covariance C. log Z_1 is enlarged by N: as
        long as the units cover the prior it is read off them, 1 / Z_1 = E exp(-log weight), so that its noise is the
        one that Z_G and the correction share; else it is that of the anneal. All of it is of whitened targets, whose
        density is rho times that of y.
        """
        field, response, width = self.solution.field, self.solution.response, self.unit.width
        total, b, c = field.total_values, field.field, field.covariance_values
        left = field.vectors.mT @ self.unit.noise.restore(self.solution.residuals())
        gaussian = -math.log(self.unit.noise.stretch) - 0.5 * float(
            (total.log() + total * left.square() + math.log(2.0 * math.pi)).sum()
        )
        a = field.vectors.mT @ response.field
        center = field.vectors.mT @ response.mean - c * left
        d = 1.0 + c * b
        unit = -0.5 * d.log() + (0.5 * c * a.square() + a * center - 0.5 * center.square() * b) / d
        log_normalizer = response.log_normalizer
        if effective_share(self._prior_share) > _COVERED:
            log_normalizer = -float(torch.logsumexp(response.weights.log() - response.tilt.log_weight, 0))
            correction = self.solution.correction
            log_normalizer += 0.5 * float(response.field @ (correction @ response.field))
            log_normalizer -= 0.5 * float((field.precision() * correction).sum())
        return gaussian + width * (log_normalizer - float(unit.sum()))

    def order_parameter(self) -> float:
        """Return lambda E v^2."""
        response = self.solution.response
        return self.unit.precision * float((response.weights * response.tilt.second_moment).sum())

    def divergence(self) -> float:
        """Return the Kullback-Leibler divergence of a unit (w, v) from its prior, in nats."""
        response = self.solution.response
        tilt = response.tilt
        pull = tilt.mean / tilt.variance
        strength = 1.0 / tilt.variance - self.unit.precision
        energy = pull * tilt.mean - 0.5 * strength * tilt.second_moment
        total = Pool(self.weights[:, :0], self.log_base).normalized(tilt)[1]
        return float((response.weights * energy).sum()) - total

    def input_moment(self) -> Tensor:
        """Return E w w^T over the units, ``k x k``; the identity under the prior."""
        return weighted_gram(self.weights, self.solution.response.weights)

    def leave_one_out(self) -> LeftOut:
        r"""Return every training point given the others, from re-weighted units and a Newton step in a.

        Without point i, at the same C, the field is that of the Schur complement:

        .. math:: g^{-i} = g - \frac{(B \varphi)_i^2}{N B_{ii}}, \qquad
                  b^{-i} = b - \frac{(B \varphi)_i\, a_i}{\sqrt N B_{ii}}

        All tilts are re-weighted with these, a^{-i} is corrected by one Newton step of its own equation, and the units
        are re-weighted once more. The variance is that of a fixed C times the ratio of re-weighted to full second
        moments of phi_i - beta phi_{-i}, beta the weights that predict f_i from the others: the error in beta enters
        to second order. Not followed is the change of C. A bias is not whitened away here, where points are told apart:
        T in (14) is the noise's whole covariance, and given the units' new means the bias follows from the other
        targets. Cost: M P^2 + P^3.

        Reference: THEORY.md, eq. (16).
        """
        unit, solution, width, noise = self.unit, self.solution, self.unit.width, self.unit.noise
        field, posterior, response = solution.field, solution.posterior, solution.response
        size, root, temperature = len(self.targets), math.sqrt(width), field.temperature
        step = max(1, len(self.weights) * size // _CHUNK)
        phi = noise.restore(unit.features(self.weights[::step].double()))
        share = response.weights[::step] / response.weights[::step].sum()
        tilt = Tilt(*(value[::step] for value in response.tilt))
        strength, pull = 1.0 / tilt.variance - unit.precision, tilt.mean / tilt.variance
        solved, correction = noise.restore(response.mean), noise.restore_both(solution.correction)
        missing = (solved - (share * tilt.mean) @ phi / root).unsqueeze(-1)  # by the step through the units

        def precision_matrix(factors: Tensor) -> Tensor:
            return noise.whiten_both(field.matrix(factors))

        def with_noise(columns: Tensor) -> Tensor:
            return temperature * columns + noise.bias_variance * columns.sum(0)

        a, precision = noise.whiten(response.field), precision_matrix(field.field)
        diagonal = precision.diagonal()
        pressed = phi @ precision
        strength = strength.unsqueeze(-1) - pressed.square() / (width * diagonal)
        pull = pull.unsqueeze(-1) - pressed * (a / (root * diagonal))

        def retilted(pull: Tensor) -> tuple[Tensor, Tilt]:
            there = unit.tilt(strength, pull)
            log_weights = share.log().unsqueeze(-1) + there.log_weight - tilt.log_weight.unsqueeze(-1)
            return torch.softmax(log_weights, 0), there

        # One column for each point left out.
        weights, there = retilted(pull)
        vectors = a.unsqueeze(-1) - precision * (a / diagonal)
        mean = phi.mT @ (weights * there.mean) / root + missing + correction @ (vectors - a.unsqueeze(-1))
        unmet = self.targets.unsqueeze(-1) - with_noise(vectors)
        unmet.fill_diagonal_(0.0)
        factors = field.response_values
        side = precision_matrix(field.field * factors)
        middle = precision_matrix(field.field.square() * factors).diagonal()
        gradient = noise.restore(field.apply(factors, noise.whiten(unmet.mT).mT).mT).mT
        gradient = gradient - with_noise(side) * ((side * unmet).sum(0) / (diagonal + temperature * middle))
        gradient = gradient - mean
        gradient.fill_diagonal_(0.0)
        second = noise.restore_both(solution.moments.second + field.matrix(temperature * factors))
        inverse = torch.linalg.inv(second - torch.outer(solved, solved))
        change = inverse @ gradient
        change = change - inverse * (change.diagonal() / inverse.diagonal())
        weights, there = retilted(pull + phi @ change / root)

        moved, shift = weights * there.mean, vectors + change - a.unsqueeze(-1)
        own = (moved * phi).sum(0) / root + missing.squeeze(-1) + (correction * shift).sum(0)
        others = phi.sum(-1) @ moved / root + missing.sum() + correction.sum(0) @ shift - own
        total = temperature + noise.bias_variance * (size - 1)
        bias = noise.bias_variance / total * (self.targets.sum() - self.targets - width * others)

        inverse = noise.whiten_both(posterior.matrix(1.0 / posterior.total_values))
        residual = inverse / inverse.diagonal()  # columns: phi_i less its prediction from the others
        away = phi @ residual
        square = away.square()
        ridge = posterior.matrix(temperature / (width - 1.0) * (1.0 - posterior.values * posterior.field))
        fixed = (correction @ residual * residual).sum(0)
        beta = torch.eye(size, dtype=residual.dtype, device=residual.device) - residual
        for columns, sign in ((beta, 1.0), (noise.restore(residual.mT).mT, 1.0), (residual, -1.0)):  # noise and bias
            fixed = fixed + sign * (ridge @ columns * columns).sum(0)
        _, mass, first = bin_terms(tilt, share)

        def left(weights: Tensor, moment: Tensor) -> Tensor:  # the law of v in its bins is that of all points
            known = (mass.mT @ weights).clamp_min(RARE)
            binned = first.mT @ (weights * away)
            return ((weights * moment * square).sum(0) - (binned.square() / known).sum(0)) / width + fixed

        before = left(share.unsqueeze(-1).expand_as(away), tilt.second_moment.unsqueeze(-1))
        ratio = (left(weights, there.second_moment) / before).clamp_min(0.0)
        effective = 1.0 / (weights.square().sum(0) * len(weights)) / effective_share(share)
        return LeftOut(width * own + bias, solution.left_out_variance() * ratio, effective)
