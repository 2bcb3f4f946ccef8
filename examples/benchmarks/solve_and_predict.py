"""Time and memory of the solver, as ratios in one run: Cholesky factorizations, one eigendecomposition, matrices.

    python examples/benchmarks/solve_and_predict.py                  # the three tables, one thread, float64
    python examples/benchmarks/solve_and_predict.py --only memory

1. d = 784, erf, one hidden layer: kernel, order parameter and predictions at 200 points for a plain GPyTorch model,
   infinite width included, in units of one Cholesky factorization of the same matrix.
2. 100 widths x 20 temperatures against one eigendecomposition of the same matrix, the reduction included.
3. Peak resident memory of solve + predict above the inputs in a fresh process, P = 4000, in units of one P x P matrix.

Every time is the smallest CPU time of ``--repeats`` rounds (of two at P = 4000).
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load

import gpytorch  # noqa: E402
import torch  # noqa: E402

from torch_propkernel import (  # noqa: E402
    Erf,
    PropKernelWarning,
    RenormalizedNNGPKernel,
    Spectrum,
    fit_order_parameters,
    generalization_error,
    solve_order_parameters,
)
from torch_propkernel.inference import Problem  # noqa: E402
from torch_propkernel.reliability import assess  # noqa: E402
from torch_propkernel.theories.solve import solve_problem  # noqa: E402


class Model(gpytorch.models.ExactGP):
    """A GP with zero mean and a renormalized kernel."""

    def __init__(self, x, y, width):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.covar_module = RenormalizedNNGPKernel(Erf(), width)
        self.double()
        self.likelihood.noise = 0.1

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))


def problem(size: int, dimension: int = 784, test: int = 200):
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(size, dimension), draw(size).sign(), draw(test, dimension), draw(test).sign()


def best(steps: dict, repeats: int) -> dict[str, float]:
    """Smallest CPU time of each step over several rounds, each of which runs every step once."""
    times = {name: math.inf for name in steps}
    for _ in range(repeats):
        for name, function in steps.items():
            start = time.process_time()
            function()
            times[name] = min(times[name], time.process_time() - start)
    return times


def print_ratios(title: str, columns: dict[str, dict[str, float]], unit: str) -> None:
    """Print a table of times over the time of ``unit``, with a column for each size."""
    print(f"\n## {title}\n\n| step | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(f'{times[name] / times[unit]:.2f}' for times in columns.values())} |")
    sys.stdout.flush()


def time_of_pipeline(size: int, repeats: int) -> dict[str, float]:
    """A column of table 1."""
    x, y, test_x, test_y = problem(size)
    model = Model(x, y, size / 4.0)
    with torch.no_grad():
        matrix = model.covar_module(x).to_dense() + 0.1 * torch.eye(size, dtype=torch.float64)
        given = Problem.frozen(model)
        solution = solve_problem(given)

    def build():
        with torch.no_grad():
            model.covar_module(x).to_dense()

    steps = {
        "one Cholesky factorization": lambda: torch.linalg.cholesky(matrix),
        "kernel matrix": build,
        "reduction": lambda: Spectrum.from_kernel(matrix, y),
        "reduction with projections": lambda: Spectrum.from_kernel(matrix, y).projections,
        "one eigendecomposition": lambda: torch.linalg.eigh(matrix),
        "score of the reliability": lambda: assess(given, solution),
        "fit_order_parameters (builds the kernel)": lambda: fit_order_parameters(model),
        "generalization_error, 200 points, with infinite width (builds the kernel)": lambda: generalization_error(
            model, test_x, test_y
        ),
        "build + solve + predict in one call (generalization_error with fit=True)": lambda: generalization_error(
            model, test_x, test_y, fit=True
        ),
    }
    return best(steps, repeats)


def time_of_sweep(size: int, repeats: int) -> dict[str, float]:
    """A column of table 2."""
    x, y, _, _ = problem(size)
    with torch.no_grad():
        matrix = Model(x, y, 500.0).covar_module(x).to_dense()
    width = torch.logspace(1, 4, 100, dtype=torch.float64).reshape(-1, 1, 1)
    temperature = torch.logspace(-4, 0, 20, dtype=torch.float64)
    spectrum = Spectrum.from_kernel(matrix, y)

    def sweep(reduced):
        solve_order_parameters(reduced, width=width, temperature=temperature)

    spectrum.projections  # noqa: B018  known from here on
    steps = {
        "one eigendecomposition": lambda: torch.linalg.eigh(matrix),
        "reduction with projections": lambda: Spectrum.from_kernel(matrix, y).projections,
        "2,000 solves, projections known": lambda: sweep(spectrum),
        "reduction and 2,000 solves": lambda: sweep(Spectrum.from_kernel(matrix, y)),
    }
    return best(steps, repeats)


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes, from the kernel's own high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


def memory_of_pipeline(size: int) -> None:
    """Table 3, in this (fresh) process."""
    small = problem(50)
    warm = Model(*small[:2], 50.0)
    fit_order_parameters(warm)
    generalization_error(warm, *small[2:])
    x, y, test_x, test_y = problem(size)
    model = Model(x, y, size / 4.0)
    before = peak_memory()
    generalization_error(model, test_x, test_y, fit=True)
    after = peak_memory()
    matrix = 8 * size**2
    print(f"\n## Peak resident memory above the inputs, P = {size}; units of one P x P matrix\n")
    print("| step | matrices |\n|---|---|")
    print(f"| build + solve + predict in one call | {(after - before) / matrix:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["pipeline", "sweep", "memory"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000], help="P of the first table")
    parser.add_argument("--size", type=int, default=4000, help="P of the memory table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PropKernelWarning)
    if options.only != "memory":  # the memory table is printed by a process of its own
        print("# Time and memory of the solver\n")
        print(f"Every time is the smallest CPU time of {options.repeats} rounds (of two at P = 4000), with one thread.")

    def columns(function, *sizes):
        return {f"P = {p}": function(p, options.repeats if p < 4000 else min(2, options.repeats)) for p in sizes}

    if options.only in (None, "pipeline"):
        title = "d = 784, erf, one hidden layer; units of one Cholesky factorization"
        print_ratios(title, columns(time_of_pipeline, *options.sizes), "one Cholesky factorization")
    if options.only in (None, "sweep"):
        title = "100 widths x 20 temperatures; units of one eigendecomposition"
        print_ratios(title, columns(time_of_sweep, 500, 1000), "one eigendecomposition")
    if options.only == "memory":
        memory_of_pipeline(options.size)
    elif options.only is None:
        subprocess.run([sys.executable, __file__, "--only", "memory", "--size", str(options.size)], check=True)


if __name__ == "__main__":
    main()
