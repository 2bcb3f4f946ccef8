"""How well calibrated are processes with a random scale on real data, against the GP that fits the scale?

    python examples/calibration.py --data DIR --json calibration.jsonl --markdown calibration.md --plot calibration.png

DIR holds the UCI sets as ``examples/benchmarks/uci_evidence_fits.py`` describes (default: $PROPKERNEL_DATA). Each
finished fit is appended to the JSON-lines file: the same command continues an interrupted run and, when all is done,
only prints the tables. Part of a run: ``--sets yacht --splits 0 1``. One core is enough: set OMP_NUM_THREADS=1.

Inputs and targets are standardized on the training rows. All networks are relu, of one hidden layer, with biases and
ARD; all models have a trained constant mean and noise with the same log-normal prior. They are fitted by evidence, with
the kernels' default priors: the better of two runs of L-BFGS-B of at most ``--evaluations`` evaluations, which start at
noise variances e^-4 and e^-8, since the evidence has several maxima (``--starts 1`` for the first only):

- ``GP, fixed scale``: infinite width, weight variance fixed at one, readout variance at ``--readout-variance`` (one);
- ``finite width``: the same prior at ``--width`` (default 50) hidden units, the scale of the kernel integrated in the
  evidence; its predictions as a mixture, as a Student's t and at the saddle. Fifty units are few enough (P / N from 5
  to 19) for the scale to move, and more than the about ten below which saddle and mixture differ visibly;
- ``GP, free scale``: infinite width with a trained readout variance. This is the fair baseline: a finite width changes
  the scale, and a GP can have any;
- ``Student's t process``: the same kernel as the baseline, degrees of freedom trained;
- ``Matern-5/2``: ARD and a trained scale, inputs in the unit cube (BoTorch's default priors are meant for it).

Measured on noisy test targets: coverage of central intervals, mean negative log predictive density and RMSE in the
target's units; means and standard errors over splits, and differences to the baseline paired by split. A difference of
less than two standard errors is a tie. Splits share training rows: standard errors are too small rather than too large.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

import gpytorch  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from botorch.optim.closures.core import ForwardBackwardClosure  # noqa: E402
from botorch.optim.fit import fit_gpytorch_mll_scipy  # noqa: E402
from gpytorch.distributions import MultivariateNormal  # noqa: E402
from gpytorch.mlls import ExactMarginalLogLikelihood  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402
from uci_evidence_fits import (  # noqa: E402
    SETS,
    START_BIAS_VARIANCE,
    build_kernel,
    build_likelihood,
    load,
    mean_and_error,
    scale_inputs,
)

from torch_propkernel import ReLU, RenormalizedNNGPKernel  # noqa: E402
from torch_propkernel.distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal  # noqa: E402
from torch_propkernel.likelihoods import StudentTProcessLikelihood  # noqa: E402
from torch_propkernel.likelihoods.finite_width_likelihood import FiniteWidthLikelihood  # noqa: E402
from torch_propkernel.mlls import StudentTMarginalLogLikelihood  # noqa: E402
from torch_propkernel.mlls.finite_width_marginal_log_likelihood import FiniteWidthMarginalLogLikelihood  # noqa: E402
from torch_propkernel.models import (
    FiniteWidthProcess,  # noqa: E402
    StudentTProcess,  # noqa: E402
)

START_NOISE = (math.exp(-4.0), math.exp(-8.0))
LEVELS = (0.5, 0.8, 0.95)
MODELS = ("gp-fixed", "finite", "gp-free", "student-t", "matern")
BASELINE = "gp-free"
NAMES = {
    "gp-fixed": "GP, fixed scale",
    "finite mixture": "finite width, mixture",
    "finite student_t": "finite width, Student's t",
    "finite saddle": "finite width, saddle",
    "gp-free": "GP, free scale (baseline)",
    "student-t": "Student's t process",
    "matern": "Matern-5/2, free scale",
}


class _Forward:
    """Constant mean and any kernel."""

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


class GP(_Forward, gpytorch.models.ExactGP):
    pass


class FiniteWidth(_Forward, FiniteWidthProcess):
    pass


class StudentT(_Forward, StudentTProcess):
    pass


def build(name: str, x: Tensor, y: Tensor, width: float, readout_variance: float) -> tuple[Any, Any]:
    """Model and objective of a name; the noise of all has the prior and constraint of the evidence benchmark."""
    dimension = x.shape[-1]
    noise = build_likelihood().noise_covar
    options = {"noise_prior": noise.noise_prior, "noise_constraint": noise.raw_noise_constraint}
    if name in ("gp-fixed", "finite"):
        bias, units = START_BIAS_VARIANCE[0], math.inf if name == "gp-fixed" else width
        weights = [1.0, readout_variance]
        kernel = RenormalizedNNGPKernel(
            ReLU(), units, weight_variance=weights, bias_variance=bias, ard_num_dims=dimension
        )
        kernel.raw_order_parameter.requires_grad_(False)  # one at infinite width, integrated at a finite one
    else:
        kernel, _ = build_kernel("matern-ard" if name == "matern" else "nngp-d1-ard", "relu", dimension)
    if name == "finite":
        model = FiniteWidth(x, y, FiniteWidthLikelihood(**options))
        objective = FiniteWidthMarginalLogLikelihood
    elif name == "student-t":
        model = StudentT(x, y, StudentTProcessLikelihood(**options))
        objective = StudentTMarginalLogLikelihood
    else:
        model = GP(x, y, build_likelihood())
        objective = ExactMarginalLogLikelihood
    model.mean_module, model.covar_module = gpytorch.means.ConstantMean(), kernel
    return model, objective(model.likelihood, model)


def measure(law: Any, y: Tensor, unit: float) -> dict[str, Any]:
    """Coverage, negative log density and squared error of predictive marginals, in units of ``unit``."""
    if isinstance(law, ScaleMixtureMultivariateNormal):
        level, log_density = law.cdf(y), law.marginal_log_prob(y)
    elif isinstance(law, MultivariateStudentT):
        scale = (law.variance * (law.df - 2.0) / law.df).sqrt()
        level, log_density = law.cdf(y), torch.distributions.StudentT(law.df, law.loc, scale).log_prob(y)
    else:
        normal = torch.distributions.Normal(law.mean, law.variance.sqrt())
        level, log_density = normal.cdf(y), normal.log_prob(y)
    return {
        "coverage": [float(((level - 0.5).abs() <= p / 2).double().mean()) for p in LEVELS],
        "nlpd": float(math.log(unit) - log_density.mean()),
        "rmse": float((y - law.mean).square().mean().sqrt() * unit),
    }


def fit(
    folder: Path, split: int, name: str, start: int, width: float, readout_variance: float, evaluations: int
) -> dict[str, Any]:
    """Fit one model on one split and measure its predictions."""
    x, y, x_test, y_test = load(folder, split)
    center, unit = y.mean(), float(y.std())
    x, x_test = scale_inputs(x, x_test, unit_cube=name == "matern")
    y, y_test = (y - center).squeeze(-1) / unit, (y_test - center).squeeze(-1) / unit
    model, objective = build(name, x, y, width, readout_variance)
    model.likelihood.noise = START_NOISE[start]
    clock = time.perf_counter()
    with gpytorch.settings.fast_computations(False, False, False):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*(L-BFGS|ITERATIONS|EVALUATIONS|maximum).*"
            )  # the limit is meant
            limits = {"maxiter": evaluations, "maxfun": evaluations}
            trained = {key: value for key, value in objective.named_parameters() if value.requires_grad}
            loss = ForwardBackwardClosure(lambda: -objective(model(x), y), trained)
            result = fit_gpytorch_mll_scipy(objective, parameters=trained, closure=loss, options=limits)
        seconds = time.perf_counter() - clock
        model.eval()
        with torch.no_grad():
            if name == "finite":
                laws = {f"finite {form}": model.predict(x_test, form) for form in ("saddle", "mixture")}
                laws["finite student_t"] = model.student_t(x_test)
                posterior = model.scale_posterior()
                facts = {"scale": float(posterior.mean), "deviation": float(posterior.variance.sqrt())}
                facts["distance"] = float(model.student_t_distance(x_test).max())
            else:
                laws, facts = {name: model(x_test)}, {}
            if name == "student-t":
                facts = {"deg_free": float(model.likelihood.deg_free), "df": float(laws[name].df)}
            if name in (BASELINE, "student-t"):
                facts["readout_variance"] = float(model.covar_module.readout_variance)
            facts["noise"] = float(model.likelihood.noise)
            forms = {key: measure(model.likelihood(law), y_test, unit) for key, law in laws.items()}
    return {
        "set": folder.name,
        "split": split,
        "model": name,
        "start": start,
        "width": width,
        "readout_variance": readout_variance,
        "evaluations": evaluations,
        "rows": len(y),
        "objective": -float(result.fval) * len(y),
        "seconds": seconds,
        "message": str(result.message),
        "facts": facts,
        "forms": forms,
    }


def verdict(difference: Sequence[float], digits: int = 3, lower: str = "better", higher: str = "worse") -> str:
    """Mean, standard error and meaning of paired differences; what does not show in the digits is no difference."""
    text = mean_and_error(list(difference), digits)
    if len(difference) < 4:  # too few for a standard error that decides
        return text
    mean, error = np.mean(difference), np.std(difference, ddof=1) / math.sqrt(len(difference))
    if max(abs(mean), error) < 0.5 * 10.0**-digits:
        return "same"
    return f"{text} {'tie' if abs(mean) < 2.0 * error else lower if mean < 0 else higher}"


def group(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Measurements by set, predictive and split."""
    groups: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for record in records:
        for form, values in record["forms"].items():
            groups.setdefault(record["set"], {}).setdefault(form, {})[record["split"]] = values
    return groups


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each set the measurements, differences to the baseline, and what was learned about the scale."""
    lines: list[str] = []
    for name, forms in group(records).items():
        own = [r for r in records if r["set"] == name]
        splits = sorted({r["split"] for r in own})
        lines += ["", f"### {name}: {len(splits)} splits, {own[0]['rows']} training rows", ""]
        shown = [form for form in NAMES if form in forms]
        rows = []
        for form in shown:
            values = list(forms[form].values())
            coverage = [mean_and_error([100 * v["coverage"][i] for v in values], 1) for i in range(len(LEVELS))]
            rows.append(
                [NAMES[form], *(mean_and_error([v[key] for v in values]) for key in ("nlpd", "rmse")), *coverage]
            )
        lines += table(("predictive", "NLPD", "RMSE", *(f"coverage {100 * p:.0f} %" for p in LEVELS)), rows)
        for title, reference, chosen in (
            ("minus baseline", BASELINE, [form for form in shown if form != BASELINE]),
            ("minus mixture", "finite mixture", ["finite student_t", "finite saddle"]),
        ):
            against, rows = forms.get(reference, {}), []
            for form in chosen:
                pairs = [(v, against[s]) for s, v in forms.get(form, {}).items() if s in against]
                if pairs:
                    coverage = [
                        verdict([100 * (v["coverage"][i] - w["coverage"][i]) for v, w in pairs], 1, "lower", "higher")
                        for i in range(len(LEVELS))
                    ]
                    rows.append(
                        [NAMES[form], *(verdict([v[k] - w[k] for v, w in pairs]) for k in ("nlpd", "rmse")), *coverage]
                    )
            if rows:
                lines += ["", *table((title, "NLPD", "RMSE", *(f"coverage {100 * p:.0f} %" for p in LEVELS)), rows)]
        lines += ["", "Medians over splits:", ""]
        for model in MODELS:
            fits = [r for r in own if r["model"] == model]
            if fits:
                facts = {key: np.median([r["facts"][key] for r in fits]) for key in fits[0]["facts"]}
                facts |= {key: np.median([r[key] for r in fits]) for key in ("objective", "seconds")}
                text = ", ".join(f"{FACTS[key]} {value:.4g}" for key, value in facts.items())
                stopped = sum("EXCEEDS" in r["message"] or "REACHED LIMIT" in r["message"].upper() for r in fits)
                gained = sum(r["gain"] > 1.0 for r in fits)
                lines.append(
                    f"- {model}: {text}; the second start was better by more than one nat in {gained}, the limit of "
                    f"evaluations was reached in {stopped} of {len(fits)} splits"
                )
    return "\n".join(lines).strip() + "\n"


FACTS = {
    "scale": "E[r|y]",
    "deviation": "deviation of r|y",
    "distance": "largest distance of cdfs of Student's t and mixture (latent)",
    "deg_free": "degrees of freedom",
    "df": "of the predictive",
    "readout_variance": "readout variance",
    "noise": "noise variance",
    "objective": "log evidence and priors",
    "seconds": "seconds of the fit",
}


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """NLPD against the baseline, and coverage minus its nominal level, for each set."""
    from matplotlib.figure import Figure

    from torch_propkernel.plotting import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILLION

    colors = dict(zip(NAMES, (GRAY, VERMILLION, ORANGE, PURPLE, "black", BLUE, GREEN), strict=True))
    colors["finite student_t"], colors["finite saddle"] = ORANGE, SKY
    groups = group(records)
    figure = Figure(figsize=(4.3 * len(groups) + 0.6, 7.6), layout="constrained")
    axes = figure.subplots(2, len(groups), squeeze=False)
    for column, (name, forms) in enumerate(groups.items()):
        top, bottom = axes[:, column]
        shown = [form for form in NAMES if form in forms]
        others = [form for form in shown if form != BASELINE]
        base = forms.get(BASELINE, {})
        for row, form in enumerate(others):
            differences = [v["nlpd"] - base[s]["nlpd"] for s, v in forms[form].items() if s in base]
            error = 2 * np.std(differences, ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
            top.errorbar(np.mean(differences), -row, xerr=error, color=colors[form], marker="o", capsize=3)
        top.axvline(0.0, color="black", linewidth=1.0, linestyle="--")
        top.set_ylim(-len(others) + 0.5, 0.5)
        top.set_yticks([-row for row in range(len(others))], [NAMES[form] for form in others] if column == 0 else [])
        top.set_title(f"{name}, {max(len(f) for f in forms.values())} splits")
        top.set_xlabel("NLPD minus baseline, ± 2 SE (less is better)")
        for place, form in enumerate(shown):
            values = 100 * np.array([v["coverage"] for v in forms[form].values()])
            error = 2 * values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(len(LEVELS))
            at = np.arange(len(LEVELS)) + 0.11 * (place - (len(shown) - 1) / 2)
            deviation = values.mean(0) - 100 * np.array(LEVELS)
            bottom.errorbar(at, deviation, error, color=colors[form], marker="o", ms=4, ls="none", label=NAMES[form])
        bottom.axhline(0.0, color="black", linewidth=1.0, linestyle="--")
        bottom.set_xticks(range(len(LEVELS)), [f"{100 * p:.0f} %" for p in LEVELS])
        bottom.set_xlabel("nominal level of the central interval")
    axes[1][0].set_ylabel("coverage minus nominal, points, ± 2 SE")
    for row in axes:
        for ax in row:
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[1][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(4, len(groups) + 1),
        frameon=False,
    )
    figure.savefig(path, dpi=140)


def main(arguments: Sequence[str] | None = None) -> None:
    default = os.environ.get("PROPKERNEL_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data" / "uci"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(default), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--width", type=float, default=50.0, help="of the finite network")
    parser.add_argument("--readout-variance", type=float, default=1.0, help="of the two models of fixed scale")
    parser.add_argument("--starts", type=int, default=2, choices=(1, 2), help="of each fit, the best is kept")
    parser.add_argument("--evaluations", type=int, default=100, help="limit of the optimizer")
    parser.add_argument("--json", type=Path, default=Path("calibration.jsonl"), help="finished fits, appended to")
    parser.add_argument("--finished", action="store_true", help="fit nothing: tables of the splits that are complete")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    options = parser.parse_args(arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        records = run(options)
    finally:
        torch.set_default_dtype(before)
    text = tables(records)
    print(text)
    if options.plot:
        plot(records, options.plot)
    if options.markdown:
        shown = {
            key: getattr(options, key)
            for key in ("sets", "splits", "width", "readout_variance", "starts", "evaluations")
        }
        command = [
            f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else f'{v:g}'}"
            for k, v in shown.items()
        ]
        packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "gpytorch", "botorch", "scipy", "numpy"))
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        mark = "\n## Conclusion\n"  # what was written below it by hand is kept
        old = options.markdown.read_text() if options.markdown.exists() else ""
        conclusion = mark + old.split(mark, 1)[1] if mark in old else ""
        options.markdown.write_text(
            "# Calibration on UCI sets\n\n"
            f"    python examples/calibration.py {' '.join(command)}\n\n"
            f"torch_propkernel {version('torch_propkernel')}, {packages}. NLPD and RMSE in the target's units, "
            "coverage in percent, mean +- standard error over splits; differences are paired by split, a tie is less "
            "than two standard errors.\n\n" + text + conclusion
        )


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit what is missing in the JSON-lines file; return the better start of each fit."""
    keys = ("set", "split", "model", "start", "width", "readout_variance", "evaluations")
    jobs = [
        (name, split, model, start, options.width, options.readout_variance, options.evaluations)
        for name in options.sets
        for split in options.splits
        for model in options.models
        for start in range(options.starts)
    ]
    finished: dict[tuple[Any, ...], dict[str, Any]] = {}
    if options.json.exists():
        for line in options.json.read_text().splitlines():
            record = json.loads(line)
            finished[tuple(record[key] for key in keys)] = record
    if options.finished:
        missing = {job[:2] for job in jobs if job not in finished}
        jobs = [job for job in jobs if job[:2] not in missing]
    for job in tqdm([job for job in jobs if job not in finished], desc="fits", disable=None, file=sys.stderr):
        finished[job] = fit(options.data / job[0], *job[1:])
        with options.json.open("a") as file:
            file.write(json.dumps(finished[job]) + "\n")
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for job in jobs:  # the first start comes first
        record = finished[job]
        known = best.setdefault(job[:3], {**record, "gain": 0.0})
        if record["objective"] > known["objective"]:
            gain = record["objective"] - known["objective"]
            best[job[:3]] = {**record, "gain": gain}
    return list(best.values())


if __name__ == "__main__":
    main()
