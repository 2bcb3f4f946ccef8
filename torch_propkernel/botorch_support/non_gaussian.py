"""Keeps formulas for normal distributions away from models whose posterior is not normal."""

from __future__ import annotations

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
from botorch.exceptions import UnsupportedError
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
)
_NEED_MOMENTS_ONLY = (PosteriorMean, ScalarizedPosteriorMean, PosteriorStandardDeviation)


class NonGaussianModel:
    """Marks a BoTorch model whose posterior is not normal, whatever its mean and variance.

    Marked models are refused, with an ``UnsupportedError``, by every acquisition function of BoTorch that puts the mean
    and the variance into formulas for a normal distribution (``LogExpectedImprovement``, ``UpperConfidenceBound``,
    entropy searches, ...: the result would be wrong without a sign of it), and by ``ModelListGP``, which would make a
    normal of their posteriors. The check runs when such a function or list is given the model, also inside a
    ``ModelList``. Monte Carlo acquisition functions, and those that need nothing but moments (``PosteriorMean``), work.

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
