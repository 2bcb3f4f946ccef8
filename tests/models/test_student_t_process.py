"""The process against scipy's density, against the GP in its limit, and against itself on joined data."""

from __future__ import annotations

import copy
import math
import pickle

import gpytorch
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from torch_propkernel import Erf, NNGPKernel, ReLU, RenormalizedNNGPKernel
from torch_propkernel.likelihoods import StudentTProcessLikelihood
from torch_propkernel.mlls import StudentTMarginalLogLikelihood
from torch_propkernel.models import StudentTProcess

F = torch.float64
NO_BATCH = torch.Size()


class Process(StudentTProcess):
    def __init__(self, x, y, likelihood, kernel, batch_shape=NO_BATCH):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=batch_shape)
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Gaussian(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood, process):
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = process.mean_module, process.covar_module

    forward = Process.forward


def rbf(batch_shape=NO_BATCH):
    return gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(batch_shape=batch_shape), batch_shape=batch_shape)


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F)


def make(x, y, kernel=None, deg_free=5.0, noise=0.3, mean=0.4, batch_shape=NO_BATCH):
    likelihood = StudentTProcessLikelihood(batch_shape=batch_shape)
    model = Process(x, y, likelihood, rbf(batch_shape) if kernel is None else kernel, batch_shape).double()
    likelihood.noise, likelihood.deg_free = torch.as_tensor(noise, dtype=F), deg_free
    model.mean_module.initialize(constant=torch.tensor(mean, dtype=F))
    return model


X, Y, XT = points(7, 2), points(7, seed=1) * 2, points(3, 2, seed=2)


def joint_prior(model, x):
    """Mean and covariance of noisy observations, dense."""
    model.train()
    prior = model.forward(x)
    covariance = prior.covariance_matrix + model.likelihood.noise * torch.eye(x.shape[-2], dtype=F)
    model.eval()
    return prior.mean.detach().numpy(), covariance.detach().numpy()


@pytest.mark.parametrize("deg_free", [2.3, 5.0, 60.0])
def test_predictive_is_a_ratio_of_joint_densities(deg_free):
    """p(y_* | y) = p(y_*, y) / p(y), jointly in three test points, by scipy; conditioning nowhere by our formulas."""
    model = make(X, Y, deg_free=deg_free)
    mean, covariance = joint_prior(model, torch.cat([X, XT]))
    shape = covariance * (deg_free - 2) / deg_free
    joint = multivariate_t(mean, shape, df=deg_free)
    marginal = multivariate_t(mean[:7], shape[:7, :7], df=deg_free)
    predictive = model.likelihood(model(XT))
    for seed in range(5):
        y = points(3, seed=seed) * 2
        expected = joint.logpdf(np.concatenate([Y, y])) - marginal.logpdf(Y.numpy())
        assert predictive.log_prob(y).item() == pytest.approx(expected, abs=1e-10)


def test_latent_posterior():
    """Location of the GP; its covariance times (nu + b - 2) / (nu + n - 2); a noise that vanishes gives the same."""
    model = make(X, Y)
    gp = Gaussian(X, Y, gpytorch.likelihoods.GaussianLikelihood().double(), model).eval()
    gp.likelihood.noise = torch.tensor(0.3, dtype=F)
    mean, covariance = joint_prior(model, X)
    b = (Y.numpy() - mean) @ np.linalg.solve(covariance, Y.numpy() - mean)
    f, g = model(XT), gp(XT)
    assert torch.allclose(f.mean, g.mean, rtol=0, atol=1e-10)
    assert torch.allclose(f.covariance_matrix, (5 + b - 2) / (5 + 7 - 2) * g.covariance_matrix, rtol=0, atol=1e-10)
    assert torch.allclose(f.mean_scale, torch.tensor((5 + b - 2) / (5 + 7 - 2), dtype=F), rtol=1e-10)
    assert f.df.item() == pytest.approx(12.0, rel=1e-14)
    noisy = model.likelihood(f)
    difference = noisy.covariance_matrix - f.covariance_matrix
    assert torch.allclose(difference, 0.3 * f.mean_scale * torch.eye(3, dtype=F), rtol=0, atol=1e-10)


def test_consistency_in_the_test_points():
    model = make(X, Y).eval()
    three, one = model(XT), model(XT[:1])
    assert torch.allclose(three[..., :1].covariance_matrix, one.covariance_matrix, rtol=0, atol=1e-10)
    assert torch.allclose(three.mean[:1], one.mean, rtol=0, atol=1e-10)
    sliced = model.likelihood(three[..., :1])  # indexing keeps the factor of the noise
    assert torch.allclose(sliced.covariance_matrix, model.likelihood(one).covariance_matrix, rtol=0, atol=1e-10)


def test_order_of_the_data_does_not_matter():
    first, second = make(X, Y).eval(), make(X.flip(0), Y.flip(0)).eval()
    assert torch.allclose(first(XT).covariance_matrix, second(XT).covariance_matrix, rtol=0, atol=1e-10)


def test_infinite_degrees_of_freedom_are_the_gaussian_process():
    """Values and gradients at nu = 1e9; what is left is of order n / nu."""
    model = make(X, Y, deg_free=1e9)
    gp = Gaussian(X, Y, gpytorch.likelihoods.GaussianLikelihood().double(), model)
    gp.likelihood.noise = torch.tensor(0.3, dtype=F)
    hyperparameters = [model.mean_module.raw_constant, *model.covar_module.parameters()]
    grads = []
    for m in (model, gp):
        m.eval()
        x = XT.clone().requires_grad_()
        with gpytorch.settings.detach_test_caches(False):
            f = m.likelihood(m(x))
            value = f.mean.square().sum() + f.variance.log().sum()
        noise = m.likelihood.noise_covar.raw_noise
        grads.append((value, *torch.autograd.grad(value, [x, noise, *hyperparameters])))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kernel", [lambda: NNGPKernel(ReLU()), lambda: RenormalizedNNGPKernel(Erf(), [20, 30]), rbf])
def test_training_loop(kernel):
    x = points(20, 2)
    model = make(x, torch.sin(2 * x[:, 0]) * 3, kernel=kernel().double())
    mll = StudentTMarginalLogLikelihood(model.likelihood, model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -mll(model(x), model.train_targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in model.named_parameters():
        assert not value.requires_grad or not torch.equal(value, before[name]), name
    model.eval()
    assert model.likelihood(model(XT)).variance.gt(0).all()


def test_modes():
    model = make(X, Y)
    assert isinstance(model(X), gpytorch.distributions.MultivariateNormal)
    with pytest.raises(RuntimeError, match="train on the training inputs"):
        model(XT)
    model.eval()
    with gpytorch.settings.prior_mode(True):
        prior = model(XT)
    assert torch.allclose(prior.covariance_matrix, model.covar_module(XT).to_dense(), rtol=0, atol=1e-10)
    assert prior.df.item() == pytest.approx(5.0, rel=1e-14)
    noisy = model.likelihood(prior).covariance_matrix - prior.covariance_matrix
    assert torch.allclose(noisy, 0.3 * torch.eye(3, dtype=F), rtol=0, atol=1e-10)
    without_data = Process(None, None, model.likelihood, model.covar_module).double().eval()
    assert without_data(XT).df.item() == pytest.approx(5.0, rel=1e-14)


def test_batches_are_single_processes():
    """Data and hyperparameters of shape 2, test points of shape 4 x 1 or none; targets alone as a batch."""
    batch = torch.Size([2])
    x, y, test = points(2, 7, 2), points(2, 7, seed=1), points(4, 1, 3, 2)
    model = make(x, y, deg_free=torch.tensor([[3.0], [9.0]], dtype=F), batch_shape=batch).eval()
    f = model(test)
    assert f.mean.shape == (4, 2, 3) and f.df.shape == (4, 2)
    noisy = model.likelihood(f)
    for i in range(2):
        single = make(x[i], y[i], deg_free=[3.0, 9.0][i]).eval()
        for j in range(4):
            g = single(test[j, 0])
            assert torch.allclose(f.mean[j, i], g.mean, rtol=0, atol=1e-10)
            assert torch.allclose(f.covariance_matrix[j, i], g.covariance_matrix, rtol=0, atol=1e-10)
            assert f.df[j, i].item() == pytest.approx(g.df.item(), rel=1e-14)
            expected = single.likelihood(g).covariance_matrix
            assert torch.allclose(noisy.covariance_matrix[j, i], expected, rtol=0, atol=1e-10)
    many = make(x[0], y).eval()(test[0, 0])  # two sets of targets at the same points
    assert many.mean.shape == (2, 3)
    expected = make(x[0], y[1]).eval()(test[0, 0]).covariance_matrix
    assert torch.allclose(many.covariance_matrix[1], expected, rtol=0, atol=1e-10)
    one = model(test[0])
    assert one.mean_scale.shape == (2,) and torch.allclose(one[1].mean_scale, one.mean_scale[1])
    assert one.expand((5, 2)).mean_scale.shape == (5, 2)


@pytest.mark.parametrize("batch", [(), (4,)])
def test_fantasies_are_a_process_on_the_joined_data(batch):
    model = make(X, Y).eval()
    new_x, new_y = points(2, 2, seed=5), points(*batch, 2, seed=6)
    fantasy = model.get_fantasy_model(new_x, new_y)
    assert fantasy.likelihood is not model.likelihood
    f = fantasy(XT)
    for i in range(batch[0] if batch else 1):
        y = new_y[i] if batch else new_y
        expected = make(torch.cat([X, new_x]), torch.cat([Y, y])).eval()(XT)
        got = f[i] if batch else f
        assert torch.allclose(got.mean, expected.mean, rtol=0, atol=1e-10)
        assert torch.allclose(got.covariance_matrix, expected.covariance_matrix, rtol=0, atol=1e-10)
        assert got.df.flatten()[0].item() == pytest.approx(14.0, rel=1e-14)
    assert torch.equal(model(XT).mean, make(X, Y).eval()(XT).mean)  # the original is as before


def test_gradients_pass_through_fantasies():
    model = make(X, Y).eval()
    new_x, new_y = points(2, 2, seed=5).requires_grad_(), points(2, seed=6).requires_grad_()

    def spread(x, y):
        return model.get_fantasy_model(x, y)(XT).variance

    assert torch.autograd.gradcheck(spread, (new_x, new_y))


def test_gradients_of_predictions():
    """With respect to the test points, the targets, noise and degrees of freedom."""

    def moments(x, targets, raw_noise, raw_deg_free):
        model = make(X, targets)
        parameters = {"likelihood.noise_covar.raw_noise": raw_noise, "likelihood.raw_deg_free": raw_deg_free}
        model.eval()
        with gpytorch.settings.detach_test_caches(False):
            f = torch.func.functional_call(model, parameters, (x,))
        return f.mean, f.covariance_matrix, f.df

    raw = torch.tensor([0.3], dtype=F)
    inputs = [t.clone().requires_grad_() for t in (XT, Y, raw, raw)]
    assert torch.autograd.gradcheck(moments, inputs)


def test_caches_follow_data_and_hyperparameters():
    """In GPyTorch, a change in evaluation mode is not seen; here it is."""
    model = make(X, Y).eval()
    model(XT)
    stored = model.prediction_strategy
    model(XT)
    assert model.prediction_strategy is stored
    model.likelihood.noise = torch.tensor(0.9, dtype=F)
    assert torch.equal(model(XT).mean, make(X, Y, noise=0.9).eval()(XT).mean)
    model.set_train_data(X, 2 * Y)
    assert model.prediction_strategy is None
    assert torch.equal(model(XT).mean, make(X, 2 * Y, noise=0.9).eval()(XT).mean)


def test_order_parameters_set_in_evaluation_mode_are_seen():
    def build(q):
        kernel = RenormalizedNNGPKernel(Erf(), 20).double()
        kernel.order_parameter = q
        return make(X, Y, kernel=kernel).eval()

    model = build(1.0)
    model(XT)
    model.covar_module.order_parameter = 0.2
    assert torch.equal(model(XT).mean, build(0.2)(XT).mean)
    assert not torch.allclose(model(XT).mean, build(1.0)(XT).mean)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("predicted", [False, True])
def test_copies(clone, predicted):
    model = make(X, Y, kernel=RenormalizedNNGPKernel(Erf(), 20).double(), deg_free=7.0).eval()
    expected = make(X, Y, kernel=RenormalizedNNGPKernel(Erf(), 20).double(), deg_free=7.0).eval()(XT)
    if predicted:
        with gpytorch.settings.detach_test_caches(False):
            model(XT.clone().requires_grad_())
        model(XT)
    f = clone(model)(XT)
    assert torch.equal(f.mean, expected.mean) and torch.equal(f.covariance_matrix, expected.covariance_matrix)


def test_state_dict():
    source, target = make(X, Y, deg_free=3.3, noise=0.7), make(X, Y).eval()
    target(XT)
    target.load_state_dict(source.state_dict())
    assert target.likelihood.deg_free.item() == source.likelihood.deg_free.item()
    assert torch.equal(target(XT).covariance_matrix, source.eval()(XT).covariance_matrix)


def test_more_than_800_points_are_exact():
    """GPyTorch's approximate solvers, from 800 points on, are never used."""
    x = points(850, 1)
    y = torch.sin(3 * x[:, 0])
    model = make(x, y)
    mean, covariance = joint_prior(model, x)
    cross = model.covar_module(XT[:, :1], x).to_dense().detach().numpy()
    expected = 0.4 + cross @ np.linalg.solve(covariance, y.numpy() - mean)
    assert np.allclose(model(XT[:, :1]).mean.detach().numpy(), expected, rtol=0, atol=1e-10)


def test_float32():
    model, single = make(X, Y).eval(), make(X, Y).float().eval()
    f, g = model(XT), single(XT.float())
    assert g.mean.dtype == torch.float32
    assert torch.allclose(f.mean, g.mean.double(), rtol=1e-4)  # float32, condition below 100
    assert torch.allclose(f.variance, g.variance.double(), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:A not p.d.:linear_operator.utils.warnings.NumericalWarning")
@pytest.mark.parametrize("dtype, noise", [(F, 1e-4), (torch.float32, 1e-2)])
@pytest.mark.parametrize("at", ["the data", "many points"])
def test_samples_where_the_posterior_is_singular_to_rounding(dtype, noise, at):
    x = torch.linspace(0, 1, 30, dtype=dtype).unsqueeze(-1)
    model = make(x.double(), torch.sin(6 * x[:, 0].double()), noise=noise).to(dtype).eval()
    f = model(x if at == "the data" else torch.linspace(0, 1, 100, dtype=dtype).unsqueeze(-1))
    samples = f.rsample(torch.Size([2000]))
    assert torch.allclose(samples.std(0), f.stddev.detach(), rtol=0.1)  # 2000 draws, and the jitter


def test_spread_reacts_to_the_data_and_an_outlier_pulls_the_mean():
    """What the docstring says: no robustness."""
    outlier = Y.clone()
    outlier[0] += 30.0
    calm, wild = make(X, Y).eval(), make(X, outlier).eval()
    assert (wild(XT).stddev > 2 * calm(XT).stddev).all()
    gp = Gaussian(X, outlier, gpytorch.likelihoods.GaussianLikelihood().double(), wild).eval()
    gp.likelihood.noise = torch.tensor(0.3, dtype=F)
    assert torch.allclose(wild(XT).mean, gp(XT).mean, rtol=0, atol=1e-10)


def bad(value, where, what):
    value = value.clone()
    value[where] = what
    return value


BAD = {
    "NaN in y": (lambda: make(X, bad(Y, 2, math.nan)), ValueError, "train_targets: expected finite values, got 1 NaN"),
    "inf in x": (lambda: make(bad(X, (0, 0), math.inf), Y), ValueError, "train_inputs: expected finite values"),
    "y too short": (lambda: make(X, Y[:4]), ValueError, r"train_targets: expected shape \(..., 7\), got \(4,\)"),
    "no rows": (lambda: make(X[:0], Y[:0]), ValueError, "train_inputs: expected at least 1 row"),
    "integer y": (lambda: make(X, torch.ones(7, dtype=torch.long)), TypeError, "expected a floating-point tensor"),
    "mixed dtypes": (lambda: make(X, Y.float()), TypeError, "expected one dtype for all tensors, got train_inputs"),
    "Gaussian likelihood": (
        lambda: StudentTProcess(X, Y, gpytorch.likelihoods.GaussianLikelihood()),
        TypeError,
        "likelihood: expected a StudentTProcessLikelihood, got GaussianLikelihood",
    ),
    "no tensor": (lambda: make(X, Y).set_train_data(X.tolist()), TypeError, "expected a torch.Tensor, got list"),
    "new y": (lambda: make(X, Y).set_train_data(targets=bad(Y, 1, math.nan)), ValueError, "got 1 NaN"),
    "NaN in test points": (lambda: make(X, Y).eval()(bad(XT, (0, 0), math.nan)), ValueError, "x: expected finite"),
    "columns": (lambda: make(X, Y).eval()(XT[:, :1]), ValueError, "x: expected 2 columns as in training, got 1"),
    "test dtype": (lambda: make(X, Y).eval()(XT.float()), TypeError, "train_inputs torch.float64, x torch.float32"),
    "noise per fantasy": (
        lambda: make(X, Y).eval().get_fantasy_model(XT, Y[:3], noise=Y[:3] ** 2),
        NotImplementedError,
        "noise: expected none",
    ),
    "NaN fantasy": (lambda: make(X, Y).eval().get_fantasy_model(XT, bad(Y[:3], 0, math.nan)), ValueError, "got 1 NaN"),
}


def test_bad_data_are_not_stored():
    model = make(X, Y).eval()
    with pytest.raises(ValueError, match="train_targets: expected shape"):
        model.set_train_data(X[:3], Y[:4], strict=False)
    assert torch.equal(model.train_inputs[0], X)
    model.set_train_data(targets=Y[:4], strict=False)  # could be the first half of a change
    with pytest.raises(ValueError, match=r"train_targets: expected shape \(..., 7\), got \(4,\)"):
        model(XT)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_several_tasks_are_refused():
    class Multitask(StudentTProcess):
        def forward(self, x):
            mean = torch.zeros(*x.shape[:-1], 2, dtype=F)
            return gpytorch.distributions.MultitaskMultivariateNormal(mean, torch.eye(2 * x.shape[-2], dtype=F))

    model = Multitask(X, Y, StudentTProcessLikelihood().double()).eval()
    with pytest.raises(TypeError, match="forward: expected a MultivariateNormal of one output, got Multitask"):
        model(XT)


def test_gaussian_solvers_refuse_it():
    from torch_propkernel import Erf, NetworkGP, RenormalizedNNGPKernel, fit_order_parameters

    x = torch.randn(6, 3, dtype=torch.float64)
    model = NetworkGP(x, x[:, 0], StudentTProcessLikelihood(), RenormalizedNNGPKernel(Erf(), 10)).double()
    with pytest.raises(TypeError, match="expected a Gaussian one, .* got StudentTProcessLikelihood"):
        fit_order_parameters(model)
