"""One unit in a given field: tilt, bins, moments, motion and the response against quadrature over (w, v)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torch_propkernel import Erf, ReLU
from torch_propkernel.cavity import Closure, OneUnit
from torch_propkernel.cavity.one_unit import NUM_BINS, bin_terms, moments
from torch_propkernel.cavity.population import Generation, Mover, Pool
from torch_propkernel.cavity.response import conjugate_gradients, solve_response

WIDTH, LAMBDA = 5.0, 0.7
X = torch.tensor([[0.9], [-1.4], [0.3]], dtype=torch.float64)
FIELD = torch.tensor([1.3, -0.8, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.4, 1.1]], dtype=torch.float64)
PRECISION = ROOT @ ROOT.mT
UNITS = [OneUnit(Erf(), X, WIDTH, LAMBDA), OneUnit(ReLU(), X, WIDTH, LAMBDA)]
IDS = ["erf", "relu"]


def grid(unit):
    """Points (w, v) of a trapezoidal rule, f there, and the normalized density of the unit, by its definition."""
    w, v = np.linspace(-8, 8, 1601), np.linspace(-12, 12, 1201)
    phi = unit.activation(torch.as_tensor(w)[:, None] @ unit.inputs.mT).numpy()
    f = v[None, :, None] * phi[:, None, :] / math.sqrt(unit.width)
    a, B = FIELD.numpy(), PRECISION.numpy()
    log_density = f @ a - 0.5 * np.einsum("uvi,ij,uvj->uv", f, B, f) - 0.5 * w[:, None] ** 2
    log_density = log_density - 0.5 * unit.precision * v[None] ** 2
    density = np.exp(log_density)
    prior = np.exp(-0.5 * w[:, None] ** 2 - 0.5 * unit.precision * v[None] ** 2)
    return w, v, f, density / density.sum(), density.sum() / prior.sum()


def quadrature_pool(unit):
    """Units on a fine grid whose base makes them weighted samples of the prior: every average is a quadrature."""
    w = torch.linspace(-8, 8, 1601, dtype=torch.float64).unsqueeze(-1)
    log_prior = torch.log_softmax(-0.5 * w.square().squeeze(-1), 0) + math.log(len(w))
    return Pool(unit.features(w), -log_prior)


def tilted(unit, pool, field=FIELD):
    tilt = unit.tilt(unit.strength(pool.features, PRECISION), unit.pull(pool.features, field))
    return tilt, *pool.normalized(tilt)


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_tilt_and_moments_are_those_of_the_density_of_w_and_v(unit):
    _, v, f, density, normalizer = grid(unit)
    pool = quadrature_pool(unit)
    tilt, weights, log_normalizer = tilted(unit, pool)
    assert log_normalizer == pytest.approx(math.log(normalizer), abs=1e-10)
    found = moments(unit, pool.features, tilt, weights)
    np.testing.assert_allclose(found.mean, np.einsum("uv,uvi->i", density, f), atol=1e-10)
    np.testing.assert_allclose(found.second, np.einsum("uv,uvi,uvj->ij", density, f, f), atol=1e-10)
    assert float((weights * tilt.second_moment).sum()) == pytest.approx((density.sum(0) * v**2).sum(), rel=1e-10)


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_bins_of_the_readout(unit):
    _, v, f, density, _ = grid(unit)
    pool = quadrature_pool(unit)
    tilt, weights, _ = tilted(unit, pool)
    chance, mass, first = bin_terms(tilt, weights)
    rms = math.sqrt((density.sum(0) * v**2).sum())
    edges = np.append(np.linspace(0, 5 * rms, NUM_BINS + 1), np.inf)
    expected, removed = [], 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (np.abs(v) >= low) & (np.abs(v) < high)
        p = density[:, inside].sum()
        expected.append(p)
        mean = np.einsum("uv,uvi->i", density[:, inside], f[:, inside])
        removed = removed + (np.outer(mean, mean) / p if p > 1e-12 else 0.0)
    # The grid in v assigns points near an edge to one side: 0.02 of a bin of 0.3 to 0.5.
    np.testing.assert_allclose(chance, expected, atol=0.01)
    assert float(chance.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(first.sum(-1), tilt.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(tilt.mean), rtol=0, atol=1e-12)
    found = moments(unit, pool.features, tilt, weights)
    np.testing.assert_allclose(found.second - found.conditional, removed, atol=0.003)  # the same edges
    assert float(torch.linalg.eigvalsh(found.conditional).min()) > -1e-15  # relu of one input has rank two


def test_an_empty_bin_is_left_out():
    unit = UNITS[0]
    features = torch.full((4, 3), 2.0, dtype=torch.float64)
    tilt = unit.tilt(torch.full((4,), 1e12, dtype=torch.float64), torch.full((4,), 1e12, dtype=torch.float64))
    found = moments(unit, features, tilt, torch.full((4,), 0.25, dtype=torch.float64))
    assert bool(torch.isfinite(found.conditional).all()) and float(found.conditional.abs().max()) < 1e-6


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_the_mean_is_the_gradient_of_log_z(unit):
    pool = quadrature_pool(unit)
    field = FIELD.clone().requires_grad_()
    tilt = unit.tilt(unit.strength(pool.features, PRECISION), unit.pull(pool.features, field))
    log_normalizer = torch.logsumexp(tilt.log_weight - pool.log_base, 0)
    (gradient,) = torch.autograd.grad(log_normalizer, field)
    tilt, weights, _ = tilted(unit, pool)
    torch.testing.assert_close(moments(unit, pool.features, tilt, weights).mean, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_gradient_of_the_motion(unit):
    generator = torch.Generator().manual_seed(1)
    mover = Mover(unit, torch.float64, generator)
    w = torch.randn(6, 1, dtype=torch.float64, generator=generator)
    here = mover.at(w, FIELD, PRECISION)
    up, down = (mover.at(w + h, FIELD, PRECISION).log_weight for h in (1e-6, -1e-6))
    torch.testing.assert_close(here.slope.squeeze(-1), (up - down) / 2e-6, rtol=1e-6, atol=1e-7)  # central differences
    torch.testing.assert_close(here.features, unit.features(w), rtol=0, atol=0)
    tilt = unit.tilt(unit.strength(here.features, PRECISION), unit.pull(here.features, FIELD))
    torch.testing.assert_close(here.log_weight, tilt.log_weight, rtol=1e-12, atol=1e-12)
    for strength in (here.strength, unit.strength_of(tilt)):
        expected = torch.einsum("ui,ij,uj->u", here.features, PRECISION, here.features) / WIDTH
        torch.testing.assert_close(strength, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_motion_leaves_the_tilted_law_invariant(unit):
    pool = quadrature_pool(unit)
    _, weights, _ = tilted(unit, pool)
    grid_w = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    mover = Mover(unit, torch.float64, generator)
    w = torch.randn(20_000, 1, dtype=torch.float64, generator=generator)
    for _ in range(6):
        placed = mover.move(w, FIELD, PRECISION, 2)
        w = placed.weights
    for mine, fresh in zip(placed, mover.at(w, FIELD, PRECISION), strict=True):  # rejected units are whole, too
        torch.testing.assert_close(mine, fresh, rtol=1e-12, atol=1e-14)
    for power in (1, 2, 3):
        mean = float((weights * grid_w**power).sum())
        deviation = math.sqrt(float((weights * grid_w ** (2 * power)).sum()) / len(w))
        assert abs(float((w**power).mean()) - mean) < 5 * deviation  # five standard errors


@pytest.mark.parametrize("unit", UNITS, ids=IDS)
def test_response_solves_its_equation_from_anywhere(unit):
    pool = quadrature_pool(unit)
    y = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    covariance = 0.1 * PRECISION
    closure = Closure.of(covariance, 0.05, WIDTH)
    fields = []
    for start in (torch.zeros(3, dtype=torch.float64), 30.0 * FIELD):
        B = closure.precision()
        found = solve_response(unit, pool, closure, y, unit.strength(pool.features, B), start, tolerance=1e-10)
        tilt = unit.tilt(unit.strength(pool.features, B), unit.pull(pool.features, found.field))
        mean = moments(unit, pool.features, tilt, pool.normalized(tilt)[0]).mean
        left = 0.05 * found.field + (WIDTH * torch.eye(3).double() - 0.05 * B) @ mean
        torch.testing.assert_close(left, y, rtol=0, atol=1e-9)
        fields.append(found.field)
    torch.testing.assert_close(*fields, rtol=1e-7, atol=1e-7)  # strictly concave: one solution


def test_conjugate_gradients():
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(12, 9, dtype=torch.float64, generator=generator)
    side = torch.randn(12, dtype=torch.float64, generator=generator)
    matrix = root @ root.mT + torch.diag(torch.logspace(-6, 0, 12, dtype=torch.float64))
    diagonal = matrix.diagonal()
    found = conjugate_gradients(matrix.mv, diagonal, side)
    exact = torch.linalg.solve(matrix, side)
    left = side - matrix @ found
    assert float(left.square() @ (1 / diagonal)) <= 0.01 * float(side.square() @ (1 / diagonal))  # to a tenth
    ascent = float(side @ found)
    assert 0 < ascent <= float(side @ exact)  # the quadratic form grows with every product, and from below
    indefinite = matrix - 0.1 * torch.eye(12, dtype=torch.float64)
    for broken in (indefinite, -matrix):
        assert float(side @ conjugate_gradients(broken.mv, diagonal, side)) > 0


def test_the_correction_restores_the_exact_prior_and_vanishes_with_it():
    unit = UNITS[0]
    w = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    features = unit.features(w)
    generation = Generation(w, features, torch.zeros(200, dtype=torch.float64))
    pool = Pool.of([generation])
    prior = PRECISION / WIDTH
    strength = unit.strength(features, PRECISION)
    rho = pool.control(unit, strength, torch.full((200,), 1 / 200 / LAMBDA, dtype=torch.float64))
    assert rho == pytest.approx(1.0)  # units of the prior in no field: all noise is that of the prior
    sampled = features.mT @ features / (200 * LAMBDA * WIDTH)
    torch.testing.assert_close(sampled + pool.correction(unit, prior, rho), prior, rtol=1e-12, atol=1e-14)
    far = torch.zeros(200, dtype=torch.float64)
    far[0] = -60.0  # one unit would carry the whole prior
    rho = Pool(features, far).control(unit, strength, torch.full((200,), 1 / 200 / LAMBDA, dtype=torch.float64))
    assert rho < 0.01
