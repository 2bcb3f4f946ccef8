"""The prior variances of a network as parameters of a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior, Prior
from torch import Tensor

from .._validation import as_values
from ..activations import Activation, get_activation
from ..numerics.safe_math import clamp_inside


class NetworkPriorKernel(Kernel):
    """Holds weight variances, bias variances and ARD weights, with constraints and priors; defines no covariance.

    :class:`NNGPKernel` documents the arguments and what they mean.
    """

    _trains_readout = True

    def __init__(
        self,
        activation: str | Activation,
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
        activation = get_activation(activation)
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
            raise ValueError(f"depth: expected an integer >= 1, got {depth!r}")
        super().__init__(ard_num_dims=ard_num_dims, batch_shape=batch_shape, **kwargs)
        self.activation = activation
        self._inputs_checked = False
        weights = as_values("weight_variance", weight_variance, depth + 1)
        biases = as_values("bias_variance", bias_variance, depth, allow_zero=True)
        self._has_bias = tuple(bool((biases[..., i] > 0).all()) for i in range(depth))
        if bool(((biases > 0).reshape(-1, depth) != biases.new_tensor(self._has_bias).bool()).any()):
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

    def _initialize_constrained(self, name: str, value: Any, clamp: bool = False) -> None:
        """Set a parameter through its constraint; with ``clamp`` a value out of bounds is moved inside, not refused."""
        raw = getattr(self, f"raw_{name}")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        if not bool((torch.isfinite(value) & (value > 0)).all()):
            raise ValueError(f"{name}: expected finite numbers > 0, got {value.tolist()}")
        constraint = self.constraint_for_parameter_name(f"raw_{name}")
        inside = clamp_inside(value, constraint.lower_bound, constraint.upper_bound)
        if not clamp and not torch.equal(inside, value):
            ends = f"{constraint.lower_bound.tolist()} and {constraint.upper_bound.tolist()}"
            raise ValueError(f"{name}: expected numbers between {ends}, got {value.tolist()}")
        self.initialize(**{f"raw_{name}": self._shaped(name, constraint.inverse_transform(inside), raw)})

    def _shaped(self, name: str, value: Tensor, like: Tensor) -> Tensor:
        """Return a value in the shape of its parameter, with the dimension of samples where they are being loaded."""
        try:
            if not self._strict_init:
                return value.expand(torch.broadcast_shapes(value.shape, like.shape))
            return value.reshape(like.shape) if value.numel() == like.numel() else value.expand_as(like)
        except RuntimeError:
            raise ValueError(
                f"{name}: expected shape {tuple(like.shape)} or one that broadcasts to it, got {tuple(value.shape)}"
            ) from None

    def local_load_samples(self, samples_dict: Any, memo: Any, prefix: str) -> None:
        """Load samples of the priors, as in GPyTorch; parameters without a prior get the dimension of samples too."""
        super().local_load_samples(samples_dict, memo, prefix)
        for parameter in self.parameters(recurse=False):
            parameter.data = parameter.data.expand(*self._batch_shape, *parameter.shape[-2:]).contiguous()

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
        value = self._shaped("weight_variance", torch.as_tensor(value), self.weight_variance)
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
        value = torch.as_tensor(value, dtype=reference.dtype, device=reference.device)
        value = self._shaped("bias_variance", value, reference)
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
        self.initialize(raw_ard_weights=self._shaped("ard_weights", logs, self.raw_ard_weights))

    # Closures of the priors: bound methods, so that kernels pickle. A prior may reach beyond a parameter's bounds, so
    # what is drawn from it is moved inside.
    def _get_hidden_weight_variance(self, module: NetworkPriorKernel) -> Tensor:
        return module.hidden_weight_variance

    def _set_hidden_weight_variance(self, module: NetworkPriorKernel, value: Tensor) -> None:
        module._initialize_constrained("hidden_weight_variance", value, clamp=True)

    def _get_readout_variance(self, module: NetworkPriorKernel) -> Tensor:
        return module.readout_variance

    def _set_readout_variance(self, module: NetworkPriorKernel, value: Tensor) -> None:
        module._initialize_constrained("readout_variance", value, clamp=True)

    def _get_bias_ratio(self, module: NetworkPriorKernel) -> Tensor:
        return module._constrained("bias_variance") / module.hidden_weight_variance

    def _set_bias_ratio(self, module: NetworkPriorKernel, value: Tensor) -> None:
        module._initialize_constrained("bias_variance", value * module.hidden_weight_variance, clamp=True)

    def _get_raw_ard_weights(self, module: NetworkPriorKernel) -> Tensor:
        return module.raw_ard_weights

    def _set_raw_ard_weights(self, module: NetworkPriorKernel, value: Tensor) -> None:
        module.initialize(raw_ard_weights=value)
