"""What P = 10^7 training points would cost, extrapolated from products measured on one core.

    python examples/benchmarks/scale_table.py --markdown scale.md

Measured is the time of a product with a kernel matrix that is not held: for each entry, and for each entry and column.
The rest is arithmetic: bytes, flops and traffic of shared products (ShardedKernelOperator) on several nodes. Nothing of
this size was run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _uci import table, versions

from torch_propkernel import NNGPKernel
from torch_propkernel.inference import Streaming
from torch_propkernel.spectra import KernelOperator

POINTS, INPUTS, CORES, GIGABIT = 10_000_000, 8, 32, 25.0
NODES = (1, 16, 64, 256)
OPTIONS = {
    "lean": Streaming(num_probes=4, rank=300, columns=64),
    "default": Streaming(),
}


def seconds_of_a_product(rows: int, columns: int, repeats: int, dtype: torch.dtype) -> float:
    """CPU time of a product with a relu layer's matrix on one thread, the smallest of some."""
    x = torch.randn(rows, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = NNGPKernel("relu").to(dtype)
    operator = KernelOperator(lambda a, b: kernel(a, b).to_dense(), x, dtype=dtype)
    vectors = torch.ones(rows, columns, dtype=torch.float64)
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        operator.matmul(vectors)
        times.append(time.process_time() - begun)
    return min(times)


def measured(rows: int, repeats: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds for each entry above the diagonal, and for each of them and each column (two uses, 4 flops)."""
    few, many = 1, 65
    entries = rows**2 / 2
    low, high = (seconds_of_a_product(rows, columns, repeats, dtype) / entries for columns in (few, many))
    per_column = (high - low) / (many - few)
    return low - few * per_column, per_column


def page(rows: int, repeats: int) -> str:
    figures = {dtype: measured(rows, repeats, dtype) for dtype in (torch.float64, torch.float32)}
    lines = [
        f"# What P = {POINTS:.0e} costs on paper".replace("e+0", "e"),
        "",
        f"Extrapolated from products at P = {rows:,} with {INPUTS} inputs, one relu layer, one thread, as if all cores",
        "of a node were as fast together. Nothing of this size was run. Steps are Lanczos products; a solve of some",
        "test points takes as many again.",
        "",
        f"`python examples/benchmarks/scale_table.py`; {versions()}.",
        "",
        "## Measured on one core",
        "",
        *table(
            ("tiles", "ns for an entry", "ns for an entry and column", "Gflop/s of the columns"),
            [
                (str(dtype).removeprefix("torch."), f"{1e9 * own:.1f}", f"{1e9 * column:.2f}", f"{4e-9 / column:.1f}")
                for dtype, (own, column) in figures.items()
            ],
        ),
        "",
    ]
    for name, options in OPTIONS.items():
        columns = options.num_probes + 1
        flops = 4.0 * columns * POINTS**2 / 2
        cells = []
        for nodes in NODES:
            sent = 24.0 * columns * POINTS * (nodes - 1) / nodes
            hours = [
                (own + columns * column) * POINTS**2 / 2 / (nodes * CORES) * options.max_steps / 3600
                for own, column in figures.values()
            ]
            cells.append(
                (
                    f"N = {nodes}",
                    f"{options.num_bytes(POINTS, nodes) / 1e9:.0f}",
                    f"{sent / 1e9:.1f}",
                    f"{sent / (GIGABIT / 8 * 1e9):.1f}",
                    f"{hours[0] * 3600 / options.max_steps:.0f}",
                    f"{hours[0]:.0f}",
                    f"{hours[1]:.0f}",
                )
            )
        header = (
            "nodes",
            "GB on each",
            "GB sent and received by each in a step",
            "s of it",
            "s of the product",
            "hours, float64",
            "hours, float32 tiles",
        )
        lines += [
            f"## Options {name}: {options.num_probes} probes, {options.max_steps} steps, rank {options.rank}",
            "",
            f"{columns} columns; each step has {POINTS**2 / 2:.1e} entries and {flops:.1e} flops for the columns.",
            f"Nodes of {CORES} cores, one process each, a network of {GIGABIT:.0f} Gbit/s.",
            "",
            *table(header, cells),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="points of the measured products")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="page to be written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = page(options.rows, options.repeats)
    if options.markdown is None:
        print(text)
    else:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
