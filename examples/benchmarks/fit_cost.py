"""What fits cost: local minima, hyperparameters, the choice of a network, in Cholesky factorizations of the same run.

    python examples/benchmarks/fit_cost.py [--data FOLDER] [--sets NAME ...] [--json RUNS] [--markdown PAGE]

Times are CPU times of one thread, and each is divided by that of a Cholesky factorization of a matrix of all rows,
measured right before. The first table solves the saddle point of the compositions that are not scalar, the second
fits hyperparameters with three starts, the third compares the default grid of networks at one depth and one bias ratio.
A fit on real data says its log posterior density and log evidence, which a faster search must reach too.

Every row of a table is a line of ``--json`` as soon as it is done; a second call with the same file goes on where the
first one stopped.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch
from _uci import (
    Cut,
    append_record,
    default_folder,
    double_precision,
    load,
    read_records,
    standardize,
    table,
    versions,
)

from torch_propkernel import Erf, NetworkGP, ReLU, RenormalizedNNGPKernel
from torch_propkernel.inference import Problem
from torch_propkernel.theories.solve import solve_problem
from torch_propkernel.tuning import choose_network, fit_hyperparameters

SETS = ("yacht", "concrete", "energy")
PLAIN = ("temperature", "bias_ratio")
FITS: dict[str, tuple[Any, list[float], str, tuple[str, ...]]] = {
    "relu, N = 100, mixture": (ReLU(), [100.0], "mixture", PLAIN),
    "erf, N = 100, mixture": (Erf(), [100.0], "mixture", (*PLAIN, "weight_variance")),
    "relu, N = 50 twice, mixture": (ReLU(), [50.0, 50.0], "mixture", PLAIN),
    "relu, N = 100, saddle": (ReLU(), [100.0], "saddle", PLAIN),
    "relu, infinite, ARD": (ReLU(), [math.inf], "infinite_width", (*PLAIN, "scale", "ard")),
}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def factorization(size: int) -> float:
    """Return the median time of seven Cholesky factorizations."""
    matrix = torch.randn(size, size)
    matrix = matrix @ matrix.mT + size * torch.eye(size)
    return statistics.median(seconds(lambda: torch.linalg.cholesky(matrix))[0] for _ in range(7))


def task(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and noisy targets of a smooth function."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    return x, torch.tanh(x[:, 0] * x[:, 1]) * 1.5 + x[:, 2] + 0.1 * torch.randn(rows, generator=generator)


def network(x: torch.Tensor, y: torch.Tensor, *arguments: Any, **options: Any) -> NetworkGP:
    """Return a process with one noise variance."""
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = 0.05
    return NetworkGP(x, y, likelihood, RenormalizedNNGPKernel(*arguments, **options))


def local_form(rows: int, activation: Any, composition: str) -> list[Any]:
    """Solve a nested or linear-part composition of two layers."""
    model = network(*task(rows, 20), activation, [100.0, 100.0], composition, bias_variance=0.5)
    with torch.no_grad():
        unit = factorization(rows)
        taken, solution = min((seconds(lambda: solve_problem(Problem.of(model))) for _ in range(3)), key=lambda r: r[0])
    q = ", ".join(f"{value:.6f}" for value in solution.order_parameter.tolist())
    return [q, int(solution.stats["num_minima"]), f"{taken:.3f}", f"{taken / unit:.0f}"]


def fit(x: torch.Tensor, y: torch.Tensor, kind: str) -> list[Any]:
    """Fit hyperparameters with three starts."""
    activation, width, theory, train = FITS[kind]
    model = network(x, y, activation, width, bias_variance=1.0, ard_num_dims=x.shape[-1] if "ard" in train else None)
    unit = factorization(len(y))
    taken, found = seconds(lambda: fit_hyperparameters(model, train=train, theory=theory, throw=False, warn=False))
    reached = f"{found.log_posterior:.3f}", f"{found.log_evidence:.3f}", f"{found.temperature:.3g}"
    return [*reached, found.evaluations, f"{taken:.2f}", f"{taken / unit:.0f}"]


def grid(x: torch.Tensor, y: torch.Tensor) -> list[Any]:
    """Compare the networks of a grid, without baselines."""
    unit = factorization(len(y))
    taken, choice = seconds(lambda: choose_network(x, y, depths=(1,), bias_ratios=(1.0,), baselines=False))
    best = f"{choice.log_evidence.max():.6f}", f"{choice.leave_one_out_log_density.max():.6f}"
    return [choice.log_evidence.numel(), *best, f"{taken:.2f}", f"{taken / unit:.0f}"]


class Finished:
    """Rows of tables that are done, as lines of a file: ``row`` computes a row only where it is not there."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows = {tuple(r["key"]): r["row"] for r in (read_records(path) if path else [])}

    def row(self, key: tuple[Any, ...], work: Callable[[], list[Any]]) -> list[Any]:
        """Return the cells of a row behind its key."""
        if key not in self.rows:
            self.rows[key] = work()
            if self.path is not None:
                append_record(self.path, {"key": key, "row": self.rows[key]})
        return [*key[1:], *self.rows[key]]


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=default_folder(), help="folder of the UCI sets")
    parser.add_argument("--sets", nargs="*", default=SETS, help="which of them")
    parser.add_argument("--rows", type=int, default=400, help="of the local forms")
    parser.add_argument("--fit-rows", type=int, default=1000, help="at most, of the fits; the grids take half of them")
    parser.add_argument("--json", type=Path, help="finished rows, appended to")
    parser.add_argument("--markdown", type=Path, help="write the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = Finished(options.json)
    with double_precision():
        data = {"made up, 10 inputs": task(options.fit_rows, 10)}
        for name in options.sets:
            units = standardize(*load(options.data / name, 0, Cut(train=options.fit_rows)))
            data[name] = units.x, units.y
        half = options.fit_rows // 2
        fit_hyperparameters(network(*task(20, 3), ReLU(), [10.0], bias_variance=1.0), throw=False, warn=False)
        local = [
            done.row(
                (f"local forms of {options.rows}", repr(form), composition),
                lambda f=form, c=composition: local_form(options.rows, f, c),
            )
            for form in (Erf(), ReLU())
            for composition in ("nested", "linear_part")
        ]
        fits = [
            done.row(("fit", name, len(y), kind), lambda x=x, y=y, k=kind: fit(x, y, k))
            for name, (x, y) in data.items()
            for kind in FITS
        ]
        grids = [
            done.row(("grid", name, len(y[:half])), lambda x=x, y=y: grid(x[:half], y[:half]))
            for name, (x, y) in data.items()
        ]
    last = ["CPU seconds", "Choleskys"]
    lines = [
        "# What fits cost",
        "",
        f"One CPU thread; {versions()}.",
        "",
        f"## Local forms, {options.rows} rows",
        "",
        *table(["activation", "composition", "q", "minima", *last], local),
        "",
        "## Hyperparameters, three starts",
        "",
        *table(["data", "rows", "fit", "log posterior", "log evidence", "T", "evaluations", *last], fits),
        "",
        "## The choice of a network, without baselines",
        "",
        *table(["data", "rows", "networks", "log evidence", "left out", *last], grids),
    ]
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
