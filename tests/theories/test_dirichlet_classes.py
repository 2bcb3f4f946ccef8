"""GPyTorch's Dirichlet classification with a batch of renormalized kernels: one scalar problem for each class."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from gpytorch.likelihoods import DirichletClassificationLikelihood, FixedNoiseGaussianLikelihood

from torch_propkernel import NetworkGP, RenormalizedNNGPKernel, fit_order_parameters
from torch_propkernel.theories import FreeScale, InfiniteWidth, SaddlePoint

CLASSES = 3


@pytest.fixture(scope="module")
def classes():
    """Three sectors of the plane."""
    x = torch.randn(160, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sector = torch.div(torch.atan2(x[:, 1], x[:, 0]), 2 * torch.pi / CLASSES, rounding_mode="floor")
    return x, sector.long() % CLASSES


def model_of(x, labels):
    likelihood = DirichletClassificationLikelihood(labels, alpha_epsilon=0.01, dtype=x.dtype)
    widths = torch.full((CLASSES, 1), 30.0)
    kernel = RenormalizedNNGPKernel("relu", width=widths, bias_variance=1.0)
    mean = gpytorch.means.ConstantMean(batch_shape=torch.Size([CLASSES]))
    mean.initialize(constant=likelihood.transformed_targets.mean(-1))
    return NetworkGP(x, likelihood.transformed_targets, likelihood, kernel, mean).double()


def test_every_class_is_a_problem_of_its_own(classes):
    x, labels = classes
    model = model_of(x[:40], labels[:40])
    for theory in (SaddlePoint(), InfiniteWidth()):
        together = theory.fit(model)
        mean, variance = together.predict(x[40:])
        for c in range(CLASSES):
            noise = model.likelihood.noise_covar.noise[c]
            kernel = RenormalizedNNGPKernel("relu", width=30.0, bias_variance=1.0).double()
            own_mean = gpytorch.means.ConstantMean().double()
            own_mean.initialize(constant=model.mean_module.constant[c].item())
            alone = theory.fit(
                NetworkGP(x[:40], model.train_targets[c], FixedNoiseGaussianLikelihood(noise), kernel, own_mean)
            )
            torch.testing.assert_close(
                together.order_parameters["q"][c], alone.order_parameters["q"], rtol=1e-9, atol=0
            )
            own, spread = alone.predict(x[40:])
            torch.testing.assert_close(mean[c], own, rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(variance[c], spread, rtol=1e-8, atol=1e-9)


def test_probabilities_by_sampling_find_the_classes(classes):
    x, labels = classes
    model = model_of(x[:40], labels[:40])
    q = fit_order_parameters(model, warn=False).order_parameter
    assert q.shape == (CLASSES, 1) and bool((q > 1.2).all())  # written into the kernel
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        probabilities = model(x[40:]).sample(torch.Size([500])).softmax(1).mean(0)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(120, dtype=torch.float64))
    right = (probabilities.argmax(0) == labels[40:]).double().mean().item()
    assert right > 0.9  # 40 points; a third by chance
    assert probabilities.gather(0, labels[40:].unsqueeze(0)).log().mean().item() > -0.4  # chance: -log 3 = -1.1


def test_what_has_no_batch_says_so(classes):
    x, labels = classes
    with pytest.raises(ValueError, match="no batch dimensions"):
        FreeScale().fit(model_of(x[:40], labels[:40]))
