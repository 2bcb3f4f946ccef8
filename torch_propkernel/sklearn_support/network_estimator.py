"""What the regressor and the classifier share: the network's parameters, its fit and its posterior."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .._validation import as_width
from ..activations import Activation
from ..distributions import ScaleMixtureMultivariateNormal
from ..exceptions import ReliabilityWarning
from ..inference import Problem
from ..inference.units import Normalization
from ..kernels import Composition
from ..kernels.compositions import get_composition
from ..reliability import Reliability
from ..theories import FittedTheory, Theory, get_theory
from ..tuning import fit_network

UNRELIABLE = (
    "the theory is likely to be off by more than 5 % here; reliability_ has the score and what was measured at such "
    "scores. To decide, sample the network itself (compare_with_network), or use theory='free_scale'"
)
NOT_CONVERGED = (
    "the search for hyperparameters did not end at a maximum of the evidence; the best values it saw are used, and "
    "hyperparameters_.search says more"
)
_CHUNK = 1000  # rows predicted at a time


class NetworkEstimator(BaseEstimator):
    """Base of the estimators; :class:`PropKernelRegressor` documents the parameters."""

    def __init__(
        self,
        *,
        activation: str | Activation = "relu",
        width: float | Sequence[float] | None = 100,
        temperature: float | None = None,
        weight_variance: float | Sequence[float] | None = None,
        bias_variance: float | Sequence[float] | None = None,
        ard_weights: float | Sequence[float] | None = None,
        theory: str | Theory = "saddle",
        composition: str | Composition = "outer",
        normalize_X: bool = True,
        tuning_rows: int | None = 1000,
        random_state: Any = 0,
    ) -> None:
        """Store the parameters unchanged, as scikit-learn asks; :meth:`fit` checks them."""
        self.activation = activation
        self.width = width
        self.temperature = temperature
        self.weight_variance = weight_variance
        self.bias_variance = bias_variance
        self.ard_weights = ard_weights
        self.theory = theory
        self.composition = composition
        self.normalize_X = normalize_X
        self.tuning_rows = tuning_rows
        self.random_state = random_state

    def _fit_network(self, X: np.ndarray, y: np.ndarray, normalize_y: bool) -> None:
        """Bring the data (targets ``P`` or ``P x D``) to the model's units, fit hyperparameters, then the theory."""
        theory, composition = get_theory(self.theory), get_composition(self.composition)
        width = as_width(math.inf if self.width is None else self.width, torch.float64)
        x, targets = torch.tensor(X), torch.tensor(y)
        units = Normalization.of_varying(x, targets, correction=0)
        if not self.normalize_X:
            mean, scale = torch.zeros_like(units.input_mean), torch.ones_like(units.input_scale)
            units = dataclasses.replace(units, input_mean=mean, input_scale=scale)
        if not normalize_y:
            mean, scale = torch.zeros_like(units.target_mean), torch.ones_like(units.target_scale)
            units = dataclasses.replace(units, target_mean=mean, target_scale=scale)
        x, targets = units.to_model(x), units.targets.to_model(targets)
        targets = targets.mT if targets.dim() == 2 else targets
        columns = torch.atleast_2d(targets)
        found = fit_network(
            x,
            targets,
            self.activation,
            width.shape[-1],
            temperature=self.temperature,
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
            ard_weights=self.ard_weights,
            max_rows=self.tuning_rows,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            check=lambda first: theory.check(first.model(x, columns[0], width, composition)),
        )
        problem = Problem.frozen(found.model(x, columns[0], width, composition))
        with torch.no_grad():
            self.fits_ = [theory.fit(problem.with_targets(target)) for target in columns]
        self.hyperparameters_ = found
        self.temperature_ = found.temperature
        self.normalization_ = units
        values = [{name: value.numpy() for name, value in fit.order_parameters.items()} for fit in self.fits_]
        self.order_parameters_ = {name: self._of_targets([each[name] for each in values]) for name in values[0]}
        reliabilities = [fit.reliability for fit in self.fits_]
        self.reliability_: Any = reliabilities[0] if units.target_mean.dim() == 0 else reliabilities
        if found.search is not None and not found.search.converged:
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=3)
        if any(isinstance(note, Reliability) and note.reliable is False for note in reliabilities):
            warnings.warn(ReliabilityWarning(UNRELIABLE), stacklevel=3)

    def _of_targets(self, values: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
        """Return the one target's value, or those of several targets as a further axis."""
        return values[0] if self.normalization_.target_mean.dim() == 0 else np.stack(values, axis)

    @property
    def log_evidence_(self) -> float | None:
        """Return log p(y) of the targets in the model's units, added up over targets; None where the theory has none.

        By the theory: at the best scale, with the scale integrated over its posterior, or at infinite width.
        """
        check_is_fitted(self, "fits_")
        evidences = [float(fit.log_evidence) for fit in self.fits_ if fit.log_evidence is not None]
        return sum(evidences) if len(evidences) == len(self.fits_) else None

    def log_marginal_likelihood(self, theta: None = None) -> float:
        """Return ``log_evidence_`` under the name that ``GaussianProcessRegressor`` has for it.

        Args:
            theta: None: the value is that of the fitted hyperparameters.

        Raises:
            ValueError: Other hyperparameters are asked for, or the theory has no evidence.
        """
        check_is_fitted(self, "fits_")
        if theta is not None:
            raise ValueError(
                f"theta: expected None, the fitted hyperparameters, got {theta!r}; give others as parameters of the "
                "estimator and fit it"
            )
        value = self.log_evidence_
        if value is None:
            raise ValueError(f"theory: expected one with an evidence for this composition, got {self.theory!r}")
        return value

    def _points(self, X: Any) -> Tensor:
        """Check test inputs and bring them to the model's units."""
        check_is_fitted(self, "fits_")
        x = torch.tensor(validate_data(self, X, reset=False, dtype=np.float64))
        return self.normalization_.to_model(x)

    def _marginals(
        self, X: Any, quantities: Callable[[ScaleMixtureMultivariateNormal], tuple[Tensor, ...]]
    ) -> list[np.ndarray]:
        """Return quantities of the posterior of f at each point on its own, ``m`` or ``m x D``, in bounded memory."""
        chunks = self._points(X).split(_CHUNK)
        # All targets of a chunk, one after the other, share the kernel at its points.
        pieces = [[quantities(posterior(fit, rows)) for fit in self.fits_] for rows in chunks]
        columns = [
            [torch.cat(column).numpy() for column in zip(*of_target, strict=True)]
            for of_target in zip(*pieces, strict=True)
        ]
        return [self._of_targets(values, axis=-1) for values in zip(*columns, strict=True)]


@torch.no_grad()
def posterior(fit: FittedTheory, x: Tensor, joint: bool = False) -> ScaleMixtureMultivariateNormal:
    """Return the posterior of f in the model's units; a normal one is a mixture of one component."""
    found = fit.distribution(x, joint)
    if isinstance(found, ScaleMixtureMultivariateNormal):
        return found
    spread = {"covariance": found.covariance_matrix} if joint else {"variance": found.variance}
    component = {kind: value.unsqueeze(0) for kind, value in spread.items()}
    return ScaleMixtureMultivariateNormal(found.loc.new_zeros(1), found.loc.unsqueeze(0), **component)
