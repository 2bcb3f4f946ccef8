"""How much work one ``fit`` of the command line is: kernel matrices, reductions, factorizations; and the import time.

    python examples/benchmarks/count_work.py [--markdown PATH]

Counted are evaluations of the network's kernel (matrices, not diagonals), tridiagonal reductions, eigendecompositions
and Cholesky factorizations while ``fit`` runs on the yacht data with all hyperparameters given: those of all training
rows, and beside them the smaller ones of the reliability score, which looks at 200 rows. The import time is that of the
package on top of GPyTorch's, the median of five fresh interpreters each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from torch_propkernel.__main__ import main as command_line
from torch_propkernel.kernels import NNGPKernel, RenormalizedNNGPKernel, network_covariance
from torch_propkernel.spectra import Tridiagonal

ROWS = 231  # training rows of the yacht data
GIVEN = (
    "--theory",
    "saddle",
    "--width",
    "100",
    "--temperature",
    "0.01",
    "--weight-variance",
    "1",
    "--bias-variance",
    "1",
    "--no-ard",
)


@contextlib.contextmanager
def counting():
    """Count calls while the block runs."""
    counts, undo = Counter(), []

    def watch(owner, name, what, counts_call=lambda *args, **kwargs: True):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            if counts_call(*args, **kwargs):
                counts[what, next(a for a in args if hasattr(a, "shape")).shape[-2] >= ROWS] += 1
            return original(*args, **kwargs)

        setattr(owner, name, counted)
        undo.append((owner, name, original))

    def is_matrix(self, x1, x2, diag=False, **params):
        return not diag

    for kernel in (NNGPKernel, RenormalizedNNGPKernel):
        watch(kernel, "forward", "kernel matrices", is_matrix)
    undo.append((network_covariance, "_PRIOR_KERNELS", network_covariance._PRIOR_KERNELS))
    network_covariance._PRIOR_KERNELS = (NNGPKernel.forward, RenormalizedNNGPKernel.forward)  # a network's all the same
    watch(Tridiagonal, "__init__", "tridiagonal reductions")
    watch(torch.linalg, "eigh", "eigendecompositions")
    for name in ("cholesky", "cholesky_ex"):
        watch(torch.linalg, name, "Cholesky factorizations")
    try:
        yield counts
    finally:
        for owner, name, original in undo:
            setattr(owner, name, original)


def import_seconds(module: str) -> float:
    """Return the median time of an import in a fresh interpreter."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)
    ]
    return statistics.median(times)


def main() -> None:
    """Count, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", type=Path, help="write the table")
    options = parser.parse_args()
    with counting() as counts, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if command_line(["fit", "--no-plot", *GIVEN]) != 0:
            raise SystemExit("fit failed")
    own, host = import_seconds("torch_propkernel"), import_seconds("gpytorch")
    names = ("kernel matrices", "tridiagonal reductions", "eigendecompositions", "Cholesky factorizations")
    lines = ["# Work of one fit, and import time", ""]
    lines += ["| one `fit` on yacht, hyperparameters given | of all rows | smaller |", "|---|---|---|"]
    lines += [f"| {name} | {counts[name, True]} | {counts[name, False]} |" for name in names]
    lines += [f"| rows | {ROWS} | 200 |"]
    lines += ["", "| import, s | GPyTorch | this package above it |", "|---|---|---|"]
    lines += [f"| median of five | {host:.2f} | {own - host:.2f} |"]
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
