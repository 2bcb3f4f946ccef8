"""One data set, several processes: a kernel matrix that no machine holds, with its products shared.

Usage::

    torchrun --nproc_per_node 2 examples/many_processes.py
    torchrun --nnodes 4 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint HOST:29500 examples/many_processes.py
    python examples/many_processes.py        # one process, the same numbers

Each process evaluates its share of the tiles of the kernel matrix, and holds its own rows of what is kept of vectors;
points are on all of them. Give every process the cores that it may use (OMP_NUM_THREADS): torchrun leaves it one. A
run that was interrupted, or has lost a process, goes on from ``--checkpoint``, files in a folder that all machines see.
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import gpytorch
import torch
import torch.distributed as dist

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.inference import StreamedProblem, Streaming
from torch_propkernel.theories import SaddlePoint


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000, help="training points P")
    parser.add_argument("--test", type=int, default=200, help="test points")
    parser.add_argument("--inputs", type=int, default=8, help="input dimensions d")
    parser.add_argument("--rank", type=int, default=300, help="of the preconditioner")
    parser.add_argument("--checkpoint", type=Path, help="file of the Lanczos run")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long a process waits for the others")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Fit, predict, and print on the first process."""
    options = parse(arguments)
    several = "RANK" in os.environ  # torchrun sets it
    device = torch.device("cpu")
    if several:
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=options.minutes))
    generator = torch.Generator().manual_seed(0)  # the same data on all processes
    x = torch.randn(options.rows + options.test, options.inputs, dtype=torch.float64, generator=generator)
    noise = torch.randn(len(x), dtype=torch.float64, generator=generator)
    x, y = x.to(device), (torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * noise).to(device)
    train, test = slice(0, options.rows), slice(options.rows, None)

    kernel = RenormalizedNNGPKernel("relu", width=100, weight_variance=[1.0, 10.0], bias_variance=0.3)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    model = NetworkGP(x[train], y[train], likelihood, kernel).to(x)
    model.likelihood.noise = 0.1
    streaming = Streaming(
        num_probes=16,
        rank=options.rank,
        checkpoint=options.checkpoint,
        process_group="world" if several else None,
    )
    problem = StreamedProblem.of_streamed(model, streaming)

    begun = time.perf_counter()
    fitted = SaddlePoint().fit(problem)
    error = fitted.error(x[test], y[test])
    found = {
        "q": float(fitted.order_parameters["q"]),
        "q_error": float(fitted.stats["quadrature_error"].order_parameter),
        "test_error": float(error.mean_total),
        "seconds": time.perf_counter() - begun,
    }
    if problem.operator.rank == 0:
        operator = problem.operator
        print(f"{operator.num_processes} process(es), {len(operator.own_tiles())} of {operator.num_tiles} tiles here")
        print(f"q = {found['q']:.8f} +- {found['q_error']:.2g}, expected test error {found['test_error']:.8f}")
        print(f"{found['seconds']:.1f} s; {fitted.message}")
    if several:
        dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
