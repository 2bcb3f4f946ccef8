"""Batches of models: every element has the value, the priors and the gradient that it has alone."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import GammaPrior

from torch_propkernel import (
    EffectiveAction,
    Erf,
    FiniteWidthLikelihood,
    FiniteWidthMarginalLogLikelihood,
    RenormalizedNNGPKernel,
    StudentTMarginalLogLikelihood,
    StudentTProcessLikelihood,
)
from torch_propkernel.models import NetworkFiniteWidthProcess, NetworkGP, NetworkStudentTProcess

F = torch.float64
OBJECTIVES = {
    "finite width": (NetworkFiniteWidthProcess, FiniteWidthLikelihood, FiniteWidthMarginalLogLikelihood),
    "Student's t": (NetworkStudentTProcess, StudentTProcessLikelihood, StudentTMarginalLogLikelihood),
    "action": (NetworkGP, GaussianLikelihood, EffectiveAction),
}
WIDTHS = torch.tensor([[[4.0, 9.0], [7.0, 30.0], [math.inf, 12.0]], [[math.inf] * 2, [5.0, 5.0], [60.0, 3.0]]], dtype=F)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F)


def objective(name, x, y, width, scales, noise, shared=False):
    """Build the objective of a model (or a batch of them), and give its hyperparameters values."""
    process, likelihood_class, objective_class = OBJECTIVES[name]
    batch_shape = torch.Size() if shared else x.shape[:-2]
    kernel = RenormalizedNNGPKernel(Erf(), width, bias_variance=0.5, ard_num_dims=3, batch_shape=batch_shape)
    likelihood = likelihood_class(batch_shape=batch_shape, noise_prior=GammaPrior(2.0, 3.0))
    model = process(x, y, likelihood, kernel).double()
    kernel.hidden_weight_variance = scales[..., None, :]
    kernel.order_parameter = 1.0 + 0.1 * scales[..., None, :]
    kernel.initialize(raw_ard_weights=scales[..., None, :1] * torch.tensor([0.3, -0.2, 0.1], dtype=F))
    likelihood.noise = noise.unsqueeze(-1)
    return objective_class(likelihood, model)


def value_and_gradient(mll):
    value = mll(mll.model(*mll.model.train_inputs), mll.model.train_targets)
    value.sum().backward()
    return value.detach(), {n: p.grad for n, p in mll.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_elements_are_what_they_are_alone(name):
    x, y, scales, noise = draw(2, 3, 6, 3), draw(2, 3, 6, seed=1), draw(2, 3, 2, seed=2).exp(), draw(2, 3, seed=3).exp()
    values, gradients = value_and_gradient(objective(name, x, y, WIDTHS, scales, noise))
    assert values.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = objective(name, x[i, j], y[i, j], WIDTHS[i, j], scales[i, j], noise[i, j])
            value, gradient = value_and_gradient(alone)
            assert value.shape == ()
            assert abs(values[i, j] - value) < 1e-10 * (1 + abs(value))
            assert gradient.keys() == gradients.keys()
            for key, slope in gradient.items():
                # the two take the same steps; eigenvectors of a batch differ from one's own by rounding
                torch.testing.assert_close(gradients[key][i, j], slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shared_hyperparameters_and_priors_count_for_every_element(name):
    """As many layers as batch elements: the prior of a layer is not taken for that of an element."""
    x, y, scales, noise = draw(3, 2, 6, 3), draw(3, 2, 6, seed=1), draw(2, seed=2).exp(), draw(1, seed=3).exp()[0]
    mll = objective(name, x, y, [4.0, 9.0], scales, noise, shared=True)
    values, _ = value_and_gradient(mll)
    for i in range(3):
        for j in range(2):
            value, _ = value_and_gradient(objective(name, x[i, j], y[i, j], [4.0, 9.0], scales, noise))
            assert abs(values[i, j] - value) < 1e-10 * (1 + abs(value))


def test_several_data_sets_at_the_same_points():
    """The kernel has no batch of its own."""
    x, y = draw(6, 3), draw(4, 6, seed=1)
    likelihood = FiniteWidthLikelihood().double()
    together = NetworkFiniteWidthProcess(
        x.expand(4, 6, 3), y, likelihood, RenormalizedNNGPKernel(Erf(), 5).double(), gpytorch.means.ConstantMean()
    ).double()
    values = FiniteWidthMarginalLogLikelihood(likelihood, together)(None, y)
    for i in range(4):
        together.set_train_data(x, y[i], strict=False)
        assert abs(values[i] - FiniteWidthMarginalLogLikelihood(likelihood, together)(None, y[i])) < 1e-10
