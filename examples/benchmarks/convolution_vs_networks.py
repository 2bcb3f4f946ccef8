"""Convolutional networks: the matrix theory over patches against sampled posteriors.

    python examples/benchmarks/convolution_vs_networks.py [--cases 0 1] [--json RUNS] [--markdown PAGE]

Images: planes and cars of CIFAR-10 (labels -1 and +1), averaged over 4 x 4 pixels to 8 x 8, in color or gray, less the
mean training image and over the training pixels' deviation; or Gaussian rows whose first two patches decide. One
convolutional layer or two (patches of 4 x 4 in steps of 2, then of 2 x 2), then a readout of every patch by weights of
its own ("dense") or of the mean over patches ("pooled"). Posteriors are sampled by Hamiltonian Monte Carlo with the
readout integrated out (``sample_posterior``), from scratch with twice as many draws until they converge. The test error
is E (y_* - f(x_*))^2 over networks and 200 test points, without noise. Theories, none of them fitted to anything but
the training data: infinite width; the infinitely wide network with a free scale; one number for all patches (a saddle
point of N B units); and the matrix (``SaddlePoint`` of a ``ConvolutionalRenormalizedKernel``), which for a pool is a
number too. In a first of two layers channels count as infinitely many. Finished runs are kept in RUNS; predictions are
computed again for every page. About an hour on one core.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _images import image_folder, normalized, planes_and_cars
from _uci import append_record, read_records, table, versions
from torch import Tensor

from torch_propkernel import NetworkGP
from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.kernels import BlockRenormalizedKernel, KernelBlocks
from torch_propkernel.networks import ConvolutionalNetwork, estimate, sample_posterior
from torch_propkernel.practice import model_from_network
from torch_propkernel.progress import progress_bar
from torch_propkernel.theories import FreeScale, InfiniteWidth, SaddlePoint

HERE = Path(__file__).resolve().parent
TEMPERATURE = 0.1
NUM_TEST = 200
LONGEST = 8000


class Case(NamedTuple):
    """A posterior: data, activation, readout, channels N by layer, edge and step of the patches, training points."""

    data: str  # color, gray, or Gaussian
    activation: str
    readout: str
    width: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    num_data: int


CASES = (
    Case("Gaussian", "identity", "dense", (20,), (50,), (50,), 60),
    Case("Gaussian", "erf", "dense", (20,), (50,), (50,), 60),
    Case("Gaussian", "relu", "dense", (20,), (50,), (50,), 60),
    Case("color", "identity", "dense", (20,), (4,), (4,), 60),
    Case("color", "erf", "dense", (20,), (4,), (4,), 60),
    Case("color", "erf", "dense", (50,), (4,), (4,), 100),
    Case("color", "relu", "dense", (20,), (4,), (4,), 60),
    Case("gray", "erf", "dense", (20,), (4,), (2,), 60),
    Case("gray", "relu", "dense", (50,), (4,), (2,), 100),
    Case("color", "erf", "pooled", (20,), (4,), (2,), 60),
    Case("color", "relu", "pooled", (20,), (4,), (2,), 60),
    Case("color", "erf", "dense", (20, 20), (4, 2), (2, 1), 60),
    Case("color", "erf", "dense", (100, 20), (4, 2), (2, 1), 60),
    Case("color", "relu", "dense", (20, 20), (4, 2), (2, 1), 60),
    Case("color", "relu", "dense", (100, 20), (4, 2), (2, 1), 60),
    Case("color", "erf", "pooled", (20, 20), (4, 2), (2, 1), 60),
    Case("color", "relu", "pooled", (20, 20), (4, 2), (2, 1), 60),
)
SHAPES = {"color": (3, 8, 8), "gray": (1, 8, 8), "Gaussian": (1, 200)}


def data(folder: Path, index: int, case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and targets, test inputs and targets."""
    number = case.num_data + NUM_TEST
    if case.data == "Gaussian":
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(number, 200, generator=generator)
        teacher = torch.randn(50, generator=generator) / 50**0.5
        y = x[:, :50] @ teacher + x[:, 50:100] @ teacher + TEMPERATURE**0.5 * torch.randn(number, generator=generator)
    else:
        x, y = planes_and_cars(folder, index, 4, case.data == "gray")
        x, y = normalized(x[:number], case.num_data), y[:number]
    return x[: case.num_data], y[: case.num_data], x[case.num_data :], y[case.num_data :]


def network_of(case: Case) -> ConvolutionalNetwork:
    """The network, with unit variances."""
    one = len(case.width) == 1
    return ConvolutionalNetwork(
        get_activation(case.activation),
        SHAPES[case.data],
        *(sizes[0] if one else sizes for sizes in (case.width, case.kernel_size, case.stride)),
        readout=case.readout,
    )


def predict(folder: Path, index: int, case: Case) -> dict[str, Any]:
    """Test errors of the theories, and the Gram matrix of the readout of the matrix one."""
    x, y, test_x, test_y = data(folder, index, case)
    network = network_of(case)
    model = model_from_network(network, x, y, TEMPERATURE)
    together = KernelBlocks([[model.covar_module.blocks]])
    units = case.width[-1] * (1 if case.readout == "pooled" else network.num_patches)
    one = NetworkGP(x, y, model.likelihood, BlockRenormalizedKernel(together, float(units)))
    fitted = {
        "infinite width": InfiniteWidth().fit(model),
        "free scale": FreeScale().fit(model),
        "one number": SaddlePoint().fit(one),
        "matrix": SaddlePoint().fit(model),
    }
    errors = {name: float(theory.error(test_x, test_y).mean_total) for name, theory in fitted.items()}
    return {"errors": errors, "E": fitted["matrix"].order_parameters["E"][0]}


def sample(folder: Path, index: int, case: Case, draws: int) -> dict[str, Any]:
    """The measured error, and the Gram matrix of the readout, Q = lambda_1 sum_c v_ca v_cb / N."""
    x, y, test_x, test_y = data(folder, index, case)
    network = network_of(case)
    with warnings.catch_warnings(), progress_bar(f"case {index}, {draws} draws") as advance:
        warnings.simplefilter("ignore", PropKernelWarning)  # convergence is recorded
        found = sample_posterior(
            network,
            x,
            y,
            TEMPERATURE,
            test_x=test_x,
            test_y=test_y,
            num_samples=draws,
            warmup=draws // 2,
            seed=index,
            keep_weights=True,
            progress=advance,
        )
    readout = found.readout.squeeze(-1).unflatten(-1, (case.width[-1], -1))  # chains x draws x N x B, of unit variance
    gram = estimate(readout.mT @ readout / case.width[-1])
    return {
        "case": index,
        **case._asdict(),
        "draws": draws,
        "error": found.test_error.mean.item(),
        "standard_error": found.test_error.standard_error.item(),
        "E": gram.mean.tolist(),
        "E_error": gram.standard_error.tolist(),
        "converged": found.converged,
        "message": found.message,
    }


def page(folder: Path, runs: dict[int, dict[str, Any]]) -> str:
    """Tables of all cases."""
    theories = ("infinite width", "free scale", "one number", "matrix")
    rows, grams, entries = [], [], []
    for index, run in sorted(runs.items()):
        case = CASES[index]
        predicted = predict(folder, index, case)
        name = f"{index} {case.data} {case.activation} {case.readout}"
        mark = "" if run["converged"] else " **not converged**"
        cells: list[Any] = [name, ", ".join(map(str, case.width)), case.num_data, f"{run['error']:.4g}{mark}"]
        cells.append(f"{100 * run['standard_error'] / run['error']:.1f} %")
        cells += [f"{100 * (predicted['errors'][theory] / run['error'] - 1):+.1f} %" for theory in theories]
        rows.append(cells)
        found, own, expected = torch.tensor(run["E"]), torch.tensor(run["E_error"]), predicted["E"]
        unit = torch.eye(len(found))
        grams.append(
            [
                name,
                len(found),
                f"{float(found.diagonal().mean()):.3f}",
                f"{float(expected.diagonal().mean()):.3f}",
                f"{float((found - unit).norm()):.3f}",
                f"{float((found - expected).norm()):.3f}",
                f"{float(own.norm()):.3f}",
            ]
        )
        if len(found) <= 4:
            row, column = torch.tril_indices(len(found), len(found))
            for a, b in zip(row.tolist(), column.tolist(), strict=True):
                value = f"{found[a, b]:.3f} +- {own[a, b]:.3f}"
                entries.append([index, f"({a}, {b})", value, f"{float(expected[a, b]):.3f}"])
    lines = ["## Test error: predicted / sampled - 1", ""]
    lines += table(("case", "N", "P", "sampled", "its standard error", *theories), rows)
    lines += ["", "## Gram matrix of the readout, Q = lambda_1 sum_c v_ca v_cb / N", ""]
    lines += ["Norms are Frobenius norms; the last column is the norm of the standard errors.", ""]
    header = ("case", "B", "sampled trace / B", "matrix theory", "norm of Q - 1", "of Q - theory", "Monte Carlo error")
    lines += table(header, grams)
    lines += ["", "## Its entries", ""]
    lines += table(("case", "entry", "sampled", "matrix theory"), entries)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=image_folder(), help="folder of cifar10_planes_cars.npz")
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))), metavar="K")
    parser.add_argument("--json", type=Path, default=Path("convolution_vs_networks.jsonl"), help="finished runs")
    parser.add_argument("--draws", type=int, default=1000, help="draws of each chain at first")
    parser.add_argument("--longest", type=int, default=LONGEST, help="most draws of each chain")
    parser.add_argument("--markdown", type=Path, default=HERE / "results" / "convolution_vs_networks.md")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    runs = {run["case"]: run for run in sorted(read_records(options.json), key=lambda run: run["draws"])}
    for index in options.cases:
        run = runs.get(index)
        draws = options.draws if run is None else 2 * run["draws"]
        while (run is None or not run["converged"]) and draws <= options.longest:
            run = runs[index] = sample(options.data, index, CASES[index], draws)
            append_record(options.json, run)
            draws *= 2
    text = page(options.data, runs)
    options.markdown.write_text(
        "# Convolutional networks against the theory over patches\n\n"
        "    python examples/benchmarks/convolution_vs_networks.py\n\n"
        f"{versions()}. T = {TEMPERATURE:g}, unit variances; the head of `convolution_vs_networks.py` says what a case "
        "is. Errors of the sampled values are one standard error.\n\n" + text,
        encoding="utf-8",
    )
    print(text)


if __name__ == "__main__":
    main()
