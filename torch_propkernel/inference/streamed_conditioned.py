"""Gaussian processes conditioned on their data by conjugate gradients, which share the products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._memory import check_memory
from ..exceptions import ConvergenceError
from ..numerics.autocast import outside_autocast
from ..spectra import CGSolution, CGState, Spectrum, conjugate_gradients
from .conditioned import _LOG_TWO_PI, Conditioned, left_out, without_negative_variances
from .error_estimate import ErrorEstimate
from .host_evaluation import diagonal_of, to_dense
from .streaming import VECTORS

if TYPE_CHECKING:
    from .streamed import StreamedProblem


class _Columns(NamedTuple):
    """Right-hand sides b of one scale, ``P x c``, their first x if there is one, and the stopping rule.

    Of several processes each has its own rows of b and x.
    """

    scale: float
    b: Tensor
    is_accurate: Callable[[CGState, Tensor], Tensor]
    start: Tensor | None = None


class StreamedConditioned(Conditioned):
    r"""Processes with A = T + r K at n scales r, of which only products with K are known.

    Means need :math:`A^{-1} y`, which the Lanczos run of the targets, where there was one, gives for every r and T;
    conjugate gradients go on from there where its residual is too large. A variance, and an error of a point that is
    left out, is one more right-hand side for each scale:

    .. math:: \sigma^2 = r k_{**} - b^T A^{-1} b, \quad b = r k_*, \qquad [A^{-1}]_{ii} = e_i^T A^{-1} e_i

    All scales are columns of the same products with K, also those of several posteriors of one problem whose errors are
    asked for together, as a theory's and those of infinite width are: forming the tiles of K is what a product with few
    columns costs.
    The iteration ends where a bound of their error (:class:`LowRank`) is below ``variance_tolerance`` of the variance
    (but not below a hundredth of that of the noise). Variances err upward by less than that. All numbers are float64,
    results in the dtype of the data. Leave-one-out errors are those of ``num_left_out`` points drawn at random, the
    same for all scales, so that averages over them have the standard error of a sample. :meth:`training_error` has the
    trace of :math:`A^{-1}` from the reduction, with its statistical error.

    Cost: means of m points m P entries of the kernel; variances a pass over the kernel matrix for each step of each
    block of ``num_columns`` columns, a point at a scale each, and 2 P^2 flops a column and step. With few columns the
    passes dominate, with more than some 300 the flops. :meth:`mean` leaves the variances out.

    Args:
        problem: What is conditioned.
        scale: r, one number or n of them.
        log_weights: Normalized log weights of the n processes, ``n``; None for one process.

    Attributes:
        scales: The n numbers r.

    Reference: THEORY.md, eq. (4) and section 1; Hestenes & Stiefel (1952).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import StreamedProblem, Streaming
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> kernel = RenormalizedNNGPKernel("identity", width=4)
        >>> model = NetworkGP(x, x[0], gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
        >>> model.likelihood.noise = 1.0
        >>> posterior = StreamedProblem.of_streamed(model).at(3.0)   # r k = 1
        >>> [round(v.item(), 9) for v in (*posterior.predict(x[:1]), posterior.mean(x[:1]))]
        [0.5, 0.5, 0.5]
    """

    problem: StreamedProblem

    def __init__(
        self, problem: StreamedProblem, scale: float | Sequence[float], log_weights: Tensor | None = None
    ) -> None:
        """Store the scales."""
        super().__init__(problem, log_weights)
        self.scales = tuple(map(float, scale)) if isinstance(scale, Sequence) else (float(scale),)
        self.temperature = float(problem.scale_temperature())

    @property
    def _how(self) -> str:
        tolerance = self.problem.streaming.variance_tolerance
        return f"Streamed: the kernel matrix was not held; variances were solved to {tolerance:.1g} of their size."

    @property
    def _num_points(self) -> int:
        """Points that are solved for at a time, a column each at every scale."""
        return max(1, self.problem.streaming.num_columns(self.problem.num_data) // len(self.scales))

    # Solves -------------------------------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> Tensor:
        """The solutions A^{-1} (y - m), ``P x n``."""
        self._solve([])
        return torch.stack([self.problem.solved_targets[scale] for scale in self.scales], -1)

    def _solve(self, wanted: list[_Columns]) -> list[CGSolution]:
        """Solve for all columns at once, and with them for the targets at the scales where that was not done."""
        problem, noise, targets = self.problem, self.temperature, self._unsolved_targets()
        operator = problem.operator
        whole = [*wanted, *targets]
        if not whole:
            return []
        scale = torch.cat([each.b.new_full((each.b.shape[1],), each.scale) for each in whole])
        ends = torch.tensor([each.b.shape[1] for each in whole]).cumsum(0).tolist()
        bounds = list(zip([0, *ends[:-1]], ends, strict=True))

        def is_accurate(state: CGState, columns: Tensor) -> Tensor:
            accurate = torch.zeros_like(columns, dtype=torch.bool)
            for each, (first, end) in zip(whole, bounds, strict=True):
                found = each.is_accurate(state, (columns - first).clamp(0, end - first - 1))
                accurate = torch.where((columns >= first) & (columns < end), found, accurate)
            return accurate

        start = None
        if any(each.start is not None for each in whole):
            start = torch.cat([torch.zeros_like(e.b) if e.start is None else e.start for e in whole], -1)
        limit, part = problem.streaming.max_solver_steps, problem.preconditioner
        products = problem.watched_products(0, limit + 1)
        solution = conjugate_gradients(
            lambda v, columns: noise * v + scale[columns] * products(v),
            torch.cat([each.b for each in whole], -1),
            precondition=lambda v, columns: part.solve(v, scale[columns], noise, operator.total),
            is_accurate=is_accurate,
            max_steps=limit,
            start=start,
            total=operator.total,
        )
        if not bool(solution.converged.all()):
            raise ConvergenceError(
                f"conjugate gradients: expected {len(scale)} columns to converge in {limit} steps, "
                f"{int((~solution.converged).sum())} did not, with residuals up to "
                f"{float(solution.state.residual.max()):.2g}; use a larger rank or max_solver_steps in Streaming, or a "
                "larger temperature"
            )
        found = [solution.of(slice(*pair)) for pair in bounds]
        for each, one in zip(targets, found[len(wanted) :], strict=True):
            problem.solved_targets[each.scale] = operator.gathered(one.x).squeeze(-1).clone()
        return found[: len(wanted)]

    def _unsolved_targets(self) -> list[_Columns]:
        """Return the targets at each scale where no Lanczos run solves for them; keep what it does solve."""
        problem, left = self.problem, []
        limit, known = problem.streaming.residual, problem.solved_targets
        y = problem.residuals().double().unsqueeze(-1)[problem.operator.own_rows]
        for scale in dict.fromkeys(self.scales):
            if scale in known:
                continue
            start = None
            if "lanczos" in problem.__dict__ and problem.lanczos.run.basis:  # a mean alone is not worth its probes
                found, residual = problem.lanczos.solve_targets(scale, self.temperature)
                start = found.unsqueeze(-1)
                if residual <= limit:
                    known[scale] = problem.operator.gathered(start).squeeze(-1)
                    continue
            left.append(_Columns(scale, y, lambda state, _: state.residual <= limit, start))
        return left

    # At test points ------------------------------------------------------------------------------------------------

    @outside_autocast
    def mean(self, x: Tensor) -> Tensor:
        """Return the posterior mean at prepared points ``m x d``, ``m``, without the cost of variances."""
        mean = self.problem.mean(x).double() + self._moved(x).T
        if self.log_weights is None:
            return mean.squeeze(0).to(x.dtype)
        return (self.log_weights.exp() @ mean).to(x.dtype)

    def _moved(self, x: Tensor) -> Tensor:
        """Return r k_*^T A^{-1} (y - m), ``m x n``."""
        weights = self.weights
        return self.problem.operator.cross_matmul(x, weights) * weights.new_tensor(self.scales)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``n x m`` and variances ``n x m`` (joint: covariances ``n x m x m``)."""
        if joint:
            mean, spread = self._moments(x, joint=True)
        else:
            parts = [self._moments(rows, joint=False) for rows in x.split(self._num_points)]
            mean, spread = (torch.cat(pieces, -1) for pieces in zip(*parts, strict=True))
        return mean.to(x.dtype), spread.to(x.dtype)

    def _moments(self, x: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        problem = self.problem
        if joint and len(x) > self._num_points:
            what = f"a covariance of {len(x)} points, streamed"
            needed = 8.0 * VECTORS * problem.num_data * len(x) * len(self.scales)
            check_memory(what, needed, "predict fewer points at a time, or variances alone", x.device)
        unit = None if problem.kernel is None else problem.at_scale(1.0)
        prior = problem.prior(x, unit)
        own = prior.lazy_covariance_matrix
        own = (to_dense(own) if joint else diagonal_of(own)).double()
        operator = problem.operator
        variance, cross = own.diagonal() if joint else own, operator.own_columns(x)

        def accurate_at(scale: float) -> Callable[[CGState, Tensor], Tensor]:
            def is_accurate(state: CGState, columns: Tensor) -> Tensor:
                size = (scale * variance[columns] - state.energy).clamp_min(0.01 * self.temperature)
                return state.energy_error <= problem.streaming.variance_tolerance * size

            return is_accurate

        found = self._solve([_Columns(scale, scale * cross, accurate_at(scale)) for scale in self.scales])
        spreads = []
        for scale, solution in zip(self.scales, found, strict=True):
            if joint:
                product = self.temperature * solution.x + scale * operator.own_matmul(solution.x)
                # Of second order in the error, as energies are.
                taken = operator.total((2.0 * scale * cross - product).T @ solution.x)
                spreads.append(without_negative_variances(scale * own - 0.5 * (taken + taken.T)))
            else:
                spreads.append((scale * own - solution.state.energy).clamp_min(0.0))
        moved = operator.total(cross.T @ self.weights[operator.own_rows]) * cross.new_tensor(self.scales)
        return prior.loc.double() + moved.T, torch.stack(spreads)

    def _moments_with(self, others: Sequence[Conditioned], x: Tensor) -> list[tuple[Tensor, Tensor]]:
        joined = self._joined(others)
        if joined is None:
            return super()._moments_with(others, x)
        means, spreads = joined.moments(x)
        sizes = [len(each.scales) for each in joined.parts]
        return list(zip(means.split(sizes), spreads.split(sizes), strict=True))

    def _joined(self, others: Sequence[Conditioned]) -> _Joined | None:
        """Return the scales of this posterior and of others of the same matrix as one; None where they differ."""
        parts = [self]
        for other in others:
            if not isinstance(other, StreamedConditioned) or other.problem.operator is not self.problem.operator:
                return None
            parts.append(other)
        return _Joined(parts)

    # At training points -------------------------------------------------------------------------------------------

    def log_likelihoods(self) -> Tensor:
        """Return log N(y; m, A) of each process, ``n``, by the quadratures of the reduction."""
        spectrum = self.problem.spectrum()
        spread = self._spread(spectrum)
        twice = (spectrum.squares / spread + _counts(spectrum.counts) * spread.log()).sum(-1)
        return -0.5 * (twice + self.problem.num_data * _LOG_TWO_PI)

    def _spread(self, spectrum: Spectrum) -> Tensor:
        """Return T + r k at the nodes, ``n x nodes``."""
        scale = spectrum.eigenvalues.new_tensor(self.scales)
        return self.temperature + scale.unsqueeze(-1) * spectrum.eigenvalues

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Raise: the whole diagonal of A^{-1} would cost P solves.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "leave_one_out: expected a sample of the training points for a streamed problem, got all of them; use "
            "leave_one_out, which draws num_left_out of them"
        )

    @cached_property
    def left_out_points(self) -> Tensor:
        """Indices of the training points that are left out, drawn at random with the seed of the options."""
        problem, options = self.problem, self.problem.streaming
        order = torch.randperm(problem.num_data, generator=torch.Generator().manual_seed(options.seed))
        return order[: options.num_left_out].sort().values.to(problem.targets.device)

    @outside_autocast
    def leave_one_out(self) -> ErrorEstimate:
        """Return errors at a random sample of the training points given all others, in the user's units.

        The points are :attr:`left_out_points`.
        """
        return self._left_out(self._precisions())

    def _precisions(self) -> Tensor:
        """Return the diagonal of A^{-1} at the points that are left out, ``n x m``."""
        problem, options = self.problem, self.problem.streaming

        def is_accurate(state: CGState, columns: Tensor) -> Tensor:
            return state.energy_error <= options.variance_tolerance * state.energy

        precisions, own = [], problem.operator.own_rows
        for points in self.left_out_points.split(self._num_points):
            unit = (torch.arange(own.start, own.stop, device=points.device).unsqueeze(-1) == points).double()
            found = self._solve([_Columns(scale, unit, is_accurate) for scale in self.scales])
            precisions.append(torch.stack([each.state.energy for each in found]))
        return torch.cat(precisions, -1)

    def _left_out(self, precision: Tensor) -> ErrorEstimate:
        problem, rows = self.problem, self.left_out_points
        noise = torch.full_like(precision[0], self.temperature)
        away, spread, log_density = left_out(self.weights[rows].T, precision, noise, self.log_weights)
        units, dtype = problem.units, problem.targets.dtype
        return ErrorEstimate(
            units.value(problem.targets[rows] - away.to(dtype)),
            units.deviation(away.to(dtype)).square(),
            units.variance(spread.to(dtype)),
            log_density=units.log_density(log_density.to(dtype)),
            message=f"{self._how} {len(rows)} of {problem.num_data} training points were left out, drawn at random.",
        )

    def _left_out_with(self, others: Sequence[Conditioned]) -> list[ErrorEstimate]:
        joined = self._joined(others)
        if joined is None:
            return super()._left_out_with(others)
        precisions = joined._precisions().split([len(each.scales) for each in joined.parts])
        return [each._left_out(part) for each, part in zip(joined.parts, precisions, strict=True)]

    @outside_autocast
    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, in the user's units, with the trace of the reduction."""
        spectrum, noise = self.problem.spectrum(), self.temperature
        trace = (_counts(spectrum.counts) / self._spread(spectrum)).sum(-1)
        error = noise**2 * (self.weights.square().sum(0) - trace) / self.problem.num_data + noise
        error = error.squeeze(0) if self.log_weights is None else self.log_weights.exp() @ error
        return self.problem.units.mean_variance(error).to(self.problem.targets.dtype)


class _Joined(StreamedConditioned):
    """The scales of several posteriors of one matrix."""

    def __init__(self, parts: Sequence[StreamedConditioned]) -> None:
        super().__init__(parts[0].problem, [scale for each in parts for scale in each.scales])
        self.parts = parts


def _counts(counts: Tensor | None) -> Tensor:
    if counts is None:
        raise ValueError("spectrum: expected the counts of a Lanczos reduction, got none")
    return counts
