"""Predictors of UCI sets from training data alone: our finite networks against tuned GPs and an ensemble of MLPs.

    python examples/benchmarks/uci_predictors.py [--data DIR] [--sets yacht pol] [--methods auto saddle]
    python examples/benchmarks/uci_predictors.py --tables-only      # the page of what is finished

One command from data to table: fits what is missing, with a progress bar, and writes ``results/uci_predictors.md``
beside this script. Each finished fit is appended to a JSON-lines file (``--json``), so that an interrupted run
continues. DIR holds a folder for each set, in the format that ``_uci.py`` describes. One core is enough: set
OMP_NUM_THREADS=1.

Split k has the test rows of column k of test_mask. Its training rows are the first 400 (``--rows``) of
``numpy.random.default_rng(k).permutation`` of the other rows; yacht has 277 or 278. Pol and kin40k have a second entry
with 1,000 rows. Of more than 2,000 test rows (kin40k has 4,000) 2,000 are drawn with the same generator; all others are
used. Inputs and targets are standardized on the training rows, and all numbers are in these units. Splits share
training rows: standard errors over splits are too small rather than too large.

Measured are the RMSE of the predictive mean; NLPD, the mean negative log predictive density of a noisy test target;
coverage, the share of test targets inside the central 95 % interval of the predictive, noise included, by the quantiles
of the mixture where the predictive is one; and the time of the fit, by the clock and of the processor.

Predictors (``--methods``):

- ``matern-ard``: GP, Matern-5/2 with ARD and a trained scale, tuned by evidence, as in ``uci_table.py``;
- ``free-scale-ard``: GP, ScaleKernel(NNGP) of one erf layer with biases and ARD. Weight, bias and input variances and T
  maximize the evidence at infinite width (``fit_network``), then ``FreeScale``;
- ``saddle``, ``adaptive``, ``sampled``: these theories of the network of width 50 with the same hyperparameters;
- ``auto``: ``fit_predictor`` with all its choices (theory, width, temperature, readout factor), at most two minutes by
  the clock (``--time-limit``: more on a machine that does other work meanwhile; look at the processor's time then);
- ``mlp-ensemble``: five multilayer perceptrons, see :func:`mlp_ensemble`.

The hyperparameters of a split are fitted once and kept in the JSON lines; their time is part of the fit time of every
method that uses them. A fit that raises is recorded as failed and counted in the tables; delete its line to repeat it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import torch
from _uci import (
    Cut,
    Standardized,
    append_record,
    default_folder,
    double_precision,
    load,
    numbers,
    read_records,
    show,
    standardize,
    table,
    verdict,
    versions,
)
from torch import Tensor
from tqdm import tqdm
from uci_table import START_TEMPERATURE, STARTS, build

from torch_propkernel import FiniteWidthLikelihood
from torch_propkernel.activations import get_activation
from torch_propkernel.distributions import ScaleMixtureMultivariateNormal
from torch_propkernel.exceptions import ConvergenceError, NotPositiveDefiniteError
from torch_propkernel.theories import get_theory
from torch_propkernel.tuning import NetworkFit, fit_hyperparameters, fit_network

SETS = ("yacht", "energy", "concrete", "pol", "kin40k")
ROWS = {"pol": (400, 1000), "kin40k": (400, 1000)}  # 400 of all others
TEST_ROWS = 2000
WIDTH = 50
ACTIVATION = "erf"
TIME_LIMIT = 120.0
LEVEL = 0.95
CHUNK = 500  # test points at a time
MEMBERS, EPOCHS = 5, 1000  # of the ensemble
THEORY_OF = {"free-scale-ard": "free_scale", "saddle": "saddle", "adaptive": "adaptive", "sampled": "sampled"}
BASELINES = ("free-scale-ard", "matern-ard", "saddle", "mlp-ensemble")
OURS = ("auto", "sampled", "adaptive")
METHODS = (*OURS, *BASELINES)
SHARED = "hyperparameters"
AT_INFINITE_WIDTH = ("infinite_width", "free_scale")


def fit_shared(data: Standardized, seed: int) -> dict[str, Any]:
    """Hyperparameters of the infinitely wide network by evidence, as plain numbers."""
    found = fit_network(data.x, data.y, ACTIVATION, seed=seed)
    search = found.search
    names = ("weight_variance", "bias_variance", "ard_weights", "temperature")
    return {
        **{name: getattr(found, name) for name in names},
        "log_evidence": search.log_evidence,
        "converged": search.converged,
        "at_bound": search.at_bound,
        "message": search.message,
    }


def network(shared: Mapping[str, Any]) -> NetworkFit:
    """The network prior of a record of shared hyperparameters."""
    ard = shared["ard_weights"]
    return NetworkFit(
        get_activation(ACTIVATION),
        tuple(shared["weight_variance"]),
        tuple(shared["bias_variance"]),
        None if ard is None else tuple(ard),
        shared["temperature"],
    )


def measure(predict: Callable[[Tensor], Any], x: Tensor, y: Tensor) -> dict[str, float]:
    """RMSE, NLPD and coverage of the laws of noisy targets that ``predict`` returns for rows of x."""
    away, density, level = [], [], []
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        for rows, targets in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            law = predict(rows)
            away.append(targets - law.mean)
            if isinstance(law, ScaleMixtureMultivariateNormal):
                density.append(law.marginal_log_prob(targets))
                level.append(law.cdf(targets))
            else:
                normal = torch.distributions.Normal(law.mean, law.variance.sqrt())
                density.append(normal.log_prob(targets))
                level.append(normal.cdf(targets))
    # Inside the central interval: between the quantiles at (1 - LEVEL) / 2 and (1 + LEVEL) / 2.
    inside = (torch.cat(level) - 0.5).abs() <= LEVEL / 2
    return {
        "rmse": float(torch.cat(away).square().mean().sqrt()),
        "nlpd": -float(torch.cat(density).mean()),
        "coverage": float(inside.double().mean()),
    }


class Clock:
    """Seconds since it was made, by the clock and of the processor."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.start[0], "cpu_seconds": time.process_time() - self.start[1]}


def noisy(fitted: Any) -> Callable[[Tensor], Any]:
    """The law of noisy targets of a fitted theory."""
    likelihood = FiniteWidthLikelihood()
    likelihood.noise = fitted.problem.temperature.detach()
    return lambda x: likelihood(fitted.distribution(x))


def describe(fitted: Any) -> dict[str, Any]:
    """What a fitted theory says of itself."""
    kernel, name = fitted.problem.kernel, fitted.theory.name
    return {
        "theory": name,
        "width": math.inf if kernel is None or name in AT_INFINITE_WIDTH else float(kernel.width.flatten()[-1]),
        "temperature": float(fitted.problem.temperature),
        "log_evidence": None if fitted.log_evidence is None else float(fitted.log_evidence),
        "message": fitted.message,
        "stats": numbers(fitted.stats),
    }


# Predictors: the data of a split, its shared hyperparameters (None where they are not used), a seed -> a record. ------


def theory(name: str, data: Standardized, shared: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """One theory of the network of width 50 at the shared hyperparameters."""
    assert shared is not None
    chosen = get_theory(name)
    clock = Clock()
    fitted = chosen.fit(network(shared).model(data.x, data.y, WIDTH))
    spent = {key: value + shared[key] for key, value in clock.seconds().items()}
    factor = float(fitted.order_parameters["r"]) if name == "free_scale" else 1.0
    return {**measure(noisy(fitted), data.test_x, data.test_y), **describe(fitted), "readout_factor": factor, **spent}


def auto(
    data: Standardized, shared: Mapping[str, Any] | None, seed: int, time_limit: float = TIME_LIMIT
) -> dict[str, Any]:
    """The predictor that is chosen from the training data alone, hyperparameters included."""
    from torch_propkernel.tuning import fit_predictor

    clock = Clock()
    found = fit_predictor(
        data.x,
        data.y,
        ACTIVATION,
        depth=1,
        width=None,
        theory="auto",
        time_limit=time_limit,
        seed=seed,
    )
    spent = clock.seconds()
    candidates = [plain(row) for row in found.candidates]
    record = {**measure(noisy(found.fitted), data.test_x, data.test_y), **describe(found.fitted), **spent}
    record |= {"message": found.message, "candidates": candidates}
    return {**record, "readout_factor": factor_of(record, candidates)}


def plain(row: Any) -> dict[str, Any]:
    """A candidate as a dictionary of numbers and words."""
    values = dict(row) if isinstance(row, Mapping) else dataclasses.asdict(row)
    return values | numbers(values)


def factor_of(record: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> float | None:
    """The readout factor of the candidate with the theory, width and temperature that were chosen."""
    for row in candidates:
        same_width = row["width"] == record["width"] or math.isinf(record["width"])
        close = math.isclose(row["temperature"], record["temperature"], rel_tol=1e-6)
        if row["theory"] == record["theory"] and same_width and close:
            return row["readout_factor"]
    return None


def matern(data: Standardized, shared: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """Matern-5/2 with ARD, tuned by evidence."""
    clock = Clock()
    model, train = build("matern-ard", data.x, data.y, depth=1, width=math.inf)
    model.likelihood.noise = START_TEMPERATURE
    found = fit_hyperparameters(model, train=train, throw=False, warn=False, starts=STARTS)
    spent = clock.seconds()
    model.eval()
    return {
        **measure(lambda x: model.likelihood(model(x)), data.test_x, data.test_y),
        "temperature": found.temperature,
        "log_evidence": found.log_evidence,
        "message": found.message,
        **spent,
    }


def mlp_ensemble(data: Standardized, shared: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """Five multilayer perceptrons of one fixed recipe, their predictives mixed with equal weights.

    Two hidden layers of 64 relu units, a head for the mean and one for the variance (softplus, at least 1e-4), started
    at He's initialization and trained on the Gaussian negative log likelihood by AdamW: learning rate 0.002, weight
    decay 1, minibatches of 32, at most 1,000 epochs. Every member holds out its own random 10 % of the training rows,
    keeps the weights with the smallest loss there, and all stop when none has improved for 100 epochs. The recipe was
    chosen among six on other random rows of concrete, kin40k and pol. The members are trained as one batch.
    """
    clock = Clock()
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(len(data.y), generator=generator) for _ in range(MEMBERS)])
    held_out, rows = order.tensor_split([len(data.y) // 10], dim=1)
    sizes = (data.x.shape[1], 64, 64, 2)
    weights = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        gain = 2.0 if fan_out > 2 else 1.0
        weights.append(torch.randn(MEMBERS, fan_in, fan_out, generator=generator) * math.sqrt(gain / fan_in))
        weights.append(torch.zeros(MEMBERS, 1, fan_out))
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1.0)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        state = x
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            state = state @ weight + bias
            state = state.relu() if weight is not weights[-2] else state
        mean, spread = state.unbind(-1)
        return mean, torch.nn.functional.softplus(spread) + 1e-4

    def loss(chosen: Tensor) -> Tensor:
        mean, variance = moments(data.x[chosen])
        return (0.5 * ((data.y[chosen] - mean).square() / variance + variance.log())).mean(-1)

    best, kept, improved = torch.full((MEMBERS,), math.inf), [w.detach().clone() for w in weights], 0
    for epoch in range(EPOCHS):
        shuffled = rows.gather(1, torch.rand(rows.shape, generator=generator).argsort(1))
        for chosen in shuffled.split(32, dim=1):
            optimizer.zero_grad()
            loss(chosen).sum().backward()
            optimizer.step()
        with torch.no_grad():
            now = loss(held_out)
            better = now < best
            best = torch.where(better, now, best)
            kept = [torch.where(better[:, None, None], w, old) for w, old in zip(weights, kept, strict=True)]
        improved = epoch if bool(better.any()) else improved
        if epoch - improved >= 100:
            break
    weights = kept
    spent = clock.seconds()

    def predict(x: Tensor) -> ScaleMixtureMultivariateNormal:
        mean, variance = moments(x.expand(MEMBERS, *x.shape))
        return ScaleMixtureMultivariateNormal(torch.zeros(MEMBERS), mean, variance=variance)

    return {**measure(predict, data.test_x, data.test_y), "message": f"stopped after {epoch + 1} epochs", **spent}


PREDICTORS: dict[str, Callable[..., dict[str, Any]]] = {
    "matern-ard": matern,
    "mlp-ensemble": mlp_ensemble,
    "auto": auto,
    **{method: functools.partial(theory, name) for method, name in THEORY_OF.items()},
}


@functools.lru_cache(maxsize=1)
def prepare(folder: Path, split: int, rows: int) -> Standardized:
    """Rows of a split in standardized units."""
    return standardize(*load(folder, split, Cut(train=rows, test=TEST_ROWS)))


def run(
    folder: Path,
    rows: int,
    split: int,
    method: str,
    shared: Mapping[str, Any] | None,
    time_limit: float = TIME_LIMIT,
) -> dict[str, Any]:
    """Fit one predictor on one split; a failure is a record too."""
    data = prepare(folder, split, rows)
    clock = Clock()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if shared is not None and "failed" in shared:
                raise ConvergenceError(shared["failed"])
            if method == SHARED:
                result: dict[str, Any] = {**fit_shared(data, split), **clock.seconds()}
            else:
                limit = {"time_limit": time_limit} if method == "auto" else {}
                result = PREDICTORS[method](data, shared, split, **limit)
        except (RuntimeError, NotPositiveDefiniteError) as error:  # a ConvergenceError is the first
            result = {"failed": f"{type(error).__name__}: {error}", **clock.seconds()}
    said = dict.fromkeys(str(w.message) for w in caught if w.category.__module__.startswith("torch_propkernel"))
    return {
        "set": folder.name,
        "rows": rows,
        "split": split,
        "method": method,
        "sizes": [len(data.y), len(data.test_y)],
        **result,
        "warnings": list(said),
    }


# Statistics and the page ----------------------------------------------------------------------------------------------


class Measured:
    """Records by entry (set, rows), method and split."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.entries: dict[tuple[str, int], dict[str, dict[int, dict[str, Any]]]] = {}
        for record in records:
            entry = self.entries.setdefault((record["set"], record["rows"]), {})
            entry.setdefault(record["method"], {})[record["split"]] = record

    def differences(self, entry: tuple[str, int], method: str, other: str, key: str) -> list[float]:
        """Paired differences of a measure over the splits in which both were fitted."""
        methods = self.entries[entry]
        pairs = [(r, methods.get(other, {}).get(split)) for split, r in methods.get(method, {}).items()]
        return [r[key] - s[key] for r, s in pairs if s is not None and key in r and key in s]

    def verdicts(self, entry: tuple[str, int], method: str, other: str) -> dict[str, str]:
        """Ahead, behind, tie or undecided in RMSE and NLPD; empty where nothing is paired."""
        found = {key: self.differences(entry, method, other, key) for key in ("rmse", "nlpd")}
        return {key: verdict(values, "ahead", "behind") for key, values in found.items() if values}


def title(entry: tuple[str, int]) -> str:
    """Name of an entry in sentences."""
    name, rows = entry
    return name if rows == min(ROWS.get(name, (400,))) else f"{name} ({rows} rows)"


def median(records: Sequence[dict[str, Any]], key: str, digits: str) -> str:
    """Median over splits of what is not on every record."""
    values = [record[key] for record in records if record.get(key) is not None]
    return f"{np.median(values):{digits}}" if values else "-"


def counts(values: Sequence[Any]) -> str:
    """How often each value came: its number of times behind a cross."""
    found = {value: values.count(value) for value in sorted(set(values))}
    return ", ".join(f"{value} x{count}" if len(found) > 1 else str(value) for value, count in found.items())


def means_table(methods: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[str]:
    """Means over splits of every method of an entry."""
    rows = []
    for method in (m for m in METHODS if m in methods):
        fits = [r for r in methods[method].values() if "failed" not in r]
        cells: list[Any] = [method, len(fits), len(methods[method]) - len(fits)]
        if fits:
            cells += [show([r[key] for r in fits], ".4g") for key in ("rmse", "nlpd")]
            cells.append(show([100 * r["coverage"] for r in fits], ".3g"))
            cells += [median(fits, "seconds", ".3g"), median(fits, "cpu_seconds", ".3g")]
            cells += [median(fits, "log_evidence", ".1f"), median(fits, "temperature", ".2g")]
            cells.append(counts([f"{r['width']:g}" for r in fits if "width" in r]) or "-")
            cells.append(median(fits, "readout_factor", ".3g"))
            cells.append(counts([r["theory"] for r in fits]) if method == "auto" else "-")
        else:
            cells += ["-"] * 10
        rows.append(cells)
    header = (
        "method",
        "splits",
        "failed",
        "RMSE",
        "NLPD",
        "coverage %",
        "fit s",
        "CPU s",
        "log evidence",
        "T",
        "width",
    )
    return table((*header, "readout factor", "chosen theory"), rows)


def differences_table(measured: Measured, entry: tuple[str, int]) -> list[str]:
    """Paired differences of ours minus every baseline."""
    rows = []
    for method in OURS:
        for other in BASELINES:
            said = measured.verdicts(entry, method, other)
            if said:
                cells: list[Any] = [f"{method} - {other}"]
                for key in said:
                    values = measured.differences(entry, method, other, key)
                    cells += [show(values, "+.2g"), said[key]]
                rows.append([*cells, len(values)])
    header = ("difference", "RMSE", "verdict", "NLPD", "verdict of NLPD", "splits")
    return table(header, rows) if rows else []


def sentences(measured: Measured) -> list[str]:
    """What the differences say, losses one by one."""
    lines = []
    smallest = [e for e in measured.entries if e[1] == min(ROWS.get(e[0], (400,)))]
    larger = [e for e in measured.entries if e not in smallest]
    for method in OURS:
        for other in BASELINES:
            for entries, size in ((smallest, "400 rows"), (larger, "1,000 rows")):
                said = {entry: measured.verdicts(entry, method, other) for entry in entries}
                said = {entry: values for entry, values in said.items() if values}
                if said:
                    lines.append(summary(method, other, size, said))
            lines += losses(measured, method, other)
    return lines


def summary(method: str, other: str, size: str, said: Mapping[tuple[str, int], Mapping[str, str]]) -> str:
    """One sentence: on how many sets a method is ahead in both measures, and behind in one of them."""

    def named(entries: Sequence[tuple[str, int]]) -> str:
        return f" ({', '.join(entry[0] for entry in entries)})" if entries else ""

    ahead = [entry for entry, values in said.items() if set(values.values()) == {"ahead"}]
    behind = [entry for entry, values in said.items() if "behind" in values.values()]
    undecided = [entry for entry, values in said.items() if "undecided" in values.values()]
    text = (
        f"- **{method}** against {other}, {size}: ahead in RMSE and NLPD by two standard errors on {len(ahead)} of "
        f"{len(said)} sets{named(ahead)}, behind in RMSE or NLPD on {len(behind)}{named(behind)}."
    )
    return text + (f" Too few splits for a verdict on {len(undecided)}{named(undecided)}." if undecided else "")


def losses(measured: Measured, method: str, other: str) -> list[str]:
    """A line for every measure and entry in which a method is behind."""
    lines = []
    for entry in measured.entries:
        for key, said in measured.verdicts(entry, method, other).items():
            if said == "behind":
                values = measured.differences(entry, method, other, key)
                known = [s[key] for s in measured.entries[entry][other].values() if key in s]
                lines.append(
                    f"  - {method} loses to {other} on {title(entry)}: its {key.upper()} is higher by "
                    f"{show(values, '.2g')}, that of {other} is {np.mean(known):.4g}."
                )
    return lines


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Tables of all entries and what they say."""
    measured = Measured([r for r in records if r["method"] in METHODS])
    order = [(name, rows) for name in SETS for rows in ROWS.get(name, (400,))]
    known = sorted(measured.entries, key=lambda e: (order.index(e) if e in order else len(order), e))
    measured.entries = {entry: measured.entries[entry] for entry in known}
    lines = ["## What the tables say", "", *(sentences(measured) or ["- Nothing of ours was fitted yet."])]
    for entry, methods in measured.entries.items():
        sizes = [r["sizes"] for fits in methods.values() for r in fits.values()]
        splits = max(len(fits) for fits in methods.values())
        train, test = ("-".join(map(str, sorted({min(s), max(s)}))) for s in zip(*sizes, strict=True))
        lines += ["", f"### {entry[0]}, {entry[1]} rows: {splits} splits, {train} training rows, {test} test rows", ""]
        lines += means_table(methods)
        if differences := differences_table(measured, entry):
            lines += ["", *differences]
        failed = [
            (method, k, r["failed"]) for method, fits in methods.items() for k, r in fits.items() if "failed" in r
        ]
        lines += ["", *(f"- {method}, split {k}: failed, {text}" for method, k, text in failed)] if failed else []
    return "\n".join(lines).strip() + "\n"


def write(options: argparse.Namespace, finished: Mapping[tuple[Any, ...], dict[str, Any]]) -> str:
    """Write the Markdown file of all records of the run; return the tables."""
    jobs = set(jobs_of(options))
    text = tables([record for job, record in finished.items() if job in jobs])
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(
        "# Predictors from training data alone on UCI sets\n\n"
        f"    python examples/benchmarks/uci_predictors.py --sets {' '.join(options.sets)} "
        f"--rows {' '.join(map(str, options.rows))} --splits {options.splits} --methods {' '.join(options.methods)}\n\n"
        f"{versions()}. All numbers in standardized units: RMSE of the predictive mean, NLPD the mean negative log "
        "predictive density of a noisy test target, coverage of the central 95 % interval; mean +- standard error over "
        "splits. Seconds of a fit by the clock and of the processor, log evidence, T and readout factor are medians. "
        "Hyperparameters are part of the time of every method that uses them. Differences are paired by split; ahead "
        "and behind are two standard errors, a tie is less. Log evidences of different rows of a table compare "
        "different things (free-scale-ard, matern-ard: maximized over hyperparameters). The head of "
        "`uci_predictors.py` says what each method is and which rows a split has.\n\n" + text,
        encoding="utf-8",
    )
    return text


def jobs_of(options: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """All fits of a run: the first splits of all sets come first, so that an early table shows every set."""
    return [
        (name, rows, split, method)
        for split in range(options.splits)
        for name in options.sets
        for rows in options.rows
        if rows in ROWS.get(name, (400,))
        for method in options.methods
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    here = Path(__file__).resolve()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--rows", nargs="+", type=int, default=[400, 1000], help="1000: of pol and kin40k only")
    parser.add_argument("--splits", type=int, default=10, help="the first ones")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds of a fit of auto")
    parser.add_argument("--json", type=Path, default=Path("uci_predictors.jsonl"), help="finished fits, appended to")
    parser.add_argument("--markdown", type=Path, default=here.parent / "results" / "uci_predictors.md")
    parser.add_argument("--tables-only", action="store_true", help="fit nothing: the page of what is finished")
    options = parser.parse_args(arguments)
    finished = {(r["set"], r["rows"], r["split"], r["method"]): r for r in read_records(options.json)}
    missing = [] if options.tables_only else [job for job in jobs_of(options) if job not in finished]
    with double_precision():
        for job in tqdm(missing, desc="fits", disable=None, file=sys.stderr):
            *where, method = job
            steps = [SHARED, method] if method in THEORY_OF else [method]
            for step in steps:
                key = (*where, step)
                if key not in finished:
                    name, rows, split = where
                    shared = finished.get((*where, SHARED))
                    finished[key] = run(options.data / name, rows, split, step, shared, options.time_limit)
                    append_record(options.json, finished[key])
            write(options, finished)  # an interrupted run leaves a page too
    print(write(options, finished))


if __name__ == "__main__":
    main()
