"""``predict``: means, deviations and quantiles of a saved model at new rows."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._memory import check_memory, estimate_fit
from ..datasets.csv import CsvTable, read_csv
from ..inference import Problem, StreamedProblem
from ..inference.streamed import streamed_past_memory
from ..models import FiniteNetworkProcess, NetworkGP
from ..saving import SavedModel, load
from .comparison import as_mixture
from .options import add_json, add_reading, new_parser, numbers, reading
from .output import STDOUT, Output
from .steps import steps

CHUNK = 1000

EPILOG = """\
the columns of NEW.csv are found by their names if the model and the file have names (further ones, such as the target,
are passed over, whatever they hold); without names there must be as many columns as the model has inputs, in the same
order. Everything is in the units of the table that the model was fitted on.

the predictive is that of the theory that fit has saved; quantiles are those of a new noisy target.

columns of the output, and keys of "predictions" in --json (lists): line (of NEW.csv), mean, standard_deviation (of the
network's function), standard_deviation_with_noise, and q... for each quantile. Further keys of --json: model, data,
target, inputs (names or null), dropped_lines, versions (of the packages that saved the model).

examples:
  torch-propkernel fit data.csv --no-plot --save model.propkernel
  torch-propkernel predict model.propkernel new.csv --quantiles 0.05,0.95 --out predictions.csv"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = new_parser(
        subparsers,
        "predict",
        "predict the targets of new rows with a model that fit has saved",
        "Predict the targets of new rows with a saved model: means, standard deviations with and without noise, "
        "quantiles.",
        EPILOG,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a file written by fit --save or torch_propkernel.saving.save")
    add("data", type=Path, metavar="NEW.csv", help="numeric table of inputs")
    add_reading(parser)
    add("--quantiles", type=numbers, default=(0.05, 0.5, 0.95), metavar="P[,P...]", help="(default: 0.05,0.5,0.95)")
    add("--out", type=Path, metavar="PATH", help="where the CSV goes (default: stdout, or nowhere with --json -)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict and write."""
    path = STDOUT if arguments.out is None and arguments.json != STDOUT else arguments.out
    output = Output({"MODEL": arguments.model, "NEW.csv": arguments.data}, {"--out": path, "--json": arguments.json})
    if not all(0.0 < p < 1.0 for p in arguments.quantiles):
        raise ValueError(f"--quantiles: expected numbers between 0 and 1, got {list(arguments.quantiles)}")
    saved = load(arguments.model)
    if type(saved.model) not in (NetworkGP, FiniteNetworkProcess):
        raise ValueError(
            f"{arguments.model}: expected a NetworkGP or a FiniteNetworkProcess, got a "
            f"{type(saved.model).__name__}; use it in Python"
        )
    table = read_csv(arguments.data, **reading(arguments), only=_names(saved))
    if not _is_streamed(saved):
        check_memory(str(arguments.model), estimate_fit(len(saved.model.train_targets), min(CHUNK, len(table.lines))))
    x = _inputs(saved, table)
    if saved.normalization is not None:
        x = saved.normalization.to_model(x)
    columns = _predict(saved, x, arguments.quantiles)
    columns = {"line": list(table.lines), **columns}
    if table.incomplete:
        shown = ", ".join(map(str, table.incomplete[:8])) + (", ..." if len(table.incomplete) > 8 else "")
        print(f"left out: {len(table.incomplete)} rows with missing values (lines {shown})", file=sys.stderr)
    if path is not None:
        output.table(path, list(columns), zip(*columns.values(), strict=True), "predictions")
    record = {
        "model": str(arguments.model),
        "data": str(arguments.data),
        "target": saved.extra.get("target"),
        "inputs": _names(saved),
        "dropped_lines": list(table.incomplete),
        "versions": saved.versions,
        "predictions": columns,
    }
    output.numbers(record)
    return 0


def _is_streamed(saved: SavedModel) -> bool:
    """Whether the model predicts without its matrix of training rows, which does not fit; said on stderr."""
    model = saved.model
    able = not isinstance(model, FiniteNetworkProcess) or (model.kept_fit is None and model.theory.has_streaming)
    if not (able and isinstance(streamed_past_memory(Problem.frozen(model)), StreamedProblem)):
        return False
    print(f"{len(model.train_targets)} training rows do not fit into memory as a matrix: streamed", file=sys.stderr)
    return True


def _names(saved: SavedModel) -> list[str] | None:
    return saved.extra.get("columns", {}).get("inputs")


def _inputs(saved: SavedModel, table: CsvTable) -> Tensor:
    """Return the model's input columns, in its order and without those it does not use.

    Raises:
        ValueError: Missing columns, or another number of them.
    """
    columns: dict[str, Any] = saved.extra.get("columns", {})
    names, count = _names(saved), columns.get("count", saved.model.train_inputs[0].shape[-1])
    values = table.values
    if names is not None and table.names is not None:
        missing = [name for name in names if table.names.count(name) != 1]
        if missing:
            raise ValueError(
                f"{table.path}: expected the columns {names}, each once, got {list(table.names)}: look at {missing}"
            )
        values = values[:, [table.names.index(name) for name in names]]
    elif values.shape[-1] != count:
        wanted = f"{count} columns" + ("" if names is None else f" ({', '.join(names)})")
        raise ValueError(f"{table.path}: expected {wanted}, got {values.shape[-1]}; the target is not among them")
    return values[:, columns.get("kept", list(range(count)))]


def _predict(saved: SavedModel, x: Tensor, quantiles: tuple[float, ...]) -> dict[str, list[float]]:
    """Return columns in the user's units; exact algebra whatever the number of rows."""
    model, units = saved.model, saved.normalization
    x = x.to(model.train_targets.dtype)
    with torch.no_grad(), steps(1 + math.ceil(len(x) / CHUNK)) as step:
        step("training rows")
        if isinstance(model, FiniteNetworkProcess):
            posterior, problem = model.fitted.conditioned, model.fitted.problem
        else:
            problem = streamed_past_memory(Problem.frozen(model))
            posterior = problem.conditioned()
        noise, pieces = problem.noise_diagonal(), []
        for rows in problem.points(x.to(problem.targets.dtype)).split(CHUNK):
            step("new rows")
            latent = as_mixture(posterior.distribution(rows))
            law = latent.add_noise(noise)
            pieces.append([law.mean, latent.stddev, law.stddev, *(law.icdf(p) for p in quantiles)])
        mean, spread, noisy, *levels = (torch.cat(column).double() for column in zip(*pieces, strict=True))
        found = {"mean": mean} | {f"q{p:g}": level for p, level in zip(quantiles, levels, strict=True)}
        if units is not None:
            found = {name: units.targets.value(value) for name, value in found.items()}
            spread, noisy = units.targets.deviation(spread), units.targets.deviation(noisy)
    first = {"mean": found.pop("mean"), "standard_deviation": spread, "standard_deviation_with_noise": noisy}
    return {name: value.tolist() for name, value in (first | found).items()}
