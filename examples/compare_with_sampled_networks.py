"""Compare the predictions of all theories with finite networks whose posterior was sampled.

Usage::

    python examples/compare_with_sampled_networks.py DIR [--json OUT]

DIR holds ``finite_networks.json``, a list of cases, and the arrays they name. Three small cases ship in
``tests/data``, one of two outputs in ``tests/data/outputs``, four convolutional networks in ``tests/data/convolution``.
A case is an object with

``id``
    a name,
``arrays``
    path, relative to DIR, of an ``.npz`` file with X ``(P, N_0)``, y ``(P,)``, Xt ``(m, N_0)``, yt ``(m,)``; for a
    network of D outputs y ``(P, D)`` and yt ``(m, D)``,
``widths``
    N_1, ..., N_L,
``activation``
    a name from ``torch_propkernel.activations.ACTIVATIONS``: "erf", "relu", ...,
``precisions``
    lambda_0, ..., lambda_L, the precisions of the weights' priors (variance 1 / lambda_l); no biases,
``temperature``
    T, the variance of the observation noise,
``image_shape``, ``kernel_size``, ``stride``, ``padding``, ``readout``
    (convolutional networks of one output) [channels, rows, columns] or [channels, length], each row of X an image
    flattened; the others as for ``ConvolutionalRenormalizedKernel``, all but the first two optional, of several layers
    lists with an entry for each, such as ``"kernel_size": [[3, 3], [2, 2]]``; ``widths`` are numbers of channels,
``measured``
    (optional) ``{"mse": {"mean": .., "se": ..}, ...}``: E (y* - f(x*))^2 averaged over the test points and over
    networks sampled from the posterior, without noise; also ``bias2``, ``variance``, and ``qv``, the mean of
    lambda_L |v|^2 / N_L. Of several outputs these are sums, of ``qv`` the mean, and ``mse_per_output`` is a list of
    ``{"mean": .., "se": ..}``,
``theory``
    (optional) ``{name: {"mse": ..}}``: the same predictions from another implementation, shown as a relative
    difference.

For every case the measured value and the predictions are printed, each with its squared bias, variance, order
parameters, predicted lambda_L |v|^2 / N_L, relative error and z = (prediction - measured) / standard error. The bias is
computed at the given test targets. Predictions are named ``inf`` (infinite width), ``saddle``, ``mix`` (exact mixture),
``first`` (first order in 1/N) and ``adaptive`` (units that learn) for one hidden layer, with relu also ``saddle_qs``
(the mean apart); for more layers ``saddle_nested``, ``saddle_outer`` and ``saddle_lin`` (compositions), ``mix_outer``,
and for two relu layers ``saddle_gated``. (``mix_qc``, the mixture with the mean apart, was dropped in 0.2.0: files
may still list it.) Of several outputs there are ``inf``, ``free`` (a free scale for each output) and ``saddle`` (a
matrix order parameter in every layer), and so there are of convolutional networks (``free`` is one scale, ``saddle`` a
matrix between patches). A theory that refuses a case says so. Then follow medians by regime, the number
of hidden layers, the activation and the inputs: the regimes of THEORY.md, section 7.

With ``--json OUT`` a list of ``{"id", "regime", "predictions": {name: {"mse", "bias2", "var", "readout_norm", ...}}}``
is written, with the order parameters beside them (``q`` of several layers as ``q1``, ``q2``, ...). ``adaptive`` has
``converged``, 1 or 0, and ``monte_carlo_error``, relative, beside them too. Matrices are nested lists. Of several
outputs ``mse``, ``bias2`` and ``var`` are sums over outputs, ``mse_per_output`` is a list, and ``readout_norm`` a mean.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import gpytorch
import numpy as np
import torch

from torch_propkernel import ConvergenceError, NetworkGP, PropKernelWarning, RenormalizedNNGPKernel
from torch_propkernel.activations import get_activation
from torch_propkernel.kernels import ConvolutionalRenormalizedKernel, MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.reliability import participation_ratio
from torch_propkernel.theories import (
    Adaptive,
    FirstOrder,
    FreeScale,
    Gated,
    InfiniteWidth,
    Mixture,
    SaddlePoint,
    TwoParameterSaddle,
)

MATRIX_THEORIES = {"inf": InfiniteWidth, "free": FreeScale, "saddle": SaddlePoint}
GEOMETRY = ("image_shape", "kernel_size", "stride", "padding", "readout")


def theories_for(case: dict, num_outputs: int | None) -> dict:
    """Return {name: (composition, theory)} for the case's architecture."""
    if num_outputs is not None or "image_shape" in case:
        return {name: ("outer", theory()) for name, theory in MATRIX_THEORIES.items()}
    relu, depth = case["activation"] == "relu", len(case["widths"])
    chosen = {"inf": ("outer", InfiniteWidth())}
    if depth == 1:
        chosen |= {"saddle": ("outer", SaddlePoint()), "mix": ("outer", Mixture()), "first": ("outer", FirstOrder())}
        chosen["adaptive"] = ("outer", Adaptive())
        if relu:
            chosen["saddle_qs"] = ("outer", TwoParameterSaddle())
        return chosen
    short = {"nested": "nested", "outer": "outer", "linear_part": "lin"}
    chosen |= {f"saddle_{name}": (composition, SaddlePoint()) for composition, name in short.items()}
    chosen["mix_outer"] = ("outer", Mixture())
    if relu and depth == 2:
        chosen["saddle_gated"] = ("outer", Gated())
    return chosen


def load(case: dict, folder: Path) -> list[torch.Tensor]:
    """Return X, y, Xt, yt."""
    with np.load(folder / case["arrays"]) as arrays:
        return [torch.as_tensor(arrays[name], dtype=torch.float64) for name in ("X", "y", "Xt", "yt")]


def build(case: dict, x: torch.Tensor, y: torch.Tensor, composition: str) -> NetworkGP:
    """Return the case's network as a model, in float64."""
    geometry = {name: case[name] for name in GEOMETRY if name in case}
    if y.dim() == 2 and geometry:
        raise SystemExit(f"case {case['id']}: expected targets (P,) with {', '.join(geometry)}, got {tuple(y.shape)}")
    if y.dim() == 2:
        return build_outputs(case, x, y)
    activation, widths = get_activation(case["activation"]), torch.tensor(case["widths"], dtype=torch.float64)
    variances = 1.0 / torch.tensor(case["precisions"], dtype=torch.float64)
    if geometry:
        kernel = ConvolutionalRenormalizedKernel(activation, widths, **geometry, weight_variance=variances).double()
        prior = kernel.blocks
    else:
        kernel = RenormalizedNNGPKernel(activation, widths, composition, weight_variance=variances).double()
        prior = kernel
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    model = NetworkGP(x, y, likelihood, kernel).double()
    prior.weight_variance = variances
    likelihood.noise = torch.tensor(case["temperature"], dtype=torch.float64)
    return model


def build_outputs(case: dict, x: torch.Tensor, y: torch.Tensor) -> MultitaskNetworkGP:
    """Return the case's network of several outputs as a model, in float64."""
    variances = 1.0 / torch.tensor(case["precisions"], dtype=torch.float64)
    widths = torch.tensor(case["widths"], dtype=torch.float64)
    kernel = MultitaskRenormalizedKernel(
        get_activation(case["activation"]), widths, y.shape[-1], weight_variance=variances
    ).double()
    kernel.data_covar_module.weight_variance = variances
    return MultitaskNetworkGP.with_temperature(x, y, kernel, case["temperature"])


def predict(case: dict, folder: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Return every prediction for one case, and why the theories that have none refused it."""
    x, y, test_x, test_y = load(case, folder)
    num_outputs = None if y.dim() == 1 else y.shape[-1]
    predictions, refused = {}, {}
    for name, (composition, theory) in theories_for(case, num_outputs).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PropKernelWarning)
                fitted = theory.fit(build(case, x, y, composition))
        except ConvergenceError as error:
            refused[name] = str(error)
            continue
        error = fitted.error(test_x, test_y)
        predictions[name] = entry(fitted, error) if num_outputs is None else output_entry(fitted, error)
    return predictions, refused


def entry(fitted, error) -> dict[str, float | list]:
    """Return one prediction as plain numbers, and matrices as lists of them."""
    values = {"mse": error.mean_total, "bias2": error.mean_bias, "var": error.mean_variance}
    values["readout_norm"] = fitted.readout_norm
    matrices = {}
    for name, value in fitted.order_parameters.items():
        flat = value.reshape(-1)
        if len(flat) > 1 and name in ("E", "Q"):
            matrices[name] = value.tolist()
        else:
            values |= {name: flat[0]} if len(flat) == 1 else {f"{name}{i + 1}": v for i, v in enumerate(flat)}
    for name in ("converged", "monte_carlo_error"):
        if name in fitted.stats:
            values[name] = fitted.stats[name]
    return {name: float(value) for name, value in values.items()} | matrices


def output_entry(fitted, error) -> dict[str, float | list]:
    """Return one prediction of several outputs as plain numbers, and lists of them."""
    by_output = {"mse": error.mean_total, "bias2": error.mean_bias, "var": error.mean_variance}
    values = {name: float(value.sum()) for name, value in by_output.items()}
    values["readout_norm"] = float(fitted.readout_norm.diagonal().mean())
    matrices = {name: value.tolist() for name, value in fitted.order_parameters.items()}
    return values | {"mse_per_output": error.mean_total.tolist()} | matrices


def regime(case: dict, folder: Path) -> str:
    """Name the regime: depth, activation, and whether the inputs fill many directions (section 7)."""
    inputs = load(case, folder)[0]
    depth, size = len(case["widths"]), inputs.shape[1]
    if depth == 1:
        data = "ratio > 25" if float(participation_ratio(inputs)) > 25 else "ratio < 25"
    else:
        data = "N_0 >= 200" if size >= 200 else "N_0 < 200"
    outputs = load(case, folder)[1].shape[1:]
    several = f"{outputs[0]} outputs, " if outputs else ""
    kind = f"convolutional, {case.get('readout', 'dense')}" if "image_shape" in case else "hidden"
    return f"{several}{depth} {kind}, {case['activation']}, {data}"


def show(case: dict, predictions: dict, refused: dict) -> None:
    """Print one case as a small table."""
    measured = case.get("measured", {}).get("mse")
    what = f"{case['activation']}, widths {case['widths']}, T = {case['temperature']}"
    print(f"case {case['id']} {case.get('dataset', '')}: {what}")
    if measured is not None:
        norm = case["measured"].get("qv")
        text = "" if norm is None else f"  lambda |v|^2/N {norm['mean']:.5g}"
        print(f"  {'measured':13s} mse {measured['mean']:.5g} +- {measured['se']:.2g}{text}")
    for name, p in predictions.items():
        known = ("mse", "bias2", "var", "readout_norm")
        others = {k: v for k, v in p.items() if k not in known and not isinstance(v, list)}
        line = f"  {name:13s} mse {p['mse']:.5g} (bias2 {p['bias2']:.5g}, var {p['var']:.5g})"
        if measured is not None:
            deviation = p["mse"] - measured["mean"]
            line += f"  error {100 * deviation / measured['mean']:+.2f} %  z {deviation / measured['se']:+.1f}"
        line += f"  lambda |v|^2/N {p['readout_norm']:.5g}  " + ", ".join(f"{k} {v:.5g}" for k, v in others.items())
        other = case.get("theory", {}).get(name)
        if other is not None:
            line += f"  file {p['mse'] / other['mse'] - 1:+.1e}"
        print(line)
        for output, value in enumerate(p.get("mse_per_output", [])):
            line = f"    output {output:4d}   mse {value:.5g}"
            if measured is not None and "mse_per_output" in case["measured"]:
                own = case["measured"]["mse_per_output"][output]
                deviation = value - own["mean"]
                line += f"  error {100 * deviation / own['mean']:+.2f} %  z {deviation / own['se']:+.1f}"
            print(line)
    for name, reason in refused.items():
        print(f"  {name:13s} {reason}")


def main() -> None:
    """Read the cases, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with finite_networks.json and its arrays")
    parser.add_argument("--json", type=Path, help="write the predictions to this file")
    arguments = parser.parse_args()
    cases = json.loads((arguments.folder / "finite_networks.json").read_text())
    results, errors = [], {}
    for case in cases:
        predictions, refused = predict(case, arguments.folder)
        show(case, predictions, refused)
        group = regime(case, arguments.folder)
        results.append({"id": case["id"], "regime": group, "predictions": predictions})
        if "measured" in case:
            for name, p in predictions.items():
                errors.setdefault((group, name), []).append(p["mse"] / case["measured"]["mse"]["mean"] - 1)
    if errors:
        print("\nrelative error of the test error by regime: median of |error|, smallest and largest error")
        for (group, name), values in sorted(errors.items()):
            median, low, high = (100 * v for v in (float(np.median(np.abs(values))), min(values), max(values)))
            print(f"  {group:28s} {name:13s} {median:6.2f} %  {low:+7.1f} to {high:+7.1f} %  ({len(values)} cases)")
    if arguments.json is not None:
        values = [v for r in results for p in r["predictions"].values() for v in p.values()]
        assert all(bool(np.isfinite(v).all()) for v in values)
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
