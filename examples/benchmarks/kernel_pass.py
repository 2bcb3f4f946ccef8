"""Cost of the kernel matrix with its gradient, and of a training iteration, beside GPyTorch's RBF kernel.

    python examples/benchmarks/kernel_pass.py                   # one thread, float64, five minutes
    python examples/benchmarks/kernel_pass.py --only matrix --sizes 1000

1. Kernel matrix and its gradient at 784 inputs, in units of one product X X^T of the same size. "hyperparameters":
   weight and bias variances (the lengthscale of RBF) need gradients; "ARD": the weights of all inputs too.
2. Peak resident memory of the same in a fresh process, at the largest P, beyond the kernel matrix and the gradient
   that comes in, in units of one P x P matrix.
3. A training iteration of an ExactGP (marginal likelihood, backward, a step of Adam) with exact Cholesky solves, in
   units of one Cholesky factorization.

Every time is the median of the CPU times of ``--repeats`` rounds, each of which runs every step once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load

import gpytorch  # noqa: E402
import torch  # noqa: E402

from torch_propkernel import NetworkGP, NNGPKernel  # noqa: E402

INPUTS = 784
KERNELS: dict[str, Callable[[int | None], gpytorch.kernels.Kernel]] = {
    "RBF": lambda ard: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=ard)),
    "erf, 1 layer": lambda ard: NNGPKernel("erf", bias_variance=0.1, ard_num_dims=ard),
    "erf, 3 layers": lambda ard: NNGPKernel("erf", 3, bias_variance=0.1, ard_num_dims=ard),
    "relu, 1 layer": lambda ard: NNGPKernel("relu", bias_variance=0.1, ard_num_dims=ard),
    "relu, 3 layers": lambda ard: NNGPKernel("relu", 3, bias_variance=0.1, ard_num_dims=ard),
}


def inputs(size: int, dimension: int) -> torch.Tensor:
    """Standard normal inputs."""
    return torch.randn(size, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(name: str, ard: int | None) -> gpytorch.kernels.Kernel:
    """Return a kernel whose values are neither all alike nor all zero at standard normal inputs."""
    kernel = KERNELS[name](ard).double()
    if name == "RBF":
        kernel.base_kernel.lengthscale = (INPUTS if ard is None else ard) ** 0.5
    return kernel


def medians(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU time of each step; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if round_:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def forward(kernel: gpytorch.kernels.Kernel, x: torch.Tensor) -> None:
    """Evaluate the kernel matrix alone."""
    with torch.no_grad():
        kernel(x).to_dense()


def forward_and_backward(kernel: gpytorch.kernels.Kernel, x: torch.Tensor, cotangent: torch.Tensor) -> None:
    """Evaluate the kernel matrix and the gradient of its product with ``cotangent``."""
    kernel.zero_grad()
    kernel(x).to_dense().backward(cotangent)


def time_of_matrix(sizes: list[int], repeats: int) -> None:
    """Table 1."""
    print(f"\n## Kernel matrix: {INPUTS} inputs, in products X X^T\n")
    print("| kernel | P | forward | forward + backward, hyperparameters | forward + backward, ARD |")
    print("|---|---|---|---|---|")
    for size in sizes:
        x, cotangent = inputs(size, INPUTS), inputs(size, size)
        cotangent = cotangent + cotangent.mT
        steps: dict[str, Callable[[], object]] = {"product": lambda x=x: x @ x.mT}
        for name in KERNELS:
            kernel, ard = made(name, None), made(name, INPUTS)
            steps[f"{name} 0"] = lambda k=kernel, x=x: forward(k, x)
            steps[f"{name} 1"] = lambda k=kernel, x=x, c=cotangent: forward_and_backward(k, x, c)
            steps[f"{name} 2"] = lambda k=ard, x=x, c=cotangent: forward_and_backward(k, x, c)
        times = medians(steps, repeats)
        for name in KERNELS:
            ratios = " | ".join(f"{times[f'{name} {step}'] / times['product']:.2f}" for step in range(3))
            print(f"| {name} | {size} | {ratios} |", flush=True)


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes, from the kernel's own high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


def memory_of_matrix(name: str, ard: bool, size: int) -> None:
    """Print one row of table 2, in this (fresh) process."""
    kernel, x, cotangent = made(name, INPUTS if ard else None), inputs(size, INPUTS), torch.ones(size, size).double()
    forward_and_backward(kernel, x[:50], cotangent[:50, :50])
    before = peak_memory()
    forward_and_backward(kernel, x, cotangent)
    beyond = (peak_memory() - before) / (8 * size**2) - 1  # the kernel matrix itself
    print(f"| {name}{', ARD' if ard else ''} | {beyond:.2f} |", flush=True)


def time_of_training(sizes: list[int], repeats: int) -> None:
    """Table 3."""
    print(
        "\n## Training iteration, in Cholesky factorizations\n\n| kernel | P | inputs | iteration |\n|---|---|---|---|"
    )
    for size in sizes:
        for dimension in (10, INPUTS):
            x = inputs(size, dimension)
            y = x[:, 0].sin()
            matrix = x @ x.mT / dimension + torch.eye(size, dtype=torch.float64)
            steps: dict[str, Callable[[], object]] = {"Cholesky": lambda m=matrix: torch.linalg.cholesky(m)}
            for name in KERNELS:
                for ard in (None, dimension):
                    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
                    model = NetworkGP(x, y, likelihood, made(name, ard)).double()
                    steps[name if ard is None else f"{name}, ARD"] = training(model, likelihood, x, y)
            times = medians(steps, repeats)
            for name in list(steps)[1:]:
                print(f"| {name} | {size} | {dimension} | {times[name] / times['Cholesky']:.1f} |", flush=True)


def training(model, likelihood, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """Return one iteration as a function."""
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def iteration() -> None:
        optimizer.zero_grad()
        with gpytorch.settings.max_cholesky_size(len(x)):
            (-mll(model(x), y)).backward()
        optimizer.step()

    return iteration


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["matrix", "memory", "training"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000], help="numbers of points P")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row", help=argparse.SUPPRESS)  # of the memory table, in this process
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.row:
        name, _, ard = options.row.partition("+")
        memory_of_matrix(name, ard == "ARD", max(options.sizes))
        return
    print(f"# Cost of the kernel's pass\n\nMedians of {options.repeats} rounds of CPU time, one thread, float64.")
    if options.only in (None, "matrix"):
        time_of_matrix(options.sizes, options.repeats)
    if options.only in (None, "memory"):
        size = max(options.sizes)
        print(f"\n## Peak memory, in P x P matrices beyond the kernel matrix and the incoming gradient: P = {size}\n")
        print("| kernel | matrices |\n|---|---|", flush=True)
        for row in (f"{name}{ard}" for name in KERNELS for ard in ("", "+ARD")):
            subprocess.run([sys.executable, __file__, "--row", row, "--sizes", str(size)], check=True)
    if options.only in (None, "training"):
        time_of_training(options.sizes, options.repeats)


if __name__ == "__main__":
    main()
