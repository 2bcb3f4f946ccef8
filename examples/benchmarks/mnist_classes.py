"""Ten classes of MNIST as ten outputs: infinite width and a matrix order parameter, and sampled networks.

    python examples/benchmarks/mnist_classes.py [--data DIR] [--markdown PAGE]

DIR holds mnist10k.npz (images uint8 n x 28 x 28, labels). One hidden layer, T = 0.1, targets one-hot minus 0.1, pixels
in [0, 1] with mean and deviation of all training pixels taken out. P = 1,000 training images and the 9,000 others: the
accuracy of the predictor (the largest posterior mean), that of the left-out training points (which needs no test
labels), the expected accuracy of one posterior network, and the squared error by output. At P = 200 the same numbers
stand beside networks that are sampled (1,000 test images). About a quarter of an hour on one core, 10 GB of memory.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _uci import default_folder, table, versions
from torch import Tensor

from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.networks import FiniteNetwork, sample_posterior
from torch_propkernel.progress import progress_bar
from torch_propkernel.theories import InfiniteWidth, SaddlePoint, Theory

TEMPERATURE = 0.1
CASES = (("erf", 50), ("relu", 50), ("relu", 500))
SAMPLED = (("erf", 50), ("relu", 50))
DRAWS = 1000


def load(folder: Path, num_data: int, num_test: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and classes of training and test images."""
    with np.load(folder / "mnist10k.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    order = np.random.default_rng(0).permutation(len(labels))[: num_data + num_test]
    x = torch.as_tensor(images[order].reshape(len(order), -1) / 255.0)
    classes = torch.as_tensor(labels[order].astype(np.int64))
    x = (x - x[:num_data].mean()) / x[:num_data].std()
    return x[:num_data], classes[:num_data], x[num_data:], classes[num_data:]


def one_hot(classes: Tensor) -> Tensor:
    """Targets: one-hot rows minus their mean."""
    return torch.nn.functional.one_hot(classes, 10).double() - 0.1


def row(theory: Theory, case: tuple[str, int], data: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Any]:
    """The numbers of one theory."""
    x, classes, test_x, test_classes = data
    activation, width = case
    kernel = MultitaskRenormalizedKernel(activation, float(width), num_tasks=10)
    model = MultitaskNetworkGP.with_temperature(x, one_hot(classes), kernel, TEMPERATURE)
    clock = time.process_time()
    fitted = theory.fit(model)
    seconds = time.process_time() - clock
    left = fitted.leave_one_out().mean.argmax(0)
    error = fitted.error(test_x, one_hot(test_classes))
    scale = torch.linalg.eigvalsh(fitted.order_parameters["Q"])
    return [
        f"{activation}, N = {width}, P = {len(x)}",
        theory.name,
        f"{100 * float((left == classes).double().mean()):.1f}",
        f"{100 * float((error.mean.argmax(0) == test_classes).double().mean()):.1f}",
        f"{100 * float(fitted.accuracy(test_x, test_classes)):.1f}",
        f"{float(error.mean_total.mean()):.4f}",
        f"{float(error.mean_total.min()):.4f} to {float(error.mean_total.max()):.4f}",
        f"{float(scale.min()):.2f} to {float(scale.max()):.2f}",
        f"{seconds:.2g}",
    ]


def sampled_row(case: tuple[str, int], data: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Any]:
    """The numbers of sampled networks."""
    x, classes, test_x, test_classes = data
    activation, width = case
    network = FiniteNetwork(get_activation(activation), x.shape[-1], width, num_outputs=10)
    clock = time.process_time()
    with warnings.catch_warnings(), progress_bar(f"{activation}, N = {width}") as advance:
        warnings.simplefilter("ignore", PropKernelWarning)  # convergence is in the table
        found = sample_posterior(
            network,
            x,
            one_hot(classes),
            TEMPERATURE,
            test_x=test_x,
            test_y=one_hot(test_classes),
            num_samples=DRAWS,
            warmup=DRAWS // 2,
            seed=0,
            progress=advance,
        )
    mean, variance = found.posterior_mean.mean, found.posterior_variance.mean
    error = ((mean - one_hot(test_classes)).square() + variance).mean(0)
    scale = torch.linalg.eigvalsh(found.order_parameter_matrix.mean)
    r_hat = max(value.r_hat.item() for value in found.estimates.values())
    return [
        f"{activation}, N = {width}, P = {len(x)}",
        f"sampled (R-hat {r_hat:.3f})",
        "-",
        f"{100 * float((mean.argmax(-1) == test_classes).double().mean()):.1f}",
        f"{100 * float((found.draws.argmax(-1) == test_classes).double().mean()):.1f}",
        f"{float(error.mean()):.4f}",
        f"{float(error.min()):.4f} to {float(error.max()):.4f}",
        f"{float(scale.min()):.2f} to {float(scale.max()):.2f}",
        f"{time.process_time() - clock:.2g}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, sample, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = default_folder()
    folder = folder.parent if folder.name == "uci" else folder
    parser.add_argument("--data", type=Path, default=folder, help="default: $PROPKERNEL_DATA")
    parser.add_argument("--no-sampling", action="store_true", help="theories alone")
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--markdown", type=Path, default=results / "mnist_classes.md")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    rows = []
    for num_data, num_test, cases in ((1000, 9000, CASES), (200, 1000, SAMPLED)):
        data = load(options.data, num_data, num_test)
        for case in cases:
            rows += [row(theory, case, data) for theory in (InfiniteWidth(), SaddlePoint())]
            if num_data == 200 and not options.no_sampling:
                rows.append(sampled_row(case, data))
    header = ("case", "theory", "left out %", "predictor %", "one network %", "error", "by output", "eigenvalues of Q")
    lines = table((*header, "CPU s"), rows)
    options.markdown.write_text(
        "# Ten classes of MNIST as ten outputs\n\n    python examples/benchmarks/mnist_classes.py\n\n"
        f"{versions()}. T = {TEMPERATURE:g}. Accuracies of the points left out of the training set, of the largest "
        "posterior mean on the test images, and of one network drawn from the posterior; squared error of such a "
        "network, averaged over outputs, and its range over them. The head of `mnist_classes.py` says more.\n\n"
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
