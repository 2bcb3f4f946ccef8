"""What BoTorch would compute with formulas for a normal process is refused; what is exact goes on working."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import botorch.acquisition
import pytest
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance
from botorch.acquisition.preference import PairwiseBayesianActiveLearningByDisagreement
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.cross_validation import batch_cross_validation, efficient_loo_cv, gen_loo_cv_folds, loo_cv
from botorch.exceptions import UnsupportedError
from botorch.generation import MaxPosteriorSampling
from botorch.models import SingleTaskGP
from botorch.models.deterministic import FixedSingleSampleModel
from botorch.sampling.pathwise import (
    draw_kernel_feature_paths,
    draw_matheron_paths,
    gaussian_update,
    get_matheron_path_model,
)
from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import ExactMarginalLogLikelihood

from torch_propkernel import FiniteWidthMarginalLogLikelihood, StudentTMarginalLogLikelihood
from torch_propkernel.botorch_support import (
    SingleTaskFiniteNetworkGP,
    SingleTaskFiniteWidthGP,
    SingleTaskStudentTProcess,
)
from torch_propkernel.botorch_support.non_gaussian import _ASSUME_NORMALITY, _NEED_MOMENTS_ONLY

F = torch.float64
X = torch.rand(6, 2, generator=torch.Generator().manual_seed(0), dtype=F)
Y = torch.sin(6 * X[:, :1]) + X[:, 1:] ** 2


def finite_width(x=X, y=Y):
    return SingleTaskFiniteWidthGP(x, y, 6.0)


def finite_network(x=X, y=Y):
    return SingleTaskFiniteNetworkGP(x, y, 6.0, theory="mixture")


def student_t(x=X, y=Y):
    return SingleTaskStudentTProcess(x, y)


def objective_of_a_gp(model):
    return ExactMarginalLogLikelihood(model.likelihood, model)(model(*model.train_inputs), model.train_targets)


NO_NORMAL_PRIOR = "must return a MultivariateNormal, got NormalGivenScale"
PATHS = "pathwise sampling: expected a normal process, got SingleTask"
POSTERIOR = "expected a model with a normal posterior, got SingleTask"
REFUSED = {
    "loo_cv": (loo_cv, NO_NORMAL_PRIOR),
    "efficient_loo_cv": (efficient_loo_cv, NO_NORMAL_PRIOR),
    "draw_matheron_paths": (lambda m: draw_matheron_paths(m, torch.Size([2])), PATHS),
    "draw_kernel_feature_paths": (lambda m: draw_kernel_feature_paths(m, torch.Size([2])), PATHS),
    "gaussian_update": (lambda m: gaussian_update(m, torch.zeros(2, 6, dtype=F)), PATHS),
    "get_matheron_path_model": (get_matheron_path_model, PATHS),
    "PathwiseThompsonSampling": (PathwiseThompsonSampling, POSTERIOR),
    "qNegIntegratedPosteriorVariance": (lambda m: qNegIntegratedPosteriorVariance(m, X), POSTERIOR),
    "BALD of preferences": (PairwiseBayesianActiveLearningByDisagreement, POSTERIOR),
    "FixedSingleSampleModel": (FixedSingleSampleModel, POSTERIOR),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_a_network(name, training):
    """Its objective is a normal one, that of the infinite width; its posterior is none."""
    call, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        call(finite_network().train(training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [finite_width, student_t])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, make, training):
    call, message = REFUSED[name]
    model = make().train(training)
    with pytest.raises(UnsupportedError, match=message):
        call(model)
    with pytest.raises(RuntimeError, match="can only operate on Gaussian random variables"):
        objective_of_a_gp(model.train())


@pytest.mark.parametrize("name", ["loo_cv", "draw_matheron_paths", "qNegIntegratedPosteriorVariance"])
def test_gaussian_processes_are_left_alone(name):
    REFUSED[name][0](SingleTaskGP(X, Y).eval())


@pytest.mark.parametrize("make", [finite_width, student_t, finite_network])
def test_samples_of_the_posterior_work(make):
    chosen = MaxPosteriorSampling(make())(X, num_samples=3)
    assert chosen.shape == (3, 2)


@pytest.mark.parametrize(
    ("make", "objective", "options"),
    [
        (SingleTaskFiniteWidthGP, FiniteWidthMarginalLogLikelihood, {"width": 6.0}),
        (SingleTaskStudentTProcess, StudentTMarginalLogLikelihood, {}),
    ],
)
def test_batch_cross_validation_fits_each_fold_and_predicts_with_its_own_law(make, objective, options):
    folds = gen_loo_cv_folds(X, Y)
    few = {"optimizer_kwargs": {"options": {"maxiter": 3}}}
    found = batch_cross_validation(make, objective, folds, few, observation_noise=True, model_init_kwargs=dict(options))
    assert found.posterior.mean.shape == (6, 1, 1)
    state = found.model.state_dict()
    started = make(folds.train_X, folds.train_Y, **options)
    for i in (0, 3):
        alone = make(folds.train_X[i], folds.train_Y[i], **options)
        own = {k: v[i] if v.dim() > alone.state_dict()[k].dim() else v for k, v in state.items()}
        alone.load_state_dict(own)
        posterior = alone.posterior(folds.test_X[i], observation_noise=True)
        torch.testing.assert_close(found.posterior.mean[i], posterior.mean, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found.posterior.variance[i], posterior.variance, rtol=1e-8, atol=1e-10)
    values = [
        objective(m.likelihood, m)(m(*m.train_inputs), m.train_targets) for m in (started.train(), found.model.train())
    ]
    assert (values[1] > values[0]).all()


# Read one by one: they draw samples from the posterior, condition fantasies on the joined data, need the mean only, or
# wrap a function that is checked itself.
WORK = {
    "DecoupledAcquisitionFunction FixedFeatureAcquisitionFunction FullyBayesianAcquisitionFunction",
    "LogImprovementMCAcquisitionFunction MCAcquisitionFunction MOMF MultiModelAcquisitionFunction",
    "MultiObjectiveMCAcquisitionFunction MultiOutputAcquisitionFunction MultiOutputAcquisitionFunctionWrapper",
    "MultiOutputPosteriorMean OneShotAcquisitionFunction PairwiseMCPosteriorVariance PenalizedAcquisitionFunction",
    "PriorGuidedAcquisitionFunction ProjectedAcquisitionFunction ProximalAcquisitionFunction",
    "SampleReducingMCAcquisitionFunction qExpectedHypervolumeImprovement qExpectedImprovement",
    "qExpectedUtilityOfBestOption qHypervolumeKnowledgeGradient qKnowledgeGradient",
    "qLogExpectedHypervolumeImprovement qLogExpectedImprovement qLogNParEGO qLogNoisyExpectedHypervolumeImprovement",
    "qLogNoisyExpectedImprovement qLogProbabilityOfFeasibility qLowerConfidenceBound",
    "qMultiFidelityHypervolumeKnowledgeGradient qMultiFidelityKnowledgeGradient qMultiStepLookahead",
    "qNoisyExpectedHypervolumeImprovement qNoisyExpectedImprovement qPosteriorStandardDeviation",
    "qProbabilityOfImprovement qSimpleRegret qUpperConfidenceBound",
    # It refuses by itself what is not fully Bayesian.
    "qBayesianActiveLearningByDisagreement",
}


def test_every_acquisition_function_of_botorch_has_been_read():
    """A new one belongs into the list above or among the refused ones, once its formulas have been read."""
    for module in pkgutil.walk_packages(botorch.acquisition.__path__, "botorch.acquisition."):
        importlib.import_module(module.name)
    found, left = set(), [AcquisitionFunction]
    while left:
        below = [c for c in left.pop().__subclasses__() if c.__module__.startswith("botorch.")]
        left += below
        found |= set(below)
    refused = {c for c in found if issubclass(c, _ASSUME_NORMALITY)}
    known = set(" ".join(WORK).split()) | {c.__name__ for c in refused | set(_NEED_MOMENTS_ONLY)}
    assert sorted(c.__name__ for c in found if c.__name__ not in known) == []
    assert len([c for c in refused if not inspect.isabstract(c)]) > 20


@pytest.mark.parametrize("make", [finite_width, student_t])
def test_the_prior_is_no_normal_but_knows_one(make):
    model = make().eval()
    prior = model.forward(X)
    assert not isinstance(prior, MultivariateNormal) and isinstance(prior.normal, MultivariateNormal)
    torch.testing.assert_close(prior.covariance_matrix, model.covar_module(X).to_dense(), rtol=1e-12, atol=0)
    torch.testing.assert_close(prior.variance, prior.covariance_matrix.diagonal(), rtol=1e-12, atol=0)
    assert torch.equal(prior.loc, prior.mean) and torch.equal(prior.mean, model.mean_module(X))
