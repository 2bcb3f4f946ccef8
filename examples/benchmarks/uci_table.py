"""Test error and log predictive density of finite and infinite relu networks and their baselines on UCI sets.

    python examples/benchmarks/uci_table.py [--data DIR] [--sets yacht energy concrete] [--splits 10]

One command from data to table: fits what is missing, with a progress bar, and writes ``results/uci_table.md`` beside
this script. Each finished fit is appended to a JSON-lines file (``--json``), so that an interrupted run continues. DIR
holds a folder for each set, in the format that ``_uci.py`` describes. One core is enough: set
OMP_NUM_THREADS=1.

All models get the same treatment: inputs and targets standardized on the training rows, a zero mean, hyperparameters by
:func:`torch_propkernel.tuning.fit_hyperparameters` (the best of two starts) on the training rows. Networks have one
hidden layer (``--depth``) with biases, weight variances one; T and the ratio b / w are trained in all of them:

- ``infinite``: the infinitely wide network at its prior scale;
- ``saddle``, ``mixture``: width N (``--width``) at the prior scale, the order parameter at the saddle of the action, or
  integrated, in the evidence and in the predictions;
- ``scale``: the infinite width with a trained scale of its kernel, ScaleKernel(NNGPKernel). This is the baseline: a
  finite width moves the scale, and here it is free;
- ``mixture-scale``: width N, integrated, and the scale trained too;
- ``student-t``: a Student's t process of the kernel of ``scale``, its degrees of freedom trained;
- ``...-ard``: the same with a trained relevance of each input;
- ``matern-ard``: Matern-5/2 with ARD and a trained scale, no priors.

To save time, hyperparameters are fitted on at most 500 training rows, drawn at random (seed: the split); predictions
use all training rows. Of pol and kin40k 2,000 training rows and 1,000 test rows of each split are
drawn. Fits of the integral start where the saddle's (or the free scale's) ended, those of Student's t likewise. Splits
share training rows: standard errors over splits are too small rather than too large.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import torch
from _uci import (
    Cut,
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
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor
from tqdm import tqdm

from torch_propkernel import (
    FiniteWidthLikelihood,
    NetworkGP,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    StudentTProcessLikelihood,
)
from torch_propkernel.distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
from torch_propkernel.models import NetworkFiniteWidthProcess, NetworkStudentTProcess
from torch_propkernel.tuning import fit_hyperparameters

FIXED_SCALE = ("infinite", "saddle", "mixture")
PLAIN = (*FIXED_SCALE, "scale", "mixture-scale", "student-t")
MODELS = (*PLAIN, *(f"{name}-ard" for name in PLAIN), "matern-ard")
START_TEMPERATURE = 0.1
STARTS = 2


LARGE = Cut(train=2000, test=1000, fit=500)
CUTS = {"energy": Cut(fit=500), "concrete": Cut(fit=500), "pol": LARGE, "kin40k": LARGE}
# Fits that start where a cheaper one ended, and there only.
WARM = {"mixture": "saddle", "mixture-scale": "scale", "student-t": "scale"}


def build(name: str, x: Tensor, y: Tensor, depth: int, width: float) -> tuple[Any, tuple[str, ...]]:
    """The model of a name, at the start of its fit, and what trains in it."""
    base, ard = name.removesuffix("-ard"), x.shape[-1] if name.endswith("-ard") else None
    if base == "matern":
        kernel: Any = ScaleKernel(MaternKernel(ard_num_dims=ard))
        return NetworkGP(x, y, FiniteWidthLikelihood(), kernel), ("temperature", "scale", "lengthscale")
    train: tuple[str, ...] = ("temperature", "bias_ratio", *(("ard",) if ard else ()))
    if base not in FIXED_SCALE:
        train = (*train, "scale")
    if base in ("scale", "student-t"):
        kernel = NNGPKernel(ReLU(), depth, bias_variance=1.0, ard_num_dims=ard)
        kernel.raw_readout_variance.requires_grad_(False)
        kernel = ScaleKernel(kernel)
        kernel.outputscale = 1.0
    else:
        widths = [math.inf if base == "infinite" else width] * depth
        kernel = RenormalizedNNGPKernel(ReLU(), widths, bias_variance=1.0, ard_num_dims=ard)
    if base == "student-t":
        return NetworkStudentTProcess(x, y, StudentTProcessLikelihood(noise_constraint=Positive()), kernel), (
            *train,
            "deg_free",
        )
    model = NetworkGP if base == "scale" else NetworkFiniteWidthProcess
    return model(x, y, FiniteWidthLikelihood(), kernel), train


def log_density(law: Any, y: Tensor) -> Tensor:
    """Log density of each target on its own."""
    if isinstance(law, ScaleMixtureMultivariateNormal):
        return law.marginal_log_prob(y)
    if isinstance(law, MultivariateStudentT):
        scale = (law.variance * (law.df - 2.0) / law.df).sqrt()
        return torch.distributions.StudentT(law.df, law.mean, scale).log_prob(y)
    return torch.distributions.Normal(law.mean, law.variance.sqrt()).log_prob(y)


def start_at(model: Any, values: dict[str, Sequence[float]]) -> None:
    """Set a network to the values that another fit found."""
    kernel = model.covar_module
    network = kernel.base_kernel if isinstance(kernel, ScaleKernel) else kernel
    model.likelihood.noise = values["temperature"][0]
    network.bias_variance = torch.tensor(values["bias_ratio"])  # weight variances are one
    if "ard" in values:
        network.ard_weights = torch.tensor(values["ard"])
    if "scale" in values:
        if network is kernel:
            network.readout_variance = values["scale"][0]
        else:
            kernel.outputscale = values["scale"][0]


def fit(
    folder: Path, split: int, name: str, depth: int, width: float, cut: Cut, start: dict[str, Any] | None
) -> dict[str, Any]:
    """Fit one model on one split, from a finished fit if given, and measure its predictions in the target's units."""
    x, y, x_test, y_test, size = standardize(*load(folder, split, cut))
    model, train = build(name, x[: cut.fit], y[: cut.fit], depth, width)
    model.likelihood.noise = START_TEMPERATURE
    if start is not None:
        start_at(model, start["values"])
    theory = "saddle" if name.startswith("saddle") else "mixture"
    clock = time.process_time()
    starts = STARTS if start is None else 1
    found = fit_hyperparameters(model, train=train, theory=theory, throw=False, warn=False, starts=starts)
    seconds = time.process_time() - clock
    if len(x) > cut.fit:
        model.set_train_data(x, y, strict=False)
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A not p.d.")  # jitter, of fits at their smallest noise
        if isinstance(model, NetworkFiniteWidthProcess):
            latent = model.predict(x_test, theory, joint=False)
        else:
            latent = model(x_test)
        law = model.likelihood(latent)
        density, mean = log_density(law, y_test), law.mean
    return {
        "set": folder.name,
        "split": split,
        "model": name,
        "depth": depth,
        "width": width,
        "rows": [min(len(x), cut.fit), len(x), len(y_test)],
        "rmse": float((y_test - mean).square().mean().sqrt()) * size,
        "nlpd": math.log(size) - float(density.mean()),
        "log_evidence": found.log_evidence,
        "values": found.values,
        "converged": found.converged,
        "at_bound": found.at_bound,
        "starts": found.starts,
        "seconds": seconds,
    }


def baseline_of(name: str) -> str:
    """The free scale with the same inputs' treatment."""
    return "scale-ard" if name.endswith("-ard") else "scale"


class Measured:
    """All records, paired by split."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.by: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
        for record in records:
            self.by.setdefault(record["set"], {}).setdefault(record["model"], {})[record["split"]] = record

    def differences(self, data: str, name: str, other: str, key: str) -> list[float]:
        models = self.by[data]
        pairs = [(r, models.get(other, {}).get(split)) for split, r in models.get(name, {}).items()]
        return [r[key] - s[key] for r, s in pairs if s is not None]

    def count(self, name: str, other: str) -> str:
        """One sentence: how often a model is better, tied, worse than another, by set."""
        parts = []
        for key, title in (("rmse", "RMSE"), ("nlpd", "log density")):
            found: dict[str, list[str]] = {}
            for data in self.by:
                values = self.differences(data, name, other, key)
                if values:
                    found.setdefault(verdict(values), []).append(data)
            text = ", ".join(f"{kind} on {' and '.join(sets)}" for kind, sets in found.items())
            parts.append(f"{title}: {text}" if text else "")
        return "; ".join(part for part in parts if part)


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Tables of all sets and what they say."""
    measured, lines = Measured(records), []
    for data, models in measured.by.items():
        any_record = next(iter(next(iter(models.values())).values()))
        splits = max(len(by_split) for by_split in models.values())
        fitted, train, test = any_record["rows"]
        lines += ["", f"### {data}: {splits} splits, {train} training rows (fits on {fitted}), {test} test rows", ""]
        rows = []
        for name in (m for m in MODELS if m in models):
            values = list(models[name].values())
            cells: list[Any] = [name, len(values)]
            for key in ("rmse", "nlpd"):
                cells.append(show([v[key] for v in values], ".4g"))
                if name == baseline_of(name):
                    cells.append("baseline")
                    continue
                pairs = measured.differences(data, name, baseline_of(name), key)
                cells.append(f"{show(pairs, '+.2g')} {verdict(pairs)}" if pairs else "-")
            noise = np.median([v["values"]["temperature"][0] for v in values])
            scale = np.median([v["values"].get("scale", [1.0])[0] for v in values])
            flags = sum(not v["converged"] for v in values), sum(bool(v["at_bound"]) for v in values)
            cells += [f"{np.median([v['log_evidence'] for v in values]):.1f}", f"{noise:.2g}", f"{scale:.3g}", *flags]
            rows.append([*cells, f"{np.median([v['seconds'] for v in values]):.1f}"])
        lines += table(
            ("model", "splits", "RMSE", "minus free scale", "NLPD", "minus free scale", "log evidence", "T", "scale")
            + ("not converged", "at a bound", "CPU s"),
            rows,
        )
    lines += ["", "## What the table says", ""]
    questions = [
        ("mixture", "infinite", "Finite width (integrated) against infinite width, both at the prior scale"),
        ("mixture", "scale", "Finite width at the prior scale against the free scale"),
        ("mixture-scale", "scale", "Finite width with a free scale against the free scale"),
        ("saddle", "mixture", "Saddle point against the integral"),
        ("student-t", "scale", "Student's t process against the GP of the same kernel"),
    ]
    for name, other, title in questions:
        for suffix in ("", "-ard"):
            if text := measured.count(name + suffix, other + suffix):
                lines.append(f"- {title}{', with ARD' if suffix else ''}: {text}.")
    if text := measured.count("matern-ard", "scale-ard"):
        lines.append(f"- Matern-5/2 with ARD against the free scale with ARD: {text}.")
    wins = [
        f"{data} ({title})"
        for data, models in measured.by.items()
        for key, title in (("rmse", "RMSE"), ("nlpd", "log density"))
        for name in ("saddle", "mixture", "mixture-scale")
        for suffix in ("", "-ard")
        if name + suffix in models
        and verdict(measured.differences(data, name + suffix, "scale" + suffix, key) or [0.0]) == "better"
    ]
    lines.append(
        f"- A finite width is ahead of the free scale by two standard errors on: {', '.join(dict.fromkeys(wins))}."
        if wins
        else "- No finite width is ahead of the free scale by two standard errors, on any set, in RMSE or log density."
    )
    return "\n".join(lines).strip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    here = Path(__file__).resolve()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--sets", nargs="+", default=["yacht", "energy", "concrete"])
    parser.add_argument("--splits", type=int, default=10, help="the first ones")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--width", type=float, default=100.0)
    parser.add_argument("--json", type=Path, default=Path("uci_table.jsonl"), help="finished fits, appended to")
    parser.add_argument("--markdown", type=Path, default=here.parent / "results" / "uci_table.md")
    options = parser.parse_args(arguments)
    cuts = {name: CUTS.get(name, Cut()) for name in options.sets}
    jobs = [
        (name, split, model) for name in options.sets for split in range(options.splits) for model in options.models
    ]
    finished: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in read_records(options.json):
        if (record["depth"], record["width"]) == (options.depth, options.width):
            finished[record["set"], record["split"], record["model"]] = record
    with double_precision():
        for job in tqdm([j for j in jobs if j not in finished], desc="fits", disable=None, file=sys.stderr):
            base, ard = job[2].removesuffix("-ard"), "-ard" if job[2].endswith("-ard") else ""
            start = finished.get((*job[:2], WARM.get(base, "none") + ard))
            finished[job] = fit(options.data / job[0], *job[1:], options.depth, options.width, cuts[job[0]], start)
            append_record(options.json, finished[job])
            if job[2] == options.models[-1]:  # a split is complete: an interrupted run leaves a table too
                write(options, finished)
    print(write(options, finished))


def write(options: argparse.Namespace, finished: dict[tuple[Any, ...], dict[str, Any]]) -> str:
    """Write the Markdown file of all records of the run; return the tables."""
    chosen = [r for r in finished.values() if r["set"] in options.sets and r["model"] in options.models]
    text = tables(chosen)
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(
        "# Finite and infinite width on UCI sets\n\n"
        f"    python examples/benchmarks/uci_table.py --sets {' '.join(options.sets)} --splits {options.splits} "
        f"--depth {options.depth} --width {options.width:g}\n\n"
        f"{versions()}. Relu, {options.depth} hidden layer(s), width "
        f"{options.width:g}. RMSE in the target's units, NLPD the mean negative log predictive density of a noisy test "
        "target in these units; mean +- standard error over splits, differences paired by split: a tie is less than "
        "two standard errors. T and scale are medians, in standardized units, as is the log "
        "evidence (integrated over the scale for the mixture, at the saddle with its price in the action for the "
        "saddle; maximized over the hyperparameters in all). The head of "
        "`uci_table.py` says what each model is and how the large sets were cut down.\n\n" + text
    )
    return text


if __name__ == "__main__":
    main()
