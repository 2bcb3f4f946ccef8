"""The solver of the saddle point: global, honest about several minima, the same in every batch arrangement."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch
from reference import (
    DUALS,
    FIRST_ORDER_TRANSITION,
    TWO_LAYER_TRANSITION,
    action_scale,
    action_spectrum,
    brute_force_minimum,
    hard_spectra,
    input_covariance,
    minimize_dense,
    nngp,
    renormalized_kernel,
    zero_temperature_order_parameter,
)

from torch_propkernel import Erf, ReLU, Spectrum, fit_order_parameters, solve_order_parameters

# random labels and small widths are outside the validated regime on purpose: the package is right to warn
pytestmark = pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")

GOOD = {"global_minimum", "near_degenerate"}


def name_of(solution) -> str:
    result = solution.result
    return result.name


def solve(problem, **options):
    return solve_order_parameters(
        torch.diag(torch.as_tensor(problem.k)),
        torch.as_tensor(problem.z),
        width=list(problem.widths),
        temperature=problem.temperature,
        **options,
    )


def backward_error(p, q) -> float:
    """First-order change of S when a backward stable reduction moves every eigenvalue by 100 eps |K|."""
    r = float(np.prod(q))
    a = p.temperature + r * p.k
    return 2e-14 * p.k.max() * float(np.sum(np.abs(r / a - r * p.z**2 / a**2))) / p.widths[-1]


def test_null_directions_stay_null():
    """K of rank 10 in 40 dimensions, labels outside its range, low T: rounding of the zero eigenvalues (1e-17) times
    r = prod q of 1e12 must not turn into a minimum that the exact problem does not have."""
    rng = np.random.default_rng(3)
    for depth, T in ((1, 1e-6), (2, 1e-8), (3, 1e-6), (4, 1e-5), (5, 1e-4)):
        features, y = rng.normal(size=(40, 10)) / math.sqrt(10), rng.normal(size=40)
        U, s, _ = np.linalg.svd(features)
        k = np.concatenate([s**2, np.zeros(30)])
        for width in (2.0, 50.0):
            truth = brute_force_minimum(k, U.T @ y, [width] * depth, T)
            solution = solve_order_parameters(
                torch.as_tensor(features @ features.T), torch.as_tensor(y), width=[width] * depth, temperature=T
            )
            # 1e-16 of z^2/T: the null directions contribute |y|^2/T to S, and rounding r k/T to the slope
            np.testing.assert_allclose(solution.order_parameter.numpy(), truth.order_parameter, rtol=1e-6)


def test_hard_problems_against_brute_force():
    """150 problems, about a third with several minima: never above the scan, every stationary point listed."""
    several = 0
    for index, p in enumerate(hard_spectra(np.random.default_rng(11), 150)):
        label = f"problem {index}: {p.kind}, widths {p.widths}, P = {len(p.k)}, T = {p.temperature}"
        truth = brute_force_minimum(p.k, p.z, p.widths, p.temperature)
        solution = solve(p)
        q = solution.order_parameter.detach().numpy()
        assert q.shape == (len(p.widths),), label
        scale = action_scale(truth.order_parameter, p.k, p.z, p.widths, p.temperature)
        # rounding of a sum of P terms whose absolute values add up to `scale`
        assert action_spectrum(q, p.k, p.z, p.widths, p.temperature) <= truth.action + 1e-13 * scale, label
        assert abs(float(solution.action) - truth.action) <= 1e-12 * scale + backward_error(p, q), label
        assert name_of(solution) in GOOD, label
        assert int(solution.stats["num_minima"]) == len(truth.minima), label
        points = solution.stationary_points.numpy()
        points = points[~np.isnan(points)]
        assert len(points) == len(truth.stationary_products), label
        # near a fold S'' vanishes and the root moves by sqrt(rounding); L factors multiply to r
        np.testing.assert_allclose(points, truth.stationary_products, rtol=1e-6, err_msg=label)
        gaps = sorted(S for _, S in truth.minima)
        if len(gaps) == 1 or gaps[1] - gaps[0] > 1e-9 * scale:
            # 1e-8, not 1e-10: flat minima (S'' of 1e-6) amplify the rounding of S'
            np.testing.assert_allclose(q, truth.order_parameter, rtol=1e-8, err_msg=label)
        several += len(truth.minima) > 1
    assert several >= 30


@pytest.mark.parametrize("p", [FIRST_ORDER_TRANSITION, TWO_LAYER_TRANSITION], ids=lambda p: p.kind)
def test_quoted_transitions(p):
    solution = solve(p)
    truth = brute_force_minimum(p.k, p.z, p.widths, p.temperature)
    np.testing.assert_allclose(solution.order_parameter.numpy(), truth.order_parameter, rtol=1e-10)
    points = solution.stationary_points.numpy()
    np.testing.assert_allclose(points[~np.isnan(points)], truth.stationary_products, rtol=1e-9)
    assert int(solution.stats["num_minima"]) == 2
    assert name_of(solution) == "global_minimum"


def test_degenerate_minima_are_reported():
    """Tune z of the loud mode until both minima are equally deep: the solver must say so, and find that depth."""
    p = FIRST_ORDER_TRANSITION

    def gap(scale):
        z = p.z * scale
        best = brute_force_minimum(p.k, z, p.widths, p.temperature)
        assert len(best.minima) == 2
        return best.minima[0][1] - best.minima[1][1]

    low, high = 0.7, 1.0
    assert gap(low) * gap(high) < 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if gap(low) * gap(middle) <= 0 else (middle, high)
    z = p.z * low
    solution = solve_order_parameters(
        torch.diag(torch.as_tensor(p.k)), torch.as_tensor(z), width=50, temperature=p.temperature, throw=False
    )
    best = brute_force_minimum(p.k, z, p.widths, p.temperature)
    assert float(solution.action) == pytest.approx(best.action, rel=1e-12)
    assert name_of(solution) == "near_degenerate"
    assert solution.message


def problem(rng, P=20, N0=6):
    X, y = rng.normal(size=(P, N0)), rng.normal(size=P)
    return nngp(X, X, DUALS["erf"], (1.0, 1.0)), y


def test_spectrum_or_kernel(rng):
    K, y = problem(rng)
    K, y = torch.as_tensor(K), torch.as_tensor(y)
    spectrum = Spectrum.from_kernel(K, y)
    direct = solve_order_parameters(K, y, width=[10, 30], temperature=0.1)
    reduced = solve_order_parameters(spectrum, width=[10, 30], temperature=0.1)
    method = solve_order_parameters(spectrum, width=[10, 30], temperature=0.1)
    torch.testing.assert_close(direct.order_parameter, reduced.order_parameter, rtol=1e-12, atol=0)
    torch.testing.assert_close(direct.order_parameter, method.order_parameter, rtol=1e-12, atol=0)
    torch.testing.assert_close(direct.value, direct.order_parameter, rtol=0, atol=0)


def test_layers_share_one_number(rng):
    """Section 4: N_l (q_l - 1) is the same for all l, whatever the order of the widths."""
    K, y = (torch.as_tensor(v) for v in problem(rng))
    N = torch.tensor([7.0, 400.0, 30.0], dtype=torch.float64)
    q = solve_order_parameters(K, 3 * y, width=N, temperature=0.05).order_parameter
    shared = N * (q - 1)
    assert (shared - shared[0]).abs().max() < 1e-9 * shared.abs().max()
    flipped = solve_order_parameters(K, 3 * y, width=N.flip(0), temperature=0.05).order_parameter
    torch.testing.assert_close(flipped.flip(0), q, rtol=1e-10, atol=0)


def test_batch_of_kernels(rng):
    pairs = [problem(rng) for _ in range(6)]
    K = torch.as_tensor(np.array([k for k, _ in pairs])).reshape(2, 3, 20, 20)
    y = torch.as_tensor(np.array([v for _, v in pairs])).reshape(2, 3, 20)
    solution = solve_order_parameters(K, y, width=[9, 25], temperature=0.1)
    assert solution.order_parameter.shape == (2, 3, 2)
    assert solution.action.shape == (2, 3)
    assert solution.stationary_points.shape[:-1] == (2, 3)
    for i in range(2):
        for j in range(3):
            one = solve_order_parameters(K[i, j], y[i, j], width=[9, 25], temperature=0.1)
            torch.testing.assert_close(solution.order_parameter[i, j], one.order_parameter, rtol=1e-10, atol=0)
            torch.testing.assert_close(solution.action[i, j], one.action.reshape(()), rtol=1e-10, atol=0)


def test_sweeps_of_width_and_temperature(rng):
    K, y = problem(rng)
    k, U = np.linalg.eigh(K)
    spectrum = Spectrum.from_kernel(torch.as_tensor(K), torch.as_tensor(y))
    T = torch.logspace(-4, 1, 7, dtype=torch.float64)
    N = torch.tensor([[3.0, 8.0], [20.0, 20.0], [500.0, 6.0]], dtype=torch.float64)
    cold = solve_order_parameters(spectrum, width=15, temperature=T)
    assert cold.order_parameter.shape == (7, 1)
    wide = solve_order_parameters(spectrum, width=N, temperature=0.05)
    assert wide.order_parameter.shape == (3, 2)
    table = solve_order_parameters(spectrum, width=N, temperature=T[:, None])
    assert table.order_parameter.shape == (7, 3, 2)
    assert table.action.shape == (7, 3)
    for i, t in enumerate(T.tolist()):
        truth = brute_force_minimum(k, U.T @ y, [15], t)
        np.testing.assert_allclose(cold.order_parameter[i].numpy(), truth.order_parameter, rtol=1e-9)
        for j in range(3):
            truth = brute_force_minimum(k, U.T @ y, N[j].tolist(), t)
            np.testing.assert_allclose(table.order_parameter[i, j].numpy(), truth.order_parameter, rtol=1e-9)
            assert float(table.action[i, j]) == pytest.approx(truth.action, rel=1e-10)


def test_limits(rng):
    K, y = (torch.as_tensor(v) for v in problem(rng))
    wide = solve_order_parameters(K, y, width=1e8, temperature=0.1).order_parameter
    assert abs(float(wide) - 1) < 1e-5  # 1/N times sums of order 100
    hot = solve_order_parameters(K, y, width=10, temperature=1e9).order_parameter
    assert abs(float(hot) - 1) < 1e-7  # tr K/(N T)
    silent = solve_order_parameters(K, 0 * y, width=10, temperature=1e-3).order_parameter
    assert 0 < float(silent) < 0.05  # no labels and P = 2 N: q collapses to order T


def test_zero_temperature_limit(rng):
    K, y = problem(rng, P=12, N0=40)
    for N in (4, 12, 60):
        q = solve_order_parameters(torch.as_tensor(K), torch.as_tensor(y), width=N, temperature=1e-11).order_parameter
        # the finite temperature shifts q by T/k, about 1e-10
        assert float(q) == pytest.approx(zero_temperature_order_parameter(K, y, N), rel=1e-8)


def test_reported_numbers(rng):
    K, y = (torch.as_tensor(v) for v in problem(rng))
    solution = solve_order_parameters(K, y, width=[10, 40], temperature=0.1)
    assert {"iterations", "residual", "num_minima", "alpha"} <= set(solution.stats)
    alpha = torch.as_tensor(solution.stats["alpha"], dtype=torch.float64).reshape(-1)
    np.testing.assert_allclose(alpha.numpy(), [2.0, 0.5], rtol=1e-12)
    assert torch.as_tensor(solution.stats["residual"]).abs().max() < 1e-9
    assert isinstance(solution.message, str)


@pytest.mark.parametrize("width", [0, -3, [10, 0], float("nan")])
def test_refuses_widths(rng, width):
    K, y = (torch.as_tensor(v) for v in problem(rng))
    with pytest.raises((ValueError, RuntimeError)):
        solve_order_parameters(K, y, width=width, temperature=0.1)


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_refuses_temperatures(rng, temperature):
    K, y = (torch.as_tensor(v) for v in problem(rng))
    with pytest.raises((ValueError, RuntimeError)):
        solve_order_parameters(K, y, width=10, temperature=temperature)


def test_refuses_nan_targets(rng):
    K, y = (torch.as_tensor(v) for v in problem(rng))
    y[2] = float("nan")
    with pytest.raises((ValueError, RuntimeError)):
        solve_order_parameters(K, y, width=10, temperature=0.1)


# a GPyTorch model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation, name", [(Erf(), "erf"), (ReLU(), "relu")])
@pytest.mark.parametrize("widths", [[12], [12, 12], [12, 40]])
def test_fit_writes_the_global_minimum(rng, make_model, activation, name, widths):
    X, y, T = rng.normal(size=(30, 8)), rng.normal(size=30), 0.05
    precisions = [1.5] + [2.0] * len(widths)
    model = make_model(X, y, activation, widths, T, precisions)
    solution = fit_order_parameters(model)
    k, U = np.linalg.eigh(nngp(X, X, DUALS[name], precisions))
    truth = brute_force_minimum(k, U.T @ y, widths, T)
    np.testing.assert_allclose(solution.order_parameter.detach().numpy().ravel(), truth.order_parameter, rtol=1e-8)
    written = model.covar_module.order_parameter.detach()
    assert written.shape == (1, len(widths))
    np.testing.assert_allclose(written.numpy().ravel(), truth.order_parameter, rtol=1e-8)
    assert float(solution.action) == pytest.approx(truth.action, rel=1e-10)


# random labels of variance 4 push q to 1.5 - 2, where the compositions differ
@pytest.mark.parametrize("composition", ["nested", "linear_part"])
@pytest.mark.parametrize("widths", [[50, 80], [40, 60, 90]])
def test_fit_other_compositions(rng, make_model, composition, widths):
    X, y, T = rng.normal(size=(40, 7)), 2 * rng.normal(size=40), 0.2
    precisions, biases = [1.0, 1.0, 2.0, 2.0][: len(widths) + 1], [0.1, 0.2, 0.05][: len(widths)]
    model = make_model(X, y, Erf(), widths, T, precisions, biases, composition)
    solution = fit_order_parameters(model)
    C = input_covariance(X, X, precisions, biases)
    truth = minimize_dense(renormalized_kernel(C, DUALS["erf"], precisions, biases, composition), y, widths, T)
    assert float(solution.action) == pytest.approx(truth.action, rel=1e-10)
    # an iterative minimization of a function known to 1e-15 locates its argument to about 1e-7
    np.testing.assert_allclose(
        model.covar_module.order_parameter.detach().numpy().ravel(), truth.order_parameter, rtol=1e-6
    )


def test_saddle_is_the_map_of_the_ordinary_marginal_likelihood(rng, make_model):
    """Section 1: at q* the gradient of ExactMarginalLogLikelihood with the kernel's own prior vanishes."""
    X, y = rng.normal(size=(30, 8)), rng.normal(size=30)
    model = make_model(X, y, Erf(), [12, 40], 0.05)
    fit_order_parameters(model)
    model.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    x, targets = model.train_inputs[0], model.train_targets
    value = mll(model(x), targets)
    parameter = model.covar_module.raw_order_parameter
    parameter.requires_grad_(True)
    (slope,) = torch.autograd.grad(mll(model(x), targets), parameter)
    assert slope.abs().max() < 1e-8 * max(1.0, abs(float(value.detach())))  # q* is known to 1e-9 or better


def test_differentiable_solution(rng, make_model):
    """dq*/dT by the implicit function theorem (section 1) against finite differences of the brute-force root."""
    X, y, T, widths = rng.normal(size=(25, 8)), rng.normal(size=25), 0.1, [12, 40]
    model = make_model(X, y, Erf(), widths, T)
    solution = fit_order_parameters(model, differentiable=True)
    raw = model.likelihood.noise_covar.raw_noise
    q = solution.order_parameter.reshape(-1)
    k, U = np.linalg.eigh(nngp(X, X, DUALS["erf"], [1.0] * 3))
    h = 1e-4
    up, down = (brute_force_minimum(k, U.T @ y, widths, T + s * h).order_parameter for s in (1, -1))
    noise_slope = torch.sigmoid(raw.detach())  # dT/draw of the softplus of GreaterThan
    for i in range(2):
        (slope,) = torch.autograd.grad(q[i], raw, retain_graph=True)
        # central differences: truncation h^2/T^2 = 1e-6
        assert float(slope / noise_slope) == pytest.approx((up - down)[i] / (2 * h), rel=1e-5)


def test_wide_networks_are_gaussian_processes(rng, make_model):
    X, y = rng.normal(size=(20, 8)), rng.normal(size=20)
    model = make_model(X, y, Erf(), [1e9], 0.1)
    assert math.isclose(float(fit_order_parameters(model).order_parameter), 1.0, abs_tol=1e-6)
