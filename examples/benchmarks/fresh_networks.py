"""Test errors of fresh networks, predicted first and sampled afterwards.

    python examples/benchmarks/fresh_networks.py --stage predict   # writes dated predictions: commit them
    python examples/benchmarks/fresh_networks.py                   # samples what is predicted, then the page
    python examples/benchmarks/fresh_networks.py --tables-only     # the page of what is finished

The cases below are posteriors of networks of one hidden layer on rows of UCI tables, which are not among the sampled
networks of the tests and the reference: all five sets, 100 to 200 training rows, widths of 15 to 200, T from 0.02 to
0.3, erf and relu, with biases, at prior variances that are given and not fitted. Case k has its training rows and 200
test rows (what is left of yacht) from ``numpy.random.default_rng(2000 + k).permutation`` of all rows of its set, inputs
and targets standardized on the training rows.

Every theory predicts the test error (y - f)^2 of a network drawn from the posterior, averaged over the test points,
without noise. A prediction is a line of ``--predictions`` with its date. Sampling begins when all predictions of
``--theories`` are there, by :func:`torch_propkernel.networks.sample_posterior`, from scratch with twice as many draws
until R-hat is at most 1.01 and the effective sample size at least 400 (at most ``--longest`` draws for each of 8
chains); each run is a line of ``--json``. A case that was sampled is not predicted again: the program refuses, since
that would be hindsight. All cases are reported, those that did not converge with a mark. One core is enough: set
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _uci import (
    Standardized,
    append_record,
    default_folder,
    double_precision,
    numbers,
    read_records,
    standardize,
    table,
    versions,
)
from tqdm import tqdm

from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import PropKernelWarning
from torch_propkernel.networks import sample_posterior
from torch_propkernel.practice import network_from_model
from torch_propkernel.progress import progress_bar
from torch_propkernel.theories import get_theory
from torch_propkernel.tuning import NetworkFit

THEORIES = ("infinite_width", "saddle", "mixture", "adaptive")
TEST_ROWS = 200
FIRST_DRAWS = 1000


class Case(NamedTuple):
    """A posterior: set, activation, rows, width, T, and prior variances of input weights, biases and readout."""

    data: str
    activation: str
    rows: int
    width: int
    temperature: float
    weight: float = 1.0
    bias: float = 1.0
    readout: float = 1.0


CASES = (
    Case("yacht", "erf", 100, 15, 0.1),
    Case("yacht", "relu", 150, 50, 0.02),
    Case("yacht", "erf", 200, 100, 0.05, weight=2.0),
    Case("energy", "erf", 100, 30, 0.05, weight=2.0, bias=0.5),
    Case("energy", "relu", 150, 100, 0.1),
    Case("energy", "erf", 200, 200, 0.02, weight=4.0),
    Case("concrete", "relu", 100, 15, 0.1, weight=2.0),
    Case("concrete", "erf", 150, 20, 0.2, weight=4.0),
    Case("concrete", "erf", 200, 200, 0.05, weight=2.0),
    Case("pol", "erf", 150, 50, 0.1, weight=4.0),
    Case("pol", "relu", 200, 20, 0.3, bias=0.5),
    Case("pol", "erf", 100, 30, 0.03, weight=2.0, readout=2.0),
    Case("kin40k", "relu", 150, 30, 0.1, weight=2.0),
    Case("kin40k", "erf", 200, 50, 0.05, weight=4.0, readout=2.0),
    Case("kin40k", "erf", 100, 100, 0.3, weight=2.0),
    Case("kin40k", "relu", 200, 150, 0.02, bias=0.5),
)


def load(folder: Path, index: int, case: Case) -> Standardized:
    """Rows of a case in standardized units."""
    data = torch.as_tensor(np.loadtxt(folder / case.data / "data.csv.gz", delimiter=","))
    order = np.random.default_rng(2000 + index).permutation(len(data))
    train, test = data[order[: case.rows]], data[order[case.rows : case.rows + TEST_ROWS]]
    return standardize(train[:, :-1], train[:, -1], test[:, :-1], test[:, -1])


def model_of(case: Case, data: Standardized) -> Any:
    """The process of the case's network."""
    activation = get_activation(case.activation)
    prior = NetworkFit(activation, (case.weight, case.readout), (case.bias,), None, case.temperature)
    return prior.model(data.x, data.y, case.width)


def today() -> str:
    """The date, in Greenwich."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")


def predict(folder: Path, index: int, case: Case, theory: str) -> dict[str, Any]:
    """What a theory predicts of a case."""
    chosen, data = get_theory(theory), load(folder, index, case)
    clock = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = chosen.fit(model_of(case, data))
        error = fitted.error(data.test_x, data.test_y)
    said = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, PropKernelWarning))
    return {
        "case": index,
        **case._asdict(),
        "theory": theory,
        "date": today(),
        "test_error": float(error.mean_total),
        "bias2": float(error.mean_bias),
        "variance": float(error.mean_variance),
        "order_parameter": float(fitted.readout_norm),
        "cpu_seconds": time.process_time() - clock,
        "message": fitted.message,
        "stats": numbers(fitted.stats),
        "warnings": list(said),
    }


def sample(folder: Path, index: int, case: Case, draws: int) -> dict[str, Any]:
    """The same numbers from the sampled posterior of the case's network."""
    data = load(folder, index, case)
    network = network_from_model(model_of(case, data), data.x.shape[-1])
    clock = time.process_time()
    with warnings.catch_warnings(), progress_bar(f"case {index}, {draws} draws") as advance:
        warnings.simplefilter("ignore", PropKernelWarning)  # convergence is recorded
        found = sample_posterior(
            network,
            data.x,
            data.y,
            case.temperature,
            test_x=data.test_x,
            test_y=data.test_y,
            num_samples=draws,
            warmup=draws // 2,
            seed=index,
            progress=advance,
        )
    names = {"test_error": "test_error", "bias2": "bias", "variance": "variance", "order_parameter": "order_parameter"}
    estimates = {name: found.estimates[own] for name, own in names.items()}
    return {
        "case": index,
        **case._asdict(),
        "date": today(),
        "draws": draws,
        **{name: value.mean.item() for name, value in estimates.items()},
        "errors": {name: value.standard_error.item() for name, value in estimates.items()},
        "r_hat": max(value.r_hat.item() for value in found.estimates.values()),
        "converged": found.converged,
        "cpu_seconds": time.process_time() - clock,
        "message": found.message,
    }


def last_runs(samples: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The longest run of every case."""
    return {record["case"]: record for record in sorted(samples, key=lambda r: r["draws"])}


def check(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuse records of other cases than those of this file."""
    for record in records:
        known = CASES[record["case"]]._asdict() if record["case"] < len(CASES) else None
        if known is None or any(record[name] != value for name, value in known.items()):
            raise SystemExit(f"{path}: expected the cases of this script, got another case {record['case']}")


def percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def page(predictions: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> str:
    """Tables of all cases."""
    runs, theories = last_runs(samples), list(dict.fromkeys(r["theory"] for r in predictions))
    by = {(r["case"], r["theory"]): r for r in predictions}
    rows, errors = [], {theory: [] for theory in theories}
    for index in sorted({r["case"] for r in predictions}):
        case, run = CASES[index], runs.get(index)
        dates = [r["date"] for r in predictions if r["case"] == index]
        cells: list[Any] = [f"{index} {case.data} {case.activation}", case.rows, case.width, f"{case.temperature:g}"]
        cells.append(f"{case.weight:g}, {case.bias:g}, {case.readout:g}")
        if run is None:
            cells += ["-", "-", max(dates), "not sampled yet"]
            cells += [f"({by[index, t]['test_error']:.4g})" if (index, t) in by else "-" for t in theories]
        else:
            own = run["errors"]["test_error"] / run["test_error"]
            mark = "" if run["converged"] else f" **not converged**, R-hat {run['r_hat']:.3f}"
            cells += [f"{run['test_error']:.4g} +- {100 * own:.1f} %{mark}", f"{run['order_parameter']:.3g}"]
            cells += [max(dates), run["date"]]
            for theory in theories:
                if (index, theory) not in by:
                    cells.append("-")
                    continue
                error = by[index, theory]["test_error"] / run["test_error"] - 1.0
                errors[theory].append((abs(error), index))
                cells.append(percent(error))
        rows.append(cells)
    header = ("case", "P", "N", "T", "variances", "sampled test error", "q", "predicted", "sampled")
    lines = ["## Relative error of the predicted test error", "", *table((*header, *theories), rows)]
    if runs:
        lines += ["", "## All cases together", "", *summary(errors, by)]
        unfinished = sum(not run["converged"] for run in runs.values())
        lines += ["", f"{len(runs)} of {len(CASES)} cases were sampled, {unfinished} of them did not converge."]
    lines += ["", *(f"- case {i}: {run['message']}" for i, run in sorted(runs.items()) if not run["converged"])]
    told = [f"- case {r['case']}, {r['theory']}: {text}" for r in predictions for text in r["warnings"]]
    if told:
        lines += ["", "## Warnings of the theories, before sampling", "", *told]
    return "\n".join(lines).strip() + "\n"


def summary(
    errors: Mapping[str, Sequence[tuple[float, int]]], by: Mapping[tuple[int, str], Mapping[str, Any]]
) -> list[str]:
    """Median, 90th percentile and worst error of every theory."""
    rows = []
    for theory, found in errors.items():
        if found:
            sizes, (worst, index) = [size for size, _ in found], max(found)
            seconds = np.median([r["cpu_seconds"] for (_, name), r in by.items() if name == theory])
            high = np.quantile(sizes, 0.9)
            cells = [f"{100 * v:.1f}" for v in (np.median(sizes), high, worst)]
            rows.append([theory, len(found), *cells, index, f"{seconds:.2g}"])
    return table(("theory", "cases", "median %", "90th percentile %", "worst %", "worst case", "CPU s"), rows)


def write(options: argparse.Namespace) -> str:
    """Write the page of all records; return the tables."""
    predictions, samples = read_records(options.predictions), read_records(options.json)
    for records, path in ((predictions, options.predictions), (samples, options.json)):
        check(records, path)
    text = page(predictions, samples)
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.markdown.write_text(
        "# Fresh networks, predicted first and sampled afterwards\n\n"
        "    python examples/benchmarks/fresh_networks.py --stage predict\n"
        "    python examples/benchmarks/fresh_networks.py\n\n"
        f"{versions()}. One hidden layer on rows of UCI tables; variances: input weights, biases, readout. "
        "Columns of theories: predicted / sampled test error - 1 (the prediction itself where nothing was sampled). "
        "The sampled test error stands beside its own relative standard error, q is the sampled order parameter, dates "
        "are those of the last prediction and of the sampling (UTC). The head of `fresh_networks.py` says what a case "
        "is.\n\n" + text,
        encoding="utf-8",
    )
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    results = Path(__file__).resolve().parent / "results"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))), metavar="K")
    parser.add_argument("--theories", nargs="+", default=list(THEORIES), metavar="NAME")
    parser.add_argument("--stage", choices=("predict", "all"), default="all")
    parser.add_argument("--predictions", type=Path, default=results / "fresh_networks_predictions.jsonl")
    parser.add_argument("--json", type=Path, default=Path("fresh_networks.jsonl"), help="finished runs, appended to")
    parser.add_argument("--longest", type=int, default=16 * FIRST_DRAWS, help="most draws of each chain")
    parser.add_argument("--markdown", type=Path, default=results / "fresh_networks.md")
    parser.add_argument("--tables-only", action="store_true", help="compute nothing: the page of what is finished")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.cases) - set(range(len(CASES)))):
        parser.error(f"--cases: expected numbers below {len(CASES)}, got {unknown}")
    if not options.tables_only:
        for theory in options.theories:
            get_theory(theory)  # all are there before any work
        with double_precision():
            compute(options)
    print(write(options))


def compute(options: argparse.Namespace) -> None:
    """Predict all that is missing, then sample what is predicted."""
    options.predictions.parent.mkdir(parents=True, exist_ok=True)
    predicted = {(r["case"], r["theory"]) for r in read_records(options.predictions)}
    samples = read_records(options.json)
    missing = [(k, t) for k in options.cases for t in options.theories if (k, t) not in predicted]
    for index, theory in missing:
        if index in last_runs(samples):
            raise SystemExit(
                f"case {index}: expected the predictions of {theory} before its sampling on "
                f"{last_runs(samples)[index]['date']}; delete its lines in {options.json} to predict it first"
            )
    for index, theory in tqdm(missing, desc="predictions", disable=None, file=sys.stderr):
        append_record(options.predictions, predict(options.data, index, CASES[index], theory))
    if options.stage == "predict":
        return
    for index in tqdm(options.cases, desc="cases", disable=None, file=sys.stderr):
        run = last_runs(samples).get(index)
        draws = FIRST_DRAWS if run is None else 2 * run["draws"]
        while (run is None or not run["converged"]) and draws <= options.longest:
            run = sample(options.data, index, CASES[index], draws)
            append_record(options.json, run)
            samples.append(run)
            write(options)  # an interrupted run leaves a page too
            draws *= 2


if __name__ == "__main__":
    main()
