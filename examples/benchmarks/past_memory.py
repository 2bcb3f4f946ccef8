"""Data past memory: kin40k with P = 36,000 rows in less than 4 GiB, and smaller parts of it beside dense matrices.

    python examples/benchmarks/past_memory.py --json past_memory.jsonl --markdown past_memory.md

One relu layer of 1,000 units at fixed hyperparameters. Each part runs in a process of its own, which measures its
memory. A part that is in the records is not run again, and an interrupted one goes on: the Lanczos run from its
checkpoint beside the records, the solves from the last block of test points.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpytorch
import torch
from _uci import (
    Cut,
    append_record,
    default_folder,
    double_precision,
    load,
    read_records,
    standardize,
    table,
    versions,
)
from torch import Tensor

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel
from torch_propkernel.inference import Problem, StreamedConditioned, StreamedProblem, Streaming
from torch_propkernel.theories import FittedTheory, SaddlePoint

WIDTH, TEMPERATURE, READOUT = 1000.0, 0.01, 50.0
GIB = 2**30


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="folder of the UCI sets")
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 8000, 36000], help="training rows")
    parser.add_argument("--dense-up-to", type=int, default=8000, help="rows up to which the matrix is held too")
    parser.add_argument("--test", type=int, default=512, help="test rows with variances, which are what costs")
    parser.add_argument("--probes", type=int, default=24)
    parser.add_argument("--max-steps", type=int, default=300, help="Lanczos steps")
    parser.add_argument("--rank", type=int, default=1000, help="of the preconditioner")
    parser.add_argument("--json", type=Path, required=True, help="records of finished parts")
    parser.add_argument("--markdown", type=Path, help="page to be written")
    parser.add_argument("--part", nargs=2, metavar=("METHOD", "ROWS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_model(data: Path, rows: int) -> tuple[NetworkGP, Tensor, Tensor]:
    """The network on the first rows of the first split, and its test points."""
    x, y, test_x, test_y = load(data / "kin40k", 0, Cut(train=rows))
    s = standardize(x, y, test_x, test_y)
    kernel = RenormalizedNNGPKernel("relu", width=WIDTH, weight_variance=[1.0, READOUT], bias_variance=0.3)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
    model = NetworkGP(s.x, s.y, likelihood, kernel)
    likelihood.noise = TEMPERATURE
    return model, s.test_x, s.test_y


def run_part(options: argparse.Namespace, method: str, rows: int) -> None:
    model, x, y = make_model(options.data, rows)
    begun = time.process_time(), time.perf_counter()
    problem = Problem.frozen(model)
    part = {"method": method, "rows": rows}
    record: dict[str, Any] = {**part, "stage": "fit"}
    if method == "streamed":
        streaming = Streaming(
            num_probes=options.probes,
            rank=options.rank,
            max_steps=options.max_steps,
            checkpoint=options.json.with_name(f"{options.json.name}.{rows}.pt"),
            columns=256,
            num_left_out=256,
        )
        problem = StreamedProblem.of_streamed(problem, streaming)
        record["estimate"] = str(problem.cost())
    fitted = SaddlePoint().fit(problem)
    record["q"] = float(fitted.order_parameters["q"])
    record["log_evidence"] = float(fitted.log_evidence)
    if isinstance(problem, StreamedProblem):
        error = fitted.stats["quadrature_error"]
        record["q_error"], record["q_truncation"] = (
            float(error.order_parameter),
            float(error.order_parameter_truncation),
        )
        record["evidence_error"] = 0.5 * WIDTH * (float(error.action) + float(error.action_truncation))
        record["steps"] = problem.lanczos.run.num_steps
        record["reduction_seconds"] = time.process_time() - begun[0]
    posteriors = {"saddle": fitted.conditioned, "wide": problem.infinite_width}
    for name, posterior in posteriors.items():
        mean = posterior.mean(x) if isinstance(posterior, StreamedConditioned) else posterior.predict(x)[0]
        record[f"predictor_{name}"] = float((mean.detach() - y).square().mean())
    record["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    append_record(options.json, record)
    record = {**part, "stage": "errors"}
    x, y = x[: options.test], y[: options.test]
    record["saddle"], record["wide"] = errors(options, method, rows, fitted, x, y)
    left_out = fitted.conditioned.leave_one_out().total
    record["left_out"], record["left_out_error"] = float(left_out.mean()), float(left_out.std() / len(left_out) ** 0.5)
    record["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    record["cpu_seconds"], record["seconds"] = time.process_time() - begun[0], time.perf_counter() - begun[1]
    append_record(options.json, record)


def errors(
    options: argparse.Namespace, method: str, rows: int, fitted: FittedTheory, x: Tensor, y: Tensor
) -> tuple[list[float], list[float]]:
    """Expected squared errors at finite and infinite width, in blocks of points; the records have some blocks."""
    saddle: list[float] = []
    wide: list[float] = []
    for index, (points, targets) in enumerate(zip(x.split(256), y.split(256), strict=True)):
        key = {"block": index, "method": method, "rows": rows}
        known = [r for r in read_records(options.json) if key.items() <= r.items()]
        if not known:
            error = fitted.error(points, targets)
            known = [{**key, "saddle": error.total.tolist(), "wide": error.infinite_width.total.tolist()}]
            append_record(options.json, known[0])
        saddle += known[0]["saddle"]
        wide += known[0]["wide"]
    return saddle, wide


def write_page(options: argparse.Namespace) -> str:
    found = read_records(options.json)
    fits = {(r["rows"], r["method"]): r for r in found if r.get("stage") == "fit"}
    records = {(r["rows"], r["method"]): r for r in found if r.get("stage") == "errors"}
    sizes = " ".join(map(str, options.rows))
    probes = f"{options.probes} probes, a preconditioner of rank {options.rank}"
    lines = [
        "# Data past memory: kin40k without its kernel matrix",
        "",
        f"One relu layer of {WIDTH:.0f} units, T = {TEMPERATURE}, all hyperparameters fixed; {probes}.",
        "The error of q is the standard error from the probes, then the difference of the Gauss and the Gauss-Radau",
        "rules; that of the log evidence is their sum. The predictor's error is that of the posterior mean at all test",
        "points, in units of the targets' variance, here and at infinite width. Test errors are bias plus variance,",
        f"at {options.test} test points at most, of both methods at the same ones, +- the standard error over points;",
        "the bar of the difference is what the error of q moves and the tolerance of the solves. Leave-one-out errors",
        "are over all points (dense) or a sample of 256 (streamed). A part that is missing was not run to its end.",
        "",
        f"`python examples/benchmarks/past_memory.py --rows {sizes} --test {options.test}`; {versions()}.",
        "",
    ]
    header = "method", "rows", "q", "error of q", "steps", "log evidence", "its error", "predictor", "infinite width"
    rows = []
    for (size, method), r in sorted(fits.items()):
        bar = f"{r['q_error']:.1g}, {r['q_truncation']:.1g}" if "q_error" in r else "-"
        evidence = f"{r['evidence_error']:.2g}" if "q_error" in r else "-"
        rows.append(
            (
                method,
                f"P {size}",
                f"{r['q']:.6f}",
                bar,
                r.get("steps", "-"),
                f"{r['log_evidence']:.1f}",
                evidence,
                f"{r['predictor_saddle']:.6f}",
                f"{r['predictor_wide']:.6f}",
            )
        )
    lines += ["## Order parameter and evidence", "", *table(header, rows), ""]
    header = "method", "rows", "test error", "infinite width", "left out", "test error - dense", "its bar"
    rows = []
    for (size, method), r in sorted(records.items()):
        fit = fits[size, method]
        saddle, wide = (torch.tensor(r[name]) for name in ("saddle", "wide"))
        dense, gap, bar = records.get((size, "dense")), "-", "-"
        if method == "streamed":
            # What the error of q moves, by the secant to q = 1, and the tolerance of variances.
            slope = float((wide - saddle).mean()) / math.log(fit["q"])
            moved = abs(slope) * (fit["q_error"] + fit["q_truncation"]) / fit["q"]
            bar = f"{moved + 1e-3 * float(saddle.mean()):.1g}"
            gap = "-" if dense is None else f"{float((saddle - torch.tensor(dense['saddle'])).mean()):.1g}"
        spread = float(saddle.std()) / math.sqrt(len(saddle))
        rows.append(
            (
                method,
                f"P {size}",
                f"{float(saddle.mean()):.5f} +- {spread:.1g}",
                f"{float(wide.mean()):.5f}",
                f"{r['left_out']:.5f} +- {r['left_out_error']:.1g}",
                gap,
                bar,
            )
        )
    lines += ["## Errors", "", *table(header, rows), ""]
    header = "method", "rows", "GiB at the peak", "CPU s", "of it the reduction", "estimate before"
    rows = []
    for (size, method), fit in sorted(fits.items()):
        r = records.get((size, method), {})
        part = f"{fit['reduction_seconds']:.0f}" if "reduction_seconds" in fit else "-"
        seconds = f"{r['cpu_seconds']:.0f}" if r else "-"
        rows.append((method, f"P {size}", f"{r.get('gib', fit['gib']):.2f}", seconds, part, fit.get("estimate", "-")))
    lines += ["## Memory and time", "", *table(header, rows), ""]
    lines += [
        "The memory is that of the whole process, of which Python with its libraries takes some 0.3 GiB. The CPU",
        "time is that after the last start, if a part was interrupted. The estimate before is of the memory to be",
        f"allocated and of the time of {options.max_steps} Lanczos steps, the limit.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = parse()
    if options.part:
        with double_precision():
            run_part(options, options.part[0], int(options.part[1]))
        return
    for rows in options.rows:
        for method in ("dense", "streamed")[rows > options.dense_up_to :]:
            done = {(r["method"], r["rows"]) for r in read_records(options.json) if r.get("stage") == "errors"}
            if (method, rows) not in done:
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", method, str(rows)], check=True)
    page = write_page(options)
    if options.markdown is None:
        print(page)
    else:
        options.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
