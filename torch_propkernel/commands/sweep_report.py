"""The results of ``sweep``: as text, as plain numbers and as a figure."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._validation import present
from ..theories import LearningCurve
from .data import Rows, Table, data_record, describe_data
from .network import Network, hyperparameters_record, listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Map:
    """Errors and order parameters over temperatures (first dimension) and widths, in the target's units.

    Attributes:
        width: ``W x L``.
        temperature: ``K``.
        leave_one_out: ``K x W``.
        held_out: ``K x W`` or None.
        order_parameter: ``K x W x L``.
        infinite_leave_one_out: ``K``.
        infinite_held_out: ``K`` or None.
    """

    width: Tensor
    temperature: tuple[float, ...]
    leave_one_out: Tensor
    held_out: Tensor | None
    order_parameter: Tensor
    infinite_leave_one_out: Tensor
    infinite_held_out: Tensor | None

    def lowest(self) -> tuple[list[float], float, float]:
        """Return the width of each layer, the temperature and the value of the lowest leave-one-out error."""
        everything = torch.cat([self.leave_one_out, self.infinite_leave_one_out.unsqueeze(-1)], -1)
        row, column = divmod(int(everything.argmin()), everything.shape[-1])
        layers = self.width.shape[-1]
        width = self.width[column].tolist() if column < len(self.width) else [math.inf] * layers
        return width, self.temperature[row], float(everything[row, column])


def make_map(widths: Tensor, temperatures: tuple[float, ...], found: list[Any], rows: Rows) -> Map:
    """Join the sweeps of single temperatures, in the target's units."""
    square = rows.scale**2

    def totals(errors: list[Any]) -> tuple[Tensor, Tensor]:
        finite = torch.stack([error.mean_total for error in errors])
        return square * finite, square * torch.stack([error.infinite_width.mean_total for error in errors])

    left_out, wide = totals([each.leave_one_out for each in found])
    held_out, wide_held_out = totals([each.test for each in found]) if found[0].test is not None else (None, None)
    q = torch.stack([each.order_parameter for each in found])
    return Map(widths, temperatures, left_out, held_out, q, wide, wide_held_out)


def report(
    table: Table,
    rows: Rows,
    network: Network,
    result: Map,
    curve: LearningCurve | None,
    seed: int,
) -> str:
    """Return the report."""
    blocks = ["\n".join([*describe_data(table, rows, seed), *network.describe(len(rows.y))])]
    heads = [",".join(f"{number:g}" for number in width) for width in result.width.tolist()]
    for name, values, wide in (
        ("leave-one-out", result.leave_one_out, result.infinite_leave_one_out),
        ("held-out", result.held_out, result.infinite_held_out),
    ):
        if values is None or wide is None:
            continue
        lines = [
            f"total squared error, {name}, in the target's units squared: temperature (down) and width (across)",
            f"{'':>10s}" + "".join(f"{head:>12s}" for head in [*heads, "inf"]),
        ]
        for temperature, row, last in zip(result.temperature, values.tolist(), wide.tolist(), strict=True):
            lines.append(f"{temperature:10.4g}" + "".join(f"{value:12.5g}" for value in [*row, last]))
        blocks.append("\n".join(lines))
    width, temperature, value = result.lowest()
    edge = len(result.temperature) > 1 and temperature in (min(result.temperature), max(result.temperature))
    blocks.append(
        f"lowest leave-one-out error: {value:.5g} at width {listed(width)}, T = {temperature:g}"
        + ", an end of --temperatures: a lower error may lie beyond" * edge
    )
    if curve is not None:
        lines = [
            f"learning curve on the held-out rows, width {listed(network.width)}, T = {network.temperature:.4g}: mean "
            f"over {curve.bias.shape[-1]} random subsets",
            f"{'rows':>10s}{'q':>12s}{'bias':>12s}{'variance':>12s}{'total':>12s}{'infinite width':>16s}",
        ]
        columns = (
            present(curve.order_parameter, "order_parameter").prod(-1),
            curve.bias,
            curve.variance,
            curve.bias + curve.variance,
            curve.infinite_width_bias + curve.infinite_width_variance,
        )
        means = zip(curve.num_data.tolist(), *(column.mean(-1).tolist() for column in columns), strict=True)
        for size, q, bias, variance, total, wide_total in means:
            lines.append(f"{size:10d}{q:12.5g}{bias:12.5g}{variance:12.5g}{total:12.5g}{wide_total:16.5g}")
        if present(curve.order_parameter, "order_parameter").shape[-1] > 1:
            lines.append("  q is the product over layers")
        blocks.append("\n".join(lines))
    else:
        blocks.append("no learning curve: no row is held out (--test-fraction)")
    return "\n\n".join(blocks)


def record(
    table: Table,
    rows: Rows,
    network: Network,
    result: Map,
    curve: LearningCurve | None,
    seed: int,
) -> dict[str, Any]:
    """Return all numbers of the report; the help of the command names the keys."""

    def listing(value: Tensor | None) -> list[Any] | None:
        return None if value is None else value.tolist()

    width, temperature, value = result.lowest()
    return {
        "data": data_record(table, rows, seed),
        "network": network.record(len(rows.y)),
        "hyperparameters": hyperparameters_record(network.prior),
        "map": {
            "width": result.width.tolist(),
            "temperature": list(result.temperature),
            "leave_one_out": listing(result.leave_one_out),
            "held_out": listing(result.held_out),
            "order_parameter": listing(result.order_parameter),
            "infinite_width": {
                "leave_one_out": listing(result.infinite_leave_one_out),
                "held_out": listing(result.infinite_held_out),
            },
        },
        "lowest": {"width": width, "temperature": temperature, "leave_one_out": value},
        "learning_curve": None
        if curve is None
        else {field.name: getattr(curve, field.name).tolist() for field in dataclasses.fields(curve)},
    }


def draw(table: Table, network: Network, result: Map, curve: LearningCurve | None) -> Figure:
    """Return the map and the learning curve side by side."""
    from ..plotting import plot_learning_curve, plot_map
    from ..plotting.style import figure_of, new_axes

    axes = new_axes(1 if curve is None else 2, (7.5 if curve is None else 13.0, 5.0))
    layer = int(torch.isfinite(result.width[0]).long().argmax())
    everything = torch.cat([result.leave_one_out, result.infinite_leave_one_out.unsqueeze(-1)], -1)
    widths = [*result.width[:, layer].tolist(), math.inf]
    plot_map(widths, result.temperature, everything.T, axes[0], label="leave-one-out error", log=True)
    if curve is not None:
        plot_learning_curve(curve, axes[1])
    figure = figure_of(axes[0])
    figure.suptitle(f"{table.name}: {table.target}\n{network.prior.activation!r}, width {listed(network.width)}")
    return figure
