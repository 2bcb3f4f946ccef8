"""Fits by evidence, against direct search on evidences that are written down from the formulas."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import scipy.stats
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from reference import DUALS, brute_force_minimum, exact_log_evidence, nngp

from conftest import double_precision
from torch_propkernel import (
    ConvergenceError,
    Erf,
    FiniteWidthLikelihood,
    FiniteWidthProcess,
    NetworkGP,
    NNGPKernel,
    ReLU,
    RenormalizedNNGPKernel,
    StudentTProcess,
    StudentTProcessLikelihood,
    fit_order_parameters,
)
from torch_propkernel.exceptions import BoundaryWarning, IdentifiabilityWarning
from torch_propkernel.tuning import HyperparameterFit, evidence_descent, fit_hyperparameters, several_starts
from torch_propkernel.tuning import evidence as evidence_module
from torch_propkernel.tuning.several_starts import starting_points
from torch_propkernel.tuning.trained_parameters import find_trained_parameters

# Three inputs and narrow networks: the package is right to warn, and the evidence is to be checked all the same.
pytestmark = pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")
WIDTH = 20.0
RATIO_PRIOR = scipy.stats.lognorm(s=1.5, scale=0.3)  # the kernels' default, median 0.3


def data(rows: int = 40, columns: int = 3, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, columns))
    y = np.sin(2.0 * x[:, 0]) + 0.5 * x[:, 1] + noise * rng.normal(size=rows)
    return x, (y - y.mean()) / y.std()


def positive() -> gpytorch.likelihoods.GaussianLikelihood:
    return gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())


def network(x, y, width=WIDTH, activation=None, likelihood=None, **options) -> NetworkGP:
    options = {"bias_variance": 1.0, **options}
    with double_precision():
        kernel = RenormalizedNNGPKernel(activation or ReLU(), width, **options)
        return NetworkGP(torch.as_tensor(x), torch.as_tensor(y), likelihood or positive(), kernel)


def dense(x, T, ratio, name="relu") -> np.ndarray:
    """The kernel of one hidden layer with unit weight variances."""
    return nngp(x, x, DUALS[name], [1.0, 1.0], [ratio])


def spectral(K, y):
    k, U = np.linalg.eigh(K)
    return np.maximum(k, 0.0), U.T @ y


def log_evidence(kind: str, x, y, T, ratio) -> float:
    K = dense(x, T, ratio)
    if kind == "infinite":
        return scipy.stats.multivariate_normal(np.zeros(len(y)), K + T * np.eye(len(y))).logpdf(y)
    k, z = spectral(K, y)
    if kind == "mixture":
        return exact_log_evidence(k, z, WIDTH, T)
    S = brute_force_minimum(k, z, [WIDTH], T).action
    return -0.5 * WIDTH * (S - 1.0) - 0.5 * len(y) * math.log(2.0 * math.pi)


@pytest.mark.parametrize("kind", ["infinite", "mixture", "saddle"])
def test_against_direct_search(kind):
    x, y = data()
    model = network(x, y, math.inf if kind == "infinite" else WIDTH)
    fit = fit_hyperparameters(model, theory="saddle" if kind == "saddle" else "mixture", warn=False)
    T, ratio = fit.temperature, fit.values["bias_ratio"][0]
    # 1e-7: brute_force_minimum places the saddle to about 1e-8 in the action.
    assert fit.log_evidence == pytest.approx(log_evidence(kind, x, y, T, ratio), abs=1e-7)
    assert fit.log_posterior == pytest.approx(fit.log_evidence + RATIO_PRIOR.logpdf(ratio), abs=1e-7)

    def posterior(factor_T, factor_ratio):
        at = T * factor_T, ratio * factor_ratio
        return log_evidence(kind, x, y, *at) + RATIO_PRIOR.logpdf(at[1])

    around = {(a, b): posterior(a, b) for a in (0.98, 1.0, 1.02) for b in (0.98, 1.0, 1.02)}
    assert max(around, key=around.get) == (1.0, 1.0)  # a maximum to 2 %, and to better than that by symmetry:
    for low, high in (((0.98, 1.0), (1.02, 1.0)), ((1.0, 0.98), (1.0, 1.02))):
        drop = around[1.0, 1.0] - min(around[low], around[high])
        assert abs(around[low] - around[high]) < 0.1 * drop
    assert max(posterior(a, b) for a in (0.01, 0.1, 10.0) for b in (0.01, 0.1, 10.0)) < fit.log_posterior
    assert fit.converged and fit.at_bound == () and len(fit.starts) == 3
    assert model.likelihood.noise.item() == T
    assert model.covar_module.bias_variance.item() == pytest.approx(ratio, rel=1e-14)


def test_order_parameters_are_solved_at_the_end():
    x, y = data()
    model = network(x, 2.0 * y)
    fit_hyperparameters(model, starts=1)
    q = model.covar_module.order_parameter.item()
    assert fit_order_parameters(model).order_parameter.item() == pytest.approx(q, rel=1e-12)
    assert abs(q - 1.0) > 0.01


def test_saddle_of_a_composition_that_is_not_scalar():
    x, y = data(16)
    model = network(x, y, [15.0, 25.0], Erf(), composition="nested")
    with pytest.raises(ValueError, match="theory: expected 'saddle' for the composition Nested"):
        fit_hyperparameters(model)
    fit = fit_hyperparameters(model, train=("temperature",), theory="saddle", starts=1, warn=False)
    action = fit_order_parameters(model, warn=False).action.item()
    expected = -0.5 * 25.0 * action + 0.5 * 40.0 - 8.0 * math.log(2.0 * math.pi)
    assert fit.log_evidence == pytest.approx(expected, abs=1e-8)
    for factor in (0.97, 1.03):  # stationary in T, with q solved anew
        model.likelihood.noise = fit.temperature * factor
        assert fit_order_parameters(model, warn=False).action.item() > action


def test_own_law_of_a_process():
    from torch_propkernel.mixing import PointMass

    class Process(FiniteWidthProcess):
        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(x.new_zeros(x.shape[:-1]), self.covar_module(x))

    x, y = (torch.as_tensor(v) for v in data())
    with double_precision():
        fits = []
        for law in (None, PointMass(torch.tensor(1.0))):
            model = Process(x, y, FiniteWidthLikelihood(), mixing=law)
            model.covar_module = RenormalizedNNGPKernel(ReLU(), WIDTH, bias_variance=1.0)
            fits.append(fit_hyperparameters(model, starts=1))
    finite = fit_hyperparameters(network(*data()), starts=1)
    infinite = fit_hyperparameters(network(*data(), math.inf), starts=1)
    assert fits[0].log_posterior == pytest.approx(finite.log_posterior, abs=1e-7)
    assert fits[1].log_posterior == pytest.approx(infinite.log_posterior, abs=1e-7)


class Student(StudentTProcess):
    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(x.new_zeros(len(x)), self.covar_module(x))


def test_other_kernels_and_processes():
    x, y = (torch.as_tensor(v) for v in data())
    with double_precision():
        free = NetworkGP(x, y, positive(), ScaleKernel(NNGPKernel(ReLU(), bias_variance=1.0, ard_num_dims=3)))
        matern = NetworkGP(x, y, positive(), ScaleKernel(MaternKernel(ard_num_dims=3)), gpytorch.means.ConstantMean())
        student = Student(x, y, StudentTProcessLikelihood())
        student.covar_module = ScaleKernel(MaternKernel())
    fit = fit_hyperparameters(free, train=("temperature", "bias_ratio", "scale", "ard"), starts=2)
    assert free.covar_module.outputscale.item() == fit.values["scale"][0]
    assert len(fit.values["ard"]) == 3 and sum(fit.values["ard"]) == pytest.approx(3.0)
    assert fit.values["ard"][0] > fit.values["ard"][2]  # the third input carries nothing
    with pytest.warns(BoundaryWarning, match="lengthscale at its upper bound"):  # and here its lengthscale runs away
        fit = fit_hyperparameters(matern, train=("temperature", "scale", "lengthscale", "mean"))
    assert fit.at_bound == ("lengthscale",)
    covariance = matern.likelihood(matern.forward(x)).covariance_matrix.detach().numpy()
    truth = scipy.stats.multivariate_normal(np.full(len(y), fit.values["mean"][0]), covariance).logpdf(y.numpy())
    assert fit.log_evidence == pytest.approx(truth, abs=1e-8)
    fit = fit_hyperparameters(student, train=("temperature", "scale", "lengthscale", "deg_free"), starts=1)
    df = fit.values["deg_free"][0]
    scatter = student.likelihood(student.forward(x)).covariance_matrix.detach().numpy() * (df - 2.0) / df
    assert fit.log_evidence == pytest.approx(scipy.stats.multivariate_t(None, scatter, df).logpdf(y.numpy()), abs=1e-7)


def test_free_scale_reaches_the_higher_evidence_at_infinite_width():
    x, y = data()
    names = ("temperature", "bias_ratio", "scale")
    with pytest.warns(IdentifiabilityWarning, match="infinite width always reaches the higher evidence"):
        finite = fit_hyperparameters(network(x, y, 5.0), train=names)
    infinite = fit_hyperparameters(network(x, y, math.inf), train=names)
    assert infinite.log_posterior > finite.log_posterior


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("case", ["ordinary", "constant", "zero", "duplicates"])
@pytest.mark.parametrize("theory", ["mixture", "saddle", "infinite_width"])
def test_degenerate_data(case, rows, theory):
    x, y = data(rows + 2)
    x, y = x[:rows], y[:rows]
    if case in ("constant", "zero"):
        y = np.full(rows, 0.7 if case == "constant" else 0.0)
    if case == "duplicates":
        x = np.repeat(x[:1], rows, axis=0)
    model = network(x, y)
    fit = fit_hyperparameters(model, theory=theory, warn=False, starts=2)
    assert fit.converged and math.isfinite(fit.log_posterior)
    assert model.likelihood.noise.item() > 0
    if case in ("constant", "zero") and rows > 2:
        assert "temperature" in fit.at_bound and "the model interpolates" in fit.message


def test_bounds():
    x, y = data(noise=0.0)
    with pytest.warns(BoundaryWarning, match="temperature at its lower bound"):
        fit = fit_hyperparameters(network(x, np.ones(40)), starts=1)
    assert fit.temperature == pytest.approx(1e-6, rel=1e-6)
    fit = fit_hyperparameters(network(x, y), temperature_bounds=(2.0, 9.0), warn=False)
    assert fit.at_bound == ("temperature",) and fit.temperature == pytest.approx(2.0, rel=1e-6)
    assert "lower bound" in fit.message
    constrained = gpytorch.likelihoods.GaussianLikelihood()  # GPyTorch's bound of 1e-4
    with double_precision():
        fit = fit_hyperparameters(network(x, np.ones(40), likelihood=constrained.double()), warn=False)
    assert fit.temperature == pytest.approx(1.001e-4, rel=1e-6) and fit.at_bound == ("temperature",)
    with pytest.raises(ValueError, match="temperature_bounds: expected 0 < low < high"):
        fit_hyperparameters(network(x, y), temperature_bounds=(1.0, 0.1))
    with pytest.raises(ValueError, match="temperature: expected a constraint that overlaps"):
        fit_hyperparameters(
            network(x, y, likelihood=gpytorch.likelihoods.GaussianLikelihood().double()),
            temperature_bounds=(1e-9, 1e-8),
        )


def test_not_converged_leaves_the_model_alone():
    x, y = data()
    model = network(x, y)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConvergenceError, match="not converged after 1 iterations"):
        fit_hyperparameters(model, starts=1, max_iterations=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    fit = fit_hyperparameters(model, starts=1, max_iterations=1, throw=False)
    assert not fit.converged and fit.temperature == model.likelihood.noise.item() != float(before_noise(before))


def before_noise(state):
    return torch.nn.functional.softplus(state["likelihood.noise_covar.raw_noise"])


def test_modes_dtype_and_repetition():
    x, y = data()
    model = network(x, y)
    model.eval()
    model(torch.as_tensor(x[:3])).mean.sum()  # a cached prediction with a graph
    first = fit_hyperparameters(model)
    assert not model.training
    second = fit_hyperparameters(network(x, y))
    assert first.values == second.values  # no random numbers
    mean = model(torch.as_tensor(x)).mean
    assert torch.allclose(mean, fit_model_mean(x, y, first), rtol=1e-8)
    single = NetworkGP(
        torch.as_tensor(x).float(),
        torch.as_tensor(y).float(),
        positive(),
        RenormalizedNNGPKernel(ReLU(), WIDTH, bias_variance=1.0),
    )
    fit = fit_hyperparameters(single)
    assert single.likelihood.noise.dtype == torch.float32
    assert fit.temperature == pytest.approx(first.temperature, rel=1e-4)  # float32 data


def fit_model_mean(x, y, fit):
    """Posterior mean at the training points with a fresh model of the fitted values."""
    model = network(x, y, bias_variance=fit.values["bias_ratio"][0])
    model.likelihood.noise = fit.temperature
    fit_order_parameters(model)
    return model.eval()(torch.as_tensor(x)).mean


def test_layers_without_bias_have_nothing_to_train():
    x, y = data()
    fit = fit_hyperparameters(network(x, y, bias_variance=0.0), starts=2)
    assert set(fit.values) == {"temperature"}
    with pytest.raises(ValueError, match="expected something to train"):
        fit_hyperparameters(network(x, y, bias_variance=0.0), train=("bias_ratio",))
    fit = fit_hyperparameters(network(x, y, [20.0, 20.0], bias_variance=[1.0, 0.0]), starts=2)
    assert fit.values["bias_ratio"][0] > 0 and fit.values["bias_ratio"][1] == 0.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train": "temperature"}, TypeError, "train: expected a sequence of names"),
        ({"train": ("temperature", "width")}, ValueError, "train: expected different names among"),
        ({"train": ("temperature", "lengthscale")}, ValueError, "a parameter for 'lengthscale'"),
        ({"theory": "laplace"}, ValueError, "theory: expected one of"),
        ({"starts": 9}, ValueError, "starts: expected 1 to 4, got 9"),
        ({"max_iterations": 0}, ValueError, "max_iterations: expected at least 1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        fit_hyperparameters(network(*data()), **options)


def test_parameters_that_are_not_used():
    model = network(*data())
    model.unused = gpytorch.means.ConstantMean()
    with pytest.raises(ValueError, match=r"that the model's forward and likelihood use, got \['unused.raw_constant"):
        fit_hyperparameters(model, train=("temperature", "mean"))


def test_bad_models():
    x, y = data()
    with pytest.raises(TypeError, match="model: expected an ExactGP-like module, got int"):
        fit_hyperparameters(3)
    with pytest.raises(TypeError, match="expected an ExactGP-like model with train_inputs"):
        fit_hyperparameters(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no batch and one output, got \\(2, 40\\)"):
        fit_hyperparameters(network(np.stack([x, x]), np.stack([y, y])))
    y[3] = np.nan
    with pytest.raises(ValueError, match="train_targets: expected finite values, got 1 NaN"):
        fit_hyperparameters(network(x, y))


def test_text():
    fit = fit_hyperparameters(network(*data()), starts=2)
    assert isinstance(fit, HyperparameterFit) and fit.raise_if_failed() is fit
    assert str(fit).startswith(f"temperature {fit.temperature:.4g}; bias_ratio")
    assert "2 of 2 starts agree" in fit.message and fit.evaluations >= fit.iterations


def test_screened_starts_find_the_maximum_of_all_rows(monkeypatch):
    x, y = data(rows=320)
    screened = fit_hyperparameters(network(x, y), warn=False)
    monkeypatch.setattr(several_starts, "_FEWEST_ROWS", len(y))
    whole = fit_hyperparameters(network(x, y), warn=False)
    assert len(screened.starts) == len(whole.starts) == 3
    assert screened.converged and screened.evaluations < 0.5 * whole.evaluations
    assert screened.log_posterior == pytest.approx(whole.log_posterior, abs=1e-5)  # what L-BFGS-B leaves
    assert screened.temperature == pytest.approx(whole.temperature, rel=1e-2)
    assert len(screened.model.train_targets) == 320


def counted_evaluations(monkeypatch) -> list[int]:
    """The number of rows at each evaluation of a log posterior."""
    seen: list[int] = []
    original = evidence_descent.LogPosterior.__call__
    monkeypatch.setattr(
        evidence_descent.LogPosterior,
        "__call__",
        lambda self, vector: (seen.append(len(self.model.train_targets)), original(self, vector))[1],
    )
    return seen


WITH_ARD = {"train": ("temperature", "bias_ratio", "scale", "ard"), "theory": "infinite_width", "warn": False}


def test_starts_that_race_find_the_maximum_of_full_descents(monkeypatch):
    x, y = data(rows=240, columns=6, noise=0.05)
    monkeypatch.setattr(several_starts, "_BEHIND", 0.0)  # only the best goes on: these starts are all within ten nats
    seen = counted_evaluations(monkeypatch)
    raced = fit_hyperparameters(network(x, y, math.inf, ard_num_dims=6), **WITH_ARD)
    assert len(seen) == raced.evaluations  # those before and after the pause, each once
    monkeypatch.setattr(several_starts, "_RACE", 10**9)
    whole = fit_hyperparameters(network(x, y, math.inf, ard_num_dims=6), **WITH_ARD)
    assert raced.converged and raced.evaluations < 0.8 * whole.evaluations
    assert raced.log_posterior == pytest.approx(whole.log_posterior, abs=1e-3)  # a relative change of 1e-8 ends it
    assert "left behind" not in whole.message and "1 of 3 starts agree (2 left behind on the way)" in raced.message
    assert len(raced.starts) == 3 and max(raced.starts) == raced.log_posterior
    assert sorted(raced.starts)[1] < raced.log_posterior - 0.01  # where the others were left


def test_lengthscales_do_not_race(monkeypatch):
    monkeypatch.setattr(several_starts, "_raced", lambda *_: pytest.fail("the starts raced"))
    x, y = (torch.as_tensor(v) for v in data(columns=5))
    with double_precision():
        matern = NetworkGP(x, y, positive(), ScaleKernel(MaternKernel(ard_num_dims=5)))
    train = ("temperature", "scale", "lengthscale")
    assert "left" not in fit_hyperparameters(matern, train=train, warn=False, throw=False, starts=2).message


def test_a_descent_goes_on_where_it_was_stopped(monkeypatch):
    x, y = data(columns=5)
    model = network(x, y, math.inf, ard_num_dims=5)
    parameters = find_trained_parameters(model, WITH_ARD["train"], (1e-6, 1e2))
    start = starting_points(parameters, 1.0, 2)[1]
    objective = evidence_descent.LogPosterior(model, parameters, "infinite_width")
    straight = evidence_descent.descend(objective, start, parameters, 200)
    begun = evidence_descent.descend(objective, start, parameters, 6)
    assert begun.nit == 6 and not begun.converged and begun.fun > straight.fun
    seen = counted_evaluations(monkeypatch)
    ended = evidence_descent.descend(objective, start, parameters, 200, known=begun.path)
    assert np.array_equal(ended.x, straight.x) and (ended.fun, ended.nit) == (straight.fun, straight.nit)
    assert ended.nfev == straight.nfev == begun.nfev + len(seen)


@pytest.mark.parametrize(
    ("width", "theory"), [(math.inf, "infinite_width"), (20.0, "infinite_width"), (20.0, "saddle")]
)
def test_gradient_against_differences(width, theory):
    x, y = data()
    model = network(x, y, width, ard_num_dims=3)
    parameters = find_trained_parameters(model, WITH_ARD["train"], (1e-6, 1e2))
    objective = evidence_descent.LogPosterior(model, parameters, theory)
    point = starting_points(parameters, 1.0, 2)[1].numpy()
    gradient, step = objective(point)[1], 1e-4
    differences = [(objective(point + e)[0] - objective(point - e)[0]) / (2 * step) for e in step * np.eye(len(point))]
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-5)  # differences of second order


def test_covariance_that_needs_jitter():
    x, y = np.ones((3, 2)), np.ones(3)  # three times the same row, almost without noise: rank one to rounding
    likelihood = positive().double()
    likelihood.noise = 1e-20
    expected = scipy.stats.multivariate_normal(np.zeros(3), dense(x, 0.0, 1.0) + 1e-8 * np.eye(3)).logpdf(y)
    found = evidence_module.log_evidence(network(x, y, math.inf, likelihood=likelihood), "infinite_width")
    assert found.item() == pytest.approx(expected, rel=1e-6)  # of 1e-8 beside 1 eight digits are left


@pytest.mark.parametrize("case", ["many numbers", "noise of each row"])
def test_not_screened(monkeypatch, case):
    monkeypatch.setattr(several_starts, "_FEWEST_ROWS", 10)
    seen = counted_evaluations(monkeypatch)
    x, y = data(columns=5)
    if case == "many numbers":
        train, options = ("temperature", "bias_ratio", "ard"), {"ard_num_dims": 5}
    else:
        noise = torch.full((40,), 0.1, dtype=torch.float64)
        likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)
        train, options = ("bias_ratio",), {"likelihood": likelihood}
    fit_hyperparameters(network(x, y, **options), train=train, theory="infinite_width", warn=False)
    assert set(seen) == {40}
