"""The covariance of a finite-width network with several outputs, at fixed matrix order parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from linear_operator import to_linear_operator
from linear_operator.operators import KroneckerProductLinearOperator
from torch import Tensor

from ..activations import Activation
from ..order_parameters import ScalarChain
from .matrix_order_parameter_kernel import MatrixOrderParameterKernel
from .nngp_kernel import NNGPKernel, _refuse_last_dim_is_batch


class MultitaskRenormalizedKernel(MatrixOrderParameterKernel):
    r"""Covariance of a network of finite width with D outputs, renormalized by a D x D matrix for each hidden layer.

    .. math:: \mathrm{Cov}[f_a(x), f_b(x')] = Q_{ab}\, K^L(x, x'), \qquad Q = R_1 R_1^T, \quad
              R_l = R_{l+1} E_l^{1/2}, \quad E_l \sim \mathrm{Wishart}_D(N_l + D + 1,\ I / N_l)

    K^L is :class:`NNGPKernel`'s covariance and E_l the order parameter of layer l, the identity at infinite width,
    where the outputs are independent. At finite width they are not: the posterior of the layers that they share
    correlates them. The prior is dictated by the widths: a GP with this kernel and noise T, trained by maximum a
    posteriori, minimizes the effective action; ``theories.SaddlePoint`` does it at once. A matrix stands in **every**
    layer: scalars below a matrix in the last one are off by 35 to 50 % for single outputs of deep linear networks.

    Covariances are interleaved as in :class:`gpytorch.kernels.MultitaskKernel` (the output index is the fast one), a
    Kronecker product that is never formed here. Readout variance and widths are fixed, as for
    :class:`RenormalizedNNGPKernel`. Exact in the proportional limit for identity activations; for others it is the
    outer reading, as for one output. D = 1 is :class:`RenormalizedNNGPKernel`.

    Args:
        activation: An activation object or its name.
        width: N_1, ..., N_L: a number, a sequence of L numbers or a tensor ``*batch_shape x L``.
        num_tasks: D, the number of outputs.
        batch_shape: Batch shape; taken from ``width`` if that is larger.
        kwargs: Arguments of :class:`NNGPKernel` (``weight_variance``, ``bias_variance``, ``ard_num_dims``, ...).

    Attributes:
        data_covar_module: K^L, an :class:`NNGPKernel`.
        order_parameter: E_1, ..., E_L, ``*batch_shape x L x D x D``; set it with ``initialize(order_parameter=...)``.
        output_covariance: Q, ``*batch_shape x D x D``.
        width: ``*batch_shape x 1 x L``, the buffer of the prior.

    Raises:
        ValueError: ``num_tasks`` that is no whole number >= 1, a width that is NaN or not positive, order parameters
            that are not symmetric positive definite; and as :class:`NNGPKernel`.

    Reference: Pacelli, Giambagli, Baglioni (2024), arXiv:2412.15911; THEORY.md, section 11, eq. (20).

    Example:
        >>> import torch
        >>> from torch_propkernel.kernels import MultitaskRenormalizedKernel
        >>> kernel = MultitaskRenormalizedKernel("relu", width=50, num_tasks=2)
        >>> kernel.order_parameter = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
        >>> x = torch.ones(1, 3)
        >>> [[round(v, 4) for v in row] for row in kernel(x).to_dense().tolist()]   # K^L = |x|^2 / (2 N_0) = 1/2
        [[1.0, 0.25], [0.25, 0.5]]
    """

    def __init__(
        self,
        activation: str | Activation,
        width: float | Sequence[float] | Tensor,
        num_tasks: int,
        *,
        batch_shape: torch.Size | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the order parameters with the prior that the widths dictate."""
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"num_tasks: expected a whole number >= 1, got {num_tasks!r}")
        if "depth" in kwargs:
            raise TypeError("depth: expected one number in width for each hidden layer instead, got depth")
        super().__init__(width, num_tasks, batch_shape, kwargs.pop("active_dims", None))
        self.num_tasks = num_tasks
        depth = self.width.shape[-1]
        self.data_covar_module = _DataKernel(activation, depth, batch_shape=self._batch_shape, **kwargs)

    @property
    def chain(self) -> ScalarChain:
        """The chain of each eigenvalue of Q, with widths ``*batch_shape x L`` in float64."""
        return ScalarChain(self.width.squeeze(-2).to(torch.float64))

    @property
    def output_covariance(self) -> Tensor:
        """Q, ``*batch_shape x D x D``."""
        halves = torch.matrix_exp(0.5 * self._logs)
        factor = halves[..., -1, :, :]
        for layer in reversed(range(halves.shape[-3] - 1)):
            factor = factor @ halves[..., layer, :, :]
        return factor @ factor.mT

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:
        """Return D."""
        return self.num_tasks

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Any:
        """Return K^L (x) Q, ``... x nD x mD``, or its elementwise diagonal ``... x nD``."""
        _refuse_last_dim_is_batch(params)
        outputs = self.output_covariance
        if diag:
            points = self.data_covar_module.forward(x1, x2, diag=True)
            return (points.unsqueeze(-1) * outputs.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).flatten(-2)
        points = to_linear_operator(self.data_covar_module.forward(x1, x2))
        return KroneckerProductLinearOperator(points, to_linear_operator(outputs))


class _DataKernel(NNGPKernel):
    """The infinitely wide network's kernel with a fixed readout variance: a scale of it is the order parameter's."""

    _trains_readout = False
