"""Compare the predictions of the theory with finite networks whose posterior was sampled.

Usage::

    python examples/compare_with_sampled_networks.py DIR [--json OUT]

DIR holds ``finite_networks.json``, a list of cases, and the arrays they name. Three small cases ship in
``tests/data``. A case is an object with

``id``
    a name,
``arrays``
    path, relative to DIR, of an ``.npz`` file with X ``(P, N_0)``, y ``(P,)``, Xt ``(m, N_0)``, yt ``(m,)``,
``widths``
    N_1, ..., N_L,
``activation``
    a name from ``torch_propkernel.functions.ACTIVATIONS``: "erf", "relu", ...,
``precisions``
    lambda_0, ..., lambda_L, the precisions of the weights' priors (variance 1 / lambda_l); no biases,
``temperature``
    T, the variance of the observation noise,
``measured``
    (optional) ``{"mse": {"mean": .., "se": ..}, ...}``: E (y* - f(x*))^2 averaged over the test points and over
    networks sampled from the posterior, without noise; also ``bias2`` and ``variance``,
``theory``
    (optional) ``{name: {"mse": ..}}``: the same predictions from another implementation, shown as a relative
    difference.

For every case the measured value and the predictions are printed: ``inf`` (infinite width) and, for one hidden layer,
``saddle``; for more, ``saddle_nested``, ``saddle_outer`` and ``saddle_lin`` (the linear-part composition), each with
its squared bias, variance, order parameters, relative error and z = (prediction - measured) / standard error. The bias
is computed at the given test targets.

With ``--json OUT`` a list of ``{"id", "predictions": {name: {"mse", "bias2", "var", "q" or "q1".."qL"}}}`` is written.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path

import gpytorch
import numpy as np
import torch

from torch_propkernel import (
    NetworkGP,
    PropKernelWarning,
    RenormalizedNNGPKernel,
    fit_order_parameters,
    generalization_error,
)
from torch_propkernel.functions import get_activation

ONE_LAYER = {"saddle": "outer"}
SEVERAL_LAYERS = {"saddle_nested": "nested", "saddle_outer": "outer", "saddle_lin": "linear_part"}


def predict(case: dict, folder: Path) -> dict[str, dict[str, float]]:
    """Return every prediction for one case."""
    with np.load(folder / case["arrays"]) as arrays:
        x, y, test_x, test_y = (torch.as_tensor(arrays[k], dtype=torch.float64) for k in ("X", "y", "Xt", "yt"))
    widths = case["widths"]
    predictions = {}
    for name, composition in (ONE_LAYER if len(widths) == 1 else SEVERAL_LAYERS).items():
        kernel = RenormalizedNNGPKernel(
            get_activation(case["activation"]),
            torch.tensor(widths, dtype=torch.float64),
            composition,
            weight_variance=1.0 / torch.tensor(case["precisions"], dtype=torch.float64),
        ).double()
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
        model = NetworkGP(x, y, likelihood, kernel).double()
        kernel.weight_variance = 1.0 / torch.tensor(case["precisions"], dtype=torch.float64)
        likelihood.noise = torch.tensor(case["temperature"], dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PropKernelWarning)
            solution = fit_order_parameters(model)
        error = generalization_error(model, test_x, test_y)
        q = solution.order_parameter.tolist()
        names = ["q"] if len(q) == 1 else [f"q{i + 1}" for i in range(len(q))]
        if "inf" not in predictions:
            predictions["inf"] = entry(error.infinite_width, names, [1.0] * len(q))
        predictions[name] = entry(error, names, q)
    return predictions


def entry(error, names, q):
    """Return one prediction as plain numbers."""
    values = {"mse": error.mean_total.item(), "bias2": error.mean_bias.item(), "var": error.mean_variance.item()}
    return values | dict(zip(names, q, strict=True))


def show(case: dict, predictions: dict) -> None:
    """Print one case as a small table."""
    measured = case.get("measured", {}).get("mse")
    what = f"{case['activation']}, widths {case['widths']}, T = {case['temperature']}"
    print(f"case {case['id']} {case.get('dataset', '')}: {what}")
    if measured is not None:
        print(f"  {'measured':14s} mse {measured['mean']:.5g} +- {measured['se']:.2g}")
    for name, p in predictions.items():
        q = ", ".join(f"{v:.5g}" for k, v in p.items() if k.startswith("q"))
        line = f"  {name:14s} mse {p['mse']:.5g} (bias2 {p['bias2']:.5g}, var {p['var']:.5g})  q {q}"
        if measured is not None:
            deviation = p["mse"] - measured["mean"]
            line += f"  error {100 * deviation / measured['mean']:+.2f} %  z {deviation / measured['se']:+.1f}"
        other = case.get("theory", {}).get(name)
        if other is not None:
            line += f"  file {p['mse'] / other['mse'] - 1:+.1e}"
        print(line)


def main() -> None:
    """Read the cases, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with finite_networks.json and its arrays")
    parser.add_argument("--json", type=Path, help="write the predictions to this file")
    arguments = parser.parse_args()
    cases = json.loads((arguments.folder / "finite_networks.json").read_text())
    results, errors = [], {}
    for case in cases:
        predictions = predict(case, arguments.folder)
        show(case, predictions)
        results.append({"id": case["id"], "predictions": predictions})
        if "measured" in case:
            for name, p in predictions.items():
                key = (f"{len(case['widths'])} hidden, {case['activation']}", name)
                errors.setdefault(key, []).append(abs(p["mse"] / case["measured"]["mse"]["mean"] - 1))
    if errors:
        print("\nmedian |relative error| of the test error, by number of layers and activation")
        for (group, name), values in sorted(errors.items()):
            median = 100 * float(np.median(values))
            print(f"  {group:18s} {name:14s} {median:6.2f} %  worst {100 * max(values):6.1f} %  ({len(values)} cases)")
    if arguments.json is not None:
        assert all(math.isfinite(v) for r in results for p in r["predictions"].values() for v in p.values())
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
