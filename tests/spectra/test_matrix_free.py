"""Products, Lanczos quadratures, low-rank parts and conjugate gradients of a matrix that is never held."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torch_propkernel import NNGPKernel, Spectrum, solve_order_parameters
from torch_propkernel.actions import quadrature_error
from torch_propkernel.exceptions import NotPositiveDefiniteError
from torch_propkernel.spectra import (
    FusedKernelOperator,
    KernelOperator,
    LanczosReduction,
    LanczosRun,
    LowRank,
    conjugate_gradients,
    gauss_quadrature,
    radau_quadrature,
)

P = 300


@pytest.fixture(scope="module")
def inputs():
    return torch.as_tensor(np.random.default_rng(0).normal(size=(P, 4)))


@pytest.fixture(scope="module")
def matrix(inputs):
    return kernel_block(inputs, inputs)


@pytest.fixture(scope="module")
def targets(inputs):
    return (torch.sin(inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]) * 1.5


def kernel_block(a, b):
    return NNGPKernel("relu").double()(a, b).to_dense().detach()


def reduced(matrix, targets, num_steps, num_probes=20, seed=0, part=None):
    reduction = LanczosReduction.start(targets, num_probes, seed, part)
    reduction.run.extend(matrix.matmul, num_steps)
    return reduction


class TestOperator:
    @pytest.mark.parametrize("tile_size", [1, 64, 150, 1000])
    def test_products_are_those_of_the_matrix(self, inputs, matrix, tile_size):
        size = 15 if tile_size == 1 else P
        operator = KernelOperator(kernel_block, inputs[:size], tile_size=tile_size)
        vectors = torch.randn(size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(operator.matmul(vectors), matrix[:size, :size] @ vectors, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(operator.diagonal(), matrix.diagonal()[:size], rtol=1e-10, atol=0)
        torch.testing.assert_close(operator.columns(inputs[5:9]), matrix[:size, 5:9], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            operator.cross_matmul(inputs[5:9], vectors), matrix[5:9, :size] @ vectors, rtol=1e-10, atol=1e-12
        )

    def test_tiles_above_the_diagonal_are_evaluated_once(self, inputs):
        asked = []

        def block(a, b):
            asked.append((len(a), len(b)))
            return a @ b.T

        operator, seen = KernelOperator(block, inputs, tile_size=100), []
        operator.matmul(torch.ones(P, 2, dtype=torch.float64), lambda done, total: seen.append((done, total)))
        assert asked == [(100, 100)] * 6 == [(100, 100)] * operator.num_tiles
        assert seen == [(done, 6) for done in range(1, 7)]

    def test_tiles_of_single_precision(self, inputs, matrix):
        # Rounding of an entry is 6e-8 of the diagonal (below 2); P of them with random signs stay below 1e-5.
        kernel = NNGPKernel("relu")

        def block(a, b):
            assert a.dtype == torch.float32
            return kernel(a, b).to_dense().detach()

        operator = KernelOperator(block, inputs, tile_size=128, dtype=torch.float32)
        vectors = torch.ones(P, 1, dtype=torch.float64)
        product = operator.matmul(vectors)
        assert product.dtype == torch.float64
        error = (product - matrix @ vectors).abs().max() / (matrix @ vectors).abs().max()
        assert 1e-12 < error < 1e-5

    def test_shares_of_tiles_add_up(self, inputs, matrix):
        class Share(KernelOperator):
            num_processes = 2

        vectors = torch.ones(P, 1, dtype=torch.float64)
        parts = []
        for index in (0, 1):
            share = Share(kernel_block, inputs, tile_size=64)
            share.rank = index
            parts.append(share.matmul(vectors))
        torch.testing.assert_close(sum(parts), matrix @ vectors, rtol=1e-10, atol=0)

    def test_bad_input(self, inputs):
        operator = KernelOperator(kernel_block, inputs)
        with pytest.raises(ValueError, match=r"vectors: expected shape \(300, c\), got \(5, 2\)"):
            operator.matmul(torch.ones(5, 2))
        with pytest.raises(ValueError, match="inputs: expected shape"):
            KernelOperator(kernel_block, inputs.unsqueeze(0))
        with pytest.raises(ValueError, match="tile_size"):
            KernelOperator(kernel_block, inputs, tile_size=0)

    def test_products_of_their_own(self, inputs, matrix):
        """The operator rounds the points to float32, asks for whole products, and leaves the rest to the tiles."""
        seen = []

        def product(a, b, vectors):
            seen.append((a is b, a.dtype))
            return kernel_block(a.double(), b.double()) @ vectors

        operator = FusedKernelOperator(kernel_block, inputs, product, tile_size=100)
        vectors, progress = torch.ones(P, 2, dtype=torch.float64), []
        # Points rounded to float32.
        found = operator.matmul(vectors, lambda *done: progress.append(done))
        torch.testing.assert_close(found, matrix @ vectors, rtol=1e-5, atol=0)
        torch.testing.assert_close(operator.cross_matmul(inputs[:7], vectors), matrix[:7] @ vectors, rtol=1e-5, atol=0)
        assert seen == [(True, torch.float32), (False, torch.float32)]
        assert progress == [(1, 1)] and operator.num_tiles == 1
        torch.testing.assert_close(
            operator.of_first(9).matmul(vectors[:9]), matrix[:9, :9] @ vectors[:9], rtol=1e-5, atol=0
        )
        with pytest.raises(ValueError, match=r"expected shape \(300, c\), got \(299, 2\)"):
            operator.matmul(vectors[1:])


class TestLanczos:
    def test_the_basis_is_orthonormal_and_gives_the_coefficients(self, matrix, targets):
        start = torch.stack([targets, torch.ones_like(targets)], -1)
        run = LanczosRun(start)
        for _ in range(3):
            run.extend(matrix.matmul, 20)
        for column in range(2):
            basis = torch.cat([block[column] for block in run.basis])
            torch.testing.assert_close(basis @ basis.T, torch.eye(60).double(), rtol=0, atol=1e-12)
            projected = basis @ matrix @ basis.T
            expected = torch.diag(run.alphas[column])
            beside = torch.diag(run.betas[column, :-1], 1)
            # Three terms to rounding of the largest eigenvalue, which is of order 100.
            torch.testing.assert_close(projected, expected + beside + beside.T, rtol=0, atol=1e-11)
            torch.testing.assert_close(basis[0] * start[:, column].norm(), start[:, column])

    def test_an_exhausted_space_is_no_special_case(self, targets):
        # Three eigenvalues: three steps exhaust the space, the others change nothing.
        k = torch.tensor([0.5, 2.0, 30.0]).double().repeat(P // 3)
        run = LanczosRun(targets.unsqueeze(-1))
        run.extend(torch.diag(k).matmul, 10)
        truth = (targets.square() * torch.log1p(k)).sum() / targets.square().sum()
        for rule in (gauss_quadrature, radau_quadrature):
            nodes, weights = rule(run.alphas, run.betas)
            assert torch.isfinite(nodes).all()
            assert float((weights * nodes.clamp_min(0).log1p()).sum() / truth - 1) == pytest.approx(0, abs=1e-9)

    def test_gauss_and_radau_enclose_the_truth(self, matrix, targets):
        k, vectors = torch.linalg.eigh(matrix)
        shares = (vectors.T @ targets).square() / targets.square().sum()
        run = LanczosRun(targets.unsqueeze(-1))
        functions = (lambda k: (0.1 + k).log(), 1), (lambda k: 1 / (0.1 + k), -1)
        gaps = []
        for _ in range(4):
            run.extend(matrix.matmul, 4)
            for function, sign in functions:
                truth = (shares * function(k)).sum()
                gauss, radau = (
                    (weights * function(nodes.clamp_min(0))).sum()
                    for nodes, weights in (rule(run.alphas, run.betas) for rule in (gauss_quadrature, radau_quadrature))
                )
                assert sign * (gauss - truth) > 0 > sign * (radau - truth)
                gaps.append(float((gauss - radau).abs()))
        assert gaps[-2] < 0.05 * gaps[0]
        assert gaps[-1] < 0.05 * gaps[1]

    def test_an_interrupted_block_leaves_the_run_as_it_was(self, matrix, targets):
        run = LanczosRun(targets.unsqueeze(-1))
        run.extend(matrix.matmul, 5)
        products = iter([matrix.matmul] * 3)
        with pytest.raises(StopIteration):
            run.extend(lambda v: next(products)(v), 5)
        again = LanczosRun.from_state(run.state())
        for each in (run, again):
            assert each.num_steps == 5
            each.extend(matrix.matmul, 5)
        torch.testing.assert_close(run.alphas, again.alphas, rtol=0, atol=0)
        assert again.basis[1].shape == (1, 5, P)


class TestReduction:
    def test_all_steps_leave_the_scatter_of_the_probes_alone(self, matrix, targets):
        reduction, exact = reduced(matrix, targets, 120), Spectrum.from_kernel(matrix, targets)
        for temperature in (0.03, 1.0):
            for width in (10.0, 200.0, math.inf):
                found = solve_order_parameters(reduction.spectrum(), width=width, temperature=temperature)
                truth = solve_order_parameters(exact, width=width, temperature=temperature)
                error = quadrature_error(reduction, found, width, temperature)
                # Four standard errors: one of 12 comparisons fails by chance in 1,300.
                away = (found.order_parameter - truth.order_parameter).abs()
                assert (away <= 4 * error.order_parameter + error.order_parameter_truncation + 1e-9).all()
                assert (error.order_parameter < 0.05 * found.order_parameter).all()
                # S is stationary: that q is off is of second order in it.
                away = (found.action - truth.action).abs()
                assert away <= 4.1 * error.action + error.action_truncation + 1e-9

    @pytest.mark.parametrize("rank", [None, 30])
    def test_standard_errors_are_those_of_many_seeds(self, inputs, matrix, targets, rank):
        found, stated = [], []
        part = None if rank is None else LowRank.randomly_pivoted(KernelOperator(kernel_block, inputs), rank)
        for seed in range(40):
            reduction = reduced(matrix, targets, 40, num_probes=8, seed=seed, part=part)
            solution = solve_order_parameters(reduction.spectrum(), width=[50.0, 20.0], temperature=0.1)
            found.append(torch.cat([solution.order_parameter, solution.action.reshape(1)]))
            error = quadrature_error(reduction, solution, [50.0, 20.0], 0.1)
            stated.append(torch.cat([error.order_parameter, error.action.reshape(1)]))
        ratio = torch.stack(found).std(0) / torch.stack(stated).square().mean(0).sqrt()
        # The deviation of 40 draws is right to 11 %, 3.5 of which are allowed.
        assert ((ratio - 1).abs() < 0.4).all(), ratio

    def test_a_part_of_low_rank_lowers_the_error_and_moves_nothing(self, inputs, matrix, targets):
        part = LowRank.randomly_pivoted(KernelOperator(kernel_block, inputs), 60)
        exact = solve_order_parameters(Spectrum.from_kernel(matrix, targets), width=20.0, temperature=0.05)
        errors = []
        for subtracted in (None, part):
            reduction = reduced(matrix, targets, 100, num_probes=10, part=subtracted)
            found = solve_order_parameters(reduction.spectrum(), width=20.0, temperature=0.05)
            error = quadrature_error(reduction, found, 20.0, 0.05)
            assert (found.order_parameter - exact.order_parameter).abs() < 4 * error.order_parameter
            assert (found.action - exact.action).abs() < 4.1 * error.action  # as above
            assert reduction.spectrum().num_data == P
            errors.append(error)
        assert errors[1].order_parameter < 0.7 * errors[0].order_parameter
        assert errors[1].action < 0.2 * errors[0].action

    def test_few_steps_are_reported(self, matrix, targets):
        exact = solve_order_parameters(Spectrum.from_kernel(matrix, targets), width=20.0, temperature=0.05)
        reduction = reduced(matrix, targets, 8)
        found = solve_order_parameters(reduction.spectrum(), width=20.0, temperature=0.05)
        error = quadrature_error(reduction, found, 20.0, 0.05)
        away = float((found.order_parameter - exact.order_parameter).abs())
        assert 0.01 < away < float(2 * error.order_parameter_truncation + 4 * error.order_parameter)

    def test_the_targets_are_solved_at_every_scale_and_temperature(self, matrix, targets):
        reduction = reduced(matrix, targets, 100, num_probes=2)
        for scale, temperature in ((1.0, 0.5), (0.3, 0.05)):
            solution, residual = reduction.solve_targets(scale, temperature)
            left = targets - temperature * solution - scale * matrix @ solution
            assert float(left.norm() / targets.norm()) == pytest.approx(residual, rel=1e-3, abs=1e-12)
            assert residual < 1e-4

    def test_bad_input(self, targets):
        with pytest.raises(ValueError, match=r"targets: expected shape \(P,\)"):
            LanczosReduction.start(targets.unsqueeze(0), 4)
        with pytest.raises(ValueError, match="num_probes"):
            LanczosReduction.start(targets, 1)
        with pytest.raises(ValueError, match="targets"):
            LanczosReduction.start(targets * math.nan, 4)


class TestLowRankAndConjugateGradients:
    def test_the_part_is_below_the_matrix_and_near_the_best_one(self, inputs, matrix):
        part = LowRank.randomly_pivoted(KernelOperator(kernel_block, inputs), 60)
        held = part.vectors * part.eigenvalues @ part.vectors.T
        torch.testing.assert_close(part.vectors.T @ part.vectors, torch.eye(60).double(), rtol=0, atol=1e-9)
        assert float(torch.linalg.eigvalsh(matrix - held)[0]) > -1e-9
        left = float((matrix - held).trace())
        assert part.remainder == pytest.approx(left, rel=1e-6)
        k = torch.linalg.eigvalsh(matrix)
        assert left < 5 * float(k[:-60].sum())  # the factor of the best rank-60 part; 1.7 was seen

    def test_solves_and_bounds_the_error(self, inputs, matrix):
        operator = KernelOperator(kernel_block, inputs, tile_size=128)
        part, scale, noise = LowRank.randomly_pivoted(operator, 40), 0.7, 0.02
        right = torch.randn(P, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        dense = scale * matrix + noise * torch.eye(P).double()
        truth = (right * torch.linalg.solve(dense, right)).sum(0)
        steps = []
        for tolerance in (1e-1, 1e-4, 1e-8):
            solved = conjugate_gradients(
                lambda v, _: noise * v + scale * operator.matmul(v),
                right,
                precondition=lambda v, _: part.solve(v, scale, noise),
                is_accurate=lambda state, columns, limit=tolerance: state.energy_error < limit * state.energy,
                max_steps=200,
            )
            error = truth - solved.state.energy
            # Rounding of the energies, of order 1e4, is 1e-9 where the iteration is done.
            assert solved.converged.all()
            assert (error > -1e-7).all()
            assert (error < solved.state.energy_error + 1e-7).all()
            steps.append(solved.num_steps)
        away = (solved.x - torch.linalg.solve(dense, right)).square().sum(0)
        assert (away < solved.state.energy_error / noise).all()
        plain = conjugate_gradients(
            lambda v, _: noise * v + scale * operator.matmul(v),
            right,
            precondition=lambda v, _: v / noise,
            is_accurate=lambda state, columns: state.energy_error < 1e-8 * state.energy,
            max_steps=200,
        )
        assert steps[0] < steps[1] < steps[2] < 0.7 * plain.num_steps

    def test_an_unfinished_solve_says_so(self, matrix, targets):
        solved = conjugate_gradients(
            lambda v, _: matrix @ v,
            targets.unsqueeze(-1),
            precondition=lambda v, _: v,
            is_accurate=lambda state, columns: state.residual < 1e-12,
            max_steps=3,
        )
        assert solved.num_steps == 3
        assert not solved.converged.any()
        left = targets - matrix @ solved.x[:, 0]
        assert float(solved.state.residual) == pytest.approx(float(left.norm() / targets.norm()), rel=1e-9)

    def test_an_indefinite_matrix_does_not_pass(self, matrix, targets):
        indefinite = matrix - 5.0 * torch.eye(P).double()
        solved = conjugate_gradients(
            lambda v, _: indefinite @ v,
            targets.unsqueeze(-1),
            precondition=lambda v, _: -v,  # no positive number to go by
            is_accurate=lambda state, columns: state.residual < 1e-12,
            max_steps=500,
        )
        assert not solved.converged.any()
        with pytest.raises(NotPositiveDefiniteError, match="positive semi-definite, got a Lanczos node -"):
            reduced(indefinite, targets, 20).spectrum()

    def test_a_start_that_is_right_takes_no_step(self, matrix, targets):
        start = torch.linalg.solve(matrix + torch.eye(P).double(), targets.unsqueeze(-1))
        solved = conjugate_gradients(
            lambda v, _: v + matrix @ v,
            targets.unsqueeze(-1),
            precondition=lambda v, _: v,
            is_accurate=lambda state, columns: state.residual < 1e-8,
            max_steps=50,
            start=start,
        )
        assert solved.num_steps == 0
        torch.testing.assert_close(solved.x, start)
