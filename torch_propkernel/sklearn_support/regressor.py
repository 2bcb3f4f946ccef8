"""Regression with a Bayesian network of finite width, as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..inference.units import Units
from .network_estimator import NetworkEstimator, posterior, posteriors


class PropKernelRegressor(RegressorMixin, NetworkEstimator):
    r"""Regression with a Bayesian neural network whose width, prior and noise are found from the training data.

    .. math:: y = f(x) + \epsilon, \quad \epsilon \sim N(0, T), \qquad
              f = \text{network of } N \text{ hidden units with Gaussian weights},\ N \text{ finite or infinite}

    :meth:`fit` needs nothing but data. By default (``theory="auto"``) it is :func:`fit_predictor`: prior variances, ARD
    weights and T by the evidence of the infinitely wide network, then the network of 50 units itself, whose weights
    are sampled, at the T that its own evidence and four folds prefer; the infinitely wide network is kept where the
    narrow one is not better. A number that is given is never fitted. ``theory`` may also name one theory, such as
    ``"saddle"``: then the hyperparameters of the infinite width are frozen, and the theory is fitted at the given width
    (50 if none is), in seconds. In a search over a grid, do that, or give what the grid does not vary, or take the
    numbers of a fit with ``hyperparameters=other.hyperparameters_``.

    Units: inputs and targets are shifted and divided by their standard deviations on the training data (by one where
    they are constant), so that a ``StandardScaler`` before this estimator changes nothing; the temperature and the
    prior variances are in those units, predictions in the targets' own. Switch it off with ``normalize_X`` and
    ``normalize_y``; images, whose pixels have one scale, want the first. Prior variances are 1/lambda_l; layers divide
    by the square root of their fan-in.

    The spread that :meth:`predict` returns is that of a new noisy target, T included, as
    ``GaussianProcessRegressor``'s with a ``WhiteKernel`` in it; ``include_noise=False`` leaves T out. Before a fit
    there are no predictions: ``GaussianProcessRegressor`` answers from its prior there, this estimator raises
    ``NotFittedError``, since width, units and prior are known only with the data.

    Several targets, y of shape (P, D): with ``theory="saddle"`` the D outputs of one network, which its finite width
    correlates: a D x D matrix order parameter in every layer (``composition="outer"``; up to some thirty targets, a
    second for ten). With every other theory they are D independent networks; correlations between targets are left
    out. With ``theory="auto"`` or ``"sampled"`` each has its own predictor, and its share of the time limit; else they
    share all hyperparameters, fitted by the sum of their log evidences, and each has its own order parameters.

    Not included: sample weights (``fit`` takes none and says so: weights as repeated rows, which is what scikit-learn
    means by them, are not a noise variance T/w once T is fitted), missing values, sparse inputs, a prior mean other
    than the targets'.

    Accuracy: computed in float64 whatever the inputs' dtype, and returned in float64. Sampling has Monte Carlo errors,
    which ``fits_[0].stats`` tells; :meth:`fit` warns with a ``ConvergenceWarning`` where chains disagree. Of the other
    theories THEORY.md, section 7, says where they fail (``reliability_``). Cost on one CPU thread: with
    ``theory="auto"`` 10 s for 40 rows, a minute for 400; else the search for hyperparameters on at most ``tuning_rows``
    rows (1 to 20 s), and about ten Cholesky factorizations of the P x P kernel matrix for each target. Then P^2 m for m
    test points (1000 at a time), or S N (N + m) N for S = 480 networks of N units that were drawn.

    Args:
        activation: A name in ``torch_propkernel.activations.ACTIVATIONS`` or an :class:`Activation`.
        width: Width of the hidden layer, one number for each of several, ``math.inf`` for infinite width; None to
            choose between 50 and infinity (50 for a theory that is named).
        depth: Number of hidden layers, where ``width`` is None or one number for all of them; one by default.
        temperature: T > 0; None to fit it.
        weight_variance: w_0, ..., w_L: one number or L + 1; None to fit them.
        bias_variance: b_0, ..., b_{L-1}: one number or L, zero for no bias; None to fit them.
        ard_weights: Relative prior variances of the input weights: one number (all alike: no ARD) or one for each
            input; None to fit them.
        theory: ``"auto"``, or a name in ``torch_propkernel.theories.THEORIES``, such as ``"sampled"``: the network
            itself; ``"saddle"``: the normal posterior at the solved q; ``"mixture"``: the scale behind q is integrated
            over its posterior; ``"infinite_width"``: q = 1; ``"free_scale"``: q is a free scale, the baseline that
            every other has to face. Or a :class:`Theory`.
        hyperparameters: ``"auto"``: what is None is fitted; or a :class:`NetworkFit`, whose numbers it takes instead.
        composition: How the order parameters of several layers enter; ``"mixture"`` needs the default.
        normalize_X: Standardize the inputs.
        normalize_y: Standardize the targets. It is True here, unlike in ``GaussianProcessRegressor``: the prior is for
            targets of unit variance.
        tuning_rows: Largest number of rows, drawn at random, on which hyperparameters are fitted; None for all.
            Predictions use all rows.
        time_limit: Seconds that ``"auto"`` and ``"sampled"`` may take, or None; what does not fit is left out, and the
            infinite width is taken where the chains did not arrive.
        random_state: Seed of that draw, of the folds and of the chains; None for another one each time.

    Attributes:
        predictors_: The :class:`NetworkPredictor` of each target, which says what competed and why one was chosen
            (``print`` it); None for a theory that was named.
        hyperparameters_: The :class:`NetworkFit`: temperature, variances and ARD weights, given or fitted at infinite
            width, how the search went, and on how many rows; a list of them where targets have their own.
        temperature_: T, in units of the standardized targets, an array where targets have their own; the chosen one,
            which the network's own evidence may have moved from that of ``hyperparameters_``.
        order_parameters_: By name; ``"q"`` has q_1, ..., q_L, shape (L,), or (D, L) for several targets. For the
            outputs of one network ``"E"`` has E_1, ..., E_L, shape (L, D, D), and ``"Q"`` their product.
        reliability_: The :class:`Reliability` note on the regime, a list of them for several targets; :meth:`fit` warns
            if one is not reliable. None where the theory has no score; for the outputs of one network its ``reliable``
            is None.
        log_evidence_: log p(y) of the standardized targets by the theory, added up over targets, which
            :meth:`log_marginal_likelihood` returns too.
        fits_: The :class:`FittedTheory` of each target, in the model's units, or one :class:`FittedOutputs` of all.
        normalization_: The :class:`Normalization` between the user's units and the model's.
        n_features_in_: Number of inputs.
        feature_names_in_: Names of the inputs, if X had string column names.

    Raises:
        ValueError: Parameters out of range and data that scikit-learn refuses; from :meth:`fit`.
        ConvergenceError: The order parameters were not found.

    Reference: THEORY.md, section 9; Pacelli et al. (2023), Nature Machine Intelligence 5, 1497 (arXiv:2209.04882);
    THEORY.md, eqs. (1), (2), (4), (7).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 3))
        >>> y = np.abs(X[:, 0]) + X[:, 1] + 0.3 * rng.normal(size=80)
        >>> model = PropKernelRegressor(theory="infinite_width", random_state=0).fit(X[:60], y[:60])
        >>> mean, std = model.predict(X[60:], return_std=True)
        >>> model.score(X[60:], y[60:]) > 0.8, bool((np.abs(mean - y[60:]) < 4 * std).all())
        (True, True)
        >>> bool(0.15 < np.sqrt(model.temperature_) * y[:60].std() < 0.45)   # the noise, 0.3, was found
        True
    """

    def __init__(
        self,
        *,
        activation: Any = "erf",
        width: Any = None,
        depth: Any = None,
        temperature: Any = None,
        weight_variance: Any = None,
        bias_variance: Any = None,
        ard_weights: Any = None,
        theory: Any = "auto",
        hyperparameters: Any = "auto",
        composition: Any = "outer",
        normalize_X: bool = True,
        normalize_y: bool = True,
        tuning_rows: Any = 1000,
        time_limit: Any = None,
        random_state: Any = None,
    ) -> None:
        """Store the parameters unchanged."""
        super().__init__(
            activation=activation,
            width=width,
            depth=depth,
            temperature=temperature,
            weight_variance=weight_variance,
            bias_variance=bias_variance,
            ard_weights=ard_weights,
            theory=theory,
            hyperparameters=hyperparameters,
            composition=composition,
            normalize_X=normalize_X,
            tuning_rows=tuning_rows,
            time_limit=time_limit,
            random_state=random_state,
        )
        self.normalize_y = normalize_y

    def fit(self, X: Any, y: Any) -> PropKernelRegressor:
        """Fit what is not given, choose the predictor and condition it on the data.

        Args:
            X: Inputs, shape (P, N_0).
            y: Targets, shape (P,) or (P, D).
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, multi_output=True)
        self._fit_network(X, y.astype(np.float64), self.normalize_y)
        return self

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False, include_noise: bool = True
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the mean of the posterior at X, and its spread if that is asked for, in the targets' own units.

        Shapes for several targets, D of them, in brackets.

        Args:
            X: Inputs, shape (m, N_0).
            return_std: Return the standard deviations too, shape (m,), [(m, D)].
            return_cov: Return the covariance between the points instead, shape (m, m), [(m, m, D)].
            include_noise: The spread is that of a new noisy target (T included), else that of the network's output.

        Raises:
            ValueError: Both spreads are asked for.
        """
        if return_std and return_cov:
            raise ValueError("return_std, return_cov: expected at most one of them, got both")
        check_is_fitted(self, "fits_")
        noise = np.asarray(self.temperature_ if include_noise else 0.0)
        if not return_cov:
            mean, variance = self._marginals(self._points(X), lambda each: (each.mean, each.variance))
            mean, std = self._units.value(mean), self._units.deviation(np.sqrt(variance + noise))
            return (mean, std) if return_std else mean
        x = self._points(X)
        joints = [each for fit in self.fits_ for each in posteriors(fit, x, joint=True)]
        means = self._of_targets([each.mean.numpy() for each in joints], axis=-1)
        noises = np.broadcast_to(noise, (len(joints),))
        covariances = [
            each.covariance_matrix.numpy() + own * np.eye(len(means)) for each, own in zip(joints, noises, strict=True)
        ]
        return self._units.value(means), self._units.variance(self._of_targets(covariances, axis=-1))

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0, include_noise: bool = True) -> np.ndarray:
        """Draw targets at X jointly from the posterior, shape (m, n_samples) or (m, D, n_samples), in their own units.

        Args:
            X: Inputs, shape (m, N_0).
            n_samples: Number of draws.
            random_state: Seed, ``RandomState`` or None, as everywhere in scikit-learn; torch's own generator is left as
                it was.
            include_noise: Draw noisy targets, else outputs of the network, to 1e-6 of the prior's deviation.
        """
        x = self._points(X)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        samples = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            temperatures = np.broadcast_to(self.temperature_, (len(self.fits_),))
            for fit, temperature in zip(self.fits_, temperatures.tolist(), strict=True):
                # The covariance of f at known points is a small difference of large numbers: keep it positive definite.
                least = 1e-12 * float(fit.problem.prior(x).variance.max())
                noise = temperature if include_noise else least
                together = posterior(fit, x, joint=True)
                drawn = together.add_noise(torch.full_like(together.mean, noise)).rsample(torch.Size([n_samples]))
                samples += drawn.unflatten(-1, (len(x), -1)).unbind(-1)
        samples = [each.numpy() for each in samples]
        return np.moveaxis(self._units.value(self._of_targets(samples, axis=-1)), 0, -1)

    @property
    def _units(self) -> Units:
        """The targets' units for arrays, whose arithmetic is that of tensors."""
        shift, scale = self.normalization_.target_mean, self.normalization_.target_scale
        return Units(shift.numpy(), scale.numpy())  # type: ignore[arg-type]

    def __sklearn_tags__(self) -> Tags:
        """Say that there may be several targets."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
