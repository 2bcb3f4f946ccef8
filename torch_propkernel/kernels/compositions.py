"""How the order parameters of several layers enter the renormalized kernel: one small class for each reading."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..order_parameters import ScalarChain
from .recursion import Covariance, Layer, affine, dual_covariance, propagate_all
from .upper_layers import matrix_of_upper_layers


class Composition(ABC):
    """The map from the layers' order parameters to the renormalized kernel K_R.

    A subclass implements :meth:`covariance`, and :meth:`is_scalar` if it can be solved in one dimension. With one
    hidden layer every composition is K_R = q K. An object of a subclass can be given to
    :class:`RenormalizedNNGPKernel`. ``covariance`` works entry by entry: it is called on parts of a matrix.

    Example:
        >>> from torch_propkernel import Erf, RenormalizedNNGPKernel
        >>> from torch_propkernel.kernels import Outer
        >>> class LastLayerOnly(Composition):   # a composition of one's own: ignore all but the last order parameter
        ...     name = "last_layer_only"
        ...     def covariance(self, state, layers, order_parameters):
        ...         ones = [torch.ones_like(q) for q in order_parameters[:-1]]
        ...         return Outer().covariance(state, layers, [*ones, order_parameters[-1]])
        >>> kernel = RenormalizedNNGPKernel(Erf(), [20, 30], LastLayerOnly())
        >>> x = torch.ones(1, 2)
        >>> before = kernel(x).to_dense().item()
        >>> kernel.order_parameter = torch.tensor([7.0, 2.0])
        >>> round(kernel(x).to_dense().item() / before, 5)
        2.0
    """

    name: str

    @abstractmethod
    def covariance(self, state: Covariance, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> Tensor:
        r"""Return K_R between the points of ``state``.

        Args:
            state: Covariance C of the first pre-activations; its memory may be reused.
            layers: The hidden layers' activation, weight variance 1/lambda_l and bias variance b_l (none for l = L).
            order_parameters: q_1, ..., q_L, broadcastable against ``state.xy``.
        """

    def prepared(self, state: Covariance, layers: Sequence[Layer]) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return K_R as a function of the order parameters; what they do not change is computed once.

        A subclass whose lower layers are the same for all order parameters overrides it.

        Args:
            state: As in :meth:`covariance`; its memory is not reused.
            layers: As in :meth:`covariance`.
        """
        return lambda order_parameters: self.covariance(state._replace(xy=state.xy.clone()), layers, order_parameters)

    def is_scalar(self, layers: Sequence[Layer]) -> bool:
        """Whether K_R depends on the order parameters through their product alone, K_R = (prod_l q_l) K."""
        return len(layers) == 1

    def __eq__(self, other: object) -> bool:
        """Compositions have no state: equal when of one class."""
        return type(self) is type(other)

    def __hash__(self) -> int:
        """Hash of the class."""
        return hash(type(self))

    def __repr__(self) -> str:
        """Name of the class with empty parentheses."""
        return f"{type(self).__name__}()"


class _OfLayers(Composition):
    """K_R is the kernel of an infinitely wide network with other weight variances."""

    @abstractmethod
    def renormalized(self, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> list[Layer]:
        """Return the layers of that network."""

    def covariance(self, state: Covariance, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> Tensor:
        """Return K_R, the last covariance of the recursion through the renormalized layers."""
        return propagate_all(state, self.renormalized(layers, order_parameters))


def renormalized_layers(
    composition: Composition, layers: Sequence[Layer], order_parameters: Sequence[Tensor]
) -> list[Layer] | None:
    """Return the layers of an infinitely wide network with the kernel K_R; None where it is not one's."""
    if isinstance(composition, _OfLayers) and type(composition).covariance is _OfLayers.covariance:
        return composition.renormalized(layers, order_parameters)
    return None


class Outer(_OfLayers):
    """K_R = (prod_l q_l) K^L (THEORY.md, eq. (7)); hidden biases stay inside the recursion.

    Example:
        >>> from torch_propkernel import Erf, RenormalizedNNGPKernel
        >>> RenormalizedNNGPKernel(Erf(), [20, 30]).is_scalar   # solved globally, in one dimension
        True
    """

    name = "outer"

    def renormalized(self, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> list[Layer]:
        """Return the layers with all order parameters on the last one."""
        product = ScalarChain.scale(torch.stack(torch.broadcast_tensors(*order_parameters), -1))
        return [*layers[:-1], layers[-1].times(product)]

    def is_scalar(self, layers: Sequence[Layer]) -> bool:
        """Return True: only the product enters."""
        return True


class Nested(_OfLayers):
    """K_R^l = (q_l / lambda_l) kappa(K_R^{l-1}) + b_l (THEORY.md, eq. (6)), the reading stated by the paper.

    Example:
        >>> from torch_propkernel import Erf, ReLU, RenormalizedNNGPKernel
        >>> [RenormalizedNNGPKernel(a, [20, 30], Nested()).is_scalar for a in (Erf(), ReLU())]   # relu: equal to outer
        [False, True]
    """

    name = "nested"

    def renormalized(self, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> list[Layer]:
        """Return each layer with its own order parameter."""
        return [layer.times(q) for layer, q in zip(layers, order_parameters, strict=True)]

    def prepared(self, state: Covariance, layers: Sequence[Layer]) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return K_R^L from the first layer's kappa, which feels no order parameter."""
        kappa = dual_covariance(state, layers[0].activation)
        return lambda order_parameters: matrix_of_upper_layers(kappa, self.renormalized(layers, order_parameters))

    def is_scalar(self, layers: Sequence[Layer]) -> bool:
        """Nested equals outer if every layer above the first is homogeneous of degree one and no bias sits between."""
        return all(layer.activation.homogeneous_degree == 1 for layer in layers[1:]) and all(
            layer.bias_variance is None for layer in layers[:-1]
        )


class LinearPart(Composition):
    """K_R^l = (q_l / lambda_l) [kappa(K^{l-1}) + D (K_R^{l-1} - K^{l-1}) D] + b_l (THEORY.md, eq. (8b)).

    Only the part of a layer that is linear in the previous layer's activations, with slope D_a = E sigma'(h_a) of the
    unrenormalized covariance, feels the lower order parameters. Positive semi-definite for every q > 0.

    Example:
        >>> from torch_propkernel import RenormalizedNNGPKernel
        >>> from torch_propkernel.activations import Identity
        >>> x = torch.eye(2)
        >>> part, outer = (RenormalizedNNGPKernel(Identity(), [20, 30], c) for c in ("linear_part", "outer"))
        >>> part.order_parameter = outer.order_parameter = torch.tensor([0.5, 2.0])
        >>> torch.allclose(part(x).to_dense(), outer(x).to_dense())   # a linear layer is all linear part
        True
    """

    name = "linear_part"

    def covariance(self, state: Covariance, layers: Sequence[Layer], order_parameters: Sequence[Tensor]) -> Tensor:
        """Return K_R as the sum that it is."""
        terms, products = self._terms(state, layers), self._products(order_parameters)
        return functools.reduce(torch.add, map(torch.mul, products, terms))

    def prepared(self, state: Covariance, layers: Sequence[Layer]) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return K_R from its terms, which feel no order parameter."""
        terms = torch.stack(self._terms(state, layers), -3)
        entries = terms.flatten(-2)

        def covariance(order_parameters: Sequence[Tensor]) -> Tensor:
            weights = torch.cat(self._products(order_parameters), -1)
            return (weights @ entries).unflatten(-1, terms.shape[-2:]).squeeze(-3)

        return covariance

    @staticmethod
    def _terms(state: Covariance, layers: Sequence[Layer]) -> list[Tensor]:
        """Return M_1, ..., M_L of K_R = sum_l q_l q_{l+1} ... q_L M_l.

        With k_l = w_l kappa(K^{l-1}) they are M_l = D_L ... D_{l+1} (k_l - D_l k_{l-1} D_l) D_{l+1} ... D_L, each D_l
        with the weight w_l on one side.
        """
        terms: list[Tensor] = []
        below: Tensor | None = None
        for layer in layers:
            kappa, weight = dual_covariance(state, layer.activation), layer.weight_variance
            kernel = weight * kappa.xy
            if below is None:
                terms = [kernel]
            else:
                slopes = weight * layer.activation.slope(state.xx) * layer.activation.slope(state.yy)
                terms = [*(slopes * term for term in terms), torch.addcmul(kernel, slopes, below, value=-1.0)]
            below, state = kernel, affine(kappa, weight, layer.bias_variance)
        return terms

    @staticmethod
    def _products(order_parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return q_l q_{l+1} ... q_L of every layer."""
        return list(itertools.accumulate(reversed(order_parameters), torch.mul))[::-1]


COMPOSITIONS: dict[str, type[Composition]] = {c.name: c for c in (Outer, Nested, LinearPart)}
"""Names of the compositions, for arguments, command lines and configuration files."""


def get_composition(composition: str | Composition) -> Composition:
    """Return a composition object from its name or pass an object through.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
        TypeError: Neither a name nor a :class:`Composition`.
    """
    if isinstance(composition, Composition):
        return composition
    if isinstance(composition, str):
        if composition not in COMPOSITIONS:
            raise ValueError(f"composition: expected one of {sorted(COMPOSITIONS)}, got {composition!r}")
        return COMPOSITIONS[composition]()
    raise TypeError(f"composition: expected a name or a Composition, got {type(composition).__name__}")
