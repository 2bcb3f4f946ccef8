"""Matrix order parameters of several outputs: the action, its gradient and its minimum, against dense brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch

from torch_propkernel import Spectrum, solve_order_parameters
from torch_propkernel.actions import OutputAction, solve_matrix_order_parameters
from torch_propkernel.exceptions import NotEnoughMemoryError
from torch_propkernel.numerics.symmetric import (
    exponential_curvature,
    exponential_differences,
    exponential_jacobian,
    from_coordinates,
    second_exponential_differences,
    to_coordinates,
)

DOUBLE = torch.float64


def data(num_data=25, num_outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, 12, generator=generator, dtype=DOUBLE)
    y = x @ torch.randn(12, num_outputs, generator=generator, dtype=DOUBLE) / 2.0
    return x @ x.T / 12.0, y + 0.1 * torch.randn(num_data, num_outputs, generator=generator, dtype=DOUBLE)


def dense_action(order_parameters, kernel, y, width, noise):
    """N_L S from its definition, with a matrix of P D rows; the chain Q_l = R_{l+1} E_l R_{l+1}^T multiplied out.

    ``noise`` is T or a covariance between outputs; rows of targets that are NaN are deleted.
    """
    size = y.shape[-1]
    factor = torch.eye(size, dtype=DOUBLE)
    for matrix in reversed(order_parameters):
        values, vectors = torch.linalg.eigh(matrix)
        factor = factor @ (vectors * values.sqrt()) @ vectors.T
    noise = torch.as_tensor(noise, dtype=DOUBLE)
    noise = noise * torch.eye(size, dtype=DOUBLE) if noise.dim() == 0 else noise
    covariance = torch.kron(noise, torch.eye(len(y), dtype=DOUBLE)) + torch.kron(factor @ factor.T, kernel)
    stacked = y.T.reshape(-1)
    seen = ~stacked.isnan()
    covariance, stacked = covariance[seen][:, seen], stacked[seen]
    layers = sum(n * (torch.trace(e) - torch.logdet(e)) for n, e in zip(width, order_parameters, strict=True))
    return layers + torch.logdet(covariance) + stacked @ torch.linalg.solve(covariance, stacked)


NOISE = torch.tensor([[0.2, 0.05, 0.0], [0.05, 0.9, -0.2], [0.0, -0.2, 0.4]], dtype=DOUBLE)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("noise", [0.2, NOISE])
@pytest.mark.parametrize("width", [[20.0], [8.0, 30.0], [5.0, 5.0, 9.0]])
def test_the_minimum_is_that_of_the_dense_action_over_all_layers(width, noise, missing):
    kernel, y = data()
    if missing:
        y[torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.3] = math.nan
    own_noise = {"temperature": 0.2} if noise is not NOISE else {"temperature": 0.5, "output_noise": 2.0 * NOISE}
    solution = solve_matrix_order_parameters(kernel, y, width=width, **own_noise)
    layers = len(width)
    assert solution.stats["num_missing"] == int(y.isnan().sum()) and missing == (solution.stats["num_missing"] > 0)

    def function(flat):
        logs = from_coordinates(torch.tensor(flat).reshape(layers, -1), 3).requires_grad_()
        value = dense_action(list(torch.matrix_exp(logs)), kernel, y, width, noise)
        (gradient,) = torch.autograd.grad(value, logs)
        return value.item(), to_coordinates(0.5 * (gradient + gradient.mT)).flatten().numpy()

    # Layers start apart, so that they need not commute on the way.
    start = 0.3 * np.random.default_rng(0).standard_normal(6 * layers)
    found = scipy.optimize.minimize(function, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    assert solution.action.item() * width[-1] == pytest.approx(found.fun, rel=1e-10)
    logs = from_coordinates(torch.tensor(found.x).reshape(layers, -1), 3)
    torch.testing.assert_close(solution.order_parameter, torch.matrix_exp(logs), rtol=0, atol=1e-5)  # BFGS's gtol
    assert solution.stats["agreeing_starts"] >= 1 and solution.result.successful
    own = dense_action(list(solution.order_parameter), kernel, y, width, noise)
    assert own.item() == pytest.approx(solution.action.item() * width[-1], rel=1e-12)


def test_the_gradient_is_the_difference_quotient_also_where_eigenvalues_coincide():
    kernel, y = data()
    spectrum = Spectrum.from_kernel(kernel, y, num_outputs=3)
    width = torch.tensor([[8.0, 30.0], [5.0, math.inf]], dtype=DOUBLE)
    action = OutputAction(spectrum, width, torch.tensor([0.2, 0.5], dtype=DOUBLE))
    generator = torch.Generator().manual_seed(1)
    rough = torch.randn(2, 6, generator=generator, dtype=DOUBLE)
    alike = to_coordinates(0.3 * torch.eye(3, dtype=DOUBLE)).expand(2, -1).clone()
    for point in (rough, alike, torch.zeros_like(rough)):
        point = point.requires_grad_()
        torch.autograd.gradcheck(action, point, atol=1e-5)
    zero = torch.zeros(2, 6, dtype=DOUBLE)
    expected = dense_action([torch.eye(3, dtype=DOUBLE)] * 2, kernel, y, [8.0, 30.0], 0.2)
    assert action(zero)[0].item() + 3 * 38.0 == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_dense_action_of_observed_targets_and_the_reduced_one_have_the_same_minimum(seed):
    """A further point without any target changes nothing, but that A is dense."""
    kernel, y = data(num_data=12, seed=seed)
    noise = {"temperature": 0.1, "output_noise": NOISE / 0.3}
    complete = solve_matrix_order_parameters(kernel, y, width=[4.0, 9.0], **noise)
    larger = torch.nn.functional.pad(kernel, (0, 1, 0, 1))
    padded = torch.cat([y, torch.full((1, 3), math.nan, dtype=DOUBLE)])
    dense = solve_matrix_order_parameters(larger, padded, width=[4.0, 9.0], **noise)
    torch.testing.assert_close(dense.order_parameter, complete.order_parameter, rtol=1e-7, atol=1e-7)
    assert dense.action.item() == pytest.approx(complete.action.item(), rel=1e-12)


@pytest.mark.parametrize("noise", [None, NOISE])
def test_the_hessian_is_the_difference_quotient_of_the_gradient(noise):
    kernel, y = data()
    width = torch.tensor([[8.0, 30.0], [5.0, math.inf]], dtype=DOUBLE)
    spectrum = Spectrum.from_kernel(kernel, y, num_outputs=3)
    action = OutputAction(spectrum, width, torch.tensor([0.2, 0.5], dtype=DOUBLE), noise)
    rough = 0.5 * torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    for point in (rough, torch.zeros_like(rough)):  # the second with equal eigenvalues
        rows = []
        for step in 1e-5 * torch.eye(6, dtype=DOUBLE):
            ends = [(point + sign * step).requires_grad_() for sign in (1, -1)]
            above, below = (torch.autograd.grad(action(end).sum(), end)[0] for end in ends)
            rows.append((above - below) / 2e-5)
        expected = torch.stack(rows, -2)
        # the difference quotient's own error: step^2 and rounding over the step
        assert (action.hessian(point) - expected).abs().max() < 1e-8 * expected.abs().max()


def test_second_divided_differences_are_those_of_the_exponential():
    u = torch.tensor([0.3, 0.3, 0.3 + 1e-7, -1.2, 0.3 + 3e-4, 5.0], dtype=DOUBLE)
    table = second_exponential_differences(u)
    for a, b, c in itertools.product(range(6), repeat=3):  # Opitz: a corner of the exponential of a bidiagonal matrix
        corner = torch.linalg.matrix_exp(torch.diag(u[[a, b, c]]) + torch.diag(torch.ones(2, dtype=DOUBLE), 1))[0, 2]
        assert table[a, b, c].item() == pytest.approx(corner.item(), rel=1e-8)


def test_derivatives_of_the_matrix_exponential_are_those_of_its_graph():
    generator = torch.Generator().manual_seed(4)
    rough, weights = torch.randn(2, 3, 3, generator=generator, dtype=DOUBLE)
    turn, weights = torch.linalg.qr(rough).Q, weights + weights.T
    for values in ([0.4, -1.0, 0.7], [0.4, 0.4, -1.0], [0.0, 0.0, 0.0]):
        log = turn @ torch.diag(torch.tensor(values, dtype=DOUBLE)) @ turn.T
        point, frame = to_coordinates(log), torch.linalg.eigh(log)

        def exponential(coordinates):
            return torch.matrix_exp(from_coordinates(coordinates, 3))

        jacobian = torch.autograd.functional.jacobian(lambda c: to_coordinates(exponential(c)), point)
        torch.testing.assert_close(exponential_jacobian(*frame), jacobian, rtol=0, atol=1e-12)
        hessian = torch.autograd.functional.hessian(lambda c: (weights * exponential(c)).sum(), point)
        torch.testing.assert_close(exponential_curvature(*frame, weights), hessian, rtol=0, atol=1e-8)  # its accuracy


def test_divided_differences_are_those_of_the_exponential():
    u = torch.tensor([0.3, 0.3 + 1e-9, -2.0, 5.0], dtype=DOUBLE)
    table = exponential_differences(u)
    far = torch.tensor([[0, 2], [0, 3], [2, 3]])
    for a, b in far.tolist():
        assert table[a, b].item() == pytest.approx(((u[a].exp() - u[b].exp()) / (u[a] - u[b])).item(), rel=1e-13)
    torch.testing.assert_close(table.diagonal(), u.exp(), rtol=1e-14, atol=0)
    assert table[0, 1].item() == pytest.approx(math.exp(0.3), rel=1e-8)


@pytest.mark.parametrize("width", [7.0, [7.0, 20.0]])
def test_one_output_is_the_scalar_theory(width):
    kernel, y = data(num_outputs=1)
    matrix = solve_matrix_order_parameters(kernel, y, width=width, temperature=0.1)
    scalar = solve_order_parameters(kernel, y[:, 0], width=width, temperature=0.1)
    torch.testing.assert_close(matrix.order_parameter.flatten(), scalar.order_parameter, rtol=1e-10, atol=0)
    assert matrix.action.item() == pytest.approx(scalar.action.item(), rel=1e-12)
    assert matrix.result is scalar.result


def test_rotated_and_permuted_outputs_have_rotated_and_permuted_order_parameters():
    kernel, y = data()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE))[0]
    for turn in (rotation, torch.eye(3, dtype=DOUBLE)[[2, 0, 1]]):
        first, second = (
            solve_matrix_order_parameters(kernel, targets, width=[9.0, 15.0], temperature=0.1)
            for targets in (y, y @ turn)
        )
        turned = turn.T @ first.output_covariance @ turn
        torch.testing.assert_close(second.output_covariance, turned, rtol=1e-8, atol=1e-8)
        assert second.action.item() == pytest.approx(first.action.item(), rel=1e-12)


def test_many_widths_and_temperatures_are_one_call():
    kernel, y = data()
    spectrum = Spectrum.from_kernel(kernel, y, num_outputs=3)
    width = torch.tensor([[5.0], [50.0], [math.inf]], dtype=DOUBLE)
    temperature = torch.tensor([0.1, 0.5, 0.1], dtype=DOUBLE)
    together = solve_matrix_order_parameters(spectrum, width=width, temperature=temperature)
    assert together.output_covariance.shape == (3, 3, 3)
    torch.testing.assert_close(together.output_covariance[2], torch.eye(3, dtype=DOUBLE), rtol=0, atol=1e-15)
    for index in range(2):
        alone = solve_matrix_order_parameters(
            kernel, y, width=float(width[index]), temperature=float(temperature[index])
        )
        torch.testing.assert_close(together.order_parameter[index], alone.order_parameter, rtol=1e-8, atol=1e-8)
    assert solve_matrix_order_parameters(spectrum, width=math.inf, temperature=0.1).result.name == "infinite_width"


def test_fewer_units_than_outputs_are_solved_and_marked():
    kernel, y = data()
    solution = solve_matrix_order_parameters(kernel, y, width=2.0, temperature=0.1)
    assert solution.stats["narrow"] and solution.result.successful
    assert bool((torch.linalg.eigvalsh(solution.output_covariance) > 0).all())


def test_a_further_start_is_one_more_descent():
    kernel, y = data()
    first = solve_matrix_order_parameters(kernel, y, width=9.0, temperature=0.1)
    again = solve_matrix_order_parameters(kernel, y, width=9.0, temperature=0.1, start=first.output_covariance)
    assert again.stats["starts"] == first.stats["starts"] + 1
    assert again.stats["agreeing_starts"] == first.stats["agreeing_starts"] + 1
    assert again.stats["num_minima"] == first.stats["num_minima"] == 1


def test_matrices_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("torch_propkernel._memory.available_memory", lambda device="cpu": 1e5)
    kernel, y = data()
    solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.1)
    y[0, 0] = math.nan
    with pytest.raises(NotEnoughMemoryError, match="74 observed targets of 3 outputs, of which some are missing"):
        solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.1)


def test_bad_input_is_refused():
    kernel, y = data()
    with pytest.raises(ValueError, match=r"targets: expected shape \(P, D\), got \(25,\)"):
        solve_matrix_order_parameters(kernel, y[:, 0], width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match="temperature: expected > 0 for several outputs"):
        solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.0)
    with pytest.raises(ValueError, match="width"):
        solve_matrix_order_parameters(kernel, y, width=-5.0, temperature=0.1)
    with pytest.raises(ValueError, match="no batch dimensions"):
        solve_matrix_order_parameters(
            Spectrum.from_kernel(kernel.expand(2, -1, -1), y.expand(2, -1, -1), num_outputs=3),
            width=5.0,
            temperature=0.1,
        )
    with pytest.raises(ValueError, match=r"output_noise: expected shape \(3, 3\), got \(2, 2\)"):
        solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.1, output_noise=torch.eye(2))
    with pytest.raises(ValueError, match="symmetric positive definite"):
        solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.1, output_noise=-torch.eye(3))
    with pytest.raises(ValueError, match=r"targets: expected at least one output, got shape \(25, 0\)"):
        solve_matrix_order_parameters(kernel, y[:, :0], width=5.0, temperature=0.1)
    with pytest.raises(ValueError, match="kernel matrix: expected finite values"):
        solve_matrix_order_parameters(kernel * math.nan, y, width=5.0, temperature=0.1)
    for bad in (-torch.eye(3), torch.full((3, 3), math.nan)):
        with pytest.raises(ValueError, match="start: expected a symmetric positive definite matrix, got"):
            solve_matrix_order_parameters(kernel, y, width=5.0, temperature=0.1, start=bad)
    unseen = y.clone()
    unseen[:, 1] = math.nan
    with pytest.raises(ValueError, match=r"got none of outputs \[1\]"):
        solve_matrix_order_parameters(kernel, unseen, width=5.0, temperature=0.1)
    unseen[:, 1] = math.inf
    with pytest.raises(ValueError, match="targets"):
        solve_matrix_order_parameters(kernel, unseen, width=5.0, temperature=0.1)
    with pytest.raises(TypeError, match="beside a Spectrum"):
        solve_matrix_order_parameters(Spectrum.from_kernel(kernel, y, num_outputs=3), y, width=5.0, temperature=0.1)
