"""A model that predicts what a theory says: the network in evaluation mode, its infinite width in training mode."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.likelihoods import GaussianLikelihood

from torch_propkernel import (
    FiniteNetworkProcess,
    FiniteWidthLikelihood,
    NetworkGP,
    NNGPKernel,
    RenormalizedNNGPKernel,
    load,
    save,
)
from torch_propkernel.distributions import ScaleMixtureMultivariateNormal
from torch_propkernel.saving import SavedModelError
from torch_propkernel.theories import Adaptive, Auto, InfiniteWidth, Mixture, SaddlePoint, Sampled, Theory

F = torch.float64
FEW = Sampled(num_chains=4, num_draws=4, every=1, spread=3.0)  # too few to be accurate, the same each time
UNITS = Adaptive(num_units=100, tolerance=1.0)


def data(n: int = 14, d: int = 2, seed: int = 0, dtype=F):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F)
    y = torch.tanh(2.0 * x[:, 0]) + 0.2 * torch.randn(n, generator=generator, dtype=F)
    return x.to(dtype), y.to(dtype)


def process(theory=FEW, activation="erf", width=6, noise=0.1, dtype=F, rows=14, **kernel):
    x, y = data(rows, dtype=dtype)
    made = FiniteNetworkProcess(
        x, y, GaussianLikelihood(), RenormalizedNNGPKernel(activation, width, **kernel), theory=theory
    ).to(dtype)
    made.likelihood.noise = noise
    return made.eval()


class Counting(Theory):
    """The saddle point, counting its fits."""

    name = "counting"

    def __init__(self) -> None:
        self.fits = 0

    def _fit(self, problem):
        self.fits += 1
        return SaddlePoint()._fit(problem)


def moments(law):
    return law.mean, law.variance


# What it predicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theory", [InfiniteWidth(), SaddlePoint(), Mixture(), FEW], ids=lambda theory: theory.name)
def test_evaluation_is_the_theory(theory):
    model, x = process(theory), data(5, seed=1)[0]
    direct = NetworkGP(*data(), copy.deepcopy(model.likelihood), RenormalizedNNGPKernel("erf", 6)).to(F)
    expected = theory.fit(direct).distribution(x, joint=True)
    found = model(x)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.covariance_matrix, expected.covariance_matrix, rtol=1e-9, atol=1e-12)
    assert isinstance(found, ScaleMixtureMultivariateNormal) == (theory in (Mixture(), FEW))
    assert model.fitted.theory == theory and model.theory == theory


def test_a_linear_network_is_sampled_to_its_exact_posterior():
    """The mixture over the scale is exact for linear networks; six standard errors of 2,000 draws."""
    x = data(5, seed=1)[0]
    sampled = process(Sampled(num_chains=100, num_draws=20), "identity", width=3)(x)
    exact = process(Mixture(), "identity", width=3)(x)
    spread = exact.stddev
    assert float(((sampled.mean - exact.mean) / spread).abs().max()) < 6 / 2000**0.5
    torch.testing.assert_close(sampled.variance, exact.variance, rtol=0.2, atol=0)
    levels = torch.full_like(x[:, 0], 0.9)
    assert float(((sampled.icdf(levels) - exact.icdf(levels)) / spread).abs().max()) < 0.2


def test_training_mode_is_the_evidence_of_infinite_width():
    x, y = data()
    model, kernel = process().train(), NNGPKernel("erf").double()
    likelihood = copy.deepcopy(model.likelihood)
    exact = likelihood(gpytorch.distributions.MultivariateNormal(torch.zeros(14, dtype=F), kernel(x))).log_prob(y)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    for q in (1.0, 2.0):  # whatever somebody writes there
        model.covar_module.initialize(order_parameter=q)
        priors = sum(prior.log_prob(value(module)).sum() for _, module, prior, value, _ in model.named_priors())
        value = objective(model(x), y)
        torch.testing.assert_close(14 * value - priors, exact, rtol=1e-10, atol=0)
    value.backward()
    assert model.covar_module.raw_order_parameter.grad is None and model.likelihood.raw_noise.grad is not None


def test_an_ordinary_script_trains_and_predicts():
    """Adam on the evidence: the noise that made the data, 0.2^2, is found within a factor of two."""
    x, y = data(60)
    likelihood = GaussianLikelihood()
    kernel = gpytorch.kernels.ScaleKernel(RenormalizedNNGPKernel("erf", width=20, bias_variance=1.0, ard_num_dims=2))
    model = FiniteNetworkProcess(x, y, likelihood, kernel, gpytorch.means.ConstantMean(), theory=FEW).to(F)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        loss = -objective(model(x), y)
        loss.backward()
        optimizer.step()
    assert 0.02 < likelihood.noise.item() < 0.08
    model.eval(), likelihood.eval()
    new_x, new_y = data(40, seed=1)
    with torch.no_grad():
        observed = likelihood(model(new_x))
    assert float((observed.mean - new_y).square().mean()) < 0.1
    low, high = observed.icdf(0.025), observed.icdf(0.975)
    assert 0.85 <= float(((low < new_y) & (new_y < high)).double().mean()) <= 1.0


@pytest.mark.parametrize("theory", ["saddle", "mixture", FEW], ids=str)
def test_noise_is_added_to_what_is_latent(theory):
    model, x = process(theory), data(3, seed=1)[0]
    latent, noisy = model(x), model.likelihood(model(x))
    assert type(noisy) is type(latent) and type(model.likelihood) is FiniteWidthLikelihood
    torch.testing.assert_close(noisy.mean, latent.mean)
    torch.testing.assert_close(noisy.covariance_matrix, latent.covariance_matrix + 0.1 * torch.eye(3, dtype=F))


@pytest.mark.parametrize("theory", ["saddle", "mixture", FEW, UNITS], ids=str)
def test_gradients_in_the_inputs(theory):
    model, x = process(theory), data(2, seed=1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moments(model(x)), [x], atol=1e-6)
    assert not model(x.detach()).mean.requires_grad


@pytest.mark.parametrize("theory", ["saddle", FEW, UNITS], ids=str)
def test_batches_of_points_are_each_their_own(theory):
    model, x = process(theory), data(12, seed=1)[0]
    batched = model(x.reshape(2, 3, 2, 2))
    for i in range(2):
        for j in range(3):
            alone = model(x.reshape(2, 3, 2, 2)[i, j])
            torch.testing.assert_close(batched.mean[i, j], alone.mean)
            torch.testing.assert_close(batched.covariance_matrix[i, j], alone.covariance_matrix)


def test_one_input_without_a_column():
    x = torch.linspace(-1, 1, 9, dtype=F)
    kernel = RenormalizedNNGPKernel("erf", 5, bias_variance=1.0)
    model = FiniteNetworkProcess(x, x**2, GaussianLikelihood(), kernel, theory=FEW).to(F).eval()
    torch.testing.assert_close(model(x).mean, model(x.unsqueeze(-1)).mean)


def test_many_points_have_marginals_only(monkeypatch):
    model, x = process(), data(9, seed=1)[0]
    joint = model(x)
    monkeypatch.setattr("torch_propkernel.models.finite_network_process._LARGEST", 16 * 9**2 - 1)
    marginal = model(x)
    torch.testing.assert_close(marginal.variance, joint.variance)
    torch.testing.assert_close(model.likelihood(marginal).variance, joint.variance + 0.1)
    with pytest.raises(ValueError, match="variances of the marginals only"):
        marginal.covariance_matrix  # noqa: B018


# When it is fitted --------------------------------------------------------------------------------------------------


def test_fitted_once_until_something_changes():
    theory = Counting()
    model, (x, y) = process(theory), data(3, seed=1)
    model(x), model(x[:1]), model.train(), model.eval()
    before = model(x).mean
    assert theory.fits == 1
    model.likelihood.noise = 0.2
    changed = model(x).mean
    assert theory.fits == 2 and not torch.allclose(before, changed)
    model.set_train_data(x, y, strict=False)
    torch.testing.assert_close(model(x).mean, process(SaddlePoint()).fitted.theory.fit(model).predict(x)[0])
    assert theory.fits == 3
    model.train_targets.mul_(2.0)
    model(x)
    assert theory.fits == 4
    with gpytorch.settings.prior_mode():
        assert float(model(x).mean.abs().max()) == 0.0
    model(x)
    assert theory.fits == 4
    model.theory = "infinite_width"
    assert not torch.allclose(model(x).mean, changed)
    with pytest.raises(ValueError, match="expected a Theory or one of the names"):
        model.theory = "moonshine"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_keep_the_fit(copied, monkeypatch):
    model, x = process(), data(3, seed=1)[0]
    expected = model(x)
    monkeypatch.setattr(Sampled, "_fit", lambda *args: pytest.fail("sampled again"))
    again = copied(model)
    assert torch.equal(again(x).mean, expected.mean) and again.fitted is not model.fitted
    again.likelihood.noise = 0.3
    monkeypatch.undo()
    assert not torch.equal(again(x).mean, expected.mean) and torch.equal(model(x).mean, expected.mean)


def test_a_process_of_a_fitted_theory_keeps_it(monkeypatch):
    x = data(3, seed=1)[0]
    model = NetworkGP(*data(), GaussianLikelihood(), RenormalizedNNGPKernel("erf", 6)).to(F)
    fitted = FEW.fit(model)
    monkeypatch.setattr(Sampled, "_fit", lambda *args: pytest.fail("sampled again"))
    made = FiniteNetworkProcess.from_fitted(fitted)
    assert made.fitted is fitted and made.theory == FEW
    torch.testing.assert_close(made(x).mean, fitted.predict(x)[0])


def test_files_hold_the_networks_that_were_drawn(tmp_path, monkeypatch):
    model, (x, y) = process(), data(3, seed=1)
    path = tmp_path / "model.propkernel"
    save(model, path)  # before a prediction there is nothing to keep
    assert torch.equal(load(path).model(x).mean, model(x).mean)
    save(model, path)
    monkeypatch.setattr(Sampled, "_fit", lambda *args: pytest.fail("sampled again"))
    loaded = load(path).model
    save(loaded, tmp_path / "again.propkernel")
    for one in (loaded, load(tmp_path / "again.propkernel").model):
        assert type(one) is FiniteNetworkProcess and one.theory == FEW
        found, expected = one(x), model(x)
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.variance, expected.variance)
        assert one.fitted.message == model.fitted.message and one.fitted.stats == model.fitted.stats
        torch.testing.assert_close(one.fitted.log_evidence, model.fitted.log_evidence)
    other = load(path, x=x, y=y).model  # other data: the draws are not theirs
    monkeypatch.undo()
    torch.testing.assert_close(other(x).mean, FEW.fit(other).predict(x)[0])


@pytest.mark.parametrize("theory", ["saddle", "infinite_width", "mixture"])
def test_other_theories_are_fitted_again_after_loading(theory, tmp_path):
    model, x = process(theory), data(3, seed=1)[0]
    expected = model(x).mean
    save(model, tmp_path / "model.propkernel")
    assert torch.equal(load(tmp_path / "model.propkernel").model(x).mean, expected)


def test_auto_is_saved_as_what_it_chose(tmp_path, monkeypatch):
    """The chosen theory's draws are kept under the name that was asked for."""
    monkeypatch.setattr(Auto, "_fit", lambda self, problem: FEW._fit(problem))
    model, x = process("auto"), data(3, seed=1)[0]
    expected = model(x).mean
    save(model, tmp_path / "model.propkernel")
    monkeypatch.setattr(Sampled, "_fit", lambda *args: pytest.fail("sampled again"))
    loaded = load(tmp_path / "model.propkernel").model
    assert torch.equal(loaded(x).mean, expected) and loaded.theory == Auto() and loaded.fitted.theory == FEW


def test_a_theory_of_ones_own_is_refused_by_files(tmp_path):
    with pytest.raises(SavedModelError, match=r"theory: expected one of .*torch_propkernel.Sampled.*Counting"):
        save(process(Counting()), tmp_path / "model.propkernel")


# dtype, fantasies, refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("theory", ["saddle", "mixture", FEW], ids=str)
def test_single_precision_models_run_the_theory_in_double(theory):
    """Rounding of data and hyperparameters to float32 moves a posterior by 1e-5 here."""
    x = data(4, seed=1)[0]
    single, double = process(theory, dtype=torch.float32)(x.float()), process(theory)(x)
    assert single.mean.dtype == single.variance.dtype == torch.float32
    assert process(theory, dtype=torch.float32).fitted.problem.targets.dtype == F
    if theory is not FEW:  # chains that start a rounding apart end elsewhere
        torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single.variance.double(), double.variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("theory", ["saddle", FEW], ids=str)
def test_a_fantasy_is_the_process_on_the_joined_data(theory):
    model, (x, y), (new_x, new_y) = process(theory), data(), data(3, seed=1)
    model(x)
    fantasy = model.get_fantasy_model(new_x, new_y)
    joined = process(theory)
    joined.set_train_data(torch.cat([x, new_x]), torch.cat([y, new_y]), strict=False)
    torch.testing.assert_close(fantasy(new_x).mean, joined(new_x).mean, rtol=1e-10, atol=1e-12)
    assert len(model.train_targets) == 14 and len(fantasy.train_targets) == 17


def test_several_fantasies_need_a_theory_with_batches():
    new_x, new_y = data(3, seed=1)
    several = torch.stack([new_y, -new_y])
    fantasies = process("saddle").get_fantasy_model(new_x, several)
    assert fantasies(new_x).mean.shape == (2, 3)
    with pytest.raises(ValueError, match="expected no batch dimensions"):
        process().get_fantasy_model(new_x, several)


def test_refusals():
    x, y = data()
    with pytest.raises(ValueError, match="exactly one RenormalizedNNGPKernel"):
        FiniteNetworkProcess(x, y, GaussianLikelihood(), gpytorch.kernels.RBFKernel())
    with pytest.raises(ValueError, match="expected a Theory or one of the names"):
        process("moonshine")
    with pytest.raises(ValueError, match="width"):
        process(width=float("inf"))(x)
    with pytest.raises(ValueError, match="expected 2 columns as in training, got 3"):
        process()(torch.zeros(2, 3, dtype=F))
    with pytest.raises(TypeError, match="expected one tensor of inputs"):
        process()(x, x)
