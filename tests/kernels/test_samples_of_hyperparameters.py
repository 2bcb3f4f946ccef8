"""Samples of the hyperparameters (Pyro's, or by hand) make a batch of the kernel; priors are proper; batches index."""

from __future__ import annotations

import importlib.util
import math

import gpytorch
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import gamma, kstest

from torch_propkernel import Erf, FiniteWidthLikelihood, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel import StudentTProcessLikelihood as Likelihood
from torch_propkernel.models import NetworkFiniteWidthProcess, NetworkGP, NetworkStudentTProcess
from torch_propkernel.order_parameters import OrderParameterPrior

F = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F)


def nngp(batch_shape):
    return NNGPKernel(Erf(), 2, bias_variance=[0.4, 0.2], ard_num_dims=3, batch_shape=batch_shape)


def renormalized(batch_shape):
    return RenormalizedNNGPKernel(Erf(), [5.0, math.inf], bias_variance=[0.4, 0.0], batch_shape=batch_shape)


def homogeneous(batch_shape):
    return RenormalizedNNGPKernel(ReLU(), [5.0, 9.0], bias_variance=0.1, ard_num_dims=3, batch_shape=batch_shape)


def samples_of(module, size, seed=0):
    """Hand-made samples of every prior: values near one, ``size x`` the shape of what the prior is on."""
    return {
        name: (0.3 * draw(size, *closure(owner).shape, seed=seed + i)).exp()
        for i, (name, owner, _, closure, _) in enumerate(module.named_priors())
    }


@pytest.mark.parametrize("batch_shape", [(), (2,)])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("make", [nngp, renormalized, homogeneous])
def test_loaded_samples_are_a_batch_of_kernels(make, size, batch_shape):
    x = draw(4, 3)
    kernel = gpytorch.kernels.ScaleKernel(make(torch.Size(batch_shape)), batch_shape=torch.Size(batch_shape)).double()
    samples = samples_of(kernel, size)
    kernel.pyro_load_from_samples(samples)
    assert kernel.base_kernel.batch_shape == (size, *batch_shape)
    if isinstance(kernel.base_kernel, RenormalizedNNGPKernel):
        assert kernel.base_kernel.width.shape == kernel.base_kernel.order_parameter.shape == (size, *batch_shape, 1, 2)
    found = kernel.base_kernel(x).to_dense()
    for i in range(size):
        alone = make(torch.Size(batch_shape)).double()
        for name, owner, _, _, setter in alone.named_priors():
            setter(owner, samples[f"base_kernel.{name.removeprefix('.')}"][i])
        torch.testing.assert_close(found[i], alone(x).to_dense(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found[i], kernel.base_kernel[i](x).to_dense(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("process", "likelihood"),
    [(NetworkGP, gpytorch.likelihoods.GaussianLikelihood), (NetworkStudentTProcess, Likelihood)]
    + [(NetworkFiniteWidthProcess, FiniteWidthLikelihood)],
)
def test_models_predict_with_loaded_samples(process, likelihood):
    x, y, at = draw(5, 3), draw(5, seed=1), draw(2, 3, seed=2)
    prior = gpytorch.priors.GammaPrior(2.0, 2.0)

    def make():
        return process(x, y, likelihood(noise_prior=prior), homogeneous(torch.Size())).double()

    model = make()
    samples = samples_of(model, 3)
    if "likelihood.deg_free_prior" in samples:
        samples["likelihood.deg_free_prior"][0] = 1.5  # the prior reaches below the bound of two
        samples["likelihood.deg_free_prior"][1:] += 3.0
    model.pyro_load_from_samples(samples)
    found = model.eval()(at.expand(3, 2, 3))
    for i in range(1, 3):
        alone = make()
        for name, owner, _, _, setter in alone.named_priors():
            setter(owner, samples[name][i])
        expected = alone.eval()(at)
        # GPyTorch solves batches of a NetworkGP in another order
        torch.testing.assert_close(found.mean[i], expected.mean, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found.variance[i], expected.variance, rtol=1e-8, atol=1e-10)
    if "likelihood.deg_free_prior" in samples:
        assert torch.isfinite(model.likelihood.raw_deg_free).all() and (model.likelihood.deg_free >= 2).all()


@pytest.mark.parametrize("ratio", [1e6, 1e-300])
def test_a_sample_beyond_the_bounds_is_moved_inside_and_a_value_of_the_user_is_refused(ratio):
    kernel = nngp(torch.Size()).double()
    kernel.pyro_load_from_samples(samples_of(kernel, 2) | {"bias_ratio_prior": torch.full((2, 1, 2), ratio, dtype=F)})
    assert torch.isfinite(kernel.raw_bias_variance).all()
    assert torch.isfinite(kernel(draw(4, 3)).to_dense()).all()
    expected = 1000.0 if ratio > 1 else 0.0
    torch.testing.assert_close(kernel.bias_variance, torch.full((2, 1, 2), expected, dtype=F), rtol=1e-12, atol=1e-290)
    with pytest.raises(ValueError, match=r"bias_variance: expected numbers between 0.0 and 1000.0, got \[\[\[2000.0"):
        kernel.bias_variance = torch.full((2, 1, 2), 2000.0)


def test_sampled_biases_carry_the_gradient_of_sampled_weights():
    """A ratio b / w is sampled: b moves with w. NUTS needs the whole gradient."""
    x, kernel = draw(3, 3), nngp(torch.Size()).double().to_random_module()
    setters = {name: setter for name, (_, _, setter) in kernel._priors.items()}

    def function(weights, ratios):
        setters["weight_variance_prior"](kernel, weights)
        setters["bias_ratio_prior"](kernel, ratios)
        return kernel(x).to_dense().sum()

    assert torch.autograd.gradcheck(function, (draw(1, 2).exp().requires_grad_(), draw(1, 2).exp().requires_grad_()))


def test_the_prior_of_an_infinite_layer_is_proper_and_silent():
    prior = OrderParameterPrior(torch.tensor([7.0, math.inf], dtype=F))

    def density(q, layer=1):
        return prior.log_prob(torch.full((1, 2), q, dtype=F))[0, layer].exp().item()

    assert prior.log_prob(torch.ones(1, 2, dtype=F))[0, 1].item() == 0.0
    assert quad(density, 0, 1)[0] + quad(density, 1, math.inf)[0] == pytest.approx(1.0, abs=1e-10)
    mean = quad(lambda q: q * density(q), 0, 20)[0]
    assert prior.mean[0, 1].item() == pytest.approx(mean, abs=1e-9)
    torch.manual_seed(0)
    draws = prior.rsample(torch.Size([5000]))[:, 0, 1].numpy()
    assert kstest(draws, gamma(prior._STAND_IN / 2 + 1, scale=2 / prior._STAND_IN).cdf).pvalue > 1e-3
    wide = prior.expand(torch.Size([4, 1, 2]))
    q = draw(4, 1, 2).exp()
    assert wide.batch_shape == (4, 1, 2) and torch.equal(wide.log_prob(q), prior.log_prob(q))
    kernel = RenormalizedNNGPKernel(ReLU(), [7.0, math.inf]).double()
    kernel.order_parameter = torch.tensor([0.5, 3.0])
    assert kernel.order_parameter.tolist() == [[0.5, 1.0]]


@pytest.mark.skipif(importlib.util.find_spec("pyro") is None, reason="needs pyro-ppl")
def test_nuts_samples_a_network_with_an_infinite_layer():
    import pyro
    from pyro.infer.mcmc import MCMC, NUTS

    x, y = draw(6, 3), draw(6, seed=1)
    kernel = RenormalizedNNGPKernel(ReLU(), [5.0, math.inf])  # the order parameters alone have a prior
    model = NetworkGP(x, y, gpytorch.likelihoods.GaussianLikelihood(), kernel).double()
    model.likelihood.noise = 0.5

    def joint(x, y):
        with gpytorch.settings.fast_computations(False, False, False):
            sampled = model.pyro_sample_from_prior()
            pyro.sample("obs", sampled.likelihood(sampled(x)), obs=y)

    pyro.set_rng_seed(0)
    sampler = NUTS(joint, step_size=0.4, adapt_step_size=False, max_tree_depth=3)
    run = MCMC(sampler, num_samples=30, warmup_steps=0, disable_progbar=True)
    run.run(x, y)
    samples = run.get_samples()
    q = samples["covar_module.order_parameter_prior"]
    assert q.shape == (30, 1, 2)
    # The stand-in's law has 0.9999 of its mass here; a flat prior drifts away by orders of magnitude.
    assert (q > 0.01).all() and (q < 6).all() and q[:, 0, 1].std() > 0.05
    model.pyro_load_from_samples(samples)
    assert torch.isfinite(model.eval()(x.expand(30, 6, 3) + 0.1).mean).all()


def test_botorch_takes_one_output_of_a_batched_kernel():
    models = pytest.importorskip("botorch.models")
    x, y = torch.sigmoid(draw(6, 3)), draw(6, 2, seed=1)
    width = torch.tensor([[5.0, 8.0], [20.0, 30.0]], dtype=F)
    kernel = RenormalizedNNGPKernel(Erf(), width, bias_variance=0.3).double()
    kernel.order_parameter = draw(2, 1, 2).exp()
    model = models.SingleTaskGP(x, y, covar_module=kernel)
    raw = [f"covar_module.{name}" for name, _ in kernel.named_parameters()]
    model._subset_batch_dict = {"likelihood.noise_covar.raw_noise": -2, "mean_module.raw_constant": -1}
    model._subset_batch_dict |= dict.fromkeys([*raw, "covar_module.order_parameter_prior.width"], -3)
    at = torch.sigmoid(draw(4, 3, seed=2))
    both = model.posterior(at)
    for i in range(2):
        one = model.subset_output([i])
        assert one.covar_module.width.tolist() == [width[i].tolist()]
        posterior = one.posterior(at)
        # solved by GPyTorch with and without a batch
        torch.testing.assert_close(posterior.mean[:, 0], both.mean[:, i], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(posterior.variance[:, 0], both.variance[:, i], rtol=1e-6, atol=1e-10)
        prior = one.covar_module.order_parameter_prior
        assert prior.log_prob(one.covar_module.order_parameter).shape == prior.batch_shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("order_parameter", torch.ones(3), r"\(1, 2\) .*got \(3,\)"),
        ("order_parameter", torch.ones(4, 1, 2), r"\(1, 2\) .*got \(4, 1, 2\)"),
        ("weight_variance", torch.ones(2), r"\(1, 3\) .*got \(2,\)"),
        ("hidden_weight_variance", torch.ones(3), r"\(1, 2\) .*got \(3,\)"),
        ("bias_variance", torch.ones(3), r"\(1, 2\) .*got \(3,\)"),
        ("ard_weights", torch.ones(2), r"\(1, 3\) .*got \(2,\)"),
    ],
)
def test_wrong_lengths_are_refused(name, value, got):
    kernel = homogeneous(torch.Size())
    before = {k: v.clone() for k, v in kernel.state_dict().items()}
    for call in (lambda: setattr(kernel, name, value), lambda: kernel.initialize(**{name: value})):
        with pytest.raises(ValueError, match=f"{name}: expected shape {got}"):
            call()
    assert all(torch.equal(v, before[k]) for k, v in kernel.state_dict().items())
