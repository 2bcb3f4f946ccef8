"""What all theories share: the interface, a model that is not changed, refusals, batches."""

from __future__ import annotations

import copy
import inspect
import math
import re

import gpytorch
import numpy as np
import pytest
import torch

from torch_propkernel import (
    Erf,
    NetworkGP,
    ReLU,
    RenormalizedNNGPKernel,
    generalization_error,
    theories,
    training_error,
)
from torch_propkernel.inference import Problem
from torch_propkernel.theories import (
    FittedTheory,
    Gated,
    InfiniteWidth,
    Mixture,
    SaddlePoint,
    Theory,
    TwoParameterSaddle,
)

ONE_LAYER = [InfiniteWidth(), SaddlePoint(), Mixture(), TwoParameterSaddle()]
TWO_LAYERS = [InfiniteWidth(), SaddlePoint(), Mixture(), Gated()]


@pytest.fixture
def data(rng):
    X = rng.normal(size=(15, 30))
    return X, 0.5 * np.sign(X[:, 0]) + 0.2, rng.normal(size=(6, 30)), rng.normal(size=6)


@pytest.fixture
def build(data, make_model):
    def make(depth=1, activation=None, **options):
        X, y, _, _ = data
        return make_model(X, y, activation or ReLU(), [12, 9][:depth], 0.1, [1.0, 2.0, 3.0][: depth + 1], **options)

    return make


def cases(build):
    return [(theory, build(1)) for theory in ONE_LAYER] + [(theory, build(2)) for theory in TWO_LAYERS]


def test_one_interface(build, data):
    _, _, x, y = (torch.as_tensor(v) for v in data)
    for theory, model in cases(build):
        fitted = theory.fit(model)
        assert isinstance(theory, Theory) and isinstance(fitted, FittedTheory)
        assert fitted.theory == theory
        mean, variance = fitted.predict(x)
        assert mean.shape == variance.shape == (6,) and mean.dtype == torch.float64
        assert bool((variance > 0).all())
        error = fitted.error(x, y)
        assert torch.equal(error.mean, mean) and torch.equal(error.variance, variance)
        assert torch.equal(error.bias, (y - mean).square())
        wide = generalization_error(model, x, y).infinite_width
        torch.testing.assert_close(error.infinite_width.total, wide.total, rtol=1e-12, atol=0)
        assert fitted.readout_norm.shape == fitted.training_error().shape == ()
        assert fitted.message.endswith(".")
        assert all(isinstance(v, torch.Tensor) for v in fitted.order_parameters.values())
        assert repr(theory) in repr(fitted)
        torch.testing.assert_close(torch.stack(fitted.predict(x, chunk_size=4)), torch.stack([mean, variance]))


def test_training_error_is_the_error_at_the_training_points(build, data):
    X, y, _, _ = (torch.as_tensor(v) for v in data)
    for theory, model in cases(build):
        fitted = theory.fit(model)
        torch.testing.assert_close(fitted.training_error(), fitted.error(X, y).mean_total, rtol=1e-9, atol=1e-12)


def test_the_model_is_not_changed_and_later_changes_do_not_arrive(build, data):
    x = torch.as_tensor(data[2])
    for theory, model in cases(build):
        before, mode = copy.deepcopy(model.state_dict()), model.training
        fitted = theory.fit(model)
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) and model.training == mode
        mean, _ = fitted.predict(x)
        model.likelihood.noise = 5.0
        model.covar_module.order_parameter = 7.0
        assert torch.equal(fitted.predict(x)[0], mean)


def test_after_predictions_and_in_evaluation_mode(build, data):
    x = torch.as_tensor(data[2])
    model = build(1).eval()
    with_graph = model(x).mean
    assert with_graph.requires_grad
    assert SaddlePoint().fit(model).predict(x)[0].shape == (6,)
    assert not model.training


REFUSED = {
    "depth of gated": (Gated(), {"depth": 1}, "width: Gated() expected 2 hidden layer(s), got 1"),
    "activation of gated": (Gated(), {"depth": 2, "activation": Erf()}, "Gated() expected ReLU(), got Erf()"),
    "depth of two parameters": (TwoParameterSaddle(), {"depth": 2}, "expected 1 hidden layer(s), got 2"),
    "composition of the mixture": (
        Mixture(),
        {"depth": 2, "activation": Erf(), "composition": "nested"},
        "composition: expected one in which only the product of the order parameters enters",
    ),
}  # fmt: skip


def test_a_check_costs_no_matrix(build, monkeypatch):
    models = [(theory, build(1)) for theory in ONE_LAYER] + [(theory, build(2)) for theory in TWO_LAYERS]
    bad = [(theory, build(**options), message) for theory, options, message in REFUSED.values()]

    def matrix(self):
        pytest.fail("a matrix of the training points was computed")

    monkeypatch.setattr(Problem, "_unit_covariance", property(matrix))
    for theory, model in models:
        theory.check(model)
    for theory, model, message in bad:
        for call in (theory.check, theory.fit):
            with pytest.raises((TypeError, ValueError), match=re.escape(message)):
                call(model)


def test_theories_are_values():
    classes = [v for v in vars(theories).values() if inspect.isclass(v) and issubclass(v, Theory)]
    everything = [v() for v in classes if not inspect.isabstract(v)]
    assert len({theory.name for theory in everything}) == len(everything)
    for theory in everything:
        assert theory == type(theory)() and hash(theory) == hash(type(theory)())
        assert eval(repr(theory), vars(theories)) == theory
    assert SaddlePoint() != Mixture()


def test_saddle_and_infinite_width_are_the_functions_of_the_package(build, data):
    x, y = (torch.as_tensor(v) for v in data[2:])
    for composition in ("outer", "nested", "linear_part"):
        model = build(2, Erf(), composition=composition)
        fitted = SaddlePoint().fit(model)
        expected = generalization_error(model, x, y, fit=True)  # writes q into the kernel
        torch.testing.assert_close(fitted.error(x, y).total, expected.total, rtol=1e-10, atol=0)
        torch.testing.assert_close(fitted.order_parameters["q"], expected.solution.order_parameter)
        torch.testing.assert_close(fitted.training_error(), training_error(model), rtol=1e-10, atol=0)
        assert fitted.readout_norm == fitted.order_parameters["q"][-1]
        assert fitted.stats["solution"].result.successful
    assert bool((InfiniteWidth().fit(model).order_parameters["q"] == 1).all())


def test_units_of_standardized_targets(data):
    """BoTorch standardizes: predictions come in original units."""
    models = pytest.importorskip("botorch.models")
    from botorch.models.transforms import Standardize

    torch.set_default_dtype(torch.float64)
    try:
        X, y, x, yt = (torch.as_tensor(v) for v in data)
        y = 100 + 10 * y
        kernel = RenormalizedNNGPKernel(ReLU(), width=12.0)
        model = models.SingleTaskGP(X, y.unsqueeze(-1), covar_module=kernel, outcome_transform=Standardize(m=1))
        model.mean_module = gpytorch.means.ZeroMean()
        for theory in ONE_LAYER:
            fitted = theory.fit(model)
            plain = NetworkGP(X, (y - y.mean()) / y.std(), model.likelihood, kernel)
            scaled = theory.fit(plain)
            mean, variance = fitted.predict(x)
            torch.testing.assert_close(mean, y.mean() + y.std() * scaled.predict(x)[0])
            torch.testing.assert_close(variance, y.var() * scaled.predict(x)[1])
            torch.testing.assert_close(fitted.training_error(), y.var() * scaled.training_error())
            assert fitted.error(x, yt).mean.mean() > 50
    finally:
        torch.set_default_dtype(torch.float32)


def test_batches_of_widths_are_solved_one_by_one(data):
    torch.set_default_dtype(torch.float64)
    try:
        X, y, x, _ = (torch.as_tensor(v) for v in data)

        def make(width, batch):
            kernel = RenormalizedNNGPKernel(ReLU(), width=width)
            likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=batch)
            likelihood.noise = 0.1
            return NetworkGP(X.expand(*batch, *X.shape), y.expand(*batch, 15), likelihood, kernel)

        widths = [5.0, 50.0]
        for theory in ONE_LAYER:
            together = theory.fit(make(torch.tensor(widths).unsqueeze(-1), torch.Size([2])))
            mean, variance = together.predict(x.expand(2, 6, 30))
            for index, width in enumerate(widths):
                alone = theory.fit(make(width, torch.Size([])))
                torch.testing.assert_close(mean[index], alone.predict(x)[0], rtol=1e-8, atol=1e-10)
                torch.testing.assert_close(variance[index], alone.predict(x)[1], rtol=1e-8, atol=1e-10)
                torch.testing.assert_close(together.readout_norm[index], alone.readout_norm, rtol=1e-8, atol=0)
                torch.testing.assert_close(together.training_error()[index], alone.training_error(), rtol=1e-8, atol=0)
        two = torch.tensor([[5.0, 8.0], [50.0, 30.0]])
        together = Gated().fit(make(two, torch.Size([2])))
        for index in range(2):
            alone = Gated().fit(make(two[index], torch.Size([])))
            torch.testing.assert_close(
                together.order_parameters["A"][index], alone.order_parameters["A"], rtol=1e-8, atol=0
            )
            torch.testing.assert_close(
                together.predict(x.expand(2, 6, 30))[0][index], alone.predict(x)[0], rtol=1e-8, atol=1e-10
            )
    finally:
        torch.set_default_dtype(torch.float32)


def test_columns_that_the_kernel_does_not_read(data, make_model):
    X, y, x, _ = (torch.as_tensor(v) for v in data)

    def fit(theory, width, inputs, points, **options):
        kernel = RenormalizedNNGPKernel(ReLU(), width=width, **options).double()
        model = NetworkGP(inputs, y, gpytorch.likelihoods.GaussianLikelihood().double(), kernel).double()
        return theory.fit(model).predict(points)

    for theory, width in ((TwoParameterSaddle(), 9.0), (Gated(), [9.0, 12.0])):
        some = fit(theory, width, X, x, active_dims=tuple(range(5, 30)))
        torch.testing.assert_close(some, fit(theory, width, X[:, 5:], x[:, 5:]), rtol=1e-9, atol=1e-10)


def test_what_is_refused(build, data):
    with pytest.raises(TypeError, match="model: expected an ExactGP-like module"):
        SaddlePoint().fit("a model")
    with pytest.raises(ValueError, match=r"width: .* expected 1 hidden layer\(s\), got 2"):
        TwoParameterSaddle().fit(build(2))
    with pytest.raises(ValueError, match=r"width: Gated\(\) expected 2 hidden layer\(s\), got 1"):
        Gated().fit(build(1))
    with pytest.raises(ValueError, match="composition: expected one in which only the product"):
        Mixture().fit(build(2, Erf(), composition="nested"))
    scaled = build(1)
    scaled.covar_module = gpytorch.kernels.ScaleKernel(scaled.covar_module).double()
    with pytest.raises(
        ValueError, match="covar_module: .* expected the RenormalizedNNGPKernel itself, got ScaleKernel"
    ):
        TwoParameterSaddle().fit(scaled)
    assert SaddlePoint().fit(scaled).readout_norm > 0  # these do not mind
    fitted = SaddlePoint().fit(build(1))
    with pytest.raises(ValueError, match="x: expected 30 columns"):
        fitted.predict(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="y: expected shape"):
        fitted.error(torch.as_tensor(data[2]), torch.ones(3, dtype=torch.float64))


def test_infinite_width_where_it_is_a_limit(build, make_model, data):
    X, y, x, _ = data
    for width, chosen in (
        ([math.inf], [SaddlePoint(), Mixture()]),
        ([math.inf] * 2, [SaddlePoint(), Mixture(), Gated()]),
    ):
        model = make_model(X, y, ReLU(), width, 0.1)
        expected = InfiniteWidth().fit(model).predict(torch.as_tensor(x))
        for theory in chosen:
            torch.testing.assert_close(theory.fit(model).predict(torch.as_tensor(x)), expected, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"finite number above 1.*InfiniteWidth\(\)"):
        TwoParameterSaddle().fit(make_model(X, y, ReLU(), [math.inf], 0.1))


def test_single_precision(data):
    """Predictions in the model's dtype, to the rounding of float32 matrices; the order parameters are solved in 64."""

    def fit(theory, width, dtype):
        X, y, x, _ = (torch.as_tensor(v, dtype=dtype) for v in data)
        kernel = RenormalizedNNGPKernel(ReLU(), width=width).to(dtype)
        likelihood = gpytorch.likelihoods.GaussianLikelihood().to(dtype)
        likelihood.noise = 0.5
        fitted = theory.fit(NetworkGP(X, y, likelihood, kernel).to(dtype))
        return (*fitted.predict(x), fitted.training_error())

    for theory, width in [(t, 12.0) for t in ONE_LAYER] + [(Gated(), [12.0, 9.0])]:
        single, double = (fit(theory, width, dtype) for dtype in (torch.float32, torch.float64))
        for a, b in zip(single, double, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
