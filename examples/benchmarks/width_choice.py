"""Which width a data set wants: the saddle point's evidence, the sampled network's, and the measured errors.

    python examples/benchmarks/width_choice.py [--data DIR] [--set kin40k] [--rows 400] [--widths 20 50 150 inf]
                                               [--markdown PAGE]

Training rows of a UCI set (split 0), one hidden erf layer. Hyperparameters maximize the evidence of the infinite
width at T = 0.05 and are shared by all widths. The saddle point's evidence is Laplace's, the
sampled network's that of annealing, with its error; both at T = 0.05. Errors are those of the sampled network (of the
Gaussian process at infinite width) on 2,000 test rows, in standardized units. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from _uci import Cut, default_folder, load, standardize

from torch_propkernel.theories import InfiniteWidth, SaddlePoint, Sampled
from torch_propkernel.tuning import fit_network

TEMPERATURE = 0.05


def main() -> None:
    """Fit, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="default: $PROPKERNEL_DATA")
    parser.add_argument("--set", default="kin40k")
    parser.add_argument("--rows", type=int, default=400, help="for training")
    parser.add_argument("--widths", type=float, nargs="+", default=[20.0, 50.0, 150.0, math.inf])
    parser.add_argument("--markdown", type=Path, help="page to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = standardize(*load(arguments.data / arguments.set, 0, Cut(arguments.rows, 2000)))
    prior = fit_network(data.x, data.y, "erf", temperature=TEMPERATURE)
    lines = [
        f"# The width that {arguments.set} wants",
        "",
        f"`examples/benchmarks/width_choice.py --set {arguments.set} --rows {arguments.rows}`, T = {TEMPERATURE:g}.",
        "",
        "| width | log evidence, saddle | log evidence, sampled | RMSE | NLPD | q, saddle | q, sampled |",
        "|---|---|---|---|---|---|---|",
    ]
    for width in arguments.widths:
        model = prior.model(data.x, data.y, width)
        saddle = SaddlePoint().fit(model)
        fitted = InfiniteWidth().fit(model) if math.isinf(width) else Sampled().fit(model)
        error, noise = fitted.error(data.test_x, data.test_y), fitted.stats.get("log_evidence_error")
        evidence = f"{float(fitted.log_evidence):.1f}" + ("" if noise is None else f" +- {noise:.1f}")
        lines.append(
            f"| {width:g} | {float(saddle.log_evidence):.1f} | {evidence} | {float(error.mean_bias.sqrt()):.3f} | "
            f"{-float(error.log_density.mean()):.3f} | {float(saddle.readout_norm):.3f} | "
            f"{float(fitted.readout_norm):.3f} |"
        )
        print(lines[-1], flush=True)
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
