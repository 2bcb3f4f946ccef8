"""What every theory of a finite network does: fit a model's training data, then answer all that a user may ask."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._validation import check_targets
from ..inference import BlocksProblem, Conditioned, ErrorEstimate, OutputsProblem, Problem, StreamedProblem, problem_of
from ..inference.conditioned import check_chunk_size, expected_errors, left_out_errors
from ..inference.streamed import streamed_past_memory
from ..kernels import RenormalizedNNGPKernel
from ..reliability import Reliability


class Theory(ABC):
    """A way to predict the posterior of a finite Bayesian network from its architecture and training data.

    A subclass gives ``name`` and ``_fit``, and ``_check`` if it does not apply to every network. Theories have no state
    beside their options: two of one class with the same options are equal.

    Attributes:
        name: Name in the table of theories, in reports and on the command line.
        needs_order_parameters: Whether the model must hold a kernel with order parameters.
        has_leave_one_out: Whether a fit has errors of points that are left out.
        has_outputs: Whether it takes models of several outputs, with a :class:`MultitaskRenormalizedKernel`.
        has_blocks: Whether it takes models with a :class:`BlockRenormalizedKernel`.
        has_streaming: Whether it takes a :class:`StreamedProblem`, and makes one of a model whose matrices do not fit
            into memory.

    Example:
        >>> from torch_propkernel.theories import InfiniteWidth, Mixture
        >>> InfiniteWidth() == InfiniteWidth(), InfiniteWidth() == Mixture(), Mixture()
        (True, False, Mixture())
    """

    name: ClassVar[str]
    needs_order_parameters: ClassVar[bool] = True
    has_leave_one_out: ClassVar[bool] = True
    has_outputs: ClassVar[bool] = False
    has_blocks: ClassVar[bool] = False
    has_streaming: ClassVar[bool] = False

    @torch.no_grad()
    def fit(self, model: Any) -> FittedTheory:
        """Return the theory's order parameters for the model's training data; the model is not changed.

        Args:
            model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`, or for some theories
                (``has_outputs``, ``has_blocks``) one of the kernels with matrices. A copy is kept: later changes of the
                model do not reach the fitted theory. Or a :class:`Problem` from :meth:`Problem.frozen`: several
                theories of one problem share its kernel matrix and reduction. Or a :class:`StreamedProblem` with
                options of its own, for data past memory.

        Raises:
            TypeError, ValueError: Not a suitable model, NaN in the data, or one to which this theory does not apply.
            ConvergenceError: The solve failed.
        """
        problem = self._problem(model)
        self._check(problem)
        fitted = self._fit(problem)
        if isinstance(problem, StreamedProblem):
            fitted.message = f"{fitted.message} {problem.describe()}"
            fitted.stats = {**fitted.stats, "quadrature_error": problem.quadrature_error()}
        return fitted

    @torch.no_grad()
    def check(self, model: Any) -> None:
        """Raise what :meth:`fit` would raise if this theory does not apply to the model; nothing is fitted.

        No matrix of the training points is computed, so that this may come before a search for hyperparameters.

        Args:
            model: As for :meth:`fit`.

        Raises:
            TypeError, ValueError: Not a suitable model, NaN in the data, or one to which this theory does not apply.

        Example:
            >>> import gpytorch, torch
            >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
            >>> from torch_propkernel.theories import Gated
            >>> kernel = RenormalizedNNGPKernel("relu", width=4)
            >>> model = NetworkGP(torch.eye(2), torch.ones(2), gpytorch.likelihoods.GaussianLikelihood(), kernel)
            >>> Gated().check(model)
            Traceback (most recent call last):
                ...
            ValueError: width: Gated() expected 2 hidden layer(s), got 1
        """
        self._check(self._problem(model))

    def _problem(self, model: Any) -> Problem:
        problem = problem_of(model, needs_order_parameters=self.needs_order_parameters)
        if isinstance(problem, OutputsProblem) and not self.has_outputs:
            raise ValueError(f"model: {self!r} expected one output, got {problem.num_outputs}")
        if isinstance(problem, BlocksProblem) and not self.has_blocks:
            raise ValueError(f"model: {self!r} expected a RenormalizedNNGPKernel, got a BlockRenormalizedKernel")
        if isinstance(problem, StreamedProblem) and not self.has_streaming:
            raise ValueError(f"model: {self!r} expected a problem whose kernel matrix is held, got a streamed one")
        return streamed_past_memory(problem) if self.has_streaming else problem

    def _check(self, problem: Problem) -> None:  # noqa: B027  (most theories apply to every network)
        """Raise if the theory does not apply to a frozen problem, without a matrix of the training points."""

    def restored(self, problem: Problem, record: dict[str, Any]) -> FittedTheory:
        """Return a fit of a frozen problem from its :meth:`FittedTheory.record`, without the work.

        Raises:
            ValueError: A theory whose fits have no record.
        """
        raise ValueError(f"theory: expected one whose fits are kept, got {self!r}, which is fitted again")

    @abstractmethod
    def _fit(self, problem: Problem) -> FittedTheory:
        """Fit a frozen problem that was checked, without gradients."""

    def __eq__(self, other: object) -> bool:
        """Equal when of one class and with the same options."""
        return isinstance(other, Theory) and type(self) is type(other) and self._options() == other._options()

    def __hash__(self) -> int:
        """Hash of the class and the options."""
        return hash((type(self), tuple(sorted(self._options().items()))))

    def __repr__(self) -> str:
        """Class and options, as in the call that makes the object."""
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({options})"

    def _options(self) -> dict[str, Any]:
        """Everything but who watches the progress, who is no part of equality."""
        return {name: value for name, value in vars(self).items() if name != "progress"}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out who watches."""
        return {name: None if name == "progress" else value for name, value in vars(self).items()}


class FittedTheory:
    r"""A theory at a model's training data: its order parameters, and all predictions that follow.

    Predictions are in the targets' original units (BoTorch's ``Standardize``), order parameters and the evidence in the
    model's. No gradients are formed, but in x by :meth:`distribution`. It pickles.

    Args:
        theory: What was fitted.
        problem: The frozen problem.
        conditioned: The posterior.
        order_parameters: By name, each ``*b`` or ``*b x L``.
        readout_norm: Predicted posterior mean of ``lambda_L |v|^2 / N_L``, ``*b``.
        message: Outcome of the solve, in words.
        stats: Numbers of the solve: residuals, iterations, number of minima, errors of quadratures.
        log_evidence: log p(y), ``*b``, or what computes it when it is read; None where the theory has none.

    Attributes:
        theory: What was fitted.
        problem: The frozen problem.
        conditioned: The posterior.
        order_parameters: By name.
        readout_norm: Predicted posterior mean of ``lambda_L |v|^2 / N_L``, an observable of a sampled network.
        message: Outcome of the solve, in words.
        stats: Numbers of the solve.
        log_evidence: log p(y) of the model's own targets, ``*b``, comparable at fixed prior variances; None where the
            theory has none. Of blocks it is computed when it is first read.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> from torch_propkernel.theories import InfiniteWidth
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, RenormalizedNNGPKernel(Identity(), width=4))
        >>> fitted = InfiniteWidth().fit(model)
        >>> [round(v.item(), 5) for v in fitted.predict(torch.ones(1, 1))]   # k = T = 1: mean 1/2, variance 1/2
        [0.5, 0.5]
        >>> round(fitted.training_error().item(), 5)   # A = 2: 1/4 + 1 - 1/2
        0.75
    """

    def __init__(
        self,
        theory: Theory,
        problem: Problem,
        conditioned: Conditioned,
        order_parameters: dict[str, Tensor],
        readout_norm: Tensor,
        message: str,
        stats: dict[str, Any] | None = None,
        log_evidence: Tensor | Callable[[], Tensor | None] | None = None,
    ) -> None:
        """Store the outcome."""
        self.theory = theory
        self.problem = problem
        self.conditioned = conditioned
        self.order_parameters = order_parameters
        self.readout_norm = readout_norm
        self.message = message
        self.stats = stats or {}
        self._evidence = log_evidence

    @cached_property
    def log_evidence(self) -> Tensor | None:
        """Natural logarithm of p(y) of the model's own targets, ``*b``; None where the theory has none."""
        return self._evidence() if callable(self._evidence) else self._evidence

    @torch.no_grad()
    def predict(self, x: Tensor, chunk_size: int = 1000) -> tuple[Tensor, Tensor]:
        """Return posterior mean and variance of the network's output, without the noise T.

        Args:
            x: Test inputs, ``*b x m x d``.
            chunk_size: Test points at a time.

        Returns:
            Mean and variance, ``*b x m`` each, in original units.

        Raises:
            TypeError, ValueError: x of the wrong shape, kind, or not finite.
        """
        check_chunk_size(chunk_size)
        pieces = [self.conditioned.predict(rows) for rows in self.problem.points(x).split(chunk_size, dim=-2)]
        mean, variance = (torch.cat(columns, -1) for columns in zip(*pieces, strict=True))
        return self.problem.units.value(mean), self.problem.units.variance(variance)

    def distribution(self, x: Tensor, joint: bool = False) -> Any:
        """Return the posterior of the network's output at x in the model's units, without the noise T.

        A normal, or a :class:`ScaleMixtureMultivariateNormal` where the theory is a mixture.

        Args:
            x: Test inputs, ``*b x m x d``.
            joint: Keep covariances between test points.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            return self.conditioned.distribution(self.problem.points(x), joint)

    def record(self) -> dict[str, Any] | None:
        """Return what a file keeps of the fit: numbers, texts and tensors; None where it is fitted again instead."""
        return None

    @torch.no_grad()
    def error(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> ErrorEstimate:
        """Return the expected squared error at test points with known targets, that of infinite width beside it.

        Args:
            x: Test inputs, ``*b x m x d``.
            y: Test targets, ``*b x m``, in original units.
            chunk_size: Test points at a time.

        Raises:
            TypeError, ValueError: x or y of the wrong shape, kind, or not finite.
        """
        x = self.problem.points(x)
        wide, finite = expected_errors([self.problem.infinite_width, self.conditioned], x, y, chunk_size)
        return dataclasses.replace(finite, infinite_width=wide)

    @torch.no_grad()
    def leave_one_out(self) -> ErrorEstimate:
        """Return errors at each training point given the others, ``*b x P``, those of infinite width beside them.

        Order parameters are those of all points; a mixture's weights follow the points that are left.
        """
        wide, finite = left_out_errors([self.problem.infinite_width, self.conditioned])
        return dataclasses.replace(finite, infinite_width=wide)

    @torch.no_grad()
    def training_error(self) -> Tensor:
        """Return the average squared error of posterior networks on the training points, ``*b``, in original units."""
        return self.conditioned.training_error()

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the expected share of labels +-1 that the sign of a posterior network gets right, ``*b``."""
        x = self.problem.points(x)
        check_targets(y, x.shape[-2])
        return self.conditioned.accuracy(x, y, chunk_size)

    @cached_property
    def reliability(self) -> Reliability | None:
        """How far the prediction may be off, from the training data alone; None for a theory without such a score."""
        return None

    def __repr__(self) -> str:
        """Theory and order parameters."""
        values = ", ".join(f"{name}={value.tolist()}" for name, value in self.order_parameters.items())
        return f"{type(self).__name__}({self.theory!r}: {values})"


def bare_kernel(problem: Problem, theory: Theory, depth: int) -> RenormalizedNNGPKernel:
    """Return the model's kernel if it is the whole covariance of a network with ``depth`` hidden layers.

    Raises:
        ValueError: A composite covariance, another depth.
    """
    kernel = problem.network
    if getattr(problem.model, "covar_module", None) is not kernel:
        got = type(getattr(problem.model, "covar_module", None)).__name__
        raise ValueError(
            f"covar_module: {theory!r} expected the RenormalizedNNGPKernel itself, got {got}; put an overall scale "
            "into weight_variance"
        )
    if kernel.depth != depth:
        raise ValueError(f"width: {theory!r} expected {depth} hidden layer(s), got {kernel.depth}")
    return kernel


def kernel_inputs(problem: Problem, x: Tensor) -> Tensor:
    """Return the columns of x that the kernel reads."""
    dims = problem.network.active_dims
    return x if dims is None else x.index_select(-1, dims)
