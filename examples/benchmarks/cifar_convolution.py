"""Planes and cars by convolutional networks of finite width, against infinite width and the fully connected network.

    python examples/benchmarks/cifar_convolution.py [--splits 5] [--json RUNS] [--markdown PAGE] [--plot PICTURE]

Planes and cars of CIFAR-10, labels -1 and +1, averaged over 2 x 2 pixels to 16 x 16 in color, less the mean training
image and over the training pixels' deviation. Networks with one hidden layer of relu units, unit prior variances and
T = 0.1: convolutional ones over 16 patches of 4 x 4 pixels without overlap, read by weights of each patch's own
("dense") or by the mean over patches ("pooled"), and the fully connected one. N is the number of channels, or units.

Predicted from P training images alone: the expected error of one network of the posterior, E (y_* - f(x_*))^2 without
noise; the error of the predictor, which is the posterior mean; its accuracy. 400 test images, the same for all P of a
split. Infinite width, the infinitely wide network with a free scale, and the saddle point at finite width: a matrix
over patches for the dense readout, a number for the others. For some P and N of the first split posteriors are sampled
(Hamiltonian Monte Carlo, the readout integrated out), with twice as many draws until they converge. Finished runs are
kept in RUNS. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _images import image_folder, normalized, planes_and_cars
from _uci import append_record, double_precision, mean_and_error, read_records, show, table, verdict, versions
from torch import Tensor

from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.networks import ConvolutionalNetwork, FiniteNetwork, estimate, sample_posterior
from torch_propkernel.practice import model_from_network
from torch_propkernel.progress import progress_bar
from torch_propkernel.theories import FreeScale, InfiniteWidth, SaddlePoint

HERE = Path(__file__).resolve().parent
TEMPERATURE = 0.1
SHAPE, PATCH = (3, 16, 16), 4
NETWORKS = ("dense", "pooled", "fully connected")
SIZES = (50, 100, 200, 400)
WIDTHS = (100, 20)
TRAIN, TEST = 400, 400
SAMPLED = tuple((network, width, size) for width, size in ((20, 50), (20, 100), (50, 50)) for network in NETWORKS)
DRAWS, LONGEST = 300, 2400
QUANTITIES = {  # title, factor and digits
    "error": ("expected error of a network", 1.0, ".3f"),
    "predictor": ("error of the predictor", 1.0, ".3f"),
    "accuracy": ("accuracy of the predictor, %", 100.0, ".1f"),
}
THEORIES = ("infinite_width", "free_scale", "saddle")


def network_of(name: str, width: int) -> FiniteNetwork | ConvolutionalNetwork:
    """The network, with unit variances."""
    if name == "fully connected":
        return FiniteNetwork("relu", 768, width)
    return ConvolutionalNetwork("relu", SHAPE, width, PATCH, readout=name)


def data(folder: Path, split: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; smaller training sets are parts of larger ones."""
    images, labels = planes_and_cars(folder, split, 2)
    chosen = torch.cat([torch.arange(size), torch.arange(TRAIN, TRAIN + TEST)])
    x, y = normalized(images[chosen], size), labels[chosen]
    return x[:size], y[:size], x[size:], y[size:]


def predict(folder: Path, split: int, size: int, name: str, width: int) -> dict[str, Any]:
    """What the theories say of one network, and the matrix over the patches if there is one."""
    x, y, test_x, test_y = data(folder, split, size)
    model = model_from_network(network_of(name, width), x, y, TEMPERATURE)
    found: dict[str, Any] = {}
    for theory in (InfiniteWidth(), FreeScale(), SaddlePoint()):
        fitted = theory.fit(model)
        error = fitted.error(test_x, test_y)
        found[theory.name] = {
            "error": float(error.mean_total),
            "predictor": float(error.mean_bias),
            "accuracy": float((error.mean * test_y > 0).double().mean()),
        }
    matrix = fitted.order_parameters.get("Q") if name == "dense" else None
    return {
        "kind": "predicted",
        "key": [split, size, name, width],
        "theories": found,
        "Q": None if matrix is None else matrix.tolist(),
    }


def sample(folder: Path, name: str, width: int, size: int, draws: int) -> dict[str, Any]:
    """What sampled networks do on the first split."""
    x, y, test_x, test_y = data(folder, 0, size)
    with warnings.catch_warnings(), progress_bar(f"{name}, N = {width}, P = {size}, {draws} draws") as advance:
        warnings.simplefilter("ignore", PropKernelWarning)  # convergence is recorded
        found = sample_posterior(
            network_of(name, width),
            x,
            y,
            TEMPERATURE,
            test_x=test_x,
            test_y=test_y,
            num_samples=draws,
            warmup=draws // 2,
            progress=advance,
        )
    right = estimate((found.draws * test_y > 0).double().mean(-1))
    return {
        "kind": "sampled",
        "key": [0, size, name, width],
        "draws": draws,
        "error": [found.test_error.mean.item(), found.test_error.standard_error.item()],
        "predictor": [found.bias.mean.item(), found.bias.standard_error.item()],
        "accuracy": float((found.posterior_mean.mean * test_y > 0).double().mean()),
        "accuracy of one network": [right.mean.item(), right.standard_error.item()],
        "converged": found.converged,
        "message": found.message,
    }


Predictions = dict[tuple[int, int, str, int], dict[str, Any]]


def column(predicted: Predictions, splits: int, size: int, name: str, theory: str, quantity: str) -> list[float]:
    """A quantity of every split; a theory is a name or a width."""
    width = int(theory) if theory.isdigit() else WIDTHS[0]
    key = "saddle" if theory.isdigit() else theory
    return [predicted[split, size, name, width]["theories"][key][quantity] for split in range(splits)]


def predicted_tables(predicted: Predictions, splits: int, sizes: Sequence[int]) -> list[str]:
    """Every quantity by network, P and theory."""
    theories = {"infinite_width": "infinite width", **{str(n): f"N = {n}" for n in WIDTHS}, "free_scale": "free scale"}
    lines: list[str] = []
    for quantity, (title, factor, digits) in QUANTITIES.items():
        rows = [
            [
                f"{name}, P = {size}",
                *(
                    show([factor * v for v in column(predicted, splits, size, name, theory, quantity)], digits)
                    for theory in theories
                ),
            ]
            for name in NETWORKS
            for size in sizes
        ]
        lines += [f"## Predicted: {title}", "", *table(("network", *theories.values()), rows), ""]
    return lines


def difference_table(predicted: Predictions, splits: int, sizes: Sequence[int]) -> list[str]:
    """One network's errors less another's, paired by split."""
    narrow = str(WIDTHS[-1])
    rows = []
    for first, second in (("dense", "fully connected"), ("dense", "pooled"), ("pooled", "fully connected")):
        for size in sizes:
            cells = []
            for theory, quantity in itertools.product(("infinite_width", narrow), ("error", "predictor")):
                one, other = (column(predicted, splits, size, name, theory, quantity) for name in (first, second))
                differences = [a - b for a, b in zip(one, other, strict=True)]
                mean, own = mean_and_error(differences)
                cells.append(f"{mean:+.3f} +- {own:.3f} {verdict(differences)}")
            rows.append([f"{first} - {second}, P = {size}", *cells])
    header = [f"{title}, {q}" for title in ("infinite width", f"N = {narrow}") for q in ("a network", "predictor")]
    lines = ["## Paired differences between networks", ""]
    lines += ["Mean over splits of the first network's error less the second's; lower is better.", ""]
    return [*lines, *table(("networks", *header), rows), ""]


def sampled_tables(predicted: Predictions, sampled: Predictions) -> list[str]:
    """Theories against sampled networks."""
    errors, predictors = [], []
    for key, run in sampled.items():
        _, size, name, width = key
        theories = predicted[key]["theories"]
        value, own = run["error"]
        label = f"{name}, N = {width}, P = {size}" + ("" if run["converged"] else " **not converged**")
        ratios = (f"{100 * (theories[theory]['error'] / value - 1):+.1f} %" for theory in THEORIES)
        errors.append([label, f"{value:.4f}", f"{100 * own / value:.1f} %", *ratios])
        mean, spread = run["predictor"]
        cells = [f"{theories[theory]['predictor']:.3f}" for theory in THEORIES]
        shares = [f"{100 * theories[theory]['accuracy']:.1f}" for theory in THEORIES]
        predictors.append([label, f"{mean:.3f} +- {spread:.3f}", *cells, f"{100 * run['accuracy']:.1f}", *shares])
    titles = ("infinite width", "free scale", "saddle point")
    lines = ["## Sampled networks: expected error of a network, predicted / sampled - 1", ""]
    lines += table(("network", "sampled", "its standard error", *titles), errors)
    lines += ["", "## Sampled networks: error and accuracy (%) of the predictor", ""]
    header = [f"{title}'s {quantity}" for quantity in ("error", "accuracy") for title in ("sampled network", *titles)]
    return [*lines, *table(("network", *header), predictors), ""]


def plot(folder: Path, predicted: Predictions, sampled: Predictions, sizes: Sequence[int], path: Path) -> None:
    """Draw the first split: learning curves with the sampled networks, and the fitted matrix over the patches."""
    from matplotlib.figure import Figure

    from torch_propkernel.plotting import BLUE, GREEN, VERMILLION, plot_block_covariance

    figure = Figure(figsize=(14.0, 4.4), layout="constrained")
    ax, matrix, image = figure.subplots(1, 3)
    width = WIDTHS[-1]
    for name, color in zip(NETWORKS, (VERMILLION, GREEN, BLUE), strict=True):
        for theory, style, label in (("saddle", "-", f"{name}, N = {width}"), ("infinite_width", ":", None)):
            values = [predicted[0, size, name, width]["theories"][theory]["error"] for size in sizes]
            ax.plot(sizes, values, style, color=color, label=label)
        runs = {size: run["error"] for (_, size, which, n), run in sampled.items() if (which, n) == (name, width)}
        if runs:
            mean, own = zip(*runs.values(), strict=True)
            ax.errorbar(list(runs), mean, [2 * e for e in own], fmt="o", color=color)
    ax.plot([], [], ":", color="black", label="infinite width")
    ax.errorbar([], [], [], fmt="o", color="black", label="sampled networks")
    ax.set_xscale("log")
    ax.set_xticks(list(sizes), [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("training images P")
    ax.set_ylabel("expected squared error of a network")
    ax.legend(fontsize="small")
    images, labels = planes_and_cars(folder, 0, 2)
    shown = images[: sizes[-1]], labels[: sizes[-1]]
    difference = shown[0][shown[1] > 0].mean(0) - shown[0][shown[1] < 0].mean(0)
    patches = ConvolutionalNetwork("relu", SHAPE, width, PATCH).patches
    q = torch.tensor(predicted[0, sizes[-1], "dense", width]["Q"])
    plot_block_covariance(q, patches, [matrix, image], image=difference)
    matrix.set_title(f"dense readout, N = {width}, P = {sizes[-1]}", fontsize="medium")
    image.set_title("on the mean car less the mean plane", fontsize="medium")
    figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=image_folder(), help="folder of cifar10_planes_cars.npz")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="P")
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(SAMPLED))), help="sampled posteriors")
    parser.add_argument("--json", type=Path, default=Path("cifar_convolution.jsonl"), help="finished runs")
    parser.add_argument("--markdown", type=Path, default=HERE / "results" / "cifar_convolution.md")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    with double_precision():
        print(run(options))


def run(options: argparse.Namespace) -> str:
    """Compute what is missing, write page and picture, return the tables."""
    records = read_records(options.json)
    predicted, sampled = (
        {tuple(r["key"]): r for r in records if r["kind"] == kind} for kind in ("predicted", "sampled")
    )
    cases = [SAMPLED[index] for index in options.cases]
    wanted = [
        (split, size, name, width)
        for split in range(options.splits)
        for size in options.sizes
        for name in NETWORKS
        for width in WIDTHS
    ] + [(0, size, name, width) for name, width, size in cases]
    for key in wanted:
        if key not in predicted:
            predicted[key] = predict(options.data, *key)
            append_record(options.json, predicted[key])
    for name, width, size in cases:
        key = (0, size, name, width)
        draws = DRAWS if key not in sampled else 2 * sampled[key]["draws"]
        while (key not in sampled or not sampled[key]["converged"]) and draws <= LONGEST:
            sampled[key] = sample(options.data, name, width, size, draws)
            append_record(options.json, sampled[key])
            draws *= 2
    chosen = {key: sampled[key] for key in ((0, size, name, width) for name, width, size in cases)}
    lines = predicted_tables(predicted, options.splits, options.sizes)
    lines += difference_table(predicted, options.splits, options.sizes)
    text = "\n".join([*lines, *sampled_tables(predicted, chosen)])
    options.markdown.write_text(
        "# Planes and cars by convolutional networks of finite width\n\n"
        "    python examples/benchmarks/cifar_convolution.py\n\n"
        f"{versions()}. Relu, T = {TEMPERATURE:g}, unit variances, {TEST} test images; mean +- standard error over "
        f"{options.splits} splits, which share images; a tie is less than two standard errors. The head of "
        "`cifar_convolution.py` says the rest. Errors of sampled values are one standard error.\n\n" + text,
        encoding="utf-8",
    )
    if options.plot is not None:
        plot(options.data, predicted, chosen, options.sizes, options.plot)
    return text


if __name__ == "__main__":
    main()
