"""The figures: error against width, against the number of training points, deep networks, order parameters."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from torch_propkernel.plotting.style import BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILLION, plain_log_axis

STYLES = {
    "infinite width": {"color": GRAY, "linestyle": "--", "linewidth": 1.4},
    "free scale": {"color": GREEN, "linestyle": "-.", "linewidth": 1.4},
    "saddle point": {"color": BLUE, "linewidth": 2.0},
    "outer": {"color": BLUE, "linewidth": 2.0},
    "outer = nested": {"color": BLUE, "linewidth": 2.0},
    "nested": {"color": PURPLE, "linestyle": (0, (4, 1, 1, 1, 1, 1)), "linewidth": 1.6},
    "linear part": {"color": SKY, "linestyle": ":", "linewidth": 2.6},
    "gated": {"color": ORANGE, "linewidth": 2.0},
    "adaptive": {"color": PURPLE, "linewidth": 2.0},
}
LABELS = {
    "width": "width $N_1$ (units)",
    "num_data": "training points P",
    "test_error": "test error $E\\,(y_* - f(x_*))^2$",
    "order_parameter": "order parameter q",
}
FIGURES = {
    "width": "Test error against the width",
    "data": "Test error against the number of training points",
    "deep": "Test error of deep networks against their width",
}


def save_figures(results: dict, folder: Path) -> list[Path]:
    """Write a PNG for each experiment of the results, and one for the order parameters of one hidden layer."""
    paths, drawn = [], [curve for curve in results["curves"] if curve["theory"]]
    for name, title in FIGURES.items():
        curves = [curve for curve in drawn if curve["name"] == name]
        if curves:
            paths.append(_save(_grid(curves, "test_error", title), folder / f"{name}.png"))
    curves = [curve for curve in drawn if curve["name"] == "width"]
    if curves:
        title = r"Order parameter against $\alpha = P / N_1$"
        paths.append(_save(_grid(curves, "order_parameter", title), folder / "order_parameter.png"))
    return paths


def _save(figure: Figure, path: Path) -> Path:
    """Write a PNG of 64 colors, which needs a third of the bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=100)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def _grid(curves: list[dict], quantity: str, title: str) -> Figure:
    """Draw one panel for each curve: a row for each activation, a column for each task or depth."""
    rows = list(dict.fromkeys(curve["activation"] for curve in curves))
    columns = list(dict.fromkeys((curve["task"], curve["depth"]) for curve in curves))
    size = 1.2 + 3.7 * len(columns), 1.5 + 3.0 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for curve in curves:
        row, column = rows.index(curve["activation"]), columns.index((curve["task"], curve["depth"]))
        _panel(axes[row, column], curve, quantity)
        if column == 0:
            axes[row, column].set_ylabel(LABELS[quantity])
    figure.suptitle(title)
    handles = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = {"ncols": min(len(handles), 5), "frameon": False}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **names)
    return figure


def _panel(ax: Axes, curve: dict, quantity: str) -> None:
    """Draw theories as lines and sampled networks as points with two standard errors."""
    against_alpha = quantity == "order_parameter"

    def position(value: float) -> float:
        return curve["fixed"] / value if against_alpha else value

    theories = {
        name: theory for name, theory in curve["theory"].items() if not (against_alpha and name == "free scale")
    }
    for name, theory in theories.items():
        ax.plot([position(x) for x in theory["x"]], theory[quantity], label=name, **STYLES[name])
    for converged in (True, False):
        points = [point for point in curve["points"] if point["measured"] and point["converged"] == converged]
        if points:
            measured = [point["measured"][quantity] for point in points]
            ax.errorbar(
                [position(point["value"]) for point in points],
                [value["mean"] for value in measured],
                yerr=[2.0 * value["standard_error"] for value in measured],
                color=VERMILLION,
                marker="o",
                markersize=6,
                markerfacecolor=VERMILLION if converged else "white",
                capsize=3,
                linestyle="none",
                zorder=3,
                label="sampled network" if converged else "sampled, NOT converged",
            )
    plain_log_axis(ax)
    if not against_alpha:
        ax.set_xticks(curve["values"], [f"{value:g}" for value in curve["values"]])
    measured = [point["measured"][quantity]["mean"] for point in curve["points"] if point["measured"]]
    shown = [*measured, *(value for theory in theories.values() for value in theory[quantity])]
    if min(shown) < 0.5 * max(shown):
        ax.set_ylim(0.0, 1.08 * max(shown))
    layers = f", L = {curve['depth']}" if curve["depth"] > 1 else ""
    fixed = f"P = {curve['fixed']}" if curve["axis"] == "width" else f"$N_1$ = {curve['fixed']}"
    ax.set_title(f"{curve['title']}\n{curve['activation']}{layers}, {fixed}", fontsize="medium")
    width = LABELS["width"] if curve["depth"] == 1 else "width of all layers (units)"
    ax.set_xlabel(r"$\alpha = P / N_1$" if against_alpha else width if curve["axis"] == "width" else LABELS["num_data"])
