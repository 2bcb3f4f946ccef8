"""Cost of the adaptive theory on rows of kin40k, beside one Cholesky factorization of the same size.

    python examples/benchmarks/adaptive_speed.py [--data DIR] [--sizes 100 400 1000 2000] [--temperatures 0.1]
                                                 [--activations erf relu] [--markdown PAGE]

CPU time of one thread. N = 50, weight variances of the kernel's default and a bias variance of one: nothing is fitted.
T is the noise variance of standardized targets. Errors are on 2,000 test rows (split 0).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch
from _uci import Cut, Standardized, default_folder, load, standardize

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.theories import Adaptive, InfiniteWidth

WIDTH = 50.0


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of a call, and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def row(data: Standardized, activation: str, temperature: float) -> str:
    """Return a line of the table."""
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = temperature
    kernel = RenormalizedNNGPKernel(activation, WIDTH, bias_variance=1.0).double()
    model = NetworkGP(data.x, data.y, likelihood, kernel).double()
    matrix = kernel(data.x).to_dense().detach() + temperature * torch.eye(len(data.x), dtype=data.x.dtype)
    cholesky = statistics.median(seconds(lambda: torch.linalg.cholesky(matrix))[0] for _ in range(5))
    took, fitted = seconds(lambda: Adaptive().fit(model))
    error, wide = (f.error(data.test_x, data.test_y).mean_total for f in (fitted, InfiniteWidth().fit(model)))
    history, memory = fitted.stats["history"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cooling = sum(step.temperature > history[-1].temperature for step in history)
    return (
        f"| P = {len(data.x)}, {activation}, T = {temperature:g} | {took:.1f} | {took / cholesky:.0f} | {cooling} | "
        f"{len(history)} | {memory:.1f} | {100 * fitted.stats['monte_carlo_error']:.1f} | {float(error):.4f} | "
        f"{float(wide):.4f} |"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 400, 1000, 2000], help="rising")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.1])
    parser.add_argument("--activations", nargs="+", default=["erf", "relu"])
    parser.add_argument("--markdown", type=Path, help="page to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Cost of the adaptive theory",
        "",
        f"`examples/benchmarks/adaptive_speed.py`, rows of kin40k, N = {WIDTH:g}, CPU time of one thread. Memory is "
        "the peak of the process up to there.",
        "",
        "| | fit, s | in Choleskys | steps of cooling | steps | memory, GiB | Monte Carlo error, % "
        "| test error | at infinite width |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in arguments.sizes:
        data = standardize(*load(arguments.data / "kin40k", 0, Cut(size, 2000)))
        for activation in arguments.activations:
            for temperature in arguments.temperatures:
                lines.append(row(data, activation, temperature))
                print(lines[-1], flush=True)
                if arguments.markdown is not None:
                    arguments.markdown.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
