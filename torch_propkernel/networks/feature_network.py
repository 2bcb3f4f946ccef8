"""What every Bayesian network here is made of: whitened hidden weights, features, a linear readout."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._validation import as_values, check_floating, check_same_kind, positive_number, whole_number
from ..activations import Activation, get_activation

Layers = list[tuple[Tensor, Tensor | None]]


class FeatureNetwork(torch.nn.Module, ABC):
    r"""A Bayesian network whose output is linear in features of the input: :math:`f(x) = \phi_w(x) \cdot v`.

    .. math:: w \sim N(0, I), \qquad v \sim N(0, w_L I), \qquad w_L = 1/\lambda_L

    :math:`w` are all hidden weights and biases, *whitened*: each divided by its prior standard deviation, in one flat
    vector. :math:`v` are the readout weights in physical units, :math:`\phi_w(x)` the last hidden activations divided
    by the square root of their number. Given :math:`w` the network is Bayesian linear regression, which is what a
    sampler needs to integrate :math:`v` out. A bias of the readout is the weight of one more feature, which is 1
    everywhere; its prior variance is ``readout_bias_variance``.

    A subclass calls ``__init__`` with the shape of every hidden weight matrix and gives ``_features``; see
    :class:`FiniteNetwork` and :class:`ConvolutionalNetwork`. A batch shape ``*b`` means that many independent networks.
    With ``input_scale`` a, ARD weights, x_j is multiplied by sqrt(a_j) first. Not included: the noise.

    Args:
        activation: An activation object, e.g. ``Erf()``.
        input_dim: Number of columns of the inputs.
        weight_shapes: ``(N_l, fan-in)`` of the hidden weight matrices, l = 1..L.
        num_units: F, the number of activations that the readout weighs.
        num_outputs: D; None for one output without a trailing dimension.
        weight_variance: w_0, ..., w_L = 1 / lambda_l: a number or L + 1 numbers.
        bias_variance: Prior variances of the hidden biases: a number or L numbers; none where zero.
        readout_bias_variance: Prior variance of the readout's bias; none if zero.
        input_scale: ARD weights a_j, ``input_dim`` numbers >= 0; all 1 if None.
        active_dims: Columns of x that the network reads, ``input_dim`` of them; x has no others if None.
        batch_shape: Shape ``*b`` of a batch of independent networks.
        dtype: Data type of the weights; torch's default if None.
        device: Device of the weights.
        generator: Draws the weights; torch's global one if None.

    Attributes:
        hidden: Parameter, the whitened hidden weights ``*b x num_hidden``, standard normal under the prior.
        readout: Parameter, the readout ``*b x F x D`` (D = 1 without ``num_outputs``), prior variance w_L; with a bias
            ``*b x (F + 1) x D``, the bias last.
        weight_variance: Buffer, L + 1 numbers in float64.
        bias_variance: Buffer, L numbers in float64.
        readout_bias_variance: Buffer, one number in float64.
        input_scale: Buffer of a_j in float64, or None.
        active_dims: Buffer of column indices, or None.
        num_units: F.
        num_features: Rows of the readout: F, one more with a bias.

    Raises:
        TypeError: The activation is neither an activation nor a name.
        ValueError: Variances that are not positive (biases: not negative) or of the wrong number, ``num_outputs`` < 1.

    Reference: THEORY.md, section 0.

    Example:
        >>> import torch
        >>> from torch_propkernel import ReLU
        >>> from torch_propkernel.networks import FeatureNetwork, FiniteNetwork
        >>> network = FiniteNetwork(ReLU(), input_dim=3, width=4)
        >>> x = torch.ones(2, 3)
        >>> isinstance(network, FeatureNetwork)
        True
        >>> torch.allclose(network(x), (network.features(x) @ network.readout).squeeze(-1))
        True
    """

    weight_variance: Tensor
    bias_variance: Tensor
    readout_bias_variance: Tensor
    input_scale: Tensor | None
    active_dims: Tensor | None

    def __init__(
        self,
        activation: str | Activation,
        input_dim: int,
        weight_shapes: Sequence[tuple[int, int]],
        num_units: int,
        *,
        num_outputs: int | None = None,
        weight_variance: float | Sequence[float] | Tensor = 1.0,
        bias_variance: float | Sequence[float] | Tensor = 0.0,
        readout_bias_variance: float = 0.0,
        input_scale: Sequence[float] | Tensor | None = None,
        active_dims: Sequence[int] | Tensor | None = None,
        batch_shape: torch.Size | Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Allocate the weights and draw them from the prior."""
        super().__init__()
        activation = get_activation(activation)
        depth = len(weight_shapes)
        self.activation = activation
        self.input_dim = whole_number("input_dim", input_dim)
        self.num_outputs = None if num_outputs is None else whole_number("num_outputs", num_outputs)
        self._weight_shapes = tuple(weight_shapes)
        weights = _variances("weight_variance", weight_variance, depth + 1)
        biases = _variances("bias_variance", bias_variance, depth, allow_zero=True)
        self._has_bias = tuple((biases > 0).tolist())
        own = positive_number("readout_bias_variance", readout_bias_variance, allow_zero=True)
        self.num_units, self.num_features = num_units, num_units + (own > 0)
        self.register_buffer("weight_variance", weights.to(device=device))
        self.register_buffer("bias_variance", biases.to(device=device))
        self.register_buffer("readout_bias_variance", torch.tensor(own, dtype=torch.float64, device=device))
        scale = None if input_scale is None else torch.as_tensor(input_scale, dtype=torch.float64).detach().clone()
        columns = None if active_dims is None else torch.as_tensor(active_dims, dtype=torch.long).clone()
        for name, value in (("input_scale", scale), ("active_dims", columns)):
            if value is not None and (value.shape != (self.input_dim,) or not bool((value >= 0).all())):
                raise ValueError(f"{name}: expected {self.input_dim} numbers >= 0, got {value.tolist()}")
            self.register_buffer(name, None if value is None else value.to(device=device))
        shape = torch.Size(batch_shape)
        self.hidden = torch.nn.Parameter(torch.empty(*shape, sum(self._sizes()), dtype=dtype, device=device))
        self.readout = torch.nn.Parameter(
            torch.empty(*shape, self.num_features, self.num_outputs or 1, dtype=dtype, device=device)
        )
        self.sample_prior_(generator)

    @property
    def depth(self) -> int:
        """Number L of hidden layers."""
        return len(self._weight_shapes)

    @property
    def width(self) -> tuple[int, ...]:
        """Widths N_1, ..., N_L (channels for a convolutional layer)."""
        return tuple(rows for rows, _ in self._weight_shapes)

    @property
    def num_hidden(self) -> int:
        """Number of hidden weights and biases."""
        return int(self.hidden.shape[-1])

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of networks."""
        return self.hidden.shape[:-1]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Shapes of the pieces of the flat vector, ``N_l x fan-in`` of weights and ``N_l x 1`` of biases, in order."""
        return [
            shape
            for (rows, columns), has_bias in zip(self._weight_shapes, self._has_bias, strict=True)
            for shape in ((rows, columns), *([(rows, 1)] if has_bias else []))
        ]

    def _sizes(self) -> list[int]:
        """Sizes of the pieces of the flat vector: weight, bias (0 where there is none), weight, ..."""
        return [
            size
            for (rows, columns), has_bias in zip(self._weight_shapes, self._has_bias, strict=True)
            for size in (rows * columns, rows if has_bias else 0)
        ]

    def layers(self, hidden: Tensor | None = None) -> Layers:
        """Return (weight, bias or None) of the hidden layers in physical units.

        Args:
            hidden: Whitened hidden weights ``*b x num_hidden`` of any batch shape; the module's own if None.

        Returns:
            For each layer the weight ``*b x N_l x fan-in`` of variance w_{l-1}, to be used with a factor
            1/sqrt(fan-in), and the bias ``*b x N_l``.

        Raises:
            ValueError: ``hidden`` has another number of entries.
        """
        hidden = self.hidden if hidden is None else hidden
        if hidden.shape[-1] != self.num_hidden:
            raise ValueError(f"hidden: expected shape (..., {self.num_hidden}), got {tuple(hidden.shape)}")
        pieces = hidden.split(self._sizes(), dim=-1)
        weight_scale, bias_scale = self.weight_variance.sqrt(), self.bias_variance.sqrt()
        return [
            (
                pieces[2 * l].unflatten(-1, shape) * weight_scale[l],
                pieces[2 * l + 1] * bias_scale[l] if self._has_bias[l] else None,
            )
            for l, shape in enumerate(self._weight_shapes)
        ]

    @property
    def readout_prior(self) -> tuple[float, float]:
        """Prior variance w_L of the readout's weights, and that of its bias, zero without one."""
        return float(self.weight_variance[-1]), float(self.readout_bias_variance)

    @property
    def readout_variance(self) -> Tensor:
        """Prior variance of the readout of each feature, ``num_features`` numbers in float64."""
        weights = self.weight_variance[-1].expand(self.num_units)
        if self.num_features == self.num_units:
            return weights
        return torch.cat([weights, self.readout_bias_variance.reshape(1)])

    def features(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return the features ``*b x P x num_features`` of inputs ``P x d`` or ``*b x P x d``.

        They are the last hidden activations over the square root of their number, and a 1 for a readout bias.

        Args:
            x: Inputs.
            hidden: Whitened hidden weights ``*b x num_hidden`` of any batch shape; the module's own if None.

        Raises:
            TypeError: Inputs of another dtype.
            ValueError: Inputs of another number of columns or device.
        """
        features = self._features(x, hidden)
        if self.num_features == self.num_units:
            return features
        return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)

    @abstractmethod
    def _features(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """Return sigma(h^L) / sqrt(F), ``*b x P x F``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), ``*b x P``, with ``num_outputs`` ``*b x P x D``."""
        output = self.features(x) @ self.readout
        return output.squeeze(-1) if self.num_outputs is None else output

    @torch.no_grad()
    def sample_prior_(self, generator: torch.Generator | None = None) -> FeatureNetwork:
        """Draw all weights from the prior, in place; returns the network."""
        self.hidden.normal_(generator=generator)
        self.readout.normal_(generator=generator).mul_(self.readout_variance.sqrt().unsqueeze(-1))
        return self

    def log_prior(self) -> Tensor:
        """Return the log density ``*b`` of (hidden, readout) under the prior.

        ``0.5 * (y - f(x)).square().sum() - T * network.log_prior()`` is the loss of THEORY.md, section 0, up to a
        constant.
        """
        hidden = self.hidden.square().sum(-1)
        variance, num_outputs = self.readout_variance, self.readout.shape[-1]
        readout = (self.readout.square() / variance.unsqueeze(-1)).sum((-2, -1))
        count = self.num_hidden + len(variance) * num_outputs
        constant = count * math.log(2 * math.pi) + num_outputs * variance.log().sum()
        return -0.5 * (hidden + readout + constant)

    def read_inputs(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return what the first layer reads: the columns of x that are active, times sqrt(``input_scale``).

        Finiteness is not looked at.

        Args:
            x: Inputs ``P x d`` or ``*b x P x d``.
            hidden: Hidden weights whose dtype and device they must have; the module's own if None.

        Raises:
            TypeError: Inputs of another dtype.
            ValueError: Inputs of another number of columns or device.
        """
        x = check_floating("x", x) if self.active_dims is None else check_floating("x", x)[..., self.active_dims]
        check_same_kind(x=x, weights=self.hidden if hidden is None else hidden)
        if x.dim() < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(f"x: expected shape (..., P, {self.input_dim}), got {tuple(x.shape)}")
        return x if self.input_scale is None else x * self.input_scale.sqrt().to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}readout_bias_variance", torch.zeros(()))  # as before there were any
        super()._load_from_state_dict(state_dict, prefix, *args)
        loaded = tuple((self.bias_variance > 0).tolist())
        if loaded != self._has_bias:
            args[-1].append(f"{prefix}bias_variance: expected biases in layers {self._has_bias}, got {loaded}")

    def extra_repr(self) -> str:
        """Return the architecture."""
        outputs = "" if self.num_outputs is None else f", num_outputs={self.num_outputs}"
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"{self.activation}, input_dim={self.input_dim}, width={self.width}{outputs}{batch}"


def _variances(name: str, value: Any, size: int, allow_zero: bool = False) -> Tensor:
    """Return ``size`` variances in float64, without the rounding of torch's default dtype."""
    values = as_values(name, torch.as_tensor(value, dtype=torch.float64).detach(), size, allow_zero)
    if values.dim() != 1:
        raise ValueError(
            f"{name}: expected 1 or {size} numbers, got shape {tuple(values.shape)}; build one network each"
        )
    return values.clone()
