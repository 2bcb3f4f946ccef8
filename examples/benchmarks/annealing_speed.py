"""Cost of a gradient of the annealed chains, and of a whole fit of the sampled network.

    python examples/benchmarks/annealing_speed.py [--rows 400] [--markdown PAGE]

CPU time of one thread, medians. The gradient of the annealing (float32, Gram matrix in float64) stands beside that of
``MarginalTarget.potential`` in float64, which other samplers use, both for 8 chains, and beside one product X X^T of
the largest matrix of features. Whole fits are on random inputs with a nonlinear target, T = 0.01.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.networks import Annealing, FiniteNetwork, MarginalTarget
from torch_propkernel.theories import Sampled

GRADIENTS = ((100, 50), (400, 50), (400, 200), (1000, 50))
FITS = ((100, 50), (400, 50), (1000, 50))


def median_time(function: Callable[[], Any], repeats: int = 20) -> float:
    """Return the median CPU time of a call in milliseconds."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random inputs with 8 columns and a smooth target."""
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.sin(2.0 * x[:, 0]) * x[:, 1]


def gradient_row(rows: int, width: int) -> str:
    """Return a line of the first table."""
    x, y = data(rows)
    network = FiniteNetwork("erf", 8, width, dtype=torch.float64, bias_variance=1.0)
    annealing, target = Annealing(network, x, y, num_chains=8), MarginalTarget(network, x, y, 0.01)
    states = torch.randn(8, network.num_hidden, dtype=torch.float64)
    half = states.float()
    features = torch.randn(rows, width, dtype=torch.float64)
    own = median_time(lambda: annealing._force(half, 0.01, 1.0))
    other = median_time(lambda: target.potential(states))
    product = median_time(lambda: features @ features.mT)
    return f"| P = {rows}, N = {width} | {own:.2f} | {other:.2f} | {other / own:.1f} | {own / product:.0f} |"


def fit_row(rows: int, width: int) -> str:
    """Return a line of the second table."""
    x, y = data(rows)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive()).double()
    likelihood.noise = 0.01
    kernel = RenormalizedNNGPKernel("erf", float(width), bias_variance=1.0).double()
    start = time.process_time()
    fitted = Sampled().fit(NetworkGP(x, y, likelihood, kernel).double())
    seconds = time.process_time() - start
    stats = fitted.stats
    return (
        f"| P = {rows}, N = {width} | {seconds:.1f} | {stats['gradients']} | {stats['r_hat']:.3f} | "
        f"{100 * stats['monte_carlo_error']:.1f} |"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**9, help="no case with more of them")
    parser.add_argument("--markdown", type=Path, help="page to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Cost of annealed chains",
        "",
        "`python examples/benchmarks/annealing_speed.py`, CPU time of one thread.",
        "",
        "| | gradient of 8 chains, ms | in float64 with autograd, ms | ratio | in products X X^T |",
        "|---|---|---|---|---|",
        *(gradient_row(*case) for case in GRADIENTS if case[0] <= arguments.rows),
        "",
        "| | a whole fit, s | gradients of 16 chains | largest R-hat | Monte Carlo error of the means, % |",
        "|---|---|---|---|---|",
        *(fit_row(*case) for case in FITS if case[0] <= arguments.rows),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
