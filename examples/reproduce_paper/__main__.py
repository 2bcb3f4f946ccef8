"""The experiments of Pacelli et al. (2023), arXiv:2209.04882, figures 2 to 4, with sampled networks beside theories.

    python examples/reproduce_paper [--full] [--only width data deep] [--data DIR] [--output DIR]

Test error of a Bayesian network against the width N_1 at fixed P ("width"), against P at fixed N_1 ("data"), of deep
networks against their common width ("deep"), and the order parameter against alpha = P/N_1. One hidden layer, erf and
relu, on MNIST digits 0 / 1, CIFAR-10 planes / cars and random data with a linear teacher; two and three layers on the
latter. Lines are theories; points are networks whose posterior was sampled by Hamiltonian Monte Carlo with the readout
integrated out, with bars of two standard errors. Sizes are smaller than the paper's: two CPU cores are enough.

DIR of ``--data`` (default: $PROPKERNEL_DATA) holds mnist10k.npz (images uint8 n x 28 x 28, labels) and
cifar10_planes_cars.npz (images uint8 n x 32 x 32 x 3, labels 0 and 1). ``--torchvision ROOT`` takes torchvision's data
sets instead (``--download`` lets it fetch them). Images without a file are replaced by scikit-learn's 8 x 8 digits;
titles and tables then say STAND-IN. ``--full`` (with ``--device cuda``) is meant for a GPU and was not run.

Setting (THEORY.md, section 0): loss 1/2 sum (y - f)^2 plus weight decay at temperature T, i.e. Bayesian regression with
noise variance T; all weight variances 1, no biases. Images: T = 0.05, gray, 28 x 28 pixels in [0, 1], then mean and
standard deviation of all training pixels taken out (two numbers), labels -1 and +1. Random data: T = 0.1, x ~ N(0, 1),
y = w . x / sqrt(N_0) without noise. The test error is E (y_* - f(x_*))^2 over the posterior, without noise.

Written to the folder ``--output``: width.png, data.png, deep.png, order_parameter.png, results.json with all numbers,
reproduce_paper.md with a table of relative errors, and finished.jsonl, from which the same command continues a run
that was interrupted or ended at ``--minutes``. The default takes an estimated 10 to 15 minutes on two free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the folder is run by its path; worker processes import it by its name

from reproduce_paper.data import Source  # noqa: E402
from reproduce_paper.experiments import NAMES, plan  # noqa: E402
from reproduce_paper.plots import save_figures  # noqa: E402
from reproduce_paper.report import markdown  # noqa: E402
from reproduce_paper.run import run  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing, then write figures, numbers and the table."""
    parser = argparse.ArgumentParser(
        prog="reproduce_paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="larger P and N, more draws; for a GPU")
    parser.add_argument("--tiny", action="store_true", help="a test of the program, not of the theory")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="a part of the experiments")
    parser.add_argument("--data", default=os.environ.get("PROPKERNEL_DATA"), help="folder with the two npz files")
    parser.add_argument("--torchvision", metavar="ROOT", help="take torchvision's data sets in this folder")
    parser.add_argument("--download", action="store_true", help="let torchvision download them")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for all that is written")
    parser.add_argument("--device", default="cpu", help="where networks are sampled")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0: in this one (GPU)")
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no point after this time (default 20)")
    options = parser.parse_args(arguments)
    size = "full" if options.full else "tiny" if options.tiny else "default"
    source = Source(options.data, options.torchvision, options.download)
    workers = options.workers if options.device == "cpu" else 0
    store, selected = options.output / "finished.jsonl", plan(size, tuple(options.only))
    results = run(selected, source, store, workers, options.device, options.minutes)
    (options.output / "results.json").write_text(json.dumps(results, indent=1))
    figures = save_figures(results, options.output)
    report = options.output / "reproduce_paper.md"
    report.write_text(markdown(results))
    print(report.read_text().partition("## Every point")[0])
    print("written:", *map(str, (*figures, report, options.output / "results.json")), sep="\n  ")


if __name__ == "__main__":
    main()
