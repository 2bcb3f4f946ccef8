"""Where do 95 % intervals of a GP, a finite-width process and a Student's t process differ, and where not?

    python examples/intervals.py [--plot intervals.png] [--width 5]

Sixteen points of a function of one input, with a gap; the same relu kernel of one hidden layer and the same noise
variance for all, none of them fitted. Three rows: targets drawn from the prior, noise included, and rescaled to be as
large as it expects; the same targets three times as large; a third as large. Three columns: the infinite width (a GP)
with the saddle of the finite width, with its mixture, and with a Student's t process. Bands are central 95 % intervals
of the latent function. In the end a table of the widths of the intervals, at the data and in the gap.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from torch_propkernel import (
    FiniteWidthLikelihood,
    FiniteWidthProcess,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    StudentTProcess,
    StudentTProcessLikelihood,
)

NOISE = 0.01
FACTORS = (1.0, 3.0, 1.0 / 3.0)
GAP = (-1.0, 1.2)
NAMES = {
    "gp": "GP, infinite width",
    "saddle": "finite width, saddle",
    "mixture": "finite width, mixture",
    "student_t": "Student's t process",
}

MEANING = """
The means hardly move (the Student's t process has exactly the GP's); what differs is how wide intervals are when the
data are larger or smaller than the prior says: a GP of fixed scale does not notice, the finite width and the Student's
t process do, and so would a GP whose scale is fitted.
They do it differently: the Student's t process multiplies all variances by one factor, at the data too, since its noise
is inside of the scale; the finite width, whose noise is outside, changes them in the gap and hardly at the data.
Saddle and mixture differ by three to ten percent in the gap even at N = 5, since sixteen points determine the scale
well, and no process knows what happens in the gap: there all of them repeat the kernel."""


class _Forward:
    """Zero mean and any kernel."""

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))


class GP(_Forward, gpytorch.models.ExactGP):
    pass


class FiniteWidth(_Forward, FiniteWidthProcess):
    pass


class StudentT(_Forward, StudentTProcess):
    pass


def kernel(width: float | None = None) -> NNGPKernel:
    """A relu network of one hidden layer with biases, at infinite width if None; its prior variance is one at x = 0."""
    options = {"weight_variance": [8.0, 1.0], "bias_variance": 2.0}
    return NNGPKernel(ReLU(), **options) if width is None else RenormalizedNNGPKernel(ReLU(), width, **options)


def data(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs on both sides of a gap, and targets drawn from the GP, rescaled to be as large as it expects (b = n)."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(size, generator=generator)
    half = size // 2
    x = torch.cat([-2.2 + (GAP[0] + 2.2) * draw[:half], GAP[1] + (2.2 - GAP[1]) * draw[half:]]).sort().values[:, None]
    with torch.no_grad():
        covariance = kernel()(x).to_dense() + NOISE * torch.eye(size)
        factor = torch.linalg.cholesky(covariance)
    white = torch.randn(size, generator=generator)
    return x, factor @ (white * math.sqrt(size) / white.norm())


def models(x: Tensor, y: Tensor, width: float, deg_free: float) -> dict[str, Any]:
    """All processes, in evaluation mode."""
    built = {
        "gp": GP(x, y, gpytorch.likelihoods.GaussianLikelihood()),
        "finite": FiniteWidth(x, y, FiniteWidthLikelihood()),
        "student_t": StudentT(x, y, StudentTProcessLikelihood()),
    }
    built["student_t"].likelihood.deg_free = deg_free
    for name, model in built.items():
        model.covar_module = kernel(width if name == "finite" else None)
        model.likelihood.noise = NOISE
        model.eval()
    return built


@torch.no_grad()
def intervals(x: Tensor, y: Tensor, grid: Tensor, width: float, deg_free: float) -> dict[str, tuple[Tensor, ...]]:
    """Mean, lower and upper end of the central 95 % interval of the latent function, for every process."""
    built = models(x, y, width, deg_free)
    finite = built["finite"]
    laws = {
        "gp": built["gp"](grid),
        "saddle": finite.predict(grid, "saddle"),
        "mixture": finite.predict(grid, "mixture", joint=False),
        "student_t": built["student_t"](grid),
    }
    out = {}
    for name, law in laws.items():
        if isinstance(law, MultivariateNormal):
            reach = 1.959963984540054 * law.stddev
            out[name] = (law.mean, law.mean - reach, law.mean + reach)
        else:
            out[name] = (law.mean, law.icdf(0.025), law.icdf(0.975))
    return out


def plot(x: Tensor, y: Tensor, grid: Tensor, results: dict[float, Any], width: float, df: float, path: Path) -> None:
    from matplotlib.figure import Figure

    from torch_propkernel.plotting import BLUE, GRAY, GREEN, VERMILLION

    colors = {"gp": GRAY, "saddle": BLUE, "mixture": VERMILLION, "student_t": GREEN}
    labels = dict(NAMES, saddle=f"N = {width:g}, saddle", mixture=f"N = {width:g}, mixture")
    labels["student_t"] = f"Student's t process, {df:g} degrees of freedom"
    figure = Figure(figsize=(12.0, 3.3 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 3, sharex=True, sharey="row", squeeze=False)
    for row, (factor, found) in zip(axes, results.items(), strict=True):
        for ax, name in zip(row, ("saddle", "mixture", "student_t"), strict=True):
            for edge in GAP:
                ax.axvline(edge, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
            ax.text(sum(GAP) / 2, 0.02, "no data", color="0.4", ha="center", transform=ax.get_xaxis_transform())
            for kind, style in (("gp", "--"), (name, "-")):
                mean, low, high = found[kind]
                if kind == "gp":
                    ax.fill_between(grid[:, 0], low, high, color="0.82", linewidth=0, zorder=1)
                else:
                    ax.plot(grid[:, 0], low, color=colors[name], linewidth=1.3, zorder=3)
                    ax.plot(grid[:, 0], high, color=colors[name], linewidth=1.3, label=f"{labels[name]}", zorder=3)
                label = "GP, infinite width (gray band)" if kind == "gp" else None
                ax.plot(grid[:, 0], mean, style, color=colors[kind], linewidth=1.0, label=label, zorder=2)
            ax.plot(x[:, 0], factor * y, "o", color="black", markersize=3.5, zorder=4)
            ax.spines[["top", "right"]].set_visible(False)
        scale = (
            "as the prior expects" if factor == 1.0 else f"{factor:g} times" if factor > 1 else f"1/{1 / factor:g} of"
        )
        row[0].set_ylabel("targets " + (scale if factor == 1.0 else f"{scale} that size"))
    for ax in axes[0]:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("input")
    figure.savefig(path, dpi=130)


def table(grid: Tensor, x: Tensor, results: dict[float, Any]) -> str:
    """Widths of the intervals over the GP's, at the data and in the middle of the gap."""
    middle = int((grid[:, 0] - sum(GAP) / 2).abs().argmin())
    nearest = [int((grid[:, 0] - value).abs().argmin()) for value in x[:, 0]]
    lines = [
        "95 % intervals, width over the GP's: at the data (mean) / in the middle of the gap; largest shift of the mean"
    ]
    lines.append(f"{'targets times':>14}" + "".join(f"{NAMES[name]:>34}" for name in list(NAMES)[1:]))
    for factor, found in results.items():
        cells = []
        for name in list(NAMES)[1:]:
            ratio = (found[name][2] - found[name][1]) / (found["gp"][2] - found["gp"][1])
            shift = ((found[name][0] - found["gp"][0]) / (found["gp"][2] - found["gp"][1])).abs().max()
            cells.append(f"{ratio[nearest].mean():.3f} / {ratio[middle]:.3f}; {shift:.3f}")
        lines.append(f"{factor:>14.3g}" + "".join(f"{cell:>34}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="file for the picture")
    parser.add_argument("--width", type=float, default=5.0, help="of the finite network")
    parser.add_argument("--deg-free", type=float, default=5.0, help="of the Student's t process")
    parser.add_argument("--size", type=int, default=16, help="number of data")
    parser.add_argument("--grid", type=int, default=201, help="number of test inputs")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args(arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        x, y = data(options.size, options.seed)
        grid = torch.linspace(-3.0, 3.0, options.grid)[:, None]
        results = {f: intervals(x, f * y, grid, options.width, options.deg_free) for f in FACTORS}
    finally:
        torch.set_default_dtype(before)
    print(table(grid, x, results))
    if options.plot:
        plot(x, y, grid, results, options.width, options.deg_free, options.plot)
        print(f"wrote {options.plot}")
    print(MEANING)


if __name__ == "__main__":
    main()
