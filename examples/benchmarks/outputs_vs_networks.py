"""Networks with several outputs: the matrix theory against sampled posteriors, output by output.

    python examples/benchmarks/outputs_vs_networks.py [--cases 0 1] [--json RUNS] [--markdown PAGE]

Gaussian inputs; the outputs are a linear teacher's, with noise, the second and later ones partly copies of the first,
so that they are correlated. Posteriors are sampled by Hamiltonian Monte Carlo with the readout integrated out
(``sample_posterior``), from scratch with twice as many draws until they converge. The test error of each output is
E (y_* - f(x_*))^2 over networks and 200 test points, without noise. Theories: infinite width; one number in every layer
(a scalar q for all outputs); a matrix in every layer (``SaddlePoint`` of a ``MultitaskRenormalizedKernel``). Finished
runs are kept in RUNS. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _uci import append_record, read_records, table, versions
from torch import Tensor

from torch_propkernel import solve_order_parameters
from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.networks import FiniteNetwork, sample_posterior
from torch_propkernel.networks.diagnostics import estimate
from torch_propkernel.progress import progress_bar
from torch_propkernel.theories import InfiniteWidth, SaddlePoint

RESULTS = Path(__file__).resolve().parent / "results"
TEMPERATURE = 0.1
NUM_TEST = 200
LONGEST = 8000


class Case(NamedTuple):
    """A posterior: activation, widths, training points, outputs, input dimension."""

    activation: str
    widths: tuple[int, ...]
    num_data: int
    num_outputs: int
    num_inputs: int


CASES = (
    Case("identity", (40, 40), 30, 2, 60),
    Case("identity", (40, 40), 60, 2, 60),
    Case("identity", (60, 60), 60, 3, 60),
    Case("identity", (30, 60), 60, 2, 60),
    Case("relu", (40,), 60, 3, 200),
    Case("erf", (40,), 60, 3, 200),
)


def data(index: int, case: Case) -> tuple[Tensor, Tensor]:
    """Inputs and targets of training and test points."""
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(case.num_data + NUM_TEST, case.num_inputs, generator=generator)
    teacher = torch.randn(case.num_inputs, case.num_outputs, generator=generator)
    teacher[:, 1:] = 0.6 * teacher[:, :1] + 0.8 * teacher[:, 1:]
    scale = torch.linspace(1.5, 0.5, case.num_outputs)
    y = scale * (x @ teacher) / case.num_inputs**0.5
    return x, y + math.sqrt(TEMPERATURE) * torch.randn(y.shape, generator=generator)


def predict(case: Case, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Test errors by output of the theories, and the covariance of the outputs of the matrix one."""
    train, test = slice(0, case.num_data), slice(case.num_data, None)
    kernel = MultitaskRenormalizedKernel(case.activation, [float(n) for n in case.widths], case.num_outputs)
    model = MultitaskNetworkGP.with_temperature(x[train], y[train], kernel, TEMPERATURE)
    fitted = SaddlePoint().fit(model)
    infinite = InfiniteWidth().fit(model)
    q = solve_order_parameters(
        infinite.problem.joint_spectrum, width=[float(n) for n in case.widths], temperature=TEMPERATURE
    ).order_parameter
    scalar = infinite.problem.rotated(q.prod() * torch.eye(case.num_outputs))
    return {
        "infinite width": infinite.error(x[test], y[test]).mean_total.tolist(),
        "one number": scalar.error(x[test], y[test].mT).mean_total.tolist(),
        "matrix": fitted.error(x[test], y[test]).mean_total.tolist(),
        "E": fitted.order_parameters["E"][-1].tolist(),
    }


def sample(index: int, case: Case, draws: int) -> dict[str, Any]:
    """The measured errors by output and the Gram matrix of the readout."""
    x, y = data(index, case)
    train, test = slice(0, case.num_data), slice(case.num_data, None)
    network = FiniteNetwork(
        get_activation(case.activation), case.num_inputs, list(case.widths), num_outputs=case.num_outputs
    )
    with warnings.catch_warnings(), progress_bar(f"case {index}, {draws} draws") as advance:
        warnings.simplefilter("ignore", PropKernelWarning)  # convergence is recorded
        found = sample_posterior(
            network,
            x[train],
            y[train],
            TEMPERATURE,
            test_x=x[test],
            test_y=y[test],
            num_samples=draws,
            warmup=draws // 2,
            seed=index,
            progress=advance,
        )
    errors = (y[test] - found.draws).square().mean(-2)  # chains x draws x D
    measured = [estimate(errors[..., output]) for output in range(case.num_outputs)]
    return {
        "case": index,
        **case._asdict(),
        "draws": draws,
        "errors": [value.mean.item() for value in measured],
        "standard_errors": [value.standard_error.item() for value in measured],
        "E": found.order_parameter_matrix.mean.tolist(),
        "E_error": found.order_parameter_matrix.standard_error.tolist(),
        "converged": found.converged,
        "message": found.message,
        "predicted": predict(case, x, y),
    }


def page(runs: dict[int, dict[str, Any]]) -> str:
    """Tables of all cases."""
    theories = ("infinite width", "one number", "matrix")
    rows, grams = [], []
    for index, run in sorted(runs.items()):
        name = f"{run['activation']}, N = {' x '.join(map(str, run['widths']))}, P = {run['num_data']}"
        name += "" if run["converged"] else " **not converged**"
        for output, (value, own) in enumerate(zip(run["errors"], run["standard_errors"], strict=True)):
            cells: list[Any] = [f"{index} {name}", output, f"{value:.4g} +- {100 * own / value:.1f} %"]
            cells += [f"{100 * (run['predicted'][theory][output] / value - 1):+.1f} %" for theory in theories]
            rows.append(cells)
        found, own = torch.tensor(run["E"]), torch.tensor(run["E_error"])
        expected = torch.tensor(run["predicted"]["E"])
        row, column = torch.tril_indices(len(found), len(found))
        for a, b in zip(row.tolist(), column.tolist(), strict=True):
            z = float((expected[a, b] - found[a, b]) / own[a, b])
            grams.append(
                [index, f"{a}{b}", f"{found[a, b]:.3f} +- {own[a, b]:.3f}", f"{expected[a, b]:.3f}", f"{z:+.1f}"]
            )
    lines = ["## Test error by output: predicted / sampled - 1", ""]
    lines += table(("case", "output", "sampled", *theories), rows)
    lines += ["", "## Gram matrix of the readout, lambda_L v^T v / N_L", ""]
    lines += table(("case", "entry", "sampled", "matrix theory", "z"), grams)
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))), metavar="K")
    parser.add_argument("--json", type=Path, default=Path("outputs_vs_networks.jsonl"), help="finished runs")
    parser.add_argument("--longest", type=int, default=LONGEST, help="most draws of each chain")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "outputs_vs_networks.md")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    runs = {run["case"]: run for run in sorted(read_records(options.json), key=lambda run: run["draws"])}
    for index in options.cases:
        run = runs.get(index)
        draws = 1000 if run is None else 2 * run["draws"]
        while (run is None or not run["converged"]) and draws <= options.longest:
            run = runs[index] = sample(index, CASES[index], draws)
            append_record(options.json, run)
            draws *= 2
    text = page(runs)
    options.markdown.write_text(
        "# Several outputs against sampled networks\n\n    python examples/benchmarks/outputs_vs_networks.py\n\n"
        f"{versions()}. T = {TEMPERATURE:g}; the head of `outputs_vs_networks.py` says what a case is. Errors of the "
        "sampled values are one standard error.\n\n" + text,
        encoding="utf-8",
    )
    print(text)


if __name__ == "__main__":
    main()
