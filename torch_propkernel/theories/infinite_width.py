"""The Gaussian process of an infinitely wide network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..inference.model_parts import ModelParts
from ..inference.predictor import Predictor
from .base import FittedTheory, Theory


class FittedGaussian(FittedTheory):
    """A theory whose posterior is that of one Gaussian process, with a renormalized kernel.

    Args:
        predictor: The process, conditioned on the training data.
        args: As :class:`FittedTheory`.
        kwargs: As :class:`FittedTheory`.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Identity, NetworkGP, RenormalizedNNGPKernel
        >>> likelihood = gpytorch.likelihoods.GaussianLikelihood()
        >>> likelihood.noise = 1.0
        >>> model = NetworkGP(torch.ones(1, 1), torch.ones(1), likelihood, RenormalizedNNGPKernel(Identity(), width=4))
        >>> round(InfiniteWidth().fit(model).training_error().item(), 5)   # A = 2: 1/4 + 1 - 1/2
        0.75
    """

    def __init__(self, predictor: Predictor, *args: Any, **kwargs: Any) -> None:
        """Store the conditioned process."""
        super().__init__(*args, **kwargs)
        self.predictor = predictor

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor.predict(x)

    def _training_error(self) -> Tensor:
        return self.predictor.training_error()


class GivenKernel(Predictor):
    """A process conditioned on the training data whose covariance is not one of the model's kernel.

    Args:
        parts: The model's pieces.
        covariance: Covariance of the training points, ``*b x P x P``; overwritten.
        blocks: Gives prior mean at x, covariance with the training points and prior variance.
    """

    def __init__(
        self, parts: ModelParts, covariance: Tensor, blocks: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        """Condition."""
        super().__init__(parts, 1.0, covariance)
        self._given_blocks = blocks

    def blocks(self, x: Tensor, joint: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return prior mean at ``x``, covariance with the training points ``*b x P x m``, and prior variance."""
        if joint:
            raise NotImplementedError("joint: expected False, got True; only marginals are formed here")
        return self._given_blocks(x)


class InfiniteWidth(Theory):
    r"""The network of infinite width: the GP with the NNGP kernel, q = 1.

    .. math:: f \sim GP(0, K^L)

    With the same hyperparameters as the finite network, nothing is fitted. See :class:`FittedTheory` for shapes and
    units. Cost: one kernel evaluation and one Cholesky factorization.

    Reference: THEORY.md, section 0 and eq. (4) at q = 1.

    Example:
        >>> import gpytorch, torch
        >>> from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel, generalization_error
        >>> x, y = torch.eye(3), torch.ones(3)
        >>> model = NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), RenormalizedNNGPKernel(Erf(), width=10))
        >>> fitted = InfiniteWidth().fit(model)
        >>> torch.allclose(fitted.error(x, y).total, generalization_error(model, x, y).infinite_width.total)
        True
    """

    name = "infinite width"

    def _fit(self, parts: ModelParts) -> FittedTheory:
        one = torch.ones_like(parts.kernel.width.squeeze(-2))
        message = "Infinite width: the order parameters are one, there is nothing to solve."
        return FittedGaussian(Predictor(parts, 1.0), self, parts, {"q": one}, one[..., -1], message)
