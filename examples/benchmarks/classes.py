"""Ten classes of handwritten digits: one network with ten outputs, ten networks, and their probabilities.

    python examples/benchmarks/classes.py [--splits 5] [--markdown PAGE]

scikit-learn's digits (8 x 8 pixels), 400 training rows and the 1,397 others, random splits. One hidden layer; variances
and T by the evidence of infinite width on the training rows, one scale for all pixels. ``PropKernelClassifier`` with
``theory="saddle"`` is one network with an output for each class, whose probability is the share of posterior networks
in which that output is the largest; with the other theories it is one network for each class against the rest, with
shares of positive outputs divided by their sum. "infinite width, largest" has the first rule at infinite width: what
the rule does, and what the width does, are told apart. ``DirichletClassificationLikelihood`` is GPyTorch's own way,
with a batch of kernels (noise of its own, the same variances). Accuracy, mean negative log probability of the right
class, and Brier score (sum over classes). A few minutes on one core.
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
from _uci import table, versions
from gpytorch.likelihoods import DirichletClassificationLikelihood
from gpytorch.means import ConstantMean
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, fit_order_parameters
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.sklearn_support import PropKernelClassifier

ROWS, CLASSES, DRAWS = 400, 10, 1000
WIDTHS = (50.0, 500.0)
LABEL_VARIANCE = 4 * 0.1 * 0.9  # of labels +-1, of which one in ten is +1
RESULTS = Path(__file__).resolve().parent / "results"


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test rows, pixels with the mean and the deviation of all training pixels taken out."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    X, y = X[order], y[order]
    X = (X - X[:ROWS].mean()) / X[:ROWS].std()
    return X[:ROWS], y[:ROWS], X[ROWS:], y[ROWS:]


def scores(probability: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Accuracy in percent, mean negative log probability of the right class, Brier score."""
    right = 100.0 * float((probability.argmax(-1) == y).mean())
    loss = -float(np.log(np.maximum(probability[np.arange(len(y)), y], 1e-12)).mean())
    return right, loss, float(((probability - np.eye(CLASSES)[y]) ** 2).sum(-1).mean())


def dirichlet(first: PropKernelClassifier, activation: str, width: float, X: np.ndarray, y: np.ndarray) -> NetworkGP:
    """GPyTorch's classification by regression with the variances that were fitted on labels, one kernel a class."""
    prior = first.hyperparameters_
    likelihood = DirichletClassificationLikelihood(torch.tensor(y), alpha_epsilon=0.01, dtype=torch.float64)
    kernel = RenormalizedNNGPKernel(
        activation,
        torch.full((CLASSES, 1), width),
        weight_variance=prior.weight_variance,
        bias_variance=prior.bias_variance,
    )
    # Its targets are logarithms: the readout variance grows with their variance over that of the labels.
    targets = likelihood.transformed_targets
    kernel.readout_variance = kernel.readout_variance * float(targets.var()) / LABEL_VARIANCE
    mean = ConstantMean(batch_shape=torch.Size([CLASSES]))
    mean.initialize(constant=targets.mean(-1))
    return NetworkGP(torch.tensor(X), targets, likelihood, kernel, mean).double()


def rows(activation: str, seed: int) -> dict[str, tuple[float, ...]]:
    """The scores of all methods on one split, and CPU seconds."""
    X, y, test_X, test_y = split(seed)
    options: dict[str, Any] = {"activation": activation, "normalize_X": False, "random_state": 0, "ard_weights": 1.0}
    found: dict[str, tuple[float, ...]] = {}

    def record(name: str, predict: Any) -> Any:
        clock = time.process_time()
        model, probability = predict()
        found[name] = (*scores(probability, test_y), time.process_time() - clock)
        return model

    def estimator(**more: Any) -> Any:
        def predict() -> tuple[PropKernelClassifier, np.ndarray]:
            model = PropKernelClassifier(**(options | more)).fit(X, y)
            return model, model.predict_proba(test_X)

        return predict

    first = record("infinite width, one against the rest", estimator(theory="infinite_width", width=math.inf))
    options["hyperparameters"] = first.hyperparameters_
    record("infinite width, largest", estimator(theory="saddle", width=math.inf))
    for width in WIDTHS:
        record(f"N = {width:g}, mixture, one against the rest", estimator(theory="mixture", width=width))
        record(f"N = {width:g}, saddle, largest", estimator(theory="saddle", width=width))

    def sampled_softmax() -> tuple[NetworkGP, np.ndarray]:
        model = dirichlet(first, activation, WIDTHS[0], X, y)
        fit_order_parameters(model, warn=False)
        with torch.no_grad():
            posterior = model.eval()(torch.tensor(test_X))
            torch.manual_seed(0)
            normal = torch.randn(DRAWS, *posterior.mean.shape, dtype=torch.float64)
            drawn = posterior.mean + posterior.variance.clamp_min(0.0).sqrt() * normal
        return model, drawn.softmax(1).mean(0).mT.numpy()

    record(f"N = {WIDTHS[0]:g}, Dirichlet likelihood, a batch of kernels", sampled_softmax)
    if activation == "erf":
        for name, other in (
            ("logistic regression", LogisticRegression(max_iter=1000)),
            ("random forest", RandomForestClassifier(500, random_state=0)),
        ):
            record(name, lambda other=other: (other, other.fit(X, y).predict_proba(test_X)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit everything on every split, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--markdown", type=Path, default=RESULTS / "classes.md")
    options = parser.parse_args(arguments)
    cells = []
    for activation in ("erf", "relu"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PropKernelWarning)  # what is reliable here is what is measured
            found = [rows(activation, seed) for seed in range(options.splits)]
        for name in found[0]:
            values = np.array([each[name] for each in found])
            accuracy, loss, brier, seconds = (values[:, i] for i in range(4))
            known = name in ("logistic regression", "random forest")
            cells.append(
                [
                    "-" if known else activation,
                    name,
                    f"{accuracy.mean():.1f} ({accuracy.min():.1f} to {accuracy.max():.1f})",
                    f"{loss.mean():.4f} ({loss.min():.4f} to {loss.max():.4f})",
                    f"{brier.mean():.4f}",
                    f"{seconds.mean():.2g}",
                ]
            )
    lines = table(("activation", "method", "accuracy %", "log loss", "Brier", "CPU s"), cells)
    options.markdown.write_text(
        "# Ten classes of digits\n\n    python examples/benchmarks/classes.py\n\n"
        f"{versions()}. {options.splits} splits of {ROWS} training rows; means, and ranges over splits. The head of "
        "`classes.py` says more.\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
