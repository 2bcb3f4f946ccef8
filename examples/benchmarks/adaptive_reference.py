"""Infinite width, saddle and the adaptive theory against sampled networks, with one hidden layer and with more.

Usage::

    python examples/benchmarks/adaptive_reference.py [DIR] [--out FILE.jsonl] [--markdown FILE.md] [--seeds 3]

DIR (default ``tests/data``) is a folder as described in ``examples/compare_with_sampled_networks.py``. Every case is
one line of FILE.jsonl as soon as it is done; a second call goes on where the first one stopped. The adaptive theory is
solved with several seeds: the first is the prediction, the spread of all says how large its Monte Carlo noise is,
beside the error that the theory states itself. Networks with more layers have a section of their own: the saddle there
is the outer form (7), and the gated theory stands beside it where it applies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from compare_with_sampled_networks import build, load  # noqa: E402

from torch_propkernel.theories import Adaptive, Gated, InfiniteWidth, Mixture, SaddlePoint  # noqa: E402

NAMES = ("infinite", "saddle", "mixture", "adaptive")
DEEP = ("infinite", "saddle", "gated", "adaptive")
TARGETS = {"median": 1.0, "90th percentile": 5.0}  # percent, of the adaptive theory
MARGIN = 2.0  # percentage points by which it may be worse than the saddle


def run(case: dict, folder: Path, seeds: int) -> dict:
    """Return all predictions of one case, relative to what was sampled."""
    x, y, test_x, test_y = load(case, folder)
    measured = {name: case["measured"][name]["mean"] for name in ("mse", "bias2", "variance", "qv")}
    row = {
        "id": case["id"],
        "what": f"{case['dataset']}, {case['activation']}, P = {len(y)}, N = {', '.join(map(str, case['widths']))}, "
        f"T = {case['temperature']:g}",
        "sampled": measured["mse"],
        "noise": case["measured"]["mse"]["se"] / measured["mse"],
    }
    theories = {"infinite": InfiniteWidth(), "saddle": SaddlePoint()}
    if len(case["widths"]) == 1:
        theories["mixture"] = Mixture()
    elif case["activation"] == "relu" and len(case["widths"]) == 2:
        theories["gated"] = Gated()
    for name, theory in theories.items():
        row[name] = theory.fit(build(case, x, y, "outer")).error(test_x, test_y).mean_total.item() / measured["mse"] - 1
    totals = []
    for seed in range(seeds):
        start = time.process_time()
        fitted = Adaptive(seed=seed).fit(build(case, x, y, "outer"))
        error = fitted.error(test_x, test_y)
        totals.append(error.mean_total.item() / measured["mse"] - 1)
        if seed == 0:
            row |= {
                "seconds": time.process_time() - start,
                "bias2": error.mean_bias.item() / measured["bias2"] - 1,
                "variance": error.mean_variance.item() / measured["variance"] - 1,
                "q": fitted.readout_norm.item() / measured["qv"] - 1,
                "stated": fitted.stats["monte_carlo_error"],
                **{name: fitted.stats[name] for name in ("converged", "kl_per_unit", "log_width", "ep_consistency")},
            }
    row["adaptive"] = totals[0]
    row["spread"] = statistics.stdev(totals) if seeds > 1 else 0.0
    return row


def table(rows: list[dict], names: tuple[str, ...]) -> list[str]:
    """Return the lines of one table of cases, and of its summary."""
    third = names[2]
    lines = [
        f"| case | | infinite | saddle | {third} | adaptive | noise: sampled | seeds | stated | bias | variance | q | "
        "KL / log N | EP | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        mark = "" if r["converged"] else " (not converged)"
        other = f"{100 * r[third]:+.1f}" if third in r else "-"
        lines.append(
            f"| {r['id']} | {r['what']} | {100 * r['infinite']:+.1f} | {100 * r['saddle']:+.1f} | {other} | "
            f"**{100 * r['adaptive']:+.1f}**{mark} | {100 * r['noise']:.2f} | "
            f"{100 * r['spread']:.2f} | {100 * r['stated']:.2f} | {100 * r['bias2']:+.1f} | "
            f"{100 * r['variance']:+.1f} | {100 * r['q']:+.1f} | "
            f"{r['kl_per_unit']:.1f} / {r['log_width']:.1f} | {100 * r['ep_consistency']:.1f} | "
            f"{r['seconds']:.1f} |"
        )
    errors = {name: 100 * np.abs([r[name] for r in rows if name in r]) for name in names}
    lines += ["", "| |error| in percent | " + " | ".join(names) + " |", "|---|---|---|---|---|"]
    for name, of in (
        ("median", np.median),
        ("90th percentile", lambda v: np.percentile(v, 90)),
        ("worst", np.max),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{of(e):.1f}" if len(e) else "-" for e in errors.values()) + " |")
    missed = []
    for r in rows:
        beyond = 100 * (abs(r["adaptive"]) - abs(r["saddle"])) - MARGIN
        if beyond > 200 * (r["noise"] ** 2 + r["spread"] ** 2) ** 0.5:
            missed.append(f"{r['id']} (adaptive {100 * r['adaptive']:+.1f} %, saddle {100 * r['saddle']:+.1f} %)")
    lines += ["", f"Worse than the saddle by more than {MARGIN:g} points beyond errors: {', '.join(missed) or 'none'}."]
    above = [r["id"] for r in rows if abs(r["adaptive"]) > TARGETS["90th percentile"] / 100]
    return [*lines, "", f"Off by more than 5 %: {', '.join(above) or 'none'}."]


def report(rows: list[dict], seeds: int) -> str:
    """Return the page for networks with one hidden layer."""
    lines = [
        "# The adaptive theory against sampled networks with one hidden layer",
        "",
        f"`examples/benchmarks/adaptive_reference.py`, {len(rows)} cases, {seeds} seeds. Error of the predicted test "
        "error in percent of the sampled one. The noise of sampling is one standard error, that of the adaptive theory "
        "the deviation between seeds, and beside it what the theory states itself. Seconds are of one processor.",
        "",
    ]
    return "\n".join(lines + table(rows, NAMES)) + "\n"


def report_deep(rows: list[dict], seeds: int) -> str:
    """Return the section on networks with more layers."""
    lines = [
        "## Two hidden layers",
        "",
        f"{len(rows)} cases, {seeds} seeds. The saddle is the outer form, `gated` is for relu alone and is summarized "
        "over its own cases; q is that of the last layer. All units of the layer below keep their prior, but for the "
        "scale q of that layer.",
        "",
    ]
    return "\n".join(lines + table(rows, DEEP)) + "\n"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=HERE.parent.parent / "tests" / "data")
    parser.add_argument("--out", type=Path, default=Path("adaptive_reference.jsonl"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    cases = json.loads((arguments.folder / "finite_networks.json").read_text())
    cases = [case for case in cases if "measured" in case]
    done = {}
    if arguments.out.exists():
        done = {row["id"]: row for row in map(json.loads, arguments.out.read_text().splitlines())}
    for count, case in enumerate(cases, 1):
        if case["id"] in done:
            continue
        done[case["id"]] = row = run(case, arguments.folder, arguments.seeds)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        saddle, adaptive = 100 * row["saddle"], 100 * row["adaptive"]
        print(f"{count}/{len(cases)} case {row['id']}: saddle {saddle:+.1f} %, adaptive {adaptive:+.1f} %", flush=True)
    shallow = [done[case["id"]] for case in cases if len(case["widths"]) == 1]
    deep = [done[case["id"]] for case in cases if len(case["widths"]) > 1]
    text = report(shallow, arguments.seeds) + ("\n" + report_deep(deep, arguments.seeds) if deep else "")
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
