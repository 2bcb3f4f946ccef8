"""What order parameters that are matrices cost: outputs against one output, patches against their kernels.

    python examples/benchmarks/matrix_cost.py [--sizes 1000 2000] [--rows 1000] [--many 300] [--markdown PATH]

1. Outputs: the solve of ten outputs as a share of one eigendecomposition of the same matrix, and the whole fit over
   that of one output (aims: 0.05 and 1.2).
2. Patches: the fit of four patches over the time to build its ten distinct kernels plus ten Cholesky factorizations
   (aim: 1.5), alone and with its evidence, which is computed when it is read; sixteen patches at fewer rows.
3. Peak resident memory of both fits above the inputs, each in a fresh process, in units of one P x P matrix.

Times are CPU times on one thread, medians over rounds that run all steps in turn.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load

import argparse  # noqa: E402
import datetime  # noqa: E402
import math  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from gpytorch.likelihoods import GaussianLikelihood  # noqa: E402

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, Spectrum  # noqa: E402
from torch_propkernel.actions import solve_matrix_order_parameters  # noqa: E402
from torch_propkernel.inference import BlocksProblem  # noqa: E402
from torch_propkernel.kernels import ConvolutionalRenormalizedKernel, MultitaskRenormalizedKernel  # noqa: E402
from torch_propkernel.models import MultitaskNetworkGP  # noqa: E402
from torch_propkernel.theories import SaddlePoint  # noqa: E402

EDGE, OUTPUTS, TEMPERATURE = 8, 10, 0.1


def data(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs, images of 8 x 8, and ten outputs of a linear teacher with noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, EDGE**2, generator=generator)
    y = x @ torch.randn(EDGE**2, OUTPUTS, generator=generator) / EDGE
    return x, y + 0.3 * torch.randn(y.shape, generator=generator)


def single(x: torch.Tensor, y: torch.Tensor, kernel: Any) -> NetworkGP:
    """Return a model of one output."""
    likelihood = GaussianLikelihood()
    likelihood.noise = TEMPERATURE
    return NetworkGP(x, y, likelihood, kernel)


def outputs(x: torch.Tensor, y: torch.Tensor) -> MultitaskNetworkGP:
    """Return a model of ten outputs, N = P / 4."""
    kernel = MultitaskRenormalizedKernel("erf", len(x) / 4, num_tasks=OUTPUTS)
    return MultitaskNetworkGP.with_temperature(x, y, kernel, TEMPERATURE)


def patches(x: torch.Tensor, y: torch.Tensor, edge: int) -> NetworkGP:
    """Return a model of patches of edge x edge pixels, N = P / 4."""
    kernel = ConvolutionalRenormalizedKernel("erf", len(x) / 4, image_shape=(1, EDGE, EDGE), kernel_size=edge)
    return single(x, y[:, 0].contiguous(), kernel)


def medians(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median CPU time of each step over rounds that run all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def time_of_outputs(size: int, rounds: int) -> str:
    """Return the line of table 1."""
    x, y = data(size)
    many, one = outputs(x, y), single(x, y[:, 0].contiguous(), RenormalizedNNGPKernel("erf", size / 4))
    with torch.no_grad():
        matrix = RenormalizedNNGPKernel("erf", size / 4)(x).to_dense()
    spectrum = Spectrum.from_kernel(matrix, y, eigenvectors=True, num_outputs=OUTPUTS)
    steps = {
        "eigh": lambda: torch.linalg.eigh(matrix),
        "solve": lambda: solve_matrix_order_parameters(spectrum, width=size / 4, temperature=TEMPERATURE),
        "many": lambda: SaddlePoint().fit(many),
        "one": lambda: SaddlePoint().fit(one),
    }
    took = medians(steps, rounds)
    eigh = took["eigh"]
    cells = [took["solve"] / eigh, took["many"] / eigh, took["one"] / eigh, took["many"] / took["one"]]
    return f"| P = {size} | " + " | ".join(f"{cell:.3g}" for cell in cells) + f" | {eigh:.2f} s |"


def time_of_patches(size: int, edge: int, rounds: int) -> str:
    """Return the line of table 2."""
    x, y = data(size)
    model = patches(x, y, edge)
    blocks = model.covar_module.blocks
    number = blocks.num_blocks
    found = []

    @torch.no_grad()
    def build() -> None:
        z = blocks.prepared(x)
        for a in range(number):
            for b in range(a, number):
                blocks.covariances([(a, b)], z, z, False, a == b)

    problem = BlocksProblem.of_blocks(model)
    with torch.no_grad():
        matrix = problem.unit_covariance + TEMPERATURE * torch.eye(size)
    steps = {
        "build": build,
        "Cholesky": lambda: torch.linalg.cholesky(matrix),
        "fit": lambda: found.append(SaddlePoint().fit(model)),
        "both": lambda: SaddlePoint().fit(model).log_evidence,
    }
    took = medians(steps, rounds)
    pairs = number * (number + 1) // 2
    unit = took["build"] + pairs * took["Cholesky"]
    cells = [f"{took['fit'] / unit:.3g}", f"{took['both'] / unit:.3g}", f"{took['fit'] / took['Cholesky']:.3g}"]
    cells += [f"{took['build'] / took['Cholesky']:.3g}", str(found[0].stats["iterations"]), f"{took['fit']:.2f} s"]
    return f"| {number} patches, P = {size} | " + " | ".join(cells) + " |"


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes, from the kernel's own high-water mark."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


def memory(kind: str, size: int) -> str:
    """Return the line of table 3, in this (fresh) process."""
    make = outputs if kind == "outputs" else lambda x, y: patches(x, y, int(kind))
    SaddlePoint().fit(make(*data(40)))  # libraries and their buffers
    model = make(*data(size))
    before = peak_memory()
    SaddlePoint().fit(model)
    used = peak_memory() - before
    name = f"{OUTPUTS} outputs" if kind == "outputs" else f"{(EDGE // int(kind)) ** 2} patches"
    return f"| {name}, P = {size} | {used / 2**20:.0f} MB | {used / (8 * size**2):.1f} |"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000], help="P of ten outputs")
    parser.add_argument("--rows", type=int, default=1000, help="P of four patches")
    parser.add_argument("--many", type=int, default=300, help="P of sixteen patches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "P"), help="print one line of table 3")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    if options.memory:
        print(memory(options.memory[0], int(options.memory[1])))
        return
    lines = [
        "# Order parameters that are matrices: what they cost",
        "",
        f"{datetime.date.today()}, one thread, float64, medians of {options.rounds} rounds, N = P / 4, T = 0.1.",
        "",
        f"## {OUTPUTS} outputs; units of one eigendecomposition",
        "",
        "| size | solve alone | whole fit | fit of one output | whole fit / fit of one output | eigendecomposition |",
        "|---|---|---|---|---|---|",
        *(time_of_outputs(size, options.rounds) for size in options.sizes),
        "",
        "## Patches; a fit over its kernels and as many Cholesky factorizations",
        "",
        "| size | fit / (kernels + factorizations) | with evidence | fit / factorization | kernels / factorization | "
        "steps | fit |",
        "|---|---|---|---|---|---|---|",
        time_of_patches(options.rows, 4, options.rounds),
        time_of_patches(options.many, 4, options.rounds),
        time_of_patches(options.many, 2, max(1, math.ceil(options.rounds / 3))),
        "",
        "## Peak memory of a fit above its inputs",
        "",
        "| size | memory | P x P matrices |",
        "|---|---|---|",
    ]
    kinds = [("outputs", max(options.sizes)), ("4", options.rows), ("2", options.many)]
    for kind, size in kinds:
        command = [sys.executable, __file__, "--memory", kind, str(size)]
        lines.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    page = "\n".join(lines) + "\n"
    if options.markdown is None:
        print(page)
    else:
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
