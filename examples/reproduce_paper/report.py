"""The table: every point, every theory's relative error, and where theories fail."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from .experiments import TEMPERATURE
from .theory import BASELINES

FAILED = 0.1
"""A theory is said to fail at a point where its test error is off by more, and by more than two standard errors."""


def markdown(results: dict) -> str:
    """Return the report; it repeats what the numbers say and nothing else."""
    points = unique_points(results["curves"])
    about, sampling = results["about"], results["sampling"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    draws = "{num_chains} chains of {num_samples} draws after {warmup} of warm-up, {num_test} test points"
    lines = [
        "# The paper's experiments, with sampled networks",
        "",
        "Written by `python examples/reproduce_paper`; `--help` says what is computed. Bayesian networks of one to",
        "three hidden layers, weight variances 1, no biases. Their posteriors were sampled by Hamiltonian Monte Carlo:",
        f"{draws.format(**sampling)} (fewer where images are few).",
        *_repeated(points, sampling),
        "Each task has one training set and one test set: predictions and sampled networks see the same data, and",
        "nothing is averaged over data sets. Sizes are smaller than the paper's.",
        "",
        *(f"- {text}" for text in dict.fromkeys(_describe(curve) for curve in results["curves"])),
        "",
        f"{versions}, Python {about['python']}, device {about['device']}.",
        *_missing(results["missing"]),
        "",
        "## Relative error of the predicted test error: median / worst, percent",
        *_by_depth(points, _summary),
        "",
        *_failures(points),
        "",
        *_convergence(points),
        "",
        "## Every point",
        "",
        "`measured` is E (y_* - f(x_*))^2 with its Monte Carlo standard error. The columns of theories are",
        "(predicted - measured) / measured in percent. PR is the participation ratio of the training inputs, q the",
        "measured lambda |v|^2 / N of the readout, `q saddle` what the first theory after the baselines predicts for",
        "it. R-hat and ESS are the worst of all scalars. `warns`: what `fit_order_parameters` says from the training",
        "data alone.",
        *_by_depth(points, _table),
    ]
    return "\n".join(lines) + "\n"


def _repeated(points: list[dict], sampling: dict) -> list[str]:
    draws = [point["draws"]["num_samples"] for point in points if point["measured"]]
    count = sum(number > sampling["num_samples"] for number in draws)
    times = f"{sampling['repeat']} times the draws, because the first run had not converged."
    return [f"{count} of {len(points)} points were sampled again, with {times}"] if count else []


def _missing(points: list[dict]) -> list[str]:
    names = dict.fromkeys(f"{_group(p)}, N = {_widths(p)}, P = {p['num_data']}" for p in points)
    if not names:
        return []
    head = f"NOT COMPUTED within the time limit, so absent below ({len(names)}; the same command goes on):"
    return ["", head, "", *(f"- {name}" for name in names)]


def _by_depth(points: list[dict], table: Callable[[list[dict]], list[str]]) -> list[str]:
    """Return a table for one hidden layer and one for several: the theories differ."""
    lines = []
    for title, is_deep in (("One hidden layer", False), ("Several hidden layers", True)):
        chosen = [point for point in points if (len(point["widths"]) > 1) == is_deep]
        lines += ["", f"### {title}", "", *table(chosen)] if chosen else []
    return lines


def unique_points(curves: list[dict]) -> list[dict]:
    """Return the sampled points once each, with the titles of their curves."""
    found = {}
    for curve in curves:
        for point in curve["points"]:
            key = point["task"], point["activation"], tuple(point["widths"]), point["num_data"]
            found.setdefault(key, point | {"title": curve["title"]})
    return list(found.values())


def relative_errors(point: dict, quantity: str = "test_error") -> dict[str, float]:
    """Return (predicted - measured) / measured by theory; empty where sampling failed."""
    if not point["measured"]:
        return {}
    mean = point["measured"][quantity]["mean"]
    theories = {name: values for name, values in point["predicted"].items() if name != "reliability"}
    return {name: (values[quantity] - mean) / mean for name, values in theories.items()}


def _describe(curve: dict) -> str:
    return f"{curve['description']}; T = {TEMPERATURE[curve['task']]:g}"


def _group(point: dict) -> str:
    depth = len(point["widths"])
    return f"{point['title']}, {point['activation']}" + (f", L = {depth}" if depth > 1 else "")


def _summary(points: list[dict]) -> list[str]:
    """Return median and worst relative errors of the test error for each group of points."""
    groups: dict[str, dict[str, list[float]]] = {}
    for point in points:
        for name, error in relative_errors(point).items():
            groups.setdefault(_group(point), {}).setdefault(name, []).append(abs(error))
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    lines = ["| | points | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for group, errors in groups.items():
        cells = [
            f"{100 * median(errors[name]):.1f} / {100 * max(errors[name]):.1f}" if name in errors else ""
            for name in names
        ]
        lines.append(f"| {group} | {len(errors['infinite width'])} | " + " | ".join(cells) + " |")
    return lines


def _failures(points: list[dict]) -> list[str]:
    """Say where the default saddle point fails, whether it was warned of, and where a baseline is better."""
    failed, beaten, silent, alarms, count = [], [], 0, 0, 0
    for point in points:
        errors = relative_errors(point)
        if not errors:
            continue
        count += 1
        measured, error = point["measured"]["test_error"], errors[_main(point)]
        noise = 2.0 * measured["standard_error"] / measured["mean"]
        is_off, is_warned = abs(error) > max(FAILED, noise), not point["predicted"]["reliability"]["reliable"]
        silent += is_off and not is_warned
        alarms += is_warned and not is_off
        text = f"- {_name(point)}: {100 * error:+.0f} %"
        failed += [text] if is_off else []
        better = min(BASELINES, key=lambda name: abs(errors[name]))
        if abs(error) > abs(errors[better]) + noise:
            beaten.append(f"{text}, {better} {100 * errors[better]:+.0f} %")
    return [
        "## Where the saddle point fails",
        "",
        f"Off by more than {100 * FAILED:.0f} % and two standard errors at {len(failed)} of {count} points. The",
        f"package does not warn at {silent} of them, and warns at {alarms} other points.",
        "",
        *(failed or ["- nowhere"]),
        "",
        f"A baseline, {' or '.join(BASELINES)}, is closer by more than two standard errors at {len(beaten)} points:",
        "",
        *(beaten or ["- nowhere"]),
    ]


def _convergence(points: list[dict]) -> list[str]:
    failed = [f"- {_name(point)}" for point in points if not point["converged"]]
    return [
        "## Sampling",
        "",
        f"{len(points) - len(failed)} of {len(points)} runs converged: R-hat at most 1.01 and an effective sample size",
        "of at least 400 for every scalar, no divergent transition. Others are drawn hollow and marked in the tables:",
        "",
        *(failed or ["- none"]),
    ]


def _name(point: dict) -> str:
    mark = "" if point["converged"] else " (NOT CONVERGED)"
    return f"{_group(point)}, N = {_widths(point)}, P = {point['num_data']}{mark}"


def _main(point: dict) -> str:
    return next(name for name in point["predicted"] if name not in BASELINES)


def _widths(point: dict) -> str:
    return " x ".join(f"{width:g}" for width in point["widths"])


def _table(points: list[dict]) -> list[str]:
    names = list(dict.fromkeys(name for point in points for name in relative_errors(point)))
    header = ["data", "activation", "N", "P", "PR", "measured", *names, "q", "q saddle", "R-hat", "ESS", "warns"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for point in points:
        reliability = point["predicted"]["reliability"]
        start = [point["title"], point["activation"], _widths(point), point["num_data"]]
        start.append(f"{reliability['participation_ratio']:.1f}")
        warns = "" if reliability["reliable"] else "yes"
        if not point["measured"]:
            cells = [*start, "sampling failed", *[""] * (len(names) + 4), warns]
        else:
            errors, measured = relative_errors(point), point["measured"]
            error, q = measured["test_error"], measured["order_parameter"]
            mark = "" if point["converged"] else " NOT CONVERGED"
            cells = [*start, f"{error['mean']:.4f} +- {error['standard_error']:.4f}{mark}"]
            cells += [f"{100 * errors[name]:+.1f}" if name in errors else "" for name in names]
            cells += [f"{q['mean']:.3f}", f"{point['predicted'][_main(point)]['order_parameter']:.3f}"]
            cells.append(f"{max(value['r_hat'] for value in measured.values()):.3f}")
            cells.append(f"{min(value['effective_sample_size'] for value in measured.values()):.0f}")
            cells.append(warns)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
