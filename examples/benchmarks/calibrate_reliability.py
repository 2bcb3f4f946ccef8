"""How well the reliability score orders sampled networks by the error of the saddle point's prediction.

    python examples/benchmarks/calibrate_reliability.py DIR [--uci UCI] > examples/benchmarks/results/reliability.md

DIR holds ``finite_networks.json`` and its arrays (format: ``examples/compare_with_sampled_networks.py``). The error of
a case is |predicted / measured - 1| of the test error, outer composition. The score sees the training data alone.

Tables: (1) rank correlation with the error, area under the curve (AUC) for errors above 5 %, and what a threshold
chosen on all other families of data sets catches in the one left out, for the score and for trivial ones; (2) errors
by range of the score, which the package quotes; (3) every case; with ``--uci`` (4) small regression problems that
played no part in the choice of the score, sampled on the spot (minutes). UCI holds NAME/data.csv.gz, target last.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when the libraries load

import gpytorch  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.stats import rankdata  # noqa: E402

from torch_propkernel import (  # noqa: E402
    NetworkGP,
    PropKernelWarning,
    RenormalizedNNGPKernel,
    fit_order_parameters,
    generalization_error,
)
from torch_propkernel.actions import draw_pre_activations  # noqa: E402
from torch_propkernel.activations import get_activation  # noqa: E402
from torch_propkernel.inference import Problem  # noqa: E402
from torch_propkernel.inference.last_layer import last_layer  # noqa: E402
from torch_propkernel.networks import FiniteNetwork, sample_posterior  # noqa: E402
from torch_propkernel.reliability.score import reliability_score  # noqa: E402

BAD = 0.05
ENDS = (0.2, 0.5)
FAMILIES = ("digits", "diabetes", "breast_cancer", "teacher", "random")
SEEDS = 5
FRESH = [
    ("yacht", "relu", 20, 0.02),
    ("yacht", "erf", 20, 0.1),
    ("energy", "relu", 20, 0.1),
    ("concrete", "erf", 20, 0.1),
    ("energy", "erf", 20, 0.05),
    ("concrete", "relu", 20, 0.02),
    ("yacht", "relu", 50, 0.01),
    ("energy", "relu", 50, 0.02),
    ("concrete", "relu", 20, 0.1),
]


def family(case: dict) -> str:
    """Name of the data, without the variant."""
    return next(
        f for f in ("digits", "diabetes", "breast_cancer", "teacher", "random") if case["dataset"].startswith(f)
    )


def build(x, y, activation: str, widths: list, temperature: float, precisions: list) -> NetworkGP:
    """Model of a network without biases."""
    variances = [1.0 / value for value in precisions]
    kernel = RenormalizedNNGPKernel(get_activation(activation), list(widths), weight_variance=variances)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    likelihood.noise = temperature
    return NetworkGP(x, y, likelihood, kernel)


def sample_fresh(folder: Path, points: int = 50, test: int = 100) -> None:
    """Print table 4: 50 random rows standardized, 100 test rows, all precisions one."""
    print("\n| data | network | T | infinite width | saddle point | standard error | score | converged |")
    print("|---|---|---|---|---|---|---|---|")
    for name, activation, width, temperature in FRESH:
        table = np.loadtxt(folder / name / "data.csv.gz", delimiter=",")
        table = torch.tensor(table[np.random.default_rng(1).permutation(len(table))[: points + test]])
        scale = table[:points].std(0)
        table = (table - table[:points].mean(0)) / torch.where(scale > 0, scale, 1.0)
        (x, test_x), (y, test_y) = table[:, :-1].split([points, test]), table[:, -1].split([points, test])
        model = build(x, y, activation, [width], temperature, [1.0, 1.0])
        score = fit_order_parameters(model, warn=False).reliability.score
        error = generalization_error(model, test_x, test_y)
        network = FiniteNetwork(get_activation(activation), input_dim=x.shape[-1], width=width, dtype=torch.float64)
        sampled = sample_posterior(
            network, x, y, temperature, test_x=test_x, test_y=test_y, num_samples=200, warmup=150
        )
        measured = sampled.test_error.mean.item()
        infinite, saddle = (
            f"{100 * (value.mean_total.item() / measured - 1):+.1f} %" for value in (error.infinite_width, error)
        )
        noise = 100 * sampled.test_error.standard_error.item() / measured
        print(
            f"| {name}, P = {points} | {activation} {width} | {temperature} | {infinite} | {saddle} | {noise:.1f} % | "
            f"{score:.2g} | {'yes' if sampled.converged else 'no'} |",
            flush=True,
        )


def measure(case: dict, folder: Path) -> dict:
    """Error of the saddle point's prediction and all scores of one case."""
    with np.load(folder / case["arrays"]) as arrays:
        x, y, test_x, test_y = (torch.as_tensor(arrays[k], dtype=torch.float64) for k in ("X", "y", "Xt", "yt"))
    model = build(x, y, case["activation"], case["widths"], case["temperature"], case["precisions"])
    solution = fit_order_parameters(model, warn=False)
    measured = case["measured"]["mse"]
    error = abs(generalization_error(model, test_x, test_y).mean_total.item() / measured["mean"] - 1.0)
    parts = Problem.of(model)
    scores = [reliability_score(parts, solution.order_parameter, seed=seed).item() for seed in range(SEEDS)]
    saturating = case["activation"] == "erf"
    directions, alpha = solution.reliability.participation_ratio, solution.reliability.alpha
    regime = saturating and (directions < 25 or (alpha >= 3 and case["temperature"] <= 0.1))
    return {
        "case": case,
        "family": family(case),
        "error": error,
        "standard_error": measured["se"] / measured["mean"],
        "scores": {
            "score (seed 0)": scores[0],
            **{f"score (seed {seed})": scores[seed] for seed in range(1, SEEDS)},
            "kurtosis (a^T K a/N)^2": kurtosis(parts, solution.order_parameter),
            "saturating, and few directions or cold with alpha >= 3": float(regime),
            "1/participation ratio": 1.0 / directions,
            "alpha = P/N": alpha,
            "1/N": 1.0 / min(case["widths"]),
            "saturating activation": float(saturating),
        },
    }


@torch.no_grad()
def kurtosis(parts, order_parameter) -> float:
    """Excess kurtosis of phi.a over prior units, in units of three, times (a^T K a/N)^2."""
    layer = last_layer(parts, parts.inputs)
    units = layer.scale.sqrt() * layer.activation(draw_pre_activations(layer.covariance, 4096)[0])
    covariance = order_parameter.prod() * parts.unit_covariance + parts.noise_covariance(layer.covariance)
    b = units @ torch.linalg.solve(covariance, parts.residuals())
    power = b.square().mean()
    width = parts.kernel.width[..., -1].item()
    return abs((b**4).mean().item() / (3.0 * power.item() ** 2) - 1.0) * (power.item() / width) ** 2


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def area(score: np.ndarray, bad: np.ndarray) -> float:
    """Probability that a bad case has the higher score than a good one."""
    gap = score[bad][:, None] - score[~bad][None, :]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def threshold(score: np.ndarray, bad: np.ndarray) -> float:
    """Threshold of the largest (share caught - share of false alarms), half way to the next case below."""
    values = np.unique(score)
    middles = np.concatenate([[values[0]], 0.5 * (values[1:] + values[:-1])])
    gains = [np.mean(score[bad] >= t) - np.mean(score[~bad] >= t) for t in middles]
    return float(middles[int(np.argmax(gains))])


def left_out(score: np.ndarray, bad: np.ndarray, families: np.ndarray) -> tuple[int, int]:
    """Bad cases caught and false alarms, with the threshold from the other families."""
    alarm = np.zeros(len(score), dtype=bool)
    for name in np.unique(families):
        out = families == name
        alarm[out] = score[out] >= threshold(score[~out], bad[~out])
    return int(np.sum(alarm & bad)), int(np.sum(alarm & ~bad))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uci", type=Path)
    options = parser.parse_args()
    folder = options.folder
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PropKernelWarning)
    rows = [measure(case, folder) for case in json.loads((folder / "finite_networks.json").read_text())]
    error, families = np.array([r["error"] for r in rows]), np.array([r["family"] for r in rows])
    bad, one = error > BAD, np.array([len(r["case"]["widths"]) == 1 for r in rows])
    noise = [r["standard_error"] for r in rows]
    print("# Calibration of the reliability score\n")
    print("`python examples/benchmarks/calibrate_reliability.py DIR --uci UCI`\n")
    print(
        f"{len(rows)} sampled networks, {one.sum()} with one hidden layer; {bad.sum()} with an error above "
        f"{100 * BAD:.0f} %. The measured errors have relative standard errors of {100 * min(noise):.2f} to "
        f"{100 * max(noise):.2f} % (median {100 * np.median(noise):.2f} %): differences between errors below about 0.5 "
        "% are sampling noise, and so is the order of the best cases; none of the bad ones is.\n"
    )
    print("| score | rank correlation | one layer | AUC | caught / bad, family left out | false alarms / good |")
    print("|---|---|---|---|---|---|")
    for name in rows[0]["scores"]:
        score = np.array([r["scores"][name] for r in rows])
        caught, false = left_out(score, bad, families)
        print(
            f"| {name} | {rank_correlation(score, error):.2f} | {rank_correlation(score[one], error[one]):.2f} "
            f"| {area(score, bad):.2f} | {caught}/{bad.sum()} | {false}/{(~bad).sum()} |"
        )
    score = np.array([r["scores"]["score (seed 0)"] for r in rows])
    print(f"\nThreshold from all families: {threshold(score, bad):.3f}.\n")
    for value in (0.15, 0.2, 0.25, 0.3, 0.5):
        alarm = score >= value
        print(f"- from {value}: {np.sum(alarm & bad)} of {bad.sum()} caught, {np.sum(alarm & ~bad)} false alarms")
    print("\n| score | cases | median error | 90th percentile | worst |\n|---|---|---|---|---|")
    edges = [0.0, *ENDS, np.inf]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = error[(score >= low) & (score < high)]
        print(
            f"| {low} to {high} | {len(inside)} | {100 * np.median(inside):.2g} % | "
            f"{100 * np.percentile(inside, 90):.2g} % | {100 * inside.max():.3g} % |"
        )
    print("\n| case | data | network | T | error | standard error | score |\n|---|---|---|---|---|---|---|")
    for r in sorted(rows, key=lambda r: r["scores"]["score (seed 0)"]):
        case = r["case"]
        network = f"{case['activation']} {', '.join(map(str, case['widths']))}"
        print(
            f"| {case['id']} | {case['dataset']}, P = {case['P']} | {network} | {case['temperature']} | "
            f"{100 * r['error']:.2f} % | {100 * r['standard_error']:.2f} % | {r['scores']['score (seed 0)']:.3g} |"
        )
    if options.uci is not None:
        print("\nNot used for any choice: UCI sets (few directions), (predicted / measured - 1) of the test error.")
        sample_fresh(options.uci)


if __name__ == "__main__":
    main()
