"""Grids of networks against quadrature, against really leaving points out, and what is said about them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from reference import DUALS, exact_log_evidence, nngp

from torch_propkernel import Erf, ReLU
from torch_propkernel.mixing import ProductGammaMixing
from torch_propkernel.mixing.tabulated_density import TabulatedDensity
from torch_propkernel.theories import width_sweep
from torch_propkernel.tuning import NetworkChoice, choose_network
from torch_propkernel.tuning.network_choice import AXES

SMALL = {
    "depths": (1,),
    "bias_ratios": (0.3,),
    "readout_variances": (1.0,),
    "temperatures": (0.1,),
    "widths": (5.0, math.inf),
    "baselines": False,
}


def data(rows=14, columns=2):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, columns))
    return x, np.sin(2.0 * x[:, 0]) + 0.3 * rng.normal(size=rows)


def choose(x, y, **options) -> NetworkChoice:
    return choose_network(torch.as_tensor(x), torch.as_tensor(y), **{**SMALL, **options})


def log_evidence(K, y, width, T):
    if math.isinf(width):
        return scipy.stats.multivariate_normal(np.zeros(len(y)), K + T * np.eye(len(y))).logpdf(y)
    k, U = np.linalg.eigh(K)
    return exact_log_evidence(np.maximum(k, 0.0), U.T @ y, width, T)


def test_maps_against_quadrature():
    x, y = data()
    options = {
        "activations": [ReLU(), Erf()],
        "bias_ratios": (0.0, 2.0),
        "weight_variances": (0.5,),
        "readout_variances": (1.0, 4.0),
        "temperatures": (0.03, 0.3),
        "widths": (math.inf, 5.0),  # sorted in the grid
        "standardize": False,
    }
    choice = choose(x, y, **options)
    assert choice.grid["width"] == (5.0, math.inf)
    assert choice.log_evidence.shape == (2, 1, 2, 1, 2, 2, 2)
    for at in [(0, 0, 0, 0, 0, 0, 0), (1, 0, 1, 0, 1, 0, 0), (0, 0, 1, 0, 1, 1, 1), (1, 0, 0, 0, 0, 1, 0)]:
        network = choice.network(at)
        dual = DUALS["relu" if at[0] == 0 else "erf"]
        precisions = [2.0, 1.0 / network["readout_variance"]]
        K = nngp(x, x, dual, precisions, [0.5 * network["bias_ratio"]])
        T, width = network["temperature"], network["width"]
        whole = log_evidence(K, y, width, T)
        # 1e-7: the density of the scale comes from a table.
        assert float(choice.log_evidence[at]) == pytest.approx(whole, abs=1e-7)
        for point in (0, 7):  # p(y_i | y_-i) = p(y) / p(y_-i)
            rest = np.delete(np.arange(len(y)), point)
            expected = whole - log_evidence(K[np.ix_(rest, rest)], y[rest], width, T)
            assert float(choice.pointwise_log_density[at][point]) == pytest.approx(expected, abs=1e-7)
    mean = choice.pointwise_log_density.mean(-1)
    assert torch.equal(choice.leave_one_out_log_density, mean)


def test_depth_agrees_with_the_comparison_of_widths(make_model):
    x, y = data()
    choice = choose(x, y, depths=(1, 2), standardize=False, readout_variances=(2.0,))
    model = make_model(x, y, ReLU(), [5.0, 5.0], 0.1, [1.0, 1.0, 0.5], [0.3, 0.3])
    model.covar_module.raw_readout_variance.requires_grad_(False)
    found = width_sweep(model, [5.0, math.inf], theory="mixture")
    chosen = (0, 1, 0, 0, 0, 0)
    # 1e-6: the density of the product of Gammas comes from a table.
    assert torch.allclose(choice.log_evidence[chosen], found.log_evidence, atol=1e-6)
    assert torch.allclose(choice.leave_one_out_log_density[chosen], found.leave_one_out.log_density.mean(-1), atol=1e-6)
    assert torch.allclose(choice.leave_one_out_error[chosen], found.leave_one_out.mean_total, atol=1e-6)


@pytest.mark.parametrize("size", [1e-3, 30.0])  # the posterior of the scale is far below or above the prior's interval
def test_targets_that_pull_the_scale_beyond_its_prior(size):
    x, y = data()
    choice = choose(x, size * y, standardize=False, widths=(3.0, 2000.0), temperatures=(1e-8, 0.01))
    k, U = np.linalg.eigh(nngp(x, x, DUALS["relu"], [1.0, 1.0], [0.3]))
    u = np.linspace(-60.0, 30.0, 40_001)
    for i, T in enumerate((1e-8, 0.01)):
        variance = T + np.exp(u)[:, None] * k.clip(0.0)
        likelihood = scipy.stats.norm(0.0, np.sqrt(variance)).logpdf(U.T @ (size * y)).sum(-1)
        for j, width in enumerate((3.0, 2000.0)):
            prior = scipy.stats.gamma(width / 2, scale=2 / width).logpdf(np.exp(u)) + u
            expected = scipy.special.logsumexp(prior + likelihood) + math.log(u[1] - u[0])
            # 5e-6: the density comes from a table; its fourth derivative grows with N r.
            assert float(choice.log_evidence.squeeze()[i, j]) == pytest.approx(expected, rel=1e-8, abs=5e-6)


@pytest.mark.parametrize("widths", [[5.0, 5.0], [300.0, 300.0, 300.0]])
def test_table_of_a_density(widths):
    law = ProductGammaMixing(torch.tensor(widths, dtype=torch.float64))
    table = TabulatedDensity(law)
    low, high = table.interval
    u = low + (high - low) * torch.rand(200, dtype=torch.float64)
    assert torch.allclose(table(u), law.log_density(u), rtol=0, atol=1e-6)
    u = torch.tensor([-17.0, 26.0], dtype=torch.float64)  # outside
    assert torch.equal(table(u), law.log_density(u))


def test_probabilities():
    x, y = data()
    choice = choose(x, y, temperatures=(0.01, 0.1, 1.0), readout_variances=(1.0, 3.0))
    evidence = choice.log_evidence.numpy().squeeze()  # readout variance, temperature, width
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    np.testing.assert_allclose(choice.probability("temperature").numpy(), weights.sum((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(choice.probability("readout_variance", "width").numpy(), weights.sum(1), rtol=1e-12)
    assert float(choice.marginal()) == pytest.approx(math.log(np.mean(np.exp(evidence))), rel=1e-12)
    assert torch.equal(choice.marginal(*AXES), choice.log_evidence)
    best = np.unravel_index(evidence.argmax(), evidence.shape)
    assert choice.recommended["temperature"] == (0.01, 0.1, 1.0)[best[1]]
    with pytest.raises(ValueError, match="axes: expected names among"):
        choice.marginal("size")


def test_a_wrong_variance_looks_like_a_preference_for_a_finite_width():
    x, y = data(60)
    options = {"standardize": False, "temperatures": (0.01, 0.1, 1.0), "widths": (5.0, 50.0, math.inf)}
    fixed = choose(x, 6.0 * y, **options)
    assert fixed.preference("width") == 5.0  # the scale of the targets is six
    assert fixed.plausible("width", 1e9) == (5.0, 50.0, math.inf)
    free = choose(x, 6.0 * y, readout_variances=np.geomspace(1.0, 1e5, 26), **options)
    assert free.preference("width") is None
    highest = free.log_evidence.amax((4, 5)).flatten()  # over readout variance and temperature
    assert float(highest[2]) > float(highest[:2].max())
    assert "Width: no preference" in str(free) and "Width: 5 has the highest evidence" in str(fixed)


def test_units_of_the_user():
    x, y = data()
    first = choose(x, y)
    second = choose(3.0 * x + 1.0, 10.0 * y - 5.0)
    assert torch.allclose(first.log_evidence, second.log_evidence, rtol=1e-9)
    assert torch.allclose(100.0 * first.leave_one_out_error, second.leave_one_out_error, rtol=1e-9)
    single = choose_network(torch.as_tensor(x).float(), torch.as_tensor(y).float(), **SMALL)
    assert torch.allclose(first.log_evidence, single.log_evidence, atol=1e-4)  # float32 data


def test_baselines():
    x, y = data(30)
    choice = choose(x, y, baselines=True, depths=(1, 2), standardize=False)
    free, matern = choice.baselines
    assert "ScaleKernel(NNGP ReLU()" in free.name and "Matern" in matern.name
    for baseline in choice.baselines:
        model = baseline.fit.model
        K = model.covar_module(torch.as_tensor(x)).to_dense().detach().numpy()
        T = baseline.fit.temperature
        for point in (0, 11):
            rest = np.delete(np.arange(30), point)
            A = K[np.ix_(rest, rest)] + T * np.eye(29)
            k = K[rest, point]
            mean, variance = k @ np.linalg.solve(A, y[rest]), K[point, point] - k @ np.linalg.solve(A, k) + T
            expected = scipy.stats.norm(mean, math.sqrt(variance)).logpdf(y[point])
            # 1e-6: T may be small, and the eigendecomposition has the rounding of the largest eigenvalue.
            assert float(baseline.pointwise_log_density[point]) == pytest.approx(expected, abs=1e-6)
    gap = (free.pointwise_log_density - choice.pointwise_log_density[choice.index()]).numpy()
    mean, error = choice.difference(free, choice.index())
    assert mean == pytest.approx(gap.mean()) and error == pytest.approx(gap.std(ddof=1) / math.sqrt(30))
    text = str(choice)
    assert free.name in text and matern.name in text and f"{mean:+.4f} +- {error:.4f}" in text
    assert "infinite width always reaches the higher evidence" in text


def test_indices():
    choice = choose(*data(), temperatures=(0.01, 0.1, 1.0))
    at = choice.index(temperature=1.0, width=math.inf)
    assert choice.network(at) == {**choice.recommended, "temperature": 1.0, "width": math.inf}
    assert choice.network(choice.index(**choice.best_left_out)) == choice.best_left_out
    assert float(choice.leave_one_out_log_density[choice.index(**choice.best_left_out)]) == float(
        choice.leave_one_out_log_density.max()
    )
    with pytest.raises(ValueError, match="width: expected one of"):
        choice.index(width=7.0)


@pytest.mark.parametrize("case", ["constant", "duplicates", "constant column", "two points"])
def test_degenerate_data(case):
    x, y = data()
    if case == "constant":
        y = np.full(14, 3.0)
    elif case == "duplicates":
        x = np.repeat(x[:2], 7, axis=0)
    elif case == "constant column":
        x[:, 1] = 4.0
    else:
        x, y = x[:2], y[:2]
    choice = choose(x, y, baselines=True)
    assert bool(torch.isfinite(choice.log_evidence).all() & torch.isfinite(choice.leave_one_out_error).all())
    assert "leave-one-out" in str(choice)


def test_progress():
    seen = []
    choose(*data(), depths=(1, 2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widths": (0.0, 5.0)}, ValueError, "width: expected finite numbers > 0"),
        ({"widths": ()}, ValueError, "width: expected one or more different values"),
        ({"temperatures": (0.1, 0.1)}, ValueError, "temperature: expected one or more different values"),
        ({"temperatures": (math.inf,)}, ValueError, "temperature: expected finite numbers > 0"),
        ({"bias_ratios": (-1.0,)}, ValueError, "bias_ratio: expected finite numbers >= 0"),
        ({"depths": (0,)}, ValueError, "depths: expected integers >= 1"),
        ({"activations": "rulu"}, ValueError, "expected an Activation or one of the names"),
    ],
)
def test_bad_grids(options, error, message):
    with pytest.raises(error, match=message):
        choose(*data(), **options)


def test_bad_data():
    x, y = data()
    with pytest.raises(ValueError, match="x, y: expected P x d and P with P >= 2"):
        choose(x[:1], y[:1])
    with pytest.raises(ValueError, match=r"y: expected shape \(..., 14\)"):
        choose(x, y[:5])
    y[0] = np.nan
    with pytest.raises(ValueError, match="y: expected finite values, got 1 NaN"):
        choose(x, y)
