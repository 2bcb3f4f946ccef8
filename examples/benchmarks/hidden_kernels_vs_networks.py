"""Kernels of hidden layers: the saddle point's and the first order's against those of sampled networks.

    python examples/benchmarks/hidden_kernels_vs_networks.py [--cases 2] [--markdown PAGE]

Gaussian inputs, linear targets of deviation 1 or 2 per output. "Moved by" is the distance of the sampled posterior mean
from the kernel at infinite width, relative to that kernel (Frobenius norm, training points). The other columns are the
distance of a theory from the sampled mean, relative to the distance moved, and the Monte Carlo error on the same scale.
The saddle point of an activation that is not odd is refused. A few minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from _uci import table, versions

from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.theories import InfiniteWidth, SaddlePoint, Sampled, hidden_kernels

# activation, N_0, widths, P, D, deviation of the targets, T
CASES = (
    ("identity", 20, (40, 40), 30, 2, 2.0, 0.3),
    ("erf", 30, (25,), 25, 1, 2.0, 0.2),
    ("erf", 200, (50,), 50, 1, 2.0, 0.2),
    ("erf", 200, (50,), 100, 1, 1.0, 0.2),
    ("erf", 784, (100,), 50, 1, 2.0, 0.2),
    ("erf", 200, (400,), 50, 1, 2.0, 0.2),
    ("relu", 200, (50,), 50, 1, 2.0, 0.2),
    ("relu", 200, (400,), 50, 1, 2.0, 0.2),
)
RESULTS = Path(__file__).resolve().parent / "results"


def rows(case: tuple) -> list[list[str]]:
    """The numbers of each layer of one case."""
    activation, columns, width, size, outputs, deviation, temperature = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, columns, generator=generator)
    y = x @ torch.randn(columns, outputs, generator=generator)
    y = deviation * y / y.std(0)
    kernel = MultitaskRenormalizedKernel(activation, list(map(float, width)), outputs)
    model = MultitaskNetworkGP.with_temperature(x, y, kernel, temperature)
    sampled = hidden_kernels(Sampled(num_chains=16, num_draws=100).fit(model))
    theories = [hidden_kernels(InfiniteWidth().fit(model))]
    if kernel.data_covar_module.activation.is_odd:
        theories.insert(0, hidden_kernels(SaddlePoint().fit(model)))
    lines = []
    for layer, (mean, wide) in enumerate(zip(sampled.mean, sampled.infinite_width, strict=True)):
        moved = (mean - wide).norm()
        share = [f"{100 * float((found.mean[layer] - mean).norm() / moved):.1f}" for found in theories]
        name = f"{activation}, N_0 = {columns}, N = {', '.join(map(str, width))}, P = {size}, D = {outputs}"
        lines.append(
            [
                f"{name}, layer {layer + 1}",
                f"{100 * float(moved / wide.norm()):.1f}",
                *(["-"] * (2 - len(share)) + share),
                f"{100 * float(sampled.standard_error[layer].norm() / moved):.1f}",
            ]
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, sample, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=len(CASES))
    parser.add_argument("--markdown", type=Path, default=RESULTS / "hidden_kernels_vs_networks.md")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    cells = []
    for case in CASES[: options.cases]:
        cells += rows(case)
        print(*cells[-1], sep=" | ", flush=True)
    header = ("network", "moved by %", "saddle point %", "first order %", "Monte Carlo %")
    options.markdown.write_text(
        "# Kernels of hidden layers\n\n    python examples/benchmarks/hidden_kernels_vs_networks.py\n\n"
        f"{versions()}. The head of `hidden_kernels_vs_networks.py` says what the columns are.\n\n"
        + "\n".join(table(header, cells))
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
