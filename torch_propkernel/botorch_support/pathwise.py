"""Keeps BoTorch's sample paths, which condition a normal process, away from processes whose posterior is not normal."""

from __future__ import annotations

from typing import Any, NoReturn

from botorch.exceptions import UnsupportedError
from botorch.sampling.pathwise.posterior_samplers import DrawMatheronPaths
from botorch.sampling.pathwise.prior_samplers import DrawKernelFeaturePaths
from botorch.sampling.pathwise.update_strategies import GaussianUpdate
from gpytorch.likelihoods import _GaussianLikelihoodBase

from ..models import FiniteNetworkProcess, FiniteWidthProcess, StudentTProcess


def _refuse_paths(model: Any, *_: Any, **__: Any) -> NoReturn:
    raise UnsupportedError(
        f"pathwise sampling: expected a normal process, got {type(model).__name__}; draw from its joint "
        "posterior instead: model.posterior(X).rsample(), or botorch.generation.MaxPosteriorSampling for Thompson "
        "sampling"
    )


# BoTorch's own way in: the entry of the nearest class is taken, before that of ExactGP.
for _process in (FiniteNetworkProcess, FiniteWidthProcess, StudentTProcess):
    DrawMatheronPaths.register(_process)(_refuse_paths)
    DrawKernelFeaturePaths.register(_process)(_refuse_paths)
    GaussianUpdate.register(_process, _GaussianLikelihoodBase)(_refuse_paths)
