"""Do evidence fits of NNGP kernels succeed on every split of real sets, and how well do they predict?

    python examples/benchmarks/uci_evidence_fits.py --data DIR --json fits.jsonl --markdown table.md

DIR holds NAME/data.csv.gz (no header, the last column is the target) and NAME/test_mask.csv.gz (a column for each
split, test rows are 1), as the splits of github.com/treforevans/uci_datasets can be exported. Each finished fit is
appended to the JSON-lines file; the same command continues an interrupted run and, when all is done, only prints the
tables. Part of a run: ``--sets yacht --splits 0 1 --models nngp-d1-ard matern-ard``. One core is enough: set
OMP_NUM_THREADS=1.

Every model is a BoTorch ``SingleTaskGP`` on standardized targets with a trained constant mean and the same Gaussian
noise, log-normal prior with median e^-4 and log-deviation 2, above 1e-6; it is fitted with one call of
``fit_gpytorch_mll`` and exact (Cholesky) algebra. ``--restarts N`` lets that call keep the best of N + 1 fits, the
others from draws of the priors (an option of BoTorch); the default is none:

- ``nngp-dL[-ard]``: ``NNGPKernel`` of depth L with its default priors, standardized inputs, without and with ARD;
  bias variances 30 in the first and 0.3 in the layers above at the start;
- ``matern-ard``, ``rbf-ard``: ``ScaleKernel`` (BoTorch's Gamma(2, 0.15) prior) over the Matern-5/2 or RBF kernel with
  ARD and BoTorch's dimension-scaled log-normal prior on lengthscales, inputs in the unit cube, for which it is meant;
- ``botorch-ibnn-dL``: BoTorch's ``InfiniteWidthBNNKernel`` (relu), as its documentation builds it, standardized inputs.

A fit counts as failed when it raises; every warning of any category, every attempt beyond the first and every
parameter within 1 % of a bound of its constraint (below 1e-6 where that bound is zero; noise included) is recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botorch
import gpytorch
import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.kernels import InfiniteWidthBNNKernel
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.closures import get_loss_closure_with_grads
from botorch.optim.core import OptimizationStatus
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor
from tqdm import tqdm

from torch_propkernel import NNGPKernel
from torch_propkernel.activations import get_activation

SETS = ("yacht", "energy", "concrete")
BASELINES = ("matern-ard", "rbf-ard")
NNGP = re.compile(r"nngp-d(\d+)(-ard)?")
IBNN = re.compile(r"botorch-ibnn-d(\d+)")
START_BIAS_VARIANCE = (30.0, 0.3)  # first layer, layers above
NEAR_ZERO = 1e-6


def load(folder: Path, split: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and targets of one split, train then test, in the data's units."""
    data = np.loadtxt(folder / "data.csv.gz", delimiter=",")
    test = np.loadtxt(folder / "test_mask.csv.gz", delimiter=",")[:, split] == 1
    x, y = torch.as_tensor(data[:, :-1]), torch.as_tensor(data[:, -1:])
    return x[~test], y[~test], x[test], y[test]


def scale_inputs(train: Tensor, test: Tensor, unit_cube: bool) -> tuple[Tensor, Tensor]:
    """Shift and scale by the training rows: zero mean and unit variance, or into the unit cube."""
    if unit_cube:
        shift, scale = train.amin(0), train.amax(0) - train.amin(0)
    else:
        shift, scale = train.mean(0), train.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (train - shift) / scale, (test - shift) / scale


def build_kernel(model: str, activation: str, dimension: int) -> tuple[Kernel, bool]:
    """The covariance module of a model name, and whether its inputs belong in the unit cube."""
    if match := NNGP.fullmatch(model):
        depth, (first, above) = int(match[1]), START_BIAS_VARIANCE
        biases = [first] + [above] * (depth - 1)
        ard = dimension if match[2] else None
        return NNGPKernel(get_activation(activation), depth, bias_variance=biases, ard_num_dims=ard), False
    if match := IBNN.fullmatch(model):
        return InfiniteWidthBNNKernel(int(match[1])), False
    if model not in BASELINES:
        known = "nngp-dL, nngp-dL-ard, botorch-ibnn-dL, matern-ard or rbf-ard"
        raise ValueError(f"--models: expected {known}, got {model}")
    base = get_covar_module_with_dim_scaled_prior(dimension, use_rbf_kernel=model == "rbf-ard")
    return ScaleKernel(base, outputscale_prior=GammaPrior(2.0, 0.15)), True


def build_likelihood() -> GaussianLikelihood:
    """Gaussian noise on a log scale: some targets are nearly noiseless, they would end at BoTorch's bound of 1e-4."""
    return GaussianLikelihood(
        noise_prior=LogNormalPrior(-4.0, 2.0),
        noise_constraint=GreaterThan(1e-6, transform=torch.exp, inv_transform=torch.log, initial_value=math.exp(-4.0)),
    )


def parameters(model: SingleTaskGP) -> dict[str, Any]:
    """Constrained values of all trained parameters, and what is derived from them."""
    values = {}
    for name, raw, constraint in model.named_parameters_and_constraints():
        if raw.requires_grad:
            value = raw if constraint is None else constraint.transform(raw)
            values[name.replace("raw_", "")] = value.detach().flatten().tolist()
    kernel = model.covar_module
    if isinstance(kernel, NNGPKernel):
        values["bias_ratio"] = (kernel.bias_variance / kernel.hidden_weight_variance).detach().flatten().tolist()
        if kernel.ard_num_dims is not None:
            values["ard_weights"] = kernel.ard_weights.detach().flatten().tolist()
    return values


def at_bound(model: SingleTaskGP) -> list[str]:
    """Parameters within 1 % of a finite bound; a bound at zero counts as met below 1e-6."""
    found = []
    for name, raw, constraint in model.named_parameters_and_constraints():
        if constraint is None or not raw.requires_grad:
            continue
        value = constraint.transform(raw).detach()
        for bound in (constraint.lower_bound, constraint.upper_bound):
            if bool(torch.isfinite(bound).all()):
                margin = torch.where(bound == 0, torch.full_like(bound, NEAR_ZERO), 0.01 * bound.abs())
                if bool(((value - bound).abs() <= margin).any()):
                    found.append(f"{name.replace('raw_', '')} = {value.flatten().tolist()} at {float(bound)}")
    return found


def fit(folder: Path, split: int, model_name: str, activation: str, restarts: int = 0) -> dict[str, Any]:
    """Fit one model on one split and record everything of interest."""
    x, y, x_test, y_test = load(folder, split)
    center, spread = y.mean(0), y.std(0)
    kernel, unit_cube = build_kernel(model_name, activation, x.shape[-1])
    x, x_test = scale_inputs(x, x_test, unit_cube)
    evaluations, attempts = [], []

    def optimizer(mll: ExactMarginalLogLikelihood, closure: None, **kwargs: Any) -> Any:
        """The default optimizer, counting."""
        evaluate = get_loss_closure_with_grads(mll, {n: p for n, p in mll.named_parameters() if p.requires_grad})

        def counted() -> Any:
            evaluations.append(None)
            return evaluate()

        attempts.append(None)  # also where it raises
        attempts[-1] = fit_gpytorch_mll_scipy(mll, closure=counted, **kwargs)
        return attempts[-1]

    record: dict[str, Any] = {"set": folder.name, "split": split, "model": model_name, "exception": None}
    if NNGP.fullmatch(model_name):
        record["activation"] = activation
    best_of = {"pick_best_of_all_attempts": True, "max_attempts": restarts + 1} if restarts else {}
    torch.manual_seed(0)  # of BoTorch's retries
    with ExitStack() as stack:
        stack.enter_context(gpytorch.settings.fast_computations(False, False, False))
        # BoTorch asks for inputs in the unit cube when a model is built; that is for its own default kernel.
        stack.enter_context(botorch.settings.validate_input_scaling(False))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        model = SingleTaskGP(
            x, (y - center) / spread, likelihood=build_likelihood(), covar_module=kernel, outcome_transform=None
        )
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        clock = time.perf_counter()
        try:
            fit_gpytorch_mll(mll, optimizer=optimizer, **best_of)
        except Exception as error:  # a benchmark of robustness counts failures and goes on
            record["exception"] = f"{type(error).__name__}: {error}"
            model.eval()
        record["seconds"] = time.perf_counter() - clock
        record["evaluations"] = len(evaluations)
        good = [a for a in attempts if a is not None and a.status != OptimizationStatus.FAILURE]
        best = min(good, key=lambda a: float(a.fval), default=None)
        record["attempts"] = 1 + len(attempts) - len(good)  # one, and those that had to be repeated or were left out
        record["message"] = best.message if best else ""
        record["log_posterior"] = -float(best.fval) * len(y) if best else math.nan
        record["parameters"] = parameters(model)
        record["at_bound"] = at_bound(model)
        try:
            with torch.no_grad():
                posterior = model.posterior(x_test, observation_noise=True)
                mean, variance = posterior.mean * spread + center, posterior.variance * spread.square()
            error = y_test - mean
            record["rmse"] = float(error.square().mean().sqrt())
            record["nlpd"] = float(0.5 * (error.square() / variance + (2 * math.pi * variance).log()).mean())
        except Exception as problem:
            record["exception"] = record["exception"] or f"prediction, {type(problem).__name__}: {problem}"
            record["rmse"] = record["nlpd"] = math.nan
    record["warnings"] = [f"{w.category.__name__}: {w.message}" for w in caught]
    return record


def label(record: dict[str, Any]) -> str:
    """Row name: the model and, for NNGP kernels, its activation."""
    return record["model"] if "activation" not in record else f"{record['activation']} {record['model']}"


def mean_and_error(values: list[float], digits: int = 3) -> str:
    """Mean and its standard error over splits."""
    if not values:
        return "-"
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.{digits}f} +- {error:.{digits}f}"


def tables(records: list[dict[str, Any]]) -> str:
    """Markdown of all finished fits: one table of robustness and error for each set, then the ranges of parameters."""
    lines: list[str] = []
    groups: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        groups[record["set"]][label(record)][record["split"]] = record
    header = (
        "model",
        "fits",
        "failed",
        "retried",
        "with warnings",
        "at bound",
        "RMSE",
        "RMSE - Matern-ARD",
        "NLPD",
        "largest bias ratio",
        "smallest noise",
        "evaluations",
        "seconds",
    )
    for name, models in groups.items():
        lines += ["", f"### {name}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        reference = models.get("matern-ard", {})
        for row, by_split in sorted(models.items(), key=lambda item: (item[0] in BASELINES, item[0])):
            fits = list(by_split.values())
            good = [f for f in fits if math.isfinite(f["rmse"])]
            paired = [f["rmse"] - reference[f["split"]]["rmse"] for f in good if f["split"] in reference]
            ratios = [r for f in fits for r in bias_ratios(f["parameters"])]
            noises = [n for f in fits for n in f["parameters"]["likelihood.noise_covar.noise"]]
            cells = (
                row,
                len(fits),
                sum(f["exception"] is not None for f in fits),
                sum(f["attempts"] > 1 for f in fits),
                sum(bool(f["warnings"]) for f in fits),
                sum(bool(f["at_bound"]) for f in fits),
                mean_and_error([f["rmse"] for f in good]),
                "0" if row == "matern-ard" else mean_and_error(paired),
                mean_and_error([f["nlpd"] for f in good]),
                f"{max(ratios):.2g}" if ratios else "-",
                f"{min(noises):.1e}",
                f"{np.median([f['evaluations'] for f in fits]):.0f}",
                f"{np.median([f['seconds'] for f in fits]):.1f}",
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    problems: Counter[str] = Counter()
    for record in records:
        for kind in ("warnings", "at_bound"):
            problems.update(f"{record['set']} {label(record)}: {text.splitlines()[0][:160]}" for text in record[kind])
        if record["exception"]:
            problems[f"{record['set']} {label(record)}: {record['exception'].splitlines()[0][:160]}"] += 1
    if problems:
        lines += ["", "Exceptions, warnings and bounds (times):", ""]
        lines += [f"- {text} ({count})" for text, count in sorted(problems.items())]
    return "\n".join(lines).strip() + "\n"


def bias_ratios(values: dict[str, list[float]]) -> list[float]:
    """Fitted b / w of a kernel with biases."""
    if "covar_module.bias_var" in values:
        return [values["covar_module.bias_var"][0] / values["covar_module.weight_var"][0]]
    return values.get("bias_ratio", [])


def main() -> int:
    """Run what is missing, print the tables; exit status 1 when an NNGP fit failed, warned or sits at a bound."""
    default = os.environ.get("PROPKERNEL_DATA", str(Path(__file__).resolve().parents[3] / "shared" / "data" / "uci"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(default), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 3], help="of the default --models")
    parser.add_argument("--activation", nargs="+", default=["relu"])
    parser.add_argument("--models", nargs="+", help="default: nngp-dL, nngp-dL-ard for all depths, matern-ard, rbf-ard")
    parser.add_argument("--restarts", type=int, default=0, help="use another --json file for each value")
    parser.add_argument("--json", type=Path, default=Path("uci_evidence_fits.jsonl"), help="finished fits, appended to")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    options = parser.parse_args()
    models = options.models or [
        *BASELINES,
        *(f"nngp-d{depth}{ard}" for depth in options.depths for ard in ("", "-ard")),
    ]
    torch.set_default_dtype(torch.float64)

    jobs = [
        (name, split, model, activation)
        for name in options.sets
        for model in models
        for activation in (options.activation if NNGP.fullmatch(model) else [None])
        for split in options.splits
    ]
    finished: dict[tuple[Any, ...], dict[str, Any]] = {}
    if options.json.exists():
        for line in options.json.read_text().splitlines():
            record = json.loads(line)
            finished[record["set"], record["split"], record["model"], record.get("activation")] = record
    for job in tqdm([job for job in jobs if job not in finished], desc="fits", disable=None, file=sys.stderr):
        name, split, model, activation = job
        finished[job] = fit(options.data / name, split, model, activation, options.restarts)
        with options.json.open("a") as file:
            file.write(json.dumps(finished[job]) + "\n")
    records = [finished[job] for job in jobs]
    text = tables(records)
    print(text)
    if options.markdown:
        shown = {key: getattr(options, key) for key in ("sets", "splits", "activation", "restarts")}
        command = [f"--{k} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in shown.items()]
        packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "gpytorch", "botorch", "scipy", "numpy"))
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(
            "# Evidence fits on UCI sets\n\n"
            f"    python examples/benchmarks/uci_evidence_fits.py {' '.join(command)} --models {' '.join(models)}\n\n"
            f"torch_propkernel {version('torch_propkernel')}, {packages}. RMSE in the target's units, NLPD the mean "
            "negative log predictive density of a test point in these units, both mean +- standard error over splits; "
            "differences are paired by split; evaluations and seconds are medians of one fit.\n\n" + text
        )
    return int(any(NNGP.fullmatch(r["model"]) and (r["exception"] or r["warnings"] or r["at_bound"]) for r in records))


if __name__ == "__main__":
    sys.exit(main())
