"""A Gaussian process conditioned on its data by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from ..numerics.autocast import outside_autocast
from ..spectra import CGSolution, CGState, conjugate_gradients
from .conditioned import _LOG_TWO_PI, Conditioned, left_out, without_negative_variances
from .error_estimate import ErrorEstimate
from .problem import _diagonal, to_dense

if TYPE_CHECKING:
    from .streamed import StreamedProblem


class StreamedConditioned(Conditioned):
    r"""One process with A = T + r K, of which only products are known.

    Means need :math:`A^{-1} y`, which the Lanczos run of the targets gives for every r and T; conjugate gradients go on
    from there where its residual is too large. A variance, and an error of a point that is left out, is one more
    right-hand side each:

    .. math:: \sigma^2 = r k_{**} - b^T A^{-1} b, \quad b = r k_*, \qquad [A^{-1}]_{ii} = e_i^T A^{-1} e_i

    The iteration ends where a bound of their error (:class:`LowRank`) is below ``variance_tolerance`` of the variance
    (but not below a hundredth of that of the noise). Variances err upward by less than that. All numbers are float64,
    results in the dtype of the data. Leave-one-out errors are those of ``num_left_out`` points drawn at random, the
    same for all scales, so that averages over them have the standard error of a sample. :meth:`training_error` has the
    trace of :math:`A^{-1}` from the reduction, with its statistical error.

    Cost: means of m points m P entries of the kernel; variances a pass over the kernel matrix for each step of each
    block of ``columns`` points, and 2 P^2 flops a point and step. With few test points the passes dominate, with more
    than some 300 the flops. :meth:`mean` leaves the variances out.

    Args:
        problem: What is conditioned.
        scale: r.

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

    def __init__(self, problem: StreamedProblem, scale: float) -> None:
        """Store the scale."""
        super().__init__(problem)
        self.scale = scale
        self.temperature = float(problem.scale_temperature())

    @cached_property
    def weights(self) -> Tensor:
        """The solution A^{-1} (y - m), ``P``."""
        problem = self.problem
        limit = problem.streaming.residual
        start, residual = problem.lanczos.solve_targets(self.scale, self.temperature)
        if residual <= limit:
            return start
        y = problem.residuals().double().unsqueeze(-1)
        return self._solve(y, lambda state, _: state.residual <= limit, start.unsqueeze(-1)).x.squeeze(-1)

    def _product(self, matmul: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        """Return A V from K V."""
        return self.temperature * vectors + self.scale * matmul(vectors)

    def _solve(
        self, b: Tensor, is_accurate: Callable[[CGState, Tensor], Tensor], start: Tensor | None = None
    ) -> CGSolution:
        problem, noise = self.problem, self.temperature
        limit = problem.streaming.max_solver_steps
        products, part = problem.watched_products(0, limit + 1), problem.preconditioner
        solution = conjugate_gradients(
            lambda v: self._product(products, v),
            b,
            precondition=lambda v: part.solve(v, self.scale, noise),
            is_accurate=is_accurate,
            max_steps=limit,
            start=start,
        )
        if not bool(solution.converged.all()):
            raise ConvergenceError(
                f"conjugate gradients: expected {b.shape[1]} columns to converge in {limit} steps, "
                f"{int((~solution.converged).sum())} did not, with residuals up to "
                f"{float(solution.state.residual.max()):.2g}; use a larger rank or max_solver_steps in Streaming, or a "
                "larger temperature"
            )
        return solution

    @outside_autocast
    def mean(self, x: Tensor) -> Tensor:
        """Return the posterior mean at prepared points ``m x d``, ``m``, without the cost of variances."""
        problem = self.problem
        moved = problem.operator.cross_matmul(x, self.weights.unsqueeze(-1)).squeeze(-1)
        return (problem.mean(x).double() + self.scale * moved).to(x.dtype)

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return means ``1 x m`` and variances ``1 x m`` (joint: the covariance ``1 x m x m``)."""
        if joint:
            mean, spread = self._moments(x, joint=True)
        else:
            parts = [self._moments(rows, joint=False) for rows in x.split(self.problem.streaming.columns)]
            mean, spread = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return mean.to(x.dtype).unsqueeze(0), spread.to(x.dtype).unsqueeze(0)

    def _moments(self, x: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        problem, options = self.problem, self.problem.streaming
        unit = None if problem.kernel is None else problem.at_scale(1.0)
        prior = problem.prior(x, unit)
        own = prior.lazy_covariance_matrix
        own = self.scale * (to_dense(own) if joint else _diagonal(own)).double()
        variance = own.diagonal() if joint else own
        cross = self.scale * problem.operator.columns(x)

        def is_accurate(state: CGState, columns: Tensor) -> Tensor:
            size = (variance[columns] - state.energy).clamp_min(0.01 * self.temperature)
            return state.energy_error <= options.variance_tolerance * size

        solution = self._solve(cross, is_accurate)
        mean = prior.loc.double() + cross.T @ self.weights
        if joint:
            residual = cross - self._product(problem.operator.matmul, solution.x)
            taken = (cross + residual).T @ solution.x  # of second order in the error, as the energies are
            return mean, without_negative_variances(own - 0.5 * (taken + taken.T))
        return mean, (own - solution.state.energy).clamp_min(0.0)

    def log_likelihoods(self) -> Tensor:
        """Return log N(y; m, A), ``1``, by the quadratures of the reduction."""
        spectrum = self.problem.spectrum()
        spread = self.temperature + self.scale * spectrum.eigenvalues
        twice = (spectrum.squares / spread + _counts(spectrum.counts) * spread.log()).sum()
        return -0.5 * (twice + self.problem.num_data * _LOG_TWO_PI).reshape(1)

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
        problem, options = self.problem, self.problem.streaming
        precisions, limit = [], options.variance_tolerance

        def is_accurate(state: CGState, columns: Tensor) -> Tensor:
            return state.energy_error <= limit * state.energy

        for points in self.left_out_points.split(options.columns):
            unit = torch.zeros(problem.num_data, len(points), dtype=torch.float64, device=points.device)
            unit[points, torch.arange(len(points), device=points.device)] = 1.0
            precisions.append(self._solve(unit, is_accurate).state.energy)
        rows = self.left_out_points
        noise = torch.full_like(self.weights[rows], self.temperature)
        terms = (self.weights[rows].unsqueeze(0), torch.cat(precisions).unsqueeze(0))
        away, spread, log_density = left_out(*terms, noise, None)
        units, dtype = problem.units, problem.targets.dtype
        return ErrorEstimate(
            units.value(problem.targets[rows] - away.to(dtype)),
            units.deviation(away.to(dtype)).square(),
            units.variance(spread.to(dtype)),
            log_density=units.log_density(log_density.to(dtype)),
        )

    @outside_autocast
    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, in the user's units, with the trace of the reduction."""
        spectrum, noise = self.problem.spectrum(), self.temperature
        trace = (_counts(spectrum.counts) / (noise + self.scale * spectrum.eigenvalues)).sum()
        error = noise**2 * (self.weights.square().sum() - trace) / self.problem.num_data + noise
        return self.problem.units.mean_variance(error).to(self.problem.targets.dtype)


def _counts(counts: Tensor | None) -> Tensor:
    if counts is None:
        raise ValueError("spectrum: expected the counts of a Lanczos reduction, got none")
    return counts
