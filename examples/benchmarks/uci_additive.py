"""Additive networks: one small network for each input feature, with a fitted weight for each, on UCI sets.

    python examples/benchmarks/uci_additive.py [--sets NAME ...] [--splits 6] [--json FITS] [--markdown PAGE]

f(x) = sum_a f_a(x_a) with a network f_a of N erf units, one hidden layer, for each feature a: a
`BlockRenormalizedKernel` whose blocks are features. Units of their own and an odd activation make K_ab = 0 for a != b,
so Q is diagonal, and Q_aa says how much the readout uses feature a. Inputs and targets are in the units of the training
rows.

    additive              infinite width, Q = 1; T, weight and bias variance (shared by all features) by evidence, the
                          readout's prior variance 1 / B
    additive, free scale  the same with one free scale of the kernel
    additive, N = ...     the saddle point at width N with the parameters of "additive": nothing but Q is fitted
    free scales           T and a scale of each feature by evidence, the rest as "additive": what a fitted Q has to face
    full                  a fully connected network of all features at infinite width; T, variances, scale by evidence
    full, ARD             with a weight of each feature

Hyperparameters are fitted on at most 300 training rows, order parameters and predictions take 500. Five minutes on one
core.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _uci import (
    Cut,
    Standardized,
    append_record,
    default_folder,
    double_precision,
    load,
    read_records,
    show,
    standardize,
    table,
    verdict,
    versions,
)
from gpytorch.constraints import Positive
from gpytorch.kernels import AdditiveKernel, Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from linear_operator import to_dense
from torch import Tensor

from torch_propkernel import NetworkGP, NNGPKernel
from torch_propkernel.kernels import BlockKernel, BlockRenormalizedKernel
from torch_propkernel.theories import FittedTheory, InfiniteWidth, SaddlePoint
from torch_propkernel.tuning import fit_hyperparameters

HERE = Path(__file__).resolve().parent
CUT = Cut(train=500, fit=300)
WIDTHS = (100, 10)
MODELS = (
    "additive",
    "additive, free scale",
    *(f"additive, N = {n}" for n in WIDTHS),
    "free scales",
    "full",
    "full, ARD",
)
FEATURES = {
    "concrete": ("cement", "slag", "fly ash", "water", "plasticizer", "coarse", "fine", "age"),
    "energy": ("compactness", "surface", "wall", "roof", "height", "orientation", "glazing", "its place"),
    "yacht": ("buoyancy", "prismatic", "length-displ.", "beam-draught", "length-beam", "Froude number"),
}


class FeatureBlocks(BlockKernel):
    """One network for each feature, all with the prior of one kernel; K_ab = 0 for a != b."""

    def __init__(self, base_kernel: NNGPKernel, num_features: int) -> None:
        super().__init__()
        self.base_kernel, self.num_blocks = base_kernel, num_features

    def prepared(self, x: Tensor) -> Tensor:
        return x.mT.unsqueeze(-1)  # ... x B x n x 1

    def is_zero(self, a: int, b: int) -> bool:
        return a != b

    def covariances(self, pairs: Any, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        first, second = (list(index) for index in zip(*pairs, strict=True))
        return to_dense(self.base_kernel(z1[..., first, :, :], z2[..., second, :, :], diag=diag))


def fitted_to(x: Tensor, y: Tensor, kernel: Kernel, train: Sequence[str], temperature: float = 0.1) -> NetworkGP:
    """A model on all rows, with hyperparameters of the evidence of the first ones."""
    likelihood = GaussianLikelihood(noise_constraint=Positive())
    likelihood.noise = temperature
    model = NetworkGP(x[: CUT.fit], y[: CUT.fit], likelihood, kernel)
    fit_hyperparameters(model, train=train, throw=False, warn=False, starts=2)
    model.set_train_data(x, y, strict=False)
    return model


def network(num_inputs: int, readout_variance: float, ard: bool = False) -> NNGPKernel:
    """A network of one hidden layer of erf units; its readout variance does not train by itself."""
    kernel = NNGPKernel(
        "erf",
        weight_variance=[1.0, readout_variance],
        bias_variance=1.0,
        ard_num_dims=num_inputs if ard else None,
    )
    kernel.raw_readout_variance.requires_grad_(False)
    return kernel


def fits(x: Tensor, y: Tensor) -> Iterator[tuple[str, FittedTheory, list[float] | None]]:
    """Name, posterior, and weights of the features of every model."""
    size, shape = x.shape[-1], ("temperature", "bias_ratio", "weight_variance")
    blocks = FeatureBlocks(network(1, 1.0 / size), size)
    additive = fitted_to(x, y, blocks, shape)
    yield "additive", InfiniteWidth().fit(additive), None
    scaled = fitted_to(x, y, ScaleKernel(FeatureBlocks(network(1, 1.0 / size), size)), (*shape, "scale"))
    yield "additive, free scale", InfiniteWidth().fit(scaled), None
    for width in WIDTHS:
        model = NetworkGP(x, y, additive.likelihood, BlockRenormalizedKernel(blocks, float(width)))
        found = SaddlePoint().fit(model)
        yield f"additive, N = {width}", found, found.order_parameters["Q"].diagonal().tolist()
    parts = []
    for feature in range(size):
        part = NNGPKernel("erf", bias_variance=1.0, active_dims=[feature])
        part.weight_variance, part.bias_variance = blocks.base_kernel.weight_variance, blocks.base_kernel.bias_variance
        parts.append(ScaleKernel(part.requires_grad_(False)))
        parts[-1].outputscale = 1.0
    free = fitted_to(x, y, AdditiveKernel(*parts), ("temperature", "scale"), float(additive.likelihood.noise.detach()))
    yield "free scales", InfiniteWidth().fit(free), [float(part.outputscale.detach()) for part in parts]
    for ard in (False, True):
        kernel = ScaleKernel(network(size, 1.0, ard))
        kernel.outputscale = 1.0
        full = fitted_to(x, y, kernel, (*shape, "scale", *(["ard"] if ard else [])))
        yield "full, ARD" if ard else "full", InfiniteWidth().fit(full), None


def measure(folder: Path, split: int) -> list[dict[str, Any]]:
    """Errors of all models on one split, in the target's units."""
    rows: Standardized = standardize(*load(folder, split, CUT))
    records = []
    for name, fitted, weights in fits(rows.x, rows.y):
        mean, variance = fitted.predict(rows.test_x)
        noise = fitted.problem.model.likelihood.noise.detach()
        density = torch.distributions.Normal(mean, (variance + noise).sqrt()).log_prob(rows.test_y)
        records.append(
            {
                "set": folder.name,
                "split": split,
                "model": name,
                "rows": len(rows.y),
                "rmse": float((mean - rows.test_y).square().mean().sqrt()) * rows.unit,
                "nlpd": math.log(rows.unit) - float(density.mean()),
                "temperature": float(noise),
                "weights": weights,
            }
        )
    return records


def tables(records: Sequence[dict[str, Any]], sets: Sequence[str], splits: int) -> list[str]:
    """Errors, paired by split, and weights of the features."""
    lines: list[str] = []
    for data in sets:
        by = {(r["model"], r["split"]): r for r in records if r["set"] == data}
        rows = []
        for model in MODELS:
            cells: list[Any] = [model]
            for key, digits in (("rmse", ".3f"), ("nlpd", ".3f")):
                values = [by[model, split][key] for split in range(splits)]
                cells.append(show(values, digits))
                for other in ("additive", "free scales"):
                    differences = [v - by[other, split][key] for split, v in enumerate(values)]
                    cells.append("-" if model == other else f"{show(differences, '+.2g')} {verdict(differences)}")
            rows.append([*cells, f"{np.median([by[model, split]['temperature'] for split in range(splits)]):.2g}"])
        against = ("minus additive", "minus free scales")
        header = ("model", "RMSE", *against, "NLPD", *against, "T")
        lines += [f"## {data}: {splits} splits, {by[MODELS[0], 0]['rows']} training rows", "", *table(header, rows), ""]
        weighted = [model for model in MODELS if by[model, 0]["weights"] is not None]
        lines += [f"### {data}: weights of the features, Q_aa and free scales", ""]
        rows = [
            [name, *(show([by[model, split]["weights"][a] for split in range(splits)], ".3g") for model in weighted)]
            for a, name in enumerate(FEATURES[data])
        ]
        lines += [*table(("feature", *weighted), rows), ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--sets", nargs="+", default=list(FEATURES), choices=FEATURES)
    parser.add_argument("--splits", type=int, default=6, help="the first ones")
    parser.add_argument("--json", type=Path, default=Path("uci_additive.jsonl"), help="finished fits, appended to")
    parser.add_argument("--markdown", type=Path, default=HERE / "results" / "uci_additive.md")
    options = parser.parse_args(arguments)
    records = read_records(options.json)
    done = {(record["set"], record["split"]) for record in records if record["model"] == MODELS[-1]}
    with double_precision():
        for data, split in itertools.product(options.sets, range(options.splits)):
            if (data, split) not in done:
                for record in measure(options.data / data, split):
                    records.append(record)
                    append_record(options.json, record)
    text = "\n".join(tables(records, options.sets, options.splits))
    options.markdown.write_text(
        "# Additive networks on UCI sets\n\n"
        f"    python examples/benchmarks/uci_additive.py --splits {options.splits}\n\n"
        f"{versions()}. Erf, one hidden layer; at most {CUT.train} training rows, hyperparameters of at most "
        f"{CUT.fit}. RMSE in the target's units, NLPD the mean negative log predictive density of a noisy test target "
        "in these units; mean +- standard error over splits, differences paired by split: a tie is less than two "
        "standard errors. T is a median, in standardized units. The head of `uci_additive.py` says what each model "
        "is.\n\n" + text,
        encoding="utf-8",
    )
    print(text)


if __name__ == "__main__":
    main()
