"""Self-checks of tests/reference.py: the truth that the package is compared with is itself checked here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import (
    COMPOSITIONS,
    DUALS,
    FIRST_ORDER_TRANSITION,
    TWO_LAYER_TRANSITION,
    action_dense,
    action_scale,
    action_spectrum,
    brute_force_minimum,
    dual_by_quadrature,
    exact_log_evidence,
    expectation,
    expected_accuracy,
    hard_spectra,
    hidden_kernels,
    inner_minimum,
    input_covariance,
    laplace_log_evidence,
    leave_one_out,
    minimize_dense,
    nested_kernel,
    nngp,
    predict,
    renormalized_kernel,
    stationary_path,
    training_error,
    zero_temperature_order_parameter,
)
from scipy import optimize, special, stats

THEORY_KEYS = {
    "inf": None,
    "saddle": "outer",
    "saddle_nested": "nested",
    "saddle_outer": "outer",
    "saddle_lin": "linear_part",
}
CLOSED = ["identity", "erf", "relu", "leaky_relu", "sin", "cos", "exp", "square", "gelu"]
PAIRS = [(1.3, 0.4, 0.7), (2.0, -1.1, 0.9), (0.5, 0.5, 0.5), (1.0, -1.0, 1.0), (0.0, 0.0, 1.0), (1e-6, 2e-4, 1.0)]


def problem(rng, P=25, test=8, N0=7, scale=1.0):
    X = scale * rng.normal(size=(P + test, N0))
    return X, rng.normal(size=P), rng.normal(size=test)


# duals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("pair", PAIRS)
def test_closed_duals_are_quadratures(name, pair):
    dual = DUALS[name]
    assert dual.kappa(*pair) == pytest.approx(dual_by_quadrature(dual.phi, *pair), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", CLOSED)
def test_slope_and_mean_are_quadratures(name):
    dual = DUALS[name]
    for c in (0.3, 1.7):
        assert dual.slope(c) == pytest.approx(expectation(lambda h: dual.phi(h) * h, c) / c, rel=1e-12, abs=1e-14)
        assert dual.mean(c) == pytest.approx(expectation(dual.phi, c), rel=1e-12, abs=1e-14)


def test_quadrature_against_monte_carlo(rng):
    cxx, cxy, cyy = 1.3, 0.6, 0.9
    u, w = rng.multivariate_normal([0, 0], [[cxx, cxy], [cxy, cyy]], size=400_000).T
    for name in ("tanh", "relu", "erf"):
        phi = DUALS[name].phi
        sample = phi(u) * phi(w)
        error = np.std(sample) / math.sqrt(len(sample))
        # 5 standard errors of 400,000 samples
        assert abs(dual_by_quadrature(phi, cxx, cxy, cyy) - sample.mean()) < 5 * error


def test_kernel_of_sampled_relu_features(rng):
    """K^1 is the covariance of the readout of a random layer: closes the loop to section 0's definition of the net."""
    X = rng.normal(size=(3, 5))
    W = rng.normal(size=(400_000, 5)) / math.sqrt(2.0)
    features = np.maximum(W @ X.T / math.sqrt(5), 0)
    sample = features.T @ features / len(W) / 3.0
    # 400,000 units: relative error of a second moment about 2/sqrt(400000) = 0.003; 5 of them
    np.testing.assert_allclose(sample, nngp(X, X, DUALS["relu"], (2.0, 3.0)), rtol=0.016)


# kernels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["erf", "relu", "gelu", "leaky_relu"])
def test_loops_agree_with_symmetric_recursion(rng, name):
    X, _, _ = problem(rng, P=6, test=0)
    X[3] = X[1]  # duplicate row
    precisions, biases = (0.7, 1.3, 2.0, 0.9), (0.2, 0.1, 0.3)
    loops = nngp(X, X, DUALS[name], precisions, biases)
    matrix = hidden_kernels(input_covariance(X, X, precisions, biases), DUALS[name], precisions, biases)[-1]
    # relu at a duplicate row: arccos of 1 - 1e-16 is 1.5e-8, which enters squared
    np.testing.assert_allclose(loops, matrix, rtol=1e-13)


@pytest.mark.parametrize("name", ["erf", "relu"])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_all_compositions_are_the_nngp_kernel_at_one(rng, name, composition):
    X, _, _ = problem(rng)
    precisions, biases = (0.7, 1.3, 2.0, 0.9), (0.2, 0.1, 0.3)
    C = input_covariance(X, X, precisions, biases)
    K = renormalized_kernel(C, DUALS[name], precisions, biases, composition)(np.ones(3))
    np.testing.assert_allclose(K, hidden_kernels(C, DUALS[name], precisions, biases)[-1], rtol=1e-13)


@pytest.mark.parametrize("name", ["relu", "identity", "leaky_relu"])
def test_nested_is_outer_for_homogeneous_activations(rng, name):
    X, _, _ = problem(rng)
    precisions, q = (0.7, 1.3, 2.0), np.array([1.7, 0.4])
    C = input_covariance(X, X, precisions)
    nested, outer = (renormalized_kernel(C, DUALS[name], precisions, None, c)(q) for c in ("nested", "outer"))
    np.testing.assert_allclose(nested, outer, rtol=1e-12)


def test_linear_part_is_exact_for_the_identity(rng):
    X, _, _ = problem(rng)
    precisions, biases, q = (0.7, 1.3, 2.0, 0.8), (0.1, 0.2, 0.3), np.array([1.7, 0.4, 2.1])
    C = input_covariance(X, X, precisions, biases)
    part, nested = (
        renormalized_kernel(C, DUALS["identity"], precisions, biases, c)(q) for c in ("linear_part", "nested")
    )
    np.testing.assert_allclose(part, nested, rtol=1e-12, atol=1e-13)


def test_linear_part_of_two_layers_is_equation_8b(rng):
    X, _, _ = problem(rng)
    precisions, q = (0.7, 1.3, 2.0), np.array([1.7, 0.4])
    C = input_covariance(X, X, precisions)
    _, K1, K2 = hidden_kernels(C, DUALS["erf"], precisions)
    D = 2 / math.sqrt(math.pi) / np.sqrt(1 + 2 * np.diagonal(K1))
    expected = q[1] * (K2 + (q[0] - 1) * D[:, None] * K1 * D[None, :] / 2.0)
    np.testing.assert_allclose(
        renormalized_kernel(C, DUALS["erf"], precisions, None, "linear_part")(q), expected, rtol=1e-12, atol=1e-14
    )


def test_hidden_biases_are_never_multiplied():
    dual = DUALS["relu"]
    C = np.array([[2.0]])
    K = nested_kernel(C, dual, (1.0, 1.0, 1.0), (0.0, 0.5), np.array([2.0, 3.0]))
    assert K[0, 0] == pytest.approx(3.0 * (2.0 * 1.0 + 0.5) / 2, rel=1e-14)


# the action and its minimum ------------------------------------------------------------------------------------------


def test_spectrum_and_dense_actions_agree(rng):
    X, y, _ = problem(rng, test=0)
    K = nngp(X, X, DUALS["erf"], (1.0, 1.0))
    k, U = np.linalg.eigh(K)
    q, N, T = np.array([0.4, 1.9]), (30, 70), 0.05
    dense = action_dense(q, np.prod(q) * K, y, N, T)
    assert action_spectrum(q, k, U.T @ y, N, T) == pytest.approx(dense, rel=1e-12)
    direct = stats.multivariate_normal(cov=T * np.eye(len(y)) + np.prod(q) * K).logpdf(y)
    prior = sum(n * (v - math.log(v)) for n, v in zip(N, q, strict=True)) / N[-1]
    assert dense == pytest.approx(prior + (-2 * direct - len(y) * math.log(2 * math.pi)) / N[-1], rel=1e-11)


def test_action_is_the_log_posterior_under_the_registered_gamma_prior(rng):
    """Section 1: S = -(2/N)[log N(y; 0, A) + log Gamma(q; N/2 + 1, N/2)] + const."""
    k, z, N, T = rng.exponential(size=9), rng.normal(size=9), 14.0, 0.3
    difference = []
    for q in (0.3, 1.0, 2.7):
        log_normal = np.sum(stats.norm.logpdf(z, scale=np.sqrt(T + q * k)))
        log_gamma = stats.gamma.logpdf(q, N / 2 + 1, scale=2 / N)
        difference.append(action_spectrum([q], k, z, [N], T) + 2 / N * (log_normal + log_gamma))
    assert np.ptp(difference) < 1e-13


def test_quoted_first_order_transition():
    p = FIRST_ORDER_TRANSITION
    best = brute_force_minimum(p.k, p.z, p.widths, p.temperature)
    # quoted to three digits in section 1
    np.testing.assert_allclose(best.stationary_products, [0.0104, 0.487, 72.0], rtol=3e-3)
    assert best.order_parameter[0] == pytest.approx(72.0, rel=3e-3)
    assert len(best.minima) == 2


def test_quoted_two_layer_transition():
    p = TWO_LAYER_TRANSITION
    best = brute_force_minimum(p.k, p.z, p.widths, p.temperature)
    # quoted to four digits in section 4
    np.testing.assert_allclose(np.sqrt(best.stationary_products), [1.0357, 38.56, 80.54], rtol=1e-4)
    np.testing.assert_allclose(best.order_parameter, [1.0357, 1.0357], rtol=1e-4)
    assert len(best.minima) == 2


def test_inner_minimum_lies_on_the_path(rng):
    for _ in range(10):
        N = np.exp(rng.uniform(0, 6, size=rng.integers(1, 5)))
        log_r = rng.normal() * 3
        q = inner_minimum(log_r, N)
        assert np.sum(np.log(q)) == pytest.approx(log_r, abs=1e-10)
        prior = np.sum(N * (q - np.log(q)))
        for _ in range(20):  # no neighbor with the same product is lower
            direction = rng.normal(size=len(N))
            moved = q * np.exp(0.01 * (direction - direction.mean()))
            assert np.sum(N * (moved - np.log(moved))) >= prior * (1 - 1e-14)
        t = math.log(q[np.argmin(N)])
        np.testing.assert_allclose(stationary_path(t, N), q, rtol=1e-12)


def action_and_gradient(u, p):
    """S and dS/du_l, u = log q, written out for all L variables."""
    N, kT, zT = np.array(p.widths), p.k / p.temperature, p.z**2 / p.temperature
    x = math.exp(np.sum(u)) * kT
    slope = (N * np.expm1(u) + np.sum(x / (1 + x) - zT * x / (1 + x) ** 2)) / N[-1]
    return action_spectrum(np.exp(u), p.k, p.z, p.widths, p.temperature), slope


def test_brute_force_is_never_beaten():
    """60 hard problems: direct minimization over all of q_1..q_L from many starts finds nothing lower."""
    several = 0
    for p in hard_spectra(np.random.default_rng(5), 60):
        best = brute_force_minimum(p.k, p.z, p.widths, p.temperature)
        several += len(best.minima) > 1
        scale = action_scale(best.order_parameter, p.k, p.z, p.widths, p.temperature)
        N, kT, zT = np.array(p.widths), p.k / p.temperature, p.z**2 / p.temperature
        starts = [np.full(len(N), level) for level in (-6.0, -2.0, 0.0, 1.0, 3.0, 5.0)]
        starts += [np.log(q) for q in stationary_path(np.array([-4.0, 2.0]), N)]
        for start in starts:
            found = optimize.minimize(
                action_and_gradient, start, args=(p,), jac=True, method="L-BFGS-B", bounds=[(-30, 30)] * len(N)
            )
            assert found.fun >= best.action - 1e-13 * scale, (p.kind, p.widths, found.x, np.log(best.order_parameter))
        for q, _ in best.minima:
            # |q_l - 1| N_l is a sum of P terms of either sign: rounding against the largest of them
            x = np.prod(q) * kT
            size = np.sum(N * (1 + q)) + np.sum(x / (1 + x) + zT * x / (1 + x) ** 2)
            assert np.max(np.abs(action_and_gradient(np.log(q), p)[1])) * N[-1] <= 1e-12 * size
    assert several >= 10


def test_grid_density_does_not_matter():
    for p in hard_spectra(np.random.default_rng(6), 40):
        coarse = brute_force_minimum(p.k, p.z, p.widths, p.temperature, points=1500)
        fine = brute_force_minimum(p.k, p.z, p.widths, p.temperature, points=7001)
        assert fine.action == pytest.approx(coarse.action, rel=1e-13, abs=1e-13)
        assert len(fine.stationary_products) == len(coarse.stationary_products)


def test_stationary_points_obey_the_stated_brackets_and_curvature():
    """Section 1: 0 < q <= 1 + y^T y/(4 T N); for P <= N (L = 1) one stationary point, with the quoted curvature."""
    for p in hard_spectra(np.random.default_rng(7), 80):
        best = brute_force_minimum(p.k, p.z, p.widths, p.temperature)
        assert np.all(best.order_parameter <= (1 + p.z @ p.z / (4 * p.temperature * np.array(p.widths))) * (1 + 1e-12))
        assert len(best.minima) >= 1
        assert len(best.stationary_products) == 2 * len(best.minima) - 1
        if len(p.widths) > 1:
            continue
        N, scale = p.widths[0], 1 + 1e-12
        for q in best.stationary_products:
            assert q * scale >= 1 / (1 + p.k.sum() / (N * p.temperature))
            assert q * scale >= 1 - len(p.k) / N
            if p.k.min() > 0:
                assert q <= (1 + math.sqrt(1 + 4 * np.sum(p.z**2 / p.k) / N)) / 2 * scale
        if len(p.k) <= N:
            assert len(best.minima) == 1


def test_dense_minimization_agrees_with_the_spectrum(rng):
    X, y, _ = problem(rng, test=0)
    precisions, widths, T = (1.0, 1.0, 2.0), (12, 40), 0.05
    C = input_covariance(X, X, precisions)
    kernel = renormalized_kernel(C, DUALS["erf"], precisions, None, "outer")
    k, U = np.linalg.eigh(kernel(np.ones(2)))
    dense, scan = minimize_dense(kernel, y, widths, T), brute_force_minimum(k, U.T @ y, widths, T)
    np.testing.assert_allclose(dense.order_parameter, scan.order_parameter, rtol=1e-9)
    assert dense.action == pytest.approx(scan.action, rel=1e-13)
    # N_l (q_l - 1) is the same number for all l (section 4)
    assert np.ptp(np.array(widths) * (scan.order_parameter - 1)) < 1e-10


@pytest.mark.parametrize("composition", ["nested", "linear_part"])
def test_dense_minimum_is_stationary_by_finite_differences(rng, composition):
    X, y, _ = problem(rng, P=40, test=0)
    precisions, biases, widths, T = (1.0, 1.0, 2.0), (0.1, 0.2), (50, 80), 0.5
    C = input_covariance(X, X, precisions, biases)
    kernel = renormalized_kernel(C, DUALS["erf"], precisions, biases, composition)
    best = minimize_dense(kernel, y, widths, T)
    u, h = np.log(best.order_parameter), 1e-5
    for direction in np.eye(2):
        up, down = (np.exp(u + s * h * direction) for s in (1, -1))
        S_up, S_down = (action_dense(q, kernel(q), y, widths, T) for q in (up, down))
        # differences of S (about 2) over 2e-5: rounding 5e-11
        assert abs(S_up - S_down) / (2 * h) < 1e-9
        assert min(S_up, S_down) >= best.action - 1e-14


def test_zero_temperature_closed_form(rng):
    X, y, _ = problem(rng, P=15, test=0, N0=40)
    K = nngp(X, X, DUALS["erf"], (1.0, 1.0))
    k, U = np.linalg.eigh(K)
    for N in (5, 15, 80):
        cold = brute_force_minimum(k, U.T @ y, [N], 1e-11).order_parameter[0]
        # corrections are of order T/k = 1e-10
        assert cold == pytest.approx(zero_temperature_order_parameter(K, y, N), rel=1e-8)


# predictions and evidence --------------------------------------------------------------------------------------------


def test_training_error_closed_form(rng):
    X, y, _ = problem(rng, test=0)
    K, T, q = nngp(X, X, DUALS["relu"], (1.0, 1.0)), 0.2, 1.6
    inverse = np.linalg.inv(T * np.eye(len(y)) + q * K)
    closed = (T**2 * np.sum((inverse @ y) ** 2) + T * len(y) - T**2 * np.trace(inverse)) / len(y)
    assert training_error(q * K, y, T) == pytest.approx(closed, rel=1e-11)


def test_leave_one_out_closed_form(rng):
    X, y, _ = problem(rng, test=0)
    K, T = 1.6 * nngp(X, X, DUALS["relu"], (1.0, 1.0)), 0.2
    means, variances = leave_one_out(K, y, T)
    inverse = np.linalg.inv(T * np.eye(len(y)) + K)
    np.testing.assert_allclose(y - means, inverse @ y / np.diagonal(inverse), rtol=1e-10)
    np.testing.assert_allclose(variances, 1 / np.diagonal(inverse) - T, rtol=1e-10)


def test_expected_accuracy_by_sampling(rng):
    mean, variance, labels = rng.normal(size=6), rng.uniform(0.1, 2, size=6), rng.choice([-1.0, 1.0], size=6)
    draws = mean + np.sqrt(variance) * rng.normal(size=(200_000, 6))
    # standard error at most 0.5/sqrt(1.2e6) = 5e-4; 5 of them
    assert np.mean(np.sign(draws) == labels) == pytest.approx(expected_accuracy(mean, variance, labels), abs=2.5e-3)


def test_laplace_evidence_converges_to_the_exact_one(rng):
    gaps = []
    for N in (25, 100, 400, 1600):
        P = N // 2
        k, z = rng.exponential(size=P), rng.normal(size=P)
        gaps.append(abs(laplace_log_evidence(k, z, N, 0.1) - exact_log_evidence(k, z, N, 0.1)))
    # the first correction is O(1/N), of order 0.1 to 1 over N
    assert all(gap < 2 / N for gap, N in zip(gaps, (25, 100, 400, 1600), strict=True))


def test_exact_evidence_against_monte_carlo(rng):
    k, z, N, T = rng.exponential(size=6), rng.normal(size=6), 8, 0.3
    q = rng.gamma(N / 2, 2 / N, size=100_000)[:, None]
    terms = np.sum(stats.norm.logpdf(z, scale=np.sqrt(T + q * k)), axis=1)
    estimate = special.logsumexp(terms) - math.log(len(terms))
    # relative standard error of the mean weight below 0.005
    assert exact_log_evidence(k, z, N, T) == pytest.approx(estimate, abs=0.02)


def test_exact_evidence_at_infinite_width(rng):
    k, z, T = rng.exponential(size=6), rng.normal(size=6), 0.3
    gaussian = np.sum(stats.norm.logpdf(z, scale=np.sqrt(T + k)))
    # corrections are of order 1/N
    assert exact_log_evidence(k, z, 1e6, T) == pytest.approx(gaussian, abs=1e-4)
    assert laplace_log_evidence(k, z, 1e6, T) == pytest.approx(gaussian, abs=1e-4)


# the independent `theory` values of the sampled networks -------------------------------------------------------------


def check_case(case, keys):
    P, T, widths = len(case["y"]), case["temperature"], case["widths"]
    rows = np.vstack([case["X"], case["Xt"]])
    C = input_covariance(rows, rows, case["precisions"])
    dual, y = DUALS[case["activation"]], case["y"]
    compared = 0
    for key in keys:
        if key not in case["theory"]:
            continue
        theory = case["theory"][key]
        composition = keys[key]
        full, train = (
            renormalized_kernel(part, dual, case["precisions"], None, composition or "outer") for part in (C, C[:P, :P])
        )
        if composition is None:
            q = np.ones(len(widths))
        elif composition == "outer":
            k, U = np.linalg.eigh(train(np.ones(len(widths))))
            q = brute_force_minimum(k, U.T @ y, widths, T).order_parameter
        else:
            q = minimize_dense(train, y, widths, T).order_parameter
        mean, variance = predict(full(q), y, T)
        bias = np.mean((case["yt"] - mean) ** 2)
        listed = [theory["q"]] * len(q) if "q" in theory else [theory[f"q{i + 1}"] for i in range(len(q))]
        # the listed optima come from an independent minimization that stopped at 1e-7 in q
        np.testing.assert_allclose(
            [bias + variance.mean(), bias, variance.mean(), *q],
            [theory["mse"], theory["bias2"], theory["var"], *listed],
            rtol=1e-6,
            err_msg=f"case {case['id']} {key}",
        )
        ours, theirs = (action_dense(v, train(v), y, widths, T) for v in (q, np.array(listed)))
        assert ours <= theirs + 1e-12 * abs(theirs), (case["id"], key)
        compared += 1
    return compared


def test_reproduces_theory_values_of_all_cases(reference_cases):
    compared = sum(check_case(case, THEORY_KEYS) for case in reference_cases)
    assert compared >= 2 * len(reference_cases)


def test_reproduces_theory_values_of_shipped_cases(shipped_cases):
    assert len(shipped_cases) == 3
    assert sum(check_case(case, THEORY_KEYS) for case in shipped_cases) == 2 + 2 + 4
