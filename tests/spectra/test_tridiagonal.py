"""One tridiagonal reduction answers every temperature and scale: against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_propkernel import Spectrum, solve_order_parameters
from torch_propkernel.actions.outer_action import OuterAction
from torch_propkernel.exceptions import NotPositiveDefiniteError
from torch_propkernel.spectra import Tridiagonal, TridiagonalSpectrum

DOUBLE = torch.float64


def kernel(size, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, 2 * size if rank is None else rank, generator=generator, dtype=DOUBLE)
    return features @ features.T / features.shape[-1]


def columns(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=DOUBLE)


@pytest.mark.parametrize("size", [1, 2, 3, 40, 150])
def test_rotation_and_solves_are_those_of_dense_algebra(size):
    matrix, c = kernel(size), columns(3, size, 4)
    reduced = Tridiagonal(matrix)
    Q = reduced.orthogonal()
    torch.testing.assert_close(Q.mT @ Q, torch.eye(size, dtype=DOUBLE), rtol=0, atol=1e-13)
    torch.testing.assert_close(reduced.rotate(c), Q.mT @ c, rtol=0, atol=1e-13)
    torch.testing.assert_close(reduced.rotate_back(c), Q @ c, rtol=0, atol=1e-13)
    inner = Q.mT @ matrix @ Q
    assert torch.triu(inner, 2).abs().sum() < 1e-11  # P^2 entries of rounding
    torch.testing.assert_close(reduced.eigenvalues, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-13)
    for temperature, scale in ((0.3, 0.7), (1e-2, 5.0)):
        solved = reduced.rotate_back(reduced.solve(temperature, scale, reduced.rotate(c)))
        dense = torch.linalg.solve(temperature * torch.eye(size, dtype=DOUBLE) + scale * matrix, c)
        torch.testing.assert_close(solved, dense, rtol=1e-11, atol=1e-11)


def test_the_reduced_matrix_is_left_as_it_is():
    matrix = kernel(20)
    before = matrix.clone()
    Tridiagonal(matrix)
    assert torch.equal(matrix, before)


def test_gradients_of_columns():
    reduced, c = Tridiagonal(kernel(6)), columns(2, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: reduced.solve(0.2, 1.5, reduced.rotate(v)), c)
    assert torch.autograd.gradgradcheck(lambda v: reduced.rotate_back(v).square(), c)


def test_a_singular_matrix_without_noise_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match=r"expected a positive definite matrix.*T = 0"):
        Tridiagonal(kernel(8, rank=3)).solve(0.0, 1.0, columns(8, 1))


@pytest.mark.parametrize("base", [None, "diagonal", "dense"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_label_sums_are_those_over_eigenvectors(base, outputs):
    size, matrix = 25, kernel(25)
    y = columns(size, outputs)
    fixed = {None: None, "diagonal": 0.5 + columns(size).abs(), "dense": kernel(size, seed=3)}[base]
    spectrum = Spectrum.from_kernel(matrix, y, base=fixed, num_outputs=outputs)
    assert isinstance(spectrum, TridiagonalSpectrum) and spectrum.num_outputs == outputs
    B = torch.eye(size, dtype=DOUBLE) if fixed is None else fixed if fixed.dim() == 2 else torch.diag(fixed)
    L = torch.linalg.cholesky(B)
    whitened = torch.linalg.solve(L, torch.linalg.solve(L, matrix).mT)
    k, U = torch.linalg.eigh(whitened)
    z2 = (U.mT @ torch.linalg.solve(L, y)).square().sum(-1)
    ratio = torch.tensor([1e-3, 0.4, 30.0], dtype=DOUBLE)
    x = ratio.unsqueeze(-1) * k
    first, second = spectrum.label_sums(ratio)
    assert not spectrum.is_projected
    torch.testing.assert_close(first, (z2 * x / (1 + x) ** 2).sum(-1), rtol=1e-11, atol=0)
    torch.testing.assert_close(second, (z2 * x**2 / (1 + x) ** 3).sum(-1), rtol=1e-11, atol=0)
    terms = spectrum.label_terms(torch.tensor([0.1, 2.0], dtype=DOUBLE), torch.tensor([3.0, 0.2], dtype=DOUBLE))
    expected = torch.stack([(z2 / (t + r * k)).sum() for t, r in ((0.1, 3.0), (2.0, 0.2))])
    torch.testing.assert_close(terms, expected, rtol=1e-11, atol=0)
    # Products of projections do not depend on the eigenvectors' signs.
    torch.testing.assert_close(spectrum.projections.square().sum(-1), z2, rtol=1e-8, atol=1e-12)  # gaps of 1e-2
    W = spectrum.basis
    torch.testing.assert_close(W @ spectrum.reduction.solve(0.1, 2.0, W.mT), torch.linalg.inv(0.1 * B + 2.0 * matrix))


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_one_solve_and_many_solves_agree(rank, temperature):
    """Few problems are solved without projections, many with them; a singular kernel always with them."""
    matrix, y = kernel(30, rank), columns(30)
    matrix[3], matrix[:, 3] = 0.0, 0.0  # a zero row makes it singular too
    if rank is None:
        matrix[3, 3] = 1e-3
    few, many = (Spectrum.from_kernel(matrix, y) for _ in range(2))
    widths = torch.logspace(0.5, 3, 40, dtype=DOUBLE).unsqueeze(-1)
    several = solve_order_parameters(many, width=widths, temperature=temperature)
    assert many.is_projected
    for i in (0, 17, 39):
        one = solve_order_parameters(few, width=widths[i], temperature=temperature)
        torch.testing.assert_close(one.order_parameter, several.order_parameter[i], rtol=1e-12, atol=0)
        torch.testing.assert_close(one.action, several.action[i], rtol=1e-12, atol=1e-12)
    assert few.is_projected == (rank is not None)


def test_problems_share_eigenvalues_with_targets_of_their_own(rng):
    """One table of eigenvalues for several problems is a table for each."""
    k, z2 = torch.as_tensor(rng.gamma(1.0, size=12)), torch.as_tensor(rng.gamma(1.0, size=(4, 12)))
    from torch_propkernel.actions.stationary_points import find_stationary_points
    from torch_propkernel.order_parameters import ScalarChain

    chain, temperature = ScalarChain(torch.full((4, 1), 6.0, dtype=DOUBLE)), torch.full((4,), 0.05, dtype=DOUBLE)
    shared = find_stationary_points(OuterAction(k.unsqueeze(0), z2, chain, temperature))
    own = find_stationary_points(OuterAction(k.expand(4, -1), z2, chain, temperature))
    np.testing.assert_allclose(shared.u.numpy(), own.u.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(shared.action.numpy(), own.action.numpy(), rtol=1e-12)
