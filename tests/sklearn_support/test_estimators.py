"""scikit-learn's own checks, and agreement with the torch interface."""

from __future__ import annotations

import math
import pickle
import re
import warnings

import gpytorch
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from conftest import double_precision
from torch_propkernel import (
    NetworkGP,
    RenormalizedNNGPKernel,
    expected_accuracy,
    fit_order_parameters,
)
from torch_propkernel.activations import Erf, ReLU
from torch_propkernel.datasets import load_yacht
from torch_propkernel.exceptions import ReliabilityWarning
from torch_propkernel.kernels import MultitaskRenormalizedKernel
from torch_propkernel.models import MultitaskNetworkGP
from torch_propkernel.sklearn_support import PropKernelClassifier, PropKernelRegressor, network_estimator
from torch_propkernel.theories import FreeScale, InfiniteWidth, Mixture, SaddlePoint, Sampled
from torch_propkernel.tuning import auto, fit_network, fit_predictor

# Whether data and networks of these tests lie in a good regime is not what they are about.
pytestmark = pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.ReliabilityWarning")

GIVEN = {"temperature": 0.01, "weight_variance": 1.0, "bias_variance": 1.0, "ard_weights": 1.0}
FEW = Sampled(num_chains=4, num_draws=4, every=1, spread=3.0)  # too few to be accurate, the same each time
ESTIMATORS = [
    PropKernelRegressor(activation="erf", width=(20, 30), theory="saddle", **GIVEN),
    PropKernelClassifier(theory="mixture", width=5, **GIVEN),
    PropKernelClassifier(theory="saddle", width=5, **GIVEN),
    PropKernelRegressor(theory="free_scale", normalize_X=False, normalize_y=False, **GIVEN),
    # All defaults but the time, in which no chain arrives: the infinite width is chosen.
    PropKernelRegressor(time_limit=1e-6, tuning_rows=40),
    PropKernelClassifier(time_limit=1e-6, **GIVEN),
    # Networks that are sampled, at a temperature where that takes no time.
    PropKernelRegressor(theory=FEW, width=10, **GIVEN | {"temperature": 1.0}),
]


def regressor(**options):
    """The saddle point of a wide relu network, which is fast, unless the test is about something else."""
    return PropKernelRegressor(**{"theory": "saddle", "activation": "relu", "width": 100, "random_state": 0} | options)


def classifier(**options):
    """Likewise."""
    return PropKernelClassifier(**{"theory": "saddle", "activation": "relu", "width": 100, "random_state": 0} | options)


# Sixteen networks of four short chains disagree, which is told; the checks are about something else.
@pytest.mark.filterwarnings("ignore:16 networks of 4 chains:sklearn.exceptions.ConvergenceWarning")
# The checks use few inputs of every scale, and raw ones in one case: warnings about that are right.
@pytest.mark.filterwarnings("ignore::torch_propkernel.exceptions.InputScaleWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")  # array API: off unless the user asks for it
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_checks_of_scikit_learn(estimator):
    results = check_estimator(estimator, on_skip="warn", on_fail="raise")
    assert len(results) > 50
    assert {r["status"] for r in results} <= {"passed", "skipped"}


@pytest.fixture
def data(rng):
    X = rng.normal(size=(60, 4))
    return X, 3.0 + 2.0 * np.abs(X[:, 0]) + X[:, 1] + 0.1 * rng.normal(size=60), rng.normal(size=(15, 4))


def standardized(values, like=None):
    like = values if like is None else like
    return (values - like.mean(0)) / like.std(0)


def torch_model(X, y, width=(30,), activation=None, composition="outer"):
    """The network of ``OPTIONS`` on standardized data, without the package's tuning."""
    with double_precision():
        kernel = RenormalizedNNGPKernel(
            activation or ReLU(), list(width), composition, weight_variance=1.5, bias_variance=0.3
        )
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.Positive())
        likelihood.noise = torch.tensor(0.05)
        return NetworkGP(torch.tensor(standardized(X)), torch.tensor(y), likelihood, kernel)


OPTIONS = {"temperature": 0.05, "weight_variance": 1.5, "bias_variance": 0.3, "ard_weights": 1.0}
THEORIES = {
    "saddle": SaddlePoint(),
    "mixture": Mixture(),
    "infinite_width": InfiniteWidth(),
    "free_scale": FreeScale(),
}


@pytest.mark.parametrize(
    "activation, width, composition", [("relu", 30, "outer"), (Erf(), (20, 40), "nested"), ("relu", math.inf, "outer")]
)
def test_saddle_agrees_with_the_torch_interface(data, activation, width, composition):
    """Against GPyTorch's own predictions of the model whose order parameters were solved."""
    X, y, X_test = data
    estimator = regressor(activation=activation, width=width, composition=composition, **OPTIONS).fit(X, y)
    model = torch_model(
        X, standardized(y), width=np.atleast_1d(width), composition=composition,
        activation=None if activation == "relu" else activation,
    )  # fmt: skip
    solution = fit_order_parameters(model)
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        f = model(torch.tensor(standardized(X_test, X)))
        mean, covariance = y.mean() + y.std() * f.mean.numpy(), y.var() * f.covariance_matrix.numpy()
    np.testing.assert_allclose(estimator.order_parameters_["q"], solution.order_parameter.numpy(), rtol=1e-10)
    np.testing.assert_allclose(estimator.predict(X_test), mean, rtol=1e-10)
    _, std = estimator.predict(X_test, return_std=True, include_noise=False)
    np.testing.assert_allclose(std**2, np.diag(covariance), rtol=1e-9)  # a difference of numbers 50 times as large
    _, cov = estimator.predict(X_test, return_cov=True, include_noise=False)
    np.testing.assert_allclose(cov, covariance, atol=1e-10 * y.var())
    assert estimator.reliability_.score == pytest.approx(solution.reliability.score, rel=1e-8)
    assert estimator.temperature_ == 0.05


@pytest.mark.parametrize("name", THEORIES)
@pytest.mark.parametrize("by_name", [True, False])
def test_every_theory_agrees_with_the_torch_interface(data, name, by_name):
    X, y, X_test = data
    estimator = regressor(theory=name if by_name else THEORIES[name], width=8, **OPTIONS)
    assert not hasattr(estimator, "log_evidence_")
    estimator.fit(X, y)
    fitted = THEORIES[name].fit(torch_model(X, standardized(y), width=(8,)))
    x = torch.tensor(standardized(X_test, X))
    mean, variance = fitted.predict(x)
    found, std = estimator.predict(X_test, return_std=True)
    # Where an evidence is at its maximum, its argument is known to the root of rounding only.
    rtol = 1e-7 if name == "free_scale" else 1e-10
    np.testing.assert_allclose(found, y.mean() + y.std() * mean.numpy(), rtol=rtol)
    np.testing.assert_allclose(std**2, y.var() * (variance.numpy() + 0.05), rtol=10 * rtol)
    _, cov = estimator.predict(X_test, return_cov=True, include_noise=False)
    np.testing.assert_allclose(cov, y.var() * fitted.distribution(x, joint=True).covariance_matrix, atol=rtol * y.var())
    assert estimator.log_evidence_ == pytest.approx(fitted.log_evidence.item(), rel=1e-10)
    assert estimator.log_marginal_likelihood() == estimator.log_evidence_
    assert estimator.order_parameters_.keys() == fitted.order_parameters.keys()


def test_units_and_noise(data):
    """Data in other units give predictions in these units; the noise is T times the targets' variance."""
    X, y, X_test = data
    one, other = (
        regressor(width=20, **GIVEN).fit(inputs, targets)
        for inputs, targets in ((X, y), (7.0 + 1e4 * X, 5.0 - 100.0 * y))
    )
    np.testing.assert_allclose(other.predict(7.0 + 1e4 * X_test), 5.0 - 100.0 * one.predict(X_test), rtol=1e-9)
    units = one.normalization_, other.normalization_
    assert units[1].target_scale.item() == pytest.approx(100.0 * units[0].target_scale.item(), rel=1e-12)
    noisy, free = (one.predict(X_test, return_std=True, include_noise=noise)[1] for noise in (True, False))
    np.testing.assert_allclose(noisy**2 - free**2, 0.01 * y.var(), rtol=1e-9)


def test_raw_units(data):
    """Without standardization the numbers are those of standardized data, given standardized data."""
    X, y, X_test = data
    raw = regressor(width=20, normalize_X=False, normalize_y=False, **GIVEN)
    found = raw.fit(standardized(X), standardized(y)).predict(standardized(X_test, X))
    expected = regressor(width=20, **GIVEN).fit(X, y).predict(X_test)
    np.testing.assert_allclose(y.mean() + y.std() * found, expected, rtol=1e-10)
    other = regressor(width=20, normalize_X=False, **GIVEN).fit(3.0 * X, y).predict(3.0 * X_test)
    assert np.abs(other - expected).max() > 0.01


def test_hyperparameters_are_those_of_fit_network(data):
    X, y, X_test = data
    estimator = regressor(activation="erf", width=30, bias_variance=0.3).fit(X, y)
    found = fit_network(*map(torch.tensor, (standardized(X), standardized(y))), "erf", bias_variance=0.3)
    fitted = estimator.hyperparameters_
    assert fitted.bias_variance == found.bias_variance == (0.3,)
    for name in ("temperature", "weight_variance", "ard_weights"):
        # two searches from data that differ by rounding end within L-BFGS-B's tolerance, 1e-10 of the log posterior
        np.testing.assert_allclose(getattr(fitted, name), getattr(found, name), rtol=1e-3)
    assert fitted.ard_weights[0] > 5 * max(fitted.ard_weights[2:])  # two inputs play no part
    assert estimator.temperature_ == fitted.temperature
    model = fitted.model(torch.tensor(standardized(X)), torch.tensor(standardized(y)), width=30)
    mean, _ = SaddlePoint().fit(model).predict(torch.tensor(standardized(X_test, X)))
    np.testing.assert_allclose(estimator.predict(X_test), y.mean() + y.std() * mean.numpy(), rtol=1e-9)


def test_given_numbers_are_never_fitted(data):
    X, y, _ = data
    estimator = regressor(**OPTIONS | {"ard_weights": (1.0, 2.0, 3.0, 2.0)}).fit(X, y)
    assert estimator.hyperparameters_.search is None
    assert estimator.hyperparameters_.weight_variance == (1.5, 1.5)
    assert estimator.hyperparameters_.ard_weights == (0.5, 1.0, 1.5, 1.0)
    names = {
        "temperature": "temperature",
        "weight_variance": "scale",
        "bias_variance": "bias_ratio",
        "ard_weights": "ard",
    }
    for left_out, name in names.items():
        fitted = regressor(**OPTIONS | {left_out: None}).fit(X, y).hyperparameters_
        assert list(fitted.search.values) == [name]


def test_search_that_did_not_converge_is_a_warning(data, monkeypatch):
    found = fit_network(torch.randn(9, 4, dtype=torch.float64), torch.randn(9, dtype=torch.float64))
    object.__setattr__(found.search, "converged", False)
    monkeypatch.setattr(network_estimator, "fit_network", lambda *args, **options: found)
    with pytest.warns(ConvergenceWarning, match="hyperparameters_.search says more"):
        regressor().fit(*data[:2])


class Stub:
    """Stands for fit_predictor: notes its arguments, and fits the infinite width at once."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(network_estimator, "fit_predictor", self)

    def __call__(self, x, y, activation, depth, *, theory, time_limit, seed, width, **given):
        self.calls.append(
            {"depth": depth, "theory": theory, "time_limit": time_limit, "seed": seed, "width": width} | given
        )
        temperature = 0.01 * len(self.calls)
        return fit_predictor(x, y, activation, depth, theory="infinite_width", **GIVEN | {"temperature": temperature})


def test_what_is_not_given_is_left_to_the_predictor(data, monkeypatch):
    stub = Stub(monkeypatch)
    X, y, _ = data
    PropKernelRegressor().fit(X, y)
    PropKernelRegressor(width=(30, 30), temperature=0.2, time_limit=8.0, theory="sampled", tuning_rows=9).fit(X, y)
    PropKernelClassifier(depth=3, random_state=5).fit(X, y > 5)
    first, second, third = stub.calls
    names = ("width", "temperature", "weight_variance", "bias_variance", "ard_weights", "time_limit")
    assert [first[name] for name in names] == [None] * 6 and first["theory"] == "auto" and first["depth"] == 1
    assert (second["width"], second["depth"], second["temperature"], second["time_limit"]) == (30.0, 2, 0.2, 8.0)
    assert second["theory"] == Sampled(seed=second["seed"]) and second["max_rows"] == 9
    assert third["depth"] == 3 and third["width"] is None
    again = PropKernelClassifier(depth=3, random_state=5).fit(X, y > 5)
    assert stub.calls[-1] == third and again.temperature_ == 0.04
    assert PropKernelRegressor(hyperparameters=again.hyperparameters_, bias_variance=0.5).fit(X, y)
    taken = stub.calls[-1]
    assert (taken["temperature"], taken["weight_variance"], taken["bias_variance"]) == (0.04, (1.0,) * 4, 0.5)
    assert taken["ard_weights"] == 1.0


def test_targets_have_their_own_predictors(data, monkeypatch):
    stub = Stub(monkeypatch)
    X, y, X_test = data
    model = PropKernelRegressor(time_limit=9.0).fit(X, np.stack([y, y, 10 * y], axis=-1))
    assert [call["time_limit"] for call in stub.calls] == [3.0] * 3
    np.testing.assert_allclose(model.temperature_, [0.01, 0.02, 0.03])
    assert len(model.predictors_) == len(model.hyperparameters_) == 3
    _, noisy = model.predict(X_test, return_std=True)
    _, free = model.predict(X_test, return_std=True, include_noise=False)
    np.testing.assert_allclose(noisy**2 - free**2, np.tile(y.var() * np.array([0.01, 0.02, 3.0]), (15, 1)), rtol=1e-8)
    _, covariance = model.predict(X_test, return_cov=True)
    np.testing.assert_allclose(np.diagonal(covariance).T, noisy**2, rtol=1e-8)


def test_the_sampled_network_is_a_mixture_with_its_noise(data):
    """Against the theory itself; the classifier's shares are averages over networks."""
    X, y, X_test = data
    options = {"theory": FEW, "width": 10, **GIVEN | {"temperature": 1.0}}
    model = PropKernelRegressor(**options).fit(X, y)
    fitted = model.fits_[0]
    mean, variance = fitted.predict(torch.tensor(standardized(X_test, X)))
    found, std = model.predict(X_test, return_std=True)
    np.testing.assert_allclose(found, y.mean() + y.std() * mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(std**2, y.var() * (variance.numpy() + 1.0), rtol=1e-10)
    assert model.predictors_[0].fitted is fitted and model.temperature_ == 1.0
    assert np.isfinite(model.log_evidence_)
    shares = PropKernelClassifier(**options).fit(X, y > 5)
    means, variances = shares.fits_[0].conditioned.moments(torch.tensor(standardized(X_test, X)))
    expected = torch.special.ndtr(means / variances.sqrt()).mean(0).numpy()
    np.testing.assert_allclose(shares.predict_proba(X_test)[:, 1], expected, rtol=1e-10)


@pytest.mark.parametrize("theory", ["mixture", "infinite_width"])
def test_several_targets_are_networks_that_share_hyperparameters(data, theory):
    X, y, X_test = data
    Y = np.stack([y, np.sin(2 * X[:, 2]), 100.0 * X[:, 3]], axis=-1)
    together = regressor(width=8, theory=theory, **OPTIONS).fit(X, Y)
    alone = [regressor(width=8, theory=theory, **OPTIONS).fit(X, column) for column in Y.T]
    mean, std = together.predict(X_test, return_std=True)
    _, cov = together.predict(X_test, return_cov=True)
    samples = together.sample_y(X_test, 4)
    assert mean.shape == std.shape == (15, 3) and cov.shape == (15, 15, 3) and samples.shape == (15, 3, 4)
    for index, one in enumerate(alone):
        np.testing.assert_allclose(mean[:, index], one.predict(X_test), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(std[:, index], one.predict(X_test, return_std=True)[1], rtol=1e-9)
        np.testing.assert_allclose(cov[..., index], one.predict(X_test, return_cov=True)[1], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.order_parameters_["q"][index], one.order_parameters_["q"], rtol=1e-9)
    np.testing.assert_allclose(samples[:, 0], alone[0].sample_y(X_test, 4), rtol=1e-8)
    assert together.log_evidence_ == pytest.approx(sum(one.log_evidence_ for one in alone), rel=1e-10)
    assert len(together.reliability_) == 3
    column = regressor(width=8, theory=theory, **OPTIONS).fit(X, Y[:, :1]).predict(X_test)
    np.testing.assert_allclose(column, mean[:, :1], rtol=1e-10)


def outputs_model(X, targets, width, temperature=0.05):
    """The network of ``OPTIONS`` with several outputs, without the package's tuning."""
    with double_precision():
        kernel = MultitaskRenormalizedKernel(ReLU(), width, targets.shape[-1], weight_variance=1.5, bias_variance=0.3)
        return MultitaskNetworkGP.with_temperature(
            torch.tensor(standardized(X)), torch.tensor(targets), kernel, temperature
        )


def test_several_targets_at_the_saddle_are_outputs_of_one_network(data):
    X, y, X_test = data
    Y = np.stack([y, y + np.sin(2 * X[:, 2]), 100.0 * X[:, 3]], axis=-1)
    estimator = regressor(width=(8, 12), **OPTIONS).fit(X, Y)
    model = outputs_model(X, standardized(Y), [8.0, 12.0])
    fitted, x = SaddlePoint().fit(model), torch.tensor(standardized(X_test, X))
    joint = fitted.distribution(x, joint=True)
    shift, scale = Y.mean(0), Y.std(0)
    mean, std = estimator.predict(X_test, return_std=True)
    np.testing.assert_allclose(mean, shift + scale * joint.mean.numpy(), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(std, scale * (joint.variance + 0.05).sqrt().numpy(), rtol=1e-7)
    _, latent = estimator.predict(X_test, return_cov=True, include_noise=False)
    covariance = joint.covariance_matrix.reshape(15, 3, 15, 3).numpy()
    for output in range(3):
        expected = scale[output] ** 2 * covariance[:, output, :, output]
        np.testing.assert_allclose(latent[..., output], expected, rtol=1e-6, atol=1e-8 * scale[output] ** 2)
    assert estimator.order_parameters_["E"].shape == (2, 3, 3) and estimator.order_parameters_["Q"].shape == (3, 3)
    assert len(estimator.fits_) == 1 and estimator.reliability_.reliable is None  # matrices have no score
    assert estimator.log_marginal_likelihood() == pytest.approx(float(fitted.log_evidence), rel=1e-9)
    state = torch.get_rng_state()
    samples = estimator.sample_y(X_test[:2], 20000, random_state=1, include_noise=False)
    assert torch.equal(torch.get_rng_state(), state) and samples.shape == (2, 3, 20000)
    found = np.cov(samples.reshape(6, -1) / np.tile(scale, 2)[:, None])
    size = np.sqrt(np.diag(found))
    # Standard error of a correlation from 20,000 draws: at most 0.007.
    expected = covariance[:2, :, :2].reshape(6, 6)
    np.testing.assert_allclose(found / np.outer(size, size), expected / np.outer(size, size), atol=0.035)
    assert abs(expected[0, 1]) > 0.1 * np.sqrt(expected[0, 0] * expected[1, 1])  # the outputs are correlated
    assert estimator.score(X, Y) > 0.9


def test_other_compositions_of_several_layers_have_no_matrix(data):
    X, y, X_test = data
    Y = np.stack([y, X[:, 1]], axis=-1)
    estimator = regressor(width=(8, 8), composition="nested", activation="erf", **GIVEN).fit(X, Y)
    assert estimator.order_parameters_["q"].shape == (2, 2) and len(estimator.fits_) == 2
    assert regressor(composition="nested", **GIVEN).fit(X, Y).order_parameters_["E"].shape == (1, 2, 2)  # one layer


def test_classes_at_the_saddle_are_outputs_of_one_network(data):
    X, y, X_test = data
    names = np.array(["low", "middle", "top"])
    index = np.digitize(y, [4.0, 6.0])
    estimator = classifier(width=10, **OPTIONS).fit(X, names[index])
    one_hot = np.where(index[:, None] == np.arange(3), 1.0, -1.0)
    fitted = SaddlePoint().fit(outputs_model(X, one_hot, 10.0))
    posterior = fitted.distribution(torch.tensor(standardized(X_test, X)))
    torch.manual_seed(0)
    largest = posterior.sample(torch.Size([40000])).argmax(-1).numpy()
    expected = np.stack([(largest == c).mean(0) for c in range(3)], axis=-1)
    probability = estimator.predict_proba(X_test)
    # 1,024 quasi-random draws; 40,000 independent ones have a standard error of at most 0.0025.
    np.testing.assert_allclose(probability, expected, atol=0.015)
    np.testing.assert_allclose(probability.sum(-1), 1.0, rtol=1e-12)
    assert probability.min() > 0.0
    assert (estimator.predict(X_test) == names[probability.argmax(-1)]).all()
    np.testing.assert_allclose(estimator.predict_proba(X_test[3:5]), probability[3:5], rtol=1e-12)
    assert estimator.decision_function(X_test).shape == (15, 3)
    assert estimator.score(X, names[index]) > 0.9
    assert estimator.order_parameters_["E"].shape == (1, 3, 3)


def test_several_targets_are_tuned_together(data):
    """The shared temperature lies between those that the targets have alone."""
    X, y, _ = data
    noisy = y + y.std() * np.random.default_rng(0).normal(size=60)
    options = OPTIONS | {"temperature": None}
    alone = [regressor(**options).fit(X, column).temperature_ for column in (y, noisy)]
    shared = regressor(**options).fit(X, np.stack([y, noisy], axis=-1)).temperature_
    assert 5 * alone[0] < shared < 0.9 * alone[1]


def test_classifier_agrees_with_expected_accuracy(data):
    X, y, X_test = data
    labels, test_labels = np.where(y > 5, "big", "small"), np.where(np.abs(X_test[:, 0]) > 0.8, "big", "small")
    estimator = classifier(width=30, **OPTIONS).fit(X, labels)
    assert estimator.classes_.tolist() == ["big", "small"]
    probability = estimator.predict_proba(X_test)
    np.testing.assert_allclose(probability.sum(-1), 1.0, rtol=1e-12)
    model = torch_model(X, np.where(labels == "small", 1.0, -1.0))
    fit_order_parameters(model)
    signs, x = torch.tensor(np.where(test_labels == "small", 1.0, -1.0)), torch.tensor(standardized(X_test, X))
    right = probability[np.arange(15), (signs > 0).int().numpy()]
    assert right.mean() == pytest.approx(expected_accuracy(model, x, signs).item(), rel=1e-10)
    margin = estimator.decision_function(X_test)
    model.eval()
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        f = model(x)
    np.testing.assert_allclose(margin, (f.mean / f.stddev).numpy(), rtol=1e-8)  # through a quantile function
    assert (estimator.predict(X_test) == np.where(margin > 0, "small", "big")).all()


def test_mixture_probability_is_the_average_over_the_scale(data):
    """P(f > 0) of the mixture, against draws of the labels' regression."""
    X, y, X_test = data
    options = GIVEN | {"temperature": 0.5, "theory": "mixture", "width": 3}
    estimator = classifier(**options).fit(X, y > 5)
    draws = regressor(normalize_y=False, **options)
    samples = draws.fit(X, 2.0 * (y > 5) - 1.0).sample_y(X_test, 20000, include_noise=False)
    # 20,000 draws have a standard error of at most 0.0035; four of them
    np.testing.assert_allclose(estimator.predict_proba(X_test)[:, 1], (samples > 0).mean(1), atol=0.014)


def test_several_classes_are_one_against_the_rest(data):
    X, y, X_test = data
    labels = np.array(["low", "middle", "top"])[np.digitize(y, [4.0, 6.0])]
    estimator = classifier(width=30, theory="mixture", **OPTIONS).fit(X, labels)
    assert estimator.classes_.tolist() == ["low", "middle", "top"]
    shares = []
    for index, name in enumerate(estimator.classes_):
        one = classifier(width=30, theory="mixture", **OPTIONS).fit(X, labels == name)
        shares.append(one.predict_proba(X_test)[:, 1])
        margin = estimator.decision_function(X_test)[:, index]
        np.testing.assert_allclose(margin, one.decision_function(X_test), rtol=1e-8)
    expected = np.stack(shares, axis=-1)
    probability = estimator.predict_proba(X_test)
    np.testing.assert_allclose(probability, expected / expected.sum(-1, keepdims=True), rtol=1e-8)
    assert (estimator.predict(X_test) == estimator.classes_[probability.argmax(-1)]).all()
    assert estimator.score(X, labels) > 0.9
    assert estimator.order_parameters_["q"].shape == (3, 1)


def test_a_point_that_no_class_claims_has_finite_probabilities():
    """All shares underflow: the labels of a far point are -1 for every class, without noise."""
    X = np.linspace(-1.0, 1.0, 12)[:, None]
    model = classifier(**GIVEN | {"temperature": 1e-8}, activation="erf", theory="mixture").fit(X, np.arange(12) % 4)
    shares = np.full((3, 4), 0.0)
    model._marginals = lambda X, quantities: [1.0 - shares, shares]
    np.testing.assert_array_equal(model.predict_proba(X[:3]), np.full((3, 4), 0.25))
    assert np.isfinite(model.decision_function(X[:3])).all()


@pytest.mark.parametrize("theory", ["saddle", "mixture"])
@pytest.mark.parametrize("include_noise", [True, False])
def test_samples_have_the_moments_of_the_prediction(data, theory, include_noise):
    X, y, X_test = data
    estimator = regressor(width=6, theory=theory, **GIVEN | {"temperature": 0.1}).fit(X, y)
    state = torch.get_rng_state()
    samples = estimator.sample_y(X_test, 40000, random_state=1, include_noise=include_noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert samples.shape == (15, 40000)
    mean, cov = estimator.predict(X_test, return_cov=True, include_noise=include_noise)
    deviation = np.sqrt(np.diag(cov))
    np.testing.assert_array_less(np.abs(samples.mean(1) - mean), 4.5 * deviation / 200)  # 4.5 standard errors
    # standard error of a covariance: sqrt(2 / n) deviations squared for a normal, somewhat more for the mixture
    error = np.abs(np.cov(samples) - cov) / np.outer(deviation, deviation)
    assert error.max() < 6.0 * np.sqrt(2 / 40000)
    np.testing.assert_array_equal(samples, estimator.sample_y(X_test, 40000, 1, include_noise=include_noise))
    assert (samples != estimator.sample_y(X_test, 40000, 2, include_noise=include_noise)).any()


@pytest.mark.parametrize("theory", ["saddle", "mixture"])
def test_samples_at_the_training_points_without_noise(data, theory):
    """The covariance of f is singular to rounding there."""
    X, y, _ = data
    estimator = regressor(width=50, theory=theory, **GIVEN | {"temperature": 1e-8}).fit(X, y)
    samples = estimator.sample_y(np.concatenate([X, X]), 3, include_noise=False)
    np.testing.assert_allclose(samples, np.tile(y, 2)[:, None].repeat(3, 1), atol=1e-3 * y.std())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_dtypes(data, dtype):
    X, y, X_test = data
    X, y, X_test = (np.round(4 * v) for v in (X, y, X_test))  # exact in every dtype
    expected = regressor(width=20, **GIVEN).fit(X, y).predict(X_test)
    found = regressor(width=20, **GIVEN).fit(X.astype(dtype), y.astype(dtype)).predict(X_test.astype(dtype))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("theory", ["saddle", "mixture"])
def test_pickle_and_clone(data, theory):
    X, y, X_test = data
    estimator = regressor(activation=Erf(), width=(40, 60), theory=theory, composition="outer")
    estimator.fit(X, y)
    before = estimator.predict(X_test, return_std=True)
    copied = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(before, copied.predict(X_test, return_std=True))
    assert copied.log_evidence_ == estimator.log_evidence_
    fresh = clone(estimator)
    assert fresh.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(X_test)
    with pytest.raises(NotFittedError):
        fresh.log_marginal_likelihood()


def test_pipeline_grid_search_and_cross_validation(data):
    X, y, _ = data
    pipeline = make_pipeline(StandardScaler(), regressor(**GIVEN))
    grid = {"propkernelregressor__width": [10, math.inf], "propkernelregressor__temperature": [0.01, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(1e4 * X, y)
    assert search.best_params_["propkernelregressor__temperature"] == 0.01
    assert search.best_score_ > 0.9
    assert cross_val_score(pipeline, X, y, cv=3).min() > 0.85
    calibrated = CalibratedClassifierCV(classifier(**GIVEN), cv=3).fit(X, y > 5)
    assert calibrated.predict_proba(X).shape == (60, 2)


def test_reliability_warning_has_one_text(data):
    """A search over a grid shows it once; the numbers are on the object."""
    X, y, _ = data
    texts, scores = set(), set()
    for width in (10, 20):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator = regressor(activation="erf", width=width, **OPTIONS).fit(X, y)
            estimator.predict(X)
        assert [w.category for w in caught] == [ReliabilityWarning]
        assert caught[0].filename == __file__
        assert estimator.reliability_.reliable is False
        texts.add(str(caught[0].message))
        scores.add(estimator.reliability_.score)
    assert len(texts) == 1 and len(scores) == 2
    assert regressor(theory="infinite_width", **OPTIONS).fit(X, y).reliability_ is None


def test_constants(data):
    """Constant columns play no part, constant targets are predicted."""
    X, y, X_test = data
    constant = regressor().fit(X, np.full(60, 7.3))
    mean, std = constant.predict(X_test, return_std=True)
    np.testing.assert_allclose(mean, 7.3, rtol=1e-14)
    assert np.isfinite(std).all() and (std > 0).all()
    # w_0 / N_0 times (4 inputs and a zero) is (4 inputs) w_0 4/5
    with_one, without = (np.column_stack([v, np.full(len(v), 3.3)]) for v in (X, X_test))
    joined = regressor(width=30, **GIVEN).fit(with_one, y).predict(without)
    split = regressor(width=30, **GIVEN | {"weight_variance": (0.8, 1.0)}).fit(X, y).predict(X_test)
    np.testing.assert_allclose(joined, split, rtol=1e-9)


def test_many_points_are_predicted_in_pieces(data, rng):
    X, y, _ = data
    many = rng.normal(size=(2500, 4))
    estimator = regressor(width=20, **GIVEN).fit(X, np.stack([y, -y], axis=-1))
    mean, std = estimator.predict(many, return_std=True)
    np.testing.assert_allclose(std[1990:2010], estimator.predict(many[1990:2010], return_std=True)[1], rtol=1e-9)
    np.testing.assert_allclose(mean[1990:2010], estimator.predict(many[1990:2010]), rtol=1e-10)


def test_data_frames(data):
    """Names of columns are kept and checked; pandas is no dependency."""
    pandas = pytest.importorskip("pandas")
    X, y, X_test = data
    names = ["a", "b", "c", "d"]
    frame, test = pandas.DataFrame(X, columns=names), pandas.DataFrame(X_test, columns=names)
    estimator = regressor(**GIVEN).fit(frame, pandas.Series(y, name="price"))
    assert estimator.feature_names_in_.tolist() == names
    expected = regressor(**GIVEN).fit(X, y).predict(X_test)
    np.testing.assert_allclose(estimator.predict(test), expected, rtol=1e-12)  # columns are summed in another order
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(test.rename(columns={"a": "z"}))


def test_yacht_data():
    """Held-out error of untuned networks, and of one that is tuned: as a tuned ScaleKernel(NNGPKernel)."""
    x, y = (v.numpy() for v in load_yacht())
    held_out = np.random.default_rng(0).permutation(len(y)) < 77

    def error(**options):
        residuals = regressor(**options).fit(x[~held_out], y[~held_out]).predict(x[held_out]) - y[held_out]
        return float(np.sqrt(np.mean(residuals**2)))

    errors = {theory: error(theory=theory, **GIVEN) for theory in ("saddle", "mixture", "infinite_width")}
    assert errors["infinite_width"] < 0.3 * y.std()
    # The saddle weighs the kernel against T as the data ask: better here; the README has the same order.
    assert errors["saddle"] < errors["infinite_width"]
    assert errors["mixture"] == pytest.approx(errors["saddle"], rel=0.01)
    assert error() < 0.8 * errors["saddle"]


BAD = {
    "theory": ({"theory": "exact"}, "theory: expected a Theory or one of the names .* got 'exact'"),
    "temperature": ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
    "temperature by name": ({"temperature": "auto"}, "temperature: expected a number > 0, or None to fit it"),
    "width": ({"width": -3}, "width: expected positive numbers"),
    "activation": ({"activation": "rellu"}, "activation: expected an Activation or one of the names"),
    "composition": ({"composition": "inner"}, "composition"),
    "number of variances": ({"weight_variance": (1.0, 1.0, 1.0)}, "weight_variance: expected 1 or 2 numbers"),
    "depth": ({"depth": 0}, "depth: expected a whole number >= 1 or None, got 0"),
    "depth and widths": ({"depth": 3, "width": (9, 9)}, "width: expected 1 or 3 numbers"),
    "hyperparameters": ({"hyperparameters": "none"}, "hyperparameters: expected 'auto' or a NetworkFit, got 'none'"),
    "time": ({"time_limit": 0.0, "theory": "auto"}, "time_limit: expected a finite number > 0, got 0.0"),
    "number of inputs": ({"ard_weights": (1.0, 1.0)}, "ard_weights: expected 1 or 4 numbers"),
    "rows": ({"tuning_rows": 0}, "max_rows: expected at least 1 or None, got 0"),
    "mixture of two scales": (
        GIVEN | {"theory": "mixture", "composition": "nested", "width": (9, 9), "activation": "erf"},
        "composition: expected one in which only the product of the order parameters enters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_parameters_are_refused_by_fit(data, name):
    options, message = BAD[name]
    for estimator in (regressor(**options), classifier(**options)):
        with pytest.raises(ValueError, match=message):
            estimator.fit(data[0], data[1] > 5)


REFUSED = {
    "activation": ({"theory": "gated", "activation": "erf", "width": (9, 9)}, "activation: Gated() expected ReLU()"),
    "depth": ({"theory": "gated"}, "width: Gated() expected 2 hidden layer(s), got 1"),
    "biases, which would be fitted": ({"theory": "gated", "width": (9, 9)}, "bias_variance: Gated() expected zero"),
    "infinite width": ({"theory": "two_parameter", "width": math.inf}, "InfiniteWidth() is the limit"),
    "composition": (
        {"theory": "mixture", "composition": "nested", "width": (9, 9), "activation": "erf"},
        "composition: expected one in which only the product of the order parameters enters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_theory_that_does_not_apply_is_refused_before_the_search(data, name, monkeypatch):
    options, message = REFUSED[name]
    monkeypatch.setattr(auto, "fit_hyperparameters", lambda *args, **options: pytest.fail("a search was started"))
    for estimator in (regressor(**options), classifier(**options)):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            estimator.fit(data[0], data[1] > 5)


def test_several_targets_share_the_kernel(data, monkeypatch):
    X, y, X_test = data
    matrices = []
    forward = RenormalizedNNGPKernel.forward

    def counted(self, x1, x2, diag=False, **params):
        matrices.extend([] if diag else [x1.shape])
        return forward(self, x1, x2, diag=diag, **params)

    monkeypatch.setattr(RenormalizedNNGPKernel, "forward", counted)
    counts = []
    for targets in (y[:, None], np.stack([y, y**2, X[:, 0]], axis=-1)):
        estimator = regressor(theory="mixture", **GIVEN).fit(X, targets)
        estimator.predict(X_test, return_std=True)
        counts.append(len(matrices))
        matrices.clear()
    assert counts == [2, 2]  # of the training points, and with the test points


def test_what_is_not_supported(data):
    X, y, X_test = data
    estimator = regressor(**GIVEN)
    with pytest.raises(TypeError, match="sample_weight"):
        estimator.fit(X, y, sample_weight=np.ones(60))
    with pytest.raises(ValueError, match="y: expected two classes or more, got one class"):
        classifier(**GIVEN).fit(X, np.zeros(60, dtype=int))
    with pytest.raises(ValueError, match="expected at most one of them, got both"):
        estimator.fit(X, y).predict(X_test, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="theta: expected None, the fitted hyperparameters, got"):
        estimator.log_marginal_likelihood(np.zeros(2))
    local = regressor(width=(9, 9), activation="erf", composition="nested", **GIVEN).fit(X[:15], y[:15])
    assert local.log_evidence_ is None
    with pytest.raises(ValueError, match="theory: expected one with an evidence"):
        local.log_marginal_likelihood()
