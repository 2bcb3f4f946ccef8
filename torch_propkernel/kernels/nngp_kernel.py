"""The covariance of an infinitely wide Bayesian network."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..exceptions import InputScaleWarning
from ..numerics.autocast import outside_autocast
from ..numerics.differentiation import transforms_are_active
from .kernel_matrix import matrix_of_layers
from .network_prior_kernel import NetworkPriorKernel
from .recursion import Covariance, Inputs, Layer, input_covariance, propagate_all, same_points


class NNGPKernel(NetworkPriorKernel):
    r"""Covariance of a fully connected Bayesian network with infinitely wide hidden layers (neural network GP, NNGP).

    .. math::
        K^0(x, x') = \frac{w_0}{N_0} \sum_j a_j x_j x'_j + b_0, \qquad
        K^l = w_l\, \kappa(K^{l-1}) + b_l, \qquad K = K^L \ (b_L = 0),

    where :math:`\kappa(c_{xx}, c_{xy}, c_{yy}) = E[\sigma(u)\sigma(w)]` is the activation's dual, :math:`w_l =
    1/\lambda_l` is the prior variance of layer l's weights times that layer's fan-in (weights enter as :math:`W \cdot
    h/\sqrt{N}`), :math:`b_l` the prior variance of its biases, :math:`a_j` the ARD weights (mean 1; all 1 without
    ARD), and N_0 the number of inputs. "NNGP" here is never "nearest-neighbor GP".

    Not included: a readout bias (its prior is a :class:`gpytorch.kernels.ConstantKernel` that is added; or use a mean)
    and the noise, which is the likelihood's.

    What trains: ``bias_variance`` (where it was given positive), the ARD weights, the readout variance w_L and, for
    activations that are not homogeneous, the other weight variances. For homogeneous activations (relu, identity, ...)
    the lower weight variances are only an overall scale: they are fixed. Change it with ``requires_grad_`` on the
    ``raw_`` parameters. The default priors are for inputs and targets of unit variance: log-normal on the trained
    weight variances below the readout (median 1) and on each ratio b_l / w_l (median 0.3), gamma on the readout
    variance (mean 100), normal on the log ARD weights (deviation 1). They and the upper bound of the biases, 1000 times
    the largest weight variance given below the readout, keep evidence fits away from the flat directions of the
    likelihood. A large first bias, such as ``bias_variance=[30.0, 0.3]``, is a good start for fits: they begin with
    smooth functions. A call with inputs of a very different scale warns once.

    Values that are assigned broadcast to their parameter's shape; a wrong length, or a value beyond the bounds, is an
    error. Samples from the priors (``sample_from_prior``, ``pyro_load_from_samples``, which makes a batch of the
    kernel) are moved inside the bounds instead.

    Shapes: inputs ``... x n x d`` and ``... x m x d`` give ``... x n x m``, with ``diag=True`` ``... x n``.
    Accuracy: exact to rounding for closed-form activations, the activation's tolerance for quadrature ones.
    Cost: one GEMM, half of one for a symmetric matrix, and one elementwise pass for each layer. A gradient costs two
    more passes and the memory of one more matrix at any depth, and as much as another GEMM where the inputs or their
    ARD weights have gradients. Quadrature activations, and second derivatives, keep several matrices for each layer.
    Under ``torch.autocast`` the kernel is computed in its inputs' dtype all the same; what an ExactGP does with it is
    not: predict with GPyTorch's models outside of autocast.

    Args:
        activation: An activation object such as ``Erf()``, or its name, ``"erf"``.
        depth: Number L of hidden layers.
        weight_variance: w_0, ..., w_L: a number or L + 1 numbers.
        bias_variance: b_0, ..., b_{L-1}: a number or L numbers. Zero means that the layer has no bias, for good.
        ard_num_dims: Number of inputs for automatic relevance determination.
        batch_shape: Batch shape of the parameters.
        weight_variance_prior: Prior on each trainable weight variance below the readout.
        readout_variance_prior: Prior on the readout variance.
        bias_ratio_prior: Prior on each b_l / w_l.
        ard_prior: Prior on each log ARD weight.
        weight_variance_constraint: Constraint of all weight variances; positive on a log scale by default.
        bias_variance_constraint: Constraint of the bias variances; by default between zero (on a log scale) and the
            bound above, or ten times a bias variance given beyond a tenth of it.
        kwargs: ``active_dims`` and other arguments of :class:`gpytorch.kernels.Kernel`.

    Attributes:
        weight_variance: ``*batch_shape x 1 x (L + 1)``.
        hidden_weight_variance: w_0, ..., w_{L-1}, ``*batch_shape x 1 x L``.
        readout_variance: w_L, ``*batch_shape x 1 x 1``.
        bias_variance: ``*batch_shape x 1 x L``.
        ard_weights: ``*batch_shape x 1 x d``, mean one.

    Raises:
        TypeError: The activation is neither an :class:`Activation` nor a name.
        ValueError: A depth below one, a non-positive weight variance, a negative bias variance, a wrong number of
            values.

    Reference: Neal (1996); Williams (1997); Cho & Saul (2009); Lee et al. (2018), arXiv:1711.00165; THEORY.md, section
    0.

    Example:
        >>> import math, torch
        >>> from torch_propkernel import Erf, NNGPKernel
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> value = NNGPKernel(Erf())(x).to_dense().item()
        >>> abs(value - 2 / math.pi * math.asin(2 / 3)) < 1e-6   # c = 1: (2/pi) asin(2c / (1 + 2c))
        True
    """

    def scaled_inputs(self, x: Tensor) -> Tensor:
        """Return x with sqrt(w_0 a_j / N_0) multiplied in, so that K^0 = x x^T + b_0."""
        return self._with_ard(x) * (self.hidden_weight_variance[..., :1] / x.shape[-1]).sqrt()

    def _with_ard(self, x: Tensor) -> Tensor:
        return x if self.ard_num_dims is None else x * self.ard_weights.sqrt()

    def layers(self, elementwise: bool = False) -> list[Layer]:
        """Return the hidden layers for the recursion, parameters shaped to broadcast against its matrices."""

        def shaped(value: Tensor) -> Tensor:
            return value if elementwise else value.unsqueeze(-1)

        weights, biases = self.weight_variance.squeeze(-2), self.bias_variance.squeeze(-2)
        return [
            Layer(
                self.activation,
                shaped(weights[..., index : index + 1]),
                shaped(biases[..., index : index + 1]) if index < self.depth and self._has_bias[index] else None,
            )
            for index in range(1, self.depth + 1)
        ]

    def effective_layers(self) -> list[Layer] | None:
        """Return the layers of an infinitely wide network with this kernel; None where it is not one's."""
        return self.layers()

    def inputs(self, x1: Tensor, x2: Tensor, elementwise: bool = False) -> Inputs:
        """Return what the recursion begins with: K^0 = w_0/N_0 X1 X2^T + b_0, the ARD weights in X."""
        factor = self.hidden_weight_variance[..., :1] / x1.shape[-1]
        dtype = torch.promote_types(x1.dtype, factor.dtype)
        first = self._with_ard(x1).to(dtype)
        second = first if same_points(x1, x2) else self._with_ard(x2).to(dtype)
        bias = self.bias_variance[..., :1] if self._has_bias[0] else None
        if elementwise:
            factor, bias = factor.squeeze(-1), None if bias is None else bias.squeeze(-1)
        if self.training and not self._inputs_checked and not transforms_are_active():
            self._inputs_checked = True
            self._check_scale(first, factor)
        return Inputs(first, second, factor, bias)

    def input_covariance(self, x1: Tensor, x2: Tensor, elementwise: bool = False) -> Covariance:
        """Return K^0 between two sets of points as the triple of the recursion."""
        return input_covariance(self.inputs(x1, x2, elementwise), elementwise)

    def _check_scale(self, x: Tensor, factor: Tensor) -> None:
        """Warn (once for each kernel: it reads the device) when the inputs are far from unit scale."""
        if "raw_hidden_weight_variance" not in self._parameters:  # sampled: its scale says nothing about the inputs
            return
        scale = float(x.detach().square().sum(-1).mean() * factor.detach().mean())
        if not 1e-3 <= scale <= 1e3:
            warnings.warn(
                f"{type(self).__name__}: expected inputs of about unit scale (mean |x|^2 w_0 / N_0 between 1e-3 and "
                f"1e3), got {scale:.3g}; standardize the inputs or set weight_variance to match",
                InputScaleWarning,
                stacklevel=4,
            )

    @outside_autocast
    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return K(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        if diag:
            return propagate_all(self.input_covariance(x1, x2, elementwise=True), self.layers(elementwise=True))
        return matrix_of_layers(self.inputs(x1, x2), self.layers())


def _refuse_last_dim_is_batch(params: dict[str, Any]) -> None:
    if params.get("last_dim_is_batch", False):
        raise NotImplementedError(
            "last_dim_is_batch: expected False, got True; it is deprecated in GPyTorch and not supported here: "
            "use one kernel with active_dims for each group of inputs and add them"
        )
