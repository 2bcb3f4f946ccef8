"""Which width, depth, temperature and prior variances a data set asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._tasks import map_tasks
from .._validation import check_inputs, check_same_kind, check_targets
from ..activations import Activation, get_activation
from ..inference import Normalization
from ..kernels import NNGPKernel
from ..mixing.law_of_widths import law_of_widths
from ..mixing.tabulated_density import TabulatedDensity
from ..spectra.spectrum import Spectrum
from .baselines import tuned_baselines
from .network_choice import AXES, NetworkChoice
from .scale_lattice import GridOfNetworks, evaluate_grid

WIDTHS = (10.0, 30.0, 100.0, 300.0, math.inf)
TEMPERATURES = tuple(10.0 ** (0.5 * k) for k in range(-8, 1))
_LARGEST = 5e8  # numbers that pointwise log densities may fill (4 GB)


def choose_network(
    x: Tensor,
    y: Tensor,
    *,
    activations: str | Activation | Sequence[str | Activation] = "relu",
    widths: Sequence[float] = WIDTHS,
    depths: Sequence[int] = (1, 2),
    temperatures: Sequence[float] = TEMPERATURES,
    bias_ratios: Sequence[float] = (0.1, 1.0, 10.0),
    weight_variances: Sequence[float] = (1.0,),
    readout_variances: Sequence[float] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    standardize: bool = True,
    baselines: bool = True,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor | None = None,
) -> NetworkChoice:
    r"""Compare all networks of a grid on a data set by evidence and leave-one-out, beside tuned baselines.

    .. math:: \log p(y | N, L, T, b/w, w) = \log \int p(r | N, L)\, N(y; 0, T + r K)\, dr, \qquad
              p(y_i | y_{-i}) = \Big[\int p(r | y) / p(y_i | y_{-i}, r)\, dr\Big]^{-1}

    The scale r is integrated (outer composition), for the evidence and for every point that is left out; infinite width
    has r = 1. Every layer of a network has the same width N, hidden weight variance w and bias variance b = (b/w) w,
    and the readout a variance of its own. The prior over the grid is uniform: choose the grid accordingly.

    Recommended is the network of highest evidence; :meth:`NetworkChoice.preference` says "no preference" (None) where a
    whole axis lies within 3 nats. A data set is one draw of the scale, so that this is the usual answer for widths.
    With a free readout variance infinite width always reaches the higher evidence: a grid with a single readout
    variance, or a coarse one, can prefer a finite width for no other reason than that the variance is wrong. The
    baselines show what a free scale of the infinite width, and a Matern-5/2 kernel with ARD, reach when they are tuned
    by evidence.

    Not included: a trained mean, ARD of the networks, layers of different widths, refitting for each point left out.

    Shapes: inputs ``P x d``, targets ``P``; no batch. All arithmetic is in float64. Accuracy: 1e-7 in log p(y) for
    widths up to 300, 1e-5 up to 1e4 (the density of the scale comes from a table).
    Cost: one ``eigh`` for each activation, depth, bias ratio and hidden weight variance; one table over r w_L / T, of
    two products of its some thousands of points with P x P matrices, answers all readout variances, temperatures and
    widths, each for some dozens of nodes of O(P). The default grid has 1,620 networks
    of six kernel matrices: 0.25 s of one CPU thread for each with 300 points. Baselines: a fit for each activation and
    depth, and one of Matern.

    Args:
        x: Inputs.
        y: Targets.
        activations: One or several, objects or names.
        widths: Numbers > 0, ``math.inf`` allowed.
        depths: Numbers of hidden layers.
        temperatures: T > 0, in standardized units.
        bias_ratios: b_l / w_l >= 0 of all layers.
        weight_variances: w of the hidden layers; for homogeneous activations (relu) only another overall scale.
        readout_variances: w_L.
        standardize: Shift and scale inputs and targets to zero mean and unit variance first.
        baselines: Fit the baselines.
        progress: Called with (done, total) after every eigendecomposition's share.
        executor: A ``concurrent.futures.Executor`` that takes the kernel matrices, each with all its temperatures,
            readout variances and widths, and then the fits of the baselines; None to do them one after the other. The
            numbers are the same. The densities of the scale are tabulated once, here.

    Returns:
        The maps over the grid, recommendations and baselines; ``print`` it.

    Raises:
        TypeError, ValueError: NaN, wrong shapes, fewer than two points, values out of range, an empty axis.

    Reference: THEORY.md, section 1 ("Evidence", "Beyond the saddle point") and section 7.

    Example:
        >>> import math, torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(25, 2, generator=generator)
        >>> y = x[:, 0] + 0.3 * torch.randn(25, generator=generator)
        >>> choice = choose_network(x, y, depths=(1,), bias_ratios=(0.1,), widths=(100.0, math.inf), baselines=False)
        >>> choice.preference("width"), choice.preference("temperature") is None
        (None, False)
    """
    several = (activations,) if isinstance(activations, str | Activation) else tuple(activations)
    activations = tuple(get_activation(activation) for activation in several)
    values = (activations, depths, bias_ratios, weight_variances, readout_variances, temperatures, widths)
    grid = _checked_grid(dict(zip(AXES, map(tuple, values), strict=True)))
    check_same_kind(x=check_inputs(x, "x"), y=check_targets(y, x.shape[-2]))
    if x.dim() != 2 or y.dim() != 1 or len(y) < 2:
        raise ValueError(f"x, y: expected P x d and P with P >= 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    shape = [len(grid[axis]) for axis in AXES]
    if math.prod(shape) * len(y) > _LARGEST:
        raise ValueError(f"grid: expected at most {_LARGEST / len(y):.3g} networks for {len(y)} points, got {shape}")
    with torch.no_grad():
        x, y = x.double(), y.double()
        unit = 1.0
        if standardize:
            units = Normalization.of_varying(x, y)
            x, y, unit = units.to_model(x), units.targets.to_model(y), float(units.target_scale)
        scales = y.new_tensor(grid["readout_variance"]), y.new_tensor(grid["temperature"])
        priors = {(depth, width): _prior(depth, width) for depth in grid["depth"] for width in grid["width"]}
        tasks = [
            _Kernel(x, y, *kernel, *scales, [priors[kernel[1], width] for width in grid["width"]])  # type: ignore[call-arg]
            for kernel in itertools.product(*(grid[axis] for axis in AXES[:4]))
        ]
        found = map_tasks(_Kernel.evaluate, tasks, executor, progress)
        evidence, error = (torch.empty(shape, dtype=torch.float64, device=x.device) for _ in range(2))
        pointwise = torch.empty(*shape, len(y), dtype=torch.float64, device=x.device)
        for kernel in reversed(list(itertools.product(*(range(size) for size in shape[:4])))):
            evidence[kernel], pointwise[kernel], error[kernel] = found.pop()  # which frees its memory
    tuned = tuned_baselines(x, y, activations, grid["depth"], unit, executor) if baselines else ()
    return NetworkChoice(grid, evidence, pointwise.mean(-1), error * unit**2, pointwise, tuned)


class _Kernel(NamedTuple):
    """What one kernel matrix with unit readout variance answers."""

    x: Tensor
    y: Tensor
    activation: Activation
    depth: int
    bias_ratio: float
    weight_variance: float
    readout_variances: Tensor
    temperatures: Tensor
    laws: list[TabulatedDensity | None]

    @torch.no_grad()
    def evaluate(self) -> GridOfNetworks:
        return evaluate_grid(self.spectrum(), self.laws, self.readout_variances, self.temperatures)

    def spectrum(self) -> Spectrum:
        weights = torch.tensor([self.weight_variance] * self.depth + [1.0], dtype=torch.float64)
        bias = self.bias_ratio * self.weight_variance
        kernel = NNGPKernel(self.activation, self.depth, weight_variance=weights, bias_variance=bias).to(self.x)
        kernel.weight_variance = weights  # without the rounding of torch's default dtype
        kernel.bias_variance = torch.tensor(bias, dtype=torch.float64)
        return Spectrum.from_kernel(kernel(self.x).to_dense(), self.y, eigenvectors=True)


def _checked_grid(grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Check every axis; numbers become floats, sorted."""
    for axis, values in grid.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{axis}: expected one or more different values, got {values}")
    for value in grid["activation"]:
        if not isinstance(value, Activation):
            raise TypeError(f"activations: expected Activation objects such as ReLU(), got {value!r}")
    if not all(isinstance(depth, int) and depth >= 1 for depth in grid["depth"]):
        raise ValueError(f"depths: expected integers >= 1, got {grid['depth']}")
    for axis in AXES[2:]:
        values = tuple(sorted(float(value) for value in grid[axis]))
        low = 0.0 if axis == "bias_ratio" else math.ulp(0.0)
        if not all(value >= low and (math.isfinite(value) or axis == "width") for value in values):
            kind = "numbers >= 0" if axis == "bias_ratio" else "numbers > 0"
            raise ValueError(f"{axis}: expected finite {kind}, got {values}")
        grid[axis] = values
    return grid


def _prior(depth: int, width: float) -> TabulatedDensity | None:
    """Density of the scale of equal widths; None for infinite ones."""
    if math.isinf(width):
        return None
    return TabulatedDensity(law_of_widths(torch.full((depth,), width, dtype=torch.float64)))
