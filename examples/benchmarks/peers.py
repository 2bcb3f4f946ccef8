"""Other packages beside this one: the same answers first, then the time.

    python examples/benchmarks/peers.py [--sizes 500 1000 2000 4000] [--only deepbays] [--markdown PATH]

Peers: deepbays, GPyTorch's own kernels, scikit-learn, BoTorch, neural-tangents; one that is not installed is skipped,
and the page says so. Every row is one task done by both, in float64 on one thread. Times are CPU times of whole calls,
from inputs to answers, in units of one Cholesky factorization of a P x P matrix that is measured in the same rounds:
medians over rounds that run the factorization, this package and the peer in turn. The last column is the largest
difference of the answers, relative to the largest number among them.

    pip install scikit-learn && pip install --no-deps deepbays==0.1.11
    pip install neural-tangents==0.6.5 jax==0.4.35 jaxlib==0.4.35 tf2jax==0.3.6   # newer ones do not import together
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse  # noqa: E402
import contextlib  # noqa: E402
import datetime  # noqa: E402
import importlib  # noqa: E402
import io  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import types  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from importlib.metadata import PackageNotFoundError, version  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import gpytorch  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpytorch.likelihoods import GaussianLikelihood  # noqa: E402

from torch_propkernel import NetworkGP, NNGPKernel, RenormalizedNNGPKernel, width_sweep  # noqa: E402
from torch_propkernel.activations import Erf  # noqa: E402
from torch_propkernel.kernels import ConvolutionalRenormalizedKernel, MultitaskRenormalizedKernel  # noqa: E402
from torch_propkernel.models import MultitaskNetworkGP  # noqa: E402
from torch_propkernel.theories import InfiniteWidth, SaddlePoint, TwoParameterSaddle  # noqa: E402

EDGE, PATCH, TEST, TEMPERATURE, OUTPUTS = 8, 4, 200, 0.1, 3
SECONDS = 3.0  # of CPU time for the rounds of one row
ROUNDS = 5


NOTES = """
## How the tasks were matched, and where answers differ

- **deepbays.** Its `l0` and `l1` are one over our weight variances (all are 1 here); kernels, action and order
  parameters are defined alike, and differences are the tolerance of its optimizer. `FC_deep` is
  `composition="nested"`. It follows one start, where this package compares four (one width: all stationary points),
  and it forms a P x P inverse at every step; `FC_1HL` takes the eigendecomposition of a general matrix, `CONV_1HL`
  computes its kernels again at every step. What is wrong in version 0.1.11: `FC_1HL_multiclass` stores the kernel
  matrix in `self.D`, which was the number of outputs, and cannot run. `FC_1HL_nonodd` subtracts the number q - 1/(1 +
  s) from every entry of the covariance, without the outer product of the means; its mean of a relu unit is sqrt(c
  pi/2), where sqrt(c/(2 pi)) is right; and its prediction multiplies matrices of other shapes unless there are as
  many test points as training points. The package imports cupy, which it does not require; the benchmark puts an
  empty module there.
- **GPyTorch.** The host is the same and so are the steps; only the kernel differs, so that no answers are compared.
  Our kernel needs a matrix product and an arc sine for each entry, RBF a distance and an exponential.
- **scikit-learn.** The same matrix, noise and points. "Matrix given" takes the kernel from memory, which ours
  computes. The finite network has no counterpart there: on top come the reduction of the matrix to a spectrum, in
  which q is solved, and the score of the reliability from up to 200 rows, whose share is largest where P is small.
- **BoTorch.** Its kernel ends with the bias of a readout, which is added to ours. Off the diagonal both agree to
  rounding; on it BoTorch's is 1e-7 too small, because it clamps the cosine at 1 - 1e-7 (`acos_eps`).
- **neural-tangents.** `Dense(1, W_std, b_std)` has our variances W_std^2 and b_std^2. Compilation is not timed.
"""


class Row(NamedTuple):
    """One task: what this package and the peer do, and what both return as numbers."""

    task: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    comparable: bool = True


class Problem:
    """Inputs of 64 columns (images of 8 x 8), a linear teacher with noise, its first outputs; test points."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size + TEST, EDGE**2, generator=generator)
        y = x @ torch.randn(EDGE**2, OUTPUTS, generator=generator) / EDGE
        y = y + 0.3 * torch.randn(y.shape, generator=generator)
        (self.x, self.test_x), (self.all_y, all_test_y) = x.split([size, TEST]), y.split([size, TEST])
        self.y, self.test_y, self.width = self.all_y[:, 0].contiguous(), all_test_y[:, 0].contiguous(), size // 4
        self.x_, self.y_, self.test_x_ = (v.numpy() for v in (self.x, self.y, self.test_x))

    def model(self, kernel: gpytorch.kernels.Kernel) -> NetworkGP:
        """Return the GP of noise T."""
        likelihood = GaussianLikelihood()
        likelihood.noise = TEMPERATURE
        return NetworkGP(self.x, self.y, likelihood, kernel)

    def ours(self, kernel: gpytorch.kernels.Kernel, theory: Any = None, read: str = "q") -> list[float]:
        """Return the order parameters, and test error, bias and variance, of a theory."""
        fitted = (theory or SaddlePoint()).fit(self.model(kernel))
        error = fitted.error(self.test_x, self.test_y)
        numbers = [error.mean_total, error.mean_bias, error.mean_variance]
        return [*fitted.order_parameters[read].flatten().tolist(), *(number.item() for number in numbers)]

    def deepbays(self, theory: Any, prepare: bool = True, read: str = "optQ") -> list[float]:
        """Return the same of a class of deepbays."""
        if prepare:
            theory.preprocess(self.x_, self.y)
        theory.optimize()
        theory.predict(self.test_x_)
        errors = theory.averageLoss(self.test_y)
        return [*np.ravel(getattr(theory, read)).tolist(), *(float(np.mean(error)) for error in errors)]


def deepbays_rows(p: Problem) -> Iterator[Row]:
    """One width, many widths, depth, patches, two order parameters, several outputs."""
    for name in ("torchvision", "torchvision.transforms", "cupy", "cupy.cuda"):
        # deepbays imports them for its data sets and its classes for GPUs, which are not used here.
        sys.modules.setdefault(name, types.ModuleType(name)).Device = None
    rkgp = importlib.import_module("deepbays.rkgp")
    N, T = p.width, TEMPERATURE
    yield Row(
        "one width: kernel, order parameter, test error",
        "deepbays FC_1HL",
        lambda: p.ours(RenormalizedNNGPKernel("erf", N)),
        lambda: p.deepbays(rkgp.FC_1HL(N, T)),
    )
    if len(p.x) > 2000:  # minutes each
        return
    widths = [max(2, round(N * factor)) for factor in (0.2, 0.5, 1.0, 2.0, 5.0)]

    def sweep() -> list[float]:
        swept = width_sweep(p.model(RenormalizedNNGPKernel("erf", N)), widths, p.test_x, p.test_y)
        return [*swept.order_parameter.flatten().tolist(), *swept.test.mean_total.tolist()]

    def their_sweep() -> list[float]:
        theory = rkgp.FC_1HL(N, T)
        found = []
        for index, theory.N1 in enumerate(widths):
            found.append(p.deepbays(theory, prepare=index == 0)[:2])
        return [float(v) for column in zip(*found, strict=True) for v in column]

    yield Row("five widths from one reduction", "deepbays FC_1HL", sweep, their_sweep)
    for depth in (2, 3):
        yield Row(
            f"{depth} hidden layers, nested",
            "deepbays FC_deep",
            lambda depth=depth: p.ours(RenormalizedNNGPKernel("erf", [float(N)] * depth, "nested")),
            lambda depth=depth: p.deepbays(rkgp.FC_deep(depth, N, T, [1.0] * (depth + 1))),
        )
    yield Row(
        "four patches, dense readout",
        "deepbays CONV_1HL",
        lambda: p.ours(ConvolutionalRenormalizedKernel("erf", N, (1, EDGE, EDGE), PATCH), read="E"),
        lambda: p.deepbays(rkgp.CONV_1HL(N, T, PATCH, PATCH)),
    )
    yield Row(
        "relu, two order parameters",
        "deepbays FC_1HL_nonodd",
        lambda: p.ours(RenormalizedNNGPKernel("relu", N), TwoParameterSaddle()),
        lambda: p.deepbays(rkgp.FC_1HL_nonodd(N, T), read="Q"),
    )

    def outputs() -> list[float]:
        kernel = MultitaskRenormalizedKernel("erf", N, num_tasks=OUTPUTS)
        model = MultitaskNetworkGP.with_temperature(p.x, p.all_y, kernel, T)
        fitted = SaddlePoint().fit(model)
        return [*fitted.order_parameters["Q"].flatten().tolist(), *fitted.predict(p.test_x)[0].flatten().tolist()]

    def their_outputs() -> list[float]:
        theory = rkgp.FC_1HL_multiclass(N, OUTPUTS, T)
        theory.preprocess(p.x_, p.all_y.numpy())
        theory.optimize()
        return [*theory.optQ.ravel(), *theory.predict(p.test_x_).ravel()]

    yield Row(f"{OUTPUTS} outputs", "deepbays FC_1HL_multiclass", outputs, their_outputs)


def gpytorch_rows(p: Problem) -> Iterator[Row]:
    """GPyTorch's exact GP, with its own kernel and with ours: a training iteration, a prediction."""

    def iteration(kernel: gpytorch.kernels.Kernel) -> Callable[[], None]:
        model = p.model(gpytorch.kernels.ScaleKernel(kernel))
        objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)

        def step() -> None:
            model.train().zero_grad()
            with gpytorch.settings.max_cholesky_size(10**5):
                (-objective(model(p.x), p.y)).backward()

        return step

    def prediction(kernel: gpytorch.kernels.Kernel) -> Callable[[], None]:
        model = p.model(gpytorch.kernels.ScaleKernel(kernel))

        def predict() -> None:
            model.train().eval()  # forgets its caches
            with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**5):
                model(p.test_x).variance  # noqa: B018

        return predict

    wide = lambda: NNGPKernel("erf", bias_variance=0.3)  # noqa: E731
    rbf = gpytorch.kernels.RBFKernel
    yield Row("GPyTorch's training iteration", "RBFKernel", iteration(wide()), iteration(rbf()), False)
    yield Row(f"GPyTorch's prediction, {TEST} points", "RBFKernel", prediction(wide()), prediction(rbf()), False)


def sklearn_rows(p: Problem) -> Iterator[Row]:
    """Regression at fixed hyperparameters: the kernel matrix is given to scikit-learn, or computed by it."""
    from sklearn.gaussian_process import GaussianProcessRegressor, kernels

    from torch_propkernel.sklearn_support import PropKernelRegressor

    class Dual(kernels.Kernel):
        """The erf kernel in numpy."""

        def __init__(self) -> None:
            """Have no hyperparameters, which scikit-learn reads here."""

        def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
            Y = X if Y is None else Y
            rows, columns = (1 + 2 * np.einsum("ij,ij->i", Z, Z) / Z.shape[1] for Z in (X, Y))
            inner = 2 * (X @ Y.T) / X.shape[1] / np.sqrt(np.outer(rows, columns))
            return 2 / np.pi * np.arcsin(inner)

        def diag(self, X: Any) -> Any:
            c = 2 * np.einsum("ij,ij->i", X, X) / X.shape[1]
            return 2 / np.pi * np.arcsin(c / (1 + c))

        def is_stationary(self) -> bool:
            return False

    computed = Dual()

    class Given(Dual):
        """The same, looked up."""

        tables = {
            (len(p.x), None): computed(p.x_),
            (TEST, len(p.x)): computed(p.test_x_, p.x_),
        }

        def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
            return self.tables[len(X), None if Y is None else len(Y)].copy()

    def theirs(kernel: Any) -> list[float]:
        made = GaussianProcessRegressor(kernel, alpha=TEMPERATURE, optimizer=None).fit(p.x_, p.y_)
        mean, deviation = made.predict(p.test_x_, return_std=True)
        return [*mean, *deviation**2]

    def ours() -> list[float]:
        fitted = InfiniteWidth().fit(p.model(RenormalizedNNGPKernel("erf", p.width)))
        return [number for part in fitted.predict(p.test_x) for number in part.tolist()]

    def estimator(theory: str) -> list[float]:
        given = {"temperature": TEMPERATURE, "weight_variance": 1.0, "bias_variance": 0.0, "ard_weights": 1.0}
        unscaled = {"normalize_X": False, "normalize_y": False}
        made = PropKernelRegressor(width=p.width, theory=theory, **given, **unscaled).fit(p.x_, p.y_)
        mean, deviation = made.predict(p.test_x_, return_std=True, include_noise=False)
        return [*mean, *deviation**2]

    in_numpy, given = "scikit-learn, kernel in numpy", "scikit-learn, matrix given"
    task = f"infinite width, fit and predict {TEST} points"
    yield Row(task, in_numpy, ours, lambda: theirs(computed))
    yield Row(task, given, ours, lambda: theirs(Given()))
    yield Row(f"{task}, as an estimator", in_numpy, lambda: estimator("infinite_width"), lambda: theirs(computed))
    task = f"finite width, fit and predict {TEST} points, as an estimator"
    yield Row(task, f"{in_numpy}, infinite width", lambda: estimator("saddle"), lambda: theirs(computed), False)


def botorch_rows(p: Problem) -> Iterator[Row]:
    """Kernel values, and their gradient in the variances; BoTorch's kernel ends with a bias, ours does not."""
    from botorch.models.kernels import InfiniteWidthBNNKernel

    for depth in (1, 3):
        wide = NNGPKernel("relu", depth, weight_variance=2.0, bias_variance=0.3)
        theirs = InfiniteWidthBNNKernel(depth).double()
        theirs.weight_var, theirs.bias_var = 2.0, 0.3

        def values(kernel: Any, bias: float) -> torch.Tensor:
            kernel.zero_grad()
            matrix = kernel(p.x).to_dense()
            matrix.sum().backward()
            return matrix.detach() + bias

        yield Row(
            f"relu kernel, depth {depth}, forward and backward",
            "BoTorch InfiniteWidthBNNKernel",
            lambda wide=wide: values(wide, 0.3),
            lambda theirs=theirs: values(theirs, 0.0),
        )


def neural_tangents_rows(p: Problem) -> Iterator[Row]:
    """Kernel values, without gradients, after compilation."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    stax = importlib.import_module("neural_tangents.stax")
    for name, ours, theirs in (("erf", Erf(), stax.Erf), ("relu", "relu", stax.Relu)):
        for depth in (1, 3):
            layers = [layer for _ in range(depth) for layer in (stax.Dense(1, 1.0, 0.5), theirs())]
            function = jax.jit(stax.serial(*layers, stax.Dense(1, 1.0, None))[2], static_argnames="get")
            wide = NNGPKernel(ours, depth, bias_variance=0.25)
            given = jax.numpy.asarray(p.x_)

            def values(wide: Any = wide) -> torch.Tensor:
                with torch.no_grad():
                    return wide(p.x).to_dense()

            yield Row(
                f"{name} kernel, depth {depth}, values",
                "neural-tangents, compiled",
                values,
                lambda function=function, given=given: np.asarray(function(given, get="nngp").block_until_ready()),
            )


PEERS = {
    "deepbays": deepbays_rows,
    "gpytorch": gpytorch_rows,
    "scikit-learn": sklearn_rows,
    "botorch": botorch_rows,
    "neural-tangents": neural_tangents_rows,
}


def cpu_time(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of one call and what it returned; what a peer prints is dropped."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        value = function()
    return time.process_time() - start, value


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference relative to the largest number."""
    ours, theirs = (np.asarray(value, dtype=np.float64) for value in (ours, theirs))
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def measure(row: Row, size: int) -> str:
    """Return the line of one task."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(1))
    matrix = matrix @ matrix.mT / size + torch.eye(size)
    steps = {"unit": lambda: torch.linalg.cholesky(matrix), "ours": row.ours, "theirs": row.theirs}
    first, answers = {}, {}
    for name, step in steps.items():  # the first round warms up, and finds who fails
        try:
            first[name], answers[name] = cpu_time(step)
        except Exception as error:
            if name != "theirs":
                raise
            answers[name] = error
    if isinstance(answers["theirs"], Exception):
        del steps["theirs"]
    rounds = max(1, min(ROUNDS, int(SECONDS / sum(first.values()))))
    times = {name: [first[name]] if rounds == 1 else [] for name in steps}
    for _ in range(rounds if rounds > 1 else 0):
        for name, step in steps.items():
            times[name].append(cpu_time(step)[0])
    times["unit"] += [cpu_time(steps["unit"])[0] for _ in range(5)]  # it is short, and all ratios hang on it
    median = {name: statistics.median(values) for name, values in times.items()}
    cells = [row.task, row.peer, f"P = {size}", f"{median['ours'] / median['unit']:.3g}"]
    if "theirs" in steps:
        same = f"{difference(answers['ours'], answers['theirs']):.1e}" if row.comparable else "-"
        cells += [f"{median['theirs'] / median['unit']:.3g}", f"{median['theirs'] / median['ours']:.3g}", same]
    else:
        message = " ".join(str(answers["theirs"]).replace("|", "").split())
        cells += [f"raises {type(answers['theirs']).__name__}: {message}", "-", "-"]
    return "| " + " | ".join([*cells, str(rounds)]) + " |"


def machine() -> str:
    """Return the class of the machine."""
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, one thread"


def main(arguments: list[str] | None = None) -> None:
    """Measure all peers that are installed and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    versions, skipped = [], []
    for name in ["torch-propkernel", "torch", *PEERS, "jax"]:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name in options.only:
                skipped.append(name)
    lines = [
        "# Other packages beside this one",
        "",
        f"{datetime.date.today()}; {machine()}; float64; {', '.join(versions)}.",
        f"Not installed, skipped: {', '.join(skipped) or 'none'}.",
        "",
        "Times are in units of one Cholesky factorization of a P x P matrix; `peer / ours` above 1 is a gain of this "
        "package, below 1 of the peer.",
        "",
        "| task | peer | size | ours | peer's | peer / ours | largest difference | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in options.only:
        for size in options.sizes if name not in skipped else ():
            for row in PEERS[name](Problem(size)):
                lines.append(measure(row, size))
                print(lines[-1], file=sys.stderr, flush=True)
    page = "\n".join(lines) + "\n" + NOTES
    if options.markdown is None:
        print(page)
    else:
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
