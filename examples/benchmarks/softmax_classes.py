"""Is a softmax over the outputs of one network worth a likelihood of its own? Digits and MNIST, ten classes.

    python examples/benchmarks/softmax_classes.py [--splits 2] [--data DIR] [--markdown PAGE]

DIR holds mnist10k.npz. scikit-learn's digits (400 training rows, the 1,397 others, random splits) and MNIST (500 and
2,000). One hidden layer, variances and T by the evidence of infinite width for labels +-1, as in ``classes.py``. At
these variances, with the same kernel:

- "largest": ``FittedOutputs.class_probabilities``, the share of posterior networks whose output of a class is largest;
- "softmax, left-out": E softmax(beta f) over the same posterior, with the one number beta that has the lowest log loss
  on the training points that are left out (closed form, the outputs' correlations neglected there);
- "softmax, Laplace": latent outputs with the kernel s K and a softmax likelihood, Laplace's approximation of Williams
  and Barber (1998), at infinite width; s by its evidence, or by the test log loss, which nobody has ("best s"): no
  choice of s beats it. "Mode" is the softmax of the latent mode, without its uncertainty, at its own best s;
- "Dirichlet": GPyTorch's DirichletClassificationLikelihood with a batch of kernels.

Accuracy, mean negative log probability of the right class, Brier score. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _uci import default_folder, table, versions
from classes import dirichlet, scores, split
from mnist_classes import load
from torch import Tensor

from torch_propkernel import fit_order_parameters
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.sklearn_support import PropKernelClassifier
from torch_propkernel.theories import FittedOutputs

DRAWS, WIDTH, CLASSES = 1000, 50.0, 10
AMPLITUDES = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
RESULTS = Path(__file__).resolve().parent / "results"


class LaplaceSoftmax:
    """Latent outputs with one kernel matrix and a softmax likelihood (Rasmussen and Williams 2006, ch. 3.5)."""

    def __init__(self, kernel: Tensor, labels: Tensor) -> None:
        """Find the mode by Newton's method; ``kernel`` is P x P, ``labels`` the P classes."""
        one_hot = torch.nn.functional.one_hot(labels, CLASSES).to(kernel).mT
        weights, best = torch.zeros_like(one_hot), -math.inf
        for _ in range(100):
            latent = weights @ kernel
            share = latent.softmax(0)
            root = share.sqrt()
            inner = root.unsqueeze(-1) * kernel * root.unsqueeze(-2)
            factor = torch.linalg.cholesky(inner + torch.eye(kernel.shape[-1]).to(kernel))
            half = torch.linalg.solve_triangular(factor, torch.diag_embed(root), upper=False)
            precision = half.mT @ half
            total = torch.linalg.cholesky(precision.sum(0))
            wanted = share * latent - share * (share * latent).sum(0) + one_hot - share
            pulled = (precision @ (wanted @ kernel).unsqueeze(-1)).squeeze(-1)
            common = torch.cholesky_solve(pulled.sum(0).unsqueeze(-1), total)
            step = wanted - pulled + (precision @ common).squeeze(-1)
            length = 1.0
            while (value := self._value(weights + length * (step - weights), kernel, one_hot)) < best:
                length /= 2.0
            if value - best < 1e-6:
                break
            weights, best = weights + length * (step - weights), value
        logs = factor.diagonal(dim1=-2, dim2=-1).log().sum() + total.diagonal().log().sum()
        self.log_evidence = best - float(logs)
        self._misfit, self._precision, self._total = one_hot - latent.softmax(0), precision, total

    @staticmethod
    def _value(weights: Tensor, kernel: Tensor, one_hot: Tensor) -> float:
        """Log density of labels and latent outputs K a, up to a constant."""
        latent = weights @ kernel
        return float(-0.5 * (weights * latent).sum() + (one_hot * latent).sum() - latent.logsumexp(0).sum())

    def mean(self, cross: Tensor) -> Tensor:
        """Return the latent mode at m points, m x D."""
        return (self._misfit @ cross).mT

    def probabilities(self, cross: Tensor, prior: Tensor) -> Tensor:
        """Return E softmax(f) at m points, m x D; ``cross`` is P x m, ``prior`` m."""
        mean = self.mean(cross)
        seen = self._precision @ cross
        half = torch.linalg.solve_triangular(self._total, seen, upper=False)
        covariance = torch.einsum("apm,bpm->mab", half, half)
        covariance += torch.diag_embed((prior - (seen * cross).sum(-2)).mT)
        return averaged(mean, covariance, 1.0)


def averaged(mean: Tensor, covariance: Tensor, beta: float) -> Tensor:
    """Return E softmax(beta f), f ~ N(mean, covariance), m x D, by draws that are the same at every point."""
    normal = torch.randn(DRAWS, mean.shape[-1], generator=torch.Generator().manual_seed(0), dtype=mean.dtype)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    parts = []
    for center, spread in zip(mean.split(200), root.split(200), strict=True):
        parts.append((beta * (center.unsqueeze(-2) + normal @ spread.mT)).softmax(-1).mean(-2))
    return torch.cat(parts)


@torch.no_grad()
def softmax_of_outputs(fitted: FittedOutputs, labels: Tensor, x: Tensor) -> tuple[float, Tensor]:
    """Return the beta that is best on left-out points, and the probabilities at x."""
    left = fitted.leave_one_out()
    mean, spread = left.mean.mT, torch.diag_embed(left.variance.mT)
    rows = torch.arange(len(labels))

    def loss(beta: float) -> float:
        return -float(averaged(mean, spread, beta)[rows, labels].clamp_min(1e-12).log().mean())

    beta = min(np.geomspace(1.0, 100.0, 41), key=loss)
    return beta, averaged(fitted.predict(x)[0], fitted.conditioned.covariances(x), beta)


def rows(data: Sequence[np.ndarray], activation: str) -> dict[str, tuple[float, ...]]:
    """Return accuracy, log loss, Brier score and seconds of each method on one split."""
    X, y, test_X, test_y = data
    x, labels, test_x = torch.tensor(X), torch.tensor(y), torch.tensor(test_X)
    found: dict[str, tuple[float, ...]] = {}
    options: dict[str, Any] = {"activation": activation, "normalize_X": False, "random_state": 0, "ard_weights": 1.0}
    first = PropKernelClassifier(theory="infinite_width", width=math.inf, **options).fit(X, y)
    options["hyperparameters"] = first.hyperparameters_

    def record(name: str, probability: Tensor, since: float) -> None:
        found[name] = (*scores(np.asarray(probability), test_y), time.process_time() - since)

    for name, width in (("infinite width", math.inf), (f"N = {WIDTH:g}, saddle", WIDTH)):
        clock = time.process_time()
        model = PropKernelClassifier(theory="saddle", width=width, **options).fit(X, y)
        record(f"{name}, largest", torch.tensor(model.predict_proba(test_X)), clock)
        _, probability = softmax_of_outputs(model.fits_[0], labels, test_x)
        record(f"{name}, softmax, left-out", probability, clock)

    kernel = model.fits_[0].problem.model.covar_module
    with torch.no_grad():
        train, cross = kernel(x).to_dense(), kernel(x, test_x).to_dense()
        prior = kernel(test_x, diag=True)
    clock, candidates = time.process_time(), []
    for amplitude in AMPLITUDES:
        law = LaplaceSoftmax(amplitude * train, labels)
        both = law.probabilities(amplitude * cross, amplitude * prior), law.mean(amplitude * cross).softmax(-1)
        candidates.append((law.log_evidence, *both))
    record("infinite width, softmax, Laplace, s by evidence", max(candidates, key=lambda c: c[0])[1], clock)
    for index, name in ((1, "Laplace"), (2, "mode")):
        best = min((each[index] for each in candidates), key=lambda found: scores(found.numpy(), test_y)[1])
        record(f"infinite width, softmax, {name}, best s", best, clock)

    clock = time.process_time()
    model = dirichlet(first, activation, WIDTH, X, y)
    fit_order_parameters(model, warn=False)
    with torch.no_grad():
        posterior = model.eval()(test_x)
        probability = averaged(posterior.mean.mT, torch.diag_embed(posterior.variance.clamp_min(0.0).mT), 1.0)
    record(f"N = {WIDTH:g}, Dirichlet, a batch of kernels", probability, clock)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit everything on every split, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = default_folder()
    folder = folder.parent if folder.name == "uci" else folder
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--data", type=Path, default=folder, help="default: $PROPKERNEL_DATA")
    parser.add_argument("--no-mnist", action="store_true", help="digits alone")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "softmax_classes.md")
    options = parser.parse_args(arguments)
    sets: dict[str, list[Sequence[np.ndarray]]] = {"digits": [split(seed) for seed in range(options.splits)]}
    if not options.no_mnist:
        sets["MNIST"] = [[part.numpy() for part in load(options.data, 500, 2000)]]
    cells = []
    for name, splits in sets.items():
        for activation in ("erf", "relu"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PropKernelWarning)  # what is reliable here is what is measured
                found = [rows(data, activation) for data in splits]
            for method in found[0]:
                accuracy, loss, brier, seconds = np.array([each[method] for each in found]).mean(0)
                cells.append(
                    [
                        f"{name}, {activation}",
                        method,
                        f"{accuracy:.1f}",
                        f"{loss:.4f}",
                        f"{brier:.4f}",
                        f"{seconds:.2g}",
                    ]
                )
                print(*cells[-1], sep=" | ", flush=True)
    lines = table(("data", "method", "accuracy %", "log loss", "Brier", "CPU s"), cells)
    options.markdown.write_text(
        "# A softmax over the outputs\n\n    python examples/benchmarks/softmax_classes.py\n\n"
        f"{versions()}. Means over {options.splits} splits of 400 rows of digits, and one of 500 images of MNIST. "
        "The head of `softmax_classes.py` says more.\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
