"""Regression with a Bayesian network of finite width, as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .network_estimator import NetworkEstimator


class PropKernelRegressor(RegressorMixin, NetworkEstimator):
    r"""Regression with a Bayesian neural network of finite width: the renormalized kernel as a scikit-learn estimator.

    .. math:: E[f(x)] = \Gamma = q\, k^T A^{-1} y, \qquad \mathrm{Var}[f(x)] = \sigma^2 = q\, k_{xx} - q^2\, k^T A^{-1}
              k, \qquad A = T 1 + q K

    K is the covariance of the infinitely wide network (:class:`NNGPKernel`), k and k_xx its entries at the test point,
    q the order parameter that minimizes the effective action (:func:`fit_order_parameters`), T the variance of the
    noise. :meth:`fit` solves for q; nothing is trained by gradient steps unless ``temperature="auto"``.

    Units: with ``normalize_y`` the targets are shifted and divided by their standard deviation on the training data
    (by one if they are constant); the temperature and the prior variances are in those units. Inputs are used as they
    are: put a ``StandardScaler`` before this estimator in a ``Pipeline``. Columns that are constant need no care: they
    act as a bias. Prior variances are 1/lambda_l; layers divide by the square root of their fan-in.

    The spread that :meth:`predict` returns is that of a new noisy target, T included, as
    ``GaussianProcessRegressor``'s with a ``WhiteKernel`` in it; ``include_noise=False`` leaves T out.

    Not included: several targets, sample weights, missing values, sparse inputs; a prior mean other than the targets'.

    Accuracy: computed in float64 whatever the inputs' dtype, and returned in float64; exact to rounding for the given
    theory, of which THEORY.md, section 7, says where it fails (``reliability_``). Cost: about ten Cholesky
    factorizations of the P x P kernel matrix, then P^2 m for m test points (1000 at a time); ``"mixture"`` one ``eigh``
    and P m for each of some dozens of nodes.

    Args:
        activation: A name in ``torch_propkernel.activations.ACTIVATIONS`` or an :class:`Activation`.
        width: Width of the hidden layer, one number for each of several, ``math.inf`` or None for infinite width.
        weight_variance: w_0, ..., w_L: one number or L + 1.
        bias_variance: b_0, ..., b_{L-1}: one number or L; zero for no bias.
        temperature: T > 0, or ``"auto"``: the value of highest evidence (:func:`fit_hyperparameters`), with everything
            else fixed.
        process: ``"saddle"``: the normal posterior at the solved q. ``"mixture"``: the scale behind q is integrated
            over its posterior (:class:`FiniteWidthProcess`). ``"infinite_width"``: q = 1, the baseline.
        composition: How the order parameters of several layers enter; ``"mixture"`` needs the default.
        normalize_y: Standardize the targets. It is True here, unlike in ``GaussianProcessRegressor``: the prior is for
            targets of unit variance.

    Attributes:
        order_parameter_: q_1, ..., q_L at the saddle, shape (L,); ones for infinite width.
        solution_: The :class:`Solution`: its outcome, other stationary points, statistics.
        temperature_: T, in units of the standardized targets.
        reliability_: The :class:`Reliability` note on the regime; :meth:`fit` warns if it is not reliable.
        log_evidence_: log p(y) of the standardized targets, integrated over the scale; computed when asked for.
        model_: The GPyTorch model.
        target_mean_: Mean of the targets that was subtracted.
        target_scale_: Standard deviation by which they were divided.
        n_features_in_: Number of inputs.
        feature_names_in_: Names of the inputs, if X had string column names.

    Raises:
        ValueError: Parameters out of range and data that scikit-learn refuses; from :meth:`fit`.
        ConvergenceError: The order parameters were not found.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497 (arXiv:2209.04882); THEORY.md, eqs. (1), (2),
    (4), (7).

    Example:
        >>> import numpy as np
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 3))
        >>> y = np.abs(X[:, 0]) + X[:, 1] + 0.3 * rng.normal(size=80)
        >>> model = make_pipeline(StandardScaler(), PropKernelRegressor(width=1000, temperature=0.1))
        >>> mean, std = model.fit(X[:60], y[:60]).predict(X[60:], return_std=True)
        >>> model.score(X[60:], y[60:]) > 0.8, bool((np.abs(mean - y[60:]) < 4 * std).all())
        (True, True)
    """

    def __init__(
        self,
        *,
        activation: Any = "relu",
        width: Any = 100,
        weight_variance: Any = 1.0,
        bias_variance: Any = 1.0,
        temperature: Any = 0.01,
        process: str = "saddle",
        composition: Any = "outer",
        normalize_y: bool = True,
    ) -> None:
        """Store the parameters unchanged."""
        super().__init__(
            activation=activation,
            width=width,
            weight_variance=weight_variance,
            bias_variance=bias_variance,
            temperature=temperature,
            process=process,
            composition=composition,
        )
        self.normalize_y = normalize_y

    def fit(self, X: Any, y: Any) -> PropKernelRegressor:
        """Solve the order parameters and condition on the data.

        Args:
            X: Inputs, shape (P, N_0).
            y: Targets, shape (P,).
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        self.target_mean_ = float(y.mean()) if self.normalize_y else 0.0
        spread = float(y.std()) if self.normalize_y else 1.0
        # Targets that are constant to rounding keep their units.
        self.target_scale_ = spread if spread > 10 * np.finfo(np.float64).eps * abs(self.target_mean_) else 1.0
        self._fit_network(X, (y - self.target_mean_) / self.target_scale_)
        return self

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False, include_noise: bool = True
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the mean of the posterior at X, and its spread if that is asked for, in the targets' own units.

        Args:
            X: Inputs, shape (m, N_0).
            return_std: Return the standard deviations too, shape (m,).
            return_cov: Return the covariance between the points instead, shape (m, m).
            include_noise: The spread is that of a new noisy target (T included), else that of the network's output.

        Raises:
            ValueError: Both spreads are asked for.
        """
        if return_std and return_cov:
            raise ValueError("return_std, return_cov: expected at most one of them, got both")
        check_is_fitted(self, "model_")
        noise = self.temperature_ if include_noise else 0.0
        if return_cov:
            joint = self._posterior(self._points(X), joint=True)
            covariance = joint.covariance_matrix.numpy() + noise * np.eye(joint.event_shape[0])
            return self._in_own_units(joint.mean.numpy()), covariance * self.target_scale_**2
        mean, variance = self._marginals(X, lambda posterior: (posterior.mean, posterior.variance))
        mean = self._in_own_units(mean)
        return (mean, np.sqrt(variance + noise) * self.target_scale_) if return_std else mean

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0, include_noise: bool = True) -> np.ndarray:
        """Draw targets at X jointly from the posterior, shape (m, n_samples), in the targets' own units.

        Args:
            X: Inputs, shape (m, N_0).
            n_samples: Number of draws.
            random_state: Seed, ``RandomState`` or None, as everywhere in scikit-learn; torch's own generator is left as
                it was.
            include_noise: Draw noisy targets, else outputs of the network, to 1e-6 of the prior's deviation.
        """
        x = self._points(X)
        with torch.no_grad():
            # The covariance of f at known points is a small difference of large numbers: keep it positive definite.
            noise = self.temperature_ if include_noise else 1e-12 * float(self.model_.forward(x).variance.max())
            posterior = self._posterior(x, joint=True).add_noise(x.new_full((len(x),), noise))
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            samples = posterior.rsample(torch.Size([n_samples]))
        return self._in_own_units(samples.T.numpy())

    def _in_own_units(self, value: np.ndarray) -> np.ndarray:
        return self.target_mean_ + self.target_scale_ * value
