"""Independent truth for matrix order parameters: draws of their prior, densities, differences of the solve."""

from __future__ import annotations

import math

import torch

DOUBLE = torch.float64
STEP = 1e-3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def wishart(freedom, size, count, generator):
    """E = v^T v / N of N = ``freedom`` rows of normal readout weights."""
    v = torch.randn(count, freedom, size, generator=generator, dtype=DOUBLE)
    return v.mT @ v / freedom


def averaged(log_values):
    """The log of the mean of e^x, and its standard error."""
    count = len(log_values)
    shares = (log_values - log_values.max()).exp()
    mean = shares.mean()
    return (mean.log() + log_values.max()).item(), (shares.std() / mean / math.sqrt(count)).item()


def log_density(covariance, y):
    factor = torch.linalg.cholesky(covariance)
    half = torch.linalg.solve_triangular(factor, y.expand(*factor.shape[:-1]).unsqueeze(-1), upper=False)
    logs = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -logs - 0.5 * half.square().sum((-2, -1)) - 0.5 * y.shape[-1] * math.log(2.0 * math.pi)


def check(solve, names, **inputs):
    """Compare derivatives along random directions with fourth-order differences, for each input and each result."""
    generator = torch.Generator().manual_seed(9)
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    found = solve(**leaves)
    results = [getattr(found, name) for name in names]
    weights = [torch.randn(r.shape, generator=generator, dtype=DOUBLE) for r in results]
    for name, value in inputs.items():
        direction = torch.randn(value.shape, generator=generator, dtype=DOUBLE)
        sums = []
        with torch.no_grad():
            for shift in (-2, -1, 1, 2):
                moved = solve(**{**inputs, name: value + shift * STEP * direction})
                sums.append([(getattr(moved, r) * w).sum() for r, w in zip(names, weights, strict=True)])
        for index, (result, weight) in enumerate(zip(results, weights, strict=True)):
            (gradient,) = torch.autograd.grad((result * weight).sum(), leaves[name], retain_graph=True)
            far, near = sums[0][index] - sums[3][index], sums[2][index] - sums[1][index]
            expected = (far + 8.0 * near) / (12.0 * STEP)
            # The solver's 1e-10 over the step, and the fifth derivative times its fourth power.
            torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-6), (name, index)
