"""Keeps formulas for normal distributions away from models whose posterior is not normal."""

from __future__ import annotations

from botorch.acquisition.active_learning import qNegIntegratedPosteriorVariance
from botorch.acquisition.analytic import (
    AnalyticAcquisitionFunction,
    PosteriorMean,
    PosteriorStandardDeviation,
    ScalarizedPosteriorMean,
)
from botorch.acquisition.joint_entropy_search import qJointEntropySearch
from botorch.acquisition.max_value_entropy_search import MaxValueBase
from botorch.acquisition.multi_objective.base import MultiObjectiveAnalyticAcquisitionFunction
from botorch.acquisition.multi_objective.joint_entropy_search import LowerBoundMultiObjectiveEntropySearch
from botorch.acquisition.multi_objective.predictive_entropy_search import qMultiObjectivePredictiveEntropySearch
from botorch.acquisition.preference import PairwiseBayesianActiveLearningByDisagreement
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.exceptions import UnsupportedError
from botorch.models.deterministic import FixedSingleSampleModel
from botorch.models.gpytorch import ModelListGPyTorchModel
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

_ASSUME_NORMALITY = (
    AnalyticAcquisitionFunction,
    MultiObjectiveAnalyticAcquisitionFunction,
    MaxValueBase,
    qJointEntropySearch,
    LowerBoundMultiObjectiveEntropySearch,
    qMultiObjectivePredictiveEntropySearch,
    PairwiseBayesianActiveLearningByDisagreement,
    qNegIntegratedPosteriorVariance,  # the variance after a fantasy, from one fantasy: here it depends on its value
    PathwiseThompsonSampling,
    FixedSingleSampleModel,  # mean plus a normal number of standard deviations
)
_NEED_MOMENTS_ONLY = (PosteriorMean, ScalarizedPosteriorMean, PosteriorStandardDeviation)


class NonGaussianModel:
    """Marks a BoTorch model whose posterior is not normal, whatever its mean and variance.

    What works: ``posterior`` and everything that draws samples from it (``MaxPosteriorSampling``, Monte Carlo
    acquisition functions, knowledge gradients and look-ahead, whose fantasies are the process on the joined data),
    what needs nothing but moments (``PosteriorMean``, ``PosteriorStandardDeviation``), ``fit_gpytorch_mll`` with the
    model's own objective, and ``batch_cross_validation``. ``qUpperConfidenceBound`` and ``qPosteriorStandardDeviation``
    measure the spread by the mean absolute deviation times sqrt(pi / 2), which for tails heavier than a normal's is
    somewhat less than the standard deviation.

    What is refused with an ``UnsupportedError``, since the result would be wrong without a sign of it:

    - acquisition functions that put mean and variance into formulas for a normal distribution
      (``LogExpectedImprovement``, ``UpperConfidenceBound``, entropy searches, ...), and those that take the variance
      after an observation for independent of its value (``qNegIntegratedPosteriorVariance``);
    - ``ModelListGP``, which would make a normal of the posteriors (``ModelList`` does not), and
      ``FixedSingleSampleModel``;
    - ``loo_cv`` and ``efficient_loo_cv``, which condition the prior that ``forward`` returns: it is a
      :class:`~torch_propkernel.distributions.NormalGivenScale` here, no normal, and everything else that expects a
      normal there refuses it too. ``ExactMarginalLogLikelihood`` does so with a ``RuntimeError``;
    - sample paths: ``draw_matheron_paths``, ``get_matheron_path_model``, ``PathwiseThompsonSampling``.

    The acquisition functions are checked when they are given the model, also inside a ``ModelList``.

    Example:
        >>> from botorch.acquisition import UpperConfidenceBound
        >>> class Model(NonGaussianModel, nn.Module):
        ...     num_outputs = 1
        >>> try:
        ...     UpperConfidenceBound(Model(), beta=1.0)
        ... except UnsupportedError as error:
        ...     "use a Monte Carlo acquisition function" in str(error)
        True
    """

    # BoTorch's low-rank updates of samples are for normal posteriors.
    _supports_cache_root = False


def _refuse(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if not isinstance(module, (*_ASSUME_NORMALITY, ModelListGPyTorchModel)) or isinstance(module, _NEED_MOMENTS_ONLY):
        return
    if submodule is None or isinstance(module, NonGaussianModel):
        return
    found = [type(part).__name__ for part in submodule.modules() if isinstance(part, NonGaussianModel)]
    if found:
        is_list = isinstance(module, ModelListGPyTorchModel)
        advice = (
            "botorch.models.ModelList" if is_list else "a Monte Carlo acquisition function such as qLogNEI or qLogEI"
        )
        raise UnsupportedError(
            f"{type(module).__name__}: expected a model with a normal posterior, got {found[0]}; use {advice}"
        )


# torch's own hook on `module.name = submodule`: nothing of BoTorch is replaced, and a later assignment is checked too.
register_module_module_registration_hook(_refuse)
