"""Does the solver ever miss the global minimum? Compare it with a dense scan on thousands of hard spectra.

    python examples/benchmarks/solver_vs_brute_force.py --problems 2000

The problems and the scan come from tests/reference.py (numpy and scipy, independent of the package): log-uniform
spectra, one to five layers of unequal widths, first-order transitions made on purpose. Prints one row per kind.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType

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


def main() -> int:
    """Run the comparison; exit status 1 when the solver was beaten, missed a minimum or raised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=1e-12, help="on S(q*) - S(scan), relative to |S|")
    parser.add_argument("--matrix", action="store_true", help="reduce a matrix first, instead of the given spectrum")
    options = parser.parse_args()
    reference = load_reference()
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for index, p in enumerate(reference.hard_spectra(np.random.default_rng(options.seed), options.problems)):
        clock = time.perf_counter()
        truth = reference.brute_force_minimum(p.k, p.z, p.widths, p.temperature)
        scan_time = time.perf_counter() - clock
        clock = time.perf_counter()
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
        solve_time = time.perf_counter() - clock
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
            row["solver"] += solve_time
            row["scan"] += scan_time
    header = (
        "kind",
        "problems",
        "several minima",
        "worst (S-S_scan)/|S|",
        "beaten",
        "minima miscounted",
        "raised",
        "solver ms",
        "scan ms",
    )
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for label in sorted(rows, key=lambda name: (name == "all", name)):
        row = rows[label]
        count = row["problems"]
        print(
            f"| {label} | {count:.0f} | {row['several']:.0f} | {row['worst']:.1e} | {row['beaten']:.0f} | "
            f"{row['miscounted']:.0f} | {row['failed']:.0f} | {1e3 * row['solver'] / count:.2f} | "
            f"{1e3 * row['scan'] / count:.2f} |"
        )
    total = rows["all"]
    return int(total["beaten"] + total["miscounted"] + total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
