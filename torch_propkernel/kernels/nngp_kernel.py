"""The covariance of an infinitely wide Bayesian network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior, Prior
from torch import Tensor

from .._validation import as_values
from ..exceptions import InputScaleWarning
from ..functions.activations import Activation
from ..functions.recursion import Covariance, Layer, input_covariance, propagate


class NNGPKernel(Kernel):
    r"""Covariance of a fully connected Bayesian network with infinitely wide hidden layers (neural network GP, NNGP).

    .. math::
        K^0(x, x') = \frac{w_0}{N_0} \sum_j a_j x_j x'_j + b_0, \qquad
        K^l = w_l\, \kappa(K^{l-1}) + b_l, \qquad K = K^L \ (b_L = 0),

    where :math:`\kappa(c_{xx}, c_{xy}, c_{yy}) = E[\sigma(u)\sigma(w)]` is the activation's dual, :math:`w_l =
    1/\lambda_l` is the prior variance of layer l's weights times that layer's fan-in (weights enter as :math:`W \cdot
    h/\sqrt{N}`), :math:`b_l` the prior variance of its biases, :math:`a_j` the ARD weights (mean 1; all 1 without
    ARD), and N_0 the number of inputs. "NNGP" here is never "nearest-neighbor GP".

    Not included: a readout bias (add a :class:`gpytorch.kernels.ConstantKernel` or use a mean) and the noise, which is
    the likelihood's.

    What trains: ``bias_variance`` (where it was given positive), the ARD weights, the readout variance w_L and, for
    activations that are not homogeneous, the other weight variances. For homogeneous activations (relu, identity, ...)
    the lower weight variances are only an overall scale: they are fixed. Change it with ``requires_grad_`` on the
    ``raw_`` parameters. The default priors are for inputs and targets of unit variance: log-normal on the trained
    weight variances below the readout (median 1) and on each ratio b_l / w_l (median 0.3), gamma on the readout
    variance (mean 100), normal on the log ARD weights (deviation 1). They and the upper bound of the biases, 1000 times
    the largest weight variance given below the readout, keep evidence fits away from the flat directions of the
    likelihood. A large first bias, such as ``bias_variance=[30.0, 0.3]``, is a good start for fits: they begin with
    smooth functions. A call with inputs of a very different scale warns once.

    Shapes: inputs ``... x n x d`` and ``... x m x d`` give ``... x n x m``, with ``diag=True`` ``... x n``.
    Accuracy: exact to rounding for closed-form activations, the activation's tolerance for quadrature ones.
    Cost: one GEMM and one elementwise pass for each layer.

    Args:
        activation: An activation object, e.g. ``Erf()`` or ``ReLU()``.
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
        TypeError: The activation is not an :class:`Activation`.
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

    _trains_readout = True

    def __init__(
        self,
        activation: Activation,
        depth: int = 1,
        *,
        weight_variance: float | Sequence[float] | Tensor = 1.0,
        bias_variance: float | Sequence[float] | Tensor = 0.0,
        ard_num_dims: int | None = None,
        batch_shape: torch.Size | None = None,
        weight_variance_prior: Prior | None = None,
        readout_variance_prior: Prior | None = None,
        bias_ratio_prior: Prior | None = None,
        ard_prior: Prior | None = None,
        weight_variance_constraint: Interval | None = None,
        bias_variance_constraint: Interval | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the parameters, their constraints and default priors."""
        if not isinstance(activation, Activation):
            raise TypeError(f"activation: expected an Activation object such as ReLU(), got {activation!r}")
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
            raise ValueError(f"depth: expected an integer >= 1, got {depth!r}")
        super().__init__(ard_num_dims=ard_num_dims, batch_shape=batch_shape, **kwargs)
        self.activation = activation
        self._inputs_checked = False
        weights = as_values("weight_variance", weight_variance, depth + 1)
        biases = as_values("bias_variance", bias_variance, depth, allow_zero=True)
        self._has_bias = tuple(bool((biases[..., i] > 0).all()) for i in range(depth))
        if bool(((biases > 0).reshape(-1, depth) != torch.tensor(self._has_bias)).any()):
            raise ValueError("bias_variance: expected a layer's bias to be zero in all batch elements or in none")
        trains_weights = activation.homogeneous_degree is None
        if trains_weights and weight_variance_prior is None:
            # Unit pre-activations for inputs of unit variance, within a factor of seven (two deviations).
            weight_variance_prior = LogNormalPrior(0.0, 1.0)
        if self._trains_readout and readout_variance_prior is None:
            # Wide for unit targets (relu loses a factor of two in each layer); the exponential tail closes the
            # polynomial limit w_0 -> 0, w_L -> infinity of smooth activations, which a log-normal one leaves open.
            readout_variance_prior = GammaPrior(2.0, 0.02)

        self._add_variance("hidden_weight_variance", depth, weight_variance_constraint)
        self._add_variance("readout_variance", 1, weight_variance_constraint)
        self.raw_hidden_weight_variance.requires_grad_(trains_weights)
        self.raw_readout_variance.requires_grad_(self._trains_readout)
        if weight_variance_prior is not None:
            self.register_prior(
                "weight_variance_prior",
                weight_variance_prior,
                self._get_hidden_weight_variance,
                self._set_hidden_weight_variance,
            )
        if readout_variance_prior is not None:
            self.register_prior(
                "readout_variance_prior",
                readout_variance_prior,
                self._get_readout_variance,
                self._set_readout_variance,
            )
        if any(self._has_bias):
            # On a log scale, smoothly bounded above: a line search that tries a huge bias would make the kernel a
            # constant plus rounding, not positive definite with a small noise.
            largest = max(10.0, 1e3 * float(weights[..., :-1].max()), 10.0 * float(biases.max()))
            self._add_variance("bias_variance", depth, bias_variance_constraint or Interval(0.0, largest))
            self.register_prior(
                "bias_ratio_prior",
                # Of the order of the weights, as in common initializations; from 1/60 to 6 (two deviations).
                bias_ratio_prior or LogNormalPrior(math.log(0.3), 1.5),
                self._get_bias_ratio,
                self._set_bias_ratio,
            )
        if ard_num_dims is not None:
            raw = torch.zeros(*self._batch_shape, 1, ard_num_dims)
            self.register_parameter("raw_ard_weights", torch.nn.Parameter(raw))
            # Inputs that matter differ by factors of e; an irrelevant one can still be switched off (1e-3: 24 nats).
            self.register_prior(
                "ard_prior", ard_prior or NormalPrior(0.0, 1.0), self._get_raw_ard_weights, self._set_raw_ard_weights
            )
        self.weight_variance = weights.unsqueeze(-2)
        if any(self._has_bias):
            self.bias_variance = biases.unsqueeze(-2)

    def _add_variance(self, name: str, size: int, constraint: Interval | None) -> None:
        raw = f"raw_{name}"
        self.register_parameter(raw, torch.nn.Parameter(torch.zeros(*self._batch_shape, 1, size)))
        self.register_constraint(raw, constraint or Positive(transform=torch.exp, inv_transform=torch.log))

    def _constrained(self, name: str) -> Tensor:
        return self.constraint_for_parameter_name(f"raw_{name}").transform(getattr(self, f"raw_{name}"))

    def _initialize_constrained(self, name: str, value: Any) -> None:
        raw = getattr(self, f"raw_{name}")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"{name}: expected finite numbers > 0, got {value.tolist()}")
        inverse = self.constraint_for_parameter_name(f"raw_{name}").inverse_transform(value)
        self.initialize(
            **{f"raw_{name}": inverse.expand_as(raw) if inverse.numel() != raw.numel() else inverse.view_as(raw)}
        )

    @property
    def depth(self) -> int:
        """Number L of hidden layers."""
        return int(self.raw_hidden_weight_variance.shape[-1])

    @property
    def hidden_weight_variance(self) -> Tensor:
        """w_0, ..., w_{L-1}, ``*batch_shape x 1 x L``."""
        return self._constrained("hidden_weight_variance")

    @hidden_weight_variance.setter
    def hidden_weight_variance(self, value: Any) -> None:
        self._initialize_constrained("hidden_weight_variance", value)

    @property
    def readout_variance(self) -> Tensor:
        """w_L, ``*batch_shape x 1 x 1``."""
        return self._constrained("readout_variance")

    @readout_variance.setter
    def readout_variance(self, value: Any) -> None:
        self._initialize_constrained("readout_variance", value)

    @property
    def weight_variance(self) -> Tensor:
        """w_0, ..., w_L = 1 / lambda_l, ``*batch_shape x 1 x (L + 1)``."""
        return torch.cat([self.hidden_weight_variance, self.readout_variance], dim=-1)

    @weight_variance.setter
    def weight_variance(self, value: Any) -> None:
        value = torch.as_tensor(value).expand(*torch.as_tensor(value).shape[:-1], self.depth + 1)
        self.hidden_weight_variance = value[..., :-1]
        self.readout_variance = value[..., -1:]

    @property
    def bias_variance(self) -> Tensor:
        """b_0, ..., b_{L-1}, ``*batch_shape x 1 x L``; exactly zero for a layer without bias."""
        if not any(self._has_bias):
            return torch.zeros_like(self.raw_hidden_weight_variance)
        value = self._constrained("bias_variance")
        return value if all(self._has_bias) else torch.where(self._bias_mask(value), value, torch.zeros_like(value))

    @bias_variance.setter
    def bias_variance(self, value: Any) -> None:
        reference = self.raw_hidden_weight_variance
        value = torch.as_tensor(value, dtype=reference.dtype, device=reference.device).expand(*reference.shape)
        mask = self._bias_mask(value)
        if bool((value[~mask.expand_as(value)] != 0).any()):
            raise ValueError(
                f"bias_variance: layers {[i for i, b in enumerate(self._has_bias) if not b]} were built without a "
                f"bias, expected zero there, got {value.tolist()}"
            )
        if any(self._has_bias):
            self._initialize_constrained("bias_variance", torch.where(mask, value, torch.ones_like(value)))

    def _bias_mask(self, like: Tensor) -> Tensor:
        return torch.tensor(self._has_bias, device=like.device)

    @property
    def ard_weights(self) -> Tensor:
        """Relative prior variances a_j of the input weights, mean one, ``*batch_shape x 1 x d``."""
        if self.ard_num_dims is None:
            raise AttributeError("ard_weights: expected a kernel with ard_num_dims, got one without")
        return torch.softmax(self.raw_ard_weights, dim=-1) * self.ard_num_dims

    @ard_weights.setter
    def ard_weights(self, value: Any) -> None:
        value = torch.as_tensor(value, dtype=self.raw_ard_weights.dtype, device=self.raw_ard_weights.device)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"ard_weights: expected finite numbers > 0, got {value.tolist()}")
        logs = (value / value.mean(dim=-1, keepdim=True)).log()
        self.initialize(raw_ard_weights=logs.expand_as(self.raw_ard_weights))

    # Closures of the priors: bound methods, so that kernels pickle.
    def _get_hidden_weight_variance(self, module: NNGPKernel) -> Tensor:
        return module.hidden_weight_variance

    def _set_hidden_weight_variance(self, module: NNGPKernel, value: Tensor) -> None:
        module.hidden_weight_variance = value

    def _get_readout_variance(self, module: NNGPKernel) -> Tensor:
        return module.readout_variance

    def _set_readout_variance(self, module: NNGPKernel, value: Tensor) -> None:
        module.readout_variance = value

    def _get_bias_ratio(self, module: NNGPKernel) -> Tensor:
        return module._constrained("bias_variance") / module.hidden_weight_variance

    def _set_bias_ratio(self, module: NNGPKernel, value: Tensor) -> None:
        module._initialize_constrained("bias_variance", value * module.hidden_weight_variance.detach())

    def _get_raw_ard_weights(self, module: NNGPKernel) -> Tensor:
        return module.raw_ard_weights

    def _set_raw_ard_weights(self, module: NNGPKernel, value: Tensor) -> None:
        module.initialize(raw_ard_weights=value)

    def scaled_inputs(self, x: Tensor) -> Tensor:
        """Return x with sqrt(w_0 a_j / N_0) multiplied in, so that K^0 = x x^T + b_0."""
        scale = self.hidden_weight_variance[..., :1] / x.shape[-1]
        if self.ard_num_dims is not None:
            scale = scale * self.ard_weights
        return x * scale.sqrt()

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

    def input_covariance(self, x1: Tensor, x2: Tensor, elementwise: bool = False) -> Covariance:
        """Return K^0 between two sets of points as the triple of the recursion."""
        scaled = self.scaled_inputs(x1)
        other = scaled if x2 is x1 else self.scaled_inputs(x2)
        bias = self.bias_variance[..., :1] if self._has_bias[0] else None
        if bias is not None and elementwise:
            bias = bias.squeeze(-1)
        state = input_covariance(scaled, other, bias, elementwise)
        if self.training and not self._inputs_checked:
            self._inputs_checked = True
            self._check_scale(state.xx)
        return state

    def _check_scale(self, variance: Tensor) -> None:
        """Warn (once for each kernel: it reads the device) when the inputs are far from unit scale."""
        scale = float(variance.detach().mean())
        if not 1e-3 <= scale <= 1e3:
            warnings.warn(
                f"{type(self).__name__}: expected inputs of about unit scale (mean |x|^2 w_0 / N_0 + b_0 between 1e-3 "
                f"and 1e3), got {scale:.3g}; standardize the inputs or set weight_variance to match",
                InputScaleWarning,
                stacklevel=4,
            )

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return K(x1, x2), ``... x n x m``, or its elementwise diagonal ``... x n``."""
        _refuse_last_dim_is_batch(params)
        state = self.input_covariance(x1, x2, elementwise=diag)
        for layer in self.layers(elementwise=diag):
            state = propagate(state, layer, overwrite=True)
        return state.xy


def _refuse_last_dim_is_batch(params: dict[str, Any]) -> None:
    if params.get("last_dim_is_batch", False):
        raise NotImplementedError(
            "last_dim_is_batch: expected False, got True; it is deprecated in GPyTorch and not supported here: "
            "use one kernel with active_dims for each group of inputs and add them"
        )
