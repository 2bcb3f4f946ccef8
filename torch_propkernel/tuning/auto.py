"""All hyperparameters of a network from its training data, at infinite width."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from .._tasks import map_tasks
from .._validation import as_values, as_width, check_inputs, check_same_kind, check_targets, positive_number
from ..activations import Activation, get_activation
from ..kernels import Composition, MultitaskRenormalizedKernel, NNGPKernel, RenormalizedNNGPKernel
from ..models import MultitaskNetworkGP, NetworkGP
from .evidence_descent import one_attempt
from .fit_hyperparameters import fit_hyperparameters
from .hyperparameter_fit import HyperparameterFit

_COARSE_ROWS = 300  # on which several starts cost little
_COARSE_STARTS = 2
_FIRST_TEMPERATURE = 0.1
_NEARLY = 0.01  # nats, within which two descents have found the same maximum

Numbers = float | Sequence[float]


@dataclass(frozen=True)
class NetworkFit:
    """The prior variances and the temperature of a network, given or fitted; the width is no part of it.

    Attributes:
        activation: The activation.
        weight_variance: w_0, ..., w_L.
        bias_variance: b_0, ..., b_{L-1}.
        ard_weights: Relative prior variances a_j of the input weights, mean one; None where all are one.
        temperature: T.
        search: How the fitted numbers were found; None if all were given.
        rows: Number of rows on which they were fitted, zero if all were given.

    Example:
        >>> import torch
        >>> prior = NetworkFit(get_activation("erf"), (1.0, 2.0), (0.0,), None, 0.1)
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> model = prior.model(x, x[0], width=50)
        >>> model.covar_module.width.tolist(), round(model.likelihood.noise.item(), 12)
        ([[50.0]], 0.1)
    """

    activation: Activation
    weight_variance: tuple[float, ...]
    bias_variance: tuple[float, ...]
    ard_weights: tuple[float, ...] | None
    temperature: float
    search: HyperparameterFit | None = None
    rows: int = 0

    def model(
        self, x: Tensor, y: Tensor, width: Numbers | Tensor, composition: str | Composition = "outer"
    ) -> NetworkGP:
        """Return the process of the network with these hyperparameters, in float64.

        Args:
            x: Training inputs, ``P x d``.
            y: Training targets, ``P``.
            width: N_1, ..., N_L; one number is that of every layer.
            composition: How the order parameters of several layers enter.

        Raises:
            ValueError: Another number of layers.
        """
        kernel = RenormalizedNNGPKernel(self.activation, self._widths(width), composition, **self._options())
        return _model(x, y, kernel, self)

    def multitask_model(self, x: Tensor, y: Tensor, width: Numbers | Tensor) -> MultitaskNetworkGP:
        """Return the process of one network with D outputs and these hyperparameters, in float64.

        Args:
            x: Training inputs, ``P x d``.
            y: Training targets, ``P x D``.
            width: As for :meth:`model`.

        Raises:
            ValueError: Another number of layers.
        """
        kernel = MultitaskRenormalizedKernel(self.activation, self._widths(width), y.shape[-1], **self._options())
        kernel = kernel.to(dtype=torch.float64, device=x.device)
        _set_values(kernel.data_covar_module, self)
        return MultitaskNetworkGP.with_temperature(x, y, kernel, self.temperature)

    def _widths(self, width: Numbers | Tensor) -> Tensor:
        depth = len(self.bias_variance)
        widths = as_width(width, torch.float64)
        if widths.shape[-1] not in (1, depth):
            raise ValueError(f"width: expected 1 or {depth} numbers, got {widths.tolist()}")
        return widths.expand(*widths.shape[:-1], depth)

    def _options(self) -> dict[str, Any]:
        columns = None if self.ard_weights is None else len(self.ard_weights)
        values = {"weight_variance": self.weight_variance, "bias_variance": self.bias_variance}
        return {**values, "ard_num_dims": columns}


def fit_network(
    x: Tensor,
    y: Tensor,
    activation: str | Activation = "relu",
    depth: int = 1,
    *,
    temperature: float | None = None,
    weight_variance: Numbers | None = None,
    bias_variance: Numbers | None = None,
    ard_weights: Numbers | None = None,
    max_rows: int | None = 1000,
    seed: int = 0,
    check: Callable[[NetworkFit], None] | None = None,
    executor: Executor | None = None,
) -> NetworkFit:
    r"""Fit what is not given of a network's prior variances and temperature by evidence, at infinite width.

    .. math:: \max_\theta\ \sum_{d=1}^D \log N(y_d; 0, T 1 + K_\theta) + \log p(\theta)

    :math:`K_\theta` is :class:`NNGPKernel` with theta the weight variances, the bias variances and the ARD weights, and
    :math:`p(\theta)` are its priors. Trained are T; the readout variance, which is the overall scale, and the weight
    variances of the hidden layers where they are more than another scale (not for relu); the ratios of bias to weight
    variances; and one relative variance for each input. A number that is given is never trained.

    The width is left out on purpose. A scale that trains beside an order parameter q enters the data in one product
    with it, and q then says nothing about the width. So the scale is found first and then frozen: put the width in with
    :meth:`NetworkFit.model`, and solve q with :func:`fit_order_parameters` or a theory. At these hyperparameters q is
    near one: what the finite width adds is the spread of the scale, not a better one.

    Several targets share all hyperparameters, as the outputs of one network do.

    Standardize inputs and targets: the first values and the priors are for unit variance.

    Cost: up to 300 rows, :func:`fit_hyperparameters` with two starts. With more, it starts from what is found on 300
    of them, once with and once without ARD, and the better of the two descents on all rows (of at most ``max_rows``,
    drawn at random) is kept. One CPU thread: 1 s with 278 rows, about 4 s with 927; both grow with the square to the
    cube of the rows.

    Args:
        x: Training inputs, ``P x d``.
        y: Training targets, ``P`` or ``D x P``.
        activation: A name in ``ACTIVATIONS`` or an :class:`Activation`.
        depth: Number L of hidden layers.
        temperature: T > 0; None to fit it.
        weight_variance: w_0, ..., w_L: one number or L + 1; None to fit them.
        bias_variance: b_0, ..., b_{L-1}: one number or L, zero for no bias; None to fit them.
        ard_weights: Relative prior variances of the input weights: one number (all alike: no ARD) or d, of which the
            ratios count; None to fit them.
        max_rows: Largest number of rows to fit on; None for all.
        seed: Of the random rows. torch's own generator is left alone.
        check: Called once before the search with what is given, and one (T: 0.1) for what is not: what it raises comes
            before the work, such as ``lambda first: theory.check(first.model(x, y, width))``.
        executor: A ``concurrent.futures.Executor`` that takes the descents, of which two are independent at a time;
            None to do them one after the other. The numbers are the same.

    Returns:
        All hyperparameters, given and fitted. ``search.converged`` says whether the search ended at a maximum; if it
        did not, the best values it saw are returned.

    Raises:
        TypeError, ValueError: NaN, wrong shapes, values out of range, an unknown activation.

    Reference: THEORY.md, section 1 ("Evidence").

    Example:
        >>> import torch
        >>> from torch_propkernel.tuning import fit_network
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
        >>> y = x[:, 0] + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
        >>> found = fit_network(x, y, "identity", bias_variance=0.0)
        >>> 0.005 < found.temperature < 0.02, found.ard_weights[0] > 1 > found.ard_weights[1], found.bias_variance
        (True, True, (0.0,))
    """
    activation = get_activation(activation)
    check_same_kind(x=check_inputs(x, "x"), y=check_targets(y, x.shape[-2]))
    if x.dim() != 2 or y.dim() not in (1, 2):
        raise ValueError(f"x, y: expected P x d and P or D x P, got {tuple(x.shape)} and {tuple(y.shape)}")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows: expected at least 1 or None, got {max_rows!r}")
    if isinstance(temperature, str):
        raise ValueError(f"temperature: expected a number > 0, or None to fit it, got {temperature!r}")
    x, y = x.detach().double(), y.detach().double()
    names = _names(activation, x.shape[-1], temperature, weight_variance, bias_variance, ard_weights)
    first = NetworkFit(
        activation,
        _values("weight_variance", weight_variance, 1.0, depth + 1),
        _values("bias_variance", bias_variance, 1.0, depth, allow_zero=True),
        _ard_weights(ard_weights, x.shape[-1]),
        _FIRST_TEMPERATURE if temperature is None else positive_number("temperature", temperature),
    )
    columns = x.shape[-1] if "ard" in names or first.ard_weights is not None else None
    kernel = NNGPKernel(
        activation,
        depth,
        weight_variance=first.weight_variance,
        bias_variance=first.bias_variance,
        ard_num_dims=columns,
    )
    model = _model(x, y, kernel, first)
    if check is not None:
        check(first)
    if not names:
        return first
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    rows = order[:max_rows]
    search = _search(model, names, rows, executor)
    kernel = search.model.covar_module
    found: dict[str, Any] = {}  # given numbers stay to the bit
    if "temperature" in names:
        found["temperature"] = search.temperature
    if "scale" in names:
        found["weight_variance"] = _numbers(kernel.weight_variance)
    if "bias_ratio" in names:
        found["bias_variance"] = _numbers(kernel.bias_variance)
    if "ard" in names:
        found["ard_weights"] = _numbers(kernel.ard_weights)
    return dataclasses.replace(first, search=search, rows=len(rows), **found)


def _names(
    activation: Activation,
    columns: int,
    temperature: float | None,
    weight_variance: Numbers | None,
    bias_variance: Numbers | None,
    ard_weights: Numbers | None,
) -> tuple[str, ...]:
    """Names of what trains, as :func:`fit_hyperparameters` has them."""
    return (
        *(["temperature"] if temperature is None else []),
        *(["scale"] if weight_variance is None else []),
        *(["weight_variance"] if weight_variance is None and activation.homogeneous_degree is None else []),
        *(["bias_ratio"] if bias_variance is None else []),
        *(["ard"] if ard_weights is None and columns > 1 else []),
    )


def _search(model: NetworkGP, names: tuple[str, ...], rows: Tensor, executor: Executor | None) -> HyperparameterFit:
    """Return the best of several descents on these rows of the model's data."""
    x, y = model.train_inputs[0], model.train_targets

    def on(start: NetworkGP, rows: Tensor) -> NetworkGP:
        start = copy.deepcopy(start)
        start.set_train_data(x[rows], y[..., rows], strict=False)
        return start

    if len(rows) <= _COARSE_ROWS:
        return _descended((on(model, rows), names, _COARSE_STARTS), executor)
    # Few rows cannot tell which inputs matter for small details, and without ARD a smooth function of few inputs can
    # pass for noise: each of the two beginnings finds maxima that the other misses.
    without = tuple(name for name in names if name != "ard")
    beginnings = [kind for kind in dict.fromkeys((names, without)) if kind]
    few = on(model, rows[:_COARSE_ROWS])
    with one_attempt():
        coarse = map_tasks(_descended, [(copy.deepcopy(few), kind, _COARSE_STARTS) for kind in beginnings], executor)
        found = map_tasks(_descended, [(on(fit.model, rows), names, 1) for fit in coarse], executor)
    best = max(found, key=lambda fit: fit.log_posterior)
    agreeing = sum(fit.log_posterior >= best.log_posterior - _NEARLY for fit in found)
    return dataclasses.replace(
        best,
        message=f"{best.message}; {agreeing} of {len(found)} descents agree",
        evaluations=sum(fit.evaluations for fit in (*coarse, *found)),
        starts=tuple(fit.log_posterior for fit in found),
    )


def _descended(task: tuple[NetworkGP, tuple[str, ...], int], executor: Executor | None = None) -> HyperparameterFit:
    """Fit a model of one's own from so many starts."""
    model, names, starts = task
    return fit_hyperparameters(model, train=names, throw=False, warn=False, starts=starts, executor=executor)


def _model(x: Tensor, y: Tensor, kernel: NNGPKernel, prior: NetworkFit) -> NetworkGP:
    """Return a process in float64 with the hyperparameters of ``prior``."""
    kernel = kernel.to(dtype=torch.float64, device=x.device)
    _set_values(kernel, prior)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood = likelihood.to(dtype=torch.float64, device=x.device)
    likelihood.noise = x.new_tensor(prior.temperature, dtype=torch.float64)
    return NetworkGP(x, y, likelihood, kernel)


def _set_values(kernel: NNGPKernel, prior: NetworkFit) -> None:
    """Set variances and weights again after a conversion, without the rounding of torch's default dtype."""
    like = kernel.raw_readout_variance
    kernel.weight_variance = like.new_tensor(prior.weight_variance)
    kernel.bias_variance = like.new_tensor(prior.bias_variance)
    if prior.ard_weights is not None:
        kernel.ard_weights = like.new_tensor(prior.ard_weights)


def _values(name: str, given: Numbers | None, default: float, size: int, allow_zero: bool = False) -> tuple[float, ...]:
    value = torch.as_tensor(default if given is None else given, dtype=torch.float64)
    return _numbers(as_values(name, value, size, allow_zero))


def _ard_weights(given: Numbers | None, columns: int) -> tuple[float, ...] | None:
    """Given weights with mean one; None where all are alike."""
    if given is None:
        return None
    values = as_values("ard_weights", torch.as_tensor(given, dtype=torch.float64), columns)
    return None if bool((values == values[0]).all()) else _numbers(values / values.mean())


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(values.detach().flatten().tolist())
