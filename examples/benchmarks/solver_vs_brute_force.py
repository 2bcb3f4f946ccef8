"""Does the solver ever miss the global minimum? Compare it with a dense scan on thousands of hard spectra.

    python examples/benchmarks/solver_vs_brute_force.py --problems 10000 --output results/solver_vs_brute_force.md

The scan and four fifths of the problems come from tests/reference.py (numpy and scipy, independent of the package):
log-uniform spectra, one to five layers of unequal widths, first-order transitions made on purpose. Every fifth problem
is an extreme one: widths from 1 to 1e9, temperatures from 1e-12 to 1e6, kernels and targets scaled by 1e-8 to 1e8.
Prints one row per kind, and writes the table to a file. 10,000 problems take about four minutes on one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from torch_propkernel import Spectrum, solve_order_parameters


def load_reference() -> ModuleType:
    """tests/reference.py, by path."""
    path = Path(__file__).resolve().parents[2] / "tests" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def extreme_spectra(reference: ModuleType, rng: np.random.Generator) -> Iterator[Any]:
    """Widths, temperatures and scales over many orders of magnitude, without end."""
    while True:
        size, depth = int(np.exp(rng.uniform(0, 5))), int(rng.integers(1, 4))
        k = 10 ** rng.uniform(-8, 8) * 10 ** rng.uniform(-rng.uniform(0, 12), 0, size)
        z = 10 ** rng.uniform(-8, 8) * rng.normal(size=size)
        z *= np.sqrt(k / k.max()) if rng.random() < 0.5 else 1.0
        widths = tuple(10 ** rng.uniform(0, 9, depth))
        yield reference.Problem(np.sort(k), z[np.argsort(k)], widths, float(10 ** rng.uniform(-12, 6)), "extreme")


def all_problems(reference: ModuleType, seed: int, count: int) -> Iterator[Any]:
    """The hard spectra of the reference, with an extreme one after every four."""
    rng = np.random.default_rng([seed, 1])
    hard, extreme = reference.hard_spectra(np.random.default_rng(seed), count), extreme_spectra(reference, rng)
    for index in range(count):
        yield next(extreme if index % 5 == 4 else hard)


def main() -> int:
    """Run the comparison; exit status 1 when the solver was beaten, missed a minimum or raised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=1e-12, help="on S(q*) - S(scan), relative to |S|")
    parser.add_argument("--matrix", action="store_true", help="reduce a matrix first, instead of the given spectrum")
    parser.add_argument("--output", type=Path, metavar="PATH", help="write the table, relative to this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reference = load_reference()
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for index, p in enumerate(all_problems(reference, options.seed, options.problems)):
        truth = reference.brute_force_minimum(p.k, p.z, p.widths, p.temperature)
        try:
            k, z = torch.as_tensor(p.k), torch.as_tensor(p.z)
            if options.matrix:
                spectrum = Spectrum.from_kernel(torch.diag(k), z)
            else:
                spectrum = Spectrum.from_eigenvalues(k, z)
            solution = solve_order_parameters(spectrum, width=list(p.widths), temperature=p.temperature, throw=False)
        except Exception as error:  # a benchmark of robustness counts failures and goes on
            print(f"problem {index} ({p.kind}, widths {p.widths}, P = {len(p.k)}): {error!r}")
            for label in (p.kind, "all"):
                rows[label]["problems"] += 1
                rows[label]["failed"] += 1
            continue
        q = solution.order_parameter.detach().numpy()
        excess = reference.action_spectrum(q, p.k, p.z, p.widths, p.temperature) - truth.action
        # S is a sum of terms of both signs and may vanish: below 1e-3 of their total, that total is the scale
        scale = reference.action_scale(truth.order_parameter, p.k, p.z, p.widths, p.temperature)
        excess /= max(abs(truth.action), 1e-3 * scale)
        miscounted = int(solution.stats["num_minima"]) != len(truth.minima)
        if excess > options.tolerance or miscounted or not np.isfinite(excess):
            print(
                f"problem {index} ({p.kind}, widths {p.widths}, P = {len(p.k)}, T = {p.temperature:.3g}): "
                f"excess {excess:.2e}, minima {int(solution.stats['num_minima'])} instead of {len(truth.minima)}, "
                f"q = {q} instead of {truth.order_parameter}, {solution.result.name}"
            )
        for label in (p.kind, "all"):
            row = rows[label]
            row["problems"] += 1
            row["several"] += len(truth.minima) > 1
            row["worst"] = max(row["worst"], excess if np.isfinite(excess) else np.inf)
            row["beaten"] += not excess <= options.tolerance
            row["miscounted"] += miscounted
    table = as_table(rows)
    print(table)
    if options.output is not None:
        path = Path(__file__).resolve().parent / options.output
        command = (
            f"python examples/benchmarks/{Path(__file__).name} --problems {options.problems} --seed {options.seed}"
        )
        path.write_text(REPORT.format(command=command, tolerance=options.tolerance, table=table), encoding="utf-8")
    total = rows["all"]
    return int(total["beaten"] + total["miscounted"] + total["failed"] > 0)


REPORT = """\
# The solver against brute force

`{command}`

Each problem is solved from its spectrum and compared with a dense scan of the action whose sign changes are polished
(`tests/reference.py`, numpy and scipy). The problems are described in the script. "Beaten": the scan found a lower
action by more than {tolerance:g} of it. "Minima miscounted": another number of local minima than the scan's. "Raised":
an exception.

{table}
"""


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """One row per kind of problem, all of them last, in Markdown."""
    header = (
        "kind",
        "problems",
        "several minima",
        "worst (S - S_scan) / \\|S\\|",
        "beaten",
        "minima miscounted",
        "raised",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for label in sorted(rows, key=lambda name: (name == "all", name)):
        row = rows[label]
        lines.append(
            f"| {label} | {row['problems']:.0f} | {row['several']:.0f} | {row['worst']:.1e} | {row['beaten']:.0f} | "
            f"{row['miscounted']:.0f} | {row['failed']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
