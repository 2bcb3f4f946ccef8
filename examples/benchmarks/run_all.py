"""Reruns all benchmarks and prints new numbers beside the stored ones.

    python examples/benchmarks/run_all.py                       # hours on one core; the machine should be idle
    python examples/benchmarks/run_all.py --quick               # the smallest part of each, two minutes
    python examples/benchmarks/run_all.py --only uci_table      # one of them
    python examples/benchmarks/run_all.py --store               # afterwards: the new pages become the stored ones

New pages and the comparison are written to ``--output`` (build/benchmarks, or build/benchmarks-quick). A page that is
there is not computed again, and the longer benchmarks continue where they were interrupted: repeat the command. Delete
the folder to begin again.

Rows and columns of the tables are matched by their names. A quick run has fewer splits, cases or problems than the
stored page, so its ratios scatter, and the times of another machine differ. What needs data that are not there is left
out and named at the end. ``examples/reproduce_paper`` is a program of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)


class Benchmark(NamedTuple):
    """A script, its arguments and what is compared.

    In arguments {uci}, {reference} and {shipped} stand for folders of data, {page} for the page to be written and
    {records} for the file of finished fits. A script without {page} prints its page. Each of several ``full`` runs
    makes a part of one page.
    """

    script: str
    full: tuple[str, ...]
    quick: str
    columns: str  # pattern of the headers whose numbers are compared


FITS = "--data {uci} --json {records} --markdown {page} "
NETWORKS = "matern-ard nngp-d1 nngp-d1-ard nngp-d2 nngp-d2-ard nngp-d3 nngp-d3-ard"
BENCHMARKS = {
    "solver_vs_brute_force": Benchmark(
        "solver_vs_brute_force.py",
        ("--problems 10000 --seed 1 --output {page}",),
        "--problems 20 --seed 1 --output {page}",
        "beaten|minima miscounted|raised|worst",
    ),
    "classes": Benchmark(
        "classes.py", ("--splits 5 --markdown {page}",), "--splits 1 --markdown {page}", "accuracy|log loss|Brier"
    ),
    "mnist_classes": Benchmark(
        "mnist_classes.py",
        ("--data {uci}/.. --markdown {page}",),
        "--data {uci}/.. --no-sampling --markdown {page}",
        "left out|predictor|one network|error",
    ),
    "hidden_kernels_vs_networks": Benchmark(
        "hidden_kernels_vs_networks.py",
        ("--markdown {page}",),
        "--cases 2 --markdown {page}",
        "moved|saddle|first|Monte Carlo",
    ),
    "transfer_vs_networks": Benchmark(
        "transfer_vs_networks.py",
        ("--data {uci}/.. --markdown {page}",),
        "--data {uci}/.. --tasks 1 --draws 50 --markdown {page}",
        "^q$|left out|error|right|one draw",
    ),
    "softmax_classes": Benchmark(
        "softmax_classes.py",
        ("--splits 2 --data {uci}/.. --markdown {page}",),
        "--splits 1 --no-mnist --markdown {page}",
        "accuracy|log loss|Brier",
    ),
    "count_work": Benchmark("count_work.py", ("--markdown {page}",), "--markdown {page}", ".*"),
    "fit_cost": Benchmark(
        "fit_cost.py",
        ("--data {uci} --json {records} --markdown {page}",),
        "--data {uci} --sets --rows 100 --fit-rows 320 --json {records} --markdown {page}",
        "^q|log posterior|log evidence|evaluations|Choleskys",
    ),
    "evidence_vs_brute_force": Benchmark("evidence_vs_brute_force.py", ("",), "--only accuracy --problems 3", ".*"),
    "solve_and_predict": Benchmark("solve_and_predict.py", ("",), "--only sweep --repeats 1", ".*"),
    "kernel_pass": Benchmark("kernel_pass.py", ("",), "--only matrix --sizes 500 --repeats 1", ".*"),
    "peers": Benchmark(
        "peers.py",
        ("--markdown {page}",),
        "--sizes 100 --only gpytorch scikit-learn --markdown {page}",
        "^ours$|peer|difference",
    ),
    "matrix_cost": Benchmark(
        "matrix_cost.py",
        ("--markdown {page}",),
        "--sizes 100 --rows 100 --many 60 --rounds 1 --markdown {page}",
        "solve|fit|kernels|steps|matrices",
    ),
    "reliability": Benchmark(
        "calibrate_reliability.py",
        ("{reference} --uci {uci}",),
        "{reference}",
        "rank correlation|AUC|median error|worst|^error|^score$",
    ),
    "resampled_reference": Benchmark(
        "resample_reference.py",
        ("{reference} --num-samples 400 --warmup 200 --joint 04 10 16 20 26 32 38 --json {records} --markdown {page}",),
        "{shipped} --cases 46 --num-samples 50 --warmup 50 --json {records} --markdown {page}",
        "R-hat|ESS/s mse",
    ),
    "adaptive_reference": Benchmark(
        "adaptive_reference.py",
        ("{reference} --out {records} --markdown {page}",),
        "{shipped} --seeds 1 --out {records} --markdown {page}",
        "infinite|saddle|mixture|adaptive",
    ),
    "adaptive_speed": Benchmark(
        "adaptive_speed.py",
        ("--data {uci} --markdown {page}",),
        "--data {uci} --sizes 100 --temperatures 0.1 --markdown {page}",
        "Choleskys|test error|infinite width",
    ),
    "annealing_speed": Benchmark(
        "annealing_speed.py",
        ("--markdown {page}",),
        "--rows 100 --markdown {page}",
        "ratio|products|gradients",
    ),
    "width_choice": Benchmark(
        "width_choice.py",
        ("--data {uci} --markdown {page}",),
        "--data {uci} --rows 100 --widths 50 inf --markdown {page}",
        "log evidence|RMSE|NLPD|^q",
    ),
    "past_memory": Benchmark(
        "past_memory.py",
        ("--data {uci} --json {records} --markdown {page}",),
        "--data {uci} --rows 300 --rank 100 --test 50 --json {records} --markdown {page}",
        "^q$|test error|infinite width|left out|GiB|steps",
    ),
    "scale": Benchmark(
        "scale_table.py", ("--markdown {page}",), "--rows 512 --repeats 1 --markdown {page}", "ns|GB|hours"
    ),
    "convolution_vs_networks": Benchmark(
        "convolution_vs_networks.py",
        ("--json {records} --markdown {page}",),
        "--cases 0 --draws 100 --longest 100 --json {records} --markdown {page}",
        "sampled|width|scale|number|matrix|norm|of Q",
    ),
    "cifar_convolution": Benchmark(
        "cifar_convolution.py",
        ("--data {uci}/.. --json {records} --markdown {page}",),
        "--data {uci}/.. --splits 1 --sizes 50 --cases --json {records} --markdown {page}",
        "width|scale|^N =|sampled|saddle|predictor",
    ),
    "uci_additive": Benchmark(
        "uci_additive.py",
        (FITS + "--splits 6",),
        FITS + "--sets yacht --splits 1",
        "RMSE|NLPD|additive|free scales",
    ),
    "uci_table": Benchmark(
        "uci_table.py",
        (FITS + "--sets yacht energy concrete pol kin40k --splits 10",),
        FITS + "--sets yacht --splits 1 --models infinite saddle scale",
        "RMSE|NLPD|log evidence",
    ),
    "uci_predictors": Benchmark(
        "uci_predictors.py",
        (FITS + "--splits 10",),
        FITS + "--sets yacht --rows 400 --splits 1 --methods free-scale-ard saddle matern-ard mlp-ensemble",
        "^RMSE$|^NLPD$|coverage|log evidence",
    ),
    "fresh_networks": Benchmark(
        "fresh_networks.py",
        ("--data {uci} --predictions {records}.predictions --json {records} --markdown {page}",),
        "--data {uci} --predictions {records}.predictions --json {records} --markdown {page} --cases 0 "
        "--theories infinite_width saddle mixture --stage predict",  # sampled only after the predictions
        "infinite_width|saddle|mixture|adaptive|sampled test error|median|worst %",
    ),
    "outputs_vs_networks": Benchmark(
        "outputs_vs_networks.py",
        ("--json {records} --markdown {page}",),
        "--json {records} --markdown {page} --cases 0",
        "sampled|infinite width|one number|matrix",
    ),
    "uci_evidence_fits": Benchmark(
        "uci_evidence_fits.py",
        (
            FITS + f"--sets yacht energy concrete --models rbf-ard {NETWORKS}",
            FITS + f"--sets yacht energy --activation erf --models botorch-ibnn-d1 botorch-ibnn-d3 {NETWORKS}",
            FITS + "--sets energy --restarts 3 --models nngp-d1-ard matern-ard",
        ),
        FITS + "--sets yacht --splits 0 --models nngp-d1 matern-ard",
        "^RMSE$|^NLPD$|failed|at bound",
    ),
    "calibration": Benchmark(
        "../calibration.py",
        (FITS + "--width 50 --readout-variance 1 --starts 2 --evaluations 100",),
        FITS + "--sets yacht --splits 0 --models gp-fixed gp-free --starts 1",
        "NLPD|RMSE|coverage",
    ),
}


def numbers(page: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield ((section, row, column), number) of all tables of a Markdown page; in a cell the first number counts.

    A section is the text of the heading up to ":"; a row has the name of its first cell and of those that follow up to
    the first number.
    """
    section, header = "", []
    for line in page.splitlines():
        if line.startswith("#"):
            section, header = line.lstrip("# ").partition(":")[0], []
        elif not line.startswith("|"):
            header = []
        else:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if not header:
                header = cells
            elif not set(line) <= set("|-: "):
                first = next((i for i, cell in enumerate(cells[1:], 1) if NUMBER.match(cell)), len(cells))
                row = ", ".join(cells[:first])
                for column, cell in list(zip(header, cells, strict=False))[first:]:
                    if match := NUMBER.match(cell):
                        yield (section, row, column), float(match[0])


def chosen(page: str, columns: str) -> dict[tuple[str, ...], float]:
    """Return the numbers of the columns that match; where a name comes twice, the first."""
    found: dict[tuple[str, ...], float] = {}
    for name, value in numbers(page):
        if re.search(columns, name[-1]):
            found.setdefault(name, value)
    return found


def compare(name: str, old: str, new: str) -> list[str]:
    """Return the rows of the comparison: what both pages have, and what only the new one has."""
    columns = BENCHMARKS[name].columns
    before, after = chosen(old, columns), chosen(new, columns)
    lines = []
    for key, value in after.items():
        known = before.get(key)
        stored, ratio = ("-", "-") if known is None else (f"{known:.6g}", f"{value / known:.3f}" if known else "-")
        if known == value:
            ratio = "1"
        where = ", ".join(part for part in key[:-1] if part)
        lines.append(f"| {name} | {where} | {key[-1]} | {stored} | {value:.6g} | {ratio} |")
    return lines


def run(name: str, quick: bool, output: Path, places: dict[str, str]) -> Path:
    """Return the page of one benchmark, computed if it is not there."""
    page = output / f"{name}.md"
    if page.exists():
        return page
    benchmark = BENCHMARKS[name]
    parts = []
    for index, template in enumerate((benchmark.quick,) if quick else benchmark.full):
        part = output / f"{name}.part{index}.md"
        files = {"page": str(part), "records": str(output / f"{name}.part{index}.json")}
        arguments = [argument.format(**places, **files) for argument in template.split()]
        command = [sys.executable, str((HERE / benchmark.script).resolve()), *arguments]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=output)
        if "{page}" not in template and printed.returncode == 0:
            part.write_text(printed.stdout, encoding="utf-8")
        if not part.exists():  # a script that is not content with its results exits with 1, and has written them
            raise RuntimeError(f"{name}: exit status {printed.returncode} of {' '.join(command)}")
        parts.append(part)
    text = "\n".join(part.read_text(encoding="utf-8") for part in parts)
    temporary = page.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(page)  # a page is there as a whole or not at all
    for part in parts:
        part.unlink()
    return page


def main(arguments: list[str] | None = None) -> int:
    """Run, compare, print; exit status 1 where a benchmark failed."""
    root = HERE.parents[1]
    uci = Path(os.environ.get("PROPKERNEL_DATA", root.parent / "shared" / "data"))
    reference = os.environ.get("PROPKERNEL_REFERENCE", str(root.parent / "shared" / "reference"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="the smallest part of each")
    parser.add_argument("--output", type=Path, help="folder of new pages, default build/benchmarks[-quick]")
    parser.add_argument("--uci", type=Path, default=uci / "uci" if (uci / "uci").is_dir() else uci)
    parser.add_argument("--reference", type=Path, default=reference, help="folder of the sampled networks")
    parser.add_argument("--store", action="store_true", help="copy new pages of a full run to the stored ones")
    options = parser.parse_args(arguments)
    if options.store and options.quick:
        parser.error("--store: expected a full run, got --quick")
    output = (options.output or root / "build" / ("benchmarks-quick" if options.quick else "benchmarks")).resolve()
    output.mkdir(parents=True, exist_ok=True)
    places = {
        "uci": str(options.uci.resolve()),
        "reference": str(options.reference.resolve()),
        "shipped": str(root / "tests" / "data"),
    }
    lines = ["| benchmark | row | column | old | new | ratio |", "|---|---|---|---|---|---|"]
    left_out, failed = [], []
    for name in options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        wanted = BENCHMARKS[name].quick if options.quick else " ".join(BENCHMARKS[name].full)
        missing = [
            places[key] for key in ("uci", "reference") if f"{{{key}}}" in wanted and not Path(places[key]).is_dir()
        ]
        if missing:
            left_out.append(f"NOT RUN: {name}: expected data in {', '.join(missing)}, found none")
            continue
        try:
            page = run(name, options.quick, output, places)
        except RuntimeError as error:  # the others are still worth running
            failed.append(f"FAILED: {error}")
            continue
        stored = RESULTS / f"{name}.md"
        lines += compare(name, stored.read_text(encoding="utf-8") if stored.exists() else "", page.read_text("utf-8"))
        if options.store:
            shutil.copyfile(page, stored)
    text = "\n".join([*lines, "", *left_out, *failed]).strip() + "\n"
    (output / "comparison.md").write_text(text, encoding="utf-8")
    print(text)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
