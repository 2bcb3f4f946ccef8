"""What the regressor and the classifier share: the network's parameters, its fit and its posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .._validation import as_width, positive_number
from ..activations import Activation, get_activation
from ..commands.network import Network
from ..distributions import ScaleMixtureMultivariateNormal
from ..inference.model_parts import take_apart
from ..inference.predictor import Predictor
from ..kernels import Composition
from ..mixing import ProductGammaMixing, posterior_of_scale
from ..models import FiniteWidthProcess, NetworkFiniteWidthProcess
from ..spectra import Spectrum
from ..theories import fit_order_parameters
from ..tuning import fit_hyperparameters

PROCESSES = ("saddle", "mixture", "infinite_width")
_CHUNK = 1000  # rows predicted at a time


class NetworkEstimator(BaseEstimator):
    """Base of the estimators; :class:`PropKernelRegressor` documents the parameters."""

    def __init__(
        self,
        *,
        activation: str | Activation = "relu",
        width: float | Sequence[float] | None = 100,
        weight_variance: float | Sequence[float] = 1.0,
        bias_variance: float | Sequence[float] = 1.0,
        temperature: float | str = 0.01,
        process: str = "saddle",
        composition: str | Composition = "outer",
    ) -> None:
        """Store the parameters unchanged, as scikit-learn asks; :meth:`fit` checks them."""
        self.activation = activation
        self.width = width
        self.weight_variance = weight_variance
        self.bias_variance = bias_variance
        self.temperature = temperature
        self.process = process
        self.composition = composition

    def _network(self) -> tuple[Network, bool]:
        """Return the network that the parameters describe, and whether its temperature is to be fitted."""
        if self.process not in PROCESSES:
            raise ValueError(f"process: expected one of {PROCESSES}, got {self.process!r}")
        automatic = isinstance(self.temperature, str)
        if automatic and self.temperature != "auto":
            raise ValueError(f"temperature: expected a number > 0 or 'auto', got {self.temperature!r}")
        width = as_width(math.inf if self.width is None else self.width, torch.float64)
        if self.process == "infinite_width":
            width = torch.full_like(width, torch.inf)
        network = Network(
            activation=get_activation(self.activation),
            width=tuple(width.tolist()),
            temperature=0.01 if automatic else positive_number("temperature", self.temperature),  # type: ignore[arg-type]
            weight_variance=tuple(np.atleast_1d(self.weight_variance).tolist()),
            bias_variance=tuple(np.atleast_1d(self.bias_variance).tolist()),
            composition=self.composition,  # type: ignore[arg-type]
        )
        return network, automatic

    def _fit_network(self, X: np.ndarray, y: np.ndarray) -> None:
        """Fit the temperature if asked to, solve the order parameters, and condition on the data."""
        network, automatic = self._network()
        inputs, targets = torch.tensor(X), torch.tensor(y)
        model = network.model(inputs, targets)
        if self.process == "mixture":
            if not model.covar_module.is_scalar:
                raise ValueError(
                    "process: expected 'saddle' or 'infinite_width' with a composition in which more than the product "
                    f"of the order parameters enters, here {self.composition!r}, got 'mixture'"
                )
            model = NetworkFiniteWidthProcess(inputs, targets, model.likelihood, model.covar_module)
        if automatic:
            evidence = "mixture" if self.process == "mixture" else "saddle"
            fit_hyperparameters(model, train=("temperature",), evidence=evidence)
        with torch.no_grad():
            # The fit of the temperature has given its warnings already.
            self.solution_ = fit_order_parameters(model, warn=not automatic)
            self.model_ = model.eval()
            if isinstance(model, FiniteWidthProcess):
                model.scale_posterior()
            else:
                self._predictor = Predictor(take_apart(model))
        self.temperature_ = model.likelihood.noise.item()
        self.order_parameter_ = self.solution_.order_parameter.numpy()
        self.reliability_ = self.solution_.reliability

    @property
    def log_evidence_(self) -> float:
        """Return log p(y) of the targets that the network is fitted to, with the scale integrated over its prior.

        It is computed when it is asked for, with one reduction of the kernel matrix.

        Raises:
            ValueError: A composition in which order parameters enter other than through their product.
        """
        check_is_fitted(self, "model_")
        if isinstance(self.model_, FiniteWidthProcess):
            return float(self.model_.scale_posterior().log_evidence)
        with torch.no_grad():
            problem = take_apart(self.model_).scalar_problem()
            spectrum = Spectrum.from_kernel(problem.kernel_matrix, problem.residuals, base=problem.base)
            law = ProductGammaMixing(self.model_.covar_module.width.squeeze(-2))
            return float(posterior_of_scale(spectrum, law, problem.temperature).log_evidence)

    def _points(self, X: Any) -> Tensor:
        """Check test inputs."""
        check_is_fitted(self, "model_")
        return torch.tensor(validate_data(self, X, reset=False, dtype=np.float64))

    @torch.no_grad()
    def _posterior(self, x: Tensor, joint: bool = False) -> ScaleMixtureMultivariateNormal:
        """Return the posterior of f, in units of the fitted targets; at the saddle, a mixture of one component."""
        if isinstance(self.model_, FiniteWidthProcess):
            return self.model_.predict(x, "mixture", joint=joint)
        mean, spread = self._predictor.predict(x, joint)
        spreads = {"covariance" if joint else "variance": spread.unsqueeze(0)}
        return ScaleMixtureMultivariateNormal(mean.new_zeros(1), mean.unsqueeze(0), **spreads)

    def _marginals(
        self, X: Any, quantities: Callable[[ScaleMixtureMultivariateNormal], tuple[Tensor, ...]]
    ) -> list[np.ndarray]:
        """Return quantities of the posterior of f at each point on its own, in bounded memory."""
        pieces = [quantities(self._posterior(rows)) for rows in self._points(X).split(_CHUNK)]
        return [torch.cat(column).numpy() for column in zip(*pieces, strict=True)]
