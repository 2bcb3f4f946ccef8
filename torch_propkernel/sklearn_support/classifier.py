"""Classification with a Bayesian network, as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor

from ..distributions import ScaleMixtureMultivariateNormal
from ..theories import FittedOutputs
from .network_estimator import NetworkEstimator


class PropKernelClassifier(ClassifierMixin, NetworkEstimator):
    r"""Classification by regression on labels -1 and +1 with Bayesian networks of finite width.

    .. math:: P(\text{second class at } x) = P(f(x) > 0 \mid y) = \Phi(\Gamma / \sigma)

    with the posterior mean Gamma and deviation sigma of the network's output f (of :class:`PropKernelRegressor`,
    noise left out); for a mixture (``theory="sampled"``, ``"mixture"``) the average of that over its components. The
    classes are sorted: of two, the first is -1, the second +1.

    Of C > 2 classes with ``theory="saddle"``, one network has an output f_c for each, +1 for its class and -1 for the
    others, and a C x C matrix order parameter in every layer (``composition="outer"``):

    .. math:: P(\text{class } c \text{ at } x) = P(f_c(x) > f_b(x) \text{ for all } b \ne c \mid y)

    the share of posterior networks whose largest output is that of the class, by 1,024 quasi-random draws that are the
    same for every point. With every other theory each class has its own network that tells it from the rest. With
    ``theory="auto"`` or ``"sampled"`` each has its own predictor, which takes C times as long; else the C networks
    share all hyperparameters, fitted by the sum of their log evidences, and each has its own order parameters.
    Probabilities are then the shares P(f_c(x) > 0) divided by their sum, a rule of thumb whose log loss was higher by
    8 to 14 % on ten classes of digits.

    What the probability means for two classes: the share of networks, drawn from the posterior of the regression on +-1
    with noise of variance T, whose sign says the second class. :func:`expected_accuracy` averages it over the right
    labels. It is NOT a calibrated probability of the class: the loss is squared, labels are never in doubt beyond T,
    and where both classes mix it says how sure the networks' sign is, not how often it is right. Wrap the estimator in
    scikit-learn's ``CalibratedClassifierCV`` for frequencies.

    Not included: class and sample weights, an intercept for unbalanced classes other than the network's biases.
    Hyperparameters, units of the inputs, accuracy and cost: as :class:`PropKernelRegressor`, with labels +-1 as the
    targets, which are used as they are.

    Args:
        activation: A name in ``torch_propkernel.activations.ACTIVATIONS`` or an :class:`Activation`.
        width: Width of the hidden layer, one number for each of several, ``math.inf`` for infinite width; None to
            choose between 50 and infinity (50 for a theory that is named).
        depth: Number of hidden layers, where ``width`` is None or one number for all of them; one by default.
        temperature: T > 0 in units of the labels +-1; None to fit it.
        weight_variance: w_0, ..., w_L: one number or L + 1; None to fit them.
        bias_variance: b_0, ..., b_{L-1}: one number or L, zero for no bias; None to fit them.
        ard_weights: Relative prior variances of the input weights: one number (no ARD) or one for each input; None to
            fit them.
        theory: ``"auto"``, a name in ``torch_propkernel.theories.THEORIES``, or a :class:`Theory`.
        hyperparameters: ``"auto"``: what is None is fitted; or a :class:`NetworkFit`, whose numbers it takes instead.
        composition: How the order parameters of several layers enter; ``"mixture"`` needs the default.
        normalize_X: Standardize the inputs.
        tuning_rows: Largest number of rows, drawn at random, on which hyperparameters are fitted; None for all.
        time_limit: Seconds that ``"auto"`` and ``"sampled"`` may take, or None.
        random_state: Seed of that draw, of the folds and of the chains; None for another one each time.

    Attributes:
        classes_: The C labels.
        predictors_: The :class:`NetworkPredictor` of each network; None for a theory that was named.
        hyperparameters_: The :class:`NetworkFit`; a list of them where networks have their own.
        temperature_: T, an array where networks have their own.
        order_parameters_: By name; ``"q"`` has q_1, ..., q_L, shape (L,), or (C, L) for more than two classes. For the
            outputs of one network ``"E"`` has E_1, ..., E_L, shape (L, C, C), and ``"Q"`` their product.
        reliability_: The :class:`Reliability` note on the regime, a list of them for more than two classes; :meth:`fit`
            warns if one is not reliable. None where the theory has no score; for the outputs of one network its
            ``reliable`` is None.
        log_evidence_: log p(y) of the labels +-1 under the regression, added up over networks.
        fits_: The :class:`FittedTheory` of each network; one :class:`FittedOutputs` where one has all outputs.
        normalization_: The :class:`Normalization` of the inputs.
        n_features_in_: Number of inputs.
        feature_names_in_: Names of the inputs, if X had string column names.

    Raises:
        ValueError: Parameters out of range, data that scikit-learn refuses, one class.
        ConvergenceError: The order parameters were not found.

    Reference: Pacelli et al. (2023), Nature Machine Intelligence 5, 1497 (arXiv:2209.04882); THEORY.md, eq. (4).

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(80, 2))
        >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "different")
        >>> model = PropKernelClassifier(theory="infinite_width", temperature=0.1).fit(X, y)
        >>> model.classes_.tolist(), model.predict([[2.0, 2.0], [-2.0, 2.0]]).tolist()
        (['different', 'same'], ['same', 'different'])
    """

    def fit(self, X: Any, y: Any) -> PropKernelClassifier:
        """Fit what is not given, choose the predictor and condition it on the labels.

        Args:
            X: Inputs, shape (P, N_0).
            y: Labels of two or more classes, shape (P,).
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: expected two classes or more, got one class, {self.classes_.tolist()[0]!r}")
        of_class = index[:, None] == np.arange(len(self.classes_))
        labels = np.where(of_class, 1.0, -1.0)
        self._fit_network(X, labels[:, 1] if len(self.classes_) == 2 else labels, normalize_y=False)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class at each point, shape (m,)."""
        margin = self.decision_function(X)
        return self.classes_[(margin > 0).astype(int) if margin.ndim == 1 else margin.argmax(-1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the share of posterior networks that say each class, shape (m, C); see the class."""
        first, second = self._shares(X)
        if second.ndim == 1:
            return np.stack([first, second], axis=-1)
        share = np.maximum(second, np.finfo(np.float64).tiny)  # where no network claims a point, all are alike
        return share / share.sum(-1, keepdims=True)

    def decision_function(self, X: Any) -> np.ndarray:
        r"""Return the normal quantile of a class's share, Gamma / sigma at the saddle.

        Of the second class for two, shape (m,), of each class for more, shape (m, C). It keeps its resolution up to 37
        deviations, where the probability has long been rounded to zero or one.
        """
        first, second = self._shares(X)
        rare = torch.tensor(np.minimum(first, second)).clamp_min(torch.finfo(torch.float64).tiny)
        margin = -torch.special.ndtri(rare).numpy()
        return np.where(second > first, margin, -margin)

    def _shares(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the shares of networks against and for the second class, or against and for each class."""
        x = self._points(X)
        if isinstance(self.fits_[0], FittedOutputs):
            share = self.fits_[0].class_probabilities(x).numpy()
            return 1.0 - share, share
        first, second = self._marginals(x, _shares)
        return first, second


def _shares(posterior: ScaleMixtureMultivariateNormal) -> tuple[Tensor, Tensor]:
    """Return P(f < 0) and P(f > 0), each accurate where it is small."""
    zero = torch.zeros_like(posterior.mean)
    return posterior.cdf(zero), posterior.affine(zero, zero - 1.0).cdf(zero)
