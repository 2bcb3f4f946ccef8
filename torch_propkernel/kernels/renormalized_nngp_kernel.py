"""The covariance of a finite-width Bayesian network at fixed order parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from .._validation import as_width
from .._views import twin
from ..activations import Activation
from ..numerics.autocast import outside_autocast
from ..numerics.shapes import common_shape
from ..order_parameters import OrderParameterPrior, ScalarChain
from .compositions import Composition, get_composition, renormalized_layers
from .kernel_matrix import matrix_of_layers, matrix_of_rule
from .nngp_kernel import NNGPKernel, _refuse_last_dim_is_batch
from .recursion import Layer, same_points


class _Prepared(NamedTuple):
    """The covariance of two sets of points as a function of the order parameters."""

    x1: Tensor
    x2: Tensor
    covariance: Callable[[Sequence[Tensor]], Tensor]


class RenormalizedNNGPKernel(NNGPKernel):
    r"""NNGP kernel of a network of finite width, renormalized by one order parameter for each hidden layer.

    .. math:: K_R = \Big(\prod_l q_l\Big) K^L \quad (\text{composition "outer"}), \qquad
              q_l \sim \mathrm{Gamma}(N_l/2 + 1,\ \text{rate } N_l/2)

    K^L is :class:`NNGPKernel`'s covariance, N_l the width of hidden layer l, q_l > 0 its order parameter (the posterior
    mean of ``lambda_l |v|^2 / N_l`` for the readout of one hidden layer); q = 1 is infinite width. The prior is
    dictated by the width: a GP with this kernel and noise variance T, trained by maximum a posteriori, minimizes the
    effective action, :math:`S(q) = -\frac{2}{N}[\log p(y|q) + \log p(q)] + const`. So an ordinary GPyTorch or BoTorch
    training loop solves the theory; :func:`fit_order_parameters` solves it exactly and finds the global minimum.

    The width is data, never trained (its posterior has no maximum). An order parameter and an overall scale enter only
    as a product, so the readout variance is fixed here: freed without a prior it absorbs q, which then sits at one.
    Temperature is the likelihood's noise. ``math.inf`` as a width gives q = 1 and no prior, and :class:`NNGPKernel`'s
    values exactly. See :class:`NNGPKernel` for the parametrization, shapes and what trains.

    Compositions for several layers: ``"outer"`` (default), ``"nested"``, ``"linear_part"``, or an own
    :class:`Composition`. With one hidden layer all are equal. Accuracy against sampled networks and the regimes where
    the prediction fails are in THEORY.md, section 7: few dominant input directions with a saturating activation.

    Args:
        activation: An activation object such as ``Erf()``, or its name, ``"erf"``.
        width: N_1, ..., N_L: a number, a sequence of L numbers or a tensor ``*batch_shape x L``; real or ``math.inf``.
        composition: How several order parameters enter.
        batch_shape: Batch shape; taken from ``width`` if that is larger.
        kwargs: Arguments of :class:`NNGPKernel` (``weight_variance``, ``bias_variance``, ``ard_num_dims``, priors,
            ...).

    Attributes:
        order_parameter: q_1, ..., q_L, ``*batch_shape x 1 x L``; ``initialize(order_parameter=...)`` broadcasts.
        width: ``*batch_shape x 1 x L``, the buffer of the prior.
        composition: The composition object.

    Raises:
        ValueError: A width that is NaN or not positive, an unknown composition, and as :class:`NNGPKernel`.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497 (arXiv:2209.04882), results (i) and (ii);
    THEORY.md, eqs. (2), (6), (7), (8b).

    Example:
        >>> import torch
        >>> from torch_propkernel import NNGPKernel, ReLU, RenormalizedNNGPKernel
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> kernel = RenormalizedNNGPKernel(ReLU(), width=[50, 80]).double()
        >>> kernel.initialize(order_parameter=torch.tensor([0.5, 0.8])).order_parameter.shape
        torch.Size([1, 2])
        >>> infinite = NNGPKernel(ReLU(), depth=2).double()
        >>> torch.allclose(kernel(x).to_dense(), 0.4 * infinite(x).to_dense(), rtol=1e-6)
        True
    """

    _trains_readout = False

    def __init__(
        self,
        activation: str | Activation,
        width: float | Sequence[float] | Tensor,
        composition: str | Composition = "outer",
        *,
        batch_shape: torch.Size | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the order parameters with the prior that the width dictates."""
        widths = as_width(width)
        composition = get_composition(composition)
        if "depth" in kwargs:
            raise TypeError("depth: expected one number in width for each hidden layer instead, got depth")
        batch_shape = torch.broadcast_shapes(torch.Size(batch_shape or []), widths.shape[:-1])
        widths = widths.expand(*batch_shape, widths.shape[-1])
        super().__init__(activation, widths.shape[-1], batch_shape=batch_shape, **kwargs)
        self.composition = composition
        self._given_order_parameter: Tensor | None = None  # of views only
        self._prepared: list[_Prepared] | None = None  # of views only
        chain = ScalarChain(widths)
        self.register_parameter("raw_order_parameter", torch.nn.Parameter(chain.initial_raw()))
        self.register_constraint("raw_order_parameter", chain.constraint())
        self.register_prior(
            "order_parameter_prior", chain.prior(), self._get_order_parameter, self._set_order_parameter
        )

    @property
    def width(self) -> Tensor:
        """Widths N_1, ..., N_L, ``*batch_shape x 1 x L``: the prior's buffer."""
        return self.order_parameter_prior.width

    @property
    def chain(self) -> ScalarChain:
        """The order parameters as one object, with widths ``*batch_shape x L`` in float64."""
        return ScalarChain(self.width.squeeze(-2).to(torch.float64))

    @property
    def order_parameter(self) -> Tensor:
        """Order parameters q_1, ..., q_L, ``*batch_shape x 1 x L``; one where the width is infinite."""
        if self._given_order_parameter is not None:
            return self._given_order_parameter
        return ScalarChain.pinned(self._constrained("order_parameter"), self.width)

    @order_parameter.setter
    def order_parameter(self, value: Any) -> None:
        self._initialize_constrained("order_parameter", value)

    def at(self, order_parameter: Tensor | None) -> RenormalizedNNGPKernel:
        """Return a view of the kernel with other order parameters ``*b x L``, also with a graph; None: its own.

        The view shares all other parameters with the kernel, which is not changed: threads may share the kernel.
        """
        view = twin(self)
        view._given_order_parameter = None
        if order_parameter is not None:
            value = order_parameter.to(self.raw_order_parameter).unsqueeze(-2)
            if value.shape[-1] != self.depth:
                raise ValueError(
                    f"order_parameter: expected shape (..., {self.depth}), got {tuple(order_parameter.shape)}"
                )
            view._given_order_parameter = value.expand(common_shape(value, self.raw_order_parameter))
        return view

    def with_width(self, width: Tensor) -> RenormalizedNNGPKernel:
        """Return a view of the kernel with other widths ``*batch_shape x L`` and its present order parameters."""
        view = twin(self)
        view._modules["order_parameter_prior"] = OrderParameterPrior(width.to(self.width))
        return view

    def remembering(self) -> RenormalizedNNGPKernel:
        """Return a view that keeps what order parameters do not change, for the points where it is evaluated.

        For many covariances of the same few points: :meth:`at` of the view shares what it keeps. The memory grows with
        every new pair of points. It follows no change of hyperparameters and is differentiable in the order parameters
        alone.
        """
        view = twin(self)
        view._prepared = []
        return view

    def _prepared_at(self, x1: Tensor, x2: Tensor) -> Callable[[Sequence[Tensor]], Tensor] | None:
        """Return the covariance as a function of the order parameters; None unless this view keeps it."""
        if self._prepared is None:
            return None
        for known in self._prepared:
            if all(same_points(*pair) or torch.equal(*pair) for pair in ((x1, known.x1), (x2, known.x2))):
                return known.covariance
        with torch.no_grad():
            made = self.composition.prepared(self.input_covariance(x1, x2, elementwise=False), self.layers())
        self._prepared.append(_Prepared(x1, x2, made))
        return made

    @property
    def is_scalar(self) -> bool:
        """Whether the kernel depends on the order parameters through their product alone."""
        return self.composition.is_scalar(self.layers())

    def _get_order_parameter(self, module: RenormalizedNNGPKernel) -> Tensor:
        return module.order_parameter

    def _set_order_parameter(self, module: RenormalizedNNGPKernel, value: Tensor) -> None:
        module._initialize_constrained("order_parameter", value, clamp=True)

    def local_load_samples(self, samples_dict: Any, memo: Any, prefix: str) -> None:
        """Load samples of the priors; the width gets the dimension of samples too."""
        super().local_load_samples(samples_dict, memo, prefix)
        self.order_parameter_prior.width = self.width.expand_as(self.raw_order_parameter).contiguous()

    def effective_layers(self) -> list[Layer] | None:
        """Return the layers of an infinitely wide network with the kernel K_R; None where it is not one's."""
        return renormalized_layers(self.composition, self.layers(), self._order_parameters())

    def _order_parameters(self, elementwise: bool = False) -> list[Tensor]:
        """Order parameters of each layer, shaped to broadcast against its matrices."""
        value = self.order_parameter.squeeze(-2)
        return [value[..., i : i + 1] if elementwise else value[..., i : i + 1, None] for i in range(self.depth)]

    @outside_autocast
    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return K_R(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        order_parameters = self._order_parameters(elementwise=diag)
        prepared = None if diag else self._prepared_at(x1, x2)
        if prepared is not None:
            return prepared(order_parameters)
        layers, rule = self.layers(elementwise=diag), self.composition.covariance
        if diag:
            return rule(self.input_covariance(x1, x2, elementwise=True), layers, order_parameters)
        inputs, renormalized = self.inputs(x1, x2), renormalized_layers(self.composition, layers, order_parameters)
        if renormalized is not None:
            return matrix_of_layers(inputs, renormalized)
        return matrix_of_rule(rule, inputs, layers, order_parameters)

    def __getitem__(self, index: Any) -> Kernel:
        """Index the batch dimensions of every parameter and of the width together."""
        given, own = self._given_order_parameter, self.at(None)
        kernel = super(RenormalizedNNGPKernel, own).__getitem__(index)
        if kernel is own:
            return self
        index = index if isinstance(index, tuple) else (index,)
        kernel.order_parameter_prior.width = self.width[index]
        kernel._given_order_parameter = None if given is None else given[index]
        return kernel

    def expand_batch(self, *sizes: torch.Size | tuple[int, ...]) -> Kernel:
        """Expand the batch dimensions of every parameter and of the width together."""
        given, own = self._given_order_parameter, self.at(None)
        kernel = super(RenormalizedNNGPKernel, own).expand_batch(*sizes)
        if kernel is own:
            return self
        shape = kernel.raw_order_parameter.shape
        kernel.order_parameter_prior.width = self.width.expand(shape)
        kernel._given_order_parameter = None if given is None else given.expand(shape)
        return kernel


@overload
def find_renormalized_kernel(model: Any) -> RenormalizedNNGPKernel: ...
@overload
def find_renormalized_kernel(model: Any, *, optional: bool) -> RenormalizedNNGPKernel | None: ...
def find_renormalized_kernel(model: Any, *, optional: bool = False) -> RenormalizedNNGPKernel | None:
    """Return the model's one renormalized kernel; with ``optional``, None if it has none.

    Raises:
        TypeError: Not a model with training data and a likelihood.
        ValueError: No renormalized kernel, or more than one.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected an ExactGP-like module, got {type(model).__name__}")
    kernels = [m for m in model.modules() if isinstance(m, RenormalizedNNGPKernel)]
    if optional and not kernels:
        return None
    if len(kernels) != 1:
        names = [type(m).__name__ for m in model.modules() if isinstance(m, Kernel)]
        raise ValueError(
            f"model: expected exactly one RenormalizedNNGPKernel in its covariance, got {len(kernels)} among "
            f"the kernels {names}"
        )
    return kernels[0]
