"""What every theory of a finite network does: fit a model's training data, then predict with its order parameters."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._validation import check_targets
from ..inference.model_parts import ModelParts, take_apart
from ..inference.predictor import Predictor, Units, prepare_points
from ..kernels import RenormalizedNNGPKernel
from .errors import ErrorEstimate


class Theory(ABC):
    """A way to predict the posterior of a finite Bayesian network from its architecture and training data.

    A subclass gives ``name`` and ``_fit``. Theories have no state beside their options: two of one class with the
    same options are equal.

    Attributes:
        name: Short name in tables.

    Example:
        >>> from torch_propkernel.theories import InfiniteWidth, Mixture
        >>> InfiniteWidth() == InfiniteWidth(), InfiniteWidth() == Mixture(), Mixture()
        (True, False, Mixture())
    """

    name: ClassVar[str]

    def fit(self, model: Any) -> FittedTheory:
        """Return the theory's order parameters for the model's training data; the model is not changed.

        Args:
            model: An ExactGP-like model with one :class:`RenormalizedNNGPKernel`. A copy is kept: later changes of the
                model do not reach the fitted theory.

        Raises:
            TypeError, ValueError: Not a suitable model, NaN in the data, or one to which this theory does not apply.
            ConvergenceError: The solve failed.
        """
        frozen = copy.deepcopy(model)
        if isinstance(frozen, torch.nn.Module):
            frozen.eval()  # BoTorch models hold transformed inputs then
        with torch.no_grad():
            parts = take_apart(frozen)
            Units.of(frozen)
            return self._fit(parts)

    @abstractmethod
    def _fit(self, parts: ModelParts) -> FittedTheory:
        """Fit the pieces of a copy that no one else holds, without gradients."""

    def __eq__(self, other: object) -> bool:
        """Equal when of one class and with the same options."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """Hash of the class and the options."""
        return hash((type(self), tuple(sorted(vars(self).items()))))

    def __repr__(self) -> str:
        """Class and options, as in the call that makes the object."""
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class FittedTheory(ABC):
    r"""Order parameters of a theory at a model's training data, and the predictions that follow.

    A subclass gives ``_predict``, and ``_training_error``. Predictions are in the targets' original units
    (BoTorch's ``Standardize``), order parameters in the model's. No gradients are formed.

    Args:
        theory: What was fitted.
        parts: Pieces of the frozen model.
        order_parameters: By name, each ``*b`` or ``*b x L``.
        readout_norm: Predicted posterior mean of ``lambda_L |v|^2 / N_L``, ``*b``.
        message: Outcome of the solve, in words.
        stats: Numbers of the solve: residuals, iterations, number of minima, errors of quadratures.

    Attributes:
        theory: What was fitted.
        parts: Pieces of the model; a copy.
        order_parameters: By name.
        readout_norm: Predicted posterior mean of ``lambda_L |v|^2 / N_L``, an observable of a sampled network.
        message: Outcome of the solve, in words.
        stats: Numbers of the solve.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> from torch_propkernel.theories import InfiniteWidth
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, RenormalizedNNGPKernel(Identity(), width=4))
        >>> fitted = InfiniteWidth().fit(model)
        >>> [round(v.item(), 5) for v in fitted.predict(torch.ones(1, 1))]   # k = T = 1: mean 1/2, variance 1/2
        [0.5, 0.5]
    """

    def __init__(
        self,
        theory: Theory,
        parts: ModelParts,
        order_parameters: dict[str, Tensor],
        readout_norm: Tensor,
        message: str,
        stats: dict[str, Any] | None = None,
    ) -> None:
        """Store the outcome."""
        self.theory = theory
        self.parts = parts
        self.order_parameters = order_parameters
        self.readout_norm = readout_norm
        self.message = message
        self.stats = stats or {}

    @abstractmethod
    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and latent variance at prepared points ``*b x m x d``, ``*b x m`` each, in the model's units."""

    @abstractmethod
    def _training_error(self) -> Tensor:
        """Return E (1/P) sum (y - f)^2, ``*b``, in the model's units."""

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
        return _in_chunks(self._predict, prepare_points(self.parts, x), chunk_size, Units.of(self.parts.model))

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
        x = prepare_points(self.parts, x)
        check_targets(y, x.shape[-2])
        units = Units.of(self.parts.model)
        wide, finite = (
            ErrorEstimate(mean, (y - mean).square(), variance)
            for mean, variance in (
                _in_chunks(predict, x, chunk_size, units)
                for predict in (Predictor(self.parts, 1.0).predict, self._predict)
            )
        )
        return dataclasses.replace(finite, infinite_width=wide)

    @torch.no_grad()
    def training_error(self) -> Tensor:
        """Return the average squared error of posterior networks on the training points, ``*b``, in original units."""
        scale = torch.as_tensor(Units.of(self.parts.model).scale, dtype=self.parts.targets.dtype).squeeze(-1)
        return self._training_error() * scale**2

    def __repr__(self) -> str:
        """Theory and order parameters."""
        values = ", ".join(f"{name}={value.tolist()}" for name, value in self.order_parameters.items())
        return f"{type(self).__name__}({self.theory!r}: {values})"


def _in_chunks(predict: Any, x: Tensor, chunk_size: int, units: Units) -> tuple[Tensor, Tensor]:
    pieces = [predict(rows) for rows in x.split(chunk_size, dim=-2)]
    mean, variance = (torch.cat(columns, -1) for columns in zip(*pieces, strict=True))
    return units.shift + units.scale * mean, variance * units.scale**2


def bare_kernel(parts: ModelParts, theory: Theory, depth: int) -> RenormalizedNNGPKernel:
    """Return the model's kernel if it is the whole covariance of a network with ``depth`` hidden layers.

    Raises:
        ValueError: A composite covariance, another depth.
    """
    kernel = parts.kernel
    if getattr(parts.model, "covar_module", None) is not kernel:
        got = type(getattr(parts.model, "covar_module", None)).__name__
        raise ValueError(
            f"covar_module: {theory!r} expected the RenormalizedNNGPKernel itself, got {got}; put an overall scale "
            "into weight_variance"
        )
    if kernel.depth != depth:
        raise ValueError(f"width: {theory!r} expected {depth} hidden layer(s), got {kernel.depth}")
    return kernel


def kernel_inputs(parts: ModelParts, x: Tensor) -> Tensor:
    """Return the columns of x that the kernel reads."""
    dims = parts.kernel.active_dims
    return x if dims is None else x.index_select(-1, dims)
