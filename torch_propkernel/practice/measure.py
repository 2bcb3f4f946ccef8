"""The order parameters of a network that exists: read off its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import as_values, check_finite
from ..networks.feature_network import FeatureNetwork


@dataclass(frozen=True)
class LayerMeasurement:
    """What was measured in one layer of weights W^l, with fan-in N_{l-1}.

    Attributes:
        name: Name of the layer.
        shape: ``(N_l, N_{l-1})``; for a readout (D, N_L).
        mean_square: ``lambda_{l-1} |W^l|^2`` / (number of weights), ``*b``; one on average under the prior.
        order_parameter: Measured q_{l-1}, the order parameter of the units that this layer reads, ``*b``; None for the
            first layer (inputs have none), for several outputs or patches, and below a convolution.
    """

    name: str
    shape: tuple[int, int]
    mean_square: Tensor
    order_parameter: Tensor | None

    def __str__(self) -> str:
        """One row of the table."""
        width = self.shape[1]
        spread = f"{math.sqrt(2 / width):.2g}" if self.order_parameter is not None else ""
        q = "" if self.order_parameter is None else _text(self.order_parameter)
        return f"{self.name:<16}{self.shape!s:<14}{_text(self.mean_square):<20}{q:<20}{spread}".rstrip()


@dataclass(frozen=True)
class MeasuredOrderParameters:
    """Measurement of all layers of a network; ``print`` it for a table.

    Attributes:
        layers: One measurement for each layer of weights, the readout last.
        readout_matrix: Q = lambda_L V^T V / N_L, ``*b x M x M``, M the number of blocks of the readout: 1, the outputs
            D, or for a convolutional network patches times outputs (patch slow).

    Example:
        >>> import torch
        >>> from torch_propkernel.practice import measure_order_parameters
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> measured = measure_order_parameters(net, weight_variance=1 / 3)
        >>> [layer.name for layer in measured.layers], measured.readout_matrix.shape
        (['0', '2'], torch.Size([1, 1]))
    """

    layers: tuple[LayerMeasurement, ...]
    readout_matrix: Tensor

    @property
    def order_parameter(self) -> Tensor:
        """Measured q_1, ..., q_L, ``*b x L``.

        Raises:
            ValueError: Several outputs or patches, whose order parameter is ``readout_matrix``.
        """
        if self.readout_matrix.shape[-1] != 1:
            raise ValueError(
                "order_parameter: expected one output and one patch, got a matrix order parameter of shape "
                f"{tuple(self.readout_matrix.shape)}; use readout_matrix"
            )
        return torch.stack([q for layer in self.layers if (q := layer.order_parameter) is not None], dim=-1)

    def __str__(self) -> str:
        """Table of the layers."""
        head = f"{'layer':<16}{'shape':<14}{'lambda |W|^2/count':<20}{'q of its inputs':<20}prior deviation of q"
        rows = [head, *(str(layer) for layer in self.layers)]
        if self.readout_matrix.shape[-1] != 1:
            trace = self.readout_matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
            rows.append(f"readout matrix {tuple(self.readout_matrix.shape[-2:])}, trace / size {_text(trace)}")
        return "\n".join(rows)


def measure_order_parameters(
    network: torch.nn.Module,
    weight_variance: float | Sequence[float] | Tensor | None = None,
    *,
    layers: Sequence[str] | None = None,
) -> MeasuredOrderParameters:
    r"""Measure on a network's weights the quantities that the theory's order parameters predict.

    .. math::
        q_L = \frac{\lambda_L |v|^2}{N_L}, \qquad
        q_l = \frac{\lambda_l\, |(W^{l+1})^T n_{l+1}|^2}{N_l}, \quad
        n_L = \frac{v}{|v|}, \quad n_l = \frac{(W^{l+1})^T n_{l+1}}{|(W^{l+1})^T n_{l+1}|}

    W^l are the weights of layer l in the parametrization of :class:`FiniteNetwork` (factors 1/sqrt(N) outside), v the
    readout, :math:`\lambda_l = 1/w_l` precisions, N_l widths; q_l belongs to hidden layer l, whose outputs W^{l+1}
    reads, and n_l is the direction in layer l that the output follows. Also measured: the mean squares
    :math:`m_l = \lambda_{l-1} |W^l|^2 / (N_l N_{l-1})`.

    Which of these is the theory's q:

    - *One hidden layer*: q_1 is, the order parameter of THEORY.md, eqs. (1) and (2). The saddle point predicts its
      posterior mean. For several outputs or patches the matrix :math:`Q = \lambda_L V^T V / N_L` takes its place.
    - *Several layers, q_L*: again the order parameter of the last layer, for every composition.
    - *Several layers, l < L*: the q_l above are independent Gamma(N_l/2, rate N_l/2) under the prior for any
      activation, the law that the theory gives them. For the identity activation they are exactly the q_l of (7), since
      :math:`|v W^L \cdots W^{l+1}|^2` is their product up to factors. For other odd activations and two layers they are
      the q_1 of (8b): given v and W^2 the part of f that is linear in layer 1 has the covariance q_2 q_1 D K^1 D /
      lambda_2; (8b) itself, and more so (7), are approximations there. For relu, whose mean activation adds order
      parameters, their relation to any composition is open.
    - *Mean squares*: not order parameters; m_{L+1} = q_L for one output. For an activation with
      sigma(a u) = a sigma(u), a > 0, and no biases every layer shares one excess exactly, at any width:
      :math:`N_l N_{l-1} (E m_l - 1) = N_L (E q_L - 1) = E[(y - f) \cdot f] / T`, posterior averages, because scaling
      any one layer scales f. (The middle equality holds for every activation, and is the saddle-point equation when E
      is taken over the Gaussian posterior.) So m_l of a wide hidden layer stays near 1 whatever the network learns.

    One network is one draw: q_l scatters by sqrt(2/N_l) under the prior. Average over draws (batch) to compare with a
    prediction of some percent. An agreement of q is no proof of the predicted error (THEORY.md, section 7). The
    numbers mean something only if the network was trained so that it samples (or maximizes) a posterior with these
    precisions: see :func:`gibbs_parameters`.

    A torch module is read in the standard parametrization: the weight of a :class:`torch.nn.Linear` is
    W^l / sqrt(N_{l-1}), so that its prior variance is w_{l-1} / N_{l-1}. Not included: biases, and modules other than
    Linear, which are ignored.

    Shapes: a batch of networks ``*b`` gives measurements ``*b``. Cost: one pass over the weights.

    Args:
        network: A :class:`FiniteNetwork`, :class:`ConvolutionalNetwork`, or a module with Linear layers.
        weight_variance: w_0, ..., w_L: a number or one for each layer of weights; a FiniteNetwork's own if None, else
            needed. ``1/3`` is the variance of torch's default initialization.
        layers: Names of the Linear layers from input to readout, as in ``named_modules()``; all of them in the order of
            registration if None.

    Returns:
        The measurement.

    Raises:
        TypeError: Not a module.
        ValueError: No Linear layer or an unknown name, layers whose sizes do not follow one another, no weight
            variances or a wrong number, weights that are not finite.

    Reference: Pacelli et al. (2023), arXiv:2209.04882; THEORY.md, eqs. (1), (2), (7), (8b).

    Example:
        >>> import torch
        >>> from torch_propkernel import ReLU
        >>> from torch_propkernel.networks import FiniteNetwork
        >>> from torch_propkernel.practice import measure_order_parameters
        >>> network = FiniteNetwork(ReLU(), input_dim=3, width=50, weight_variance=[1.0, 4.0])
        >>> q = measure_order_parameters(network).order_parameter
        >>> torch.allclose(q, network.readout.square().sum() / 4 / 50)
        True
    """
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    with torch.no_grad():
        named = _own_weights(network) if isinstance(network, FeatureNetwork) else _linear_weights(network, layers)
        if weight_variance is None:
            if not isinstance(network, FeatureNetwork):
                raise ValueError(f"weight_variance: expected 1 or {len(named)} numbers, got None")
            weight_variance = network.weight_variance
        values = as_values("weight_variance", torch.as_tensor(weight_variance, dtype=torch.float64), len(named))
        whitened = [
            check_finite(name, weight) / variance.sqrt().to(weight)
            for (name, weight), variance in zip(named, values, strict=True)
        ]
        return _measure([name for name, _ in named], whitened)


def _measure(names: Sequence[str], weights: Sequence[Tensor]) -> MeasuredOrderParameters:
    """Measure whitened weights ``*b x N_l x N_{l-1}``, the readout last, ``*b x M x N_L``."""
    direction: Tensor | None = torch.ones_like(weights[-1][..., :1]) if weights[-1].shape[-2] == 1 else None
    found: list[LayerMeasurement] = []
    units_below = [0, *(weight.shape[-2] for weight in weights[:-1])]
    for name, weight, units in reversed(list(zip(names, weights, units_below, strict=True))):
        rows, fan_in = weight.shape[-2:]
        q = None
        if direction is not None and fan_in == units:  # each column is one unit: not so in a filter of several places
            back = weight.mT @ direction
            norm = back.norm(dim=-2, keepdim=True)
            q, direction = norm.square().squeeze(-1).squeeze(-1) / fan_in, back / norm
        else:
            direction = None
        found.append(LayerMeasurement(name, (rows, fan_in), weight.square().mean((-2, -1)), q))
    readout = weights[-1]
    return MeasuredOrderParameters(tuple(reversed(found)), readout @ readout.mT / readout.shape[-1])


def _own_weights(network: FeatureNetwork) -> list[tuple[str, Tensor]]:
    """Weights of a network of this package; the readout as blocks ``*b x M x N_L``."""
    hidden = [(f"hidden {l}", weight) for l, (weight, _) in enumerate(network.layers(), start=1)]
    weights = network.readout[..., : network.num_units, :]  # without a bias
    blocks = weights.unflatten(-2, (network.width[-1], -1)).flatten(-2).mT
    return [*hidden, ("readout", blocks)]


def _linear_weights(network: torch.nn.Module, layers: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    """Weights of the Linear layers times sqrt(fan-in), checked to follow one another."""
    linear = {name or "linear": m for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    if len(linear) < 2:
        raise ValueError(
            "network: expected at least two torch.nn.Linear layers (one hidden layer and a readout), got "
            f"{list(linear)} in {type(network).__name__}"
        )
    names = list(linear) if layers is None else list(layers)
    if len(names) < 2 or not set(names) <= set(linear):
        raise ValueError(f"layers: expected two or more of {list(linear)}, got {names}")
    for lower, upper in zip(names[:-1], names[1:], strict=True):
        sizes = linear[lower].out_features, linear[upper].in_features
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"layers: expected a chain, got '{lower}' with {sizes[0]} outputs before '{upper}' with {sizes[1]} "
                "inputs; name the layers of one chain, from input to readout"
            )
    return [(name, linear[name].weight * linear[name].in_features ** 0.5) for name in names]


def _text(value: Tensor) -> str:
    """A number, or mean and standard deviation over a batch."""
    if value.numel() == 1:
        return f"{value.item():.4g}"
    return f"{value.mean().item():.4g} +- {value.std().item():.2g}"
