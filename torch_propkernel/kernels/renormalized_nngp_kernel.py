"""The covariance of a finite-width Bayesian network at fixed order parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from .._validation import as_width
from ..activations import Activation
from ..order_parameters import ScalarChain
from .compositions import Composition, get_composition
from .nngp_kernel import NNGPKernel, _refuse_last_dim_is_batch


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

    Compositions for several layers: ``"outer"`` (default), ``"nested"``, ``"linearized"``, ``"linear_part"``, or an own
    :class:`Composition`. With one hidden layer all are equal. Accuracy against sampled networks and the regimes where
    the prediction fails are in THEORY.md, section 7: few dominant input directions with a saturating activation.

    Args:
        activation: An activation object, e.g. ``Erf()``.
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
    THEORY.md, eqs. (2), (6), (7), (8), (8b).

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
        activation: Activation,
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
        self._assigned_order_parameter: Tensor | None = None
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
        if self._assigned_order_parameter is not None:
            return self._assigned_order_parameter
        return ScalarChain.pinned(self._constrained("order_parameter"), self.width)

    @order_parameter.setter
    def order_parameter(self, value: Any) -> None:
        self._initialize_constrained("order_parameter", value)

    @contextmanager
    def assigned_order_parameter(self, value: float | Tensor) -> Iterator[RenormalizedNNGPKernel]:
        """Use ``value`` (a number or a tensor, also with a graph) instead of the parameter in a ``with`` block."""
        reference = self.raw_order_parameter
        value = torch.as_tensor(value, dtype=reference.dtype, device=reference.device)
        previous = self._assigned_order_parameter
        self._assigned_order_parameter = value.expand(torch.broadcast_shapes(value.shape, reference.shape))
        try:
            yield self
        finally:
            self._assigned_order_parameter = previous

    @property
    def is_scalar(self) -> bool:
        """Whether the kernel depends on the order parameters through their product alone."""
        return self.composition.is_scalar(self.layers())

    def _get_order_parameter(self, module: RenormalizedNNGPKernel) -> Tensor:
        return module.order_parameter

    def _set_order_parameter(self, module: RenormalizedNNGPKernel, value: Tensor) -> None:
        module.order_parameter = value

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return K_R(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        state = self.input_covariance(x1, x2, elementwise=diag)
        order_parameter = self.order_parameter.squeeze(-2)
        order_parameters = [
            order_parameter[..., i : i + 1] if diag else order_parameter[..., i : i + 1].unsqueeze(-1)
            for i in range(self.depth)
        ]
        return self.composition.covariance(state, self.layers(elementwise=diag), order_parameters)

    def __getitem__(self, index: Any) -> Kernel:
        """Index the batch dimensions of every parameter and of the width together."""
        kernel = super().__getitem__(index)
        if kernel is not self:
            prior = kernel.order_parameter_prior
            prior.width = self.width[index if isinstance(index, tuple) else (index,)]
        return kernel

    def expand_batch(self, *sizes: torch.Size | tuple[int, ...]) -> Kernel:
        """Expand the batch dimensions of every parameter and of the width together."""
        kernel = super().expand_batch(*sizes)
        if kernel is not self:
            kernel.order_parameter_prior.width = self.width.expand_as(kernel.raw_order_parameter)
        return kernel


def find_renormalized_kernel(model: Any) -> RenormalizedNNGPKernel:
    """Return the model's one renormalized kernel.

    Raises:
        TypeError: Not a model with training data and a likelihood.
        ValueError: No renormalized kernel, or more than one.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected an ExactGP-like module, got {type(model).__name__}")
    kernels = [m for m in model.modules() if isinstance(m, RenormalizedNNGPKernel)]
    if len(kernels) != 1:
        names = [type(m).__name__ for m in model.modules() if isinstance(m, Kernel)]
        raise ValueError(
            f"model: expected exactly one RenormalizedNNGPKernel in its covariance, got {len(kernels)} among "
            f"the kernels {names}"
        )
    return kernels[0]
