"""BoTorch's model of several outputs: its posterior, the theory in it, and acquisition functions."""

from __future__ import annotations

import gpytorch
import pytest
import torch

botorch = pytest.importorskip("botorch")

from botorch.acquisition.multi_objective.logei import (  # noqa: E402
    qLogExpectedHypervolumeImprovement,
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.acquisition.objective import ScalarizedPosteriorTransform  # noqa: E402
from botorch.exceptions import UnsupportedError  # noqa: E402
from botorch.fit import fit_gpytorch_mll  # noqa: E402
from botorch.models.transforms import Normalize  # noqa: E402
from botorch.optim import optimize_acqf  # noqa: E402
from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning  # noqa: E402
from gpytorch.mlls import ExactMarginalLogLikelihood  # noqa: E402

from torch_propkernel.botorch_support import KroneckerNetworkGP  # noqa: E402
from torch_propkernel.kernels import MultitaskRenormalizedKernel  # noqa: E402
from torch_propkernel.models import MultitaskNetworkGP  # noqa: E402
from torch_propkernel.theories import SaddlePoint  # noqa: E402

DOUBLE = torch.float64


@pytest.fixture
def data():
    x = 10.0 * torch.rand(12, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    y = torch.stack([torch.sin(0.3 * x[:, 0]) + 0.1 * x[:, 1], torch.cos(0.3 * x[:, 0]) - 0.01 * x[:, 1] ** 2], -1)
    return x, torch.tensor([10.0, 0.5], dtype=DOUBLE) * y + 3.0


def posterior_settings():
    return gpytorch.settings.fast_computations(False, False, False)


def test_the_theory_predicts_what_the_posterior_says_in_the_targets_own_units(data):
    x, y = data
    test = 10.0 * torch.rand(5, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    model = KroneckerNetworkGP(x, y, width=[20, 30], input_transform=Normalize(2))
    model.likelihood.noise = 0.05
    for mode in (model.train, model.eval):
        mode()
        fitted = SaddlePoint().fit(model)
        model.covar_module.initialize(order_parameter=fitted.order_parameters["E"])
        with torch.no_grad(), posterior_settings():
            posterior = model.posterior(test)
        mean, variance = fitted.predict(test)
        torch.testing.assert_close(mean, posterior.mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(variance, posterior.variance, rtol=1e-7, atol=1e-9)
    scaled = (x - x.min(0).values) / (x.max(0).values - x.min(0).values)
    kernel = MultitaskRenormalizedKernel("relu", [20.0, 30.0], 2, bias_variance=1.0).double()
    plain = MultitaskNetworkGP.with_temperature(scaled, (y - y.mean(0)) / y.std(0), kernel, 0.05)
    again = SaddlePoint().fit(plain)
    torch.testing.assert_close(again.order_parameters["E"], fitted.order_parameters["E"], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(fitted.training_error(), y.var(0) * again.training_error(), rtol=1e-7, atol=0)
    left, own = fitted.leave_one_out(), again.leave_one_out()
    torch.testing.assert_close(left.bias, y.var(0).unsqueeze(-1) * own.bias, rtol=1e-6, atol=1e-10)
    shifted = own.log_density - y.std(0).log().unsqueeze(-1)
    torch.testing.assert_close(left.log_density, shifted, rtol=1e-7, atol=1e-8)


def test_fitting_solves_the_theory_and_acquisition_functions_run(data):
    x, y = data
    model = KroneckerNetworkGP(x, y, width=20, input_transform=Normalize(2))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    solved = SaddlePoint().fit(model).order_parameters["E"]
    model.mean_module.requires_grad_(False)
    # fit_gpytorch_mll stops at its own tolerance.
    torch.testing.assert_close(model.covar_module.order_parameter.detach(), solved, rtol=0, atol=2e-2)
    posterior = model.posterior(x.expand(3, -1, -1)[:, :4])
    assert posterior.mean.shape == (3, 4, 2)
    assert isinstance(posterior.distribution, gpytorch.distributions.MultitaskMultivariateNormal)
    noisy = model.posterior(x[:4], observation_noise=True).variance
    assert bool((noisy > model.posterior(x[:4]).variance).all())
    weights = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    scalar = model.posterior(x[:4], posterior_transform=ScalarizedPosteriorTransform(weights))
    torch.testing.assert_close(scalar.mean.squeeze(-1), model.posterior(x[:4]).mean @ weights)
    reference = y.min(0).values
    bounds = torch.tensor([[0.0, 0.0], [10.0, 10.0]], dtype=DOUBLE)
    expected = qLogExpectedHypervolumeImprovement(model, reference, FastNondominatedPartitioning(reference, y))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        candidates, value = optimize_acqf(expected, bounds, q=2, num_restarts=1, raw_samples=8)
        noisy_improvement = qLogNoisyExpectedHypervolumeImprovement(model, reference, x)(candidates.unsqueeze(0))
    assert candidates.shape == (2, 2) and bool(torch.isfinite(value)) and bool(torch.isfinite(noisy_improvement))


def test_what_is_refused(data):
    x, y = data
    with pytest.raises(TypeError, match="expected one of them, got none"):
        KroneckerNetworkGP(x, y)
    kernel = MultitaskRenormalizedKernel("erf", 10.0, 2)
    with pytest.raises(TypeError, match="expected one of them, got both"):
        KroneckerNetworkGP(x, y, 10, covar_module=kernel)
    with pytest.raises(UnsupportedError, match=r"train_X: expected shape \(n, d\)"):
        KroneckerNetworkGP(x.expand(2, -1, -1), y.expand(2, -1, -1), 10)
    y = (y - y.mean(0)) / y.std(0)
    model = KroneckerNetworkGP(x, y, covar_module=kernel, outcome_transform=None, input_transform=Normalize(2))
    with pytest.raises(UnsupportedError, match="output_indices: expected None"):
        model.posterior(x[:2], output_indices=[0])
    with pytest.raises(UnsupportedError, match="make a new model on the joined data"):
        model.condition_on_observations(x[:1], y[:1])
