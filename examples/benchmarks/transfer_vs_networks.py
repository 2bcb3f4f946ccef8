"""Transfer learning: does a source task's posterior help a target task with few points, and is the prediction right?

    python examples/benchmarks/transfer_vs_networks.py [--data DIR] [--tasks 4] [--draws 150] [--markdown PAGE]

DIR holds mnist10k.npz. One hidden layer of erf, N = 20, T = 0.05. The source's networks are sampled (``Sampled``, 160
draws); the target has the kernel of ``TransferKernel`` at coupling c, with one order parameter by ``SaddlePoint``.
Pairs of tasks, points of source and target:

- "index": 30 Gaussian inputs, 2 tanh(2 u) and 2 sin(2 u) of the same direction u, 300 and 40 points;
- "other index": the same, but the target has another direction: nothing to transfer;
- "parity": MNIST (50 principal components), odd or even, 400 points of ten digits and 30 of 0 to 5;
- "three": 3 and 5 against 6 and 8, 400 points; 3 against 8, 20 points.

"Left out" is the mean log density of target points that are left out: what chooses c, without test points. "Error" is
the squared error of the posterior mean over the variance of the test targets, "right" the share of right signs. The
last columns are for a single draw of the source's network, whose weights are the prior mean c w_s of the target's: the
squared error of a target network, predicted (1,000 draws of what is new) and sampled (8 chains; with its standard
error). A few minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import gpytorch
import numpy as np
import torch
from _uci import default_folder, table, versions
from torch import Tensor

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.kernels import BlockRenormalizedKernel, TransferKernel
from torch_propkernel.networks import FeatureNetwork, FiniteNetwork, sample_posterior
from torch_propkernel.theories import FittedTheory, SaddlePoint, Sampled

WIDTH, TEMPERATURE, NUM_TEST = 20, 0.05, 1000
COUPLINGS = (0.0, 0.5, 0.9, 1.0)
RESULTS = Path(__file__).resolve().parent / "results"
Task = tuple[Tensor, Tensor]


class CoupledNetwork(FeatureNetwork):
    """A network whose whitened hidden weights are c w_s + sqrt(1 - c^2) xi; xi is what is sampled."""

    def __init__(self, inner: FiniteNetwork, source: Tensor, coupling: float) -> None:
        """Take the architecture of another network."""
        shapes = list(zip(inner.width, (inner.input_dim, *inner.width[:-1]), strict=True))
        options = {"weight_variance": inner.weight_variance, "bias_variance": inner.bias_variance}
        super().__init__(inner.activation, inner.input_dim, shapes, inner.num_units, **options)
        self.inner, self.source, self.coupling = inner, source, coupling

    def _features(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        own = self.hidden if hidden is None else hidden
        return self.inner.features(x, self.coupling * self.source + math.sqrt(1.0 - self.coupling**2) * own)


def index_tasks(seed: int, same: bool) -> tuple[Task, Task, Task]:
    """Functions of one direction of Gaussian inputs."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.nn.functional.normalize(torch.randn(2, 30, generator=generator))
    x, target_x, test_x = (torch.randn(n, 30, generator=generator) for n in (300, 40, NUM_TEST))
    second = first if same else second
    return (
        (x, 2 * torch.tanh(2 * x @ first)),
        (target_x, 2 * torch.sin(2 * target_x @ second)),
        (test_x, 2 * torch.sin(2 * test_x @ second)),
    )


def digit_tasks(
    folder: Path, source: tuple[list[int], list[int]], target: tuple[list[int], list[int]], size: int
) -> tuple[Task, Task, Task]:
    """Classes of digits against others, labels +1 and -1; disjoint images."""
    with np.load(folder / "mnist10k.npz") as arrays:
        images, labels = torch.as_tensor(arrays["images"] / 255.0).flatten(1), torch.as_tensor(arrays["labels"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order].long()
    center = images[:3000].mean(0)
    _, _, axes = torch.linalg.svd(images[:3000] - center, full_matrices=False)
    x = (images - center) @ axes[:50].T
    x = x / x[:3000].std()

    def task(classes: tuple[list[int], list[int]], start: int, count: int) -> Task:
        positive, negative = (torch.isin(labels, torch.tensor(some)) for some in classes)
        rows = (positive | negative).nonzero().squeeze(-1)
        rows = rows[rows >= start][:count]
        return x[rows], torch.where(positive[rows], 1.0, -1.0)

    return task(source, 0, 400), task(target, 3000, size), task(target, 5000, NUM_TEST)


def model(task: Task, kernel: gpytorch.kernels.Kernel) -> NetworkGP:
    """A process with noise T."""
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = TEMPERATURE
    return NetworkGP(*task, likelihood, kernel)


def renormalized(task: Task, kernel: TransferKernel) -> FittedTheory:
    """The saddle point of the target."""
    return SaddlePoint().fit(model(task, BlockRenormalizedKernel([[kernel]], width=WIDTH)))


def rows(name: str, tasks: tuple[Task, Task, Task], draws: int) -> list[list[str]]:
    """The numbers of a pair of tasks at each coupling."""
    source, target, (test_x, test_y) = tasks
    sampled = Sampled(num_chains=8, num_draws=20).fit(
        model(source, RenormalizedNNGPKernel("erf", width=WIDTH, bias_variance=0.1))
    )
    network, states = sampled.conditioned.network, sampled.conditioned.states
    print(name, sampled.message, flush=True)
    lines = []
    for coupling in COUPLINGS:
        fitted = renormalized(target, TransferKernel(network, states, coupling))
        error = fitted.error(test_x, test_y)
        one = renormalized(target, TransferKernel(network, states[:1], coupling, num_fresh=1000))
        measured = "-"
        if coupling < 1.0:
            found = sample_posterior(
                CoupledNetwork(network, states[0], coupling),
                *target,
                TEMPERATURE,
                test_x=test_x,
                test_y=test_y,
                num_samples=draws,
                warmup=100,
            ).test_error
            measured = f"{found.mean.item():.4f} +- {found.standard_error.item():.2g}"
        lines.append(
            [
                f"{name}, c = {coupling:g}",
                f"{fitted.order_parameters['Q'].item():.3f}",
                f"{fitted.leave_one_out().log_density.mean().item():.3f}",
                f"{error.mean_bias.item() / test_y.var().item():.3f}",
                f"{100 * (error.mean.sign() == test_y.sign()).double().mean().item():.1f}",
                f"{one.error(test_x, test_y).mean_total.item():.4f}",
                measured,
            ]
        )
        print(*lines[-1], sep=" | ", flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample the sources, fit and sample the targets, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = default_folder()
    folder = folder.parent if folder.name == "uci" else folder
    parser.add_argument("--data", type=Path, default=folder, help="default: $PROPKERNEL_DATA")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--draws", type=int, default=150, help="of each chain")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "transfer_vs_networks.md")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    odd, even = [1, 3, 5, 7, 9], [0, 2, 4, 6, 8]
    pairs: list[tuple[str, Callable[[], tuple[Task, Task, Task]]]] = [
        ("index", lambda: index_tasks(0, same=True)),
        ("other index", lambda: index_tasks(0, same=False)),
        ("parity", lambda: digit_tasks(options.data, (odd, even), ([1, 3, 5], [0, 2, 4]), 30)),
        ("three", lambda: digit_tasks(options.data, ([3, 5], [6, 8]), ([3], [8]), 20)),
    ]
    cells = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PropKernelWarning)  # errors are in the table
        for name, make in pairs[: options.tasks]:
            cells += rows(name, make(), options.draws)
    header = ("tasks", "q", "left out", "error", "right %", "one draw, predicted", "one draw, sampled")
    options.markdown.write_text(
        "# Transfer learning\n\n    python examples/benchmarks/transfer_vs_networks.py\n\n"
        f"{versions()}. The head of `transfer_vs_networks.py` says what the tasks and the columns are.\n\n"
        + "\n".join(table(header, cells))
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
