"""What the theories predict: continuous curves, and everything that applies at one point."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gpytorch
import torch

from torch_propkernel import (
    NetworkGP,
    PropKernelWarning,
    RenormalizedNNGPKernel,
    fit_order_parameters,
    generalization_error,
    width_sweep,
)
from torch_propkernel.activations import get_activation
from torch_propkernel.theories import Adaptive, CorrectedSaddle, FreeScale, Gated, Mixture, Theory

from .data import Source, Task, load_task
from .experiments import Curve, Point

BASELINES = ("infinite width", "free scale")
ADAPTIVE = Adaptive()


@contextmanager
def double_precision() -> Iterator[None]:
    """Build models in float64, without the warnings of this package: what they say is recorded for every point."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PropKernelWarning)
            yield
    finally:
        torch.set_default_dtype(before)


def build_model(task: Task, point: Point, composition: str = "outer") -> NetworkGP:
    """Return the GP of a network: all weight variances one, no biases, the noise is the temperature."""
    kernel = RenormalizedNNGPKernel(
        get_activation(point.activation), torch.tensor(point.widths, dtype=torch.float64), composition
    )
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = point.temperature
    return NetworkGP(task.x, task.y, likelihood, kernel)


def compositions(point: Point) -> dict[str, str]:
    """Return the saddle points that apply, by name: one for one layer or relu where nested and outer are the same."""
    if len(point.widths) == 1:
        return {"saddle point": "outer"}
    if point.activation == "relu":
        return {"outer = nested": "outer"}
    return {"outer": "outer", "nested": "nested", "linear part": "linear_part"}


def predict(task: Task, point: Point) -> dict[str, dict]:
    """Return every prediction at one point: test error, its two parts, q of the readout; order parameters.

    The entry "reliability" holds the participation ratio of the inputs and what the package says about the point.
    """
    found: dict[str, dict] = {}
    with double_precision():
        for name, composition in compositions(point).items():
            model = build_model(task, point, composition)
            solution = fit_order_parameters(model, warn=False)
            error = generalization_error(model, task.test_x, task.test_y)
            if not found:
                found["infinite width"] = _entry(error.infinite_width, 1.0)
                baseline = FreeScale().fit(model)
                found["free scale"] = _entry(baseline.error(task.test_x, task.test_y), float(baseline.readout_norm))
                reliability = solution.reliability
            found[name] = _entry(error, solution.order_parameter[-1]) | {"solution": solution.message}
            found[name]["order_parameters"] = solution.order_parameter.tolist()
        for name, theory in _others(point).items():
            fitted = theory.fit(build_model(task, point))
            found[name] = _entry(fitted.error(task.test_x, task.test_y), fitted.readout_norm)
        note = {"participation_ratio": reliability.participation_ratio, "score": reliability.score}
        found["reliability"] = note | {"reliable": reliability.reliable, "note": reliability.note}
    return found


def _others(point: Point) -> dict[str, Theory]:
    if len(point.widths) == 1:
        return {"mixture": Mixture(), "saddle + 1/N": CorrectedSaddle(), "adaptive": ADAPTIVE}
    return {"gated": Gated()} if point.activation == "relu" and len(point.widths) == 2 else {}


def _adaptive(task: Task, point: Point) -> dict[str, float]:
    with double_precision():
        fitted = ADAPTIVE.fit(build_model(task, point))
        return _entry(fitted.error(task.test_x, task.test_y), fitted.readout_norm)


def _entry(error, order_parameter) -> dict[str, float]:
    values = {"test_error": error.mean_total, "bias": error.mean_bias, "variance": error.mean_variance}
    return {name: float(value) for name, value in values.items()} | {"order_parameter": float(order_parameter)}


def predict_curve(curve: Curve, num_test: int, source: Source, num_values: int = 40) -> dict:
    """Return curves of the theories along the axis: {"x": [...], "theory": {name: {"test_error": [...], ...}}}."""
    low, high = min(curve.values), max(curve.values)
    ratio = (1.5 if curve.axis == "width" else 1.0) * high / low
    grid = [low * ratio ** (k / (num_values - 1)) for k in range(num_values)]
    if curve.axis == "width":
        return _along_width(curve, sorted({*grid, *map(float, curve.values)}), num_test, source)
    return _along_data(curve, sorted({*(round(value) for value in grid), *curve.values}), num_test, source)


def _along_width(curve: Curve, grid: list[float], num_test: int, source: Source) -> dict:
    """Sweep the width; what cannot be swept (compositions, the gated and the adaptive theory) at a dozen widths."""
    task = load_task(curve.task, curve.fixed, num_test, source)
    found: dict[str, dict[str, list]] = {}
    with double_precision():
        point = curve.point(curve.values[0])
        model = build_model(task, point)
        free = FreeScale().fit(model)
        baseline = _entry(free.error(task.test_x, task.test_y), float(free.readout_norm))
        sweep = width_sweep(model, grid, task.test_x, task.test_y)
        wide = _entry(sweep.test.infinite_width, 1.0)
        for name, entry in zip(BASELINES, (wide, baseline), strict=True):
            found[name] = _columns(grid, [entry] * len(grid))
        main = next(iter(compositions(point)))
        values = zip(sweep.test.total, sweep.test.bias, sweep.test.variance, sweep.order_parameter, strict=True)
        names = "test_error", "bias", "variance", "order_parameter"
        rows = [
            dict(zip(names, (float(total.mean()), float(bias.mean()), float(var.mean()), float(q[-1])), strict=True))
            for total, bias, var, q in values
        ]
        found[main] = _columns(grid, rows)
    few = sorted({*grid[:: max(1, len(grid) // 8)], *map(float, curve.values), grid[-1]})
    if curve.depth == 1:
        found["adaptive"] = _columns(few, [_adaptive(task, curve.point(value)) for value in few])
    else:
        entries = [predict(task, curve.point(value)) for value in few]
        for name in entries[0].keys() - found.keys() - {"reliability"}:
            found[name] = _columns(few, [entry[name] for entry in entries])
    return found


def _along_data(curve: Curve, grid: list[int], num_test: int, source: Source) -> dict:
    """Solve for every number of training points; the adaptive theory where networks are sampled."""
    entries, adapted = [], []
    for num_data in grid:
        point = curve.point(num_data)
        task = load_task(curve.task, num_data, num_test, source)
        with double_precision():
            model = build_model(task, point)
            q = fit_order_parameters(model, warn=False).order_parameter[-1]
            error = generalization_error(model, task.test_x, task.test_y)
            baseline = FreeScale().fit(model)
        names = (*BASELINES, next(iter(compositions(point))))
        rows = (
            _entry(error.infinite_width, 1.0),
            _entry(baseline.error(task.test_x, task.test_y), float(baseline.readout_norm)),
            _entry(error, q),
        )
        entries.append(dict(zip(names, rows, strict=True)))
        adapted += [_adaptive(task, point)] if num_data in curve.values and curve.depth == 1 else []
    found = {name: _columns(grid, [entry[name] for entry in entries]) for name in entries[0]}
    return found | ({"adaptive": _columns(sorted(curve.values), adapted)} if adapted else {})


def _columns(x: list, rows: list[dict]) -> dict[str, list]:
    names = "test_error", "bias", "variance", "order_parameter"
    return {"x": list(x)} | {name: [row[name] for row in rows] for name in names}
