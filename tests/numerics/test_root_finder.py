"""The bracketed root finder against scipy's Brent method and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special

from torch_propkernel.numerics.root_finder import find_roots

F = torch.float64


def constant(value, count):
    return torch.full((count,), value, dtype=F)


# f, f', and f with scipy: each has a sign change between -3 and 5 that moves with its parameter c in (-2, 4)
FAMILIES = {
    "cubic": (
        lambda x, c: (x - c) ** 3 + (x - c),
        lambda x, c: 3 * (x - c) ** 2 + 1,
        lambda x, c: (x - c) ** 3 + x - c,
    ),
    "arctan, where Newton's method alone diverges": (
        lambda x, c: torch.atan(20 * (x - c)),
        lambda x, c: 20 / (1 + (20 * (x - c)) ** 2),
        lambda x, c: np.arctan(20 * (x - c)),
    ),
    "error function with flat ends": (
        lambda x, c: torch.special.erf(5 * x) - torch.special.erf(c / 3),
        lambda x, c: 10 / np.pi**0.5 * torch.exp(-25 * x**2),
        lambda x, c: special.erf(5 * x) - special.erf(c / 3),
    ),
    "exponential": (
        lambda x, c: torch.exp(3 * x) - torch.exp(3 * c),
        lambda x, c: 3 * torch.exp(3 * x),
        lambda x, c: np.exp(3 * x) - np.exp(3 * c),
    ),
}


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rising", "falling"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_agrees_with_brents_method(name, sign):
    f, slope, by_scipy = FAMILIES[name]
    generator = torch.Generator().manual_seed(0)
    c = 6 * torch.rand(300, dtype=F, generator=generator) - 2
    start = 8 * torch.rand(300, dtype=F, generator=generator) - 3
    roots = find_roots(
        lambda x, i: (sign * f(x, c[i]), sign * slope(x, c[i]), 0.0),
        constant(-3.0, 300),
        constant(5.0, 300),
        start,
        rising=sign > 0,
    )
    assert bool(roots.converged.all()) and roots.iterations < 60
    expected = [optimize.brentq(by_scipy, -3, 5, args=(v,), xtol=1e-15, rtol=1e-14) for v in c.tolist()]
    # where the error function is flat, both know the root to its rounding over the slope only
    tolerance = 1e-13 + 4e-16 / slope(torch.tensor(expected, dtype=F), c).numpy()
    assert bool((np.abs(roots.x.numpy() - expected) <= tolerance).all())
    torch.testing.assert_close(roots.value, sign * f(roots.x, c), rtol=0, atol=0)
    torch.testing.assert_close(roots.slope, sign * slope(roots.x, c), rtol=0, atol=0)


def test_rising_and_falling_functions_in_one_call():
    c, sign = torch.tensor([0.3, 0.7, 2.0], dtype=F), torch.tensor([1.0, -1.0, -1.0], dtype=F)
    roots = find_roots(
        lambda x, i: (sign[i] * (x - c[i]).sinh(), sign[i] * (x - c[i]).cosh(), 0.0),
        constant(-9.0, 3),
        constant(9.0, 3),
        constant(-9.0, 3),
        rising=sign > 0,
    )
    torch.testing.assert_close(roots.x, c, rtol=1e-15, atol=0)


def test_finished_functions_are_not_evaluated_again():
    power = torch.tensor([1.0, 21.0], dtype=F)
    counts = torch.zeros(2)

    def function(x, index):
        counts[index] += 1
        return x ** power[index] - 2.0, power[index] * x ** (power[index] - 1), 2.0

    roots = find_roots(function, constant(0.0, 2), constant(50.0, 2), constant(50.0, 2))
    np.testing.assert_allclose(roots.x, [2.0, 2.0 ** (1 / 21)], rtol=1e-15)
    assert counts[0] == 2 and counts[1] == roots.iterations > 10  # Newton's method solves a straight line at once


def test_a_root_of_high_order_is_found_to_the_rounding_of_the_function():
    """(x - 1)^3, multiplied out: values within 2e-5 of the root are nothing but rounding."""
    start = torch.linspace(-3.0, 4.0, 40, dtype=F)

    def function(x, index):
        return ((x - 3.0) * x + 3.0) * x - 1.0, 3.0 * (x - 1.0) ** 2, 8.0

    roots = find_roots(function, constant(-3.0, 40), constant(4.0, 40), start)
    assert bool(roots.converged.all()) and roots.iterations < 60
    assert float((roots.x - 1.0).abs().max()) < 3e-5
    # Without a size of the terms the search ends too, where short steps stop shrinking.
    again = find_roots(lambda x, i: (*function(x, i)[:2], 0.0), constant(-3.0, 40), constant(4.0, 40), start)
    assert bool(again.converged.all()) and float((again.x - 1.0).abs().max()) < 3e-5


def test_failures_are_reported_and_leave_the_others_alone():
    c = torch.tensor([1.0, torch.nan, 2.0, torch.inf], dtype=F)
    roots = find_roots(
        lambda x, i: (x - c[i], 1.0 + 0.0 * x, 0.0), constant(0.0, 4), constant(3.0, 4), constant(0.5, 4)
    )
    assert roots.converged.tolist() == [True, False, True, False]
    assert roots.x[0] == 1.0 and roots.x[2] == 2.0
    short = find_roots(
        lambda x, i: (x.pow(9), 9 * x.pow(8), 0.0),
        constant(-1.0, 1),
        constant(3.0, 1),
        constant(3.0, 1),
        max_iterations=5,
    )
    assert not bool(short.converged) and short.iterations == 5 and bool(short.x > 0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_tolerance_ends_the_search_early(tolerance):
    evaluations = []

    def function(x, index):
        evaluations.append(len(x))
        return x.square() - 2.0, 2.0 * x, 0.0

    roots = find_roots(function, constant(0.0, 1), constant(9.0, 1), constant(9.0, 1), tolerance=tolerance)
    assert abs(roots.x.item() - 2**0.5) < tolerance
    coarse = len(evaluations)
    find_roots(function, constant(0.0, 1), constant(9.0, 1), constant(9.0, 1))
    assert coarse < len(evaluations) - coarse


def test_single_precision_and_nothing_to_do():
    zero, two = torch.zeros(3), torch.full((3,), 2.0)
    roots = find_roots(lambda x, i: (x.square() - 2.0, 2.0 * x, 2.0), zero, two, two)
    assert roots.x.dtype == torch.float32
    torch.testing.assert_close(roots.x, two.sqrt(), rtol=3e-7, atol=0)
    none = find_roots(lambda x, i: (x, x, x), zero[:0], two[:0], two[:0])
    assert none.x.shape == (0,) and none.iterations == 0
