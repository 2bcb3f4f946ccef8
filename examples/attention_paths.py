"""Attention paths: which heads does a transformer-like network of finite width use, and which together?

    python examples/attention_paths.py [--widths 5 20 100] [--rows 80] [--draws 300] [--plot attention_paths.png]

After Tiberi, Mignacco, Irie and Sompolinsky (2024), arXiv:2405.15926, with one layer of attention. A sequence x of
tokens is read by H heads with fixed attention maps, xi_a(x) = sum_s Omega_a(x)_s x_s; values and readout are linear and
learned,

    f(x) = 1 / sqrt(N H)  sum_{c=1}^N sum_a v_ca w_c . xi_a(x) / sqrt(D),

with N value units w_c that all heads share and readout weights v_ca of each head's own, all of unit variance. Given v
it is a Gaussian process whose covariance sum_ab Q_ab K_ab joins all pairs of paths, with Q = v^T v / N and
K_ab(x, x') = Omega_a(x) x x'^T Omega_b(x')^T / (H D). Infinite width has Q = 1, so that different heads never meet; at
finite width the saddle point of a `BlockRenormalizedKernel` over the paths finds Q from the training data.

The task: each head looks for a marker in the tokens, softly. The target is a linear function of what stands beside the
markers, the same for the tokens of heads 0 and 1, the opposite for that of head 2; head 3 does not help. The posteriors
of finite networks are sampled beside the theory. A minute on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpytorch.constraints import Positive
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from torch_propkernel import NetworkGP
from torch_propkernel.inference import ErrorEstimate
from torch_propkernel.kernels import BlockKernel, BlockRenormalizedKernel
from torch_propkernel.networks import ConvolutionalNetwork, SampledPosterior, estimate, sample_posterior
from torch_propkernel.theories import SaddlePoint

HEADS, TOKENS, CONTENT = 4, 6, 30
SHARPNESS = 2.0
HELP = (1.0, 1.0, -1.0, 0.0)
"""What the token of each head's marker adds to the target: the same linear function, its opposite, or nothing."""
TEMPERATURE = 0.1
NUM_TEST = 200


def sequences(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of tokens ``n x (tokens * D)`` and targets; a token is H markers, then its content."""
    teacher = torch.randn(CONTENT, generator=generator) / CONTENT**0.5
    content = torch.randn(number, TOKENS, CONTENT, generator=generator)
    place = torch.rand(number, TOKENS, generator=generator).argsort(-1)[:, :HEADS]  # where each marker stands
    markers = torch.zeros(number, TOKENS, HEADS).scatter_(1, place.unsqueeze(1), 1.0)
    marked = content.gather(1, place.unsqueeze(-1).expand(-1, -1, CONTENT))
    y = (marked @ teacher) @ torch.tensor(HELP)
    y = y + math.sqrt(TEMPERATURE) * torch.randn(number, generator=generator)
    return torch.cat([markers, content], dim=-1).flatten(1), y


def attended(x: Tensor) -> Tensor:
    """Return xi_a(x), ``... x H x D``: head a attends to tokens by the softmax of their marker a."""
    tokens = x.unflatten(-1, (TOKENS, -1))
    attention = torch.softmax(SHARPNESS * tokens[..., :HEADS], dim=-2)  # Omega, ... x tokens x H
    return attention.mT @ tokens


class AttentionPaths(BlockKernel):
    """K_ab between the paths through heads a and b, on flattened sequences."""

    num_blocks = HEADS

    def prepared(self, x: Tensor) -> Tensor:
        """Return xi_a(x), ``... x H x n x D``."""
        return attended(x).movedim(-2, -3)

    def covariances(self, pairs: Any, z1: Tensor, z2: Tensor, diag: bool, symmetric: bool) -> Tensor:
        """Return K_ab of the pairs (a, b)."""
        first, second = (list(index) for index in zip(*pairs, strict=True))
        left, right = z1[..., first, :, :], z2[..., second, :, :]
        product = (left * right).sum(-1) if diag else left @ right.mT
        return product / (HEADS * z1.shape[-1])


def model_of(x: Tensor, y: Tensor, width: float) -> NetworkGP:
    """The network with N value units as a Gaussian process at Q = 1."""
    likelihood = GaussianLikelihood(noise_constraint=Positive())
    likelihood.noise = TEMPERATURE
    return NetworkGP(x, y, likelihood, BlockRenormalizedKernel(AttentionPaths(), width))


class Comparison(NamedTuple):
    """One width: the theory at its saddle point, and the sampled network with its matrix v^T v / N."""

    width: int
    theory: ErrorEstimate
    sampled: SampledPosterior
    theory_q: Tensor
    sampled_q: Tensor


def compare(data: Sequence[Tensor], width: int, draws: int) -> Comparison:
    """Fit the theory and sample the finite network.

    On the attended inputs the network is a convolution over the heads with linear units, which the package samples.
    """
    x, y, test_x, test_y = data
    fitted = SaddlePoint().fit(model_of(x, y, float(width)))
    size = x.shape[-1] // TOKENS
    found = sample_posterior(
        ConvolutionalNetwork("identity", (1, HEADS * size), width, size),
        attended(x).flatten(-2),
        y,
        TEMPERATURE,
        test_x=attended(test_x).flatten(-2),
        test_y=test_y,
        num_samples=draws,
        warmup=draws // 2,
        keep_weights=True,
    )
    readout = found.readout.squeeze(-1).unflatten(-1, (width, HEADS))
    gram = estimate(readout.mT @ readout / width).mean
    return Comparison(width, fitted.error(test_x, test_y), found, fitted.order_parameters["Q"], gram)


def report(found: Sequence[Comparison]) -> str:
    """Errors at all widths, predicted and sampled, and Q at the first one."""
    lines = [
        "             expected error of a network                error of the predictor",
        "width N             sampled    saddle   N = inf   sampled    saddle   N = inf",
    ]
    for width, theory, sampled, *_ in found:
        wide, error = theory.infinite_width, sampled.test_error
        measured = f"{error.mean:.4f} +- {error.standard_error:.4f}"
        numbers = [theory.mean_total, wide.mean_total, sampled.bias.mean, theory.mean_bias, wide.mean_bias]
        lines.append(f"{width:7d}  {measured:>18s}" + "".join(f"  {n:8.4f}" for n in numbers))
    for name, matrix in (("saddle point", found[0].theory_q), ("sampled", found[0].sampled_q)):
        lines += ["", f"Q of the {HEADS} heads at N = {found[0].width}, {name}"]
        lines += ["  ".join(f"{value:6.2f}" for value in row) for row in matrix.tolist()]
    return "\n".join(lines)


def plot(data: Sequence[Tensor], found: Sequence[Comparison], path: Path) -> None:
    """Draw errors against the width, and Q predicted and sampled."""
    from matplotlib.figure import Figure

    from torch_propkernel.plotting import BLUE, VERMILLION, plot_block_covariance

    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    ax, *matrices = figure.subplots(1, 3)
    x, y, test_x, test_y = data
    widths = torch.logspace(math.log10(min(c.width for c in found)), 3.0, 13).tolist()
    curve = [SaddlePoint().fit(model_of(x, y, width)).error(test_x, test_y) for width in widths]
    for color, name, title in ((VERMILLION, "total", "a network"), (BLUE, "bias", "the predictor")):
        ax.plot(widths, [float(getattr(e, f"mean_{name}")) for e in curve], color=color, label=f"{title}, saddle point")
        wide = float(getattr(curve[0].infinite_width, f"mean_{name}"))
        ax.axhline(wide, color=color, linestyle=":", label=f"{title}, infinite width")
        measured = [c.sampled.test_error if name == "total" else c.sampled.bias for c in found]
        spread = [2.0 * float(m.standard_error) for m in measured]
        ax.errorbar([c.width for c in found], [float(m.mean) for m in measured], spread, fmt="o", color=color)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("width N (value units)")
    ax.set_ylabel("squared test error; dots: sampled networks")
    ax.legend(fontsize="small")
    names = [f"head {a}" for a in range(HEADS)]
    first = found[0]
    for panel, title, q in zip(matrices, ("saddle", "sampled"), (first.theory_q, first.sampled_q), strict=True):
        plot_block_covariance(q, axes=[panel], names=names)
        panel.set_title(f"N = {first.width}, {title}", fontsize="medium")
    figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[5, 20, 100], metavar="N")
    parser.add_argument("--rows", type=int, default=80, help="training sequences")
    parser.add_argument("--draws", type=int, default=300, help="draws of each of 8 chains")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        x, y = sequences(options.rows + NUM_TEST, torch.Generator().manual_seed(0))
        data = (x[: options.rows], y[: options.rows], x[options.rows :], y[options.rows :])
        found = [compare(data, width, options.draws) for width in options.widths]
        print(report(found))
        if options.plot is not None:
            plot(data, found, options.plot)
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    main()
