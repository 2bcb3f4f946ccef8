"""The text of a choice of networks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .network_choice import NetworkChoice

NATS = 3.0


def report(choice: NetworkChoice) -> str:
    """Return the whole table."""
    points = choice.pointwise_log_density.shape[-1]
    cells = choice.log_evidence.numel()
    lines = [
        f"{cells} networks, {points} points. Probabilities are posterior ones over the grid, every network of the grid",
        "equally likely a priori; evidence is integrated over the finite width's scale.",
        "",
        f"{'':18s}{'recommended':>14s}{'probability':>13s}{'spread, nats':>14s}   within {NATS:g} nats of the best",
    ]
    for axis, values in choice.grid.items():
        if len(values) > 1:
            lines.append(_axis(choice, axis))
    fixed = [f"{axis} {_show(values[0])}" for axis, values in choice.grid.items() if len(values) == 1]
    lines += [f"fixed: {', '.join(fixed)}"] if fixed else []
    lines += ["", *_predictions(choice), ""]
    if math.inf in choice.grid["width"] and len(choice.grid["width"]) > 1:
        lines += _width_against_infinite(choice)
    lines += [
        "With a free readout variance infinite width always reaches the higher evidence (an average over the scale is",
        "at most its maximum): a preference for a finite width at fixed variances may only say that another variance",
        "is right. Compare with the free scale above before reading anything into a width.",
    ]
    return "\n".join(lines)


def _axis(choice: NetworkChoice, axis: str) -> str:
    values, marginal = choice.grid[axis], choice.marginal(axis)
    value = choice.recommended[axis]
    place = values.index(value)
    spread = float(marginal.max() - marginal.min())
    near = ", ".join(_show(each) for each in choice.plausible(axis, NATS))
    note = "no preference" if choice.preference(axis, NATS) is None else near
    numeric = axis not in ("activation", "width", "depth")
    if numeric and place in (0, len(values) - 1) and note != "no preference":
        note += "  (at the edge of the grid)"
    probability = float(choice.probability(axis)[place])
    return f"{axis:18s}{_show(value):>14s}{probability:13.2f}{spread:14.1f}   {note}"


def _predictions(choice: NetworkChoice) -> list[str]:
    best = choice.index()
    rows: list[tuple[str, Any]] = [("recommended network", best)]
    if math.inf in choice.grid["width"]:
        rows.append(("the same, infinite width", choice.index(width=math.inf)))
    rows.append(("best by leave-one-out", choice.index(**choice.best_left_out)))
    rows += [(baseline.name, baseline) for baseline in choice.baselines]
    lines = [
        f"{'leave-one-out':44s}{'log density':>12s}{'minus recommended':>22s}{'sq. error':>12s}",
    ]
    for name, each in rows:
        if isinstance(each, tuple):
            density, error = choice.leave_one_out_log_density[each], choice.leave_one_out_error[each]
        else:
            density, error = each.leave_one_out_log_density, each.leave_one_out_error
        gap = "" if each == best else "{:+.4f} +- {:.4f}".format(*choice.difference(each, best))
        lines.append(f"{name:44s}{float(density):12.4f}{gap:>22s}{float(error):12.5g}")
    lines.append("(mean over points, higher density is better; differences paired by point, standard errors too small")
    lines.append("rather than too large; hyperparameters were chosen on all points)")
    found = choice.best_left_out
    differing = [f"{axis} {_show(value)}" for axis, value in found.items() if value != choice.recommended[axis]]
    if differing:
        lines.append(f"best by leave-one-out differs from the recommended one in: {', '.join(differing)}")
    return lines


def _width_against_infinite(choice: NetworkChoice) -> list[str]:
    if choice.preference("width", NATS) is None:
        return [f"Width: no preference, the marginal evidences of all widths lie within {NATS:g} nats."]
    width = choice.recommended["width"]
    if math.isinf(width):
        return ["Width: infinite width has the highest evidence."]
    mean, error = choice.difference(choice.index(), choice.index(width=math.inf))
    place = choice.grid["width"].index(math.inf)
    behind = float(choice.log_evidence.max() - choice.log_evidence[..., place].max())
    ahead = "ahead of" if mean > 2.0 * error else "behind" if mean < -2.0 * error else "tied with"
    return [
        f"Width: {_show(width)} has the highest evidence, {behind:.1f} nats above the best infinite width of the grid;",
        f"its leave-one-out log density is {ahead} infinite width's at the same variances "
        f"({mean:+.4f} +- {error:.4f}).",
    ]


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
