"""The BoTorch model: its posterior, fits and fantasies, and the acquisition functions that use or refuse it."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import pytest
import torch
from botorch import fit_gpytorch_mll
from botorch.acquisition import (
    ExpectedImprovement,
    LogExpectedImprovement,
    PosteriorMean,
    ProbabilityOfImprovement,
    UpperConfidenceBound,
    qKnowledgeGradient,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
    qMaxValueEntropy,
    qSimpleRegret,
)
from botorch.acquisition.analytic import PosteriorStandardDeviation, qAnalyticProbabilityOfImprovement
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.acquisition.objective import ExpectationPosteriorTransform, ScalarizedPosteriorTransform
from botorch.exceptions import UnsupportedError
from botorch.models import ModelList, ModelListGP, SingleTaskGP
from botorch.models.transforms import Log, Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from scipy.integrate import quad
from scipy.stats import t

from torch_propkernel import Erf, NNGPKernel
from torch_propkernel.botorch_support import SingleTaskStudentTProcess, StudentTPosterior
from torch_propkernel.likelihoods import StudentTProcessLikelihood
from torch_propkernel.mlls import StudentTMarginalLogLikelihood

F = torch.float64
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F)


def branin(x):
    """Minus the Branin function on the unit square; its maximum is -0.398."""
    a, b = 15 * x[..., 0] - 5, 15 * x[..., 1]
    bowl = (b - 5.1 / (4 * torch.pi**2) * a**2 + 5 / torch.pi * a - 6) ** 2
    return -(bowl + 10 * (1 - 1 / (8 * torch.pi)) * a.cos() + 10).unsqueeze(-1)


X = torch.rand(8, 2, dtype=F, generator=torch.Generator().manual_seed(0))
Y, XT = branin(X), torch.rand(3, 2, dtype=F, generator=torch.Generator().manual_seed(1))


def make(**kwargs):
    return SingleTaskStudentTProcess(X, Y, **kwargs)


def fitted():
    model = make()
    fit_gpytorch_mll(
        StudentTMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 50}}
    )
    return model


def test_defaults_are_those_of_botorch():
    model, gp = make(), SingleTaskGP(X, Y)
    assert type(model.covar_module) is type(gp.covar_module)
    assert torch.equal(model.covar_module.lengthscale, gp.covar_module.lengthscale)
    assert torch.equal(model.likelihood.noise, gp.likelihood.noise)
    assert isinstance(model.outcome_transform, Standardize) and torch.equal(model.train_targets, gp.train_targets)


def test_posterior_is_that_of_the_process_on_the_original_scale():
    model = make()
    found, mean, deviation = model.posterior(XT), Y.mean(), Y.std()
    inner = model(XT)
    assert isinstance(found, StudentTPosterior)
    assert found.df.item() == pytest.approx(model.likelihood.deg_free.item() + 8, rel=1e-14)
    assert torch.allclose(found.mean.squeeze(-1), mean + deviation * inner.mean, rtol=1e-12)
    assert torch.allclose(found.variance.squeeze(-1), deviation**2 * inner.variance, rtol=1e-12)
    gp = SingleTaskGP(X, Y)
    assert torch.allclose(found.mean, gp.posterior(XT).mean, rtol=1e-10)  # a Student's t process has the GP's mean
    noisy = model.posterior(XT, observation_noise=True)
    assert torch.allclose(
        (noisy.variance - found.variance).squeeze(-1),
        deviation**2 * inner.mean_scale * model.likelihood.noise,
        rtol=1e-10,
    )
    replaced = model.posterior(XT, observation_noise=torch.full((3, 1), 0.5, dtype=F))
    assert torch.allclose(
        (replaced.variance - found.variance) / deviation**2 / inner.mean_scale, torch.tensor(0.5, dtype=F)
    )
    plain = make(outcome_transform=None)
    assert torch.allclose(plain.posterior(XT).mean.squeeze(-1), plain(XT).mean, rtol=1e-14)


def test_posterior_transform():
    transform = ScalarizedPosteriorTransform(torch.tensor([-2.0], dtype=F), offset=3.0)
    found, plain = make().posterior(XT, posterior_transform=transform), make().posterior(XT)
    assert isinstance(found, StudentTPosterior) and torch.equal(found.df, plain.df)
    assert torch.allclose(found.mean, 3 - 2 * plain.mean, rtol=1e-12)
    assert torch.allclose(found.variance, 4 * plain.variance, rtol=1e-12)


def test_input_transform():
    raw = 15 * X - 5
    model = SingleTaskStudentTProcess(raw, Y, input_transform=Normalize(2, bounds=15 * BOUNDS - 5))
    assert torch.allclose(model.posterior(15 * XT - 5).mean, make().posterior(XT).mean, rtol=1e-8)
    assert torch.equal(model.train().train_inputs[0], raw)


def test_fit():
    model = make()
    mll = StudentTMarginalLogLikelihood(model.likelihood, model)
    before = mll(model(X), model.train_targets).item()
    fit_gpytorch_mll(mll)
    model.train()
    after = mll(model(X), model.train_targets)
    assert after.item() > before
    free = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(after, free)
    # A stationary point, or a bound of the box (BoTorch's noise and lengthscales are bounded)
    raw = dict(zip(free, gradients, strict=True))
    assert raw[model.likelihood.raw_deg_free].abs().max() < 1e-3
    assert raw[model.mean_module.raw_constant].abs().max() < 1e-3


def test_fit_with_our_kernel_and_likelihood():
    model = make(covar_module=NNGPKernel(Erf(), bias_variance=0.3), likelihood=StudentTProcessLikelihood())
    fit_gpytorch_mll(
        StudentTMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 20}}
    )
    assert model.posterior(XT).variance.gt(0).all()


def test_batches():
    y = torch.stack([Y, 2 * Y.flip(0)])
    model = SingleTaskStudentTProcess(X.expand(2, 8, 2), y)
    assert model.batch_shape == (2,) and model.posterior(XT).mean.shape == (2, 3, 1)
    assert model.posterior(XT.expand(5, 1, 3, 2)).mean.shape == (5, 2, 3, 1)
    single = SingleTaskStudentTProcess(X, y[1]).posterior(XT)
    assert torch.allclose(model.posterior(XT).variance[1], single.variance, rtol=1e-10)


def test_conditioning_is_a_model_on_the_joined_data():
    new_x, new_y = XT[:2], branin(XT[:2])
    model = make()
    found = model.condition_on_observations(new_x, new_y).posterior(XT)
    expected = SingleTaskStudentTProcess(
        torch.cat([X, new_x]), (torch.cat([Y, new_y]) - Y.mean()) / Y.std(), outcome_transform=None
    ).posterior(XT)
    assert torch.allclose(found.mean, Y.mean() + Y.std() * expected.mean, rtol=1e-10)
    assert torch.allclose(found.variance, Y.var() * expected.variance, rtol=1e-10)
    assert torch.equal(found.df, expected.df)


@pytest.mark.parametrize("input_transform", [None, Normalize])
def test_fantasies(input_transform):
    model = make(input_transform=input_transform(2, bounds=BOUNDS) if input_transform else None)
    fantasies = model.fantasize(XT[:2], SobolQMCNormalSampler(torch.Size([4]), seed=0))
    found = fantasies.posterior(XT)
    assert found.mean.shape == (4, 3, 1) and found.df.unique().item() == pytest.approx(12.0 + 10)
    widths = found.variance[:, 2, 0] / found.variance[:1, 2, 0]
    assert widths.unique().numel() == 4  # each fantasy has its own spread: in a GP all are equal


def test_copies_and_state():
    model = fitted()
    expected = model.posterior(XT).variance
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone.posterior(XT).variance, expected)
    other = make()
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other.posterior(XT).variance, expected, rtol=1e-12)


def test_expected_improvement_against_integration():
    """qLogEI of one point against the integral of the improvement over scipy's t."""
    model, best = make(), Y.max()
    point = XT[:1]
    student_t = model.posterior(point).student_t
    law = t(student_t.df.item(), student_t.mean.item(), student_t.scale.item() ** 0.5)
    expected = quad(lambda f: (f - best.item()) * law.pdf(f), best.item(), torch.inf)[0]
    sampler = SobolQMCNormalSampler(torch.Size([4096]), seed=0)
    found = qLogExpectedImprovement(model, best, sampler=sampler)(point).exp().item()
    assert found == pytest.approx(expected, rel=0.03)  # 4096 quasi-random samples of a heavy tail


@pytest.mark.filterwarnings("ignore:A not p.d.:linear_operator.utils.warnings.NumericalWarning")  # close candidates
@pytest.mark.parametrize("name", ["qLogNEI", "qLogEI"])
def test_optimization(name):
    """Eight evaluations after eight random ones find a better point, with gradients through common random numbers."""
    x, y = X, Y
    for step in range(8):
        model = SingleTaskStudentTProcess(x, y)
        fit_gpytorch_mll(
            StudentTMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 30}}
        )
        sampler = SobolQMCNormalSampler(torch.Size([32]), seed=step)
        acquisition = (
            qLogNoisyExpectedImprovement(model, X_baseline=x, sampler=sampler)
            if name == "qLogNEI"
            else qLogExpectedImprovement(model, best_f=y.max(), sampler=sampler)
        )
        new, value = optimize_acqf(
            acquisition, BOUNDS, q=1, num_restarts=1, raw_samples=16, options={"maxiter": 12, "seed": step}
        )
        assert torch.isfinite(value).all()
        x, y = torch.cat([x, new]), torch.cat([y, branin(new)])
    assert y.max() > Y.max() and y.max() > -3.0  # the range of the function is -308 to -0.4


def test_several_points_at_once():
    acquisition = qLogNoisyExpectedImprovement(
        make(), X_baseline=X, sampler=SobolQMCNormalSampler(torch.Size([32]), seed=0)
    )
    candidates = torch.rand(3, 2, 2, dtype=F, generator=torch.Generator().manual_seed(4)).requires_grad_()
    value = acquisition(candidates)
    assert value.shape == (3,)
    (gradient,) = torch.autograd.grad(value.sum(), candidates)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    sequential, _ = optimize_acqf(acquisition, BOUNDS, q=2, num_restarts=1, raw_samples=8, sequential=True)
    assert sequential.shape == (2, 2)


def test_no_root_is_cached():
    with pytest.warns(RuntimeWarning, match="cache_root"):
        acquisition = qLogNoisyExpectedImprovement(make(), X_baseline=X, cache_root=True)
    assert not acquisition._cache_root
    assert not qLogNoisyExpectedImprovement(make(), X_baseline=X)._cache_root


def test_what_needs_no_normality():
    model = make()
    assert torch.allclose(PosteriorMean(model)(XT.unsqueeze(1)), model.posterior(XT).mean.squeeze(-1), rtol=1e-10)
    assert torch.allclose(
        PosteriorStandardDeviation(model)(XT.unsqueeze(1)), model.posterior(XT).variance.sqrt().squeeze(-1), rtol=1e-10
    )
    assert torch.isfinite(qSimpleRegret(model)(XT)).all()
    gradient = qKnowledgeGradient(model, num_fantasies=2)
    points = torch.rand(1, 3, 2, dtype=F, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(gradient(points).sum(), points)
    assert slope[0, 0].abs().sum() > 0  # through the fantasized data


def test_model_list():
    several = ModelList(make(), make())
    posterior = several.posterior(XT)
    assert posterior.mean.shape == (3, 2)
    assert get_sampler(posterior, torch.Size([4]))(posterior).shape == (4, 3, 2)


MODEL = make()
PARTITIONING = FastNondominatedPartitioning(torch.zeros(2, dtype=F), torch.ones(1, 2, dtype=F))
ASSUME_NORMALITY = {
    "LogEI": lambda m: LogExpectedImprovement(m, best_f=0.0),
    "EI": lambda m: ExpectedImprovement(m, best_f=0.0),
    "UCB": lambda m: UpperConfidenceBound(m, beta=2.0),
    "PI": lambda m: ProbabilityOfImprovement(m, best_f=0.0),
    "qPI": lambda m: qAnalyticProbabilityOfImprovement(m, best_f=0.0),
    "entropy": lambda m: qMaxValueEntropy(m, candidate_set=X),
    "transformed": lambda m: UpperConfidenceBound(
        m, beta=1.0, posterior_transform=ScalarizedPosteriorTransform(torch.ones(1, dtype=F))
    ),
    "in a list": lambda m: ExpectedHypervolumeImprovement(ModelList(m, m), torch.zeros(2), PARTITIONING),
    "afterwards": lambda m: setattr(UpperConfidenceBound(SingleTaskGP(X, Y), beta=1.0), "model", m),
    "ModelListGP": lambda m: ModelListGP(m, SingleTaskGP(X, Y)),
}


@pytest.mark.parametrize("name", ASSUME_NORMALITY)
def test_formulas_for_normal_posteriors_are_refused(name):
    with pytest.raises(
        UnsupportedError, match="expected a model with a normal posterior, got SingleTaskStudentTProcess"
    ):
        ASSUME_NORMALITY[name](MODEL)


def test_other_models_are_left_alone():
    gp = SingleTaskGP(X, Y)
    assert torch.isfinite(UpperConfidenceBound(gp, beta=1.0)(XT.unsqueeze(1))).all()
    assert ModelListGP(gp, gp).posterior(XT).mean.shape == (3, 2)


REFUSED = {
    "two outputs": (
        lambda: SingleTaskStudentTProcess(X, Y.expand(8, 2)),
        UnsupportedError,
        r"train_Y: expected one output, got shape \(8, 2\)",
    ),
    "log": (lambda: make(outcome_transform=Log()), UnsupportedError, "expected Standardize or None, got Log"),
    "expectation": (
        lambda: MODEL.posterior(XT, posterior_transform=ExpectationPosteriorTransform(3)),
        UnsupportedError,
        "expected a ScalarizedPosteriorTransform or None, got ExpectationPosteriorTransform",
    ),
    "two weights": (
        lambda: MODEL.posterior(XT, posterior_transform=ScalarizedPosteriorTransform(torch.ones(2, dtype=F))),
        UnsupportedError,
        r"expected 1 weight, got shape \(2,\)",
    ),
    "second output": (lambda: MODEL.posterior(XT, output_indices=[1]), UnsupportedError, "one output"),
    "Gaussian likelihood": (
        lambda: make(likelihood=gpytorch.likelihoods.GaussianLikelihood()),
        TypeError,
        "likelihood: expected a StudentTProcessLikelihood",
    ),
    "noise per fantasy": (
        lambda: make().condition_on_observations(XT, branin(XT), noise=torch.ones(3, 1, dtype=F)),
        NotImplementedError,
        "noise: expected none",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
