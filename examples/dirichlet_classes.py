"""Classes by GPyTorch's Dirichlet likelihood, with one renormalized kernel for each class.

    python examples/dirichlet_classes.py [--rows 60] [--width 30]

``DirichletClassificationLikelihood`` turns class labels into targets and noise variances, one column for each class, so
that a batch of Gaussian processes answers in closed form. A batch of RenormalizedNNGPKernels is a drop-in: every class
has its own order parameter, solved at once, and class probabilities are averages of the softmax over draws. Infinite
width stands beside it. A network with one output for each class is another model: MultitaskNetworkGP.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from gpytorch.likelihoods import DirichletClassificationLikelihood
from gpytorch.means import ConstantMean

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, fit_order_parameters

CLASSES, NUM_TEST, DRAWS = 3, 400, 1000


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the plane, and the sector that each is in."""
    x = torch.randn(rows + NUM_TEST, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sector = torch.div(torch.atan2(x[:, 1], x[:, 0]), 2 * torch.pi / CLASSES, rounding_mode="floor")
    return x, sector.long() % CLASSES


def build(x: torch.Tensor, labels: torch.Tensor, width: float) -> NetworkGP:
    """Return one process for each class."""
    likelihood = DirichletClassificationLikelihood(labels, alpha_epsilon=0.01, dtype=x.dtype)
    kernel = RenormalizedNNGPKernel("relu", width=torch.full((CLASSES, 1), width), bias_variance=1.0)
    mean = ConstantMean(batch_shape=torch.Size([CLASSES]))
    mean.initialize(constant=likelihood.transformed_targets.mean(-1))
    return NetworkGP(x, likelihood.transformed_targets, likelihood, kernel, mean).double()


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, predict, and print accuracy and log loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60, help="training points")
    parser.add_argument("--width", type=float, default=30.0)
    options = parser.parse_args(arguments)
    x, labels = data(options.rows)
    model = build(x[: options.rows], labels[: options.rows], options.width)
    test_x, test_labels = x[options.rows :], labels[options.rows :]
    for name in ("infinite width", f"width {options.width:g}"):
        if name != "infinite width":
            fit_order_parameters(model, warn=False)  # writes q into the kernel, one number for each class
        torch.manual_seed(0)
        with torch.no_grad():
            probabilities = model.eval()(test_x).sample(torch.Size([DRAWS])).softmax(1).mean(0)
        right = (probabilities.argmax(0) == test_labels).double().mean().item()
        loss = -probabilities.gather(0, test_labels.unsqueeze(0)).log().mean().item()
        q = ", ".join(f"{value:.2f}" for value in model.covar_module.order_parameter.flatten().tolist())
        print(f"{name:15s} q {q}  accuracy {right:.3f}  log loss {loss:.3f}")


if __name__ == "__main__":
    main()
