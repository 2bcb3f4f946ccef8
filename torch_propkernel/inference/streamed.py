"""The problem of a data set past memory: A(r) = T + r K with K as a product, tile by tile."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from .._memory import Cost, available_memory, check_memory
from .._views import replaced
from ..actions import QuadratureError, Solution, quadrature_error, solve_order_parameters
from ..exceptions import ConvergenceError
from ..kernels import FusedProduct
from ..kernels.renormalized_nngp_kernel import find_renormalized_kernel
from ..spectra import (
    FusedKernelOperator,
    KernelOperator,
    LanczosReduction,
    LanczosRun,
    LowRank,
    ShardedKernelOperator,
    Spectrum,
)
from .checkpoint import load_checkpoint, save_checkpoint
from .conditioned import Conditioned
from .host_evaluation import one_at_a_time, to_dense
from .problem import Problem, ScalarProblem
from .streamed_conditioned import StreamedConditioned
from .streaming import Streaming

_SAMPLE, _LARGE_SAMPLE = 1024, 32768  # points from which the time of a product is measured, the latter off the CPU
_FEW = 32  # points at which a fused product is compared with tiles: roughly, for TensorFloat-32


class StreamedProblem(Problem):
    r"""A model whose kernel matrix does not fit into memory, taken apart: products with K in place of K.

    .. math:: A(r) = T\, 1 + r K

    One Lanczos run from the targets and random probes (:class:`LanczosReduction`) answers every width and temperature
    with a stated error, as the eigenvalues of a dense reduction do; predictions and leave-one-out errors are solved by
    conjugate gradients with a preconditioner of low rank. Theories with ``has_streaming`` take it like any problem, and
    make one by themselves where a dense reduction does not fit. Give it to them to choose the options.

    The kernel must be proportional to the product of its order parameters (one hidden layer, or the composition
    "outer"), possibly inside ScaleKernels; there are no batch dimensions; the noise is one T > 0.

    Memory: see :class:`Streaming`. Cost: one pass over the kernel matrix for each Lanczos step, of which low
    temperatures need more (150 to 250 at T = 0.1 to 0.01 for P = 3,000 rows of kin40k).

    Build it with :meth:`of_streamed`.

    Attributes:
        streaming: The options.
        solved_targets: A^{-1} (y - m), ``P``, of each scale r for which it was needed.

    Raises:
        TypeError, ValueError: A model that is not of this kind; and as :class:`Problem`.
        NotEnoughMemoryError: What the options ask for does not fit either.

    Reference: THEORY.md, section 1 ("spectral form").

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.inference import StreamedProblem, Streaming
        >>> from torch_propkernel.theories import SaddlePoint
        >>> x = torch.randn(40, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> model = NetworkGP(x, 2 * x[:, 0].sign(), likelihood, RenormalizedNNGPKernel(Erf(), width=20)).double()
        >>> streamed = SaddlePoint().fit(StreamedProblem.of_streamed(model, Streaming(rank=10)))
        >>> dense = SaddlePoint().fit(model)
        >>> error = streamed.stats["quadrature_error"].order_parameter
        >>> bool((streamed.order_parameters["q"] - dense.order_parameters["q"]).abs() < 4 * error)
        True
    """

    streaming: Streaming
    solved_targets: dict[float, Tensor]

    @classmethod
    @torch.no_grad()
    def of_streamed(cls, model: Any, streaming: Streaming | None = None) -> StreamedProblem:
        """Take a deep copy of a model, or a frozen problem, apart."""
        problem = Problem.frozen(model, needs_order_parameters=False)
        missing = why_not_streamed(problem)
        if missing is not None:
            raise ValueError(f"model: a streamed problem expected {missing}")
        made = cls.__new__(cls)
        made.__dict__.update(problem.__dict__)
        for name in ("_unit_covariance", "_scalar", "infinite_width", "lanczos", "preconditioner"):
            made.__dict__.pop(name, None)
        made.streaming = Streaming() if streaming is None else streaming
        made.solved_targets = {}
        needed = made.streaming.num_bytes(made.num_data)
        remedy = "use fewer num_probes, max_steps or columns, or a smaller rank or tile_size, in Streaming"
        check_memory(f"{made.num_data} training targets, streamed", needed, remedy, made.targets.device)
        return made

    def cost(self) -> tuple[float, float]:
        """Return the bytes of a process at its peak and the seconds of all Lanczos steps, by a product of few points.

        The pair's ``str`` says both with units that fit.
        """
        few = self.operator.of_first(_SAMPLE if self.targets.device.type == "cpu" else _LARGE_SAMPLE)
        vectors = torch.ones(few.num_data, self.streaming.num_probes + 1, dtype=torch.float64)
        vectors = vectors.to(self.targets.device)
        few.matmul(vectors).sum().item()  # the first one wakes threads up, or is compiled
        begun = time.perf_counter()
        few.matmul(vectors).sum().item()  # a number to be read: an accelerator computes while Python goes on
        seconds = (time.perf_counter() - begun) * (self.num_data / few.num_data) ** 2 * self.streaming.max_steps
        seconds /= self.operator.num_processes
        return Cost(self.streaming.num_bytes(self.num_data), seconds)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out who watches, the other processes, and what is shared with them."""
        state = super().__getstate__()
        operator = state.pop("operator", None)
        if operator is not None and operator.num_processes > 1:
            state.pop("preconditioner", None)
            if "lanczos" in state:
                state["lanczos"] = state["lanczos"].without_basis()
        return {**state, "streaming": replace(self.streaming, progress=None, process_group=None)}

    # The kernel matrix --------------------------------------------------------------------------------------------

    @cached_property
    def operator(self) -> KernelOperator:
        """K at q = 1, as products with it, its columns and its diagonal."""
        options, group = self.streaming, self.streaming.process_group
        dtype = self.inputs.dtype if options.tile_dtype is None else options.tile_dtype
        tiles = _Tiles(self, dtype)
        if group is not None:
            if options.product == "fused":
                raise ValueError("product: expected 'auto' or 'tiles' with a process group, got 'fused'")
            of_group = None if isinstance(group, str) else group
            made = ShardedKernelOperator(tiles, self.inputs, of_group, tile_size=options.tile_size, dtype=dtype)
            for own in (made.columns(made.inputs[:2]), self.residuals().double().unsqueeze(-1)):
                made.check_alike(torch.cat([own, own.new_full((1, own.shape[1]), float(self.scale_temperature()))]))
            return made
        if not self._is_fused(tiles):
            return KernelOperator(tiles, self.inputs, tile_size=options.tile_size, dtype=dtype)
        product = FusedProduct(tiles.model.covar_module)
        return FusedKernelOperator(tiles, self.inputs, product, tile_size=options.tile_size)

    def _is_fused(self, tiles: _Tiles) -> bool:
        wanted = self.streaming.product
        if wanted == "tiles" or (wanted == "auto" and self.inputs.device.type != "cuda"):
            return False
        missing = tiles.why_not_fused(self.inputs)
        if missing is not None and wanted == "fused":
            raise ValueError(f"product: 'fused' expected {missing}; use 'auto' or 'tiles'")
        return missing is None

    @property
    def unit_covariance(self) -> Tensor:
        """The covariance at q = 1, which a streamed problem does not have.

        Raises:
            ValueError: Always.
        """
        raise ValueError("problem: expected one whose kernel matrix is held, got a streamed one; use its operator")

    def is_past_memory(self) -> bool:
        """Whether the matrix is not held: always."""
        return True

    def scalar(self) -> ScalarProblem:
        """Raise: there is no matrix."""
        return ScalarProblem(self.unit_covariance, None, self.scale_temperature(), self.residuals())

    def scale_temperature(self) -> Tensor:
        """Return T."""
        return self.noise_diagonal().squeeze(-1)

    def watched_products(self, done: int, limit: int) -> Callable[[Tensor], Tensor]:
        """Return V -> K V that tells the progress: ``done`` products before the first one, at most ``limit``.

        Of several processes each gives and gets its own rows.
        """
        count = itertools.count(done)
        tell = self.streaming.progress

        def matmul(vectors: Tensor) -> Tensor:
            before = next(count)
            if tell is None:
                return self.operator.own_matmul(vectors)
            return self.operator.own_matmul(vectors, lambda tile, tiles: tell(before * tiles + tile, limit * tiles))

        return matmul

    @cached_property
    def preconditioner(self) -> LowRank:
        """The part of K of low rank, which is preconditioner of all solves and control variate of the traces."""
        return LowRank.randomly_pivoted(self.operator, self.streaming.rank, self.streaming.seed)

    # The reduction ------------------------------------------------------------------------------------------------

    @cached_property
    def lanczos(self) -> LanczosReduction:
        """The Lanczos run, with as many blocks of steps as the accuracy needs, from the checkpoint if there is one.

        Raises:
            ConvergenceError: ``max_steps`` are not enough.
        """
        options, operator = self.streaming, self.operator
        rows, total = operator.own_rows, operator.total
        reduction = LanczosReduction.start(
            self.residuals(), options.num_probes, options.seed, self.preconditioner, rows, total
        )
        state = load_checkpoint(options.checkpoint, rows, **self._identity)
        if state is not None:
            reduction = replace(reduction, run=LanczosRun.from_state(state, self.targets.device))
        run = reduction.run
        operator.check_alike(run.alphas)
        while run.num_steps == 0 or self._truncation(reduction) > 1.0:
            if run.num_steps >= options.max_steps:
                raise ConvergenceError(
                    f"Lanczos: expected an error below the tolerance, got {self._truncation(reduction):.3g} times it "
                    f"after {run.num_steps} steps; use a larger max_steps (a checkpoint is continued) or temperature"
                )
            block = min(options.block_steps, options.max_steps - run.num_steps)
            run.extend(self.watched_products(run.num_steps, options.max_steps), block, total)
            if options.checkpoint is not None:
                share = operator.rank, operator.num_processes
                save_checkpoint(options.checkpoint, run.state(), share, rows, **self._identity)
                operator.synchronize()  # nobody reads an older one
        run.release()
        return reduction

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to: the targets, two columns of the kernel matrix, and the probes."""
        targets, kernel = self.residuals().double(), self.operator.columns(self.operator.inputs[:2])
        return {"targets": targets, "kernel": kernel, "probes": [self.streaming.num_probes, self.streaming.seed]}

    def _truncation(self, reduction: LanczosReduction) -> float:
        """Return the error that is left to the Lanczos steps, in units of the tolerance."""
        found, error = self._solved(reduction)
        width = self._width
        last = float(torch.where(torch.isfinite(width[..., -1]), width[..., -1], 1.0))
        of_scale = float((error.order_parameter_truncation / found.order_parameter).max())
        of_likelihood = float(error.action_truncation) * last / self.num_data
        return max(of_scale, of_likelihood) / self.streaming.tolerance

    def _solved(self, reduction: LanczosReduction) -> tuple[Solution, QuadratureError]:
        problem: dict[str, Any] = {"width": self._width, "temperature": self.scale_temperature()}
        found = solve_order_parameters(reduction.spectrum(), **problem, throw=False)
        return found, quadrature_error(reduction, found, **problem)

    @property
    def _width(self) -> Tensor:
        infinite = torch.tensor([math.inf], dtype=torch.float64, device=self.targets.device)
        return infinite if self.kernel is None else self.layers.width

    @cached_property
    def _own_spectrum(self) -> Spectrum:
        return self.lanczos.spectrum()

    def spectrum(self, eigenvectors: bool = False) -> Spectrum:
        """Return the nodes of the Lanczos reduction.

        Raises:
            ValueError: Eigenvectors are asked for.
        """
        if eigenvectors:
            raise ValueError("eigenvectors: expected False for a streamed problem, which has none, got True")
        return self._own_spectrum

    def quadrature_error(self) -> QuadratureError:
        """Return the statistical error and the truncation error of order parameters and action."""
        return self._solved(self.lanczos)[1]

    def describe(self) -> str:
        """Return one sentence on how the problem was reduced."""
        run, error = self.lanczos.run, self.quadrature_error()
        last = float(self._width[..., -1])
        likelihood = 0.5 * float(error.action) * (last if math.isfinite(last) else 1.0)
        bars = ""
        if self.kernel is not None:
            listed = ", ".join(f"{value:.2g}" for value in error.order_parameter.flatten().tolist())
            bars = f"{listed} in the order parameters of the saddle point (up to "
            bars += f"{float(error.order_parameter_truncation.max()):.1g} for the steps), and "
        return (
            f"Streamed: the kernel matrix was not held; {run.num_steps} Lanczos steps with {self.streaming.num_probes} "
            f"probes leave standard errors of {bars}{likelihood:.2g} in the log likelihood."
        )

    # Conditioning -------------------------------------------------------------------------------------------------

    def with_width(self, width: Tensor) -> StreamedProblem:
        """Return the problem of other widths, ``L`` numbers; the reduction is shared, with the steps that it has."""
        _ = self.lanczos
        return cast("StreamedProblem", super().with_width(width))

    def conditioned(self, order_parameter: Tensor | None = None) -> Conditioned:
        """Condition on the training data at order parameters ``L``, or those that the kernel has."""
        if order_parameter is None:
            order_parameter = self.network.order_parameter.squeeze(-2)
        return self.at(float(self.layers.scale(order_parameter.double())))

    def at(self, scale: float) -> StreamedConditioned:
        """Condition on the training data with the covariance r K."""
        return StreamedConditioned(self, scale)

    def conditioned_at_scales(self, scale: Tensor, log_weights: Tensor | None = None) -> StreamedConditioned:
        """Condition on the training data at nodes r, ``n``, whose solves share the products with K."""
        return StreamedConditioned(self, scale.tolist(), log_weights)

    @cached_property
    def infinite_width(self) -> Conditioned:
        """The problem conditioned at q = 1."""
        return self.at(1.0)


class _Tiles:
    """Blocks of the covariance at q = 1 between two sets of points."""

    def __init__(self, problem: StreamedProblem, dtype: torch.dtype) -> None:
        model = problem.model
        if dtype != problem.inputs.dtype:
            model = copy.deepcopy(model).to(dtype)
        kernel = find_renormalized_kernel(model, optional=True)
        if kernel is not None:
            model = replaced(model, kernel, kernel.at(problem.at_scale(1.0)))
        self.model, self.dtype = model, dtype

    @one_at_a_time
    def __call__(self, x1: Tensor, x2: Tensor) -> Tensor:
        if x1 is x2:
            return to_dense(self.model.forward(x1).lazy_covariance_matrix)
        covariance = self.model.forward(torch.cat([x1, x2])).lazy_covariance_matrix
        return to_dense(covariance[: len(x1), len(x1) :])

    @torch.no_grad()
    def why_not_fused(self, inputs: Tensor) -> str | None:
        """Return what a fused product would need, and what there is instead; None where it can be."""
        if self.dtype != torch.float32:
            return f"tiles of float32 (tile_dtype), got {self.dtype}"
        covar_module: Any = getattr(self.model, "covar_module", None)
        missing = FusedProduct.missing(covar_module, inputs.device)
        if missing is not None:
            return missing
        few = inputs[:_FEW].to(self.dtype)
        truth = self(few, few.clone()).double()
        product = FusedProduct(covar_module)(few, few, torch.eye(len(few), device=few.device))
        if torch.allclose(product, truth, rtol=0.0, atol=1e-2 * float(truth.abs().max())):
            return None
        return "a forward that returns the covariance of covar_module at the points, got another covariance"


def why_not_streamed(problem: Problem) -> str | None:
    """Return what a problem would need to be streamed, and what it has instead; None where it can be."""
    if problem.targets.dim() != 1 or problem.inputs.dim() != 2 or len(problem.inputs) != problem.num_data:
        return f"one output without batch dimensions, got targets of shape {tuple(problem.targets.shape)}"
    if type(problem) not in (Problem, StreamedProblem):
        return f"a model with scalar order parameters, got a {type(problem).__name__}"
    if problem.temperature is None or not bool(problem.temperature > 0):
        return "noise of one variance above zero, got another one"
    if problem.kernel is not None and not (problem.kernel.is_scalar and problem.is_multiplicative()):
        return (
            "a covariance proportional to the product of the order parameters (one hidden layer or the composition "
            "'outer', alone or in ScaleKernels), got another one"
        )
    return None


def streamed_past_memory(problem: Problem) -> Problem:
    """Return a problem as it is, or streamed where its matrices do not fit into memory and it can be.

    With 32 probes, or as many of 16, 8 and 4 as fit.

    Raises:
        NotEnoughMemoryError: Not even four do.
    """
    if type(problem) is not Problem or not problem.is_past_memory() or why_not_streamed(problem) is not None:
        return problem
    free = available_memory(problem.targets.device)
    options = (Streaming(num_probes=number) for number in (32, 16, 8, 4))
    fitting = (each for each in options if free is None or each.num_bytes(problem.num_data) <= free)
    return StreamedProblem.of_streamed(problem, next(fitting, None))
