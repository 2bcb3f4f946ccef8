"""What the regressor and the classifier share: the network's parameters, its fit and its posterior."""

from __future__ import annotations

import dataclasses
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

from .._validation import as_width, positive_number
from ..activations import Activation, get_activation
from ..distributions import ScaleMixtureMultivariateNormal
from ..exceptions import ReliabilityWarning
from ..inference import Problem
from ..inference.units import Normalization
from ..kernels import Composition
from ..kernels.compositions import get_composition
from ..models import NetworkGP
from ..reliability import Reliability
from ..theories import FittedOutputs, FittedTheory, SaddlePoint, Sampled, Theory, get_theory
from ..tuning import NetworkFit, NetworkPredictor, fit_network, fit_predictor
from ..tuning.predictor import WIDTH

AUTO = "auto"
UNRELIABLE = (
    "the theory is likely to be off by more than 5 % here; reliability_ has the score and what was measured at such "
    "scores. Leave theory='auto', which samples the network itself"
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
        activation: str | Activation = "erf",
        width: float | Sequence[float] | None = None,
        depth: int | None = None,
        temperature: float | None = None,
        weight_variance: float | Sequence[float] | None = None,
        bias_variance: float | Sequence[float] | None = None,
        ard_weights: float | Sequence[float] | None = None,
        theory: str | Theory = "auto",
        hyperparameters: str | NetworkFit = "auto",
        composition: str | Composition = "outer",
        normalize_X: bool = True,
        tuning_rows: int | None = 1000,
        time_limit: float | None = None,
        random_state: Any = None,
    ) -> None:
        """Store the parameters unchanged, as scikit-learn asks; :meth:`fit` checks them."""
        self.activation = activation
        self.width = width
        self.depth = depth
        self.temperature = temperature
        self.weight_variance = weight_variance
        self.bias_variance = bias_variance
        self.ard_weights = ard_weights
        self.theory = theory
        self.hyperparameters = hyperparameters
        self.composition = composition
        self.normalize_X = normalize_X
        self.tuning_rows = tuning_rows
        self.time_limit = time_limit
        self.random_state = random_state

    def _fit_network(self, X: np.ndarray, y: np.ndarray, normalize_y: bool) -> None:
        """Bring the data (targets ``P`` or ``P x D``) to the model's units, then fit and choose."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        theory = self._theory(seed)
        widths, composition = self._widths(), get_composition(self.composition)
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
        self.normalization_ = units
        options = {**self._given(), "max_rows": self.tuning_rows, "seed": seed}
        alike = widths is None or bool((widths == widths[0]).all())
        if alike and (theory == AUTO or isinstance(theory, Sampled)):
            self._choose(x, targets, theory, widths, options)
        else:
            self._solve(x, targets, get_theory(theory), widths, composition, options)
        values = [{name: value.numpy() for name, value in fit.order_parameters.items()} for fit in self.fits_]
        shared = set.intersection(*(set(each) for each in values))
        self.order_parameters_ = values[0]
        if not self._is_joint:
            self.order_parameters_ = {
                name: self._of_targets([each[name] for each in values]) for name in values[0] if name in shared
            }
        reliabilities = [fit.reliability for fit in self.fits_]
        single = units.target_mean.dim() == 0 or self._is_joint
        self.reliability_: Any = reliabilities[0] if single else reliabilities
        priors = [self.hyperparameters_] if isinstance(self.hyperparameters_, NetworkFit) else self.hyperparameters_
        if any(prior.search is not None and not prior.search.converged for prior in priors):
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=3)
        for fit in self.fits_:
            if fit.stats.get("converged") is False:
                warnings.warn(fit.message, ConvergenceWarning, stacklevel=3)
        if any(isinstance(note, Reliability) and note.reliable is False for note in reliabilities):
            warnings.warn(ReliabilityWarning(UNRELIABLE), stacklevel=3)

    def _theory(self, seed: int) -> str | Theory:
        """Return "auto" or the theory; one that is given by name gets the seed and the time limit, if it has such."""
        if self.theory == AUTO:
            return AUTO
        theory = get_theory(self.theory)
        if isinstance(self.theory, str):
            limits = {"seed": seed, "time_limit": self.time_limit}
            theory = type(theory)(**{name: value for name, value in limits.items() if name in vars(theory)})
        return theory

    def _widths(self) -> Tensor | None:
        """Return the widths of all layers; None to choose."""
        depth = self.depth
        if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
            raise ValueError(f"depth: expected a whole number >= 1 or None, got {depth!r}")
        if self.width is None:
            return None
        widths = as_width(self.width, torch.float64)
        if depth not in (None, len(widths)) and len(widths) > 1:
            raise ValueError(f"width: expected 1 or {depth} numbers, one for each hidden layer, got {self.width!r}")
        return widths if depth is None else widths.expand(depth)

    def _given(self) -> dict[str, Any]:
        """Return temperature and variances that are not to be fitted, and None for the others."""
        names = ("temperature", "weight_variance", "bias_variance", "ard_weights")
        given = {name: getattr(self, name) for name in names}
        fit = self.hyperparameters
        if isinstance(fit, NetworkFit):
            if repr(fit.activation) != repr(get_activation(self.activation)):
                raise ValueError(f"hyperparameters: expected those of {self.activation!r}, got {fit.activation!r}")
            known = dataclasses.asdict(dataclasses.replace(fit, search=None)) | {"ard_weights": fit.ard_weights or 1.0}
            return {name: known[name] if value is None else value for name, value in given.items()}
        if fit != AUTO:
            raise ValueError(f"hyperparameters: expected 'auto' or a NetworkFit, got {fit!r}")
        return given

    def _choose(
        self, x: Tensor, targets: Tensor, theory: str | Theory, widths: Tensor | None, options: dict[str, Any]
    ) -> None:
        """Fit a predictor for each target, and choose its width and temperature where they are free."""
        columns = torch.atleast_2d(targets)
        limit = None if self.time_limit is None else positive_number("time_limit", self.time_limit) / len(columns)
        depth = len(widths) if widths is not None else self.depth or 1
        self.predictors_: list[NetworkPredictor] | None = [
            fit_predictor(
                x,
                target,
                self.activation,
                depth,
                width=None if widths is None else float(widths[0]),
                theory=theory,
                time_limit=limit,
                **options,
            )
            for target in columns
        ]
        self.fits_ = [predictor.fitted for predictor in self.predictors_]
        chosen = [next(one for one in predictor.candidates if one.chosen) for predictor in self.predictors_]
        priors = [predictor.prior for predictor in self.predictors_]
        self.hyperparameters_: Any = priors[0] if targets.dim() == 1 else priors
        self.temperature_: Any = self._of_targets([np.asarray(one.temperature) for one in chosen])[()]

    def _solve(
        self,
        x: Tensor,
        targets: Tensor,
        theory: Theory,
        widths: Tensor | None,
        composition: Composition,
        options: dict[str, Any],
    ) -> None:
        """Fit hyperparameters that all targets share at infinite width, then one theory at the given width."""
        columns = torch.atleast_2d(targets)
        size = (self.depth or 1,) if widths is None else widths.shape
        width = torch.full(size, float(WIDTH), dtype=torch.float64) if widths is None else widths
        # Only at the saddle point are the outputs of one network correlated, and its matrix theory is the outer one.
        outer = len(width) == 1 or composition == get_composition("outer")
        joint = len(columns) > 1 and isinstance(theory, SaddlePoint) and outer

        def model(prior: NetworkFit) -> NetworkGP:
            return (
                prior.multitask_model(x, columns.mT, width) if joint else prior.model(x, columns[0], width, composition)
            )

        depth = len(width)
        found = fit_network(
            x, targets, self.activation, depth, check=lambda first: theory.check(model(first)), **options
        )
        if joint:
            self.fits_ = [theory.fit(model(found))]
        else:
            problem = Problem.frozen(model(found))
            with torch.no_grad():
                self.fits_ = [theory.fit(problem.with_targets(target)) for target in columns]
        self.predictors_ = None
        self.hyperparameters_ = found
        self.temperature_ = found.temperature

    @property
    def _is_joint(self) -> bool:
        """Whether one fit has all targets, as the outputs of one network."""
        return isinstance(self.fits_[0], FittedOutputs)

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
        self, x: Tensor, quantities: Callable[[ScaleMixtureMultivariateNormal], tuple[Tensor, ...]]
    ) -> list[np.ndarray]:
        """Return quantities of the posterior of f at each point on its own, ``m`` or ``m x D``, in bounded memory."""
        chunks = x.split(_CHUNK)
        # All targets of a chunk, one after the other, share the kernel at its points.
        pieces = [[quantities(each) for fit in self.fits_ for each in posteriors(fit, rows)] for rows in chunks]
        columns = [
            [torch.cat(column).numpy() for column in zip(*of_target, strict=True)]
            for of_target in zip(*pieces, strict=True)
        ]
        return [self._of_targets(values, axis=-1) for values in zip(*columns, strict=True)]


@torch.no_grad()
def posterior(fit: FittedTheory, x: Tensor, joint: bool = False) -> ScaleMixtureMultivariateNormal:
    """Return the posterior of f in the model's units; a normal one is a mixture of one component.

    With ``joint`` that of all outputs of a network together, the output index the fast one.
    """
    found = fit.distribution(x, joint)
    if isinstance(found, ScaleMixtureMultivariateNormal):
        return found
    spread = {"covariance": found.covariance_matrix} if joint else {"variance": found.variance}
    component = {kind: value.unsqueeze(0) for kind, value in spread.items()}
    return ScaleMixtureMultivariateNormal(found.loc.new_zeros(1), found.loc.unsqueeze(0), **component)


@torch.no_grad()
def posteriors(fit: FittedTheory, x: Tensor, joint: bool = False) -> list[ScaleMixtureMultivariateNormal]:
    """Return the posterior of each target of a fit by itself."""
    if not isinstance(fit, FittedOutputs):
        return [posterior(fit, x, joint)]
    means, spreads = fit.conditioned.moments(fit.problem.points(x), joint)
    kind = "covariance" if joint else "variance"
    return [
        ScaleMixtureMultivariateNormal(mean.new_zeros(1), mean, **{kind: spread})
        for mean, spread in zip(means, spreads, strict=True)
    ]
