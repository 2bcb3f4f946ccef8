"""The finite-width process: exact for linear networks, equal to brute force over the scale, a GP at infinite width."""

from __future__ import annotations

import copy
import math
import pickle

import gpytorch
import numpy as np
import pytest
import torch
from scipy import special

from torch_propkernel import Erf, ReLU, RenormalizedNNGPKernel
from torch_propkernel.activations import Identity
from torch_propkernel.distributions import MultivariateStudentT, ScaleMixtureMultivariateNormal
from torch_propkernel.exceptions import IdentifiabilityWarning
from torch_propkernel.likelihoods.finite_width_likelihood import FiniteWidthLikelihood
from torch_propkernel.mixing import LogNormalMixing, ProductGammaMixing
from torch_propkernel.mlls.finite_width_marginal_log_likelihood import FiniteWidthMarginalLogLikelihood
from torch_propkernel.models.finite_width_process import FiniteWidthProcess
from torch_propkernel.theories import width_sweep

F = torch.float64


class Process(FiniteWidthProcess):
    def __init__(self, x, y, kernel, noise=0.1, **options):
        super().__init__(x, y, FiniteWidthLikelihood(), **options)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = kernel
        self.to(x.dtype)
        self.likelihood.noise = torch.tensor(noise, dtype=x.dtype)

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def data(n: int, d: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F)
    return x, 2.0 * x[:, 0] + torch.randn(n, generator=generator, dtype=F)


def one_layer():
    return RenormalizedNNGPKernel(Erf(), 6)


def nested():
    return RenormalizedNNGPKernel(Erf(), [6, 6], "nested")


def predictive(process, x, form):
    return process.student_t(x) if form == "student_t" else process.predict(x, form)


def brute_force(process, x, widths, temperature, size=4001):
    """Weights on a dense grid of u, and mean and covariance at each, by dense algebra; one or two layers."""
    kernel = process.covar_module
    with torch.no_grad():
        joint = torch.cat([process.train_inputs[0], x])
        total = kernel.at(torch.ones(kernel.depth))(joint).to_dense()
    n, y = len(process.train_targets), process.train_targets
    u = torch.linspace(-9.0, 6.5, size, dtype=F)
    if len(widths) == 1:
        half = widths[0] / 2
        prior = half * math.log(half) - special.gammaln(half) + half * (u - torch.exp(u))
    else:  # the product of two gamma variables has a Bessel function in its density
        a, b = (w / 2 for w in widths)
        r = np.exp(u.numpy())
        z = 2 * np.sqrt(a * b * r)
        log_bessel = np.log(special.kve(a - b, z)) - z
        prior = torch.as_tensor(
            math.log(2) + (a + b) / 2 * np.log(a * b * r) + log_bessel - special.gammaln(a) - special.gammaln(b)
        )
    values, means, covariances = [], [], []
    for log_scale in u:
        r = torch.exp(log_scale)
        a = r * total[:n, :n] + temperature * torch.eye(n, dtype=F)
        values.append(torch.distributions.MultivariateNormal(torch.zeros(n, dtype=F), a).log_prob(y))
        solved = torch.linalg.solve(a, r * total[:n, n:])
        means.append(solved.T @ y)
        covariances.append(r * total[n:, n:] - r * total[n:, :n] @ solved)
    value = prior + torch.stack(values)
    evidence = torch.logsumexp(value, 0) + (u[1] - u[0]).log()
    return torch.softmax(value, 0), torch.stack(means), torch.stack(covariances), evidence


@pytest.mark.parametrize("widths", [(8.0,), (6.0, 15.0)])
def test_mixture_is_the_integral_over_the_scale(widths):
    (x, y), test_x = data(12), data(4, seed=1)[0]
    process = Process(x, y, RenormalizedNNGPKernel(Erf(), widths)).eval()
    weights, means, covariances, evidence = brute_force(process, test_x, widths, 0.1)
    mean = (weights[:, None] * means).sum(0)
    centered = means - mean
    covariance = (weights[:, None, None] * (covariances + centered[:, :, None] * centered[:, None, :])).sum(0)
    posterior = process(test_x)
    assert isinstance(posterior, ScaleMixtureMultivariateNormal)
    assert torch.allclose(posterior.mean, mean, rtol=1e-8)
    assert torch.allclose(posterior.covariance_matrix, covariance, rtol=1e-7, atol=1e-10)
    assert process.scale_posterior().log_evidence.item() == pytest.approx(evidence.item(), rel=1e-10)
    # marginal densities, and noisy ones
    value = mean + 0.7
    variances = covariances.diagonal(dim1=-2, dim2=-1)
    for noise, law in ((0.0, posterior), (0.1, process.likelihood(posterior))):
        normal = torch.distributions.Normal(means, (variances + noise).sqrt())
        expected = torch.logsumexp(weights.log()[:, None] + normal.log_prob(value), 0)
        assert torch.allclose(law.marginal_log_prob(value), expected, rtol=1e-8)
    marginal = process.predict(test_x, joint=False)
    assert torch.allclose(marginal.variance, posterior.variance, rtol=1e-10)


def linear_network_by_importance_sampling(x, y, test_x, widths, temperature, draws=400_000, seed=0):
    """Posterior moments of a linear network's output: weights from the prior, weighted by the likelihood."""
    rng = np.random.default_rng(seed)
    both = np.concatenate([x, test_x]) / math.sqrt(x.shape[1])
    logs, outputs = [], []
    for _ in range(20):
        h = rng.normal(size=(draws // 20, widths[0], x.shape[1])) @ both.T
        for width in widths[1:]:
            w = rng.normal(size=(draws // 20, width, h.shape[1])) / math.sqrt(h.shape[1])
            h = w @ h
        v = rng.normal(size=(draws // 20, 1, h.shape[1])) / math.sqrt(h.shape[1])
        f = (v @ h)[:, 0]
        logs.append(-0.5 * ((f[:, : len(y)] - y) ** 2).sum(1) / temperature)
        outputs.append(f[:, len(y) :])
    logs, outputs = np.concatenate(logs), np.concatenate(outputs)
    weights = np.exp(logs - special.logsumexp(logs))
    mean = weights @ outputs
    error = np.sqrt((weights**2) @ (outputs - mean) ** 2)
    variance = weights @ (outputs - mean) ** 2
    variance_error = np.sqrt((weights**2) @ ((outputs - mean) ** 2 - variance) ** 2)
    evidence = special.logsumexp(logs) - math.log(draws) - 0.5 * len(y) * math.log(2 * math.pi * temperature)
    return mean, error, variance, variance_error, evidence, math.sqrt((weights**2).sum())


@pytest.mark.parametrize("widths", [(1,), (3,), (5,), (2, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("size", [2, 4])
def test_exact_for_finite_linear_networks(widths, size):
    """Also for N < P. Four standard errors of the importance sampling, from its own weights."""
    x, y, test_x = data(size, 3)[0].numpy(), data(size, 3)[1].numpy(), data(2, 3, seed=1)[0].numpy()
    temperature = 0.5
    mean, error, variance, variance_error, evidence, evidence_error = linear_network_by_importance_sampling(
        x, y, test_x, widths, temperature
    )
    kernel = RenormalizedNNGPKernel(Identity(), [float(w) for w in widths])
    process = Process(torch.as_tensor(x), torch.as_tensor(y), kernel, temperature).eval()
    posterior = process(torch.as_tensor(test_x))
    assert (np.abs(posterior.mean.numpy() - mean) < 4 * error).all()
    assert (np.abs(posterior.variance.numpy() - variance) < 4 * variance_error).all()
    assert abs(process.scale_posterior().log_evidence.item() - evidence) < 4 * evidence_error


@pytest.mark.parametrize("form", ["mixture", "student_t", "saddle"])
def test_infinite_width_is_the_gp(form):
    (x, y), test_x = data(20), data(3, seed=1)[0]
    for width in (math.inf, 1e12):
        kernel = RenormalizedNNGPKernel(ReLU(), torch.tensor(width, dtype=F), bias_variance=0.1)
        process = Process(x, y, kernel).eval()
        covariance = kernel(torch.cat([x, test_x])).to_dense().detach()
        solved = torch.linalg.solve(covariance[:20, :20] + 0.1 * torch.eye(20, dtype=F), covariance[:20, 20:])
        posterior = predictive(process, test_x, form)
        # at N = 1e12 the scale has a spread of 1e-6
        assert torch.allclose(posterior.mean, solved.T @ y, rtol=1e-5, atol=1e-6)
        expected = covariance[20:, 20:] - covariance[20:, :20] @ solved
        assert torch.allclose(posterior.covariance_matrix, expected, rtol=1e-5, atol=1e-6)


def test_evidence_of_infinite_width_is_the_gp_in_value_and_gradient():
    x, y = data(15)
    results = []
    for process_class, mll_class in (
        (Process, FiniteWidthMarginalLogLikelihood),
        (Process.__mro__[2], gpytorch.mlls.ExactMarginalLogLikelihood),
    ):
        kernel = RenormalizedNNGPKernel(Erf(), math.inf, bias_variance=0.2)
        if process_class is Process:
            model = Process(x, y, kernel)
        else:

            class Exact(gpytorch.models.ExactGP):
                forward = Process.forward

            model = Exact(x, y, FiniteWidthLikelihood())
            model.mean_module, model.covar_module = gpytorch.means.ConstantMean(), kernel
            model.double()
            model.likelihood.noise = torch.tensor(0.1, dtype=F)
        value = mll_class(model.likelihood, model)(model(x), y)
        parameters = [kernel.raw_hidden_weight_variance, kernel.raw_bias_variance, model.likelihood.raw_noise,
                      model.mean_module.raw_constant]  # fmt: skip
        results.append([value, *torch.autograd.grad(value, parameters)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)


def test_gradient_of_the_evidence():
    x, y = data(10)
    model = Process(
        torch.cat([x, x[:2]]), torch.cat([y, y[:2] + 0.1]), RenormalizedNNGPKernel(Erf(), [4, 7], bias_variance=0.2)
    )
    mll = FiniteWidthMarginalLogLikelihood(model.likelihood, model)
    parameters = [model.covar_module.raw_hidden_weight_variance, model.covar_module.raw_bias_variance,
                  model.likelihood.raw_noise, model.mean_module.raw_constant]  # fmt: skip
    value = lambda: mll(model(*model.train_inputs), model.train_targets)  # noqa: E731
    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in range(parameter.numel()):
            values = []
            for shift in (-2, -1, 1, 2):
                with torch.no_grad():
                    parameter.view(-1)[index] += shift * 1e-3
                values.append(value().item())
                with torch.no_grad():
                    parameter.view(-1)[index] -= shift * 1e-3
            expected = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-3
            # truncation 1e-12 of the fourth-order rule
            assert gradient.view(-1)[index].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_training_loop_raises_the_evidence():
    x, y = data(30)
    model = Process(x, y, RenormalizedNNGPKernel(ReLU(), 10, bias_variance=0.1))
    mll = FiniteWidthMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.LBFGS(
        [p for p in model.parameters() if p.requires_grad], max_iter=40, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = -mll(model(x), y)
        loss.backward()
        return loss

    first = closure().item()
    assert optimizer.step(closure) is not None and closure().item() < first - 0.01
    assert model.likelihood.noise.item() > 0.2  # the noise of the data has variance one


def test_student_t_form():
    (x, y), test_x = data(12, 20), data(5, 20, seed=1)[0]
    cold = Process(x, y, RenormalizedNNGPKernel(Erf(), 8), 1e-9).eval()
    student, mixture = cold.student_t(test_x), cold.predict(test_x, "mixture")
    assert isinstance(student, MultivariateStudentT)
    posterior = cold.scale_posterior()
    df = 4 + 2 * posterior.mean.square() / posterior.variance
    assert student.df.item() == pytest.approx(df.item(), rel=1e-10)
    assert torch.allclose(student.mean, mixture.mean) and torch.allclose(student.variance, mixture.variance, rtol=1e-9)
    # Moments up to the fourth agree; generalized hyperbolic and t differ beyond: a few thousandths of probability.
    assert cold.student_t_distance(test_x).max() < 0.01
    warm = Process(x, 3 * y, RenormalizedNNGPKernel(Erf(), 3), 2.0).eval()
    distance = warm.student_t_distance(test_x)
    mixture, student = warm.predict(test_x, "mixture", joint=False), warm.student_t(test_x)
    grid = mixture.mean + torch.linspace(-6, 6, 4001, dtype=F)[:, None] * mixture.variance.sqrt()
    gap = torch.stack([(mixture.cdf(v) - student.cdf(v)).abs() for v in grid]).amax(0)
    assert torch.allclose(distance, gap, rtol=0.02, atol=1e-4)  # both maxima are over grids
    noisy = warm.likelihood(student)
    assert torch.allclose(noisy.variance, student.variance + 2.0, rtol=1e-10) and noisy.df > student.df


def test_saddle_form_is_the_renormalized_gp():
    from torch_propkernel import fit_order_parameters, generalization_error

    (x, y), test_x = data(20, 40), data(3, 40, seed=1)[0]
    process = Process(x, y, RenormalizedNNGPKernel(ReLU(), 15), theory="saddle").eval()
    posterior = process(test_x)
    fit_order_parameters(process)
    error = generalization_error(process, test_x, torch.zeros(3, dtype=F))
    assert torch.allclose(posterior.mean, error.mean, rtol=1e-8)
    assert torch.allclose(posterior.variance, error.variance, rtol=1e-8)


def test_fixed_terms_and_own_law():
    (x, y), test_x = data(10), data(2, seed=1)[0]
    kernel = RenormalizedNNGPKernel(Erf(), 6)
    both = Process(x, y, kernel + gpytorch.kernels.ConstantKernel()).eval()
    constant = both.covar_module.kernels[1].constant.item()
    with torch.no_grad():
        total = kernel.at(torch.ones(1))(torch.cat([x, test_x])).to_dense()
    posterior = both.scale_posterior().for_predictions()
    mean = torch.zeros(2, dtype=F)
    for r, weight in zip(posterior.scale, posterior.weights, strict=True):
        a = r * total + constant
        mean += weight * a[10:, :10] @ torch.linalg.solve(a[:10, :10] + 0.1 * torch.eye(10, dtype=F), y)
    assert torch.allclose(both(test_x).mean, mean, rtol=1e-9)
    own = Process(x, y, RenormalizedNNGPKernel(Erf(), 6), mixing=LogNormalMixing(torch.tensor(0.2, dtype=F))).eval()
    assert own.mixing.mean.item() == 1.0 and torch.isfinite(own(test_x).variance).all()
    with pytest.raises(ValueError, match="theory: expected 'mixture' with a law of one's own"):
        own.predict(test_x, "saddle")


def test_batches_of_models_and_of_test_points():
    (x, y), test_x = data(10), data(6, seed=1)[0].reshape(2, 3, 5)
    alone = Process(x, y, RenormalizedNNGPKernel(Erf(), [6, 9])).eval()
    for form in ("mixture", "student_t", "saddle"):
        batch = predictive(alone, test_x, form)
        for index in range(2):
            one = predictive(alone, test_x[index], form)
            assert torch.allclose(batch.mean[index], one.mean, rtol=1e-10)
            assert torch.allclose(batch.covariance_matrix[index], one.covariance_matrix, rtol=1e-9)
    width = torch.tensor([[6.0, 9.0], [40.0, 30.0]], dtype=F)
    models = Process(x.expand(2, -1, -1), torch.stack([y, 3 * y]), RenormalizedNNGPKernel(Erf(), width)).eval()
    for index in range(2):
        kernel = RenormalizedNNGPKernel(Erf(), width[index])
        one = Process(x, (1 + 2 * index) * y, kernel).eval()
        assert torch.allclose(models.predict(test_x[0]).mean[index], one.predict(test_x[0]).mean, rtol=1e-9)
        evidence = models.scale_posterior().log_evidence[index].item()
        assert evidence == pytest.approx(one.scale_posterior().log_evidence.item(), rel=1e-10)


def test_gradients_with_respect_to_test_points():
    (x, y), test_x = data(10), data(3, seed=1)[0]
    process = Process(x, y, RenormalizedNNGPKernel(Erf(), 6)).eval()
    for form in ("mixture", "student_t", "saddle"):
        function = lambda v: ((p := predictive(process, v, form)).mean, p.variance)  # noqa: B023, E731
        assert torch.autograd.gradcheck(function, test_x.clone().requires_grad_(True), atol=1e-6)
    assert not process(test_x).mean.requires_grad


def test_cache_follows_the_model():
    x, y = data(10)
    process = Process(x, y, RenormalizedNNGPKernel(Erf(), 6)).eval()
    mean = process(x[:2]).mean
    for other in (copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        assert torch.equal(other(x[:2]).mean, mean)
    process.train()
    process.likelihood.noise = torch.tensor(2.0, dtype=F)
    process.eval()
    assert not torch.allclose(process(x[:2]).mean, mean)
    before = process(x[:2]).mean
    process.likelihood.noise = torch.tensor(0.5, dtype=F)  # without a detour through training mode
    assert not torch.allclose(process(x[:2]).mean, before)
    before = process(x[:2]).mean
    process.set_train_data(x, 2 * y, strict=False)
    assert not torch.allclose(process(x[:2]).mean, before)


def test_a_sweep_of_mixtures_leaves_points_out_exactly():
    x, y = data(9)
    process = Process(x, y, RenormalizedNNGPKernel(Erf(), 5))
    widths = [3.0, 30.0, math.inf]
    curves = width_sweep(process, widths, theory="mixture")
    for index, width in enumerate(widths):
        kernel = RenormalizedNNGPKernel(Erf(), torch.tensor(width, dtype=F))
        full = Process(x, y, kernel).eval()
        evidence = full.scale_posterior().log_evidence
        assert curves.log_evidence[index].item() == pytest.approx(evidence.item(), rel=1e-10)
        densities, errors = [], []
        for i in range(9):
            keep = torch.arange(9) != i
            part = Process(x[keep], y[keep], copy.deepcopy(kernel)).eval()
            densities.append(evidence - part.scale_posterior().log_evidence)
            left_out = part.predict(x[i : i + 1])
            errors.append((left_out.mean - y[i]).square() + left_out.variance)
        assert curves.leave_one_out.log_density[index].mean().item() == pytest.approx(
            torch.stack(densities).mean().item(), rel=1e-8
        )
        assert curves.leave_one_out.mean_total[index].item() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-8)
    assert curves.preference(nats=1e3) is None
    process.covar_module.raw_readout_variance.requires_grad_(True)
    with pytest.warns(IdentifiabilityWarning):
        width_sweep(process, widths, theory="mixture")


def test_with_a_free_scale_infinite_width_has_the_higher_evidence():
    """An average over the scale is at most its maximum: why widths are compared at fixed prior variances only."""
    x, y = data(30)
    best = {}
    for width in (5.0, 1e6):
        evidences = []
        for readout in torch.logspace(-2, 3, 31):
            kernel = RenormalizedNNGPKernel(
                Erf(), torch.tensor(width, dtype=F), weight_variance=torch.tensor([1.0, readout])
            )
            evidences.append(Process(x, y, kernel).eval().scale_posterior().log_evidence)
        best[width] = torch.stack(evidences).max().item()
    assert best[1e6] > best[5.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: Process(x, y, one_layer(), theory="best"), ValueError, "theory: expected one of"),
        (lambda x, y: Process(x, y, one_layer(), mixing=3.0), TypeError, "mixing: expected a MixingLaw"),
        (lambda x, y: Process(x, y, nested()).eval()(x), ValueError, "composition: expected one in which only"),
        (lambda x, y: Process(x, y, one_layer()).eval()(x[:, :2]), ValueError, "x: expected 5 columns"),
        (lambda x, y: Process(x, y, one_layer()).eval()(x.float()), TypeError, "x: expected dtype"),
        (lambda x, y: Process(x, y * math.nan, one_layer()).eval()(x), ValueError, "expected finite values"),
        (lambda x, y: FiniteWidthMarginalLogLikelihood(None, "model"), TypeError, "expected a FiniteWidthProcess"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        change(*data(6))


def test_law_of_the_widths():
    process = Process(*data(5), RenormalizedNNGPKernel(Erf(), [6, 9]))
    assert isinstance(process.mixing, ProductGammaMixing)
    assert process.mixing.variance.item() == pytest.approx((1 + 2 / 6) * (1 + 2 / 9) - 1, rel=1e-12)
