"""The adaptive theory: units of the last hidden layer that learn, one treated exactly in the field of all others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._validation import positive_number
from ..cavity import Anneal, CavityPosterior, LeftOut, OneUnit, SharedNoise, anneal
from ..exceptions import ConvergenceError
from ..inference import Conditioned, ErrorEstimate, Problem
from ..inference.last_layer import last_layer
from .base import FittedTheory, Theory
from .unit_inputs import LinearInputs, UnitInputs, unit_inputs

_SINGLE = 1e5
"""Bound on P / T, above which units move in float64: g = phi^T B phi / N would suffer from rounding in float32.

With a bias of the readout it bounds P v_b / T too, the square of what whitening divides the mean over the points by.
"""

_POOR = 0.1
"""Effective share of the units below which a solve does not count as converged."""

_CHANGED = 0.05
"""Relative change of V in the last iteration above which it does not either."""


class Adaptive(Theory):
    r"""One hidden unit, treated exactly, in the field of all others: the theory of small networks that learn features.

    Given the others, a unit's weights follow their prior, tilted by exp(a f - f^T B f / 2) with f = v sigma(w x) /
    sqrt(N); a and B follow from the tilted unit's own moments. With C = (V^{-1} - B)^{-1} and V the unit's covariance
    given \|v\|,

    .. math:: B = (T + (N - 1) C)^{-1}, \qquad T a + (N - T B)\, m(a) = y

    the posterior is a Gaussian process with the kernel N C(x, x') and a mean function of its own. The
    activation is kept exactly, so the kernel adapts to the data beyond a factor: relevances of the inputs and preferred
    directions are learned. For Gaussian units it agrees with :class:`SaddlePoint` up to O(1/N).

    Any activation, widths N >= 2, biases, ARD, in ScaleKernels or not; homoskedastic noise; no batch dimensions. A
    ConstantKernel that is added is a bias of the readout, of any variance, which the units see as noise that all points
    share. At infinite width it is :class:`InfiniteWidth`.

    With more hidden layers the units of the last one are adapted. Those below keep their prior, but for one scale each,
    as in the outer form of the saddle: :math:`N_l (q_l - 1)` is the same for all layers and q_1 ... q_{L-1} multiplies
    the readout's variance; the kernel's composition is to be ``"outer"``. Features that lower layers learn are missed.
    This shows where inputs have few dominant directions: on images of two digits (erf, widths 20 and 20, T = 0.05) the
    test error was 28 % too high, the saddle's 62 %.

    The units are a population of samples, annealed from high temperature and moved by Hamiltonian Monte Carlo. All of
    it is deterministic given ``seed``, up to the rounding of the machine. Units are added until the Monte Carlo error
    of the mean squared error of a left-out training point (bias and variance, at the fixed adapted kernel) is below
    ``tolerance``: unlike the training error, it is as noisy as predictions are.

    ``order_parameters``: ``"q"``, the posterior mean of ``lambda_1 |v|^2 / N``, which is ``readout_norm`` too; q_1,
    ..., q_L with more layers. ``log_evidence``, None with more layers, is good where the units stay near their prior;
    it is too high at small lambda_1 and where the units' law has several modes. ``stats``: ``converged``,
    ``monte_carlo_error`` (relative), ``tolerance_reached``, ``residual`` (of the equation for a, relative to
    ``|y|``), ``change`` (relative, of V in the last iteration), ``effective_share`` of the units, ``kl_per_unit`` and
    ``log_width``, ``variance_trusted`` (converged, and the first below the second: beyond it units specialize, and the
    variance has been too small by factors of 1 to 4, while the mean and q held), ``ep_consistency`` (relative change of
    the watched error if the whole covariance E2 - m m^T closed the equations), ``history`` (a tuple ``(temperature,
    order_parameter, effective_share, residual, acceptance)`` for each step), ``seconds``.

    Accuracy on 27 sampled networks (``examples/benchmarks/results/adaptive_reference.md``): the test error is off by
    0.6 % in the median, where the saddle has 2 %, and by 10 % at worst, where the saddle has 115 %; on 11 with two
    hidden layers by 1.0 and 14.5 %, the saddle by 1.6 and 19 %. Cost: 50 to 70 steps, more where the noise is large,
    each of some 30 ``num_units`` P^2 operations (50 below T = 0.05), whatever N is, and 40 to 70 eigendecompositions of
    P x P. On one thread P = 100 took 1.4 s, P = 400 10 s, P = 1000 a minute, P = 2000 four minutes and 1.9 GiB
    (``examples/benchmarks/adaptive_speed.py``); P = 5000 would take 37 minutes and 8 GiB, extrapolated. With more
    layers it is two to four times as much: units have P coordinates and are four times as many.

    Args:
        num_units: Units in a generation, of which 20 are kept; by default 8 P, between 500 and 1000, and four times as
            many with more hidden layers.
        tolerance: Of the relative Monte Carlo error.
        seed: Of all random numbers.
        time_limit: Seconds after which no more units are added.
        progress: Called with (done, total) after every step; not part of equality.

    Raises:
        TypeError: Options of the wrong kind, a covariance that is not one network's.
        ValueError: A width below 2, an infinite last layer above finite ones, several layers in another composition
            than the outer one, a batch of models, noise that differs between points; options out of range.
        ConvergenceError: The temperature cannot be lowered.

    Reference: derived for this package; THEORY.md, eqs. (12) to (17).

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel
        >>> x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> kernel, likelihood = RenormalizedNNGPKernel(Erf(), width=8), gpytorch.likelihoods.GaussianLikelihood()
        >>> fitted = Adaptive(num_units=200).fit(NetworkGP(x, x[:, 0].sign(), likelihood, kernel).double())
        >>> mean, variance = fitted.predict(x)
        >>> bool((mean * x[:, 0] > 0).all()), bool(fitted.relevances.argmax() == 0)   # the input that matters
        (True, True)
    """

    name = "adaptive"

    def __init__(
        self,
        num_units: int | None = None,
        tolerance: float = 0.01,
        seed: int = 0,
        time_limit: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Check and store the options."""
        if num_units is not None and (isinstance(num_units, bool) or not isinstance(num_units, int) or num_units < 10):
            raise ValueError(f"num_units: expected a whole number >= 10 or None, got {num_units!r}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: expected an integer, got {seed!r}")
        if progress is not None and not callable(progress):
            raise TypeError(f"progress: expected a callable of (done, total) or None, got {progress!r}")
        self.num_units, self.seed = num_units, seed
        self.tolerance = positive_number("tolerance", tolerance)
        self.time_limit = None if time_limit is None else positive_number("time_limit", time_limit)
        self.progress = progress

    def __repr__(self) -> str:
        """Class and options that are not the default."""
        defaults = {"num_units": None, "tolerance": 0.01, "seed": 0, "time_limit": None}
        options = (f"{name}={value!r}" for name, value in self._options().items() if value != defaults[name])
        return f"{type(self).__name__}({', '.join(options)})"

    def _check(self, problem: Problem) -> None:
        kernel = problem.network
        layer = last_layer(problem, problem.inputs[..., :1, :])
        if problem.targets.dim() != 1 or problem.inputs.dim() != 2 or layer.scale.numel() != 1:
            got = tuple(problem.targets.shape)
            raise ValueError(f"model: {self!r} expected no batch dimensions, got targets of shape {got}")
        if problem.temperature is None:
            raise ValueError(f"likelihood: {self!r} expected one noise variance for all points, got several")
        problem.check_scalar()
        width, infinite = kernel.width.flatten(), torch.isinf(kernel.width.flatten())
        if not bool((width >= 2).all()):
            raise ValueError(f"width: {self!r} expected at least 2 in each layer, got {width.tolist()}")
        if bool(infinite[-1]) and not bool(infinite.all()):
            raise ValueError(f"width: {self!r} expected a finite last layer above finite ones, got {width.tolist()}")

    def _fit(self, problem: Problem) -> FittedTheory:
        layer, inputs, chain = last_layer(problem, problem.inputs[:1]), unit_inputs(problem), problem.layers
        *lower, width = chain.width.tolist()
        if math.isinf(width):
            one, wide = torch.ones_like(problem.targets[0]), problem.infinite_width
            evidence = wide.log_likelihoods().squeeze(-1)
            message = "Infinite width: units keep their prior, there is nothing to solve."
            q = one.expand(len(lower) + 1) if lower else one
            return FittedTheory(self, problem, wide, {"q": q}, one, message, {"converged": True}, evidence)
        targets, prior = problem.residuals().double(), problem.scalar().kernel_matrix.double() / width
        temperature = float(problem.temperature)  # type: ignore[arg-type]
        noise = SharedNoise(temperature, float(layer.bias_variance), len(targets))
        seen = inputs.coordinates(problem.inputs)[0]
        unit = OneUnit(layer.activation, seen, width, 1.0 / float(layer.scale), noise)

        def layers_below(product: float) -> float:
            logs = chain.at_log_scale(chain.width.new_tensor(product).log()).log_order_parameter
            return float(logs[:-1].sum().exp())

        solved = anneal(
            unit,
            prior,
            targets,
            temperature,
            num_units=self.num_units or _num_units(len(targets), bool(lower)),
            generator=torch.Generator(device=targets.device).manual_seed(self.seed),
            dtype=torch.float64
            if len(targets) * max(1.0, noise.bias_variance) > _SINGLE * temperature
            else torch.float32,
            tolerance=self.tolerance,
            lower=layers_below if lower else None,
            time_limit=self.time_limit,
            progress=self.progress,
        )
        posterior = CavityPosterior(unit, targets, solved, self.seed)
        conditioned = CavityConditioned(problem, posterior, inputs)
        stats = _stats(posterior, solved, self.tolerance)
        one = problem.targets.new_ones(())
        last, evidence = posterior.order_parameter() * one, posterior.log_evidence() * one
        if not bool(torch.isfinite(last) & torch.isfinite(evidence)):
            raise ConvergenceError(f"{self!r}: expected finite results, got q = {last} and log evidence {evidence}")
        q = chain.at_log_scale(torch.log(solved.scale * last.double())).order_parameter.to(last) if lower else last
        message = _message(stats, self)
        return FittedAdaptive(self, problem, conditioned, {"q": q}, last, message, stats, None if lower else evidence)


class FittedAdaptive(FittedTheory):
    """:class:`FittedTheory` of :class:`Adaptive`, with what the units have learned.

    ``directions`` and ``relevances`` are about the inputs as the kernel reads them, bias apart, whitened: w_j is
    divided by its prior deviation. They exist for one hidden layer: units of a deeper one do not read the inputs, and
    a ``ValueError`` says so.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> kernel, likelihood = RenormalizedNNGPKernel("erf", width=8), gpytorch.likelihoods.GaussianLikelihood()
        >>> fitted = Adaptive(num_units=200).fit(NetworkGP(x, x[:, 0].sign(), likelihood, kernel).double())
        >>> values, directions = fitted.directions(1)
        >>> bool(values[0] > 1), int(directions[0].abs().argmax())   # weights grow along the first input
        (True, 0)
    """

    @property
    def relevances(self) -> Tensor:
        """E w_j^2 over the units for each input, ``d``, relative to the prior: one where nothing was learned."""
        basis, moment = self._learned()
        return 1.0 + ((basis @ (moment - torch.eye(len(moment)).to(moment))) * basis).sum(-1)

    def directions(self, number: int = 3) -> tuple[Tensor, Tensor]:
        """Return the leading eigenvalues of E w w^T over the units and the directions, as rows ``number x d``.

        Eigenvalues are relative to the prior, where all are one. A direction of images is an image.
        """
        basis, moment = self._learned()
        values, vectors = torch.linalg.eigh(moment)
        return values.flip(-1)[:number], (basis @ vectors).mT.flip(0)[:number]

    def draw_units(self, count: int, seed: int = 0) -> Tensor:
        """Return whitened weights of single units drawn from the posterior, ``count x d``, a bias's in one more column.

        What the training inputs do not span keeps its prior. Rows are hidden weights of a :class:`FiniteNetwork` of
        width 1, as :class:`TransferKernel` takes them: the cheap form of a source task.

        Args:
            count: Number of units; more than the theory has (thousands) repeat what it knows.
            seed: Seed of the draws.
        """
        basis, _ = self._learned()
        posterior, generator = self.conditioned.posterior, torch.Generator().manual_seed(seed)  # type: ignore[attr-defined]
        share = posterior.solution.response.weights
        rows = torch.multinomial(share.double().cpu(), count, replacement=True, generator=generator)
        units, rank = posterior.weights[rows.to(share.device)].to(basis), basis.shape[-1]
        free = torch.randn(count, len(basis), generator=generator, dtype=torch.float64).to(basis)
        return torch.cat([free + (units[:, :rank] - free @ basis) @ basis.mT, units[:, rank:]], -1)

    def _learned(self) -> tuple[Tensor, Tensor]:
        posterior, inputs = self.conditioned.posterior, self.conditioned.inputs  # type: ignore[attr-defined]
        if not isinstance(inputs, LinearInputs):
            got = f"{self.problem.network.depth} hidden layers"
            raise ValueError(f"width: relevances and directions expected units that read the inputs, got {got}")
        rank = inputs.basis.shape[-1]
        return inputs.basis, posterior.input_moment()[:rank, :rank]

    @torch.no_grad()
    def left_out_units(self) -> LeftOut:
        """Return what ``leave_one_out`` does in the model's units, with the units' effective shares."""
        return self.conditioned.left_out  # type: ignore[attr-defined]


class CavityConditioned(Conditioned):
    """The adaptive posterior at any points: one Gaussian process, from weighted units.

    Args:
        problem: What was fitted.
        posterior: The solution.
        inputs: What units read.
    """

    def __init__(self, problem: Problem, posterior: CavityPosterior, inputs: UnitInputs) -> None:
        """Store the solution."""
        super().__init__(problem)
        self.posterior, self.inputs = posterior, inputs
        self._left_out: LeftOut | None = None

    def moments(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean ``*b x 1 x m`` and variance ``*b x 1 x m`` (joint: covariance ``*b x 1 x m x m``)."""
        if x.dim() > 2:  # one set of points after the other
            each = [self.moments(rows, joint) for rows in x.flatten(0, -3)]
            mean, spread = (torch.stack(column).unflatten(0, x.shape[:-2]) for column in zip(*each, strict=True))
            return mean, spread
        _, prior = self.problem.affine_blocks(x, joint)
        inside, outside = self.inputs.coordinates(x, joint)
        width = self.posterior.unit.width
        cross, own = prior.cross.double() / width, prior.prior.double() / width
        mean, spread = self.posterior.predict(inside, outside, cross, own, joint)
        return (prior.mean + mean.to(x.dtype)).unsqueeze(-2), spread.to(x.dtype).unsqueeze(-3 if joint else -2)

    def left_out_terms(self) -> tuple[Tensor, Tensor]:
        """Return A^{-1} (y - m) and the diagonal of A^{-1}, ``1 x P``, at the fixed adapted kernel."""
        solution = self.posterior.solution
        return solution.residuals().unsqueeze(-2), solution.precision_diagonal().unsqueeze(-2)

    @property
    def left_out(self) -> LeftOut:
        """Each training point given the others; computed once."""
        if self._left_out is None:
            self._left_out = self.posterior.leave_one_out()
        return self._left_out

    def leave_one_out(self) -> ErrorEstimate:
        """Return errors at each training point given the others, from re-weighted units, in the user's units."""
        left, problem, units = self.left_out, self.problem, self.problem.units
        away = (problem.residuals().double() - left.mean).to(problem.targets.dtype)
        variance = left.variance.to(away.dtype)
        noisy = variance + problem.noise_diagonal().to(away.dtype)
        log_density = -0.5 * (away.square() / noisy + noisy.log() + math.log(2.0 * math.pi))
        return ErrorEstimate(
            units.value(problem.targets - away),
            units.deviation(away).square(),
            units.variance(variance),
            log_density=units.log_density(log_density),
        )

    def training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2 over the posterior, in the user's units."""
        error = self.posterior.solution.training_error()
        return self.problem.units.mean_variance(error).to(self.problem.targets.dtype)


def _num_units(num_data: int, deep: bool) -> int:
    """Return the units of a generation: above other layers they have P coordinates, and four times as many are due."""
    return (4 if deep else 1) * min(1000, max(500, 8 * num_data))


def _stats(posterior: CavityPosterior, solved: Anneal, tolerance: float) -> dict[str, Any]:
    """Return the numbers of the solve."""
    solution, width = posterior.solution, posterior.unit.width
    response = solution.response
    share = float(1.0 / (response.weights.square().sum() * len(response.weights)))
    divergence = posterior.divergence()
    converged = share >= _POOR and solution.change <= _CHANGED and response.residual <= 2e-3
    return {
        "converged": converged,
        "monte_carlo_error": solved.monte_carlo_error,
        "tolerance_reached": solved.monte_carlo_error <= tolerance,
        "residual": response.residual,
        "change": solution.change,
        "effective_share": share,
        "kl_per_unit": divergence,
        "log_width": math.log(width),
        "variance_trusted": converged and divergence <= math.log(width),
        "ep_consistency": solved.full_change,
        "history": solved.history,
        "seconds": solved.seconds,
    }


def _message(stats: dict[str, Any], theory: Adaptive) -> str:
    """Say how the solve went and what to try."""
    if not stats["converged"]:
        return (
            f"Not converged: the units' effective share is {stats['effective_share']:.2g} and V changes by "
            f"{stats['change']:.1%} at fixed units; try more units, or the sampled network."
        )
    parts = ["Self-consistent field found."]
    if not stats["tolerance_reached"]:
        parts.append(
            f"The Monte Carlo error is {stats['monte_carlo_error']:.1%}, above the tolerance of "
            f"{theory.tolerance:.1%}: allow more time or more units."
        )
    if not stats["variance_trusted"]:
        parts.append(
            f"A unit is {stats['kl_per_unit']:.1f} nats from its prior, more than log N = {stats['log_width']:.1f}: "
            "units specialize, and the variance is likely to be too small."
        )
    return " ".join(parts)
