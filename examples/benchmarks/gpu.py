"""Products, fits and predictions on a CUDA card, up to a million points without their kernel matrix.

    python examples/benchmarks/gpu.py --markdown gpu.md      # any card, ten minutes at most (--time-limit)
    python examples/benchmarks/gpu.py --dry-run              # the same on a processor, with sizes that take seconds

One relu layer of 1,000 units, made-up data of 20 inputs. Every part is timed at a fraction of its size first. What
would not end in time is not run, and its estimate is in the table. Without a CUDA card the program says so and ends.
With ``TRITON_INTERPRET=1`` a dry run goes through the Triton kernel too, in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import functools
import math
import platform
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gpytorch
import torch
from _uci import table, versions
from torch import Tensor

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.exceptions import NotEnoughMemoryError
from torch_propkernel.inference import StreamedProblem, Streaming
from torch_propkernel.kernels import FusedProduct
from torch_propkernel.spectra import FusedKernelOperator, KernelOperator
from torch_propkernel.theories import SaddlePoint

WIDTH, TEMPERATURE, INPUTS = 1000.0, 0.1, 20
GEMM_COLUMNS = 2 * INPUTS  # flops of an entry's dot product
SHRINK = 8  # of the number of points, for an estimate


class Sizes(NamedTuple):
    """Points of each part."""

    gemm: int
    product: int
    reduction: tuple[int, ...]
    fit: int
    many: int
    test: int
    columns: int
    rank: int


FULL = Sizes(8192, 100_000, (2000, 4000, 8000), 100_000, 1_000_000, 512, 33, 1000)
DRY = Sizes(64, 160, (40, 80), 160, 320, 20, 5, 40)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the processor, with small sizes")
    parser.add_argument("--time-limit", type=float, default=600.0, metavar="SECONDS", help="of the whole program")
    parser.add_argument("--rows", type=int, help=f"points of products and of the fit (default {FULL.product})")
    parser.add_argument("--many", type=int, help=f"points of the last part (default {FULL.many})")
    parser.add_argument("--markdown", type=Path, help="page to be written")
    return parser.parse_args()


class Clock:
    """Seconds on one device, and what is left of the time limit."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self.device, self.end = device, time.perf_counter() + limit

    def seconds(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """Return the time of one call and what it returned."""
        self._wait()
        begun = time.perf_counter()
        value = function()
        self._wait()
        return time.perf_counter() - begun, value

    def best(self, function: Callable[[], Any], repeats: int = 3) -> float:
        """Return the shortest time of a few calls, after one that compiles and warms up."""
        function()
        return min(self.seconds(function)[0] for _ in range(repeats))

    def allows(self, estimate: float) -> bool:
        """Whether something that takes so long ends in time."""
        return time.perf_counter() + 1.2 * estimate < self.end

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_data(number: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs of unit scale, and a smooth function of some of them with noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, INPUTS, generator=generator)
    y = torch.sin(2.0 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * torch.randn(number, generator=generator)
    return x.to(device, dtype), y.to(device, dtype)


def make_model(number: int, device: torch.device, dtype: torch.dtype = torch.float32) -> NetworkGP:
    x, y = make_data(number, device, dtype)
    kernel = RenormalizedNNGPKernel("relu", width=WIDTH, weight_variance=[1.0, 20.0], bias_variance=0.3)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = TEMPERATURE
    return NetworkGP(x, y, likelihood, kernel).to(device, dtype)


def gemm_rate(clock: Clock, size: int, dtype: torch.dtype, precision: str) -> float:
    """Flops a second of a square product of matrices."""
    a = torch.randn(size, size, device=clock.device, dtype=dtype)
    torch.set_float32_matmul_precision(precision)
    rate = 2.0 * size**3 / clock.best(lambda: a @ a)
    torch.set_float32_matmul_precision("highest")
    return rate


def product_rows(clock: Clock, sizes: Sizes) -> list[tuple[Any, ...]]:
    """Products K V of all points by every implementation."""
    (x, _), device = make_data(sizes.product, clock.device), clock.device
    vectors = torch.randn(len(x), sizes.columns, device=device, dtype=torch.float64)
    kernels = {dtype: make_model(8, device, dtype).covar_module.eval() for dtype in (torch.float32, torch.float64)}

    def block(a: Tensor, b: Tensor) -> Tensor:
        return kernels[a.dtype](a, b).to_dense().detach()

    def rbf(kernel: Any, parts: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda points, v: torch.cat([kernel(part, points) @ v for part in points.split(parts)])

    tile = 4096 if device.type == "cuda" else 64
    double = KernelOperator(block, x.double(), tile_size=tile)
    single = KernelOperator(block, x, tile_size=tile)
    ways: list[tuple[str, str, torch.dtype, Callable[[Tensor, Tensor], Tensor] | None, str]] = [
        ("tiles", "highest", torch.float64, lambda p, v: double.of_first(len(p)).matmul(v), ""),
        ("tiles", "highest", torch.float32, lambda p, v: single.of_first(len(p)).matmul(v), ""),
        ("tiles", "medium", torch.float32, lambda p, v: single.of_first(len(p)).matmul(v), ""),
    ]
    missing = FusedProduct.missing(kernels[torch.float32], device)
    fused = None
    if missing is None:
        fused = FusedKernelOperator(block, x, FusedProduct(kernels[torch.float32]))
    for precision in ("highest", "high", "medium"):
        way = None if fused is None else lambda p, v: fused.of_first(len(p)).matmul(v)
        ways.append(("fused", precision, torch.float32, way, f"expected {missing}"))
    plain = gpytorch.kernels.RBFKernel().to(device).eval().requires_grad_(False)
    ways.append(("GPyTorch, RBF", "highest", torch.float32, rbf(plain, tile), ""))
    keops = None
    if find_spec("pykeops") is not None:
        keops = rbf(gpytorch.kernels.keops.RBFKernel().to(device).eval().requires_grad_(False), len(x))
    ways.append(("KeOps, RBF", "highest", torch.float32, keops, "not installed"))

    truth = double.cross_matmul(x[: sizes.test].double(), vectors)
    flops = (GEMM_COLUMNS + 2.0 * sizes.columns) * len(x) ** 2
    rows = []
    for name, precision, dtype, way, why in ways:
        if way is None:
            rows.append((name, precision, str(dtype)[6:], why, *["-"] * 3))
            continue
        torch.set_float32_matmul_precision(precision)
        few = len(x) // SHRINK
        points, v = x.to(dtype), vectors if "RBF" not in name else vectors.to(dtype)
        estimate = SHRINK**2 * clock.best(lambda way=way, p=points, v=v, n=few: way(p[:n], v[:n]), 1)
        if clock.allows(estimate):
            seconds, found = clock.seconds(lambda way=way, p=points, v=v: way(p, v))
            error = (
                "-" if "RBF" in name else f"{float((found[: len(truth)] - truth).abs().max() / truth.abs().max()):.1e}"
            )
            share = flops / seconds / gemm_rate(clock, sizes.gemm, dtype, precision)
            rows.append(
                (
                    name,
                    precision,
                    str(dtype)[6:],
                    f"{seconds:.3g}",
                    f"{flops / seconds / 1e12:.3g}",
                    f"{share:.3f}",
                    error,
                )
            )
        else:
            rows.append((name, precision, str(dtype)[6:], f"not run, estimate {estimate:.0f}", *["-"] * 3))
        torch.set_float32_matmul_precision("highest")
    return rows


def gradient_rows(clock: Clock, sizes: Sizes) -> list[tuple[Any, ...]]:
    """Gradients of the sum of G * (K V) in V, all points and all hyperparameters, by autograd and by the fused pass."""
    (x, _), device = make_data(sizes.product, clock.device), clock.device
    vectors, outer = torch.randn(2, len(x), sizes.columns, device=device, dtype=torch.float64)
    kernels = {dtype: make_model(8, device, dtype).covar_module.eval() for dtype in (torch.float32, torch.float64)}
    tile = 512 if device.type == "cuda" else 64  # rows of all columns

    def by(dtype: torch.dtype, fused: bool, number: int) -> list[Tensor]:
        kernel = kernels[dtype]
        points, v = x[:number].to(dtype).requires_grad_(), vectors[:number].to(dtype).requires_grad_()
        leaves = [points, v, *(p for p in kernel.parameters() if p.requires_grad)]
        rows = [points] if fused else points.split(tile)
        total = [torch.zeros_like(leaf) for leaf in leaves]
        for part, weights in zip(rows, outer[:number].split(len(rows[0])), strict=True):
            product = FusedProduct(kernel)(part, points, v) if fused else kernel(part, points).to_dense() @ v
            for goal, gradient in zip(total, torch.autograd.grad((product * weights).sum(), leaves), strict=True):
                goal += gradient
        return total

    few, rows = len(x) // SHRINK, []
    truth = by(torch.float64, False, few)[0]
    missing = FusedProduct.missing(kernels[torch.float32], device)
    for name, precision, dtype in (
        ("tiles", "highest", torch.float64),
        ("tiles", "highest", torch.float32),
        *(("fused", precision, torch.float32) for precision in ("highest", "high", "medium")),
    ):
        row = name, precision, str(dtype)[6:]
        if name == "fused" and missing is not None:
            rows.append((*row, f"expected {missing}", "-"))
            continue
        torch.set_float32_matmul_precision(precision)
        way = functools.partial(by, dtype, name == "fused")
        estimate = SHRINK**2 * clock.best(lambda way=way: way(few), 1)
        seconds = f"not run, estimate {estimate:.0f}"
        if clock.allows(estimate):
            seconds = f"{clock.seconds(lambda way=way: way(len(x)))[0]:.3g}"
        error = torch.linalg.vector_norm(way(few)[0] - truth) / torch.linalg.vector_norm(truth)
        rows.append((*row, seconds, f"{float(error):.1e}"))
        torch.set_float32_matmul_precision("highest")
    return rows


def reduction_rows(clock: Clock, sizes: Sizes) -> list[tuple[Any, ...]]:
    """Time of a dense reduction, beside that of one Cholesky factorization, and of a fit with each."""
    rows = []
    for number in sizes.reduction:
        model = make_model(number, clock.device, torch.float64)
        matrix = model.covar_module(model.train_inputs[0]).to_dense().detach()
        noisy = matrix + TEMPERATURE * torch.eye(number, device=clock.device, dtype=torch.float64)
        times = [
            clock.best(lambda m=m, f=f: f(m), 1)
            for f, m in ((torch.linalg.eigh, matrix), (torch.linalg.cholesky_ex, noisy))
        ]
        fit = clock.best(lambda model=model: SaddlePoint().fit(model), 1)
        rows.append((f"P {number}", f"{times[0]:.3g}", f"{times[1]:.3g}", f"{times[0] / times[1]:.1f}", f"{fit:.3g}"))
    return rows


def fit_row(clock: Clock, number: int, sizes: Sizes) -> tuple[Any, ...]:
    """A fit of the saddle point and its predictions, with nothing but products."""
    share = 1 if number <= sizes.fit else 4  # of probes and columns: a million points with all of them take 36 GB
    options = Streaming(
        num_probes=max(2, (sizes.columns - 1) // share),
        rank=max(10, sizes.rank // share),
        max_steps=100,
        columns=min(128, sizes.test) // share,
        tile_size=4096 if clock.device.type == "cuda" else 64,
        tile_dtype=torch.float32,
    )
    try:
        problem = StreamedProblem.of_streamed(make_model(number, clock.device), options)
    except NotEnoughMemoryError:
        return (f"P {number}", "-", f"{options.num_bytes(number) / 2**30:.1f} GiB", "too little memory", *["-"] * 5)
    kind = type(problem.operator).__name__
    bytes_, seconds = problem.cost()
    told = f"{bytes_ / 2**30:.1f} GiB, {seconds:.3g} s"
    # Conjugate gradients for variances take about as many products as the Lanczos run, with more columns.
    if not clock.allows(3.0 * seconds):
        once = seconds / options.max_steps
        if not clock.allows(2.0 * once):
            return (f"P {number}", kind, told, "not run", *["-"] * 5)
        vectors = torch.ones(number, sizes.columns, device=clock.device, dtype=torch.float64)
        one = clock.seconds(lambda: problem.operator.matmul(vectors))[0]
        return (f"P {number}", kind, told, f"one product {one:.3g}", *["-"] * 5)
    reduced, fitted = clock.seconds(lambda: SaddlePoint().fit(problem))
    error = fitted.stats["quadrature_error"]
    x, y = make_data(number + sizes.test, clock.device)
    x, y = x[number:], y[number:]
    predicted, (mean, _) = clock.seconds(lambda: fitted.predict(x))
    return (
        f"P {number}",
        kind,
        told,
        f"{reduced:.3g}",
        problem.lanczos.run.num_steps,
        f"{predicted:.3g}",
        f"{float(fitted.order_parameters['q']):.5f}",
        f"{float(error.order_parameter.max()):.1g}, {float(error.order_parameter_truncation.max()):.1g}",
        f"{float((mean - y).square().mean()):.4f}",
    )


def write_page(clock: Clock, sizes: Sizes) -> str:
    device = clock.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a dry run on {platform.machine()}"
    lines = [f"# On a GPU: {name}", ""]
    lines += [f"One relu layer of {WIDTH:.0f} units, T = {TEMPERATURE}, {INPUTS} inputs. `gpu.py`; {versions()}.", ""]
    rates = [
        (f"{str(dtype)[6:]}, {precision}", f"{gemm_rate(clock, sizes.gemm, dtype, precision) / 1e12:.3g}")
        for dtype, precision in (
            (torch.float64, "highest"),
            (torch.float32, "highest"),
            (torch.float32, "medium"),
        )
    ]
    lines += [f"## Products of {sizes.gemm} x {sizes.gemm} matrices", "", *table(("dtype", "Tflop/s"), rates), ""]
    lines += [
        f"## Products with the kernel matrix of {sizes.product} points, {sizes.columns} columns",
        "",
        "Flops are those of the two dot products of every entry alone, of which tiles compute one half, by symmetry.",
        "The share is that of the rate above with the same dtype and precision. The error is over the largest number",
        "of the product by tiles of float64.",
        "",
        *table(("way", "precision", "dtype", "s", "Tflop/s", "share of GEMM", "error"), product_rows(clock, sizes)),
        "",
        f"## Gradients of the sum of all entries of G * (K V), of {sizes.product} points",
        "",
        f"In V, the points and the hyperparameters, forward and backward. The error is that of the points', of one in "
        f"{SHRINK}.",
        "",
        *table(("way", "precision", "dtype", "s", "error"), gradient_rows(clock, sizes)),
        "",
        "## Dense reductions in float64",
        "",
        *table(("points", "eigh s", "Cholesky s", "ratio", "saddle point s"), reduction_rows(clock, sizes)),
        "",
        "## Saddle points without the kernel matrix",
        "",
        f"Predictions are at {sizes.test} points, with variances. The errors of q are those of probes and of steps.",
        "",
    ]
    header = "points", "products", "estimate before", "fit s", "steps", "predict s", "q", "errors of q", "test error"
    return "\n".join([*lines, *table(header, [fit_row(clock, n, sizes) for n in (sizes.fit, sizes.many)]), ""])


def main() -> None:
    options = parse()
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device was found: nothing is measured; --dry-run goes through the program on the processor")
        return
    device = torch.device("cpu" if options.dry_run else "cuda")
    sizes = DRY if options.dry_run else FULL
    if options.rows is not None:
        sizes = sizes._replace(product=options.rows, fit=options.rows)
    if options.many is not None:
        sizes = sizes._replace(many=options.many)
    if not math.isfinite(options.time_limit) or options.time_limit <= 0:
        raise SystemExit(f"--time-limit: expected a number of seconds > 0, got {options.time_limit}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        page = write_page(Clock(device, options.time_limit), sizes)
    if options.markdown is None:
        print(page)
    else:
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
