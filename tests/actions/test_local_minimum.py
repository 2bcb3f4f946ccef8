"""Descents by Newton's method at the limits of rounding, outside of a domain, and over a batch."""

from __future__ import annotations

import pytest
import torch

from torch_propkernel.actions.local_minimum import minimize


def descend(function, starts):
    """Return the descents of a function of one variable from some starts, and the number of its evaluations."""
    calls = []

    def counted(x):
        calls.append(x)
        return function(x.squeeze(-1))

    start = torch.tensor(starts, dtype=torch.float64).unsqueeze(-1)
    found = minimize(counted, start, torch.ones_like(start, dtype=torch.bool), torch.ones(len(starts)).double())
    return found, len(calls)


def test_where_the_value_is_rounding_the_gradient_decides():
    """Beside 1e8 the value has no digits left within 1e-4 of its minimum at 0.3."""
    found, calls = descend(lambda x: torch.cosh(x - 0.3) + 1e8, [-1.0, 0.31, 0.4])
    assert found.converged.all()
    torch.testing.assert_close(found.logs, torch.full_like(found.logs, 0.3), rtol=0, atol=1e-11)
    # A gradient for each step and, while they are long, one more for the second derivative.
    assert found.iterations <= 8 and calls <= 2 * found.iterations + 1


@pytest.mark.parametrize("starts", [[0.9], [0.9, -0.5], [0.9, -0.5, 0.3000000001]])
def test_a_gradient_that_rounding_keeps_from_its_bound_ends_the_descent(starts):
    """x is rounded to 1e-10 in the function, ten times the bound of the gradient: steps no longer lower it."""
    found, calls = descend(lambda x: torch.cosh(((x + 1e6) - 1e6) - 0.30000000003), starts)
    assert found.converged.all() and (found.gradient.abs() < 2e-10).all()
    assert found.iterations <= 8 and calls <= 20


def test_problems_of_a_batch_end_where_they_end_alone():
    """Wells of different width, one with its start outside of the domain, which fails alone."""
    bent = torch.tensor([0.1, 1.0, 7.0, 30.0], dtype=torch.float64)
    starts = [1.5, -1.0, 0.5, -2.0]

    def wells(x):
        return torch.where(x > -1.5, bent * (x - 0.2).square() * (2.0 + torch.sin(3.0 * x)), torch.inf)

    together, _ = descend(wells, starts)
    assert together.converged.tolist() == [True, True, True, False]
    for index in range(3):
        alone, _ = descend(lambda x, i=index: wells(x.expand(4))[i : i + 1], [starts[index]])
        torch.testing.assert_close(together.logs[index], alone.logs[0], rtol=0, atol=1e-9)
