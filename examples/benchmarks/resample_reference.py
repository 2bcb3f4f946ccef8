"""Sample the posteriors of a file of reference networks again, with the package's own sampler.

Usage::

    python examples/benchmarks/resample_reference.py [DIR] [--cases ID ...] [--joint ID ...] [--markdown OUT]

DIR (default ``tests/data``, three small cases) holds ``finite_networks.json`` as described in
``examples/compare_with_sampled_networks.py``; every case needs ``measured``, here also with

``qv``
    E[lambda_L |v|^2 / N_L],
``train``
    E (y - f)^2 averaged over the training points,
``nll``
    E[(1/2) log det A + (1/2) y^T A^{-1} y], A the covariance of y given the hidden weights: minus the log likelihood
    without the constant (P/2) log 2 pi.

For every case six values are compared with the file's, in units of the combined standard error, and the effective
samples per second of processor time after the warm-up are given, for the test error and for the worst of the six. The
cases of ``--joint`` are sampled a second time by the same Hamiltonian Monte Carlo over all weights, the readout
included, instead of integrating the readout out. Cases with a difference beyond 3 combined standard errors, or that
have not converged, are sampled once more in both ways, with eight times as many draws and another seed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from torch_propkernel.activations import get_activation
from torch_propkernel.exceptions import SamplingWarning
from torch_propkernel.networks import FiniteNetwork, HamiltonianMonteCarlo, MonteCarloEstimate, sample_posterior

NAMES = {
    "mse": "test_error",
    "bias2": "bias",
    "variance": "variance",
    "qv": "order_parameter",
    "train": "training_error",
    "nll": "log_likelihood",
}
LIMIT = 4.0  # combined standard errors
RUNS = ["marginal", "joint", "again", "again joint"]
DOUBT = 3.0  # beyond this a case is sampled again,
LONGER = 8  # with so many times the draws


def resample(case: dict, folder: Path, num_samples: int, warmup: int, run: str = "marginal") -> dict:
    """Return what one of the RUNS measured, compared with the file."""
    again, joint = "again" in run, "joint" in run
    num_samples *= LONGER if again else 1
    with np.load(folder / case["arrays"]) as arrays:
        x, y, test_x, test_y = (torch.as_tensor(arrays[k], dtype=torch.float64) for k in ("X", "y", "Xt", "yt"))
    variances = [1.0 / precision for precision in case["precisions"]]
    activation = get_activation(case["activation"])
    network = FiniteNetwork(activation, x.shape[1], case["widths"], weight_variance=variances, dtype=torch.float64)
    clock = {"start": time.process_time()}

    def tick(done: int, total: int) -> None:
        if done == warmup:
            clock["warm"] = time.process_time()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # reported in the table
        result = sample_posterior(
            network,
            x,
            y,
            case["temperature"],
            test_x=test_x,
            test_y=test_y,
            sampler=HamiltonianMonteCarlo(integrate_readout=not joint),
            num_samples=num_samples,
            warmup=warmup,
            seed=int(again),
            progress=tick,
        )
    end = time.process_time()
    values, constant = dict(result.estimates), 0.5 * len(y) * math.log(2.0 * math.pi)
    nll = values["log_likelihood"]
    values["log_likelihood"] = MonteCarloEstimate(
        -nll.mean - constant, nll.standard_error, nll.effective_sample_size, nll.r_hat
    )
    compared = {}
    for name, own in NAMES.items():
        if name in case["measured"]:
            file, value = case["measured"][name], values[own]
            error = math.hypot(value.standard_error.item(), file["se"])
            compared[name] = {
                "mean": value.mean.item(),
                "se": value.standard_error.item(),
                "z": (value.mean.item() - file["mean"]) / error,
            }
    sizes = {name: value.effective_sample_size.item() for name, value in values.items()}
    seconds = end - clock["warm"]
    return {
        "id": case["id"],
        "case": f"{case.get('dataset', '')} {case['activation']} P={len(y)} N={','.join(map(str, case['widths']))}",
        "temperature": case["temperature"],
        "run": run,
        "values": compared,
        "worst_z": max(abs(value["z"]) for value in compared.values()),
        "converged": result.converged,
        "message": result.message,
        "max_r_hat": max(value.r_hat.item() for value in values.values()),
        "steps_per_draw": result.num_gradients / num_samples,
        "acceptance": result.acceptance,
        "seconds": end - clock["start"],
        "test_error_per_second": sizes["test_error"] / seconds,
        "worst_per_second": min(sizes.values()) / seconds,
    }


HEADER = "| id | case | T | mse | bias2 | variance | qv | train | nll | R-hat | steps | ESS/s mse | ESS/s worst | s |"
RULE = "|" + "---|" * 14


def table_row(row: dict) -> str:
    """Return the line of one run."""
    z = " | ".join(f"{row['values'][name]['z']:+.1f}" if name in row["values"] else "" for name in NAMES)
    return (
        f"| {row['id']} | {row['case']} | {row['temperature']:g} | {z} | {row['max_r_hat']:.4f} | "
        f"{row['steps_per_draw']:.1f} | {row['test_error_per_second']:.0f} | {row['worst_per_second']:.0f} | "
        f"{row['seconds']:.0f} |"
    )


def markdown(rows: list[dict], settings: str) -> str:
    """Return the results as a page."""
    rows = sorted(rows, key=lambda row: row["id"])
    marginal = [row for row in rows if row["run"] == "marginal"]
    again = [row for row in rows if "again" in row["run"]]
    joint = {row["id"]: row for row in rows if row["run"] == "joint"}
    num_values = sum(len(row["values"]) for row in marginal)
    beyond = sum(abs(value["z"]) > LIMIT for row in marginal for value in row["values"].values())
    squares = [value["z"] ** 2 for row in marginal for value in row["values"].values()]
    lines = [
        "# Reference networks sampled again",
        "",
        f"`python examples/benchmarks/resample_reference.py DIR`, {settings}. Columns mse to nll: difference to the "
        "file in combined standard errors.",
        "",
        f"- {num_values - beyond} of {num_values} values in {len(marginal)} cases lie within {LIMIT:g} combined "
        f"standard errors; the largest difference is {max(row['worst_z'] for row in marginal):.2f}, rms "
        f"{math.sqrt(sum(squares) / len(squares)):.2f} (1 expected).",
        f"- {sum(row['converged'] for row in marginal)} of {len(marginal)} runs converged by their own diagnostics "
        "(R-hat at most 1.01, effective sample size at least 400, at most one divergent transition in 1000).",
        f"- {sum(row['seconds'] for row in marginal) / 60:.1f} core-minutes for these runs, warm-up included.",
        "",
        "ESS/s: effective samples per second of processor time after the warm-up (one core of a machine with other "
        "work), of the test error and of the worst of the six values. steps: gradients for a draw. s: whole run.",
        "",
        HEADER,
        RULE,
    ]
    lines += [table_row(row) for row in marginal]
    unfinished = [row for row in marginal if not row["converged"]]
    lines += [""] + [f"- {row['id']}: {row['message']}" for row in unfinished]
    if again:
        lines += [
            "",
            "## Sampled once more",
            "",
            f"Cases beyond {DOUBT:g} combined standard errors or not converged: {LONGER} times as many draws, another "
            "seed, in both ways (second line: all weights sampled).",
            "",
            HEADER,
            RULE,
        ]
        lines += [table_row(row) for row in again]
        lines += [""] + [f"- {row['id']}: {row['message']}" for row in again]
    if joint:
        lines += [
            "",
            "## Readout integrated out against all weights sampled",
            "",
            "The same Hamiltonian Monte Carlo (step size adapted likewise) over the hidden weights with the readout "
            "integrated out, and over all weights.",
            "",
            "| id | case | T | ESS/s mse | all weights | ratio | ESS/s worst | all weights | ratio | worst z | R-hat |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in marginal:
            if (other := joint.get(row["id"])) is not None:
                pairs = " | ".join(
                    f"{row[key]:.1f} | {other[key]:.1f} | {row[key] / other[key]:.1f}"
                    for key in ("test_error_per_second", "worst_per_second")
                )
                lines.append(
                    f"| {row['id']} | {row['case']} | {row['temperature']:g} | {pairs} | {other['worst_z']:.1f} | "
                    f"{other['max_r_hat']:.3f} |"
                )
        lines += ["", "The last two columns belong to the run over all weights."]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[2] / "tests" / "data")
    parser.add_argument("--cases", nargs="*", help="ids of the cases; all if not given")
    parser.add_argument("--joint", nargs="*", default=[], help="ids of cases to be sampled over all weights too")
    parser.add_argument("--num-samples", type=int, default=600, help="draws of each of the 8 chains")
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write all numbers there, and skip what it has")
    parser.add_argument("--markdown", type=Path, help="write the page of results there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = {case["id"]: case for case in json.loads((options.folder / "finite_networks.json").read_text())}
    settings = f"8 chains of {options.num_samples} draws after {options.warmup} of warm-up, float64, one CPU thread"
    rows: list[dict] = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    done = {(row["id"], row["run"]): row for row in rows}
    for case in [cases[name] for name in options.cases or cases]:
        for run in RUNS:
            first = done.get((case["id"], "marginal"))
            in_doubt = first is not None and (first["worst_z"] > DOUBT or not first["converged"])
            wanted = in_doubt if "again" in run else run == "marginal" or case["id"] in options.joint
            if (case["id"], run) in done or not wanted:
                continue
            row = resample(case, options.folder, options.num_samples, options.warmup, run)
            rows.append(row)
            done[case["id"], run] = row
            print(f"{row['id']} {row['case']} ({run}): worst z {row['worst_z']:.2f}, {row['message']}", flush=True)
            print(
                f"    {row['test_error_per_second']:.0f} effective test errors per second, worst observable "
                f"{row['worst_per_second']:.0f}; {row['seconds']:.0f} s",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(rows, settings))


if __name__ == "__main__":
    main()
