"""The evidence against scipy, against the integral over the scale, and in training."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from scipy.integrate import quad
from scipy.stats import invgamma, multivariate_normal, multivariate_t

from torch_propkernel.likelihoods import StudentTProcessLikelihood
from torch_propkernel.mlls import StudentTMarginalLogLikelihood
from torch_propkernel.models import StudentTProcess

F = torch.float64


def setting(n=6, noise=0.3, deg_free=5.0, seed=0):
    """Mean, covariance without noise, targets and the objective without priors (the model has none)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=F)
    mean, y = torch.randn(2, n, generator=generator, dtype=F)
    likelihood = StudentTProcessLikelihood().double()
    likelihood.noise, likelihood.deg_free = torch.tensor(noise, dtype=F), deg_free
    return mean, root @ root.T / n, 2 * y, StudentTMarginalLogLikelihood(likelihood, gpytorch.models.GP())


@pytest.mark.parametrize("deg_free", [2.2, 5.0, 40.0])
def test_scipy(deg_free):
    mean, covariance, y, mll = setting(deg_free=deg_free)
    shape = (covariance + 0.3 * torch.eye(6, dtype=F)) * (deg_free - 2) / deg_free
    expected = multivariate_t(mean.numpy(), shape.numpy(), df=deg_free).logpdf(y.numpy())
    assert 6 * mll(MultivariateNormal(mean, covariance), y).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("deg_free", [2.5, 5.0, 40.0])
def test_mixture_of_gaussians(deg_free):
    """p(y) = int InverseGamma(r; nu/2, (nu-2)/2) N(y; m, r A) dr, by quadrature in log r."""
    mean, covariance, y, mll = setting(deg_free=deg_free)
    matrix = (covariance + 0.3 * torch.eye(6, dtype=F)).numpy()

    def integrand(u):
        normal = multivariate_normal(mean.numpy(), np.exp(u) * matrix).pdf(y.numpy())
        return normal * invgamma(deg_free / 2, scale=(deg_free - 2) / 2).pdf(np.exp(u)) * np.exp(u)

    expected = math.log(quad(integrand, -8, 12, epsabs=0, epsrel=1e-11, limit=400, points=[0.0, 1.0])[0])
    value = 6 * mll(MultivariateNormal(mean, covariance), y).item()
    assert value == pytest.approx(expected, abs=1e-8)  # the quadrature's accuracy


@pytest.mark.parametrize("dtype, tolerance", [(F, 1e-8), (torch.float32, 1e-4)])
def test_infinite_degrees_of_freedom(dtype, tolerance):
    """The Gaussian value and gradient at nu = 1e9; the next order is relative b / nu and n / nu, below 1e-6.

    float32: rounding of sums over 200 points; differences of log gamma functions would be off by hundreds.
    """
    mean, covariance, y, mll = setting(n=200, deg_free=1e9)
    mll = mll.to(dtype)
    mean, covariance, y = (a.to(dtype) for a in (mean, covariance + torch.eye(200, dtype=F), y))
    grads = []
    gaussian = gpytorch.likelihoods.GaussianLikelihood().to(dtype)
    gaussian.noise = torch.tensor(0.3, dtype=dtype)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(gaussian, gpytorch.models.GP())
    for loss in (mll, objective):
        m, k = mean.clone().requires_grad_(), covariance.clone().requires_grad_()
        value = loss(MultivariateNormal(m, k), y)
        grads.append((value, *torch.autograd.grad(value, [m, k, loss.likelihood.raw_noise])))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=100 * tolerance, atol=tolerance)


def test_no_cancellation_on_the_way():
    """Differences to the Gaussian fall off as 1 / nu: smooth in nu down to rounding."""
    mean, covariance, y, mll = setting()
    prior = MultivariateNormal(mean, covariance)
    values = []
    for deg_free in (1e5, 1e6, 1e7):
        mll.likelihood.deg_free = deg_free
        values.append(6 * mll(prior, y).item())
    assert values[0] - values[1] == pytest.approx(10 * (values[1] - values[2]), rel=1e-3)  # the next order, 1 / nu^2


def test_gradients():
    mean, covariance, y, mll = setting(n=3)
    root = torch.linalg.cholesky(covariance)
    raw_noise, raw_deg_free = mll.likelihood.raw_noise.detach(), mll.likelihood.raw_deg_free.detach()

    def value(m, r, targets, noise, deg_free):
        likelihood = mll.likelihood
        parameters = {"noise_covar.raw_noise": noise, "raw_deg_free": deg_free}
        prior = MultivariateNormal(m, r @ r.mT)
        return torch.func.functional_call(likelihood, parameters, (prior,)).log_prob(targets)

    inputs = tuple(a.clone().requires_grad_() for a in (mean, root, y, raw_noise, raw_deg_free))
    assert torch.autograd.gradcheck(value, inputs)


def test_priors_count_once_and_all_is_divided_by_the_data():
    mean, covariance, y, mll = setting()
    prior = MultivariateNormal(mean, covariance)
    model = gpytorch.models.GP()
    model.likelihood = mll.likelihood
    with_priors = StudentTMarginalLogLikelihood(mll.likelihood, model)
    difference = 6 * (with_priors(prior, y) - mll(prior, y)).item()
    expected = torch.distributions.Gamma(torch.tensor(2.0, dtype=F), 0.1).log_prob(mll.likelihood.deg_free).item()
    assert difference == pytest.approx(expected, abs=1e-6)  # the prior's parameters were rounded to float32


def test_batches():
    mean, covariance, y, mll = setting()
    targets = torch.stack([y, 2 * y, -y])
    value = mll(MultivariateNormal(mean.expand(3, 6), covariance.expand(3, 6, 6)), targets)
    assert value.shape == (3,)
    for i in range(3):
        expected = mll(MultivariateNormal(mean, covariance), targets[i]).item()
        assert value[i].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("deg_free", [3.0, 15.0])
def test_training_recovers_the_order_of_the_degrees_of_freedom(deg_free):
    """Many data sets that share all hyperparameters; one alone says little (THEORY.md, section 2)."""
    generator = torch.Generator().manual_seed(3)
    points, draws = 30, 300
    x = torch.linspace(0, 1, points, dtype=F).unsqueeze(-1)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    kernel.base_kernel.lengthscale = 0.2
    likelihood = StudentTProcessLikelihood(deg_free_prior=gpytorch.priors.GammaPrior(1.0, 1e-6)).double()
    likelihood.noise, kernel.outputscale = 0.1, 1.0
    with torch.no_grad():
        root = torch.linalg.cholesky(kernel(x).to_dense() + 0.1 * torch.eye(points, dtype=F))
        gamma = torch._standard_gamma(torch.full((draws, 1), deg_free / 2, dtype=F), generator=generator)
        y = (torch.randn(draws, points, generator=generator, dtype=F) @ root.T) * ((deg_free - 2) / 2 / gamma).sqrt()
    likelihood.noise, kernel.outputscale = 0.5, 3.0

    class Model(StudentTProcess):
        def __init__(self):
            super().__init__(x, y, likelihood)
            self.kernel = kernel

        def forward(self, x):
            return MultivariateNormal(x.new_zeros(draws, len(x)), self.kernel(x))

    model = Model()
    mll = StudentTMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.LBFGS(mll.parameters(), max_iter=40, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def closure():
        optimizer.zero_grad()
        loss = -mll(model(x), y).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert likelihood.deg_free.item() == pytest.approx(deg_free, rel=0.35)  # three deviations of 300 draws
    assert likelihood.noise.item() == pytest.approx(0.1, rel=0.2)


MEAN, COVARIANCE, Y, MLL = setting()
NORMAL = MultivariateNormal(MEAN, COVARIANCE)
NAN = Y.clone()
NAN[2] = math.nan
BAD = {
    "NaN": (lambda: MLL(NORMAL, NAN), ValueError, "target: expected finite values, got 1 NaN and 0 infinite of 6"),
    "length": (lambda: MLL(NORMAL, Y[:4]), ValueError, r"target: expected shape \(..., 6\), got \(4,\)"),
    "dtype": (lambda: MLL(NORMAL, Y.float()), TypeError, "expected one dtype for all tensors, got mean torch.float64"),
    "integers": (lambda: MLL(NORMAL, Y.long()), TypeError, "target: expected a floating-point tensor"),
    "posterior": (lambda: MLL(MLL.likelihood(NORMAL), Y), TypeError, "is the model in training mode"),
    "likelihood": (
        lambda: StudentTMarginalLogLikelihood(gpytorch.likelihoods.GaussianLikelihood(), gpytorch.models.GP()),
        TypeError,
        "likelihood: expected a StudentTProcessLikelihood, got GaussianLikelihood",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
